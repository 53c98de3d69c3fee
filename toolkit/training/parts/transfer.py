"""Transfer learning: which pixels a network wants, where its weights come from, which of its layers learn, and when."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.base import user_functions
from toolkit.base.text.printing import Table
from toolkit.core.cards import Preprocess
from toolkit.errors import TrainingError
from toolkit.models import checkpoints, network_outputs, networks
from toolkit.training.fold.features import precomputed
from toolkit.training.fold.fit import Triple, normalise
from toolkit.training.fold.samples import Fold
from toolkit.training.fold.trainer import Prepare
from toolkit.training.parts import losses

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

OUTPUTS = ("logits", *networks.UNDONE)
TUNES = ("all", "head", "gradual")
IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # torchvision's


def start(architecture: Mapping[str, Any], *, pretrained: bool, weights: str = "", size: int = 0) -> torch.nn.Module:
    """The network to begin from: with the hub's weights, with those of a file (its own classifier may differ), or with none.

    With `size` it has to take images of that side and to give a logit of each class for them: see `network_outputs.check`.

    Raises:
        ModelError: no such network, weights that cannot be had or belong to another, images that it cannot take.
    """
    model = networks.create(architecture, pretrained=pretrained and not weights)
    if weights:
        networks.load_weights(model, checkpoints.read(Path(weights)).state, where=weights)
    if size:
        network_outputs.probe(model, architecture["model_name"], size, architecture["num_classes"])
    return model


def pixels(
    name: str, size: int, resize: Literal["squash", "crop"] = "squash", box: str = ""
) -> tuple[Preprocess, Triple, Triple]:
    """The evaluation pixels that a network was trained for, brought to `size`, and its mean and std in units of pixel / 255.

    `box` is what is cut out first, as `cards.frame` reads it.

    Raises:
        CardError: no such box.
    """
    import timm

    config: Any = timm.models.get_pretrained_cfg(name) if networks.timms(name) else None
    mean, std = (config.mean, config.std) if config else IMAGENET
    filters = {"bilinear": "bilinear", "bicubic": "bicubic"}
    interpolation: Any = filters.get(config.interpolation, "bilinear") if config else "bilinear"
    shorter = max(size, ceil(size / (config.crop_pct if config else 0.875))) if resize == "crop" else None
    preprocess = Preprocess((size, size), resize, shorter, interpolation=interpolation).framing(box)
    return preprocess, tuple(mean), tuple(std)


def preparation(name: str) -> Prepare:
    """What turns uint8 batches into what a network takes: its own mean and std."""
    _, mean, std = pixels(name, 1)
    return partial(normalise, mean=mean, std=std)


def architecture(name: str, classes: int, size: int, outputs: str = "logits") -> dict[str, Any]:
    """What `networks.create` rebuilds a network from; transformers of a fixed grid are told the size of their images.

    `outputs` says what the network gives, where it is no logits.
    """
    import timm

    config: Any = timm.models.get_pretrained_cfg(name) if networks.timms(name) else None
    fixed = {"img_size": size} if config is not None and config.fixed_input_size else {}
    undone = {"outputs": outputs} if outputs != "logits" else {}
    return {"model_name": name, "num_classes": classes, **fixed, **undone}


class Tuning:
    """Which layers learn in which epoch; to be given to `fit` as `freeze`.

    "head" trains the last layer on a frozen backbone; "all" everything; "gradual" begins with the head and unfreezes the rest
    stage by stage, from the head backwards, until half of the epochs are over (Howard and Ruder 2018, arXiv:1801.06146). What
    is frozen stays in eval mode: moving BatchNorm statistics would change a backbone that no gradient touches.
    """

    def __init__(self, kind: str, model: torch.nn.Module, epochs: int) -> None:
        if kind not in TUNES:
            raise TrainingError(f"unknown tuning {kind!r}", hint=f"There are: {', '.join(TUNES)}.")
        self.kind, self.epochs = kind, epochs
        self.stages, self.head = [], ""
        if kind != "all":
            self.head, _ = networks.classifier(model)
            self.stages = networks.stages(model)[:-1]
        if kind == "head":
            self(model, 0)

    def frozen(self, epoch: int) -> int:
        """How many of the first stages do not learn in an epoch, counted from 0."""
        if self.kind == "gradual":
            return len(self.stages) - ceil(len(self.stages) * min(1.0, 2 * epoch / self.epochs))
        return len(self.stages) if self.kind == "head" else 0

    def __call__(self, model: torch.nn.Module, epoch: int) -> None:
        """Freeze what does not learn in this epoch; the model is in training mode."""
        frozen = self.frozen(epoch)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._stage(name) >= frozen)
        for name, module in model.named_modules():
            if name and self._stage(f"{name}.") < frozen and not self.head.startswith(f"{name}."):
                module.training = False  # its own: eval() would reach into what learns below it
        if self.kind == "head":  # what lies between, such as dropout, acts as it does when features are cached
            model.eval()

    def _stage(self, name: str) -> int:
        """The number of a parameter's stage; the head's comes after all others."""
        if name.startswith(f"{self.head}."):
            return len(self.stages)
        return networks.stage_of(name, self.stages)


def objective(name: str, fold: Fold, *, smoothing: float = 0.0) -> losses.Function:
    """The loss over logits and labels: by its name in LOSSES, "auto" for the task's own, or "file.py:function".

    Raises:
        TrainingError, ModelError: see `losses.make` and `userfiles.user_function`.
    """
    if ".py:" in name:
        return partial(_scalar, name, user_functions.user_function(name))
    task = "bce" if fold.training.samples.labels.dtype == bool else "cross_entropy"
    counts = [round(count) for count in fold.training.counts(len(fold.classes))]
    options = {"smoothing": smoothing} if smoothing else {}
    return losses.make(task if name == "auto" else name, classes=len(fold.classes), counts=counts, **options)


def _scalar(name: str, loss: losses.Function, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A user's loss, which must be one number."""
    value: Any = loss(logits, labels)
    if getattr(value, "shape", None) != ():
        kind = f"shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        raise TrainingError(f"{name} gives {kind}, not one number", hint="Return the mean over the rows: loss.mean().")
    return value  # type: ignore[no-any-return]  # a tensor, from a file of the user's


def summary(architecture: Mapping[str, Any], tune: str, epochs: int = 1) -> str:
    """The table of a network as it begins to be tuned."""
    model = networks.create(architecture)
    Tuning(tune, model, epochs)(model, 0)
    return table(model)


def table(model: torch.nn.Module) -> str:
    """The parts of a network with their parameters, and how many of them learn."""
    rows = []
    for name in networks.parts(model):
        module = model.get_submodule(name)
        every = sum(p.numel() for p in module.parameters())
        free = sum(p.numel() for p in module.parameters() if p.requires_grad)
        rows.append((name, type(module).__name__, f"{every:,}", f"{free:,}"))
    every = sum(p.numel() for p in model.parameters())
    free = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows.append(("in all", type(model).__name__, f"{every:,}", f"{free:,}"))
    return str(Table(("module", "type", "parameters", "trainable"), rows, "llrr"))


class Head:
    """The last layer alone, trained on what the frozen rest makes of every image once (see `features.precomputed`).

    `layer` and `rows` are what `fit` takes in place of network and images, with this `fold`, which judges whole networks.
    """

    def __init__(self, model: torch.nn.Module, fold: Fold, prepare: Prepare) -> None:
        self.model = model.eval()
        self.name, self.layer = networks.classifier(model)
        self.rows = precomputed(model, fold.training, fold, prepare)
        judge, watch = fold.judge, fold.watch
        self.fold = replace(
            fold,
            judge=(lambda layer: judge(self.whole(layer))) if judge else None,
            watch=(lambda row, layer: watch(row, self.whole(layer))) if watch else None,
        )

    def whole(self, layer: torch.nn.Module) -> torch.nn.Module:
        """The network with this last layer, a copy of its own."""
        copied = copy.deepcopy(self.model)
        copied.get_submodule(self.name).load_state_dict(layer.state_dict())
        return copied.to(self.fold.device).eval()

    def finish(self, layer: torch.nn.Module) -> torch.nn.Module:
        """The network with the layer that was trained; the fold's further models are completed as well."""
        outcome = self.fold.outcome
        outcome.others = [self.whole(other) for other in outcome.others]
        return self.whole(layer)
