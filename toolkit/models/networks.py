"""Networks by name: timm's, torchvision's or a function of the user's own; several heads; weights from the hub or a file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

from toolkit.base import user_functions
from toolkit.base.quiet import quiet
from toolkit.errors import ModelError, counted, few

if TYPE_CHECKING:
    import torch

TORCHVISION = "torchvision/"
TINY = 1e-37  # above the least normal float32
UNDONE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {  # logits of what else a network may give
    "probabilities": lambda given: given.float().clamp(min=TINY).log(),
    "percent": lambda given: (given.float() / 100).clamp(min=TINY).log(),
    "sigmoid": lambda given: given.float().logit(eps=1e-7),  # float32 knows none nearer to 1
}
PATIENCE = 5  # seconds for the hub to answer


def create(architecture: Mapping[str, Any], *, pretrained: bool = False) -> torch.nn.Module:
    """The network that an architecture describes: `model_name`, `num_classes`, and whatever else its maker takes.

    `model_name` is a timm name, "torchvision/NAME" or "file.py:function" (called with `num_classes`). With `factors`, sizes
    whose product is `num_classes`, the network has one head per factor and their logits are added up: the softmax over all
    combinations is then the product of the factors' softmaxes. With `crops` as well, a box of shares (top, left, bottom, right)
    for each factor, every factor has a network of its own that sees its box only. With `outputs`, what a network gives in place
    of logits (a name from GIVES) is undone: see `as_logits`.

    Raises:
        ModelError: no such network, or its pretrained weights cannot be had.
    """
    arguments = dict(architecture)
    name, factors = str(arguments.pop("model_name")), arguments.pop("factors", None)
    crops, outputs = arguments.pop("crops", None), str(arguments.pop("outputs", "logits"))
    if crops and len(crops) != len(factors or ()):
        raise ModelError(
            f"{counted(len(crops), 'crops')} for {counted(len(factors or ()), 'factors')}",
            hint="Each factor looks at a box of its own.",
        )
    if crops:
        own = [create({"model_name": name, **arguments, "num_classes": size}, pretrained=pretrained) for size in factors or ()]
        return _summed(_cropped(own, crops), factors or ())
    if factors:
        if prod(factors) != (classes := arguments.get("num_classes", 0)):
            raise ModelError(f"{prod(factors)} combinations of {list(factors)} for {counted(int(classes), 'classes')}")
        arguments["num_classes"] = sum(factors)
    model = _plain(name, arguments, pretrained=pretrained)
    model = model if outputs == "logits" else as_logits(model, outputs)
    return _summed(model, factors) if factors else model


def _plain(name: str, arguments: Mapping[str, Any], *, pretrained: bool) -> torch.nn.Module:
    """The network of a name as its maker makes it."""
    if ".py:" in name:
        model: torch.nn.Module = user_functions.user_function(name)(**arguments)
    elif not timms(name):
        model = _torchvision(name.removeprefix(TORCHVISION), arguments, pretrained=pretrained)
    else:
        model = _timm(name, arguments, pretrained=pretrained)
    return model


def known(name: str) -> bool:
    """Whether timm's or torchvision's own list has a network of this name; no address, no file."""
    if name.startswith(TORCHVISION):
        from torchvision import models

        return name.removeprefix(TORCHVISION) in models.list_models(module=models)
    import timm

    return timm.is_model(name) and name.replace(".", "_").replace("-", "_").isidentifier()


def timms(name: str) -> bool:
    """Whether a name is one for timm to make."""
    return not name.startswith(TORCHVISION) and ".py:" not in name


def stages(model: torch.nn.Module) -> list[str]:
    """Names of the parts that hold parameters, from the images to the last layer, which is the last name."""
    try:
        head, _ = classifier(model)
    except ModelError:
        return list(parts(model))
    return [*(name for name in parts(model, head) if name != head), head]


def stage_of(parameter: str, stages: Sequence[str]) -> int:
    """The number of a parameter's stage; parameters of no module, such as a class token, belong to the first."""
    return next((i for i, stage in enumerate(stages) if parameter.startswith(f"{stage}.")), 0)


def parts(model: torch.nn.Module, head: str = "") -> Iterator[str]:
    """Names of the parts that hold parameters, in order: rows of blocks, and what holds them or the head, are taken apart."""
    return _parts(model, head, "", sum(p.numel() for p in model.parameters()) / 2, in_row=False)


def _parts(module: torch.nn.Module, head: str, above: str, half: float, *, in_row: bool) -> Iterator[str]:
    """Below `module`; in a row only rows are taken apart further, elsewhere also what has a row and half of all parameters."""
    for name, child in module.named_children():
        path, size = f"{above}{name}", sum(p.numel() for p in child.parameters())
        if not size:
            continue
        holder = not in_row and size > half and any(map(_row, child.children()))
        if head.startswith(f"{path}.") or name == "inner" or holder or _row(child):
            yield from _parts(child, head, f"{path}.", half, in_row=in_row or _row(child))
        else:
            yield path


def _row(module: torch.nn.Module) -> bool:
    """Whether it is a row of blocks, and no block of single layers."""
    import torch

    ordered = isinstance(module, torch.nn.Sequential | torch.nn.ModuleList)
    return ordered and any(list(block.children()) for block in module.children())


def load_weights(model: torch.nn.Module, state: Mapping[str, torch.Tensor], *, where: str) -> tuple[str, ...]:
    """Load a state dict by name, or by position where other names hold the same shapes in the same order.

    Parameters whose shape differs at the very end (a classifier of other classes) stay as they are and are returned.

    Raises:
        ModelError: anything else does not fit.
    """
    own = model.state_dict()
    if not set(own) & set(state) and len(own) == len(state):
        state = dict(zip(own, state.values(), strict=True))
    prefixes = ("", "inner.")  # a network with several heads wraps its backbone
    state = {next((p + name for p in prefixes if p + name in own), name): tensor for name, tensor in state.items()}
    wrong = [name for name in own if name not in state or own[name].shape != state[name].shape]
    allowed = set(list(own)[-2:]) | {name for name in own if name.startswith(_classifier_names(model))}
    if strangers := [name for name in wrong if name not in allowed]:
        raise ModelError(
            f"{where} does not fit the network: {len(strangers)} of {counted(len(own), 'parameters are')} missing "
            f"or of another shape "
            f"({few(strangers)})",
            hint="Weights and network must be of the same architecture.",
            code="network",
        )
    model.load_state_dict({name: state[name] for name in own if name not in wrong}, strict=False)
    return tuple(wrong)


def classifier(model: torch.nn.Module) -> tuple[str, torch.nn.Module]:
    """Name and module of the last layer: what timm calls the classifier, else the last Linear.

    Raises:
        ModelError: there is none.
    """
    import torch

    inner = getattr(model, "inner", model)
    own: Any = getattr(inner, "get_classifier", None)
    named: Any = own() if own else None
    layers: list[tuple[str, torch.nn.Module]] = [(name, module) for name, module in model.named_modules() if module is named]
    if not layers:
        layers = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no last Linear layer to train alone",
            hint="Train all of it, or end it in nn.Linear.",
            code="tune-all",
        )
    return layers[-1]


def _classifier_names(model: torch.nn.Module) -> str:
    try:
        return classifier(model)[0] + "."
    except ModelError:
        return "\0"


def _timm(name: str, arguments: Mapping[str, Any], *, pretrained: bool) -> torch.nn.Module:
    import timm

    try:
        with _hub() if pretrained else quiet():
            model: torch.nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:
        if pretrained and name.partition(".")[0] in timm.list_models():
            raise _no_weights(name, error) from error
        if isinstance(error, MemoryError):
            raise
        close = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise ModelError(
            f"timm cannot make {name!r}: {error}", hint=f"Similar names: {', '.join(close)}." if close else ""
        ) from error
    return model


@contextmanager
def _hub() -> Iterator[None]:
    """The hub's client without its notes, and with its cache alone where the hub does not answer: it tries for a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    before = constants.HF_HUB_OFFLINE
    with quiet("huggingface_hub"):
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
        except Exception:  # noqa: BLE001 - whatever keeps it from answering
            constants.HF_HUB_OFFLINE = True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before


def _torchvision(name: str, arguments: Mapping[str, Any], *, pretrained: bool) -> torch.nn.Module:
    import torch
    from torchvision import models

    if name not in (every := models.list_models(module=models)):
        close = difflib.get_close_matches(name, every, n=5)
        raise ModelError(f"torchvision has no classifier {name!r}", hint=f"Similar names: {', '.join(close)}." if close else "")
    further = {key: value for key, value in arguments.items() if key != "num_classes"}
    if name in ("googlenet", "inception_v3"):  # with and without weights the same network, so that a checkpoint rebuilds it
        further = {"transform_input": True, **({} if pretrained else {"init_weights": True}), **further}
    num_classes = arguments["num_classes"]
    if not pretrained:
        try:
            return _single(models.get_model(name, weights=None, num_classes=num_classes, **further))
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise ModelError(f"torchvision cannot make {name!r}: {user_functions.first_line(error)}") from error
    try:
        model = _single(models.get_model(name, weights="DEFAULT", **further))
    except Exception as error:
        raise _no_weights(TORCHVISION + name, error) from error
    place, old = last_layer(model)
    parent, _, leaf = place.rpartition(".")
    if isinstance(old, torch.nn.Linear):
        new: torch.nn.Module = torch.nn.Linear(old.in_features, num_classes)
    else:
        new = torch.nn.Conv2d(old.in_channels, num_classes, old.kernel_size)
    setattr(model.get_submodule(parent), leaf, new)
    return model


def last_layer(model: torch.nn.Module) -> tuple[str, Any]:
    """Name and module of what makes the logits: the classifier, or the last convolution where there is no Linear."""
    import torch

    try:
        return classifier(model)
    except ModelError:
        convolutions = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)]
        if not convolutions:
            raise
        return convolutions[-1]


def _single(model: torch.nn.Module) -> torch.nn.Module:
    """A network without the further heads that GoogLeNet and Inception have while they train."""
    plain: Any = model
    if getattr(plain, "aux_logits", False):
        plain.aux_logits = False
        for name in {"aux1", "aux2", "AuxLogits"} & dict(plain.named_children()).keys():
            setattr(plain, name, None)
    return model


def _no_weights(name: str, error: Exception) -> ModelError:
    return ModelError(
        f"the pretrained weights of {name} cannot be had: {user_functions.first_line(error)}",
        hint="Without a connection, give a file, or start from nothing.",
        code="weights",
    )


def as_logits(model: torch.nn.Module, outputs: str) -> torch.nn.Module:
    """A network that gives probabilities (of a softmax), percent or sigmoids, with the logits of these instead.

    Raises:
        ModelError: nothing is known to undo what it gives.
    """
    import torch

    if outputs not in UNDONE:
        raise ModelError(f"no logits can be made of {outputs!r}", hint=f"It is one of: logits, {', '.join(UNDONE)}.")

    class AsLogits(torch.nn.Module):
        """The network, and what undoes its end."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outputs = model, outputs

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return UNDONE[self.outputs](self.inner(images))

    return AsLogits()


def _summed(model: torch.nn.Module, factors: Sequence[int]) -> torch.nn.Module:
    import torch

    class Factored(torch.nn.Module):
        """One head per factor; logit (i, j, k) of the combinations, row-major, is the sum of the heads' logits i, j and k."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return combined(self.inner(images), factors)

    return Factored(model)


def _cropped(models: Sequence[torch.nn.Module], boxes: Sequence[Sequence[float]]) -> torch.nn.Module:
    import torch

    class Cropped(torch.nn.Module):
        """Networks side by side, each given its box of the images; their logits follow each other."""

        def __init__(self) -> None:
            super().__init__()
            self.models = torch.nn.ModuleList(models)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            high, wide = images.shape[2:]
            parts = []
            for model, (top, left, bottom, right) in zip(self.models, boxes, strict=True):
                rows = slice(round(top * high), round(bottom * high))
                parts.append(model(images[:, :, rows, round(left * wide) : round(right * wide)]))
            return torch.cat(parts, dim=1)

    return Cropped()


def combined(logits: torch.Tensor, factors: Sequence[int]) -> torch.Tensor:
    """Logits of factors side by side, (N, sum of sizes), as logits of their combinations, (N, product of sizes)."""
    import torch

    parts = torch.split(logits, list(factors), dim=1)
    joint: torch.Tensor = parts[0]
    for part in parts[1:]:
        joint = (joint[:, :, None] + part[:, None, :]).flatten(1)
    return joint


def apart(joint: torch.Tensor, factors: Sequence[int]) -> list[torch.Tensor]:
    """Logits of each factor, (N, size), whose softmax is the factor's marginal of the softmax over all combinations."""
    grid = joint.reshape(len(joint), *factors)
    every = range(1, len(factors) + 1)
    return [grid.logsumexp([axis for axis in every if axis != own]) if len(factors) > 1 else grid for own in every]
