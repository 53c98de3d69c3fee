"""A model of other people's: what a person says of it, what its graph says, and how it runs as its maker left it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import U8
from toolkit.core import raw_outputs
from toolkit.core.cards import Interpolation, Resize
from toolkit.core.raw_outputs import Gives
from toolkit.errors import ModelError, counted, few
from toolkit.images.budget import LIMIT_PIXELS
from toolkit.models import export
from toolkit.models.wrap_graph import Colour, Element, Front, Layout, Triple


@dataclass(frozen=True)
class Asked:
    """What a person says of a model; None and empty mean "as the graph says", and what it cannot say is asked for.

    `classes` are names in the order of the columns; `mean` and `std` are in the model's channel order, in units of
    pixel / 255, or of pixels where `top` is 255.
    """

    classes: tuple[str, ...]
    member: str = ""
    fold: int | None = None
    target: str = ""
    size: tuple[int, int] | None = None
    mean: Triple | None = None
    std: Triple | None = None
    top: int = 1
    layout: Layout | None = None
    element: Element | None = None
    colour: Colour = "rgb"
    output: Gives | None = None
    output_name: str = ""
    multilabel: bool = False
    resize: Resize | None = None
    crop_pct: float | None = None
    interpolation: Interpolation | None = None
    box: str = ""
    mapping: dict[str, str] = field(default_factory=dict)
    timm: str = ""


@dataclass(frozen=True)
class Input:
    """The one image input of a graph, as far as the graph says."""

    name: str
    element: Element
    dims: tuple[int | None, ...]


def find_input(source: Path, model: Any, asked: Asked) -> Input:
    """The one image input.

    Raises:
        ModelError: several inputs, no images, or another element type than was said.
    """
    initialized = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initialized]
    if len(inputs) != 1:
        raise ModelError(
            f"{source} has {counted(len(inputs), 'inputs')} ({few(value.name for value in inputs)}), one of images is needed"
        )
    kinds: dict[int, Element] = {1: "float32", 10: "float16", 2: "uint8"}  # onnx.TensorProto's numbers
    tensor = inputs[0].type.tensor_type
    dims = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim)
    where = f"{source}: input {inputs[0].name!r}"
    if tensor.elem_type not in kinds:
        raise ModelError(f"{where} is of ONNX type {tensor.elem_type}, and images are {', '.join(kinds.values())}")
    if len(dims) != 4:
        raise ModelError(f"{where} has {counted(len(dims), 'dimensions')}, and a batch of images has 4")
    element = kinds[tensor.elem_type]
    if asked.element not in (None, element):
        raise ModelError(
            f"{where} is {element}, not {asked.element}", hint="Leave the element type out: the graph says it.", code="input"
        )
    return Input(inputs[0].name, element, dims)


def find_layout(source: Path, taken: Input, asked: Asked) -> Layout:
    """Where the three colours are: said by the graph, or told.

    Raises:
        ModelError: the graph does not say it, has no place for three, or says otherwise.
    """
    places: dict[Layout, int] = {"nchw": 1, "nhwc": 3}
    there = [name for name, axis in places.items() if taken.dims[axis] == 3]
    shape = " × ".join("?" if side is None else str(side) for side in taken.dims)
    possible = there or [name for name, axis in places.items() if taken.dims[axis] is None]
    if not possible:
        raise ModelError(f"{source} takes images of shape {shape}, and neither place of the channels has 3")
    if asked.layout is not None and asked.layout not in possible:
        raise ModelError(f"{source} takes images of shape {shape}, which is not {asked.layout}")
    if asked.layout is None and len(there) != 1:
        raise ModelError(
            f"{source} takes images of shape {shape}, which does not say where the channels are",
            hint="Say nchw or nhwc.",
            code="layout",
        )
    return asked.layout or there[0]


def find_size(source: Path, taken: Input, layout: Layout, told: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width: said by the graph, or told.

    Raises:
        ModelError: the graph takes any size and none was told, or it takes another.
    """
    height, width = taken.dims[2:] if layout == "nchw" else taken.dims[1:3]
    size = tuple(told[i] if side is None and told else side for i, side in enumerate((height, width)))
    if told is not None and size != told:
        raise ModelError(f"{source} takes images of {size[0]}×{size[1]}, not {told[0]}×{told[1]}")
    if size[0] is None or size[1] is None:
        raise ModelError(f"{source} takes images of any size", hint="Say the one it was trained with.", code="size")
    if size[0] * size[1] > LIMIT_PIXELS:
        raise ModelError(f"{source} takes images of {size[0]:,}×{size[1]:,}, above the limit of {LIMIT_PIXELS:,} pixels")
    return size[0], size[1]


class Original:
    """A model in onnxruntime as its maker left it, fed what it wants, in batches of the size that it is fixed to (else 1)."""

    def __init__(self, source: Path, model: Any, taken: Input, output: str, classes: int) -> None:
        self.source, self.taken, self.output, self.classes = source, taken, output, classes
        self.batch = taken.dims[0] or 1
        self.session = export.opened(model.SerializeToString(), str(source))

    def __call__(self, front: Front, pixels: U8) -> NDArray[Any]:
        """The raw output, (N, …), the last batch filled up with its last image."""
        outputs = []
        for start in range(0, len(pixels), self.batch):
            part = pixels[start : start + self.batch]
            filled = np.concatenate([part, *[part[-1:]] * (self.batch - len(part))])
            rows = self._run(front.prepare(filled))
            if rows.shape[:1] != (self.batch,):
                raw_outputs.columns(rows, self.batch, self.classes, where=f"{self.source}: output {self.output!r}")
            outputs.append(rows[: len(part)])
        return np.concatenate(outputs)

    def at_once(self, front: Front, pixels: U8) -> NDArray[Any] | None:
        """The raw output for all images in one batch; None where it does not take them so, or does not give a row for each."""
        try:
            rows = self._run(front.prepare(pixels))
        except ModelError:
            return None
        return rows if rows.shape[:1] == pixels.shape[:1] else None

    def _run(self, batch: NDArray[Any]) -> NDArray[Any]:
        try:
            return np.asarray(self.session.run([self.output], {self.taken.name: batch})[0])
        except Exception as error:  # onnxruntime's exception classes have no common name
            first = str(error).strip().splitlines()[0]
            raise ModelError(f"{self.source}: onnxruntime cannot run it on {batch.dtype} {batch.shape}: {first}") from error
