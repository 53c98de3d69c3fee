"""A fold's trainer as Lightning wants it: the hooks, and the time that the device waits for images."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch

from toolkit.errors import TrainingError
from toolkit.training.fold import batch_size
from toolkit.training.fold.samples import epoch_seed, own_seed

if TYPE_CHECKING:
    from toolkit.training.fold.trainer import FoldTrainer


class LightningFold(pl.LightningModule):  # type: ignore[misc]  # Lightning is untyped here
    """The hooks that drive a `FoldTrainer`; import it where torch and Lightning are needed anyway.

    Raises:
        TrainingError: in a step, where a single image does not fit into memory.
    """

    def __init__(self, trainer: FoldTrainer, *, compiled: bool) -> None:
        super().__init__()
        self.automatic_optimization = False  # a step that ran out of memory is done again in smaller parts
        self.fold_trainer = trainer  # Lightning's own is called trainer
        self.model = trainer.parts.model
        self.forwards = (torch.compile(self.model) if compiled else self.model,)  # in a tuple: registered once only
        self.waiting = Waiting()

    def configure_optimizers(self) -> Any:
        """The recipe's own."""
        return self.fold_trainer.parts.optimiser

    def on_fit_start(self) -> None:
        """The model stands on its device."""
        self.model.to(memory_format=torch.channels_last)
        if self.fold_trainer.average:
            self.fold_trainer.average.to(self.device)

    def on_train_epoch_start(self) -> None:
        """An epoch begins."""
        self.fold_trainer.start_epoch()
        self.waiting = Waiting(cuda=self.device.type == "cuda")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """A batch has come."""
        if batch_idx == 0:  # only here: the trainer makes the loader's iterator, which draws, at different moments
            torch.manual_seed(
                own_seed(epoch_seed(self.fold_trainer.fold.seed, self.fold_trainer.epoch), self.fold_trainer.team)
            )
        self.waiting.stop()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One step of the optimiser."""
        images, labels = batch
        fold_trainer = self.fold_trainer
        rows = len(images) if fold_trainer.team.size == 1 else fold_trainer.effective
        while (value := self._whole(images, labels, rows)) is None:
            fold_trainer.micro = -(-fold_trainer.micro // 2)
            batch_size.free()
        value, fold_trainer.micro = fold_trainer.team.step(self.model, value, fold_trainer.micro)
        self.optimizers().step()
        fold_trainer.log.add(value, rows)
        fold_trainer.after_step()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """The gradients are there."""
        if self.fold_trainer.hyper.clip:  # here Lightning has taken the loss scale out again
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.fold_trainer.hyper.clip)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A step is over."""
        self.waiting.start()

    def on_train_epoch_end(self) -> None:
        """An epoch is over."""
        self.fold_trainer.end_epoch(self.waiting.seconds)
        if self.fold_trainer.stopped:
            self.trainer.should_stop = True

    def _whole(self, images: torch.Tensor, labels: torch.Tensor, rows: int) -> torch.Tensor | None:
        """The gradient of a batch of so many `rows`, part by part; None where a part has no memory."""
        micro = self.fold_trainer.micro
        total = torch.zeros((), device=images.device)
        try:
            self.optimizers().zero_grad()
            for start in range(0, len(images), micro):
                part = slice(start, start + micro)
                total += self._part(images[part], labels[part], len(images[part]) / rows)
        except (RuntimeError, MemoryError) as error:
            if not batch_size.out_of_memory(error):
                raise
            if micro == 1:
                raise TrainingError(
                    f"{self.fold_trainer.fold.title}: a single image does not fit into memory",
                    hint="Use smaller images or a smaller network.",
                    code="smaller-images",
                ) from error
            return None
        return total

    def _part(self, images: torch.Tensor, labels: torch.Tensor, share: float) -> torch.Tensor:
        """The gradient of some images of a batch, of which they are so large a share; their part of the loss."""
        parts, look = self.fold_trainer.parts, self.fold_trainer.fold.look
        with torch.autocast(self.device.type, enabled=False):  # coordinates in bfloat16 would miss by pixels
            images = parts.prepare(images)
            if images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            if parts.mix:
                images, labels = parts.mix(images, labels)
            if look:
                look(images)
        value = parts.loss(self.forwards[0](images), labels) * share
        self.manual_backward(value)
        return value.detach()


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
        if self.cuda:
            torch.cuda.synchronize()
            return sum(float(left.elapsed_time(back)) for left, back in self._pairs) / 1_000
        return self._spent

    def _now(self) -> Any:
        if not self.cuda:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
