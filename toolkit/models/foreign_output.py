"""What the output of other people's model means: which of several, a row for each image, and of what kind its numbers are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64, U8
from toolkit.core import raw_outputs
from toolkit.core.raw_outputs import End, Look
from toolkit.errors import CardError, ModelError, counted, few
from toolkit.models import class_map
from toolkit.models.foreign_model import Asked, Original
from toolkit.models.wrap_graph import Back, Front
from toolkit.runtime.graphs import graph_end

TOGETHER = 7  # images that are run together and alone
MIXED = 0.02  # as a share of the largest number: more is no rounding; int8 with ranges of the batch stays below
EVAL = "Put the network in eval mode before it is exported: model.eval(), and no training=TRAINING."


def find_output(source: Path, model: Any, asked: Asked) -> Any:
    """The output that holds the classes: the only one, or the one named.

    Raises:
        ModelError: several and none named, none of that name, or no tensor.
    """
    values = {value.name: value for value in model.graph.output}
    if asked.output_name and asked.output_name not in values:
        raise ModelError(f"{source} has no output {asked.output_name!r}", hint=f"It has: {', '.join(values)}.")
    if not asked.output_name and len(values) > 1:
        fitting = [name for name, value in values.items() if _width(value) == len(asked.classes)]
        likely = f"; a number for each of {counted(len(asked.classes), 'classes')}: {few(fitting)}" if fitting else ""
        shown = ", ".join([*map(_described, values.values())][:12]) + (", …" if len(values) > 12 else "")
        raise ModelError(
            f"{source} has {counted(len(values), 'outputs')}: {shown}{likely}", hint="Choose one.", code="output-name"
        )
    value = values[asked.output_name] if asked.output_name else model.graph.output[0]
    if not value.type.HasField("tensor_type"):
        raise ModelError(
            f"{source}: output {value.name!r} is no tensor but a sequence or map",
            hint="Export it as an array: with skl2onnx, zipmap=False.",
            code="output-name",
        )
    return value


def _described(value: Any) -> str:
    if not value.type.HasField("tensor_type"):
        return f"{value.name!r} (no tensor)"
    dims = value.type.tensor_type.shape.dim
    shape = " × ".join(str(dim.dim_value) if dim.dim_value else dim.dim_param or "?" for dim in dims)
    return f"{value.name!r} ({shape})" if shape else repr(value.name)


def _width(value: Any) -> int:
    """Numbers per image that an output says it has; 0 where it does not."""
    sides = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
    return int(np.prod(sides)) if sides else 0


def check_eval(source: Path, model: Any, original: Original, front: Front, pixels: U8) -> None:
    """Refuse a model that acts as in training: the numbers of an image may depend on nothing but that image.

    Raises:
        ModelError: BatchNorm or Dropout in training mode, other numbers each time, numbers that depend on the other images of
            a batch, or columns where rows should be.
    """
    if kinds := graph_end.in_training(model):
        raise ModelError(f"{source}: its {' and '.join(kinds)} acts as in training mode, on the images of a batch", hint=EVAL)
    sample = pixels[: max(TOGETHER, original.batch)]
    first = original(front, sample)
    if raw_outputs.apart(_flat(original(front, sample)), _flat(first)) > MIXED:
        raise ModelError(
            f"{source} gives other numbers for the same images each time: Dropout or other chance, as in training mode",
            hint=EVAL,
        )
    if any(node.op_type == "DynamicQuantizeLinear" for node in model.graph.node):
        return  # its ranges are those of the batch: what that changes is small, and batches of one are tried
    if original.batch > 1:
        _check_fixed(source, original, front, sample)
    elif (together := original.at_once(front, sample)) is not None:
        _check_apart(source, together, first)


def _check_fixed(source: Path, original: Original, front: Front, sample: U8) -> None:
    """A model of a fixed batch: its first image beside others and beside itself, and the batch in another order."""
    batch = original.batch
    whole = np.resize(sample, (batch, *sample.shape[1:]))
    rows, turned = original(front, whole), original(front, np.roll(whole, 1, axis=0))
    square = rows.ndim == 2 and rows.shape[1] == batch
    by_row, by_column = (
        raw_outputs.apart(_flat(turned), np.roll(_flat(rows), 1, axis=axis)) for axis in (0, 1 if square else 0)
    )
    if by_column <= MIXED < by_row:
        raise ModelError(
            f"{source}: its rows are classes and its columns images: transposed",
            hint=raw_outputs.SHAPE_HINTS["transposed"],
        )
    _check_apart(source, rows[:1], original(front, np.repeat(whole[:1], batch, axis=0))[:1], whole=rows)


def _check_apart(source: Path, together: NDArray[Any], alone: NDArray[Any], *, whole: NDArray[Any] | None = None) -> None:
    """Refuse rows that are others beside other images."""
    if (gap := raw_outputs.apart(_flat(together), _flat(alone))) <= MIXED:
        return
    if raw_outputs.across(_flat(together if whole is None else whole)):
        raise ModelError(
            f"{source}: its columns sum to 1 over the images of a batch: a softmax along the wrong axis",
            hint="Export it with softmax over the classes (dim=1), or without one.",
        )
    raise ModelError(
        f"{source}: the numbers of an image depend on the other images of its batch, by {gap:.0%} of the largest: BatchNorm in "
        "training mode, or a mean over the batch",
        hint=EVAL,
    )


def _flat(raw: NDArray[Any]) -> F64:
    return np.asarray(raw, dtype=np.float64).reshape(len(raw), -1)


def meaning(source: Path, asked: Asked, raw: NDArray[Any], end: End) -> tuple[Back, list[str]]:
    """What the numbers are: checked against the number of classes, against what was said, and against how they look.

    Raises:
        ModelError: no row of numbers for each image, or of another kind than was said, or of one that has to be said.
        CardError: another number of classes, or a class map that does not fit.
    """
    classes = asked.classes
    if len(set(classes)) != len(classes):
        repeated = sorted(name for name in set(classes) if classes.count(name) > 1)
        raise CardError(f"the list of classes names one twice: {few(repeated)}", code="classes")
    values = _columns(source, raw, len(classes))
    width = values.shape[1]
    pair = width == 1 and len(classes) == 2
    try:
        look = raw_outputs.look(values, exclusive=not asked.multilabel, end=end, half=raw.dtype == np.float16)
    except ModelError as error:
        hint = "Is it fed what it was trained with? Look at mean, std, range and element type; or its weights are damaged."
        raise ModelError(f"{source} gives {error.message}", hint=hint) from error
    if asked.output is None:
        gives, notes = _seen(source, look, apart=asked.multilabel or pair)
    else:
        gives, notes = asked.output, _told(source, look, asked.output, values, apart=asked.multilabel or pair)
    probable = gives in ("probabilities", "percent", "sigmoid")
    mapping = class_map.make(classes, asked.mapping) if asked.mapping else None
    if mapping and asked.multilabel and mapping.merges:
        raise CardError("classes of a multilabel model cannot be merged: their probabilities do not add up")
    if mapping and pair and not probable:
        raise CardError("a class map needs a column per class, and this model has one logit for two classes")
    unit: Any = {"percent": 100.0, "sigmoid": "sum"}.get(gives, 1.0)
    return Back(width, probable, asked.multilabel, mapping, unit), [*notes, *_odd(look, len(values))]


def _columns(source: Path, raw: NDArray[Any], classes: int) -> F64:
    try:
        return raw_outputs.columns(raw, len(raw), classes, where=str(source))
    except ModelError as error:
        if error.code == "raw-count":
            hint = "Mend the names; another class set is brought to yours by a class map."
            raise CardError(error.message, hint=hint, code="class-map") from error
        raise


def _seen(source: Path, look: Look, *, apart: bool) -> tuple[str, list[str]]:
    """The kind where nothing was said, in a note; one that is not certain, or not of use as it is, is asked about."""
    its = f"its numbers {look.shown}"
    if look.kind == "softmax" and look.sure:
        why = "each row sums to 1, as if one class were right, not several"
    elif look.kind == "scaled":
        why = "each row sums to the same number, which is neither 1 nor 100"
    elif look.kind == "sigmoid" and apart:
        why = "logits or probabilities?"
    elif look.kind == "sigmoid":
        why = "a sigmoid for each class, where only one is right?"
    else:
        return look.kind, [f"the model gives {look.kind}: {its}"]
    raise ModelError(f"{source}: {its}: {why}", hint="Say which they are.", code="output")


def _told(source: Path, look: Look, told: str, values: F64, *, apart: bool) -> list[str]:
    """Refuse what was said where the rows cannot be that; notes."""
    low, high = float(values.min()), float(values.max())
    within = low >= -raw_outputs.SLACK and high <= 1 + raw_outputs.SLACK
    fits = {
        "logits": look.kind in ("logits", "log-probabilities") or (look.kind == "sigmoid" and not look.sure),
        "probabilities": within and (apart or look.kind == "probabilities"),
        "percent": low >= 0 and high <= 100 + raw_outputs.HALF and (apart or look.kind == "percent"),
        "log-probabilities": look.kind == "log-probabilities",
        "sigmoid": low >= -raw_outputs.SLACK and not apart,
    }[told]
    if fits:
        one = look.kind == "softmax"
        return ["each row sums to 1, as if one class of several were right: a softmax, not sigmoids?"] if one else []
    other = "" if look.kind in (told, "logits") or (apart and look.kind == "softmax") else f" but {look.kind}"
    raise ModelError(f"{source}: its numbers are no {told}{other}: they {look.shown}", hint="Say what they are.", code="output")


def _odd(look: Look, images: int) -> list[str]:
    """What is no reason to refuse a model, and reason to look at it."""
    if look.constant and images > 1:
        given = counted(images, "images")
        return [f"the model gives the same numbers for all of {given}: are mean, std and range those it was trained with?"]
    if look.one_hot and images > 1:
        return ["every row is one 1 and else 0: labels, or pixels in another range than the model was trained with"]
    return []
