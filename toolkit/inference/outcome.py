"""What is there after images went through models: logits by model and view, and the images that could not be used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.base.arrays import F32, F64
from toolkit.core.activations import probabilities
from toolkit.core.cards import Output
from toolkit.errors import ImageError, counted
from toolkit.inference.store.file_index import Digests
from toolkit.inference.store.retention import StoreTables, merge, merged_name
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.workspace.image_rows import Items


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be used, and why in a sentence."""

    id: str
    path: Path
    why: str


@dataclass(frozen=True, eq=False)
class PredictOutcome:
    """What `predict` leaves: a table per (model digest, view), the content digest of each usable item, the bad ones.

    `passes` counts image × model × view runs that were made now; everything else was in the store. `seconds` is how long the
    whole took, `pixels` names who made the pixels. `trusted` counts images that were not read, since their size and time were
    those of when they were read last. `finished` is false where time was up before every item had its rows. `partial` are those
    of which only what is there was taken, and `endless` counts JPEGs that lacked nothing but their end marker, of those read.
    """

    items: Items
    digests: Digests
    bad: tuple[BadImage, ...]
    tables: StoreTables
    device: str
    pixels: str
    passes: int
    seconds: float
    finished: bool = True
    trusted: int = 0
    partial: tuple[BadImage, ...] = ()
    endless: int = 0

    @property
    def notes(self) -> Iterator[str]:
        """What is to be said of the images that were used although something of their files is missing."""
        if self.endless:
            yield f"{counted(self.endless, 'JPEGs lack')} nothing but the end marker: all pixels are there and used"
        if self.partial:
            shown = "\n  ".join(image.why for image in self.partial)
            yield f"{counted(len(self.partial), 'pictures are')} not whole; what is there was used:\n  {shown}"

    def logits(self, export: Export, view: str, digests: Digests) -> F32:
        """Stored logits, float32 (N, width)."""
        return self.tables[export.digest, view].gather(digests)

    def probabilities(self, export: Export, output: Output, views: Sequence[str], digests: Digests) -> F64:
        """One fold model's probabilities, float64 (N, C) in the order of `output.classes`: the mean over its views."""
        merged = self.tables.get((export.digest, merged_name(views)))
        if merged is None:
            return merge([self.logits(export, view, digests) for view in views], output)
        there = merged.present(digests)
        values = np.empty((len(digests), len(output.classes)))
        values[there] = probabilities(merged.gather(digests[there]), output)
        if not there.all():  # computed when every view was kept
            values[~there] = merge([self.logits(export, view, digests[~there]) for view in views], output)
        return values


def bad_images_error(bad: Sequence[BadImage], *, kept: bool = True, code: str = "") -> ImageError:
    """Images that cannot be used, as the error that names them all; `kept` says that the others' rows stay in a store.

    `code` names what a caller may choose instead of mending them.
    """
    others = "; the others are finished and kept, nothing was written" if kept else ", and nothing was written"
    shown = "\n  ".join(image.why for image in bad)
    return ImageError(
        f"{counted(len(bad), 'images')} cannot be used{others}:\n  {shown}", hint="Mend them and run the same again.", code=code
    )
