"""From a checkpoint on disk to an export: the network rebuilt, its card completed, parity proved on the workspace's images."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.core.cards import Activation, Card, Interpolation, Output, Preprocess, Resize
from toolkit.errors import ImageError, ModelError
from toolkit.images import render
from toolkit.models import checkpoints
from toolkit.models.export import export
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import SPLIT_FILE, Split

if TYPE_CHECKING:
    import torch

Triple = tuple[float, float, float]

SAMPLES = 32  # images that parity is proved on


def convert(
    competition: Competition,
    checkpoint: Path,
    *,
    output: Path | None = None,
    model: str | None = None,
    member: str | None = None,
    fold: int | None = None,
    size: int | None = None,
    resize: Resize | None = None,
    interpolation: Interpolation | None = None,
    box: str = "",
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    force: bool = False,
) -> tuple[Path, Card]:
    """Export a recipe's checkpoint, or a timm model's state dict, into the workspace; the path and the card.

    What a recipe's checkpoint says of itself is kept; of a state dict, classes come from competition.toml and pixels from
    timm's configuration of the model, unless given.

    Raises:
        ModelError: the checkpoint cannot be read or does not fit the network, the split has no such fold, or the export is
            there and `force` is not set.
        ParityError: the export differs from the model.
        ImageError: the workspace has no readable image to prove parity on.
    """
    found = checkpoints.read(checkpoint)
    if found.card is not None and model is None:
        network, card = checkpoints.build(found), found.card
        changes: dict[str, Any] = {"member": member, "fold": fold}
        card = replace(card, **{key: value for key, value in changes.items() if value is not None})
        if size or resize or interpolation or box or mean or std:
            raise ModelError(
                f"{checkpoint} says its own pixels",
                hint="Leave --size, --resize, --interpolation, --box, --mean and --std out.",
            )
    else:
        if model is None:
            raise ModelError(f"{checkpoint} does not say which network it belongs to", hint="Name it: --model resnet18")
        width = sum(len(target.classes) for target in competition.targets)
        network = checkpoints.build(found, {"model_name": model, "num_classes": width})
        card = _card(competition, network, member or model.replace(".", "_"), fold)
        card = replace(card, preprocess=_changed(card.preprocess, size, resize, interpolation).framing(box))
        card = replace(card, mean=mean or card.mean, std=std or card.std)
    path = output or competition.path("folds", f"{card.title}.onnx")
    if path.exists() and not force:
        raise ModelError(f"{path} exists", hint="Use --force to replace it, or --member and --fold to name another.")
    return path, export(network, card, path, samples=samples(competition, card.preprocess))


def samples(competition: Competition, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Evaluation pixels of the first readable training images, uint8 (N, 3, H, W), N <= 32.

    Raises:
        ImageError: none can be read.
    """
    found, why = [], "there are none"
    for key, path in competition.images("train")[: 4 * SAMPLES]:
        try:
            found.append(render.load(path, preprocess, box=competition.boxes.of(preprocess.box, key, path)))
        except ImageError as error:
            why = error.message
        if len(found) == SAMPLES:
            break
    if not found:
        raise ImageError(f"no training image can be read to prove parity on: {why}")
    return np.stack(found)


def pretrained(model: str) -> tuple[Preprocess, Triple, Triple]:
    """Pixels, mean and std (in units of pixel / 255) that timm evaluates a model of this name with: its `pretrained_cfg`.

    Raises:
        ModelError: timm knows no such model.
    """
    import timm
    import timm.data

    config = timm.get_pretrained_cfg(model)
    if config is None:
        close = difflib.get_close_matches(model, timm.list_models(pretrained=True), n=5)
        raise ModelError(f"timm knows no model {model!r}", hint=f"Similar names: {', '.join(close)}." if close else "")
    return _evaluation(timm.data.resolve_data_config(pretrained_cfg=config.to_dict()))


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes in the order that everybody trains them in: WordNet's numbers, as timm has them."""
    import timm.data

    return tuple(timm.data.ImageNetInfo().label_names())


def _evaluation(config: Mapping[str, Any]) -> tuple[Preprocess, Triple, Triple]:
    """How timm evaluates a model of this configuration."""
    side = tuple(config["input_size"][1:])
    crop = float(config["crop_pct"]) if config.get("crop_mode", "center") == "center" else 1.0
    if config["interpolation"] not in ("bilinear", "bicubic"):
        raise ModelError(f"timm evaluates this model with {config['interpolation']!r} resizing, which is not supported")
    pixels = Preprocess(side, "crop", int(np.floor(max(side) / crop)), interpolation=config["interpolation"])
    return pixels, tuple(config["mean"]), tuple(config["std"])


def _changed(pixels: Preprocess, size: int | None, resize: Resize | None, interpolation: Interpolation | None) -> Preprocess:
    """What timm does, with what was said otherwise; a new size keeps timm's share of the image that the crop takes."""
    side = (size, size) if size else pixels.size
    share = (pixels.shorter or max(pixels.size)) / max(pixels.size)
    how = resize or pixels.resize
    shorter = int(np.floor(max(side) * share)) if how == "crop" else None
    return replace(pixels, size=side, resize=how, shorter=shorter, interpolation=interpolation or pixels.interpolation)


def _card(competition: Competition, network: torch.nn.Module, member: str, fold: int | None) -> Card:
    """The card of a bare timm model: classes from the workspace, pixels as timm evaluates it."""
    import timm.data

    pixels, mean, std = _evaluation(timm.data.resolve_model_data_config(network))
    outputs, start = [], 0
    for target in competition.targets:
        activation: Activation = "sigmoid" if target.multilabel else "softmax"
        outputs.append(Output(target.name, target.classes, activation, start))
        start += len(target.classes)
    return Card(
        member=member,
        fold=fold,
        outputs=tuple(outputs),
        preprocess=pixels,
        mean=mean,
        std=std,
        split=split_of(competition, fold),
        metric=competition.metric,
    )


def split_of(competition: Competition, fold: int | None) -> str:
    """The digest of the workspace's split, which must have the fold; nothing where no fold or no split is there.

    Raises:
        ModelError: the split has no such fold.
    """
    split = None if fold is None else Split.if_made(competition)
    if fold is None or split is None:
        return ""
    if fold >= split.count:
        raise ModelError(f"--fold {fold}: {competition.path(SPLIT_FILE)} has folds 0 to {split.count - 1}")
    return split.digest
