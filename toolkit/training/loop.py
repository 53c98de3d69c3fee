"""One fold's training with Lightning: device, precision, averaged weights, quiet; and a trained model's logits."""

from __future__ import annotations

import csv
import io
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit import files
from toolkit.errors import DeviceError, TrainingError
from toolkit.quiet import quiet
from toolkit.training.data import Fold, Rows

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

Triple = tuple[float, float, float]


def choose_device(device: str) -> str:
    """The device to train on, "cpu" or "cuda"; "auto" takes CUDA where torch can use it.

    Raises:
        DeviceError: another name, or CUDA was asked for and torch cannot use it.
    """
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"unknown device {device!r}", hint="Use auto, cpu or cuda.")
    there = device != "cpu" and torch.cuda.is_available()
    if device == "cuda" and not there:
        raise DeviceError(
            "--device cuda was asked for, but torch cannot use a CUDA device here",
            hint="Run `toolkit doctor` to see why, or use --device cpu.",
        )
    return "cuda" if there else "cpu"


def precision(device: str) -> str:
    """Lightning's name for the arithmetic: float32 on a CPU, bfloat16 from compute capability 8.0, else scaled float16."""
    import torch

    if device == "cpu":
        return "32-true"
    return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "16-mixed"


def normalise(images: torch.Tensor, mean: Triple, std: Triple) -> torch.Tensor:
    """What an export does to its input: uint8 or float (N, 3, H, W) in 0..255 to float32, less the mean, over the std."""
    import torch

    shape = (1, 3, 1, 1)
    centre = 255 * torch.tensor(mean, dtype=torch.float32, device=images.device).reshape(shape)
    scale = 1 / (255 * torch.tensor(std, dtype=torch.float32, device=images.device).reshape(shape))
    return (images.float() - centre) * scale


def fit(
    model: torch.nn.Module,
    feed: DataLoader[Any],
    fold: Fold,
    *,
    epochs: int,
    prepare: Callable[[torch.Tensor], torch.Tensor],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    ema: float = 0.0,
    batches: int | None = None,
) -> torch.nn.Module:
    """Train for a fixed number of epochs and return the model in eval mode: its averaged weights if `ema` is above zero.

    `prepare` turns a uint8 batch (N, 3, H, W) into what the model takes and runs in float32 on the device; `loss` takes logits
    and labels; `schedule` is stepped after every batch. `batches` cuts each epoch short. Writes `metrics.csv` into the
    fold's folder.

    Raises:
        TrainingError: the loss became NaN or infinite.
    """
    import pytorch_lightning as pl

    steps = epochs * min(len(feed), batches or len(feed))
    with quiet("pytorch_lightning", "lightning_fabric", "lightning.pytorch"), _interruptible():
        module = _module(model, prepare, loss, optimiser, schedule, ema, _Log(fold, steps))
        trainer = pl.Trainer(
            accelerator="gpu" if fold.device == "cuda" else "cpu",
            devices=1,
            precision=precision(fold.device),
            max_epochs=epochs,
            limit_train_batches=batches or 1.0,
            benchmark=fold.device == "cuda",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=fold.folder,
        )
        trainer.fit(module, feed)
    trained: torch.nn.Module = module.average.module if module.average else model
    return trained.eval()


def logits(
    model: torch.nn.Module, rows: Rows, mean: Triple, std: Triple, *, device: str, batch: int = 256
) -> NDArray[np.float32]:
    """Logits of evaluation pixels, float32 (N, width), in the rows' order; without TF32, as the export computes them."""
    import torch

    model = model.to(device).eval()
    found = []
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for start in range(0, len(rows), batch):
            pixels, _ = rows.__getitems__(range(start, min(start + batch, len(rows))))
            found.append(model(normalise(torch.from_numpy(pixels).to(device), mean, std)).float().cpu().numpy())
    return np.concatenate(found)


class _Log:
    """A fold's progress, and its metrics.csv, written anew after every epoch."""

    def __init__(self, fold: Fold, steps: int) -> None:
        self.fold, self.steps = fold, steps
        self.rows: list[dict[str, float]] = []
        self.seen = 0
        self.start()

    def start(self) -> None:
        """An epoch begins."""
        self.total: Any = 0.0
        self.images, self.started = 0, time.monotonic()

    def add(self, loss: torch.Tensor, images: int) -> None:
        """Note a batch; the sum stays on the device, since reading it would wait for every step."""
        self.total = self.total + loss.detach() * images
        self.images += images
        self.seen += images
        if self.fold.progress:
            self.fold.progress(self.seen, self.steps * images)

    def end(self, lr: float) -> None:
        """An epoch is over."""
        epoch, mean = len(self.rows) + 1, float(self.total) / self.images
        if not math.isfinite(mean):
            raise TrainingError(f"fold {self.fold.number}: the loss is {mean} in epoch {epoch}", hint="Try a lower --lr.")
        rate = self.images / max(time.monotonic() - self.started, 1e-9)
        self.rows.append({"epoch": epoch, "loss": round(mean, 6), "lr": lr, "images/s": round(rate, 1)})
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        files.write_text(self.fold.folder / "metrics.csv", text.getvalue())


def _module(  # noqa: C901 - a class with Lightning's hooks, not one tangled function
    model: torch.nn.Module,
    prepare: Callable[[torch.Tensor], torch.Tensor],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    ema: float,
    log: _Log,
) -> Any:
    """The fold as Lightning wants it; the class stands in here because its base is a heavy import."""
    import pytorch_lightning as pl
    import torch
    from timm.utils import ModelEmaV3

    class Module(pl.LightningModule):  # type: ignore[misc]  # Lightning is untyped here
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.average: Any = None

        def configure_optimizers(self) -> Any:
            return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def on_fit_start(self) -> None:
            self.model.to(memory_format=torch.channels_last)
            if ema:  # its BatchNorm statistics are averaged as its weights are, so that they belong to each other
                self.average = ModelEmaV3(self.model, decay=ema, use_warmup=True)

        def on_train_epoch_start(self) -> None:
            log.start()

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            images, labels = batch  # here, before autocast begins: coordinates in bfloat16 would miss by pixels
            return prepare(images).contiguous(memory_format=torch.channels_last), labels

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            images, labels = batch
            value = loss(self.model(images), labels)
            log.add(value, len(images))
            return value

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if self.average:
                self.average.update(self.model, step=self.global_step)

        def on_train_epoch_end(self) -> None:
            log.end(optimiser.param_groups[0]["lr"])

    return Module()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C be a KeyboardInterrupt again: Lightning turns it into sys.exit(1) and goes deaf to the next one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stopped:
        raise KeyboardInterrupt from stopped
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
