"""Do loader and model match? Rates of both, the share of time the device waited, time per transform, and what to change."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import permutations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

WAITING = 0.1  # a device that waits for less than this share of its time is fed well enough
KEEPS_UP = 3.0  # times the model's rate, from which a loader is not to blame
PROBE = 0.3  # seconds that the loader runs alone to be timed
GAP = 0.1  # of the held-out loss


@dataclass(frozen=True)
class Feeding:
    """Rates in images per second: the loader alone, the model while it had data; `waiting` is the device's idle share.

    `transforms` are milliseconds per image, in the order they run in; `cheaper` is the order that measured fastest, empty where
    none is clearly faster. `steps` are those of an epoch.
    """

    loader: float
    model: float
    waiting: float
    workers: int = 0
    transforms: dict[str, float] = field(default_factory=dict)
    cheaper: tuple[str, ...] = ()
    steps: int = 0

    @property
    def record(self) -> dict[str, Any]:
        """Plain values for report.json."""
        return asdict(self) | {"said": str(self)}

    @property
    def advice(self) -> str:
        """What to change, or that nothing needs to be."""
        if self.steps == 1:
            return "an epoch is a single step: try a smaller --batch-size"
        if self.waiting < WAITING:
            return "the loader keeps up: nothing to change"
        if self.loader > KEEPS_UP * self.model:
            return "the loader is not what it waits for, steps are too short: try a larger --batch-size"
        cores = os.cpu_count() or 1
        remedies = []
        if self.workers < cores:
            remedies.append(f"--workers {min(cores, max(2, 2 * self.workers))}")
        if self.cheaper:
            remedies.append(f"the order {', '.join(self.cheaper)}")
        elif self.transforms:
            name, cost = max(self.transforms.items(), key=lambda pair: pair[1])
            remedies.append(f"a lighter augmentation ({name} takes {cost:.1f} ms an image)")
        return f"the model waits for images: try {' or '.join(remedies) or '--size smaller'}"

    def __str__(self) -> str:
        return (
            f"feeding: loader {self.loader:,.0f} images/s, model {self.model:,.0f} images/s, "
            f"waited for data {self.waiting:.0%} of the time; {self.advice}"
        )


def measure(feed: Any, *, images: int, seconds: float, waited: float) -> Feeding:
    """How a finished training was fed: `waited` of its `seconds` went by without data, for `images` in all."""
    augment = getattr(getattr(feed, "dataset", None), "augment", None)
    steps = _steps(augment)
    nothing: tuple[dict[str, float], tuple[str, ...]] = ({}, ())
    costs, cheaper = nothing if not steps else _costs(steps, _example(feed))
    return Feeding(
        loader=loader_rate(feed),
        model=images / max(seconds - waited, 1e-9),
        waiting=min(1.0, waited / max(seconds, 1e-9)),
        workers=int(getattr(feed, "num_workers", 0)),
        transforms=costs,
        cheaper=cheaper,
        steps=len(feed),
    )


def loader_rate(feed: Any, seconds: float = PROBE) -> float:
    """Images per second of a loader that nobody waits for, over at most `seconds`; its first batch starts the workers."""
    batches = iter(feed)
    first = next(batches)
    count, started = 0, time.monotonic()
    for pixels, _ in batches:
        count += len(pixels)
        if time.monotonic() - started > seconds:
            break
    if count == 0:  # a single batch in all: it has to do
        started = time.monotonic()
        count = len(next(iter(feed))[0] if feed.num_workers == 0 else first[0])
    return count / max(time.monotonic() - started, 1e-9)


def verdict(training: dict[str, float], held_out: dict[str, float]) -> str:
    """In plain words what the gap between training and held-out rows says; `loss` and `score` of each, larger scores better."""
    gap = held_out["loss"] - training["loss"]
    shown = f"loss {training['loss']:.3f} on training rows, {held_out['loss']:.3f} on held-out rows"
    if training["loss"] > 0 and gap > max(GAP * held_out["loss"], 0.02) and training["loss"] < 0.7 * held_out["loss"]:
        return f"overfitting ({shown}): more data or augmentation, more weight decay, a smaller network or fewer epochs"
    if training["loss"] > 0.5 * training.get("chance", float("inf")):
        return f"underfitting ({shown}): more epochs, a higher rate, a larger network or less augmentation"
    return f"a fair fit ({shown})"


def _steps(augment: Any) -> list[Callable[[Any], Any]]:
    """The transforms of a Compose, also of one that the user passed, or the one that there is."""
    if augment is None:
        return []
    found = getattr(augment, "transforms", None) if type(augment).__name__ in ("Compose", "Own") else None
    return [augment] if found is None else [step for one in found for step in _steps(one)]


def _example(feed: Any) -> list[torch.Tensor]:
    import torch

    rows = feed.dataset.rows
    return [torch.from_numpy(rows[i % len(rows)][0]) for i in range(8)]


def _costs(steps: list[Callable[[Any], Any]], images: list[torch.Tensor]) -> tuple[dict[str, float], tuple[str, ...]]:
    """Milliseconds per image of each step in its place, and the order that is faster by more than a tenth, if any."""
    import torch

    names = [type(step).__name__ if not hasattr(step, "__name__") else step.__name__ for step in steps]
    with torch.random.fork_rng(devices=[]):
        costs: dict[str, float] = {}
        here = images
        for name, step in zip(names, steps, strict=True):
            spent, here = _timed(step, here)
            costs[name] = costs.get(name, 0.0) + spent
        cheaper = _cheaper(steps, names, images) if 1 < len(steps) <= 4 else ()
    return {name: round(cost, 4) for name, cost in costs.items()}, cheaper


def _cheaper(steps: list[Callable[[Any], Any]], names: list[str], images: list[torch.Tensor]) -> tuple[str, ...]:
    """The fastest other order, the better of two measurements each, if it saves a tenth; orders that fail are none."""
    spent = {}
    for places in permutations(range(len(steps))):
        with suppress(Exception):  # steps of the user's own may need each other's results
            spent[places] = min(_run([steps[i] for i in places], images) for _ in range(2))
    fastest = min(spent, key=lambda places: spent[places])
    return tuple(names[i] for i in fastest) if spent[fastest] < 0.9 * spent[tuple(range(len(steps)))] else ()


def _run(steps: list[Callable[[Any], Any]], images: list[torch.Tensor]) -> float:
    total = 0.0
    for step in steps:
        spent, images = _timed(step, images)
        total += spent
    return total


def _timed(step: Callable[[Any], Any], images: list[torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
    started = time.perf_counter()
    after = [step(image) for image in images]
    return 1_000 * (time.perf_counter() - started) / len(images), after
