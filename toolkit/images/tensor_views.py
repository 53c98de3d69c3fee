"""Views on a device: a batch of tensors turned where it lives, by ttach's transforms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolkit.errors import DataError
from toolkit.images.views import needs_square, turn_of

if TYPE_CHECKING:
    import torch


def apply(batch: torch.Tensor, view: str) -> torch.Tensor:
    """How a view turns a batch (N, C, H, W) of any dtype, on the batch's own device, made by ttach's transforms.

    Raises:
        DataError: an unknown step, a view that is cut from the decoded image, or a quarter turn of images that are not square.
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
    for step in turn_of(view).split("+"):
        transform, parameters = steps[step]
        batch = transform.apply_aug_image(batch, **parameters)
    return batch
