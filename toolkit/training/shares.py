"""Shares of folds and classes in a split: fewer rows with the same ones, and a sentence where classes are far apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.workspace.split import Split

IMBALANCE = 5.0  # rows of the largest class for one of the smallest, from which a run says so


def limited(split: Split, rows: int | None) -> Split:
    """The split with at most so many of its rows, every fold and class in the share that it had."""
    if not rows or rows >= len(split.ids):
        return split
    order = np.lexsort((np.array(split.labels), split.folds))
    kept = np.sort(order[np.linspace(0, len(order) - 1, rows).round().astype(np.int64)])
    ids, labels, groups = (tuple(column[i] for i in kept) for column in (split.ids, split.labels, split.groups))
    return Split(ids, labels, groups, split.folds[kept])


def imbalance(labels: NDArray[Any], classes: Sequence[str], metric: str) -> list[str]:
    """A sentence where the largest class has many times the rows of the smallest; `labels` as in `Samples`."""
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(classes))
    if labels.dtype.kind == "f" or not counts.max(initial=0) >= IMBALANCE * max(int(counts.min()), 1):
        return []
    most, least = int(counts.argmax()), int(counts.argmin())
    plain = "" if "f1" in metric else f" {metric} says little about the small ones: look at macro_f1 too (toolkit score)."
    said = (
        f"classes are imbalanced: {classes[most]!r} has {counts[most]:,} rows, {classes[least]!r} {counts[least]:,}.{plain} "
        f"A class-weighted or focal loss or a weighted sampler gives them more say."
    )
    return [said]
