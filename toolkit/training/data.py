"""Training images as evaluation pixels in memory, decoded once for all folds, and the loader that feeds them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit import images
from toolkit.cards import Preprocess
from toolkit.competition import FILE, Competition
from toolkit.errors import AlignmentError, TrainingError, few

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

Progress = Callable[[int, int], None]  # images trained on, images in all
Batch = tuple["torch.Tensor", "torch.Tensor"]


@dataclass(frozen=True, eq=False)
class Samples:
    """All images of a competition that have a label, as the pixels that a model is evaluated on.

    `pixels` is uint8 (N, 3, H, W), one image per id; `labels` int64 [N], or bool [N, C] for a multilabel target.
    """

    ids: tuple[str, ...]
    pixels: NDArray[np.uint8]
    labels: NDArray[Any]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.ids)}

    def rows(self, ids: Sequence[str]) -> Rows:
        """The samples of these ids, in their order; nothing is copied.

        Raises:
            AlignmentError: an id that has no image.
        """
        if missing := [name for name in ids if name not in self._places]:
            raise AlignmentError(
                f"{len(missing):,} ids of the split have no training image: {few(missing)}",
                hint="Make the split again with `toolkit split`.",
            )
        return Rows(self, np.array([self._places[name] for name in ids], dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Rows:
    """Some of the samples as a map-style dataset: (pixels, label) by position, whole batches at once for a loader."""

    samples: Samples
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row: int) -> tuple[NDArray[np.uint8], Any]:
        place = self.places[row]
        return self.samples.pixels[place], self.samples.labels[place]

    def __getitems__(self, rows: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """What torch's loader calls when it is there: one gather instead of a Python call per image."""
        places = self.places[np.asarray(rows)]
        return self.samples.pixels[places], self.samples.labels[places]


@dataclass(frozen=True, eq=False)
class Fold:
    """What a recipe's `train_fold` is given. The held-out rows are not in it, so they cannot leak into training."""

    number: int
    training: Rows
    classes: tuple[str, ...]
    device: str
    folder: Path
    progress: Progress | None = None


def decode(competition: Competition, preprocess: Preprocess, target: str) -> Samples:
    """Load every training image once; threads suffice, since decoding releases the GIL.

    Raises:
        ImageError: an image that cannot be read.
        TrainingError: several images of one id.
    """
    found = competition.images("train")
    truth = competition.truth()[target]
    if len(found) != len(truth):
        raise TrainingError(
            f"{len(found):,} training images for {len(truth):,} ids: recipes train on one image per id",
            hint=f"Name one file per row in {FILE}.",
        )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pixels = list(pool.map(partial(images.load, preprocess=preprocess), (path for _, path in found)))
    ids = tuple(name for name, _ in found)
    return Samples(ids, np.stack(pixels), truth.align(ids).decided)


def loader(rows: Rows, batch_size: int, *, workers: int = 0) -> DataLoader[Any]:
    """Shuffled full batches (uint8 pixels, labels), in an order that follows torch's seed.

    The last short batch of an epoch is left out: BatchNorm would take its few rows for the whole. Fewer rows than
    `batch_size` make one batch.
    """
    import torch
    from torch.utils.data import DataLoader

    return DataLoader(
        rows,  # type: ignore[arg-type]  # map-style by shape; inheriting would import torch with this module
        batch_size=min(batch_size, len(rows)),
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_tensors,
    )


def _tensors(batch: Any) -> Batch:
    import torch

    pixels, labels = batch
    return torch.from_numpy(pixels), torch.from_numpy(labels)
