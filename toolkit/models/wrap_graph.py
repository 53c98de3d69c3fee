"""Others' ONNX graphs behind our interface: uint8 RGB in, logits or probabilities out, any number of images at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F32
from toolkit.errors import ModelError
from toolkit.models.class_map import ClassMap

if TYPE_CHECKING:
    import onnx

Layout = Literal["nchw", "nhwc"]
Element = Literal["float32", "float16", "uint8"]
Colour = Literal["rgb", "bgr"]
Batching = Literal["any", "reshaped", "scanned"]
Triple = tuple[float, float, float]
Attribute: TypeAlias = "int | Sequence[int] | onnx.GraphProto"

OPSET = 13  # older graphs are brought up to this, so that one form of each operator is enough
IR = 8  # at least: before 4, constants had to be inputs as well
TINY = 1e-30  # keeps a row whose kept classes all have p = 0 from being 0 / 0: it becomes uniform


@dataclass(frozen=True)
class Front:
    """What a graph wants instead of uint8 RGB (N, 3, H, W).

    `mean` and `std` are in the order of the model's channels, in units of pixel / 255 or, with `top` 255, of pixels.
    """

    size: tuple[int, int]
    mean: Triple
    std: Triple
    layout: Layout = "nchw"
    element: Element = "float32"
    top: int = 1
    colour: Colour = "rgb"

    def scaling(self) -> tuple[F32, F32]:
        """What is subtracted and what is multiplied with, float32 (3, 1, 1): the arithmetic of our own exports."""
        unit = 255 // self.top
        mean, std = (np.array(values, dtype=np.float32).reshape(3, 1, 1) * np.float32(unit) for values in (self.mean, self.std))
        return mean, np.float32(1) / std

    def prepare(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Our pixels as the graph wants them, in numpy."""
        x: NDArray[Any] = pixels[:, ::-1] if self.colour == "bgr" else pixels
        if self.element != "uint8":
            mean, scale = self.scaling()
            x = (x.astype(np.float32) - mean) * scale
        x = x.transpose(0, 2, 3, 1) if self.layout == "nhwc" else x
        return np.ascontiguousarray(x.astype(self.element))


@dataclass(frozen=True)
class Back:
    """What becomes of the graph's output of `width` numbers per image.

    `probabilities` says what comes in, and the same goes out, once they are divided by `unit`: a number, or the row's sum.
    """

    width: int
    probabilities: bool = False
    multilabel: bool = False
    mapping: ClassMap | None = None
    unit: float | Literal["sum"] = 1.0

    @property
    def pair(self) -> bool:
        """Whether one probability stands for two classes."""
        return self.probabilities and self.width == 1 and not self.multilabel

    def finish(self, raw: NDArray[Any]) -> F32:
        """The output as the wrapped graph gives it, in numpy."""
        x = np.asarray(raw, dtype=np.float32).reshape(len(raw), self.width)
        if self.probabilities:
            x = x.clip(0)
            x = x / (x.sum(axis=1, keepdims=True).clip(TINY) if self.unit == "sum" else np.float32(self.unit))
            x = np.concatenate([1 - x, x], axis=1) if self.pair else x
        if self.mapping is None:
            return x
        x = x[:, self.mapping.kept]
        if self.multilabel:
            return x @ self.mapping.matrix()
        e = x if self.probabilities else np.exp(x - x.max(axis=1, keepdims=True))
        summed = (e / e.sum(axis=1, keepdims=True).clip(TINY)) @ self.mapping.matrix() + np.float32(TINY)
        return np.asarray(summed / summed.sum(axis=1, keepdims=True) if self.probabilities else np.log(summed))


def wrap(model: Any, taken: str, given: str, front: Front, back: Back, *, batching: Batching, batch: int = 1) -> Any:
    """A copy of a model with our input and output around its input `taken` and output `given`.

    `batching` says how any number of images goes through: "any" leaves the graph as it is, "reshaped" frees the constants of
    Reshape from a fixed `batch`, "scanned" runs the graph again and again on `batch` images.
    """
    import onnx

    wrapped = onnx.ModelProto()
    wrapped.CopyFrom(model)
    wrapped.ir_version = max(wrapped.ir_version, IR)
    graph = wrapped.graph
    build = _Builder(graph)
    images = build.name("images")
    pixels = f"{images}_batch" if batching == "scanned" else images
    nodes = [*_front_nodes(build, pixels, taken, front), *graph.node]
    if batching == "reshaped":
        _free_batch(graph, batch)
    logits = build.name("logits")
    after, last = _back_nodes(build, given, back)
    nodes += [*after, build.node("Identity", [last], logits)]
    outside = nodes if batching != "scanned" else _scan(build, nodes, images, pixels, logits, front, batch)
    result = logits if batching != "scanned" else f"{logits}_all"
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(outside)
    graph.input.append(_value(images, onnx.TensorProto.UINT8, ["batch", 3, *front.size]))
    graph.output.append(_value(result, onnx.TensorProto.FLOAT, ["batch", _columns(back)]))
    return wrapped


def modern(model: Any, where: Path) -> Any:
    """The model at opset 13 or later, converted if it is older; what that changed shows when outputs are compared.

    Raises:
        ModelError: onnx cannot convert it.
    """
    from onnx import version_converter

    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset >= OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # its C++ side raises RuntimeError and its own ConvertError
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{where} is written in opset {opset}, and onnx cannot bring it to {OPSET}: {first}",
            hint="Export it again with a newer opset.",
        ) from error


class _Builder:
    """Nodes, constants and names that clash with nothing in a graph."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.used = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
        self.used |= {name for node in graph.node for name in (*node.input, *node.output)}
        self.mark = "toolkit"
        while any(name.startswith(self.mark) for name in self.used):
            self.mark += "_"
        self.count = 0

    def name(self, wanted: str = "") -> str:
        """`wanted` where it is free, else a new name."""
        if wanted and not any(name.startswith(wanted) for name in self.used):
            return wanted
        self.count += 1
        return f"{self.mark}_{wanted or self.count}"

    def constant(self, array: NDArray[Any] | np.generic) -> str:
        """A new initializer."""
        from onnx import numpy_helper

        name = self.name()
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def ints(self, *values: int) -> str:
        """A new initializer of int64."""
        return self.constant(np.array(values, dtype=np.int64))

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Attribute) -> Any:
        """A node whose output has a given name."""
        from onnx import helper

        return helper.make_node(kind, list(inputs), [output], **attributes)


class _Chain:
    """Nodes in a row, each reading what the last one made."""

    def __init__(self, build: _Builder, start: str) -> None:
        self.build, self.last, self.nodes = build, start, list[Any]()

    def add(self, kind: str, *others: str, first: str = "", **attributes: Attribute) -> str:
        """Append a node that reads the last value (or `first`), then the others."""
        output = self.build.name()
        self.nodes.append(self.build.node(kind, [first or self.last, *others], output, **attributes))
        self.last = output
        return output


def _front_nodes(build: _Builder, pixels: str, taken: str, front: Front) -> list[Any]:
    """From uint8 RGB to the value that the graph called its input."""
    import onnx

    chain = _Chain(build, pixels)
    if front.colour == "bgr":
        chain.add("Gather", build.ints(2, 1, 0), axis=1)
    if front.element != "uint8":
        mean, scale = front.scaling()
        chain.add("Cast", to=onnx.TensorProto.FLOAT)
        chain.add("Sub", build.constant(mean[None]))
        chain.add("Mul", build.constant(scale[None]))
    if front.layout == "nhwc":
        chain.add("Transpose", perm=[0, 2, 3, 1])
    if front.element == "float16":
        chain.add("Cast", to=onnx.TensorProto.FLOAT16)
    return [*chain.nodes, build.node("Identity", [chain.last], taken)]


def _back_nodes(build: _Builder, given: str, back: Back) -> tuple[list[Any], str]:
    """From the graph's output to ours; the nodes and the name of the last value."""
    import onnx

    chain = _Chain(build, given)
    chain.add("Cast", to=onnx.TensorProto.FLOAT)
    chain.add("Reshape", build.ints(-1, back.width))
    if back.probabilities:
        p = chain.add("Max", build.constant(np.zeros((1, 1), dtype=np.float32)))
        if back.unit == "sum":
            p = chain.add("Div", _total(build, chain, back.width), first=p)
        elif back.unit != 1:
            p = chain.add("Div", build.constant(np.float32(back.unit)))
        if back.pair:
            one = build.constant(np.ones((1, 1), dtype=np.float32))
            chain.add("Concat", p, first=chain.add("Sub", p, first=one), axis=1)
    if back.mapping is not None:
        _mapped(build, chain, back, back.mapping)
    return chain.nodes, chain.last


def _total(build: _Builder, chain: _Chain, width: int) -> str:
    """The sum of each row of the last value, above zero."""
    summed = chain.add("MatMul", build.constant(np.ones((width, 1), dtype=np.float32)))
    return chain.add("Max", build.constant(np.float32(TINY)), first=summed)


def _mapped(build: _Builder, chain: _Chain, back: Back, mapping: ClassMap) -> None:
    """Keep, add up, and renormalise: of logits by way of the softmax over what is kept, whose logarithm are logits again."""
    matrix, tiny = build.constant(mapping.matrix()), build.constant(np.float32(TINY))
    chain.add("Gather", build.ints(*mapping.kept), axis=1)
    if back.multilabel:
        chain.add("MatMul", matrix)
        return
    if not back.probabilities:
        chain.add("Exp", first=chain.add("LogSoftmax", axis=1))
    else:
        kept = chain.last
        chain.add("Div", _total(build, chain, len(mapping.kept)), first=kept)
    chain.add("MatMul", matrix)
    summed = chain.add("Add", tiny)
    if not back.probabilities:
        chain.add("Log")
        return
    total = chain.add("MatMul", build.constant(np.ones((len(mapping.classes), 1), dtype=np.float32)))
    chain.add("Div", total, first=summed)


def _scan(build: _Builder, body: Sequence[Any], images: str, pixels: str, logits: str, front: Front, batch: int) -> list[Any]:
    """The nodes that run `body` once for every `batch` images, the last image repeated to fill the last round."""
    import onnx
    from onnx import helper

    chain = _Chain(build, images)
    count = chain.add("Gather", build.ints(0), first=chain.add("Shape"), axis=0)  # [N]
    scalar = chain.add("Squeeze", build.ints(0))
    zero, one, step = (build.constant(np.int64(n)) for n in (0, 1, batch))
    rounds = chain.add("Div", step, first=chain.add("Add", build.constant(np.int64(batch - 1)), first=scalar))
    every = chain.add("Range", chain.add("Mul", step, first=rounds), one, first=zero)
    within = chain.add("Min", chain.add("Sub", build.ints(1), first=count), first=every)
    chain.add("Gather", within, first=images, axis=0)
    stacked = chain.add("Reshape", build.ints(-1, batch, 3, *front.size))
    inner = helper.make_graph(
        list(body),
        "one_round",
        [_value(pixels, onnx.TensorProto.UINT8, [batch, 3, *front.size])],
        [_value(logits, onnx.TensorProto.FLOAT, None)],
    )
    found = chain.add("Scan", first=stacked, body=inner, num_scan_inputs=1)
    flat = chain.add("Flatten", first=chain.add("Reshape", build.ints(0, batch, -1), first=found), axis=2)
    order = chain.add("Range", scalar, one, first=zero)
    chain.nodes.append(build.node("Gather", [flat, order], f"{logits}_all", axis=0))
    return chain.nodes


def _free_batch(graph: Any, batch: int) -> None:
    """Constants of Reshape that start with the fixed batch start with 0, "as the input has it"."""
    from onnx import numpy_helper

    constants: Mapping[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
    made = {n.output[0]: a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"}
    for node in graph.node:
        if node.op_type != "Reshape" or any(a.name == "allowzero" and a.i for a in node.attribute):
            continue
        tensor = constants.get(node.input[1], made.get(node.input[1]))
        if tensor is None:
            continue
        shape = numpy_helper.to_array(tensor).copy()
        if shape.size and shape.flat[0] == batch:
            shape.flat[0] = 0
            tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))


def _columns(back: Back) -> int:
    if back.mapping is not None:
        return len(back.mapping.classes)
    return 2 if back.pair else back.width


def _value(name: str, kind: int, shape: Sequence[int | str] | None) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, kind, shape)
