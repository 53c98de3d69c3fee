"""Any workspace, any network of timm or torchvision or your own: stratified folds, fine-tuned or trained from nothing.

python recipes/timm_kfold.py --model resnet18 --size 224                       fine-tune on all folds of the workspace here
python recipes/timm_kfold.py --model vit_small_patch16_224 --tune head         only its last layer, on cached features
python recipes/timm_kfold.py --weights lite0.pth --model tf_efficientnet_lite0  from a file, where there is no network
python recipes/timm_kfold.py --weights member:timm --member large --size 384    further, each fold from that member's own
python recipes/timm_kfold.py --model net.py:build --loss loss.py:mine --batch-size auto   your own; as many images as fit

10,000 of Fashion-MNIST's images, five folds, two CPU cores, no GPU (`benchmarks/fashion.py`): a small ResNet from nothing 0.880
out of fold in 322 s; the head of tf_efficientnet_lite0 on ImageNet's weights 0.851 in 195 s; both blended 0.897.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import click
from torch import nn

from toolkit import Competition
from toolkit.cli.recipes import Recipe, common, folds_of, follow, results, settings
from toolkit.training import Fold, SelfTraining, TrainingPlan, augment, described, fit, limited, loader, losses, schedules

from toolkit.training import WarmStart, setting, transfer  # isort: skip


@dataclass(frozen=True)
class Config(WarmStart, SelfTraining):
    """Everything that may change a result; a run goes on only where all of it is as it was."""

    member: str = setting("timm", "The name that the fold models share.")
    model: str = setting("resnet18", "A timm name, torchvision/NAME, or file.py:function.")
    outputs: str = setting("logits", "What a network of yours gives; others are undone.", choices=transfer.OUTPUTS)
    pretrained: bool = setting(True, "Begin from the hub's weights.")
    size: int = setting(224, "Side of the square that images are resized to.", minimum=8)
    resize: str = setting("squash", "Squash the whole image, or cut its centre.", choices=("squash", "crop"))
    box: str = setting("", "Cut out first: a box of competition.toml (face, face+0.2), or shares: left,top,right,bottom.")
    tune: str = setting("all", "What learns: see recipes/README.md.", choices=transfer.TUNES)
    epochs: int = setting(10, "Passes over the training images.", minimum=1)
    lr: float = setting(1e-3, "The highest learning rate, of the head.", minimum=0)
    layer_decay: float = setting(1.0, "The rate of each stage, as a share of the next one's.", minimum=0.01, maximum=1)
    optimiser: str = setting("adamw", "A name that timm's factory knows: sgd, adam, adamw, lamb ...")
    weight_decay: float = setting(0.05, "For AdamW apart from the gradient.", minimum=0)
    schedule: str = setting("cosine", f"How the rate runs: {described(schedules.SCHEDULES)} (step:every=3,gamma=0.5).")
    warmup: float = setting(0.0, "Epochs in which the rate climbs.", minimum=0)
    loss: str = setting("auto", f"One of {described(losses.LOSSES)} (focal:gamma=1.5), or file.py:function.")
    smoothing: float = setting(0.0, "Label smoothing.", minimum=0, maximum=1)
    augment: str = setting("auto", f"One of {', '.join(augment.PRESETS)}, or file.py:function.  auto: light; none for a head.")
    flip: bool = setting(True, "Presets mirror images: not where a mirrored image is another class.")
    erase: float = setting(0.0, "Probability that a rectangle is blanked.", minimum=0, maximum=1)
    mixup: float = setting(0.0, "Alpha of mixup; 0 for none.", minimum=0)
    cutmix: float = setting(0.0, "Alpha of CutMix; 0 for none.", minimum=0)
    batch_size: int | str = setting(64, "Images at once.  auto: as many as have memory.", choices=("auto",), minimum=2)
    accumulate: int = setting(1, "Batches per step of the optimiser.", minimum=1)
    effective_batch: int = setting(0, "Images per step; 0: batch size x accumulate.", minimum=0)
    precision: str = setting("auto", "Arithmetic on the device.", choices=("auto", "fp32", "bf16", "fp16"))
    clip: float = setting(0.0, "Largest norm of the gradient; 0 for any.", minimum=0)
    ema: float = setting(0.0, "Decay of averaged weights; 0 for none, 0.999 for long runs.", minimum=0, maximum=0.99999)
    compile: bool = setting(False, "torch.compile the network.")
    sampler: str = setting("shuffled", "weighted: every class equally often.", choices=("shuffled", "weighted"))
    select: str = setting(
        "last", "The epochs to export; all but last choose on the rows that score.", choices=("last", "best", "soup", "top3")
    )
    patience: int = setting(0, "Stop after so many epochs without a better one; 0 for never.", minimum=0)
    features: bool = setting(True, "With --tune head and no augmentation: run the backbone once per image.")
    seed: int = setting(0, "Decides every draw.", minimum=0)
    seeds: int = setting(1, "Models per fold, from neighbouring seeds.", minimum=1)
    limit: int | None = setting(None, "At most so many images, every fold and class by its share.", minimum=10)
    workers: int = setting(0, "Processes that load and augment.", minimum=0, matters=False)
    cache: bool = setting(True, "Decode once, into the workspace's cache/.", matters=False)
    batches: int | None = None  # per epoch; None for all


def architecture(config: Config, classes: int) -> dict[str, object]:
    """What rebuilds the network."""
    return transfer.architecture(config.model, classes, config.size, config.outputs)


def train_fold(config: Config, fold: Fold) -> nn.Module:
    """Start from pretrained weights, let the layers learn that should, and return what the schedule ends in."""
    classes = len(fold.classes)
    network = architecture(config, classes)
    model = transfer.start(network, pretrained=config.pretrained, weights=config.weights, size=config.size)
    tuning = transfer.Tuning(config.tune, model, config.epochs)
    prepare = transfer.preparation(config.model)
    preset = config.augment if config.augment != "auto" else "none" if config.tune == "head" else "light"
    transform = augment.make(preset, (config.size, config.size), flip=config.flip, erase=config.erase)
    mix = augment.mixer(config.mixup, config.cutmix, classes)
    cached = config.tune == "head" and config.features and not transform and not mix
    head = transfer.Head(model, fold, prepare) if cached else None
    learner = head.layer if head else model
    images = 64 if config.batch_size == "auto" else config.batch_size
    step = config.effective_batch or images * config.accumulate
    rows = head.rows if head else fold.training
    feed = loader(rows, step, workers=config.workers, augment=transform, weighted=config.sampler == "weighted")
    decay = config.layer_decay if config.layer_decay < 1 and not head else None
    optimiser = schedules.optimiser(config.optimiser, learner, config.lr, config.weight_decay, layer_decay=decay)
    lasts = {"epochs": config.epochs, "steps_per_epoch": min(len(feed), config.batches or len(feed)), "warmup": config.warmup}
    schedule, interval, plateau = schedules.make(config.schedule, optimiser, lr=config.lr, **lasts)
    trained = fit(
        learner,
        feed,
        head.fold if head else fold,
        epochs=config.epochs,
        prepare=(lambda features: features) if head else prepare,
        loss=transfer.objective(config.loss, fold, smoothing=config.smoothing),
        optimiser=optimiser,
        schedule=schedule,
        interval=interval,
        plateau=plateau,
        ema=config.ema,
        batches=config.batches,
        micro="auto" if config.batch_size == "auto" else images,
        mix=mix,
        clip=config.clip,
        arithmetic=config.precision,
        compiled=config.compile,
        freeze=None if head else tuning,
        select=config.select,
        patience=config.patience,
    )
    return head.finish(trained) if head else trained


@click.command(cls=Recipe)
@common(workspace=".")
@settings(Config)
@click.option("--summary", is_flag=True, help="Print the network's modules, parameters and what is trainable; train nothing.")
def main(
    workspace: Path, folds: list[int | None], device: str, *, fresh: bool, smoke: bool, summary: bool, **said: object
) -> None:
    """Train stratified folds of any workspace with any network, export each, and score them out of fold."""
    competition, config = Competition.read(workspace), Config(**said)  # type: ignore[arg-type]
    if smoke:
        config = replace(config, epochs=1, batches=2, seeds=1, workers=0, cache=False, limit=min(config.limit or 256, 256))
        folds = folds or [0]
    network = architecture(config, len(competition.targets[0].classes))
    if summary:
        click.echo(transfer.summary(network, config.tune))
        return
    split = limited(folds_of(competition), config.limit)
    with results(competition, smoke=smoke) as root:
        pixels = transfer.pixels(config.model, config.size, config.resize, config.box)  # and mean and std, taken off them
        plan = TrainingPlan("timm_kfold", config, network, *pixels, competition, split, root, config.cache)
        follow(plan, train_fold, folds=folds, device=device, fresh=fresh)


if __name__ == "__main__":
    main()
