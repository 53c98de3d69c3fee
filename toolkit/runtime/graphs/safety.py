"""What a graph may ask for before it is run: rounds that end, tensors that fit into memory, functions that do not multiply."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from toolkit.errors import ModelError, counted

ROUNDS = 100_000  # of loops inside loops together: no classifier comes near, and a few bytes could otherwise run for ever
ELEMENTS = 1 << 28  # that one constant size may ask for: 1 GiB of float32
NODES = 1_000_000  # with every function written out where it is called
DEPTH = 50  # of functions that call functions
SCANNED = 1000  # rounds that a Scan or SequenceMap counts for: theirs are told by tensors

_SIZES = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}  # operators that make a tensor as large as an input of theirs says


def check(model: Any, path: Path) -> None:
    """Refuse loops whose number of rounds is no constant or too large, and constants that ask for a tensor beyond memory.

    onnxruntime would run the first without end, and for the second spend minutes and all memory there is. Loops inside loops
    and functions multiply; functions that call each other in a circle, or more than can be written out, are refused as well.

    Raises:
        ModelError: names the file and the operator.
    """
    constants = _constants(model)
    for node in nodes(model):
        if node.op_type in _SIZES and len(node.input) > _SIZES[node.op_type]:
            for value in constants.get(node.input[_SIZES[node.op_type]], []):
                if value and abs(size := prod(value)) > ELEMENTS:
                    raise ModelError(
                        f"{path} asks for a tensor of {counted(abs(size), 'elements')} ({node.op_type})", hint="Copy it again."
                    )
    work = _Work(path, constants, {(f.domain, f.name): f.node for f in model.functions})
    work.nodes(model.graph.node, rounds=1, depth=0)


@dataclass(eq=False)
class _Work:
    """How often nodes would run, every loop and function written out."""

    path: Path
    constants: Mapping[str, list[tuple[int, ...]]]
    functions: Mapping[tuple[str, str], Any]
    seen: int = 0

    def nodes(self, every: Iterable[Any], *, rounds: int, depth: int) -> None:
        """Count some nodes that run so many times, with all that is inside them."""
        if depth > DEPTH:
            raise ModelError(f"{self.path} has functions or subgraphs more than {DEPTH} deep", hint="Export it again.")
        for node in every:
            self.seen += 1
            if self.seen > NODES:
                raise ModelError(f"{self.path} has more than {NODES:,} nodes when its functions are written out")
            inner = rounds * self._rounds(node)
            if inner > ROUNDS:
                raise ModelError(
                    f"{self.path} has a Loop of more than {ROUNDS:,} rounds, or of a number that is not known beforehand",
                    hint="Export the model without control flow.",
                )
            for attribute in node.attribute:
                for graph in graphs(attribute):
                    self.nodes(graph.node, rounds=inner, depth=depth + 1)
            if body := self.functions.get((node.domain, node.op_type)):
                self.nodes(body, rounds=rounds, depth=depth + 1)

    def _rounds(self, node: Any) -> int:
        if node.op_type in ("Scan", "SequenceMap"):
            return SCANNED
        if node.op_type != "Loop":
            return 1
        values = self.constants.get(node.input[0] if node.input else "", [])
        counts = [value[0] for value in values if value]
        return max(counts) if counts and len(counts) == len(values) and min(counts) >= 0 else ROUNDS + 1


def graphs(attribute: Any) -> Iterator[Any]:
    """The subgraphs of a node's attribute."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def bodies(model: Any) -> Iterator[Any]:
    """Every graph of a model with the functions, which have nodes as graphs do, from the outside in."""
    waiting = [
        model.graph,
        *model.functions,
        *(g for info in model.training_info for g in (info.algorithm, info.initialization)),
    ]
    while waiting:
        body = waiting.pop()
        yield body
        defaults = getattr(body, "attribute_proto", ())
        for attribute in (*defaults, *(attribute for node in body.node for attribute in node.attribute)):
            waiting.extend(graphs(attribute))


def nodes(model: Any) -> Iterator[Any]:
    """Every node of a model, of subgraphs and functions too."""
    for body in bodies(model):
        yield from body.node


def tensors(model: Any) -> Iterator[Any]:
    """Every tensor that a model holds, wherever it stands."""
    for body in bodies(model):
        yield from getattr(body, "initializer", ())
        for sparse in getattr(body, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        defaults = getattr(body, "attribute_proto", ())
        for attribute in (*defaults, *(attribute for node in body.node for attribute in node.attribute)):
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
                *attribute.sparse_tensors,
            ):
                yield from (sparse.values, sparse.indices)


def _constants(model: Any) -> dict[str, list[tuple[int, ...]]]:
    """Every value that a name has as a small int64 constant, in any graph; () stands for what is computed or given."""
    constants: dict[str, list[tuple[int, ...]]] = {}
    for body in bodies(model):
        own = {tensor.name: _ints(tensor) for tensor in getattr(body, "initializer", ())}
        for node in body.node:
            value = next((a for a in node.attribute if a.name in ("value", "value_int", "value_ints")), None)
            if node.op_type == "Constant" and value is not None and node.output:
                own[node.output[0]] = _ints(value.t) if value.name == "value" else tuple(value.ints) or (value.i,)
            else:
                own |= dict.fromkeys(node.output, ())
        for given in body.input:
            own.setdefault(getattr(given, "name", given), ())
        for name, numbers in own.items():
            constants.setdefault(name, []).append(numbers)
    return constants


def _ints(tensor: Any) -> tuple[int, ...]:
    if tensor.data_type != 7 or len(tensor.raw_data) > 8 * 64:  # onnx.TensorProto.INT64; a shape has few numbers
        return ()
    raw = tensor.raw_data
    stored = [int.from_bytes(raw[at : at + 8], "little", signed=True) for at in range(0, len(raw), 8)]
    return tuple(stored or tensor.int64_data[:64])
