"""The fused file against torch: members, views, weights, class order, temperatures; and against what it must refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper

from tests.conftest import CLASSES, card, network
from toolkit.base.text import printing
from toolkit.blending import oof
from toolkit.blending.adjustment import Adjustment
from toolkit.blending.blend import Blend
from toolkit.blending.combination import Combination
from toolkit.cli import cli
from toolkit.cli.commands.fuse import _text
from toolkit.core.cards import Output, Preprocess
from toolkit.core.prediction_files import read_table
from toolkit.core.targets import Target
from toolkit.ensemble import fuse as fusing
from toolkit.errors import DataError, ModelError, ParityError
from toolkit.models.export import export
from toolkit.models.export_checkpoint import samples
from toolkit.runtime.graphs import onnx_file
from toolkit.runtime.graphs.merge import Merger
from toolkit.workspace.competition import Competition

VIEWS = {
    "id": lambda x: x,
    "hflip": lambda x: x.flip(3),
    "vflip": lambda x: x.flip(2),
    **{f"rot{90 * k}": lambda x, k=k: torch.rot90(x, k, (2, 3)) for k in (1, 2, 3)},
    "hflip+rot90": lambda x: torch.rot90(x.flip(3), 1, (2, 3)),
    "hflip+rot270": lambda x: torch.rot90(x.flip(3), 3, (2, 3)),
}
D4 = tuple(VIEWS)


def pixels():
    return samples(Competition.find(), Preprocess((32, 32)))


def logits(model, said, images, view="id"):
    mean, std = (255 * torch.tensor(v).reshape(1, 3, 1, 1) for v in (said.mean, said.std))
    with torch.inference_mode():
        return model((VIEWS[view](torch.from_numpy(images)).float() - mean) / std).double()


def write(model, said, images):
    export(model, said, Path("folds") / f"{said.title}.onnx", samples=images)


def run(path, images, session=onnxruntime.InferenceSession):
    return session(str(path), providers=["CPUExecutionProvider"]).run(["probabilities"], {"images": images})[0]


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Two members, two folds each, the second with its classes in another order; (model, card) of each, and their folder."""
    order, root = ("cat", "ant", "bee"), tmp_path_factory.mktemp("exports")
    cards = [card("a", 0), card("a", 1), card("b", 0, classes=order), card("b", 1, classes=order)]
    models = [(network(seed, sharp=2), said) for seed, said in enumerate(cards)]
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    for model, said in models:
        export(model, said, root / f"{said.title}.onnx", samples=images)
    return models, root


@pytest.fixture
def two(workspace, exports):
    """The exports in the workspace's folds/."""
    models, root = exports
    shutil.copytree(root, workspace / "folds")
    return models


def expected(models, views, shares, images):
    total = 0
    for (model, said), share in zip(models, shares, strict=True):
        mean = torch.stack([logits(model, said, images, view).softmax(1) for view in views]).mean(0)
        order = [said.outputs[0].classes.index(name) for name in CLASSES]
        total = total + share * mean[:, order].numpy()
    return total


def fuse(workspace, *, force=False, blended=False, **choices):
    competition = Competition.find()
    combination = Combination(**choices, blend=oof.read_blends(competition) if blended else None)
    return fusing.fuse(
        competition, sorted((workspace / "folds").glob("*.onnx")), workspace / "all.onnx", combination, force=force
    )


@pytest.mark.parametrize(("tta", "views"), [("none", ("id",)), ("hflip", ("id", "hflip")), ("d4", D4)])
def test_it_is_the_mean_of_members_and_views_in_the_competitions_order(workspace, two, tta, views):
    made = fuse(workspace, tta=tta)
    found = run(made.path, pixels())
    assert np.abs(found - expected(two, views, [0.25] * 4, pixels())).max() < 1e-6
    assert (found.dtype, made.card.parity["flips"]) == (np.float32, 0)
    assert made.card.parity["probability"] < 1e-6
    onnx.checker.check_model(onnx.load(made.path), full_check=True)


@pytest.mark.parametrize(("weights", "shares"), [("a=1,b=3", [1 / 8, 1 / 8, 3 / 8, 3 / 8]), ("1,0,2,1", [0.25, 0, 0.5, 0.25])])
def test_weights_are_those_of_the_ensemble(workspace, two, weights, shares):
    made = fuse(workspace, weights=weights)
    assert np.abs(run(made.path, pixels()) - expected(two, ("id",), shares, pixels())).max() < 1e-6
    assert len(made.models) == sum(share > 0 for share in shares)


def test_openvino_gives_the_same(workspace, two):
    openvino = pytest.importorskip("openvino")
    made = fuse(workspace, tta="d4")
    core = openvino.Core()
    found = core.compile_model(str(made.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([pixels()])[0]
    assert np.abs(found - run(made.path, pixels())).max() < 1e-5


def test_it_runs_with_nothing_but_onnxruntime(workspace, two, tmp_path):
    made = fuse(workspace, tta="flip")
    np.save(tmp_path / "images.npy", pixels())
    script = (
        "import sys, numpy as np, onnxruntime as ort\n"
        "s = ort.InferenceSession(sys.argv[1])\n"
        "(i,) = s.get_inputs()\n"
        "print(s.run(None, {i.name: np.load(sys.argv[2])})[0].sum(), 'torch' in sys.modules, 'onnx' in sys.modules)"
    )
    run_it = [sys.executable, "-c", script, str(made.path), str(tmp_path / "images.npy")]
    said = subprocess.run(run_it, capture_output=True, text=True, check=True).stdout.split()
    assert float(said[0]) == pytest.approx(len(pixels()), rel=1e-5)
    assert said[1:] == ["False", "False"]


def test_what_folds_share_is_there_once(workspace):
    images = pixels()
    for fold in range(3):
        model = network(0)
        torch.manual_seed(fold)
        torch.nn.init.normal_(model[-1].weight, std=0.3)
        write(model, card("m", fold), images)
    made = fuse(workspace, tta="hflip")
    kinds = [node.op_type for node in onnx.load(made.path).graph.node]
    assert (kinds.count("Conv"), kinds.count("Gemm")) == (2, 3)
    weights = [np.prod(t.dims) for t in onnx.load(made.path).graph.initializer]
    assert sum(weights) < 8 * 3 * 9 + 8 + 16 * 8 * 9 + 16 + 3 * (64 * 3 + 3) + 60
    assert made.bytes < 0.75 * made.parts_bytes
    assert made.nodes < made.parts_nodes


def blend_json(workspace, blend, target="label", classes=CLASSES):
    said = {"schema": 2, "metric": "accuracy", "targets": {target: blend.record(classes)}}
    (workspace / "blend.json").write_text(json.dumps(said))


@pytest.mark.parametrize("vote", ["soft", "geometric"])
def test_blend_json_is_applied_whole(workspace, two, vote):
    adjustment = Adjustment(np.array([0.8, 1.3, 1.0]), np.array([0.5, -0.4, 0.0]))
    blend = Blend(("a", "b", "c"), [0.3, 0.7, 0.0], vote, [2.0, 0.6, 1.0], adjustment, "vector", {"a": "flip", "b": "none"})
    blend_json(workspace, blend)
    made = fuse(workspace, blended=True)
    assert set(made.views.values()) == {("id", "vflip", "hflip", "rot180"), ("id",)}
    stack = []
    for model, said in two:
        views = ("id", "vflip", "hflip", "rot180") if said.member == "a" else ("id",)
        p = torch.stack([logits(model, said, pixels(), view).softmax(1) for view in views]).mean(0)
        p = p[:, [said.outputs[0].classes.index(name) for name in CLASSES]]
        stack.append((p.log() / (2.0 if said.member == "a" else 0.6)).softmax(1))
    shares = torch.tensor([0.15, 0.15, 0.35, 0.35]).double().reshape(4, 1, 1)
    stack = torch.stack(stack)
    mixed = (shares * stack).sum(0) if vote == "soft" else (shares * stack.log()).sum(0).softmax(1)
    wanted = (mixed.log() * torch.tensor(adjustment.scale) + torch.tensor(adjustment.bias)).softmax(1).numpy()
    assert np.abs(run(made.path, pixels()) - wanted).max() < 2e-6


def test_independent_classes_keep_their_digits_near_one(workspace):
    target = Target("label", "multilabel", CLASSES)
    competition = replace(Competition.find(), targets=(target,))
    (workspace / "competition.toml").write_text(competition.to_toml())
    models = []
    for fold in range(2):
        said = replace(card("m", fold), outputs=(Output("label", CLASSES, "sigmoid"),))
        models.append((network(fold, sharp=40), said))
        write(*models[-1], pixels())
    blend_json(workspace, Blend(("m",), [1.0], "soft", [3.0]))
    made = fuse(workspace, blended=True)
    odds = [logits(model, said, pixels()) for model, said in models]
    assert max(float(x.abs().max()) for x in odds) > 25
    cooled = [torch.special.logit(x.sigmoid(), eps=float(np.finfo(float).eps)).div(3).sigmoid() for x in odds]
    assert np.abs(run(made.path, pixels()) - torch.stack(cooled).mean(0).numpy()).max() < 2e-6
    (output,) = made.card.outputs
    assert (output.multilabel, output.activation) == (True, "identity")
    assert onnx_file.read(made.path).card == made.card


def test_one_logit_becomes_two_columns(workspace):
    competition = replace(Competition.find(), targets=(Target("label", "binary", ("no", "yes")),))
    (workspace / "competition.toml").write_text(competition.to_toml())
    (workspace / "train.csv").write_text("id,label\n" + "".join(f"{i:04d},{'yes' if i % 2 else 'no'}\n" for i in range(24)))
    said = replace(card(), outputs=(Output("label", ("no", "yes"), "sigmoid", 0, 1),))
    write(network(0, 1), said, pixels())
    p = logits(network(0, 1), said, pixels()).sigmoid().numpy()
    assert np.abs(run(fuse(workspace).path, pixels()) - np.concatenate([1 - p, p], axis=1)).max() < 1e-6


def test_several_targets_lie_side_by_side(workspace):
    sizes = ("big", "small")
    competition = replace(
        Competition.find(), targets=(Target("label", "multiclass", CLASSES), Target("size", "multiclass", sizes))
    )
    (workspace / "competition.toml").write_text(competition.to_toml())
    lines = (workspace / "train.csv").read_text().splitlines()
    (workspace / "train.csv").write_text("\n".join([lines[0] + ",size", *(line + ",big" for line in lines[1:])]) + "\n")
    said = replace(card(), outputs=(Output("size", ("small", "big"), start=0), Output("label", CLASSES, start=2)))
    write(network(0, 5), said, pixels())
    x = logits(network(0, 5), said, pixels())
    wanted = torch.cat([x[:, 2:].softmax(1), x[:, :2].softmax(1).flip(1)], dim=1).numpy()
    made = fuse(workspace)
    assert np.abs(run(made.path, pixels()) - wanted).max() < 1e-6
    assert [(o.target, o.start, o.stop) for o in made.card.outputs] == [("label", 0, 3), ("size", 3, 5)]


def test_a_file_that_differs_is_not_written(workspace, two, monkeypatch):
    monkeypatch.setitem(fusing._STEPS, "hflip", (False, [2]))
    with pytest.raises(ParityError, match="differs from the ensemble by"):
        fuse(workspace, tta="hflip")
    assert not (workspace / "all.onnx").exists()


def test_what_cannot_be_fused_is_refused(workspace, two):
    with pytest.raises(DataError, match="cut from the decoded image") as caught:
        fuse(workspace, tta="scale")
    assert "hflip" in caught.value.hint
    blend_json(workspace, Blend(("a", "b"), [0.5, 0.5], "hard"))
    with pytest.raises(DataError, match="votes 'hard'"):
        fuse(workspace, blended=True)
    blend_json(workspace, Blend(("a", "z"), [0.5, 0.5]))
    with pytest.raises(DataError, match="'z'"):
        fuse(workspace, blended=True)
    (workspace / "all.onnx").write_bytes(b"mine")
    with pytest.raises(ModelError, match="exists"):
        fuse(workspace)
    made = fuse(workspace, force=True)
    assert made.path.stat().st_size > 100
    for rate, warned in ((50.0, True), (100.0, False), (150.0, False)):
        said = "\n".join(printing.lines(_text(replace(made, rate=rate, parts_rate=100.0))))
        assert ("the file takes 2.0 times as long as its parts" in said) == warned
    other = card("big", 0, size=(48, 48))
    write(network(0), other, samples(Competition.find(), other.preprocess))
    with pytest.raises(ModelError, match="take different pixels"):
        fuse(workspace, force=True)
    assert fuse(workspace, members=("big",), force=True).models == ("big.fold0",)


def test_the_command_and_what_follows_it(workspace, two):
    done = CliRunner().invoke(cli, ["fuse", "folds/*.onnx", "--tta", "flip", "-o", "one.onnx"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "a.fold0, a.fold1, b.fold0, b.fold1" in done.output
    assert "Labels    0 of 24 changed" in done.output
    for command in (
        ["ensemble", "folds/*.onnx", "--tta", "flip", "--name", "parts"],
        ["ensemble", "one.onnx", "--name", "whole"],
    ):
        assert CliRunner().invoke(cli, command, catch_exceptions=False).exit_code == 0
    parts, whole = (read_table(workspace / "predictions" / f"{n}.parquet").predictions["label"] for n in ("parts", "whole"))
    assert np.abs(parts.values - whole.align(parts.ids).values).max() < 1e-6
    said = CliRunner().invoke(cli, ["fuse", "folds/*.onnx", "-o", "one.onnx", "--json"])
    assert (said.exit_code, json.loads(said.output)["error"]) == (1, "one.onnx exists")
    said = CliRunner().invoke(cli, ["fuse", "folds/*.onnx", "-o", "two.onnx", "--json"])
    assert json.loads(said.output)["card"]["member"] == "two"
    assert CliRunner().invoke(cli, ["fuse", "folds/*.onnx", "--blend", "--weights", "a=1"]).exit_code == 2
    assert "identity" in CliRunner().invoke(cli, ["inspect", "one.onnx"]).output


def branching(bias, opset=20):
    """A model with an If whose branches use values of the graph around them."""

    def branch(op, name):
        node = helper.make_node(op, ["x", "bias"], [name])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    nodes = [
        helper.make_node("Cast", ["images"], ["f"], to=1),
        helper.make_node("GlobalAveragePool", ["f"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["x"]),
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "limit"], ["bright"]),
        helper.make_node("If", ["bright"], ["logits"], then_branch=branch("Add", "t"), else_branch=branch("Sub", "e")),
    ]
    constants = [
        helper.make_tensor("bias", TensorProto.FLOAT, [3], bias),
        helper.make_tensor("limit", TensorProto.FLOAT, [], [128.0]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 3, 4, 4])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "branching", [images], [out], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize("opset", [17, 20, 21])
def test_subgraphs_and_other_opsets_are_merged_as_well(opset):
    models = [branching([1, 2, 3]), branching([5, 0, -5], opset)]
    merger = Merger()
    found = [merger.add(model, "images", where="here") for model in models]
    merger.rename(merger.op("Concat", *found, axis=1), "both")
    merged = merger.model((4, 4), "both", 6)
    onnx.checker.check_model(merged, full_check=True)
    assert [node.op_type for node in merged.graph.node].count("GlobalAveragePool") == 1
    for level in (10, 250):
        images = np.full((2, 3, 4, 4), level, np.uint8)
        alone = [onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"images": images})[0] for m in models]
        together = onnxruntime.InferenceSession(merged.SerializeToString()).run(None, {"images": images})[0]
        np.testing.assert_array_equal(together, np.concatenate(alone, axis=1))
