"""Many ONNX graphs as one: every value that two of them compute alike, and every constant, is there once (hash-consing)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import ModelError
from toolkit.runtime.graphs.onnx_file import renamed, value_hashes

OPSET, IR = 20, 10  # what torch 2.15 writes and onnxruntime 1.31 reads; onnx's own defaults are newer than it accepts
LIMIT = 2_000_000_000  # protobuf cannot hold more in one message


class Merger:
    """A graph that grows: operators by hand, whole models under it, and nothing twice."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._names: dict[bytes, str] = {b"": ""}
        self._made: dict[Any, str] = {}
        self._domains: dict[str, int] = {"": OPSET}

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return len(self._nodes)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The value of one operator; asked for again, it is the same value."""
        from onnx import helper

        key = (kind, inputs, repr(sorted(attributes.items())))
        if key not in self._made:
            self._made[key] = f"m{len(self._made)}"
            self._nodes.append(helper.make_node(kind, list(inputs), [self._made[key]], **attributes))
        return self._made[key]

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """A constant."""
        from onnx import numpy_helper

        array: NDArray[Any] = np.asarray(values, dtype=dtype)
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        if key not in self._made:
            self._made[key] = f"m{len(self._made)}"
            self._constants.append(numpy_helper.from_array(array, self._made[key]))
        return self._made[key]

    def add(self, model: Any, images: str, *, where: str) -> str:
        """A model's one output as float32, its one input being the value `images`; `where` names it in messages.

        Raises:
            ModelError: the model's operators cannot be brought to this graph's versions.
        """
        model = self._converted(model, where)
        graph = model.graph
        initialized = {tensor.name for tensor in graph.initializer}
        (entry,) = (value.name for value in graph.input if value.name not in initialized)
        hashes = value_hashes(graph, given={entry: b"value " + images.encode()})
        names = {entry: images}
        for tensor in graph.initializer:
            if hashes[tensor.name] not in self._names:
                self._names[hashes[tensor.name]] = f"c{len(self._names)}"
                self._constants.append(type(tensor)())
                self._constants[-1].CopyFrom(tensor)
                self._constants[-1].name = self._names[hashes[tensor.name]]
            names[tensor.name] = self._names[hashes[tensor.name]]
        for node in graph.node:
            new = not all(hashes[name] in self._names for name in node.output)
            names |= {name: self._names.setdefault(hashes[name], f"v{len(self._names)}") for name in node.output}
            if new:
                self._nodes.append(renamed(node, names))
                self._nodes[-1].ClearField("name")  # two models call theirs the same
        out = graph.output[0]
        value = names[out.name]
        return value if out.type.tensor_type.elem_type == 1 else self.op("Cast", value, to=1)

    def model(self, images: tuple[int, int], output: str, width: int) -> Any:
        """The onnx.ModelProto: uint8 `images` (batch, 3, H, W) to float32 `output` (batch, width).

        Raises:
            ModelError: it is too large for one file.
        """
        from onnx import TensorProto, helper

        graph = helper.make_graph(
            self._nodes,
            "fused",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, *images])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", width])],
            self._constants,
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in self._domains.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR)
        if model.ByteSize() > LIMIT:
            raise ModelError(
                f"the models make {model.ByteSize() / 1e9:.1f} GB, and one file holds 2", hint="Fuse fewer of them."
            )
        return model

    def rename(self, value: str, name: str) -> None:
        """Give a value its public name."""
        from onnx import helper

        self._nodes.append(helper.make_node("Identity", [value], [name]))

    def _converted(self, model: Any, where: str) -> Any:
        """The model at this graph's operator versions, its functions written out."""
        from onnx import inliner, version_converter

        if model.graph.sparse_initializer:
            raise ModelError(f"{where} has sparse constants, which cannot be fused", hint="Export it again with dense ones.")
        if model.functions:
            model = inliner.inline_local_functions(model)
        versions = {("" if entry.domain == "ai.onnx" else entry.domain): entry.version for entry in model.opset_import}
        if versions.get("", OPSET) != OPSET:
            try:
                model = version_converter.convert_version(model, OPSET)
            except Exception as error:  # its converters raise RuntimeError and onnx's own, which share no class
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ModelError(f"{where}: opset {versions['']} cannot be brought to {OPSET}: {first}") from error
        for domain, version in versions.items():
            if domain and self._domains.setdefault(domain, version) != version:
                raise ModelError(f"{where}: its operators of {domain} have version {version}, another model's have another")
        return model
