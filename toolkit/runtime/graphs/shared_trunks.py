"""Shared backbones: the prefix that several graphs have in common, bit for bit, cut off so that it runs once for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.runtime.graphs.onnx_file import renamed, value_hashes

HEAVY = frozenset({"Conv", "MatMul", "Gemm"})  # a prefix without one of these is not worth a second session


@dataclass(frozen=True, eq=False)
class Trunk:
    """A common prefix as a model of its own, and what remains of each model (by its digest).

    The trunk takes the images and gives the values named `cut`; every head takes those of them that it needs (and the images,
    if it needs them) under the same names. Together they compute what the whole models compute, node for node.
    """

    model: Any
    cut: tuple[str, ...]
    heads: Mapping[str, Any]


def find_trunks(models: Mapping[str, Any]) -> tuple[list[Trunk], list[str]]:
    """Trunks of models (digest → onnx.ModelProto) that share one, and the digests of those that share nothing heavy.

    Values are compared by hash-consing: equal hashes mean the same operators on the same constants. Models are grouped by their
    first heavy operator, since a prefix that is common holds it.
    """
    groups: dict[bytes, list[str]] = {}
    alone: list[str] = []
    for digest, model in models.items():
        key = _beginning(model.graph)
        (groups.setdefault(key, []) if key else alone).append(digest)
    trunks = []
    for group in groups.values():
        some = {d: models[d] for d in group}
        trunk = _cut(some, {d: value_hashes(model.graph) for d, model in some.items()}) if len(group) > 1 else None
        if trunk is None:
            alone += group
        else:
            trunks.append(trunk)
    return trunks, [digest for digest in models if digest in set(alone)]


def _beginning(graph: Any) -> bytes:
    """The hash of the first heavy operator's result, b"" where there is none; weights behind it are not even hashed."""
    import onnx

    place = next((i for i, node in enumerate(graph.node) if node.op_type in HEAVY), None)
    if place is None:
        return b""
    nodes = list(graph.node[: place + 1])
    reads = {name for node in nodes for name in _reads(node)}
    start = onnx.GraphProto(node=nodes, input=graph.input, initializer=[t for t in graph.initializer if t.name in reads])
    return value_hashes(start)[nodes[-1].output[0]]


def _cut(models: Mapping[str, Any], hashes: Mapping[str, Mapping[str, bytes]]) -> Trunk | None:
    """Cut behind the last values that every model computes alike."""
    digests = list(models)
    common = set.intersection(*({h[o] for n in models[d].graph.node for o in n.output} for d in digests for h in [hashes[d]]))
    shared = {d: [n for n in models[d].graph.node if all(hashes[d][o] in common for o in n.output)] for d in digests}
    if not any(node.op_type in HEAVY for node in shared[digests[0]]):
        return None
    crossing: dict[bytes, None] = {}  # values that some head takes from the trunk, by hash
    for d in digests:
        graph, inside = models[d].graph, {o for n in shared[d] if n.input for o in n.output}
        rest = [n for n in graph.node if not all(hashes[d][o] in common for o in n.output)]
        wanted = [name for node in rest for name in _reads(node)] + [value.name for value in graph.output]
        crossing |= dict.fromkeys(hashes[d][name] for name in wanted if name in inside)
    if not crossing:
        return None
    first = models[digests[0]]
    names = {hashes[digests[0]][o]: o for n in shared[digests[0]] for o in n.output}
    cut = tuple(names[value] for value in crossing)
    types = _types(first, cut)
    if types is None:
        return None
    trunk = _model(first, _needed(shared[digests[0]], cut), list(first.graph.input), [types[name] for name in cut])
    heads = {d: _head(models[d], shared[d], hashes[d], crossing, cut, types) for d in digests}
    return Trunk(trunk, cut, heads)


def _head(
    model: Any,
    shared: Sequence[Any],
    hashes: Mapping[str, bytes],
    crossing: Mapping[bytes, None],
    cut: tuple[str, ...],
    types: Mapping[str, Any],
) -> Any:
    """What remains of a model behind the cut, its inputs renamed to the trunk's names."""
    import onnx

    names = {}
    for node in shared:
        for name in node.output:
            if hashes[name] in crossing:
                names[name] = cut[list(crossing).index(hashes[name])]
    constants = [node for node in shared if not node.input]  # cheap to have twice, and no value to hand over
    shared_outputs = {name for node in shared for name in node.output}
    rest = []
    for node in model.graph.node:
        if all(name in shared_outputs for name in node.output):
            continue
        rest.append(renamed(node, names))
    outputs = []
    for value in model.graph.output:
        copy = onnx.ValueInfoProto()
        copy.CopyFrom(value)
        copy.name = names.get(value.name, value.name)
        outputs.append(copy)
    reads = {name for node in rest for name in _reads(node)} | {value.name for value in outputs}
    inputs = [types[name] for name in cut if name in reads] + [v for v in model.graph.input if v.name in reads]
    return _model(model, [*(n for n in constants if set(n.output) & reads), *rest], inputs, outputs)


def _needed(nodes: Sequence[Any], outputs: Sequence[str]) -> list[Any]:
    """The nodes that the outputs depend on, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(_reads(node))
    return kept[::-1]


def _model(like: Any, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """A model of some nodes with the initializers that they use."""
    from onnx import helper

    reads = {name for node in nodes for name in _reads(node)} | {value.name for value in outputs}
    initializers = [tensor for tensor in like.graph.initializer if tensor.name in reads]
    used = [value for value in inputs if value.name in reads]
    graph = helper.make_graph(list(nodes), "shared", used, list(outputs), initializers)
    return helper.make_model(graph, opset_imports=list(like.opset_import), ir_version=like.ir_version, functions=like.functions)


def _reads(node: Any) -> list[str]:
    """Every value a node uses, also inside its subgraphs."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            names += [name for inner in graph.node for name in _reads(inner)] + [value.name for value in graph.output]
    return names


def _types(model: Any, names: Sequence[str]) -> dict[str, Any] | None:
    """The types of values, by shape inference; None where it cannot tell one."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    known = {value.name: value for value in (*inferred.graph.value_info, *inferred.graph.output)}
    if any(name not in known or not known[name].type.tensor_type.elem_type for name in names):
        return None
    return {name: known[name] for name in names}
