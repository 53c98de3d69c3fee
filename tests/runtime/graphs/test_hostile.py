"""Graphs that would never end, fill the memory, read other files or give other than their card says: refused with a sentence."""

from __future__ import annotations

import resource
import time

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import card
from toolkit.core import cards
from toolkit.errors import ModelError
from toolkit.runtime.graphs import onnx_file, trial
from toolkit.runtime.session import open_session

OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def constant(name, value, kind=np.int64):
    return numpy_helper.from_array(np.array(value, dtype=kind), name)


def base():
    """Nodes from images to the mean of each channel, (N, 3)."""
    return [
        helper.make_node("Cast", ["images"], ["x"], to=FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
    ]


def model(nodes, initializers=(), functions=(), width=3, said=None, output="logits"):
    graph = helper.make_graph(
        [*base(), *nodes],
        "g",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info(output, FLOAT, ["n", said or width])],
        [constant("axes", [2, 3]), *initializers],
    )
    proto = helper.make_model(graph, opset_imports=OPSETS, functions=list(functions), ir_version=9)
    proto.metadata_props.add(key=cards.KEY, value=card(size=(8, 8)).to_json())
    return proto


def loop(count, body, source, target):
    return helper.make_node("Loop", [count, "", source], [target], body=body)


def body(nodes, result, name, initializers=()):
    return helper.make_graph(
        [*nodes, helper.make_node("Identity", ["cond"], ["cond_out"])],
        name,
        [
            helper.make_tensor_value_info("i", INT, []),
            helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, None),
        ],
        [helper.make_tensor_value_info("cond_out", TensorProto.BOOL, []), helper.make_tensor_value_info(result, FLOAT, None)],
        list(initializers),
    )


def nested_loops():
    inner = body([helper.make_node("Identity", ["state"], ["next"])], "next", "inner")
    outer = body([loop("many", inner, "state", "out")], "out", "outer")
    return model([loop("many", outer, "mean", "logits")], [constant("many", 50_000)])


def a_count_of_two_names():
    """The constant that is looked up is another than the one that counts."""
    shadow = helper.make_graph(
        [helper.make_node("Identity", ["mean"], ["y"])],
        "s",
        [],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [constant("many", 1)],
    )
    inner = body([helper.make_node("Identity", ["state"], ["next"])], "next", "inner")
    nodes = [
        helper.make_node("If", ["yes"], ["z"], then_branch=shadow, else_branch=shadow),
        loop("many", inner, "mean", "logits"),
    ]
    return model(nodes, [constant("many", 10**12), constant("yes", True, bool)])


def function(name, nodes):
    return helper.make_function("own", name, ["a"], ["b"], nodes, OPSETS)


def multiplying_functions():
    chain = [
        function(
            f"f{i}",
            [
                helper.make_node(f"f{i + 1}", ["a"], ["c"], domain="own"),
                helper.make_node(f"f{i + 1}", ["c"], ["b"], domain="own"),
            ],
        )
        for i in range(40)
    ]
    last = function("f40", [helper.make_node("Identity", ["a"], ["b"])])
    return model([helper.make_node("f0", ["mean"], ["logits"], domain="own")], functions=[*chain, last])


def functions_in_a_circle():
    turns = [function(f"f{i}", [helper.make_node(f"f{1 - i}", ["a"], ["b"], domain="own")]) for i in range(2)]
    return model([helper.make_node("f0", ["mean"], ["logits"], domain="own")], functions=turns)


def loops_in_functions():
    inner = body([helper.make_node("Identity", ["state"], ["next"])], "next", "inner")
    many = helper.make_node("Constant", [], ["many"], value=constant("", 50_000))
    deep = function("deep", [many, loop("many", inner, "a", "b")])
    outer = body([helper.make_node("deep", ["state"], ["out"], domain="own")], "out", "outer")
    return model([loop("count", outer, "mean", "logits")], [constant("count", 50_000)], [deep])


def doubling_loop():
    double = body([helper.make_node("Concat", ["state", "state"], ["next"], axis=1)], "next", "inner")
    return model(
        [loop("many", double, "mean", "big"), helper.make_node("Slice", ["big", "zero", "three", "one"], ["logits"])],
        [constant("many", 40), constant("zero", [0]), constant("three", [3]), constant("one", [1])],
    )


def doubling_chain():
    """No loop at all: every node doubles what the one before gave."""
    nodes = [helper.make_node("Concat", [f"d{i}"] * 2, [f"d{i + 1}"], axis=1) for i in range(40)]
    nodes = [
        helper.make_node("Identity", ["mean"], ["d0"]),
        *nodes,
        helper.make_node("Slice", ["d40", "zero", "three", "one"], ["logits"]),
    ]
    return model(nodes, [constant("zero", [0]), constant("three", [3]), constant("one", [1])])


def a_slow_loop():
    """Few rounds, each heavy."""
    heavy = body([helper.make_node("MatMul", ["w", "state"], ["next"])], "next", "inner", [])
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["w"], value=helper.make_tensor("", FLOAT, [1], [1e-4])),
        loop("many", heavy, "w", "big"),
        helper.make_node("ReduceMean", ["big"], ["m"], keepdims=0),
        helper.make_node("Add", ["mean", "m"], ["logits"]),
    ]
    return model(nodes, [constant("shape", [2000, 2000]), constant("many", 10_000)])


def outside(tensor):
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    return tensor


def data_outside_in_a_function():
    held = helper.make_node("Constant", [], ["c"], value=outside(constant("", [1.0, 2.0, 3.0], np.float32)))
    adding = function("f", [held, helper.make_node("Add", ["a", "c"], ["b"])])
    return model([helper.make_node("f", ["mean"], ["logits"], domain="own")], functions=[adding])


def data_outside_in_a_branch():
    held = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["y"])],
        "s",
        [],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [outside(constant("c", [1.0, 2.0, 3.0], np.float32))],
    )
    nodes = [
        helper.make_node("If", ["yes"], ["z"], then_branch=held, else_branch=held),
        helper.make_node("Add", ["mean", "z"], ["logits"]),
    ]
    return model(nodes, [constant("yes", True, bool)])


def foreign_in_a_function():
    calling = helper.make_function(
        "own",
        "f",
        ["a"],
        ["b"],
        [helper.make_node("Run", ["a"], ["b"], domain="evil")],
        [*OPSETS, helper.make_opsetid("evil", 1)],
    )
    return model([helper.make_node("f", ["mean"], ["logits"], domain="own")], functions=[calling])


HOSTILE = [
    nested_loops, a_count_of_two_names, multiplying_functions, functions_in_a_circle, loops_in_functions, doubling_loop,
    doubling_chain, a_slow_loop, data_outside_in_a_function, data_outside_in_a_branch, foreign_in_a_function,
]  # fmt: skip


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_hostile_graph_is_refused_within_its_budget(make, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "SECONDS", 2)
    path = tmp_path / "x.onnx"
    path.write_bytes(make().SerializeToString())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.process_time()
    with pytest.raises(ModelError, match=r"x\.onnx"):
        onnx_file.read(path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = time.process_time() - started + (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    assert spent < 10, spent


def test_ordinary_graphs_are_not_tried(exported, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *a, **k: pytest.fail("a process"))
    assert onnx_file.read(exported / "tiny.fold0.onnx")


def test_control_flow_that_ends_is_taken(tmp_path):
    inner = body([helper.make_node("Identity", ["state"], ["next"])], "next", "inner")
    path = tmp_path / "x.onnx"
    path.write_bytes(model([loop("many", inner, "mean", "logits")], [constant("many", 3)]).SerializeToString())
    assert onnx_file.read(path).title == "tiny.fold0"


def more_logits():
    return [
        helper.make_node("Concat", ["mean", "mean"], ["wide"], axis=1),
        helper.make_node("Identity", ["wide"], ["logits"]),
    ], ()


def more_rows():
    return [
        helper.make_node("Concat", ["mean", "mean"], ["long"], axis=0),
        helper.make_node("Identity", ["long"], ["logits"]),
    ], ()


def fewer_rows():
    return [helper.make_node("Slice", ["mean", "zero", "one", "zero"], ["logits"])], (
        constant("zero", [0]),
        constant("one", [1]),
    )


@pytest.mark.parametrize("make", [more_logits, more_rows, fewer_rows], ids=lambda make: make.__name__)
@pytest.mark.parametrize("said", [3, "classes"])
def test_an_output_that_contradicts_the_card_is_refused(make, said, workspace):
    from tests.requested import ensemble
    from toolkit.workspace.competition import Competition

    nodes, initializers = make()
    path = workspace / "folds" / "x.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model(nodes, initializers, said=said).SerializeToString())
    with pytest.raises(ModelError, match=r"x\.onnx"):
        ensemble(Competition.read(workspace), [path], device="cpu")
    assert not list(workspace.glob("predictions/*"))


def test_sessions_count_rows_themselves(tmp_path):
    nodes, initializers = more_rows()
    path = tmp_path / "x.onnx"
    path.write_bytes(model(nodes, initializers, said="classes").SerializeToString())
    session = open_session({"a": path}, device="cpu", batch=4)
    with pytest.raises(ModelError, match="for 4 images"):
        session.run(session.place(np.zeros((4, 3, 8, 8), np.uint8)), "id")


def test_pipes_are_no_models(tmp_path):
    import os

    os.mkfifo(tmp_path / "x.onnx")
    with pytest.raises(ModelError, match="plain file"):
        onnx_file.read(tmp_path / "x.onnx")
