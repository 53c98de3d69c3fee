"""What a network gives, asked before it is trained or exported: logits, a row for each image, whatever else is in the batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.base import user_functions
from toolkit.base.arrays import F32, F64
from toolkit.core import raw_outputs
from toolkit.core.cards import Card
from toolkit.core.raw_outputs import End
from toolkit.errors import ModelError, ToolkitError, counted

if TYPE_CHECKING:
    import torch

IMAGES = 5  # that a network is asked about, and one more where that is the number of classes
MIXED = 0.02  # as a share of the largest number: more is no rounding
MIXING = (
    "BatchNorm that acts as in training: track_running_stats=False, F.batch_norm(training=True), or layers kept in a plain "
    "list, which eval() does not reach."
)
_FAR = 50
_UNDONE = {  # codes of errors: which word undoes what is given
    "probabilities": "gives-probabilities",
    "softmax": "gives-probabilities",
    "percent": "gives-percent",
    "scaled": "gives-percent",
    "sigmoid": "gives-sigmoid",
}

_ENDS: dict[str, End] = {
    "Softmax": "softmax",
    "SafeSoftmax": "softmax",
    "LogSoftmax": "log-softmax",
    "Sigmoid": "sigmoid",
    "Hardsigmoid": "sigmoid",
    **dict.fromkeys(("Addmm", "Mm", "Bmm", "Convolution", "Relu", "LeakyRelu", "Neg", "Log"), "linear"),
    **dict.fromkeys(
        ("NativeBatchNorm", "CudnnBatchNorm", "NativeLayerNorm", "MkldnnConvolution", "LinalgVectorNorm"), "linear"
    ),
}
_PASSED = {
    *("View", "UnsafeView", "Reshape", "ReshapeAlias", "Squeeze", "Unsqueeze", "Flatten", "T", "Transpose", "Permute", "Clone"),
    *("ToCopy", "Select", "Slice", "Expand", "Mul", "Div", "Add", "Sub", "Clamp", "Cat", "Mean", "Alias", "Split", "Stack"),
    *("AdaptiveAvgPool2D", "AvgPool2D"),
}


def probe(model: torch.nn.Module, name: str, size: int, classes: int) -> None:
    """Send images of noise, `size` × `size`, through a network: see `check`.

    Raises:
        ModelError: it is no network, cannot take the images, or does not give logits of `classes` classes for each.
    """
    import torch

    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"{name} gives {type(model).__name__}, which is no torch.nn.Module", hint="Return the network.")
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(asked_of(classes), 3, size, size)).astype(np.float32))
    check(model, images, classes, where=name, size=size)


def asked_of(classes: int) -> int:
    """How many images tell rows from columns."""
    return IMAGES + (classes == IMAGES)


def check(
    model: torch.nn.Module, images: torch.Tensor, classes: int, *, where: str, size: int = 0, exclusive: bool | None = None
) -> None:
    """Look at what a copy of the network gives for images (N, …), prepared as it takes them, in eval and in training mode.

    Nothing of the network changes, and no chance is drawn that others would have had. `exclusive`: one class is right, not
    several; None where that is not known, and only what is never logits is refused.

    Raises:
        ModelError: it fails, gives no row of `classes` numbers for each image, NaN, probabilities in place of logits, or, in
            eval mode, numbers that depend on chance or on other images.
    """
    import torch

    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(0)
        copied = _copied(model, where).to(images.device)
        values = _values(copied.eval(), images, classes, where, size, exclusive=exclusive)
        _check_alone(copied, images, values, where)
        _values(copied.train(), images, classes, f"{where} in training mode", size, exclusive=exclusive)


def _values(
    model: torch.nn.Module, images: torch.Tensor, classes: int, where: str, size: int, *, exclusive: bool | None
) -> F64:
    """Logits (N, classes) as the network gives them in its mode, after they were looked at."""
    tensor = _tensor(_given(model, images, where, size), len(images), classes, where)
    detached = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
    values = raw_outputs.columns(detached.cpu().numpy(), len(images), classes, where=where)
    if values.shape[1] != classes:  # networks that we train have a column for each of two classes too
        raise ModelError(
            f"{where} gives one number per image for {counted(classes, 'classes')}: one logit for two",
            hint=raw_outputs.SHAPE_HINTS["count"],
        )
    if tensor.ndim != 2:
        raise ModelError(
            f"{where} gives {tuple(tensor.shape)}, and training wants rows ({len(images)}, {classes})",
            hint="Flatten it: nn.Flatten() at its end.",
        )
    _check_kind(values, end(tensor), where, exclusive=exclusive)
    return values


def end(tensor: torch.Tensor) -> End:
    """The operation that a tensor comes from, behind what only moves, scales or averages it; "" if autograd does not say."""
    ends: set[End] = set()
    waiting, seen = [tensor.grad_fn], 0
    while waiting:
        node, seen = waiting.pop(), seen + 1
        name = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
        if name in _ENDS:
            ends.add(_ENDS[name])
        elif name in _PASSED and seen <= _FAR and node is not None:
            before = [other for other, _ in node.next_functions if other is not None]
            waiting += [other for other in before if type(other).__name__ != "AccumulateGrad"]
        else:
            return ""
    return ends.pop() if len(ends) == 1 else ""


def _copied(model: torch.nn.Module, where: str) -> torch.nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"{where} cannot be copied, as averaged weights and the export have to: {user_functions.first_line(error)}",
            hint="Tensors that come from others are computed in its forward, not kept in the network.",
        ) from error


def _given(model: torch.nn.Module, images: torch.Tensor, where: str, size: int) -> Any:
    """What the network gives; it may refuse images of this size."""
    floating = images.detach().clone()
    if floating.is_floating_point():
        floating.requires_grad_()  # so that the last operation is known where every layer is frozen
    try:
        return model(floating)
    except ToolkitError:
        raise
    except Exception as error:
        if "memory" in str(error).lower():
            raise  # others know how to answer that
        what = f"images of {size} × {size} pixels" if size else f"a batch of shape {tuple(images.shape)}"
        raise ModelError(
            f"{where} cannot take {what}: {user_functions.first_line(error)}",
            hint="Use another size, or another network.",
            code="size-or-network",
        ) from error


def _tensor(given: Any, images: int, classes: int, where: str) -> torch.Tensor:
    """The one tensor that a network gives; several outputs are named, with the one that fits."""
    import torch

    if isinstance(given, torch.Tensor):
        return given
    parts: dict[str, Any] = {}
    if isinstance(given, Mapping):
        parts = {repr(key): value for key, value in given.items()}
    elif isinstance(given, tuple) and hasattr(given, "_fields"):
        parts = {f".{key}": value for key, value in zip(given._fields, given, strict=True)}
    elif isinstance(given, list | tuple):
        parts = {f"[{place}]": value for place, value in enumerate(given)}
    tensors = {name: value for name, value in parts.items() if isinstance(value, torch.Tensor)}
    fitting = [name for name, value in tensors.items() if tuple(value.shape) == (images, classes)]
    shown = ", ".join(f"{name} {tuple(value.shape)}" for name, value in [*tensors.items()][:6])
    likely = f"; the logits may be {' or '.join(fitting)}" if fitting else ""
    raise ModelError(
        f"{where} gives several outputs, a {type(given).__name__}: {shown}{likely}"
        if tensors
        else f"{where} gives {type(given).__name__}, no tensor",
        hint="Let its forward return the logits alone, in training mode too.",
    )


def _check_kind(values: F64, last: End, where: str, *, exclusive: bool | None) -> None:
    """Refuse what is no logits; what may be logits passes."""
    try:
        look = raw_outputs.look(values, exclusive=exclusive is not False, end=last)
    except ModelError as error:
        raise ModelError(f"{where} gives {error.message}", hint="Look at its weights and layers.") from error
    if look.kind in ("logits", "log-probabilities") or not look.sure:
        return
    if look.kind == "sigmoid":
        what = f"the outcome of a sigmoid (numbers {look.shown})"
    elif look.kind in ("probabilities", "softmax"):
        what = f"probabilities, as a softmax does (numbers {look.shown})"
    else:
        what = f"numbers that {look.shown}"
    raise ModelError(
        f"{where} gives {what}, where training wants logits: loss and export take their softmax or sigmoid once more",
        hint="Take the last softmax or sigmoid out of the network, or say what it gives, so that it is undone.",
        code=_UNDONE[look.kind],
    )


def _check_alone(model: torch.nn.Module, images: torch.Tensor, values: F64, where: str) -> None:
    """In eval mode an image's numbers are the same each time and beside any others."""
    import torch

    def again(batch: torch.Tensor) -> F64:
        with torch.no_grad():
            rows = _given(model, batch, where, 0)
        return np.asarray(rows.detach().float().cpu().numpy(), dtype=np.float64).reshape(len(batch), -1)

    if raw_outputs.apart(again(images), values) > MIXED:
        raise ModelError(
            f"{where} gives other numbers for the same images each time, in eval mode",
            hint="Something draws by chance there, such as F.dropout(x) without training=self.training.",
        )
    beside_itself = torch.cat([images[:1]] * 2)  # some layers take no batch of one
    if (gap := raw_outputs.apart(again(beside_itself)[:1], values[:1])) <= MIXED:
        return
    if raw_outputs.across(values):
        raise ModelError(
            f"{where}: its columns sum to 1 over the images of a batch: a softmax along the wrong axis",
            hint="Take it out of the network; what is wanted are logits.",
            code="gives-probabilities",
        )
    raise ModelError(
        f"{where}: in eval mode the numbers of an image depend on the other images of its batch, by {gap:.0%} of the largest",
        hint=MIXING,
    )


def check_rows(rows: F32, together: F32, card: Card) -> None:
    """Look at what a model that is to be exported gives: logits (N, card.width) in small batches, and all in one.

    Raises:
        ModelError: probabilities in place of logits, or numbers that depend on the other images of a batch.
    """
    if not (np.isfinite(rows).all() and np.isfinite(together).all()):
        return  # that is said by who proves the export
    for output in card.outputs:
        values = np.asarray(rows[:, output.start : output.stop], dtype=np.float64)
        exclusive = output.activation == "softmax"
        if output.activation != "identity" and len(np.unique(values, axis=0)) > 1:
            _check_kind(values, "", f"{card.title}: the model", exclusive=exclusive)
    if (gap := raw_outputs.apart(np.asarray(together, dtype=np.float64), np.asarray(rows, dtype=np.float64))) > MIXED:
        raise ModelError(
            f"{card.title}: in eval mode the numbers of an image depend on the other images of its batch, by {gap:.0%} of the "
            "largest",
            hint=MIXING,
        )
