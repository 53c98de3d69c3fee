"""Damaged images and hostile models in a process of their own: a small part of benchmarks/fuzz.py, and its own eyes."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import card
from toolkit.core.cards import Card
from toolkit.errors import CardError, ModelError
from toolkit.runtime.graphs import safety

pytestmark = pytest.mark.usefixtures("quick_processes")


@pytest.fixture(scope="module")
def fuzz():
    place = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz_benchmark", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_damaged_file_is_read_or_refused_by_name(fuzz, tmp_path):
    rows = fuzz.run(60, 60, 3, tmp_path)
    wrong = [row for row in rows if not row["said"].startswith(("read", "refused"))]
    assert not wrong
    tally = Counter((row["what"], row["said"].split()[0]) for row in rows)
    assert tally["image", "refused"] > 15
    assert tally["image", "read"] > 5
    assert tally["model", "refused"] > 40


def test_the_hostile_models_are_distinct_and_many(fuzz):
    whole = fuzz.model_file()
    made = fuzz.hostile(whole)
    assert len(set(made.values())) == len(made) > 80
    assert whole not in made.values()
    kinds = {kind for kind, _ in fuzz.image_files(24, 0)}
    assert kinds == set(fuzz.KINDS)
    assert len(list(fuzz.model_files(600, 0))) == 600


def test_crashes_hangs_and_other_errors_are_seen(fuzz, tmp_path, monkeypatch):
    script = """
import os, sys, time
print("> ready", flush=True)
for line in sys.stdin:
    line = line.rsplit("/", 1)[-1]
    if "crash" in line: os.abort()
    if "hang" in line: time.sleep(60)
    while "busy" in line: pass
    print("refused by a library"); print("> refused all is well", flush=True)
"""
    monkeypatch.setattr(fuzz, "WORKER", script)
    monkeypatch.setattr(fuzz, "SECONDS", 0.5)
    monkeypatch.setattr(fuzz, "WALL", 3.0)
    worker = fuzz.Worker(tmp_path)
    try:
        said = [worker.ask("image", tmp_path / name) for name in ("fine", "crash", "fine", "hang", "fine", "busy")]
    finally:
        worker.stop()
    assert said[:3] == ["refused all is well", "crashed with exit code -6", "refused all is well"]
    assert [said[3][:8], said[4], said[5][:8]] == ["hung for", "refused all is well", "hung for"]


def test_cards_of_endless_brackets_and_of_no_numbers_are_refused():
    with pytest.raises(CardError, match=r"m\.onnx: its card cannot be read"):
        Card.from_json("[" * 100_000, where="m.onnx")
    for numbers in ((float("nan"), 0.0, 0.0), (float("inf"), 0.0, 0.0)):
        with pytest.raises(CardError, match="mean and std"):
            card(mean=numbers)
        with pytest.raises(CardError, match="mean and std"):
            card(std=numbers)


def graph(*nodes, constants=()):
    model = helper.make_model(helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]))
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value, dtype=np.int64), name) for name, value in constants)
    return model


def loop(rounds):
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"])],
        "b",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, [])],
    )
    return helper.make_node("Loop", [rounds, ""], ["y"], body=body)


def test_loops_must_have_a_number_of_rounds():
    safety.check(graph(loop("n"), constants=[("n", 100)]), Path("m.onnx"))
    for rounds, constants in (("", []), ("n", []), ("n", [("n", 1 << 60)]), ("n", [("n", -1)])):
        with pytest.raises(ModelError, match=r"m\.onnx has a Loop"):
            safety.check(graph(loop(rounds), constants=constants), Path("m.onnx"))


def test_sizes_beyond_memory_are_refused_also_inside_branches():
    def made(dims):
        return helper.make_node("ConstantOfShape", ["s"], ["y"]), [("s", dims)]

    node, constants = made([1 << 14, 1 << 13])
    safety.check(graph(node, constants=constants), Path("m.onnx"))
    node, constants = made([1 << 14, 1 << 16])
    with pytest.raises(ModelError, match="1,073,741,824 elements"):
        safety.check(graph(node, constants=constants), Path("m.onnx"))
    branch = helper.make_graph([node], "b", [], [onnx.ValueInfoProto(name="y")])
    inside = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(ModelError, match="elements"):
        safety.check(graph(inside, constants=constants), Path("m.onnx"))
    value = numpy_helper.from_array(np.array([1 << 40], dtype=np.int64))
    with pytest.raises(ModelError, match="Expand"):
        safety.check(
            graph(helper.make_node("Constant", [], ["s"], value=value), helper.make_node("Expand", ["x", "s"], ["y"])),
            Path("m.onnx"),
        )
