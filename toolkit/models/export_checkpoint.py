"""From a checkpoint on disk to an export: the network rebuilt, its card completed, parity proved on the workspace's images."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.core.cards import Activation, Card, Interpolation, Output, Preprocess, Resize
from toolkit.core.lineage import Lineage, Seen, SeenIds
from toolkit.errors import ImageError, ModelError, counted
from toolkit.images import render
from toolkit.models import checkpoints
from toolkit.models.checkpoints import Checkpoint
from toolkit.models.export import export
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import SPLIT_FILE, Split

if TYPE_CHECKING:
    import torch

Triple = tuple[float, float, float]

SAMPLES = 32  # images that parity is proved on


@dataclass(frozen=True)
class ExportRequest:
    """What is said of a checkpoint that is to be exported; None and empty mean "as it says itself, or as timm has it".

    `mean` and `std` are in units of pixel / 255. With `force` an export that is there is replaced.
    """

    output: Path | None = None
    model: str | None = None
    member: str | None = None
    fold: int | None = None
    size: int | None = None
    resize: Resize | None = None
    interpolation: Interpolation | None = None
    box: str = ""
    mean: Triple | None = None
    std: Triple | None = None
    force: bool = False

    @property
    def pixels(self) -> bool:
        """Whether anything is said of the pixels."""
        return bool(self.size or self.resize or self.interpolation or self.box or self.mean or self.std)


def convert(competition: Competition, checkpoint: Path, request: ExportRequest) -> tuple[Path, Card]:
    """Export a recipe's checkpoint, or a timm model's state dict, into the workspace; the path and the card.

    What a recipe's checkpoint says of itself is kept, also where `model` is the very network that it names, as it must be for a
    function of the user's own. Of a state dict, classes come from competition.toml and pixels from
    timm's configuration of the model, unless given.

    Raises:
        ModelError: the checkpoint cannot be read or does not fit the network, it has seen rows of the fold that it is said to
            have held out, the split has no such fold, or the export is there and `force` is not set.
        ParityError: the export differs from the model.
        ImageError: the workspace has no readable image to prove parity on.
    """
    content = checkpoints.read(checkpoint)
    own = content.architecture or {}
    if content.card is not None and request.model in (None, own.get("model_name")):
        require_unseen(content.card, None, content.card.split, request.fold, ids=None, where=str(checkpoint))
        typed = own if request.model else None  # a function of the user's own runs only where they name it
        network, card = checkpoints.build(content, typed), _renamed(content.card, checkpoint, request)
    else:
        network, card = _described(competition, content, request)
        card = claimed(card, content.card, competition, ids=content.seen, where=checkpoint)
    path = request.output or competition.path("folds", f"{card.title}.onnx")
    if path.exists() and not request.force:
        raise ModelError(f"{path} exists", hint="Replace it, or name another member or fold.", code="replace-export")
    return path, export(network, card, path, samples=samples(competition, card.preprocess))


def _renamed(card: Card, checkpoint: Path, request: ExportRequest) -> Card:
    """The card that a checkpoint carries, for another member or fold where one is named."""
    if request.pixels:
        raise ModelError(
            f"{checkpoint} says its own pixels",
            hint="Leave size, resize, interpolation, box, mean and std out.",
            code="own-pixels",
        )
    changes: dict[str, Any] = {"member": request.member, "fold": request.fold}
    return replace(card, **{key: value for key, value in changes.items() if value is not None})


def _described(competition: Competition, content: Checkpoint, request: ExportRequest) -> tuple[torch.nn.Module, Card]:
    """The network of a state dict and its card, from the workspace, timm and what was said."""
    if request.model is None:
        raise ModelError(f"{content.path} does not say which network it belongs to", hint="Name it.", code="network")
    width = sum(len(target.classes) for target in competition.targets)
    network = checkpoints.build(content, {"model_name": request.model, "num_classes": width})
    card = _card(competition, network, request.member or request.model.replace(".", "_"), request.fold)
    pixels = _changed(card.preprocess, request.size, request.resize, request.interpolation).framing(request.box)
    return network, replace(card, preprocess=pixels, mean=request.mean or card.mean, std=request.std or card.std)


def samples(competition: Competition, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Evaluation pixels of the first readable training images, uint8 (N, 3, H, W), N <= 32.

    Raises:
        ImageError: none can be read.
    """
    pixels, why = [], "there are none"
    for key, path in competition.images("train")[: 4 * SAMPLES]:
        try:
            pixels.append(render.load(path, preprocess, box=competition.boxes.of(preprocess.box, key, path)))
        except ImageError as error:
            why = error.message
        if len(pixels) == SAMPLES:
            break
    if not pixels:
        raise ImageError(f"no training image can be read to prove parity on: {why}")
    return np.stack(pixels)


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
        preprocess=competition.treated(pixels),
        mean=mean,
        std=std,
        split=split_of(competition, fold),
        metric=competition.metric,
    )


def require_unseen(card: Card, split: Split | None, digest: str, fold: int | None, *, ids: SeenIds | None, where: str) -> None:
    """Refuse to call a model that says what it has seen another fold's than the one whose rows it has not.

    `digest` is the split that `fold` is one of, "" where none is known; None claims nothing. `ids` are those it has seen.

    Raises:
        ModelError: it has seen rows of that fold, or was trained on another split and nothing tells which rows these were.
    """
    if fold is None or (fold == card.fold and digest in ("", card.split)):
        return
    lineage, why = card.known_lineage, ""
    if seen := lineage.exposed(digest, fold):
        why = f"it was trained on {seen[0]}"
    elif card.fold is not None and fold != card.fold and digest in ("", card.split):
        why = f"what it did not train on is fold {card.fold}"
    elif digest and (elsewhere := lineage.elsewhere(digest)):
        shared, asked = ids.shared(split.held_out(fold)) if ids and split else (-1, 0)
        why = f"it was trained on {shared:,} of {counted(asked, 'ids')} of that fold" if shared > 0 else ""
        why = f"it was trained on {elsewhere[0]}, another split: which rows these are is not known" if shared < 0 else why
    if why:
        raise ModelError(
            f"{where} is no model of fold {fold}: {why}",
            hint="No score of it there is one: its card says the fold that it held out, so that none need be named.",
            code="own-fold",
        )


def claimed(card: Card, own: Card | None, competition: Competition | None, *, ids: SeenIds | None, where: Path) -> Card:
    """The card of a model whose fold was told, with what is known of the rows that it has seen; `own` is what it says itself.

    Raises:
        ModelError: see `require_unseen`.
    """
    told = Lineage((Seen(card.split, card.fold),) if card.split else ())
    if own is None:
        return replace(card, lineage=told | Lineage(unknown=(where.name,)))
    split = Split.if_made(competition) if competition else None
    require_unseen(own, split, card.split, card.fold, ids=ids, where=str(where))
    return replace(card, lineage=told | own.known_lineage, selected=own.chosen)


def split_of(competition: Competition, fold: int | None) -> str:
    """The digest of the workspace's split, which must have the fold; nothing where no fold or no split is there.

    Raises:
        ModelError: the split has no such fold.
    """
    split = None if fold is None else Split.if_made(competition)
    if fold is None or split is None:
        return ""
    if fold >= split.count:
        raise ModelError(
            f"there is no fold {fold}: {competition.path(SPLIT_FILE)} has folds 0 to {split.count - 1}", code="fold"
        )
    return split.digest
