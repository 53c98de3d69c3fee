"""Test-time augmentation: named views of a uint8 batch, each an exact permutation of its pixels, made by ttach."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolkit.errors import DataError

if TYPE_CHECKING:
    import torch

# A view is "id" or a chain of steps joined by "+", applied from left to right. Identity first; no two views of a set alike.
VIEW_SETS: dict[str, tuple[str, ...]] = {
    "none": ("id",),
    "hflip": ("id", "hflip"),
    "flip": ("id", "vflip", "hflip", "hflip+vflip"),
    "rot90": ("id", "rot90", "rot180", "rot270"),
    "d4": ("id", "rot90", "rot180", "rot270", "hflip", "hflip+rot90", "hflip+rot180", "hflip+rot270"),
}


def views(name: str) -> tuple[str, ...]:
    """The views of a set, identity first.

    Raises:
        DataError: no such set.
    """
    if name not in VIEW_SETS:
        raise DataError(f"unknown view set {name!r}", hint=f"Use one of: {', '.join(VIEW_SETS)}.")
    return VIEW_SETS[name]


def needs_square(view: str) -> bool:
    """Whether the view swaps height and width, so that only square inputs keep their shape."""
    return "rot90" in view or "rot270" in view


def apply(batch: torch.Tensor, view: str) -> torch.Tensor:
    """The view of a batch (N, C, H, W) of any dtype, on the batch's own device, made by ttach's transforms.

    Raises:
        DataError: an unknown step, or a quarter turn of images that are not square.
    """
    import ttach

    if needs_square(view) and batch.shape[-1] != batch.shape[-2]:
        raise DataError(f"view {view!r} needs square images, these are {batch.shape[-2]}×{batch.shape[-1]}")
    steps: dict[str, tuple[Any, dict[str, Any]]] = {
        "id": (ttach.HorizontalFlip(), {"apply": False}),
        "hflip": (ttach.HorizontalFlip(), {"apply": True}),
        "vflip": (ttach.VerticalFlip(), {"apply": True}),
        **{f"rot{angle}": (ttach.Rotate90([angle]), {"angle": angle}) for angle in (90, 180, 270)},
    }
    for step in view.split("+"):
        if step not in steps:
            raise DataError(f"unknown view {view!r}", hint=f"Steps are: {', '.join(steps)}.")
        transform, parameters = steps[step]
        batch = transform.apply_aug_image(batch, **parameters)
    return batch
