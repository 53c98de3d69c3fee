"""A step on made-up images before all real ones are decoded, so that a mistyped flag costs seconds."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.training.fold.samples import Fold, Samples
from toolkit.training.parts import warm_start
from toolkit.training.plan import TrainFold, TrainingPlan

if TYPE_CHECKING:
    import torch

WORTH = 2_000  # images to decode, from which a rehearsal pays
STEPS = 20  # of a loop that nobody can watch, at most


class _Enough(Exception):  # noqa: N818 - ends a rehearsal, is no error
    pass


def rehearse(plan: TrainingPlan, train_fold: TrainFold, fold: int | None, device: str) -> None:
    """One epoch of `train_fold` on a few images of noise, in a folder that is thrown away.

    Raises:
        ToolkitError: what `train_fold` cannot do with these settings.
    """
    import torch

    def enough(*_: Any) -> None:
        raise _Enough

    calls: list[int] = []

    def progress(done: int, _total: int) -> None:
        calls.append(done)
        if len(calls) >= STEPS:
            raise _Enough

    def judge(_model: torch.nn.Module) -> dict[str, float]:
        return {"loss": 0.0, "score": 0.0}

    with tempfile.TemporaryDirectory(prefix="toolkit-rehearsal-") as folder, suppress(_Enough):
        torch.manual_seed(plan.config.seed)
        noise = _noise(plan)
        held_out = judge if fold is not None else None
        train_fold(
            warm_start.configured(plan.config, warm_start.start_of(plan.competition, plan.split, plan.config, fold)),
            Fold(
                fold,
                noise.rows(noise.ids),
                plan.target.classes,
                device,
                Path(folder),
                progress,
                judge=held_out,
                watch=enough,
            ),
        )


def _noise(plan: TrainingPlan) -> Samples:
    """Images of noise, of every class in turn."""
    classes = len(plan.target.classes)
    count = min(max(16, classes), 64)
    labels: NDArray[Any] = np.arange(count) % classes
    if plan.target.multilabel:
        labels = labels[:, None] == np.arange(classes)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, *plan.preprocess.size), dtype=np.uint8)
    return Samples(tuple(map(str, range(count))), pixels, labels)
