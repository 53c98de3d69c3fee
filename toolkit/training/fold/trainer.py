"""The trainer of one fold: what happens in a step and at the end of an epoch, what is kept, what the next run goes on from."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from toolkit.base import files
from toolkit.errors import TrainingError, counted
from toolkit.training.fold import state_file
from toolkit.training.fold.process_group import Team
from toolkit.training.fold.samples import Batches, Fold

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

Prepare = Callable[["torch.Tensor"], "torch.Tensor"]
Loss = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
Mix = Callable[["torch.Tensor", "torch.Tensor"], tuple["torch.Tensor", "torch.Tensor"]]

KEPT = {"last": 0, "best": 1, "top3": 3, "soup": 5}  # epochs whose weights are kept


class Log:
    """A fold's progress, and its metrics.csv, written anew after every epoch."""

    def __init__(self, fold: Fold, steps: int) -> None:
        self.fold, self.steps = fold, steps
        self.rows: list[dict[str, float]] = []
        self.seen, self.done = 0, 0
        self.seconds = self.waited = 0.0
        self.start()

    def start(self) -> None:
        """An epoch begins."""
        self.total: Any = 0.0
        self.images, self.started, self.idle = 0, time.monotonic(), 0.0

    def add(self, loss: torch.Tensor, images: int) -> None:
        """Note a step; the sum stays on the device, since reading it would wait for every step."""
        self.total = self.total + loss * images
        self.images += images
        self.seen += images
        self.done += 1
        if self.fold.progress:
            self.fold.progress(self.done * images, self.steps * images)

    def end(self, lr: float, waited: float) -> dict[str, float]:
        """An epoch's training is over; its row.

        Raises:
            TrainingError: the loss became NaN or infinite.
        """
        epoch, mean = len(self.rows) + 1, float(self.total) / self.images
        if not math.isfinite(mean):
            raise TrainingError(
                f"{self.fold.title}: the loss is {mean} in epoch {epoch}", hint="Try a lower learning rate.", code="lower-rate"
            )
        seconds = max(time.monotonic() - self.started, 1e-9)
        self.seconds += seconds
        self.waited += waited
        return {
            "epoch": epoch,
            "loss": round(mean, 6),
            "lr": lr,
            "images/s": round(self.images / seconds, 1),
            "waited": round(min(1.0, waited / seconds), 3),
        }

    def write(self, row: dict[str, float]) -> None:
        """Add a row to metrics.csv."""
        self.rows.append(row)
        self.save()

    def save(self) -> None:
        """Make metrics.csv of the rows there are; the first process of a team does."""
        if not self.fold.team.leads or not self.rows:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        files.write_text(self.fold.folder / "metrics.csv", text.getvalue())


@dataclass(frozen=True, eq=False)
class Components:
    """The objects that take part in a fold's training; see `fit` for what they mean."""

    model: torch.nn.Module
    feed: DataLoader[Any]
    prepare: Prepare
    loss: Loss
    optimiser: torch.optim.Optimizer
    schedule: Any
    mix: Mix | None = None
    freeze: Callable[[torch.nn.Module, int], None] | None = None


@dataclass(frozen=True)
class Hyperparameters:
    """The numbers and words that say how long and how a fold is trained; see `fit` for what they mean."""

    epochs: int
    batches: int | None = None
    ema: float = 0.0
    clip: float = 0.0
    select: str = "last"
    patience: int = 0
    interval: str = "step"
    plateau: bool = False


@dataclass(eq=False)
class FoldTrainer:
    """One fold's training, and how far it is.

    Raises:
        TrainingError: a selection that there is not, no rows to select by, or batches that are too few or too small.
    """

    fold: Fold
    parts: Components
    hyper: Hyperparameters
    micro: int = 0
    epoch: int = 0  # finished ones
    steps: int = 0
    stopped: bool = False
    kept: list[tuple[float, float, int, dict[str, torch.Tensor]]] = field(default_factory=list)  # best first
    best: float = -math.inf
    since: int = 0  # epochs without a better one

    def __post_init__(self) -> None:
        from timm.utils import ModelEmaV3

        if self.hyper.select not in KEPT:
            raise TrainingError(f"unknown selection {self.hyper.select!r}", hint=f"There are: {', '.join(KEPT)}.")
        if self.judged and self.fold.judge is None:
            raise TrainingError(
                f"{self.fold.title} holds out no rows to choose an epoch by",
                hint="Take its last epoch without patience, as a member of its own.",
                code="no-rows-to-select-by",
            )
        if self.team.size > 1:
            self._deal()
        per_epoch = min(len(self.parts.feed), self.hyper.batches or len(self.parts.feed))
        if not per_epoch:
            raise TrainingError(
                f"{self.fold.title}: not one full batch of training images", hint="Use smaller batches.", code="smaller-batches"
            )
        self.log = Log(self.fold, self.hyper.epochs * per_epoch)
        # BatchNorm statistics are averaged as the weights are, so that they belong to each other
        self.average: Any = ModelEmaV3(self.parts.model, decay=self.hyper.ema, use_warmup=True) if self.hyper.ema else None

    @property
    def team(self) -> Team:
        """The processes that share every batch."""
        return self.fold.team

    @property
    def judged(self) -> bool:
        """Whether the held-out rows are looked at after every epoch."""
        return self.hyper.select != "last" or self.hyper.patience > 0

    @property
    def effective(self) -> int:
        """Images per step of the optimiser."""
        sampler = self.parts.feed.batch_sampler
        size = getattr(sampler, "size", None) or getattr(sampler, "batch_size", None) or self.parts.feed.batch_size
        return int(size or 1)

    @property
    def current(self) -> torch.nn.Module:
        """The model that would be exported now."""
        module: torch.nn.Module = self.average.module if self.average else self.parts.model
        return module

    def start_epoch(self) -> None:
        """The layers that learn go into training mode, frozen ones stay in eval mode."""
        self.parts.model.train()
        if self.parts.freeze:
            self.parts.freeze(self.parts.model, self.epoch)
        self.log.start()

    def after_step(self) -> None:
        """The optimiser has moved."""
        self.steps += 1
        if self.hyper.interval == "step":
            self.parts.schedule.step()
        if self.average:
            self.average.update(self.parts.model, step=self.steps)

    def end_epoch(self, waited: float) -> None:
        """Write what the epoch gave, keep it if it is among the best, save all of it."""
        row = self.log.end(self.parts.optimiser.param_groups[0]["lr"], waited)
        self.epoch += 1
        if self.hyper.interval == "epoch":
            self.parts.schedule.step(*([math.exp(-row["loss"])] if self.hyper.plateau else []))  # likelihood: larger is better
        if self.judged:
            row |= self._judge() if self.team.leads else {}
            self.stopped = bool(self.team.told(self.stopped))
        self.log.write(row)
        if self.fold.watch:
            self.fold.watch(dict(row), self.current)
        if self.fold.key and self.team.leads:
            self._save()

    def chosen(self) -> torch.nn.Module:
        """The model to export, in eval mode; `fold.outcome` says how it was chosen and holds further ones."""
        import copy

        model = self.current
        if not self.team.leads:
            return model.eval()
        if self.judged:
            self.fold.outcome.selected = {"last": "stopped", "top3": "best"}.get(self.hyper.select, self.hyper.select)
        if self.hyper.select == "soup":
            model.load_state_dict(self._soup())
        elif self.kept:
            first, *others = self.kept
            model.load_state_dict(first[3])
            for _, _, _, state in others:
                twin = copy.deepcopy(model)
                twin.load_state_dict(state)
                self.fold.outcome.others.append(twin.eval())
        return model.eval()

    def restore(self) -> None:
        """Go on from what an earlier run of the same settings saved, if it did; all of a team read the same file.

        Then all of a team begin with the weights of its first process.
        """
        self._go_on()
        for module in (self.parts.model, *([self.average.module] if self.average else [])):
            self.team.align(module)

    def _go_on(self) -> None:
        state = state_file.load(self.fold.folder, self.fold.key) if self.fold.key else None
        if state is None:
            return
        self.parts.model.load_state_dict(state["model"])
        self.parts.optimiser.load_state_dict(state["optimiser"])
        self.parts.schedule.load_state_dict(state["schedule"])
        if self.average:
            self.average.module.load_state_dict(state["average"])
        self.epoch, self.steps, self.stopped = state["epoch"], state["steps"], state["stopped"]
        self.kept, self.best, self.since = state["kept"], state["best"], state["since"]
        self.micro = min(self.micro, state["micro"])
        self.log.rows, self.log.done = state["rows"], state["done"]
        self.log.save()  # it was removed with all that a killed run left, and no epoch may be left to write it
        sampler: Any = self.parts.feed.batch_sampler
        if hasattr(sampler, "epoch"):
            sampler.epoch = self.epoch

    def _deal(self) -> None:
        """Let the feed give this process its rows of every batch only."""
        sampler, count = self.parts.feed.batch_sampler, self.team.size
        if not isinstance(sampler, Batches):
            raise TrainingError(
                f"{self.fold.title}: {counted(count, 'processes')} can share only batches of toolkit.training.loader",
                hint="Make the feed with it, or spread folds over the processes.",
                code="spread-folds",
            )
        if sampler.size < count:
            raise TrainingError(
                f"{self.fold.title}: a batch of {counted(sampler.size, 'images')} "
                f"cannot be shared by {counted(count, 'processes')}",
                hint="Use larger batches or fewer processes.",
                code="fewer-processes",
            )
        sampler.team = self.team

    def _save(self) -> None:
        state = {name: getattr(self, name) for name in ("epoch", "steps", "stopped", "kept", "best", "since", "micro")}
        state |= {"model": self.parts.model.state_dict(), "optimiser": self.parts.optimiser.state_dict()}
        state |= {"schedule": self.parts.schedule.state_dict(), "rows": self.log.rows, "done": self.log.done}
        if self.average:
            state["average"] = self.average.module.state_dict()
        state_file.save(self.fold.folder, self.fold.key, state)

    def _judge(self) -> dict[str, float]:
        assert self.fold.judge is not None
        judged = self.fold.judge(self.current)
        if (count := KEPT[self.hyper.select]) and not self._worse(judged, count):
            self.kept.append((judged["score"], -judged["loss"], self.epoch, state_file.copied(self.current)))
            self.kept.sort(key=lambda epoch: epoch[:2], reverse=True)
            del self.kept[count:]
        better = judged["score"] > self.best
        self.best, self.since = max(self.best, judged["score"]), 0 if better else self.since + 1
        self.stopped = 0 < self.hyper.patience <= self.since
        return {"held_out_loss": round(judged["loss"], 6), "held_out_gain": round(judged["score"], 6)}

    def _worse(self, judged: dict[str, float], count: int) -> bool:
        return len(self.kept) == count and (judged["score"], -judged["loss"]) <= self.kept[-1][:2]

    def _soup(self) -> dict[str, torch.Tensor]:
        """Weights of the best epoch, with each further one mixed in that does not lower the held-out score."""
        assert self.fold.judge is not None
        model = self.current
        taken = [self.kept[0][3]]
        best = self.kept[0][0]
        for _, _, _, state in self.kept[1:]:
            mixed = _mean([*taken, state])
            model.load_state_dict(mixed)
            score = self.fold.judge(model)["score"]
            if score >= best:
                taken, best = [*taken, state], score
        return _mean(taken)


def _mean(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    import torch

    def mean(name: str) -> torch.Tensor:
        values = [state[name] for state in states]
        return torch.stack(values).mean(dim=0) if values[0].is_floating_point() else values[0]

    return {name: mean(name) for name in states[0]}
