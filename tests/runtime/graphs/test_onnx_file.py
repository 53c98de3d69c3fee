"""Graphs: a digest of what is computed, and files nobody vouches for refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import CLASSES
from toolkit.errors import CardError, ModelError
from toolkit.runtime.graphs import onnx_file


def digest(model):
    return onnx_file.digest(Path("x.onnx"), model)


@pytest.fixture
def model(exported):
    return onnx.load(exported / "tiny.fold0.onnx")


def _renamed(model):
    other = onnx.ModelProto()
    other.CopyFrom(model)
    names = {}
    for node in other.graph.node:
        for field in (node.input, node.output):
            for i, name in enumerate(field):
                field[i] = names.setdefault(name, f"v{len(names)}") if name else ""
    for value in (*other.graph.input, *other.graph.output, *other.graph.initializer):
        value.name = names.setdefault(value.name, f"v{len(names)}")
    return other


def test_the_digest_ignores_names_metadata_and_dead_ends(model):
    other = _renamed(model)
    other.doc_string = "hello"
    other.graph.node.append(helper.make_node("Relu", [other.graph.input[0].name], ["nobody reads this"]))
    assert digest(other) == digest(model)


def _initializer(model):
    tensor = max(model.graph.initializer, key=lambda t: np.prod(t.dims))
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] += 1e-6
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _attribute(model):
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    next(a for a in conv.attribute if a.name == "pads").ints[0] += 1


def _operator(model):
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Sigmoid"


def _opset(model):
    model.opset_import[0].version += 1


def _swapped(model):
    node = next(node for node in model.graph.node if node.op_type == "Sub")
    node.input[0], node.input[1] = node.input[1], node.input[0]


@pytest.mark.parametrize("change", [_initializer, _attribute, _operator, _opset, _swapped])
def test_the_digest_sees_every_change_of_what_is_computed(model, change):
    before = digest(model)
    change(model)
    assert digest(model) != before


def test_the_digest_looks_into_subgraphs():
    def branch(name, value):
        node = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.float32(value)))
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [])])

    def build(value, prefix):
        node = helper.make_node(
            "If", ["c"], ["y"], then_branch=branch(f"{prefix}a", value), else_branch=branch(f"{prefix}b", 2)
        )
        graph = helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        )
        return helper.make_model(graph)

    assert digest(build(1, "x")) == digest(build(1, "z"))
    assert digest(build(1, "x")) != digest(build(3, "x"))


def test_reading_gives_card_digest_and_facts(exported):
    export = onnx_file.read(exported / "tiny.fold0.onnx")
    assert (export.title, export.card.outputs[0].classes) == ("tiny.fold0", CLASSES)
    assert onnx_file.facts(export.path)["opset"] == 20


# --- files nobody vouches for ----------------------------------------------------------------------------------------


def _external(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")


def _foreign(model):
    model.graph.node[0].domain = "evil.corp"


def _no_card(model):
    model.ClearField("metadata_props")


def _newer(model):
    for entry in model.metadata_props:
        entry.value = json.dumps(json.loads(entry.value) | {"schema": 99})


def _other_size(model):
    for entry in model.metadata_props:
        said = json.loads(entry.value)
        said["preprocess"]["size"] = [64, 64]
        entry.value = json.dumps(said)


def _other_classes(model):
    for entry in model.metadata_props:
        said = json.loads(entry.value)
        said["outputs"][0] |= {"classes": ["a", "b"], "stop": 2}
        entry.value = json.dumps(said)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (_external, ModelError, "self-contained"),
        (_foreign, ModelError, "evil.corp"),
        (_no_card, CardError, "no card"),
        (_newer, CardError, "schema 99"),
        (_other_size, CardError, "64"),
        (_other_classes, CardError, "2 logits"),
    ],
)
def test_models_that_cannot_take_part(model, tmp_path, change, error, words):
    change(model)
    path = tmp_path / "x.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(error, match=words) as caught:
        onnx_file.read(path)
    assert "x.onnx" in caught.value.message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "Git LFS"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\x08\x0a", "no graph"),
        (b"just some words", "not a complete ONNX"),
    ],
)
def test_files_that_are_something_else(tmp_path, data, words):
    path = tmp_path / "x.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=words):
        onnx_file.read(path)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        onnx_file.read(tmp_path / "nothing.onnx")
    with pytest.raises(ModelError, match="folder"):
        onnx_file.read(tmp_path)


def test_truncations_and_flipped_bytes_never_crash(exported, tmp_path):
    data = (exported / "tiny.fold0.onnx").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "x.onnx"
    refused = 0
    for cut in np.linspace(1, len(data) - 1, 60).astype(int):
        path.write_bytes(data[:cut])
        with pytest.raises(ModelError):
            onnx_file.read(path)
    for _ in range(60):
        broken = bytearray(data)
        for place in rng.integers(0, len(data), 4):
            broken[place] = rng.integers(0, 256)
        path.write_bytes(bytes(broken))
        try:
            onnx_file.read(path)
        except ModelError:
            refused += 1
    assert refused > 0


def test_an_export_whose_weights_or_card_changed_is_refused(exported, tmp_path):
    """Damage that leaves a readable model: only the digest in the card tells."""
    path = tmp_path / "m.onnx"
    for change in (_initializer, lambda model: _rewritten(model, lambda raw: raw | {"score": 0.123})):
        model = onnx.load(exported / "tiny.fold0.onnx")
        change(model)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(CardError, match=r"m\.onnx is damaged"):
            onnx_file.read(path)
        _rewritten(model, lambda raw: {key: value for key, value in raw.items() if key != "seal"})  # of before
        path.write_bytes(model.SerializeToString())
        onnx_file.read(path)


def _rewritten(model, change):
    entry = next(entry for entry in model.metadata_props if entry.key == "toolkit.card")
    entry.value = json.dumps(change(json.loads(entry.value)))
