"""What a network's raw numbers are: logits, or something else that would be misread as logits; told by how its rows look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64
from toolkit.errors import ModelError, counted

Kind = Literal["logits", "probabilities", "percent", "log-probabilities", "sigmoid", "scaled", "softmax"]
Gives = Literal["logits", "probabilities", "percent", "log-probabilities", "sigmoid"]
End = Literal["softmax", "log-softmax", "sigmoid", "linear", "argmax", ""]

# what a person may say that a model gives, and what is then done with a row x
GIVES: dict[Gives, str] = {
    "logits": "numbers of any sign and size: their softmax (several labels, or one column for two classes: sigmoid)",
    "probabilities": "rows from 0 to 1 that sum to 1 (several labels, or one column for two classes: each from 0 to 1)",
    "percent": "rows that sum to 100: a hundredth of them",
    "log-probabilities": "logarithms of probabilities: taken as logits, which they are",
    "sigmoid": "each class from 0 to 1 by itself, where only one is right: divided by the sum of the row",
}

HALF, SINGLE, CHANCE = 1e-2, 1e-3, 1e-5  # how far sums may be off: of float16, of float32, of a layer that bounds nothing
SAME = 1e-6  # rows that differ by less, as a share of the largest number, are the same
SLACK = 1e-6  # of a bound, for rounding
ZERO_ONE = 1e-9  # nearer to 0 or 1 than softmax gets on images that differ


@dataclass(frozen=True)
class Look:
    """What rows were taken for and how they look; `sure` where nothing else looks so. `constant`: all rows are the same.

    "scaled" are probabilities times a number, "softmax" probabilities that exclude each other where several classes may hold.
    """

    kind: Kind
    shown: str
    sure: bool = True
    constant: bool = False
    one_hot: bool = False


def columns(raw: NDArray[Any], images: int, classes: int, *, where: str) -> F64:
    """Raw numbers for so many images as float64 [images, width]; axes of length 1, as (N, C, 1, 1) has, are left out.

    `width` is `classes`, or 1 where one number may stand for two classes.

    Raises:
        ModelError: classes × images, labels, a map of numbers per class, or another number of classes; said as what it is.
    """
    shape = " × ".join(map(str, raw.shape)) or "()"
    sides = tuple(side for side in raw.shape[1:] if side != 1)
    whole, given = raw.dtype.kind in "iub", counted(images, "images")
    if raw.ndim and raw.shape[0] == images and whole:
        what = "labels" if not sides else "whole numbers"
        raise _misread(where, f"gives {what} ({raw.dtype}, {shape} for {given}), not a score for each class", "labels")
    if raw.ndim == 2 and raw.shape == (classes, images) and classes != images:
        raise _misread(where, f"gives {shape} for {given}: classes × images, transposed", "transposed")
    if not raw.ndim or raw.shape[0] != images:
        raise _misread(where, f"gives an output of shape {shape} for {given}, which is no row for each", "rows")
    if len(sides) > 1:
        per = " × ".join(map(str, raw.shape[1:]))
        told = "a map for each class, not one number" if classes in sides else "no row of one number for each class"
        raise _misread(where, f"gives {per} numbers per image: {told}", "map")
    width = sides[0] if sides else 1
    if width != classes and not (width == 1 and classes == 2):
        raise _misread(where, _count(raw, width, classes, shape), "count")
    return np.asarray(raw, dtype=np.float64).reshape(images, width)


def _count(raw: NDArray[Any], width: int, classes: int, shape: str) -> str:
    """What another number of columns than of classes may be."""
    told = f"gives {counted(width, 'numbers')} per image ({shape} in all) for {counted(classes, 'classes')}"
    if width == 1:
        labels = bool((np.asarray(raw, dtype=np.float64) % 1 == 0).all())
        return f"{told}: {'a label' if labels else 'one value'}, not a score for each class"
    if width == 2 and classes == 1:
        return f"{told}: a yes or no in two columns, and one is named"
    return told


def _misread(where: str, what: str, kind: str) -> ModelError:
    return ModelError(f"{where} {what}", hint=SHAPE_HINTS[kind], code=f"raw-{kind}")


SHAPE_HINTS = {
    "labels": "Leave out its argmax: a label cannot be averaged with others.",
    "transposed": "Let it give a row for each image: images × classes.",
    "rows": "Let it give a row for each image: images × classes.",
    "map": "Pool the map before the last layer, or after it, to one number for each class.",
    "count": "Let its last layer have a column for each class.",
}


def look(values: F64, *, exclusive: bool, end: End = "", half: bool = False) -> Look:
    """What rows [N, width] are, of images that differ; `exclusive`: one class is right, not several.

    `end` is the operation that the numbers come from, as far as it is known. An untrained network's logits may well lie between
    0 and 1; that their rows sum to 1 does not happen, and that a sigmoid made them only `end` can say.

    Raises:
        ModelError: NaN or infinite numbers.
    """
    if not (good := np.isfinite(values)).all():
        bad = int((~good).any(axis=1).sum())
        raise ModelError(f"NaN or infinite numbers for {bad:,} of {counted(len(values), 'images')}")
    low, high = float(values.min()), float(values.max())
    one = values.shape[1] == 1
    sums = values.sum(axis=1)
    shown = f"lie between {low:.4g} and {high:.4g}"
    shown += "" if one else f", rows sum to {sums.min():.4g} to {sums.max():.4g}"
    constant = len(values) > 1 and float(np.ptp(values, axis=0).max()) <= SAME * max(abs(low), abs(high))
    kind, sure = _kind(values, sums, exclusive=exclusive and not one, end=end, half=half, constant=constant)
    sharp = bool((np.minimum(np.abs(values), np.abs(values - 1)) <= ZERO_ONE).all())
    one_hot = not one and sharp and bool((values.sum(axis=1).round() == 1).all())
    return Look(kind, shown, sure, constant, one_hot)


def _kind(values: F64, sums: F64, *, exclusive: bool, end: End, half: bool, constant: bool) -> tuple[Kind, bool]:
    """What the rows are, and whether that is sure."""
    loose = CHANCE if end == "linear" else HALF if half else SINGLE
    low, high = float(values.min()), float(values.max())
    mean = float(sums.mean())
    steady = low >= -SLACK and mean > 0 and float(np.abs(sums - mean).max()) <= loose * mean
    within = low >= -SLACK and high <= 1 + SLACK
    if steady and values.shape[1] > 1 and abs(mean - 1) <= loose:
        return ("probabilities" if exclusive else "softmax"), True
    if exclusive and steady and abs(mean / 100 - 1) <= loose:
        return "percent", True
    if exclusive and steady and not constant and end != "linear":
        return "scaled", True
    if exclusive and high <= SLACK and _normed(values, loose):
        return "log-probabilities", True
    if within and end != "linear":
        return "sigmoid", end == "sigmoid"
    return "logits", True


def _normed(values: F64, loose: float) -> bool:
    """Whether the exponentials of every row sum to 1."""
    top = values.max(axis=1)
    total = top + np.log(np.exp(values - top[:, None]).sum(axis=1))
    return bool(np.abs(total).max() <= loose)


def across(values: F64) -> bool:
    """Whether columns [N] sum to 1 where rows should: a softmax over the images of a batch.

    >>> across(np.array([[0.9, 0.5, 0.3], [0.1, 0.5, 0.7]]))
    True
    """
    sums = values.sum(axis=0)
    return len(values) > 1 and bool((values >= -SLACK).all()) and bool(np.abs(sums - 1).max() <= SINGLE)


def apart(together: F64, alone: F64) -> float:
    """How far rows are from the same images' rows in other batches, as a share of the largest number; 0 where any is NaN."""
    if not (np.isfinite(together).all() and np.isfinite(alone).all()):
        return 0.0  # that is said by `look`
    scale = max(1e-12, float(np.abs(alone).max(initial=0.0)), float(np.abs(together).max(initial=0.0)))
    return float(np.abs(together - alone).max(initial=0.0)) / scale
