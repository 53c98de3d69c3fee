"""One fold's training with Lightning: device, precision, micro-batches, averaged weights; and a trained model's logits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.base.quiet import quiet
from toolkit.errors import DeviceError, ToolkitError
from toolkit.models import network_outputs
from toolkit.training.fold import batch_size, throughput
from toolkit.training.fold.samples import Fold, Rows
from toolkit.training.fold.trainer import Components, FoldTrainer, Hyperparameters, Loss, Mix, Prepare

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

Triple = tuple[float, float, float]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


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
            "CUDA was asked for, but torch cannot use a CUDA device here",
            hint="Run `toolkit doctor` to see why, or use the CPU.",
            code="device-cpu",
        )
    return "cuda" if there else "cpu"


def precision(device: str, asked: Precision = "auto") -> str:
    """Lightning's name for the arithmetic; "auto" is float32 on a CPU, bfloat16 from capability 8.0, else scaled float16.

    Raises:
        DeviceError: float16 on a CPU, where torch has no loss scaler for it.
    """
    import torch

    if asked == "fp16" and device == "cpu":
        raise DeviceError("fp16 needs a CUDA device", hint="Use bf16, fp32 or auto on a CPU.", code="precision")
    if asked != "auto":
        return {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[asked]
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
    prepare: Prepare,
    loss: Loss,
    optimiser: torch.optim.Optimizer,
    schedule: Any,
    ema: float = 0.0,
    batches: int | None = None,
    micro: int | Literal["auto"] | None = None,
    mix: Mix | None = None,
    clip: float = 0.0,
    arithmetic: Precision = "auto",
    compiled: bool = False,
    freeze: Callable[[torch.nn.Module, int], None] | None = None,
    select: Literal["last", "best", "soup", "top3"] = "last",
    patience: int = 0,
    interval: Literal["step", "epoch"] = "step",
    plateau: bool = False,
) -> torch.nn.Module:
    """Train for a fixed number of epochs and return the model in eval mode: its averaged weights if `ema` is above zero.

    `prepare` turns a uint8 batch (N, 3, H, W) into what the model takes and runs in float32 on the device; `mix` then mixes
    images and labels with each other; `loss` takes logits and labels and is a mean over rows. `schedule` is stepped after every
    batch or epoch (`interval`), with the likelihood of the training rows where `plateau` is set. `batches` cuts each epoch
    short. `clip` is the gradient's largest norm.

    A batch of `feed` is one step of the optimiser. It is passed through the model in parts of `micro` images ("auto": as many
    as have memory); out of memory, the parts are halved and the step is done again, so that the effective batch stays. The
    loss of a part counts by its share of the rows: exact for means over rows, not for BatchNorm, nor for losses that weigh
    whole batches.

    With a team of processes (`fold.team`, see `Team.step`) each has its share of every batch: the batch stays what it was, and
    so does the result, up to rounding and with the same exceptions; draws differ by process. The first one judges and writes.

    `select` "best" keeps the epoch that does best on the held-out rows, "soup" the mean of up to five best epochs' weights as
    long as it does better (greedy soup, Wortsman et al. 2022), "top3" three epochs as models of their own; `patience` stops
    after so many epochs without a better one. All of them look at the rows that score the fold: `fold.outcome` says so.

    Writes `metrics.csv` into the fold's folder, and after every epoch what the next run goes on from. `freeze(model, epoch)` is
    called when an epoch begins, epochs counted from 0.

    Raises:
        TrainingError: the loss became NaN or infinite, a single image does not fit into memory, or a batch has fewer images
            than the team has processes.
        ModelError: the network gives no logits of each image: see `network_outputs.check`.
        PeerError: another process of the team is gone.
    """
    parts = Components(model, feed, prepare, loss, optimiser, schedule, mix, freeze)
    trainer = FoldTrainer(fold, parts, Hyperparameters(epochs, batches, ema, clip, select, patience, interval, plateau))
    trainer.micro = _micro(trainer, micro)
    trainer.restore()
    if not trainer.epoch:
        _check_outputs(trainer)
    if trainer.epoch < epochs and not trainer.stopped:
        _train(trainer, arithmetic, compiled=compiled)
    fold.outcome.report |= {"micro_batch": trainer.micro, "effective_batch": trainer.effective, "epochs": trainer.epoch}
    fold.outcome.report["processes"] = fold.team.size
    return trainer.chosen()


def _train(trainer: FoldTrainer, arithmetic: Precision, *, compiled: bool) -> None:
    """Train the epochs that are left."""
    from toolkit.training.fold.lightning_fold import LightningFold

    with quiet("pytorch_lightning", "lightning_fabric", "lightning.pytorch"), _interruptible(), _said_by_workers():
        _lightning(trainer, arithmetic).fit(LightningFold(trainer, compiled=compiled), trainer.parts.feed)
    if trainer.team.leads:  # rates of one process
        trainer.fold.outcome.report["feeding"] = _feeding(trainer)


def _check_outputs(trainer: FoldTrainer) -> None:
    """Look at what the network gives for real images, before it learns from them."""
    import torch

    fold, parts = trainer.fold, trainer.parts
    classes, exclusive = len(fold.classes), fold.training.samples.labels.dtype != bool
    wanted = network_outputs.asked_of(classes)
    dataset: Any = parts.feed.dataset
    try:
        with torch.random.fork_rng(devices=[fold.device] if fold.device == "cuda" else []):
            if isinstance(getattr(dataset, "rows", None), Rows):  # of `samples.loader`
                pixels, _ = dataset.__getitems__((0, [*range(min(wanted, len(dataset)))]))
            else:
                pixels = next(iter(parts.feed))[0][:wanted]
            images = parts.prepare(pixels.to(fold.device))
        network_outputs.check(parts.model, images, classes, where=f"{fold.title}: the network", exclusive=exclusive)
    except (RuntimeError, MemoryError) as error:
        if not batch_size.out_of_memory(error):
            raise  # else the loop finds out how many fit; what is exported is looked at again
        batch_size.free()


def _feeding(trainer: FoldTrainer) -> dict[str, Any]:
    """How fast images came and were learnt from, as config.json has it."""
    log = trainer.log
    images = log.seen // trainer.team.size
    return throughput.measure(trainer.parts.feed, images=images, seconds=log.seconds, waited=log.waited).record


def _lightning(trainer: FoldTrainer, arithmetic: Precision) -> Any:
    """Lightning's own trainer for the epochs that are left: it writes nothing and says nothing."""
    import pytorch_lightning as pl

    fold = trainer.fold
    return pl.Trainer(
        accelerator="gpu" if fold.device == "cuda" else "cpu",
        devices=1,
        precision=precision(fold.device, arithmetic),
        max_epochs=trainer.hyper.epochs - trainer.epoch,
        limit_train_batches=trainer.hyper.batches or 1.0,
        benchmark=fold.device == "cuda",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=fold.folder,
    )


def _micro(trainer: FoldTrainer, asked: int | Literal["auto"] | None) -> int:
    """Images per pass: as asked, or the most that a copy of the model has memory for."""
    import copy

    import torch

    share = -(-trainer.effective // trainer.team.size)
    if asked != "auto":
        return min(asked or share, share)
    if trainer.fold.device == "cpu":
        return share  # its memory is seldom the limit; where it is, the parts are halved
    pixels, labels = trainer.parts.feed.dataset.__getitems__((0, [0]))  # type: ignore[attr-defined]
    copied = copy.deepcopy(trainer.parts.model).to(trainer.fold.device).to(memory_format=torch.channels_last).train()

    def step(size: int) -> None:
        images = pixels.expand(size, *pixels.shape[1:]).to(trainer.fold.device)
        with torch.autocast("cuda", enabled=True):
            out = copied(trainer.parts.prepare(images).contiguous(memory_format=torch.channels_last))
            value = trainer.parts.loss(out, labels.expand(size, *labels.shape[1:]).to(trainer.fold.device))
        torch.autograd.backward(value)
        copied.zero_grad()

    return trainer.team.least(batch_size.largest(step, share))


def logits(
    model: torch.nn.Module, rows: Rows, mean: Triple, std: Triple, *, device: str, batch: int = 256
) -> NDArray[np.float32]:
    """Logits of evaluation pixels, float32 (N, width), in the rows' order; without TF32, as the export computes them."""
    import torch

    model = model.to(device).eval()
    batches = []
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for start in range(0, len(rows), batch):
            pixels, _ = rows.__getitems__(range(start, min(start + batch, len(rows))))
            batches.append(model(normalise(torch.from_numpy(pixels).to(device), mean, std)).float().cpu().numpy())
    return np.concatenate(batches)


@contextmanager
def _said_by_workers() -> Iterator[None]:
    """Errors of a loader's workers as they were: torch makes each one a text with its traceback."""
    try:
        yield
    except ToolkitError as error:
        if not error.message.startswith("Caught "):
            raise
        _, _, message = error.message.strip().splitlines()[-1].partition(": ")
        raise type(error)(message) from error


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
