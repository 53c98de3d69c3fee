"""The course of one fold: what happens in a step and at the end of an epoch, what is kept, what the next run goes on from."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from toolkit.base import files
from toolkit.errors import TrainingError
from toolkit.training.fold import batch_size, state_file
from toolkit.training.fold.process_group import Team
from toolkit.training.fold.samples import Batches, Fold, epoch_seed, own_seed

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
            raise TrainingError(f"{self.fold.title}: the loss is {mean} in epoch {epoch}", hint="Try a lower --lr.")
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
        if not self.fold.team.leads:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        files.write_text(self.fold.folder / "metrics.csv", text.getvalue())


@dataclass
class Course:
    """All that a fold's training consists of; see `fit` for what the fields mean."""

    model: torch.nn.Module
    fold: Fold
    loss: Loss
    optimiser: torch.optim.Optimizer
    schedule: Any
    epochs: int
    feed: DataLoader[Any]
    ema: float
    batches: int | None
    mix: Mix | None
    clip: float
    freeze: Callable[[torch.nn.Module, int], None] | None
    select: str
    patience: int
    interval: str
    plateau: bool
    micro: int = 0
    epoch: int = 0  # finished ones
    steps: int = 0
    stopped: bool = False
    kept: list[tuple[float, float, int, dict[str, torch.Tensor]]] = field(default_factory=list)  # best first
    best: float = -math.inf
    since: int = 0  # epochs without a better one

    def __post_init__(self) -> None:
        from timm.utils import ModelEmaV3

        if self.select not in KEPT:
            raise TrainingError(f"unknown selection {self.select!r}", hint=f"There are: {', '.join(KEPT)}.")
        if self.judged and self.fold.judge is None:
            raise TrainingError(
                f"{self.fold.title} holds out no rows to choose an epoch by",
                hint="Use --select last and no --patience for it, under a --member of its own.",
            )
        if self.team.size > 1:
            self._deal()
        per_epoch = min(len(self.feed), self.batches or len(self.feed))
        if not per_epoch:
            raise TrainingError(f"{self.fold.title}: not one full batch of training images", hint="Use a smaller --batch-size.")
        self.log = Log(self.fold, self.epochs * per_epoch)
        # BatchNorm statistics are averaged as the weights are, so that they belong to each other
        self.average: Any = ModelEmaV3(self.model, decay=self.ema, use_warmup=True) if self.ema else None

    @property
    def team(self) -> Team:
        """The processes that share every batch."""
        return self.fold.team

    @property
    def judged(self) -> bool:
        """Whether the held-out rows are looked at after every epoch."""
        return self.select != "last" or self.patience > 0

    @property
    def effective(self) -> int:
        """Images per step of the optimiser."""
        sampler = self.feed.batch_sampler
        size = getattr(sampler, "size", None) or getattr(sampler, "batch_size", None) or self.feed.batch_size
        return int(size or 1)

    @property
    def current(self) -> torch.nn.Module:
        """The model that would be exported now."""
        module: torch.nn.Module = self.average.module if self.average else self.model
        return module

    def start_epoch(self) -> None:
        """The layers that learn go into training mode, frozen ones stay in eval mode."""
        self.model.train()
        if self.freeze:
            self.freeze(self.model, self.epoch)
        self.log.start()

    def after_step(self) -> None:
        """The optimiser has moved."""
        self.steps += 1
        if self.interval == "step":
            self.schedule.step()
        if self.average:
            self.average.update(self.model, step=self.steps)

    def end_epoch(self, waited: float) -> None:
        """Write what the epoch gave, keep it if it is among the best, save all of it."""
        row = self.log.end(self.optimiser.param_groups[0]["lr"], waited)
        self.epoch += 1
        if self.interval == "epoch":
            self.schedule.step(*([math.exp(-row["loss"])] if self.plateau else []))  # likelihood: larger is better
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
            self.fold.outcome.selected = {"last": "stopped", "top3": "best"}.get(self.select, self.select)
        if self.select == "soup":
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
        """Go on from what an earlier run of the same settings saved, if it did; all of a team read the same file."""
        state = state_file.load(self.fold.folder, self.fold.key) if self.fold.key else None
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average:
            self.average.module.load_state_dict(state["average"])
        self.epoch, self.steps, self.stopped = state["epoch"], state["steps"], state["stopped"]
        self.kept, self.best, self.since = state["kept"], state["best"], state["since"]
        self.micro = min(self.micro, state["micro"])
        self.log.rows, self.log.done = state["rows"], state["done"]
        sampler: Any = self.feed.batch_sampler
        if hasattr(sampler, "epoch"):
            sampler.epoch = self.epoch

    def _deal(self) -> None:
        """Let the feed give this process its rows of every batch only."""
        sampler, count = self.feed.batch_sampler, self.team.size
        if not isinstance(sampler, Batches):
            raise TrainingError(
                f"{self.fold.title}: {count} processes can share only batches of toolkit.training.loader",
                hint="Make the feed with it, or use --spread folds.",
            )
        if sampler.size < count:
            raise TrainingError(
                f"{self.fold.title}: a batch of {sampler.size} images cannot be shared by {count} processes",
                hint="Use a larger batch, or fewer --gpus or --processes.",
            )
        sampler.team = self.team

    def _save(self) -> None:
        state = {name: getattr(self, name) for name in ("epoch", "steps", "stopped", "kept", "best", "since", "micro")}
        state |= {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        state |= {"schedule": self.schedule.state_dict(), "rows": self.log.rows, "done": self.log.done}
        if self.average:
            state["average"] = self.average.module.state_dict()
        state_file.save(self.fold.folder, self.fold.key, state)

    def _judge(self) -> dict[str, float]:
        assert self.fold.judge is not None
        said = self.fold.judge(self.current)
        if (count := KEPT[self.select]) and not self._worse(said, count):
            self.kept.append((said["score"], -said["loss"], self.epoch, state_file.copied(self.current)))
            self.kept.sort(key=lambda one: one[:2], reverse=True)
            del self.kept[count:]
        better = said["score"] > self.best
        self.best, self.since = max(self.best, said["score"]), 0 if better else self.since + 1
        self.stopped = 0 < self.patience <= self.since
        return {"held_out_loss": round(said["loss"], 6), "held_out_gain": round(said["score"], 6)}

    def _worse(self, said: dict[str, float], count: int) -> bool:
        return len(self.kept) == count and (said["score"], -said["loss"]) <= self.kept[-1][:2]

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

    def one(name: str) -> torch.Tensor:
        values = [state[name] for state in states]
        return torch.stack(values).mean(dim=0) if values[0].is_floating_point() else values[0]

    return {name: one(name) for name in states[0]}


def lightning_module(  # noqa: C901 - a class with Lightning's hooks, not one tangled function
    course: Course, prepare: Prepare, *, compiled: bool
) -> Any:
    """The course as Lightning wants it; the class stands in here because its base is a heavy import.

    Raises:
        TrainingError: in a step, where a single image does not fit into memory.
    """
    import pytorch_lightning as pl
    import torch

    class Module(pl.LightningModule):  # type: ignore[misc]  # Lightning is untyped here
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False  # a step that ran out of memory is done again in smaller parts
            self.model = course.model
            self.forwards = (torch.compile(course.model) if compiled else course.model,)  # in a tuple: registered once only
            self.waiting = Waiting()

        def configure_optimizers(self) -> Any:
            return course.optimiser

        def on_fit_start(self) -> None:
            self.model.to(memory_format=torch.channels_last)
            if course.average:
                course.average.to(self.device)

        def on_train_epoch_start(self) -> None:
            course.start_epoch()
            self.waiting = Waiting(cuda=self.device.type == "cuda")

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:  # only here: the trainer makes the loader's iterator, which draws, at different moments
                torch.manual_seed(own_seed(epoch_seed(course.fold.seed, course.epoch), course.team))
            self.waiting.stop()

        def part(self, images: torch.Tensor, labels: torch.Tensor, share: float) -> torch.Tensor:
            with torch.autocast(self.device.type, enabled=False):  # coordinates in bfloat16 would miss by pixels
                images = prepare(images)
                if images.ndim == 4:
                    images = images.contiguous(memory_format=torch.channels_last)
                if course.mix:
                    images, labels = course.mix(images, labels)
                if course.fold.look:
                    course.fold.look(images)
            value = course.loss(self.forwards[0](images), labels) * share
            self.manual_backward(value)
            return value.detach()

        def whole(self, images: torch.Tensor, labels: torch.Tensor, rows: int) -> torch.Tensor | None:
            """The gradient of a batch of so many `rows`, part by part; None where a part has no memory."""
            total = torch.zeros((), device=images.device)
            try:
                self.optimizers().zero_grad()
                for start in range(0, len(images), course.micro):
                    part = slice(start, start + course.micro)
                    total += self.part(images[part], labels[part], len(images[part]) / rows)
            except (RuntimeError, MemoryError) as error:
                if not batch_size.out_of_memory(error):
                    raise
                if course.micro == 1:
                    raise TrainingError(
                        f"{course.fold.title}: a single image does not fit into memory",
                        hint="Use a smaller --size or a smaller --model.",
                    ) from error
                return None
            return total

        def training_step(self, batch: Any, batch_idx: int) -> None:
            images, labels = batch
            rows = len(images) if course.team.size == 1 else course.effective
            while (value := self.whole(images, labels, rows)) is None:
                course.micro = -(-course.micro // 2)
                batch_size.free()
            value, course.micro = course.team.step(self.model, value, course.micro)
            self.optimizers().step()
            course.log.add(value, rows)
            course.after_step()

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if course.clip:  # here Lightning has taken the loss scale out again
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), course.clip)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.waiting.start()

        def on_train_epoch_end(self) -> None:
            course.end_epoch(self.waiting.seconds)
            if course.stopped:
                self.trainer.should_stop = True

    return Module()


class Waiting:
    """Time between the end of one step and the start of the next: on CUDA as the device saw it, by events in its queue."""

    def __init__(self, *, cuda: bool = False) -> None:
        self.cuda = cuda
        self._left: Any = None
        self._spent = 0.0
        self._pairs: list[tuple[Any, Any]] = []

    def start(self) -> None:
        """A step is over."""
        self._left = self._now()

    def stop(self) -> None:
        """The next one begins."""
        if self._left is None:
            return
        now = self._now()
        if self.cuda:
            self._pairs.append((self._left, now))
        else:
            self._spent += now - self._left
        self._left = None

    @property
    def seconds(self) -> float:
        """All of it; on CUDA this waits for the device."""
        import torch

        if self.cuda:
            torch.cuda.synchronize()
            return sum(float(one.elapsed_time(two)) for one, two in self._pairs) / 1_000
        return self._spent

    def _now(self) -> Any:
        import torch

        if not self.cuda:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
