"""Where a run can be watched: TensorBoard or Weights & Biases, beside the CSV that is always written."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from toolkit.base import files
from toolkit.base.arrays import U8
from toolkit.base.quiet import quiet
from toolkit.errors import TrainingError
from toolkit.training.fold import state_file
from toolkit.training.fold.samples import Fold
from toolkit.training.plan import TrainingPlan

if TYPE_CHECKING:
    import torch

    from toolkit.core.predictions import Predictions

SHOWN = 16  # images of the first batch
NAMED = 24  # classes up to which the confusion matrix has its counts written in


class Tracker(Protocol):
    """Takes what there is to see of one fold's training."""

    def scalars(self, epoch: int, values: Mapping[str, float]) -> None:
        """An epoch's figures: loss, learning rate, images per second and what else there is."""
        ...

    def picture(self, name: str, pixels: U8) -> None:
        """A picture, uint8 (H, W, 3)."""
        ...

    def close(self) -> None:
        """Write what is pending."""
        ...


@dataclass(frozen=True)
class Run:
    """Which fold is tracked: where its files go, what it is called, which settings it has."""

    folder: Path
    competition: str
    member: str
    fold: int | None
    settings: Mapping[str, Any]
    seed: str = ""

    @property
    def name(self) -> str:
        """The run's name in a tracker: `digits.fold0`, `digits.all`, `digits.fold0.seed1`."""
        return ".".join(filter(None, (self.member, "all" if self.fold is None else f"fold{self.fold}", self.seed)))


def start(logger: str, run: Run) -> Tracker:
    """A tracker by its name in LOGGERS. What an earlier run left in the folder is removed, unless it is gone on from.

    Raises:
        TrainingError: an unknown name, or a package that is not installed.
    """
    if logger not in LOGGERS:
        raise TrainingError(f"unknown logger {logger!r}", hint=f"Use one of: {', '.join(LOGGERS)}.")
    if not (run.folder / state_file.FILE).exists():
        for old in run.folder.glob("events.out.tfevents.*"):
            old.unlink()
        shutil.rmtree(run.folder / "wandb", ignore_errors=True)
    return LOGGERS[logger](run)


class Trackers:
    """The trackers of a fold's runs, one per seed; closed when the block ends, however it ends."""

    def __init__(self, plan: TrainingPlan) -> None:
        self.plan = plan
        self.open: list[Tracker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self.open:
            with files.explained(self.plan.root / "runs"):
                tracker.close()

    def attach(self, fold: Fold) -> Fold:
        """The fold, telling a tracker of its own every row of metrics.csv and showing it the first batch of images."""
        plan, seed = self.plan, fold.folder.name if fold.folder != self.plan.folder(fold.number) else ""
        run = Run(fold.folder, plan.competition.name, plan.member, fold.number, plan.settings, seed)
        with files.explained(run.folder):
            tracker = start(plan.logger, run)
        self.open.append(tracker)
        seen: list[bool] = []

        def watch(row: dict[str, float], model: torch.nn.Module) -> None:
            with files.explained(run.folder):
                tracker.scalars(int(row["epoch"]), {name: value for name, value in row.items() if name != "epoch"})
            if fold.watch:
                fold.watch(row, model)

        def look(images: torch.Tensor) -> None:
            if not seen and images.ndim == 4:  # features of a frozen backbone are no picture
                seen.append(True)
                with files.explained(run.folder):
                    tracker.picture("images as fed", as_fed(images))

        return replace(fold, watch=watch, look=look)

    def confusion(self, truth: Predictions, predicted: Predictions) -> None:
        """Draw what the held-out rows were taken for; both have the same rows."""
        if self.plan.logger != "none":
            picture = matrix(confusion(truth.decided, predicted.decided, truth.classes), truth.classes)
            for tracker in self.open:
                with files.explained(self.plan.root / "runs"):
                    tracker.picture("confusion", picture)


@cache
def _one_voice() -> None:
    """A full disk is said once, by us: the thread that writes events keeps its error for the next flush, so no traceback."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            before(failed)

    threading.excepthook = hook


class _TensorBoard:
    """Event files in the fold's own folder: `tensorboard --logdir runs` shows all members and folds side by side."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        run.folder.mkdir(parents=True, exist_ok=True)
        _one_voice()
        self.writer = SummaryWriter(str(run.folder))
        rows = [f"| {name} | {str(value).replace('|', ' ')} |" for name, value in run.settings.items()]
        self.writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]))

    def scalars(self, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def picture(self, name: str, pixels: U8) -> None:
        self.writer.add_image(name, pixels, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    """A run of Weights & Biases, grouped by member. Without an account here it is kept offline, for `wandb sync`."""

    def __init__(self, run: Run) -> None:
        try:
            import wandb
        except ImportError as error:
            raise TrainingError(
                "the logger wandb needs the package wandb",
                hint="Install it: pip install wandb.",
            ) from error
        run.folder.mkdir(parents=True, exist_ok=True)
        self.wandb = wandb
        with quiet("wandb"):
            self.run = wandb.init(
                project=re.sub(r"[^\w .-]", "-", run.competition),  # the names that the service takes
                group=run.member,
                name=run.name,
                config=dict(run.settings),
                dir=str(run.folder),
                mode=_mode(),
                settings=wandb.Settings(silent=True, console="off", init_timeout=20, save_code=False),
                reinit="finish_previous",
            )

    def scalars(self, epoch: int, values: Mapping[str, float]) -> None:
        self.run.log({**values, "epoch": epoch})

    def picture(self, name: str, pixels: U8) -> None:
        self.run.log({name: self.wandb.Image(pixels)})

    def close(self) -> None:
        with quiet("wandb"):
            self.run.finish()


class _Nothing:
    """Only metrics.csv, which the loop writes itself."""

    def __init__(self, run: Run) -> None: ...

    def scalars(self, epoch: int, values: Mapping[str, float]) -> None: ...

    def picture(self, name: str, pixels: U8) -> None: ...

    def close(self) -> None: ...


LOGGERS: dict[str, Callable[[Run], Tracker]] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "none": _Nothing}


def _mode() -> Any:
    """W&B's mode: the one in WANDB_MODE, else online where a key is known; asking for a key would stop an unattended run."""
    import netrc

    if mode := os.environ.get("WANDB_MODE"):
        return mode
    try:
        known = os.environ.get("WANDB_API_KEY") or netrc.netrc().authenticators("api.wandb.ai")
    except (OSError, netrc.NetrcParseError):
        known = None
    return "online" if known else "offline"


def as_fed(batch: torch.Tensor) -> U8:
    """The first images of a batch as the model gets them, augmented and normalised, in a grid: uint8 (H, W, 3).

    `batch` is float (N, 3, H, W) in any range; the range of these images is spread over 0 to 255.
    """
    images = batch[:SHOWN].detach().float().cpu().numpy()
    low, high = float(images.min()), float(images.max())
    pixels = ((images - low) * (255 / max(high - low, 1e-9))).round().astype(np.uint8)
    side = int(np.ceil(np.sqrt(len(pixels))))
    rows = -(-len(pixels) // side)
    count, channels, height, width = pixels.shape
    grid = np.zeros((rows * side, channels, height, width), dtype=np.uint8)
    grid[:count] = pixels
    tiles = grid.reshape(rows, side, channels, height, width).transpose(0, 3, 1, 4, 2)
    return np.ascontiguousarray(tiles.reshape(rows * height, side * width, channels))


def confusion(truth: NDArray[Any], decided: NDArray[Any], classes: Sequence[str]) -> NDArray[np.int64]:
    """Counts (C, C), a row per true class, for labels int64 [N]; for bool [N, C] (C, 2): right and wrong per class."""
    if truth.ndim == 2:
        right = (truth == decided).sum(axis=0)
        return np.stack([right, len(truth) - right], axis=1)
    size = len(classes)
    return np.bincount(truth * size + decided, minlength=size * size).reshape(size, size)


def matrix(counts: NDArray[np.int64], classes: Sequence[str]) -> U8:
    """A confusion matrix as a picture, uint8 (H, W, 3): truth down, prediction across, darker for a larger share of its row."""
    from PIL import Image, ImageDraw

    rows, columns = counts.shape
    cell = 32 if rows <= NAMED else max(2, 640 // rows)
    names = [f"{i} {name}"[:18] for i, name in enumerate(classes)] if rows <= NAMED else []
    left, top = (8 + 7 * max(map(len, names)), 20) if names else (0, 0)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cells = (255 - share[:, :, None] * [225, 150, 80]).astype(np.uint8)
    canvas = np.full((top + rows * cell, left + columns * cell, 3), 255, dtype=np.uint8)
    canvas[top:, left:] = cells.repeat(cell, axis=0).repeat(cell, axis=1)
    image = Image.fromarray(canvas)
    pen = ImageDraw.Draw(image)
    for r, c in np.argwhere(counts) if names else ():
        colour = "white" if share[r, c] > 0.5 else "black"
        pen.text((left + c * cell + cell // 2, top + r * cell + cell // 2), str(counts[r, c]), fill=colour, anchor="mm")
    for i, name in enumerate(names):
        pen.text((left - 4, top + i * cell + cell // 2), name, fill="black", anchor="rm")
    for c in range(columns if names else 0):
        label = str(c) if columns == rows else ("right", "wrong")[c]
        pen.text((left + c * cell + cell // 2, top // 2), label, fill="black", anchor="mm")
    return np.asarray(image)
