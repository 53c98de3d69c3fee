"""What a graph may ask for before it is run: rounds that end, tensors that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from toolkit.errors import ModelError

ROUNDS = 100_000  # of one Loop: no classifier comes near, and a graph of a few bytes could otherwise run for ever
ELEMENTS = 1 << 28  # that one constant size may ask for: 1 GiB of float32

_SIZES = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}  # operators that make a tensor as large as an input of theirs says


def check(model: Any, path: Path) -> None:
    """Refuse loops whose number of rounds is no constant or too large, and constants that ask for a tensor beyond memory.

    onnxruntime would run the first without end, and for the second spend minutes and all memory there is.

    Raises:
        ModelError: names the file and the operator.
    """
    constants = _constants(model)
    for node in _nodes(model):
        if node.op_type == "Loop" and not 0 <= constants.get(node.input[0] if node.input else "", (ROUNDS + 1,))[0] <= ROUNDS:
            raise ModelError(
                f"{path} has a Loop of more than {ROUNDS:,} rounds, or of a number that is not known beforehand",
                hint="Export the model without control flow.",
            )
        if node.op_type in _SIZES and len(node.input) > _SIZES[node.op_type]:
            size = prod(constants.get(node.input[_SIZES[node.op_type]], (1,)))
            if abs(size) > ELEMENTS:
                raise ModelError(f"{path} asks for a tensor of {abs(size):,} elements ({node.op_type})", hint="Copy it again.")


def _nodes(model: Any) -> Iterator[Any]:
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                waiting.extend(graph.node)


def _constants(model: Any) -> dict[str, tuple[int, ...]]:
    """The values of small int64 constants by name, wherever they stand."""
    constants: dict[str, tuple[int, ...]] = {}
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        tensors = [(tensor.name, tensor) for tensor in graph.initializer]
        for node in graph.node:
            tensors += [(node.output[0], a.t) for a in node.attribute if node.op_type == "Constant" and a.name == "value"]
            graphs += [inner for a in node.attribute for inner in (a.g, *a.graphs) if inner.node]
        constants |= {name: values for name, tensor in tensors if (values := _ints(tensor))}
    return constants


def _ints(tensor: Any) -> tuple[int, ...]:
    if tensor.data_type != 7 or len(tensor.raw_data) > 8 * 64:  # onnx.TensorProto.INT64; a shape has few numbers
        return ()
    raw = tensor.raw_data
    stored = [int.from_bytes(raw[at : at + 8], "little", signed=True) for at in range(0, len(raw), 8)]
    return tuple(stored or tensor.int64_data[:64])
