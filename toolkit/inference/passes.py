"""Which passes (image × model × view) are made, and which images are worked on together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F32
from toolkit.inference.exports import Views
from toolkit.inference.store.file_index import Digests
from toolkit.inference.store.retention import StoreTables, complete
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.workspace.image_rows import ItemNumbers

BLOCK = 64  # images that travel together: decoded, placed and run at once

RunModels = Callable[
    [str, Sequence[str], ItemNumbers], Mapping[str, F32]
]  # (view, model digests, items) → logits, which are kept


class PassPlan(Protocol):
    """Which items are worked on together, which of them need pixels, and what is run on those."""

    def blocks(self, digests: Digests, known: NDArray[np.bool_], tables: StoreTables) -> Sequence[ItemNumbers]:
        """Items in the order of work; `known` says whose digest stands in `digests`. Items left out cost nothing more."""
        ...

    def wanted(self, items: ItemNumbers, digests: Digests, tables: StoreTables) -> ItemNumbers:
        """Those of a block's readable items that have to be decoded. Called in worker threads."""
        ...

    def settle(self, items: ItemNumbers, pixels: ItemNumbers, digests: Digests, tables: StoreTables, run: RunModels) -> None:
        """Run what is missing for a block's usable items; `pixels` are those that were decoded."""
        ...


@dataclass(frozen=True, eq=False)
class Everything:
    """The plan that brings every view of every model into the store."""

    exports: Sequence[Export]
    views: Views

    def blocks(self, digests: Digests, known: NDArray[np.bool_], tables: StoreTables) -> list[ItemNumbers]:
        """Items that some table lacks, BLOCK at a time."""
        todo = ~known
        todo[known] = self._lacking(digests[known], tables)
        rows = np.flatnonzero(todo)
        return [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]

    def wanted(self, items: ItemNumbers, digests: Digests, tables: StoreTables) -> ItemNumbers:
        """Those that some table lacks."""
        return items[self._lacking(digests, tables)]

    def settle(self, items: ItemNumbers, pixels: ItemNumbers, digests: Digests, tables: StoreTables, run: RunModels) -> None:
        """Models of a view that lack the same rows go together, those of one input size at a time."""
        place = np.searchsorted(items, pixels)
        for preprocess in dict.fromkeys(export.card.preprocess for export in self.exports):
            group = [export for export in self.exports if export.card.preprocess == preprocess]
            for view, rows, models in self._missing(group, digests[place], tables):
                run(view, models, pixels[rows])

    def _lacking(self, digests: Digests, tables: StoreTables) -> NDArray[np.bool_]:
        lacking = np.zeros(len(digests), dtype=bool)
        for export in self.exports:
            lacking |= ~complete(export, self.views[export.digest], digests, tables)
        return lacking

    def _missing(
        self, group: Sequence[Export], digests: Digests, tables: StoreTables
    ) -> Iterator[tuple[str, ItemNumbers, list[str]]]:
        """(view, rows, models) still to run."""
        whole = {e.digest: complete(e, self.views[e.digest], digests, tables) for e in group}
        for view in dict.fromkeys(view for export in group for view in self.views[export.digest]):
            alike: dict[bytes, list[str]] = {}
            for export in group:
                if view in self.views[export.digest]:
                    lacking = ~whole[export.digest] & ~tables[export.digest, view].present(digests)
                    if lacking.any():
                        alike.setdefault(lacking.tobytes(), []).append(export.digest)
            for mask, models in alike.items():
                yield view, np.flatnonzero(np.frombuffer(mask, dtype=bool)), models
