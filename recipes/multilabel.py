"""Several labels to a picture: a sigmoid for every class, BCE or asymmetric loss, thresholds chosen inside cross-validation.

python recipes/multilabel.py                           all folds, in exports/several-digits (made if it is not there)
python recipes/multilabel.py --loss asymmetric --member asl
python recipes/multilabel.py --smoke                   does it run? two batches, nothing kept

702 pictures of one to three digits, seed 0, macro-F1 out of fold: 0.936 with BCE and 0.917 with the asymmetric loss, whose
probabilities lie higher, at thresholds of 0.5. At thresholds per class, chosen inside cross-validation by `toolkit blend
--calibrate factors`: 0.943 (the gain is within noise) and 0.959 (gain 0.031 to 0.055). 75 s of CPU for the five folds, no GPU.
Any workspace with one multilabel target will do: --workspace, or from inside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from toolkit import Preprocess, TrainingError, digits_data
from toolkit.cli.recipes import Recipe, common, follow, results, settings
from toolkit.training import Fold, SelfTraining, TrainingPlan, WarmStart, described, fit, loader, losses, normalise, setting

from toolkit.training import transfer  # isort: skip

MEAN = STD = (0.5, 0.5, 0.5)
SMALL = {"model_name": "resnet10t", "channels": [16, 32, 64, 96], "stem_width": 16}  # 232,000 parameters
LOSSES = described({name: loss for name, loss in losses.LOSSES.items() if loss.multilabel})


@dataclass(frozen=True)
class Config(WarmStart, SelfTraining):
    """Everything that may change a result; a run goes on only where all of it is as it was."""

    member: str = setting("several", "The name that the fold models share.")
    seed: int = setting(0, "Of weights, order and augmentation.", minimum=0)
    model: str = setting("small", "A timm name, torchvision/NAME, file.py:function; small: a ResNet-10-T of a quarter width.")
    pretrained: bool = setting(False, "Begin from ImageNet weights.")
    loss: str = setting("bce", f"One of {LOSSES}: asymmetric pays off where most labels are a no.")
    size: int = setting(48, "Height and width in pixels.", minimum=32)
    box: str = setting("", "Cut out first: a box of competition.toml (face, face+0.2), or shares: left,top,right,bottom.")
    epochs: int = setting(40, "A fixed number.", minimum=1)
    batch_size: int = setting(64, "Images per step.", minimum=2)
    lr: float = setting(3e-3, "The learning rate at its peak.", minimum=0)
    weight_decay: float = setting(0.05, "Of AdamW.", minimum=0)
    ema: float = setting(0.98, "Decay of the averaged weights; 0 for none.", minimum=0)
    turn: float = 0.15  # radians, either way
    shift: float = 0.08  # of the side, either way
    batches: int | None = None  # per epoch; None for all


def architecture(config: Config, classes: int) -> dict[str, object]:
    """The network by its maker's arguments: a logit per class."""
    return {**(SMALL if config.model == "small" else {"model_name": config.model}), "num_classes": classes}


def augment(images: Tensor, config: Config) -> Tensor:
    """Every image turned and shifted by its own chance; float (N, 3, H, W)."""
    chance = 2 * torch.rand(len(images), 3, device=images.device) - 1
    angle, shift = chance[:, 0] * config.turn, chance[:, 1:] * 2 * config.shift
    turned = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).reshape(-1, 2, 2)
    grid = nn.functional.affine_grid(torch.cat([turned, shift[:, :, None]], dim=2), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)


def train_fold(config: Config, fold: Fold) -> nn.Module:
    """AdamW, one cycle of the learning rate over a fixed number of epochs; the averaged weights at its end are the result."""
    model = transfer.start(architecture(config, len(fold.classes)), pretrained=config.pretrained, weights=config.weights)
    feed = loader(fold.training, config.batch_size, seed=fold.seed)
    optimiser = torch.optim.AdamW(param_groups_weight_decay(model, config.weight_decay), lr=config.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.lr, total_steps=config.epochs * len(feed))
    return fit(
        model,
        feed,
        fold,
        epochs=config.epochs,
        prepare=lambda pixels: normalise(augment(pixels.float(), config), MEAN, STD),
        loss=losses.make(config.loss, classes=len(fold.classes)),
        optimiser=optimiser,
        schedule=schedule,
        ema=config.ema,
        batches=config.batches,
    )


@click.command(cls=Recipe)
@common(workspace="exports/several-digits")
@settings(Config)
def main(workspace: Path, folds: tuple[int, ...], device: str, *, fresh: bool, smoke: bool, **said: object) -> None:
    """Train stratified folds on pictures with several labels, export each, and score them out of fold."""
    torch.set_num_threads(1)  # layers this small are done before a second thread has woken up
    competition = digits_data.make_multilabel(workspace)
    if not competition.targets[0].multilabel:
        raise TrainingError(f"{competition.name!r} has one class to a picture", hint="Use another recipe: timm_kfold.py.")
    config = Config(**said)  # type: ignore[arg-type]
    if smoke:
        config, folds = replace(config, epochs=1, batches=2), folds or (0,)
    with results(competition, smoke=smoke) as root:
        network = architecture(config, len(competition.targets[0].classes))
        pixels, split = Preprocess((config.size, config.size)).framing(config.box), digits_data.make_split(competition)
        plan = TrainingPlan("multilabel", config, network, pixels, MEAN, STD, competition, split, root)
        follow(plan, train_fold, folds=folds, device=device, fresh=fresh)


if __name__ == "__main__":
    main()
