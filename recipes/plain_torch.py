"""The training loop spelt out: plain torch from zero_grad to no_grad, no trainer, on the handwritten digits.

python recipes/plain_torch.py                       all folds, in exports/digits (made if it is not there)
python recipes/plain_torch.py --fold 0 --epochs 3   a quick look at one fold
python recipes/plain_torch.py --smoke               does it run? two batches in this process: breakpoints work

Seeds 0 and 1: accuracy 0.993 and 0.991 out of fold. 75 to 85 s in all on a CPU with two cores (13 to 20 s a fold).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.utils.data import DataLoader, Dataset

from toolkit import Preprocess, TrainingError, digits_data, write_csv
from toolkit.cli.recipes import Recipe, common, follow, results, settings
from toolkit.training import Fold, Rows, TrainingPlan, WarmStart, normalise, setting, transfer

MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Config(WarmStart):
    """Everything that may change a result; a run goes on only where all of it is as it was."""

    member: str = setting("plain", "The name that the fold models share.")
    seed: int = setting(0, "Of weights, order and augmentation.", minimum=0)
    epochs: int = setting(16, "A fixed number.", minimum=1)
    batch_size: int = setting(32, "Images at once.", minimum=2)
    accumulate: int = setting(2, "Batches per step: the gradient of 64 images in the memory of 32.", minimum=1)
    lr: float = setting(3e-3, "The learning rate at its peak.", minimum=0)
    weight_decay: float = setting(0.05, "Of AdamW.", minimum=0)
    clip: float = setting(1.0, "The gradient's largest norm.", minimum=0)
    workers: int = setting(0, "Processes that prepare images; 0: this one, where a debugger sees them.", minimum=0)
    size: int = 32
    shift: int = 3  # pixels either way
    batches: int | None = None  # per epoch; None for all


def architecture(classes: int) -> dict[str, object]:
    """ResNet-10-T of a quarter of its width: 232,000 parameters, enough for digits."""
    return {"model_name": "resnet10t", "channels": [16, 32, 64, 96], "stem_width": 16, "num_classes": classes}


class Images(Dataset[tuple[Tensor, int]]):
    """From vanilla data to what the model takes: one row's pixels, moved at random and normalised, float32 (3, H, W)."""

    def __init__(self, rows: Rows, shift: int = 0) -> None:
        self.rows, self.shift = rows, shift

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        pixels, label = self.rows[place]
        image = normalise(torch.from_numpy(pixels)[None], MEAN, STD)[0]
        if self.shift:
            padded = F.pad(image, [self.shift] * 4, value=-1.0)  # -1 is black once normalised
            top, left = torch.randint(2 * self.shift + 1, (2,)).tolist()
            image = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
        return image, int(label)


def feed(rows: Rows, config: Config) -> DataLoader[tuple[Tensor, int]]:
    """How the images reach the model: shuffled, in batches, by how many processes. What an image is, `Images` says."""
    size = min(config.batch_size, len(rows))
    return DataLoader(Images(rows, config.shift), size, shuffle=True, drop_last=True, num_workers=config.workers)


@torch.no_grad()  # nothing is kept for a backward pass: less memory, more speed
def accuracy(model: nn.Module, rows: Rows, device: str) -> float:
    """The share of rows that the model gets right on unmoved images."""
    model.eval()  # Dropout passes everything, BatchNorm uses the statistics it gathered
    found = [model(images.to(device)).argmax(dim=1).cpu() == labels for images, labels in DataLoader(Images(rows), 256)]
    return float(torch.cat(found).float().mean())


def train_fold(config: Config, fold: Fold) -> nn.Module:
    """AdamW and one cycle of the learning rate over a fixed number of epochs; the weights at its end are the result."""
    network = architecture(len(fold.classes))
    model = transfer.start(network, pretrained=False, weights=config.weights, size=config.size).to(fold.device)
    loader = feed(fold.training, config)
    count = min(len(loader), config.batches or len(loader))
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    steps = config.epochs * -(-count // config.accumulate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.lr, total_steps=steps)
    history = []
    for epoch in range(1, config.epochs + 1):
        model.train()
        total = 0.0
        optimiser.zero_grad()
        for number, (images, labels) in zip(range(1, count + 1), loader, strict=False):
            if fold.look:
                fold.look(images)  # TensorBoard shows the first batch
            logits = model(images.to(fold.device))  # forward
            loss = F.cross_entropy(logits, labels.to(fold.device))
            (loss / config.accumulate).backward()  # gradients add up until the next zero_grad
            if number % config.accumulate == 0 or number == count:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip)
                optimiser.step()
                schedule.step()
                optimiser.zero_grad()
            total += loss.item()
            if fold.progress:
                fold.progress(((epoch - 1) * count + number) * len(images), config.epochs * count * len(images))
        if not total < float("inf"):
            raise TrainingError(f"fold {fold.number}: the loss is {total} in epoch {epoch}", hint="Try a lower --lr.")
        right = accuracy(model, fold.training, fold.device)
        history.append({"epoch": epoch, "loss": total / count, "lr": schedule.get_last_lr()[0], "training accuracy": right})
        write_csv(fold.folder / "metrics.csv", list(history[0]), [row.values() for row in history])
        if fold.watch:
            fold.watch(history[-1], model)  # TensorBoard, or a search that ends what is behind
    return model.eval()


@click.command(cls=Recipe)
@common(workspace="exports/digits", spread=["folds"])
@settings(Config)
def main(workspace: Path, folds: tuple[int | None, ...], device: str, *, fresh: bool, smoke: bool, **said: object) -> None:
    """Train stratified folds on handwritten digits with a hand-written loop, export each, and score them out of fold."""
    torch.set_num_threads(1)  # layers this small are done before a second thread has woken up
    competition = digits_data.make_workspace(workspace)
    config = Config(**said)  # type: ignore[arg-type]
    if smoke:
        config, folds = replace(config, epochs=1, batches=2, workers=0), folds or (0,)
    with results(competition, smoke=smoke) as root:
        network, pixels = architecture(len(competition.targets[0].classes)), Preprocess((config.size, config.size))
        split = digits_data.make_split(competition)
        plan = TrainingPlan("plain_torch", config, network, pixels, MEAN, STD, competition, split, root)
        follow(plan, train_fold, folds=folds, device=device, fresh=fresh)


if __name__ == "__main__":
    main()
