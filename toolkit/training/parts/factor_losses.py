"""Losses of targets that factor: one loss per factor, added up, whatever the network's heads are."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from toolkit.errors import TrainingError
from toolkit.models import networks
from toolkit.training.parts import losses

if TYPE_CHECKING:
    import torch


def loss(name: str, sizes: Sequence[int], targets: NDArray[Any], **options: float) -> losses.Function:
    """The sum over the factors of a loss from LOSSES, as a function of the combinations' logits (N, prod(sizes)) and targets.

    Logits of the combinations in row-major order are taken apart into the factors' own (their marginals), and targets, int64
    (N,) or shares (N, prod(sizes)), likewise. `targets` are all training labels; losses that weigh classes count each factor's
    own. A single factor gives the plain loss.

    Raises:
        TrainingError: targets of another number of classes, or what `losses.make` refuses.
    """
    import torch

    if targets.ndim == 2 and targets.shape[1] != prod(sizes):
        raise TrainingError(f"factors of {list(sizes)} classes have {prod(sizes)} combinations, the targets {targets.shape[1]}")
    every = marginals(torch.from_numpy(targets), sizes)
    parts = [
        losses.make(name, classes=size, counts=shares.sum(0).round().int().tolist(), **options)
        for size, shares in zip(sizes, every, strict=True)
    ]

    def total(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        said = networks.apart(logits, sizes)
        found = [part(*pair) for part, *pair in zip(parts, said, marginals(labels, sizes), strict=True)]
        return torch.stack(found).sum()

    return total


def marginals(targets: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    """Each factor's shares, float (N, size), of targets over the combinations: int64 (N,) or shares (N, prod(sizes))."""
    import torch

    shares = torch.nn.functional.one_hot(targets, prod(sizes)).float() if targets.ndim == 1 else targets
    grid = shares.reshape(len(shares), *sizes)
    axes = range(1, len(sizes) + 1)
    return [grid.sum([axis for axis in axes if axis != own]) if len(sizes) > 1 else grid for own in axes]
