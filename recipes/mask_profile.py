"""AI Stages' mask competition: mask × gender × age in 18 classes, macro-F1, folds that keep every person whole.

python recipes/mask_profile.py --data /opt/ml/input/data     the competition's own train/ and eval/; writes exports/mask
python recipes/mask_profile.py --draw 60                     a small drawn set in the same layout, if there is none
python recipes/mask_profile.py --model resnet34 --pretrained --size 256 --loss focal --member focal
python recipes/mask_profile.py --heads parts --member parts  a network per factor, each with a crop of its own

On 60 drawn people (420 pictures; --draw 60): macro-F1 0.460 out of fold, 55 s of CPU for the five folds, no GPU. With
--identity, where shirt and wall give a person away: 0.254 split by person and 0.950 split by picture (--by picture, before the
workspace is made), where six other pictures of a held-out person train the model that is scored on the seventh. The difference
is nothing but the leak; `toolkit audit` names it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from toolkit import Preprocess, mask_data
from toolkit.cli.recipes import Recipe, common, follow, results, settings
from toolkit.training import Fold, SelfTraining, TrainingPlan, described, factor_losses, fit, loader, losses

from toolkit.training import WarmStart, normalise, setting, transfer  # isort: skip

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = {"model_name": "resnet10t", "channels": [16, 32, 64, 96], "stem_width": 16}  # 232,000 parameters
SIZES = tuple(len(classes) for classes in mask_data.FACTORS.values())
CROPS = ((0.35, 0.15, 0.85, 0.85), (0.1, 0.1, 0.9, 0.9), (0.1, 0.1, 0.75, 0.9))  # mask, gender, age: top, left, bottom, right
HEADS = ("joint", "factored", "parts")
LOSSES = described({name: loss for name, loss in losses.LOSSES.items() if not loss.multilabel})


@dataclass(frozen=True)
class Config(WarmStart, SelfTraining):
    """Everything that may change a result; a run goes on only where all of it is as it was."""

    member: str = setting("mask", "The name that the fold models share.")
    seed: int = setting(0, "Of weights, order and augmentation.", minimum=0)
    model: str = setting("small", "A timm name, torchvision/NAME, file.py:function; small: a ResNet-10-T of a quarter width.")
    pretrained: bool = setting(False, "Begin from ImageNet weights.")
    heads: str = setting("factored", "One of 18, one per factor, or a network per factor.", choices=HEADS)
    loss: str = setting("cross_entropy", f"Of each head, added up: {LOSSES} (focal:gamma=1.5).")
    size: int = setting(64, "Height in pixels; the width is three quarters of it.", minimum=32)
    box: str = setting("", "Cut out first: a box of competition.toml (face, face+0.2), or shares: left,top,right,bottom.")
    epochs: int = setting(30, "A fixed number.", minimum=1)
    batch_size: int = setting(64, "Images per step.", minimum=2)
    lr: float = setting(3e-3, "The learning rate at its peak.", minimum=0)
    weight_decay: float = setting(0.05, "Of AdamW.", minimum=0)
    ema: float = setting(0.98, "Decay of the averaged weights; 0 for none.", minimum=0)
    shift: float = 0.06  # of the side, either way
    batches: int | None = None  # per epoch; None for all


def architecture(config: Config) -> dict[str, object]:
    """The network by its maker's arguments; with several heads, a class's logit is the sum of its factors'."""
    said = SMALL if config.model == "small" else {"model_name": config.model}
    kinds = {"joint": {}, "factored": {"factors": SIZES}, "parts": {"factors": SIZES, "crops": CROPS}}
    return {**said, "num_classes": math.prod(SIZES), **kinds[config.heads]}


def augment(images: Tensor, config: Config) -> Tensor:
    """Every image mirrored or not, shifted and brightened by its own chance; float (N, 3, H, W) in 0..255."""
    count = len(images)
    theta = torch.zeros(count, 2, 3, device=images.device)
    theta[:, 0, 0] = 1 - 2 * torch.randint(2, (count,), device=images.device)
    theta[:, 1, 1] = 1
    theta[:, :, 2] = (4 * torch.rand(count, 2, device=images.device) - 2) * config.shift
    grid = nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved * (0.8 + 0.4 * torch.rand(count, 1, 1, 1, device=images.device))


def train_fold(config: Config, fold: Fold) -> nn.Module:
    """AdamW, one cycle of the learning rate over a fixed number of epochs; the averaged weights at its end are the result."""
    model = transfer.start(architecture(config), pretrained=config.pretrained, weights=config.weights)
    sizes = (math.prod(SIZES),) if config.heads == "joint" else SIZES  # one loss, or one per factor
    feed = loader(fold.training, config.batch_size, seed=fold.seed)
    optimiser = torch.optim.AdamW(param_groups_weight_decay(model, config.weight_decay), lr=config.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.lr, total_steps=config.epochs * len(feed))
    return fit(
        model,
        feed,
        fold,
        epochs=config.epochs,
        prepare=lambda pixels: normalise(augment(pixels.float(), config), MEAN, STD),
        loss=factor_losses.loss(config.loss, sizes, fold.training.labels),
        optimiser=optimiser,
        schedule=schedule,
        ema=config.ema,
        batches=config.batches,
    )


@click.command(cls=Recipe)
@common(workspace="exports/mask")
@settings(Config)
@click.option("--data", type=click.Path(path_type=Path), help="Where train/ and eval/ are.  [default: the workspace]")
@click.option("--draw", type=click.IntRange(6), metavar="PEOPLE", help="Draw a small set there first, if there is none.")
@click.option("--identity", is_flag=True, help="Drawn people can be recognised: same shirt, same wall.")
@click.option("--by", type=click.Choice(["person", "picture"]), default="person", show_default=True, help="Kept whole.")
def main(
    workspace: Path, folds: tuple[int, ...], device: str, data: Path | None, draw: int | None, by: str,
    *, identity: bool, fresh: bool, smoke: bool, **said: object,
) -> None:  # fmt: skip
    """Train folds of people on mask, gender and age, export each, and score them out of fold."""
    torch.set_num_threads(1)  # layers this small are done before a second thread has woken up
    there = [place for place in (workspace, data or workspace) if (place / "train").exists()]
    if draw and there:
        click.echo(f"{there[0] / 'train'} is there: nothing is drawn", err=True)
    elif draw:
        mask_data.draw(data or workspace, people=draw, identity=identity)
    competition = mask_data.make_workspace(workspace, data, by_person=by == "person")
    config = Config(**said)  # type: ignore[arg-type]
    if smoke:
        config, folds = replace(config, epochs=1, batches=2), folds or (0,)
    with results(competition, smoke=smoke) as root:
        network, pixels = architecture(config), Preprocess((config.size, config.size * 3 // 4)).framing(config.box)
        split = mask_data.make_split(competition)
        plan = TrainingPlan("mask_profile", config, network, pixels, MEAN, STD, competition, split, root)
        follow(plan, train_fold, folds=folds, device=device, fresh=fresh)


if __name__ == "__main__":
    main()
