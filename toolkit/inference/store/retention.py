"""What the store keeps of predictions: a row per view or one merged row per model, as float32 or float16, under which key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F32
from toolkit.core import voting
from toolkit.core.cards import Output
from toolkit.images.boxes import Boxes
from toolkit.inference.store.file_index import DIGEST, Digests
from toolkit.inference.store.prediction_store import RenamedTable, StoreTable, TableKey, rows_size
from toolkit.runtime.devices import engine_tag
from toolkit.runtime.graphs.onnx_file import Export

StoreTables = Mapping[tuple[str, str], StoreTable | RenamedTable]  # by model digest and view


@dataclass(frozen=True)
class Keeping:
    """What stays in the store: every view's row, one merged row per fold model, or nothing in the end; and as what.

    A merged row holds logits whose softmax (or sigmoid) is the mean probability over the views. float16 is rounded to eleven
    bits, after the largest logit of each softmax was subtracted: at most 2.5e-4 in probability.
    """

    what: Literal["views", "folds", "none"] = "views"
    kept_as: str = "float32"


class Identities:
    """Which sixteen bytes stand for an image: its content's digest, with its boxes where models look at such.

    All tables of a run are asked with one digest per image, of its content and all boxes that take part; each has its rows
    under the content and its own box, so that a model finds them whoever runs beside it.
    """

    def __init__(self, exports: Sequence[Export], boxes: Boxes) -> None:
        self.boxes = boxes
        self.names = sorted({export.card.preprocess.box for export in exports} - {""})
        self._rows: dict[str, dict[bytes, bytes]] = {}

    def of(self, content: bytes, key: str, file: str | PathLike[str]) -> bytes:
        """The image's own.

        Raises:
            ImageError: no row of a table of boxes says anything of it.
            CompetitionError: there is no such table, or it cannot be read.
        """
        identity = self.boxes.key(content, self.names, key, file)
        for box, rows in self._rows.items():
            rows[identity.rstrip(b"\0")] = self.boxes.key(content, [box], key, file)  # numpy's bytes end before their zeros
        return identity

    def partial(self, identity: bytes) -> bytes:
        """What stands for the same image taken as far as it is there: rows of before never pass for those of the whole."""
        cut = _partial(identity)
        for rows in self._rows.values():
            rows[cut.rstrip(b"\0")] = _partial(rows[identity.rstrip(b"\0")])
        return cut

    def table(self, export: Export, table: StoreTable) -> StoreTable | RenamedTable:
        """The model's table, to be asked with what `of` gave."""
        box = export.card.preprocess.box
        if self.names in ([], [box]):
            return table
        return RenamedTable(table, self._rows.setdefault(box, {}))


def _partial(identity: bytes) -> bytes:
    return hashlib.blake2b(identity.ljust(DIGEST.itemsize, b"\0"), digest_size=DIGEST.itemsize, person=b"partial").digest()


def table_key(export: Export, view: str, pixels: str, device: str, precision: str, kept_as: str = "float32") -> TableKey:
    """Under which key the store keeps a model's logits for a view; `pixels` is the tag of who made the pixels."""
    where = f"{pixels}/{export.card.preprocess.digest}"
    return TableKey(export.digest, where, view, engine_tag(device), precision, kept_as)


def merged_name(views: Sequence[str]) -> str:
    """The view under which rows merged over several views are kept."""
    return f"mean({','.join(sorted(views))})"


def merge(logits: Sequence[F32], output: Output) -> NDArray[np.float64]:
    """The mean probability over views, float64 (N, C), of their logits (N, width)."""
    return voting.merge_views(logits, output)


def announced_size(exports: Sequence[Export], views: Mapping[str, Sequence[str]], items: int, keeping: Keeping) -> int:
    """Bytes that the store may grow by for so many images, when none of them is there yet."""
    folds = keeping.what == "folds"
    widths = [export.card.width for export in exports for _ in range(1 if folds else len(views[export.digest]))]
    return rows_size(items, widths, keeping.kept_as)


@dataclass(frozen=True)
class Growth:
    """How many bytes the store may grow by, and by how many with less: as float16, with merged rows, with both."""

    size: int
    smaller: Mapping[tuple[str, ...], int]

    def __str__(self) -> str:
        less = ", ".join(f"{' and '.join(ways)}: {size / 1e9:,.1f}" for ways, size in self.smaller.items())
        return f"The store may grow by {self.size / 1e9:,.1f} GB ({less or 'keeping nothing removes it in the end'})"


HALVED, MERGED = "as float16", "merged over views"  # what takes less, in words


def growth(exports: Sequence[Export], views: Mapping[str, Sequence[str]], items: int, keeping: Keeping) -> Growth:
    """See `announced_size`; what is chosen already is no way to less."""
    ways: dict[tuple[str, ...], Keeping] = {
        (HALVED,): replace(keeping, kept_as="float16"),
        (MERGED,): replace(keeping, what="folds"),
        (HALVED, MERGED): replace(keeping, what="folds", kept_as="float16"),
    }
    smaller = {way: announced_size(exports, views, items, less) for way, less in ways.items() if less != keeping}
    return Growth(announced_size(exports, views, items, keeping), smaller)


def kept_views(views: Sequence[str], keeping: Keeping) -> list[str]:
    """The views that have tables: with merged rows, the single ones are read where they are there."""
    return [*views, merged_name(views)] if keeping.what == "folds" and len(views) > 1 else list(views)


def complete(export: Export, views: Sequence[str], digests: Digests, tables: StoreTables) -> NDArray[np.bool_]:
    """Whether nothing of a model is missing: every view is there, or its merged row where such are kept."""
    there = np.ones(len(digests), dtype=bool)
    for view in views:
        there &= tables[export.digest, view].present(digests)
    whole = tables.get((export.digest, merged_name(views)))
    return there if whole is None else there | whole.present(digests)


def shifted(values: F32, outputs: Sequence[Output]) -> F32:
    """Logits less the largest of each softmax, which changes no probability and puts the finest steps where they count."""
    logits = values.copy()
    for output in outputs:
        if output.activation == "softmax":
            part = values[:, output.start : output.stop]
            logits[:, output.start : output.stop] = part - part.max(axis=1, keepdims=True)
    return logits


def as_logits(views: Sequence[F32], outputs: Sequence[Output]) -> F32:
    """Logits (N, width) whose probabilities are the mean over the views'."""
    logits = np.zeros_like(views[0])
    for output in outputs:
        p = merge(views, output)
        if output.activation == "sigmoid":
            p = p[:, 1:] if output.one_logit else p
            with np.errstate(divide="ignore"):
                odds = np.log(p) - np.log1p(-p)
            logits[:, output.start : output.stop] = odds.clip(-700, 700)
        elif output.activation == "softmax":
            logits[:, output.start : output.stop] = np.log(np.maximum(p, 1e-300))
        else:
            logits[:, output.start : output.stop] = p
    return logits
