"""ONNX graphs: reading files nobody vouches for, a digest of what a graph computes, stripping, the card inside."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.base import files
from toolkit.core.cards import KEY, Card
from toolkit.errors import CardError, ModelError, counted, few
from toolkit.runtime.graphs import safety, trial

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # operators that onnxruntime itself brings


@dataclass(frozen=True, eq=False)
class Export:
    """One fold model on disk: its card, the digest of its graph and the SHA-256 of its file."""

    path: Path
    card: Card
    digest: str
    sha256: str

    @property
    def title(self) -> str:
        """`member.fold3`."""
        return self.card.title


def read(path: Path) -> Export:
    """Read an export: its card and digests.

    Raises:
        ModelError: the file is missing, no ONNX, truncated, not self-contained, uses operators onnxruntime does not bring, or
            takes time or memory beyond `trial`'s for one image.
        CardError: it carries no card, an unreadable one, one that contradicts the graph, or one whose digest says that card or
            graph were changed.
    """
    model = load(path)
    card = card_of(model, path)
    if card is None:
        raise CardError(
            f"{path} carries no card, so its classes and pixels are unknown",
            hint="Export it with `toolkit export`; a model of others is taken in with `toolkit adopt`.",
        )
    _check_shapes(path, model, card)
    trial.check(model, path)
    graph = digest(path, model)
    card_of(model, path, content=graph)
    return Export(path, card, graph, files.sha256(path))


def card_of(model: Any, path: Path, *, content: str | None = None) -> Card | None:
    """The card that a model carries, if it carries one; `content` is the graph's digest where that is to be checked too.

    Raises:
        CardError: it cannot be read, or says that it or the graph were changed.
    """
    text = {entry.key: entry.value for entry in model.metadata_props}.get(KEY)
    return None if text is None else Card.from_json(text, where=str(path), content=content)


def facts(path: Path) -> dict[str, Any]:
    """Opset, IR version, number of nodes and bytes of a model file.

    Raises:
        ModelError: it cannot be loaded.
    """
    model = load(path)
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    return {"opset": opset, "ir": model.ir_version, "nodes": len(model.graph.node), "bytes": path.stat().st_size}


def load(path: Path, *, external: bool = False) -> Any:
    """Parse an .onnx file as an onnx.ModelProto, refusing whatever is not one self-contained graph.

    `external` reads tensors from files beside it, which are then inside; other folders are never looked into.

    Raises:
        ModelError: says which file and what it seems to be instead.
    """
    return parse(_bytes(path), path, external=external)


def parse(data: bytes, path: Path, *, external: bool = False) -> Any:
    """As `load`, from bytes that were read from `path`, or will be written there.

    Raises:
        ModelError: see `load`.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} is not a complete ONNX file ({len(data):,} bytes)", hint="Copy or export it again."
        ) from error
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise ModelError(f"{path} is not an ONNX model: it has no graph", hint="Copy or export it again.")
    if external:
        _bring_in(model, path)
    outside = [tensor.name for tensor in safety.tensors(model) if tensor.external_data or tensor.data_location]
    if outside:
        raise ModelError(
            f"{path} keeps {counted(len(outside), 'tensors')} in other files ({few(outside)}); exports are self-contained",
            hint="Export it with torch.onnx.export(..., external_data=False), or with `toolkit export`.",
        )
    foreign = sorted({node.domain for node in safety.nodes(model)} - set(DOMAINS) - {f.domain for f in model.functions})
    if foreign:
        raise ModelError(f"{path} uses operators of {few(foreign)}, which onnxruntime does not bring")
    safety.check(model, path)
    return model


def _bring_in(model: Any, path: Path) -> None:
    """Read tensors that are kept in plain files of the model's own folder; one that points elsewhere is refused."""
    from onnx import external_data_helper

    folder = path.parent.resolve()
    for tensor in safety.tensors(model):
        if not external_data_helper.uses_external_data(tensor):
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        file = folder / place.get("location", "")
        if file.resolve().parent != folder or file.is_symlink() or not file.is_file():
            raise ModelError(
                f"{path} keeps tensor {tensor.name!r} in {place.get('location', '')!r}, which is no file beside it",
                hint="Copy the model with all its files into one folder.",
            )
        try:
            start, length = int(place.get("offset", 0)), int(place.get("length", -1))
            with files.opened(file) as opened:
                opened.seek(start)
                tensor.raw_data = opened.read(length)
        except (ValueError, OSError, OverflowError) as error:
            raise ModelError(f"{path}: tensor {tensor.name!r} cannot be read from {file.name}: {error}") from error
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")


def _bytes(path: Path) -> bytes:
    if path.is_dir():
        raise ModelError(f"{path} is a folder, not an ONNX file")
    try:
        with files.opened(path) as file:
            data = file.read()
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if not data:
        raise ModelError(f"{path} is empty", hint="Copy or export it again.")
    if data.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path} is a Git LFS pointer, not the model itself", hint="Run `git lfs pull`.")
    if data.lstrip()[:1] == b"<":
        raise ModelError(f"{path} is a web page, not a model", hint="Download the file itself.")
    return data


def digest(path: Path, model: Any = None) -> str:
    """Thirty-two hex digits of what a file's graph computes: nodes and initializers, no names, no metadata, no dead ends.

    `model` is the file as an onnx.ModelProto, where it is already loaded.

    Raises:
        ModelError: the file cannot be loaded, or its graph is damaged.
    """
    model = load(path) if model is None else model
    opsets = sorted((entry.domain, entry.version) for entry in model.opset_import)
    functions = sorted(function.SerializeToString(deterministic=True) for function in model.functions)
    try:
        hashes = value_hashes(model.graph)
        outputs = [hashes[output.name] for output in model.graph.output]
    except (KeyError, ValueError, TypeError) as error:  # names that nobody makes, tensors of another size than they say
        raise ModelError(f"{path} is damaged: {error}", hint="Copy or export it again.") from error
    return _hash("model", opsets, functions, outputs).hex()


def value_hashes(
    graph: Any, outer: Mapping[str, bytes] | None = None, *, given: Mapping[str, bytes] | None = None
) -> dict[str, bytes]:
    """A hash for every value of a graph, equal exactly where the computation behind it is equal (hash-consing).

    `outer` holds the hashes of values that a subgraph may use, `given` those of inputs that something known is fed to. Values
    of different names with the same hash are the same value.
    """
    hashes: dict[str, bytes] = {"": b"", **(outer or {})}
    initialized = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initialized]
    for place, value in enumerate(inputs):
        hashes[value.name] = (given or {}).get(value.name) or _hash("input", place, _type(value))
    for tensor in graph.initializer:
        hashes[tensor.name] = _tensor_hash(tensor)
    for tensor in graph.sparse_initializer:
        hashes[tensor.values.name] = _hash("sparse", tensor.SerializeToString(deterministic=True))
    for node in graph.node:
        attributes = sorted((a.name, _attribute_hash(a, hashes)) for a in node.attribute)
        base = _hash("node", node.domain, node.op_type, attributes, [hashes[name] for name in node.input])
        for place, name in enumerate(node.output):
            hashes[name] = _hash(base, place)
    return hashes


def renamed(node: Any, names: Mapping[str, str]) -> Any:
    """A copy of a node that reads and writes values under other names, also inside its subgraphs."""
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for values in (copy.input, copy.output):
        values[:] = [names.get(name, name) for name in values]
    for attribute in copy.attribute:
        for graph in safety.graphs(attribute):
            own = {value.name for value in (*graph.input, *graph.initializer)} | {o for n in graph.node for o in n.output}
            outside = {old: new for old, new in names.items() if old not in own}
            inner = [renamed(node, outside) for node in graph.node]
            del graph.node[:]
            graph.node.extend(inner)
            for value in graph.output:
                value.name = outside.get(value.name, value.name)
    return copy


def strip(model: Any) -> None:
    """Remove what the exporter wrote for itself: stack traces, file paths, doc strings, shape notes. In place."""
    model.ClearField("metadata_props")
    model.ClearField("doc_string")
    model.producer_name, model.producer_version = "toolkit", ""
    _strip_graph(model.graph)
    for function in model.functions:
        function.ClearField("doc_string")
        function.ClearField("metadata_props")
        for node in function.node:
            _strip_node(node)


def embed(model: Any, card: Card) -> None:
    """Write the card into the finished model, replacing one that is there. In place; the graph's digest does not change."""
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != KEY]
    model.ClearField("metadata_props")
    for key, value in [*kept, (KEY, card.sealed(digest(Path(card.title), model)))]:
        model.metadata_props.add(key=key, value=value)


def _strip_graph(graph: Any) -> None:
    graph.ClearField("doc_string")
    graph.ClearField("metadata_props")
    graph.ClearField("value_info")
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    for node in graph.node:
        _strip_node(node)


def _strip_node(node: Any) -> None:
    node.ClearField("doc_string")
    node.ClearField("metadata_props")
    for attribute in node.attribute:
        attribute.ClearField("doc_string")
        for graph in safety.graphs(attribute):
            _strip_graph(graph)


def _check_shapes(path: Path, model: Any, card: Card) -> None:
    """The card against the graph: one uint8 image input of the card's size, one output as wide as its classes."""
    import onnx

    initialized = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initialized]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise CardError(
            f"{path} has {counted(len(inputs), 'inputs')} and {counted(len(model.graph.output), 'outputs')} "
            f"where one of each is needed"
        )
    image = inputs[0].type.tensor_type
    height, width = card.preprocess.size
    if image.elem_type != onnx.TensorProto.UINT8 or _dims(image)[1:] != [3, height, width]:
        raise CardError(f"{path}: the card says uint8 images of 3 × {height} × {width}, the graph takes {_type(inputs[0])}")
    if _dims(model.graph.output[0].type.tensor_type)[1:] not in ([card.width], ["?"]):
        raise CardError(
            f"{path}: the card says {counted(card.width, 'logits')}, the graph gives {_type(model.graph.output[0])}"
        )


def _dims(tensor: Any) -> list[int | str]:
    return [d.dim_value if d.HasField("dim_value") else "?" for d in tensor.shape.dim]


def _type(value: Any) -> str:
    tensor = value.type.tensor_type
    return f"type {tensor.elem_type} {_dims(tensor)}"


def _attribute_hash(attribute: Any, hashes: Mapping[str, bytes]) -> bytes:
    graphs = list(safety.graphs(attribute))
    if graphs:
        inner = [value_hashes(graph, hashes) for graph in graphs]
        outputs = [[h[o.name] for o in graph.output] for graph, h in zip(graphs, inner, strict=True)]
        return _hash("graphs", outputs)
    if attribute.HasField("t"):
        return _tensor_hash(attribute.t)
    return _hash("attribute", attribute.SerializeToString(deterministic=True))


def _tensor_hash(tensor: Any) -> bytes:
    from onnx import numpy_helper

    if tensor.data_type == 8:  # strings have no array form worth hashing
        return _hash("strings", list(tensor.dims), list(tensor.string_data))
    array = numpy_helper.to_array(tensor)
    return _hash("tensor", tensor.data_type, list(tensor.dims), array.tobytes())


def _hash(*parts: object) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.digest()
