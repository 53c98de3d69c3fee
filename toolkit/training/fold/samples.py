"""Training images as evaluation pixels, decoded once for all folds, and the loader that feeds them."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.core.cards import Preprocess
from toolkit.errors import AlignmentError, TrainingError, counted, few
from toolkit.training import label_fixes
from toolkit.training.fold.decoded_cache import Pixels, Undecoded, decoded
from toolkit.training.fold.process_group import ALONE, Team
from toolkit.workspace.competition import FILE, Competition

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

Progress = Callable[[int, int], None]  # images trained on, images in all
Batch = tuple["torch.Tensor", "torch.Tensor"]
Augment = Callable[["torch.Tensor"], "torch.Tensor"]  # one image, uint8 (3, H, W), to another of one size for all


@dataclass(frozen=True, eq=False)
class Samples:
    """All images of a competition that have a label, as the pixels that a model is evaluated on.

    `pixels` is uint8 (N, 3, H, W), one image per id, in memory or on disk (or features, float32 (N, D)); `labels` is int64 [N],
    bool [N, C] for a multilabel target, or float32 [N, C] for soft ones.
    """

    ids: tuple[str, ...]
    pixels: Pixels
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
                f"{counted(len(missing), 'ids of the split have')} no training image: {few(missing)}",
                hint="Make the split again with `toolkit split`.",
            )
        return Rows(self, np.array([self._places[name] for name in ids], dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Rows:
    """Some of the samples as a map-style dataset: (pixels, label) by position, whole batches at once for a loader.

    `soft` are targets in place of the labels, float32 [len(places), C]; `extra` are rows of other samples that come after these
    (unlabelled images with pseudo-labels), with soft targets if these have them.
    """

    samples: Samples
    places: NDArray[np.int64]
    soft: NDArray[np.float32] | None = None
    extra: Rows | None = None

    def __len__(self) -> int:
        return len(self.places) + (len(self.extra) if self.extra else 0)

    def __getitem__(self, row: int) -> tuple[NDArray[np.uint8], Any]:
        if self.extra and row >= len(self.places):
            return self.extra[row - len(self.places)]
        place = int(self.places[row])
        pixels = np.array(self.samples.pixels[place])  # a copy, that the caller may write to
        return pixels, self.samples.labels[place] if self.soft is None else self.soft[row]

    def __getitems__(self, rows: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """What torch's loader calls when it is there: one gather instead of a Python call per image."""
        wanted = np.asarray(rows)
        if self.extra and (wanted >= len(self.places)).any():
            images = [self[int(row)] for row in wanted]
            return np.stack([pixels for pixels, _ in images]), np.stack([label for _, label in images])
        places = self.places[wanted]
        return self.samples.pixels[places], self.samples.labels[places] if self.soft is None else self.soft[wanted]

    @property
    def labels(self) -> NDArray[Any]:
        """What each row is trained towards, in order: int64 [n], bool [n, C] or float32 [n, C]."""
        own = self.samples.labels[self.places] if self.soft is None else self.soft
        return np.concatenate([own, self.extra.labels]) if self.extra else own

    def counts(self, classes: int) -> NDArray[np.float64]:
        """Rows of each class, float64 [C]; soft labels count by their shares."""
        labels = self.labels
        if labels.ndim == 1:
            return np.bincount(labels, minlength=classes).astype(np.float64)
        shares: NDArray[np.float64] = labels.sum(axis=0, dtype=np.float64)
        return shares

    def softened(self, targets: NDArray[np.float32]) -> Rows:
        """The same rows with soft targets, float32 [n, C].

        Raises:
            TrainingError: not one target per row, or rows that were joined already.
        """
        if len(targets) != len(self.places) or self.extra:
            raise TrainingError(f"{counted(len(targets), 'soft targets')} for {counted(len(self), 'rows')}")
        return replace(self, soft=np.asarray(targets, dtype=np.float32))

    def joined(self, extra: Rows) -> Rows:
        """These rows and, after them, those of other samples; both with labels of one shape.

        Raises:
            TrainingError: labels of different shapes.
        """
        if extra.labels.shape[1:] != self.labels.shape[1:]:
            raise TrainingError(f"labels of shape {extra.labels.shape[1:]} cannot be joined to {self.labels.shape[1:]}")
        return replace(self, extra=extra)


@dataclass
class Outcome:
    """What a fold's training leaves besides the model it returns.

    `selected` says how the epoch was chosen: anything but "last" looked at the rows that score the fold. `others` are further
    models of the same fold (its best epochs, other seeds). `report` holds plain values for report.json.
    """

    selected: str = "last"
    others: list[torch.nn.Module] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Fold:
    """What a recipe's `train_fold` is given. The held-out rows are not in it, so they cannot leak into training.

    `number` is None for a model that trains on everything. `judge` gives a model's mean loss and score on the held-out rows
    ("loss" and "score", larger is better); whoever chooses by it sets `outcome.selected`. `watch` is called after every epoch
    with its row of metrics.csv and the model. `key` names all settings: what an earlier run saved under another is not gone on
    from; without one nothing is saved between epochs. `team` are the processes that share its batches.
    """

    number: int | None
    training: Rows
    classes: tuple[str, ...]
    device: str
    folder: Path
    progress: Progress | None = None
    seed: int = 0
    key: str = ""
    judge: Callable[[torch.nn.Module], dict[str, float]] | None = None
    watch: Callable[[dict[str, float], torch.nn.Module], None] | None = None
    cache: Path | None = None  # where features of frozen backbones are kept
    look: Callable[[torch.Tensor], None] | None = None  # is shown every batch as the model gets it
    outcome: Outcome = field(default_factory=Outcome)
    team: Team = ALONE

    @property
    def title(self) -> str:
        """`fold 3`, or `the model of all rows`."""
        return "the model of all rows" if self.number is None else f"fold {self.number}"


def decode(
    competition: Competition,
    preprocess: Preprocess,
    target: str,
    *,
    only: Collection[str] = (),
    cache: bool = True,
    root: Path | None = None,
    say: Callable[[str], None] = lambda _text: None,
    progress: Progress | None = None,
) -> Samples:
    """Every training image (or those of the ids `only`) with its label, decoded once into the workspace's cache.

    `root` is another folder to hold cache/. Without `cache` images are decoded whenever they are asked for, in every epoch of
    every fold.

    Raises:
        ImageError: an image that cannot be read, or that has no box of the name that `preprocess` says.
        CompetitionError: no such boxes, or a table of them that cannot be read.
        TrainingError: several images of one id.
        StoreError: the disk is too small for the cache.
    """
    pairs = competition.images("train")
    truth = label_fixes.training_truth(competition)[target]
    if len(pairs) != len(truth):
        raise TrainingError(
            f"{counted(len(pairs), 'training images')} for {counted(len(truth), 'ids')}: recipes train on one image per id",
            hint=f"Name one file per row in {FILE}.",
        )
    if only:
        wanted = set(only)
        pairs = [pair for pair in pairs if pair[0] in wanted]
    ids, paths = tuple(name for name, _ in pairs), [path for _, path in pairs]
    labels = truth.align(ids).decided
    boxes = [competition.boxes.of(preprocess.box, *pair) for pair in pairs] if preprocess.box else []
    if not cache:
        return Samples(ids, Undecoded(paths, preprocess, boxes), labels)
    return Samples(ids, decoded(root or competition.root, paths, preprocess, boxes, say=say, progress=progress), labels)


def loader(
    rows: Rows,
    batch_size: int,
    *,
    seed: int | None = None,
    workers: int = 0,
    augment: Augment | None = None,
    weighted: bool = False,
) -> DataLoader[Any]:
    """Shuffled full batches (uint8 pixels, labels), in an order that follows `seed` (default: torch's own) and the epoch.

    `augment` is called per image, in the workers; what it draws follows the seed, the epoch and the batch, whatever the number
    of workers. `weighted` draws rows with replacement so that every class comes equally often (WeightedRandomSampler's rule).
    The last short batch of an epoch is left out: BatchNorm would take its few rows for the whole. Fewer rows than `batch_size`
    make one batch.

    Raises:
        TrainingError: `weighted` for labels that are no classes.
    """
    import torch
    from torch.utils.data import DataLoader

    batches = Batches(
        len(rows),
        min(batch_size, len(rows)),
        torch.initial_seed() if seed is None else seed,
        _weights(rows.labels) if weighted else None,
    )
    return DataLoader(
        _Feed(rows, augment),  # type: ignore[arg-type]  # map-style by shape; inheriting would import torch with this module
        batch_sampler=batches,  # type: ignore[arg-type]  # each with its seed, which _Feed knows how to take
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_tensors,
    )


class Batches:
    """A batch sampler: each epoch a fresh order, and for every batch a seed of its own for what is drawn in it.

    Both follow from `seed` and `epoch` alone, so that a run resumed at an epoch sees what an uninterrupted one would. With a
    `team`, each batch is dealt out to its processes row by row: together they see what one alone would, and draw differently.
    """

    def __init__(self, rows: int, size: int, seed: int, weights: NDArray[np.float64] | None = None) -> None:
        self.rows, self.size, self.seed, self.weights = rows, size, seed, weights
        self.epoch = 0
        self.team = ALONE

    def __len__(self) -> int:
        return self.rows // self.size

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        import torch

        draw = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        self.epoch += 1
        if self.weights is None:
            order = torch.randperm(self.rows, generator=draw)
        else:
            order = torch.multinomial(torch.from_numpy(self.weights), self.rows, replacement=True, generator=draw)
        seeds = torch.randint(2**62, (len(self),), generator=draw)
        for number, seed in enumerate(seeds.tolist()):
            batch = order[number * self.size : (number + 1) * self.size]
            yield own_seed(seed, self.team), batch[self.team.rank :: self.team.size].tolist()


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of one epoch; folds and epochs of neighbouring seeds do not meet."""
    return (seed * 1_000_003 + epoch) % 2**63


def own_seed(seed: int, team: Team) -> int:
    """The seed that a process of a team has in place of `seed`; the first keeps it, the others' are far from any neighbour."""
    return (seed + team.rank * 0x9E3779B97F4A7C15) % 2**63


class _Feed:
    """Rows as the loader asks for them, (seed, positions) per batch, each image augmented."""

    def __init__(self, rows: Rows, augment: Augment | None) -> None:
        self.rows, self.augment = rows, augment

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, asked: tuple[int, list[int]]) -> Batch:
        import torch

        seed, places = asked
        images, labels = self.rows.__getitems__(places)
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        if self.augment:
            before = random.getstate()
            with torch.random.fork_rng(devices=[]):
                random.seed(seed)
                torch.default_generator.manual_seed(seed)  # not CUDA's, which dropout draws from
                pixels = torch.stack([self.augment(image) for image in pixels])
            random.setstate(before)
        return pixels, torch.from_numpy(np.ascontiguousarray(labels))


def _weights(labels: NDArray[Any]) -> NDArray[np.float64]:
    """One over the size of each row's class."""
    if labels.ndim != 1:
        raise TrainingError("a weighted sampler needs one class per row", hint="Use a shuffled one.", code="sampler")
    weights: NDArray[np.float64] = 1 / np.bincount(labels)[labels]
    return weights


def _tensors(batch: Any) -> Batch:
    return batch  # type: ignore[no-any-return]  # made whole by _Feed
