"""Other people's models: every kind of exporter's graph gives through our interface what it gives by itself."""

from __future__ import annotations

import json
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from scipy.special import softmax

from tests.conftest import CLASSES, card, network
from toolkit.core.activations import probabilities
from toolkit.core.cards import Preprocess
from toolkit.errors import CardError, DataError, ModelError, ToolkitError
from toolkit.images import render
from toolkit.models import adopt as adopting
from toolkit.models import class_map
from toolkit.models.adopt import adopt
from toolkit.models.foreign_model import Asked
from toolkit.runtime import session as sessions
from toolkit.runtime.graphs import onnx_file
from toolkit.workspace.competition import Competition

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def asked(**changes):
    return Asked(**({"classes": CLASSES, "member": "theirs", "mean": MEAN, "std": STD} | changes))


def torch_legacy(path, *, model=None, dynamic=True, opset=17, half=False, softmax_inside=False):
    """What torch.onnx.export wrote before dynamo, and still writes in most people's notebooks."""
    model = model or network(0)
    if softmax_inside:
        model = torch.nn.Sequential(model, torch.nn.Softmax(1))
    example = torch.randn(1, 3, 32, 32)
    if half:
        model, example = model.half(), example.half()
    axes = {"input": {0: "n"}, "output": {0: "n"}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(), (example,), path, dynamo=False, opset_version=opset, input_names=["input"],
            output_names=["output"], dynamic_axes=axes,
        )  # fmt: skip
    return path


def keras_like(path, *, batch="unk__6", softmax_inside=True, kind=np.float32):
    """The shape of graph that tf2onnx writes: NHWC input turned at once, opset 12, softmax at the end."""
    rng = np.random.default_rng(1)
    weights = {
        "conv/kernel": rng.normal(0, 0.3, (6, 3, 3, 3)).astype(kind),
        "dense/kernel": rng.normal(0, 1, (6, 3)).astype(kind),
        "dense/bias": rng.normal(0, 0.2, (3,)).astype(kind),
    }
    nodes = [
        helper.make_node("Transpose", ["input_1"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "conv/kernel"], ["c"], auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Squeeze", ["g"], ["s"], axes=[2, 3]),
        helper.make_node("MatMul", ["s", "dense/kernel"], ["m"]),
        helper.make_node("Add", ["m", "dense/bias"], ["logits"]),
        *([helper.make_node("Softmax", ["logits"], ["dense"], axis=1)] if softmax_inside else []),
    ]
    element = TensorProto.FLOAT if kind == np.float32 else TensorProto.FLOAT16
    graph = helper.make_graph(
        nodes,
        "tf2onnx",
        [helper.make_tensor_value_info("input_1", element, [batch, 32, 32, 3])],
        [helper.make_tensor_value_info("dense" if softmax_inside else "logits", element, [batch, 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7), path)
    return path


def fixed_reshape(path, batch, *, opset=13, mixing=False):
    """A classifier whose Reshape and batch are constants; `mixing` lets images of one batch see each other's mean."""
    rng = np.random.default_rng(2)
    weights = {"w": rng.normal(0, 0.02, (3 * 64, 3)).astype(np.float32), "shape": np.array([batch, 3 * 64])}
    nodes = [
        helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Reshape", ["p", "shape"], ["f"]),
        *([helper.make_node("ReduceMean", ["f"], ["mean"], axes=[0], keepdims=1)] if mixing else []),
        *([helper.make_node("Sub", ["f", "mean"], ["f2"])] if mixing else []),
        helper.make_node("MatMul", ["f2" if mixing else "f", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "fixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def tiled_bias(path):
    """Four images at a time, and nothing to be done about it: a constant has four rows."""
    model = onnx.load(fixed_reshape(path, 4))
    bias = np.tile(np.array([[0.5, -0.25, 0.125]], dtype=np.float32), (4, 1))
    model.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Add", ["before", "bias"], ["y"]))
    onnx.save(model, path)
    return path


def old_style(path):
    """Opset 7, IR 3: weights are listed as inputs, as in files of 2018."""
    graph = onnx.load(fixed_reshape(path, 1, opset=7)).graph
    inputs = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in graph.initializer]
    graph.input.extend(inputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 7)], ir_version=3), path)
    return path


def theirs(path, pixels, *, layout="nchw", kind=np.float32, mean=MEAN, std=STD, top=1, bgr=False, batch=1):
    """What the model itself gives, asked as its maker would: one image (or `batch`) at a time, prepared by hand."""
    x = pixels.astype(np.float64).transpose(0, 2, 3, 1)
    x = x[..., ::-1] if bgr else x
    x = ((x / (255 if top == 1 else 1)) - np.array(mean)) / np.array(std)
    x = (x if layout == "nhwc" else x.transpose(0, 3, 1, 2)).astype(kind)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: x[i : i + batch]})[0] for i in range(0, len(x), batch)]).astype(np.float64)


def ours(path, pixels):
    """The adopted export's probabilities, through the sessions that everything else uses."""
    export = onnx_file.read(path)
    session = sessions.open_session({export.digest: path}, device="cpu", batch=4)
    logits = session.run(session.place(pixels), "id")[export.digest]
    return probabilities(logits, export.card.outputs[0])


@pytest.fixture
def pixels(workspace):
    paths = sorted((workspace / "train").glob("*.png"))[:12]
    return np.stack([render.load(path, Preprocess((32, 32))) for path in paths])


KINDS = {
    "torch legacy": (torch_legacy, {}, {}, {}, "any"),
    "torch legacy, opset 9": (torch_legacy, {"opset": 9}, {}, {}, "any"),
    "softmax inside": (torch_legacy, {"softmax_inside": True}, {}, {}, "any"),
    "fixed batch of 1": (torch_legacy, {"dynamic": False}, {}, {}, "any"),
    "float16": (torch_legacy, {"half": True}, {}, {"kind": np.float16}, "any"),
    "tf2onnx, NHWC": (keras_like, {}, {}, {"layout": "nhwc"}, "any"),
    "tf2onnx, levels, BGR": (
        keras_like,
        {"softmax_inside": False},
        {"mean": (104.0, 117.0, 123.0), "std": (58.0, 57.0, 57.0), "top": 255, "colour": "bgr"},
        {"layout": "nhwc", "mean": (104.0, 117.0, 123.0), "std": (58.0, 57.0, 57.0), "top": 255, "bgr": True},
        "any",
    ),
    "constant reshape of 1": (fixed_reshape, {"batch": 1}, {}, {}, "reshaped"),
    "constant reshape of 4": (fixed_reshape, {"batch": 4}, {}, {"batch": 4}, "reshaped"),
    "batch of 4 in its constants": (tiled_bias, {}, {}, {"batch": 4}, "scanned"),
    "opset 7, IR 3": (old_style, {}, {}, {}, "reshaped"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_what_it_gives_by_itself(kind, workspace, pixels):
    make, made_with, said, read_with, batching = KINDS[kind]
    source = make(workspace / "model.onnx", **made_with)
    done = adopt(source, asked(**said), Competition.read(workspace), output=workspace / "theirs.onnx")
    assert done.batching == batching
    raw = theirs(source, pixels, **read_with)
    expected = raw if np.allclose(raw.sum(axis=1), 1, atol=1e-2) else softmax(raw, axis=1)
    for count in (12, 5):
        np.testing.assert_allclose(ours(done.path, pixels[:count]), expected[:count], atol=5e-3 if "16" in kind else 2e-5)
    said = onnx_file.read(done.path).card
    assert (said.title, said.outputs[0].classes) == ("theirs.all", CLASSES)
    assert said.outputs[0].activation == ("identity" if np.allclose(raw.sum(axis=1), 1, atol=1e-2) else "softmax")


def test_a_batch_of_one_that_cannot_be_freed_runs_one_by_one_for_any_number(workspace, pixels):
    source = fixed_reshape(workspace / "model.onnx", 1, mixing=True)  # minus its own mean over the batch: nothing is left
    model = onnx.load(source)
    model.graph.node[3].op_type = "Add"
    onnx.save(model, source)
    done = adopt(source, asked(), Competition.read(workspace))
    assert done.batching == "scanned"
    for count in (1, 3, 12):
        np.testing.assert_allclose(ours(done.path, pixels[:count]), softmax(theirs(source, pixels[:count]), axis=1), atol=1e-6)


def test_a_model_in_which_images_of_a_batch_see_each_other_is_refused(workspace):
    source = fixed_reshape(workspace / "model.onnx", 4, mixing=True)
    with pytest.raises(ModelError, match="depend on the other images of its batch"):
        adopt(source, asked(), Competition.read(workspace))
    assert not (workspace / "folds").exists()


def test_one_sigmoid_and_one_logit_stand_for_two_classes(tmp_path):
    for inside in (True, False):
        model = torch.nn.Sequential(network(0, 1), *([torch.nn.Sigmoid()] if inside else []))
        source = torch_legacy(tmp_path / f"{inside}.onnx", model=model)
        with (
            pytest.raises(ModelError, match="logits or probabilities")
            if inside
            else pytest.raises(CardError, match="1 number per image")
        ):
            adopt(source, asked(classes=("no", "yes") if inside else CLASSES), output=tmp_path / "x.onnx")
        output = "probabilities" if inside else "logits"
        done = adopt(source, asked(classes=("no", "yes"), output=output), output=tmp_path / f"{inside}.out.onnx")
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
        raw = theirs(source, pixels)[:, 0]
        p = raw if inside else 1 / (1 + np.exp(-raw))
        np.testing.assert_allclose(ours(done.path, pixels), np.stack([1 - p, p], axis=1), atol=1e-6)


def test_multilabel_probabilities(tmp_path):
    source = torch_legacy(tmp_path / "m.onnx", model=torch.nn.Sequential(network(0), torch.nn.Sigmoid()))
    done = adopt(source, asked(output="probabilities", multilabel=True), output=tmp_path / "out.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    np.testing.assert_allclose(ours(done.path, pixels), theirs(source, pixels), atol=3e-7)
    assert done.card.outputs[0].multilabel


def test_tensors_in_other_files_come_inside_and_only_from_beside_it(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    source, plain = folder / "m.onnx", torch_legacy(tmp_path / "plain.onnx")
    onnx.save(onnx.load(plain), source, save_as_external_data=True, location="m.data", size_threshold=0)
    with pytest.raises(ModelError, match="self-contained"):
        onnx_file.load(source)
    done = adopt(source, asked(), output=tmp_path / "out.onnx")
    (folder / "m.data").rename(tmp_path / "m.data")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    np.testing.assert_allclose(ours(done.path, pixels), softmax(theirs(plain, pixels), axis=1), atol=1e-6)
    onnx.save(onnx.load(plain), source, save_as_external_data=True, location="m.data", size_threshold=0)
    model = onnx.load(source, load_external_data=False)
    (tmp_path / "secret").write_bytes(b"0" * 10_000)
    (folder / "link.data").symlink_to(tmp_path / "secret")
    for location in ("../secret", str(tmp_path / "secret"), "link.data", "nowhere.data", "", "."):
        for tensor in model.graph.initializer:
            tensor.external_data[0].value = location
        onnx.save(model, folder / "evil.onnx")
        with pytest.raises(ModelError, match="no file beside it"):
            adopt(folder / "evil.onnx", asked(), output=tmp_path / "evil.onnx")


def test_a_size_beyond_memory_is_refused(tmp_path):
    source = keras_like(tmp_path / "m.onnx")
    model = onnx.load(source)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1 << 30
    onnx.save(model, source)
    with pytest.raises(ModelError, match=r"above the limit|2 GiB of memory for one image$"):
        adopt(source, asked(), output=tmp_path / "out.onnx")


@pytest.mark.parametrize(
    ("made_with", "said", "words"),
    [
        ({}, {"mean": None}, "no graph says what they were normalised with"),
        ({}, {"size": (64, 64)}, "32×32, not 64×64"),
        ({}, {"layout": "nhwc"}, "not nhwc"),
        ({}, {"element": "float16"}, "is float32, not float16"),
        ({}, {"classes": ("a", "b")}, "gives 3 numbers"),
        ({}, {"classes": ("a", "b", "a")}, "names one twice: 'a'"),
        ({}, {"output": "probabilities"}, "no probabilities: they lie between"),
        ({"softmax_inside": True}, {"output": "logits"}, "no logits but probabilities: they lie .*rows sum to 1 to 1"),
        ({}, {"output_name": "features"}, "has no output 'features'"),
        ({}, {"std": (0.0, 1.0, 1.0)}, "above zero"),
        ({}, {"crop_pct": 1.5}, "between 0 and 1"),
        ({}, {"timm": "resnet_eighteen"}, "timm knows no model"),
    ],
)
def test_what_the_graph_contradicts_is_refused(made_with, said, words, tmp_path):
    source = torch_legacy(tmp_path / "m.onnx", **made_with)
    with pytest.raises(ToolkitError, match=words):
        adopt(source, asked(**said), output=tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_what_the_graph_does_not_say_is_asked_for(tmp_path):
    source = keras_like(tmp_path / "m.onnx")
    model = onnx.load(source)
    for axis in (1, 2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"d{axis}"
    model.graph.output.append(helper.make_tensor_value_info("g", TensorProto.FLOAT, None))
    onnx.save(model, source)
    for said, words in (
        ({}, "2 outputs: 'dense' .* × 3., 'g'; a number for each of 3 classes: 'dense'"),
        ({"output_name": "dense"}, "where the channels are"),
        ({"output_name": "dense", "layout": "nhwc"}, "any size"),
    ):
        with pytest.raises(ModelError, match=words):
            adopt(source, asked(**said), output=tmp_path / "out.onnx")
    done = adopt(source, asked(output_name="dense", layout="nhwc", size=(24, 40)), output=tmp_path / "out.onnx")
    assert done.card.preprocess.size == (24, 40)


def test_timm_fills_in_the_pixels(tmp_path):
    import timm
    from timm.data import create_transform, resolve_data_config

    source = torch_legacy(tmp_path / "m.onnx")
    done = adopt(source, asked(mean=None, std=None, timm="tf_efficientnet_lite0"), output=tmp_path / "out.onnx")
    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg("tf_efficientnet_lite0").to_dict())
    resize = create_transform(**config).transforms[0]
    assert (done.card.mean, done.card.std) == (config["mean"], config["std"]) == ((0.5, 0.5, 0.5),) * 2
    assert done.card.preprocess.interpolation == "bicubic"
    assert done.card.preprocess.shorter == int(resize.size * 32 / 224)


def test_accuracy_on_labelled_images_is_that_of_their_own_model(workspace):
    competition = Competition.read(workspace)
    rows = dict(competition.images("train"))
    labels = competition.truth()["label"]
    x = np.stack([render.load(rows[name], Preprocess((32, 32))) for name in labels.ids]).astype(np.float32) / 255
    features = x.mean(axis=(2, 3)) - x.mean(axis=(0, 2, 3))  # colour means tell the classes apart, but only in their order
    weights = np.linalg.lstsq(features, np.eye(3)[labels.decided], rcond=None)[0]
    right = (features @ weights).argmax(axis=1) == labels.decided
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3))
    model[2].weight.data = torch.tensor(weights.T.copy(), dtype=torch.float32)
    model[2].bias.data = torch.tensor(-(x.mean(axis=(0, 2, 3)) @ weights), dtype=torch.float32)
    source = torch_legacy(workspace / "m.onnx", model=model)
    said = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    done = adopt(source, asked(**said), competition, output=workspace / "a.onnx")
    assert done.accuracy == pytest.approx(right.mean())
    assert done.checked == len(labels.ids)


def test_worse_than_guessing_is_said_with_what_would_be_better(workspace):
    competition = Competition.read(workspace)
    done = {}
    for top in (1, 255):
        bright = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), _Brightness(workspace))
        source = torch_legacy(workspace / "m.onnx", model=bright)
        plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "top": top}
        done[top] = adopt(source, asked(**plain), competition, output=workspace / f"{top}.onnx")
    assert done[255].accuracy == 1
    assert done[255].notes == (done[255].notes[0],)
    assert done[1].accuracy < 0.5
    assert any("guessing" in note for note in done[1].notes)
    assert any("--range 0..255 it would have 1.000" in note for note in done[1].notes)


class _Brightness(torch.nn.Module):
    """Knows the training images by their mean levels, in units of 0..255: useless on anything else."""

    def __init__(self, workspace):
        super().__init__()
        competition = Competition.read(workspace)
        labels = competition.truth()["label"]
        paths = dict(competition.images("train"))
        means = [render.load(paths[name], Preprocess((32, 32))).mean(axis=(1, 2)) for name in labels.ids]
        self.known = torch.tensor(np.array(means), dtype=torch.float32)
        self.labels = torch.eye(3)[torch.tensor(labels.decided)]

    def forward(self, x):
        near = -1000 * (x[:, None, :] - self.known[None]).square().sum(-1)
        return torch.softmax(near, dim=1) @ self.labels * 9


# --- class maps ------------------------------------------------------------------------------------------------------


def test_a_class_map_drops_merges_and_renames_exactly(tmp_path):
    names = ("tabby", "siamese", "bee", "ant", "car")
    said = {"tabby": "cat", "siamese": "cat", "car": ""}
    pixels = np.random.default_rng(0).integers(0, 256, (9, 3, 32, 32), dtype=np.uint8)
    for inside in (False, True):
        source = torch_legacy(tmp_path / f"{inside}.onnx", model=network(3, 5), softmax_inside=inside)
        done = adopt(source, asked(classes=names, mapping=said), output=tmp_path / f"{inside}.out.onnx")
        raw = theirs(source, pixels)
        p = raw if inside else softmax(raw, axis=1)
        expected = np.stack([p[:, 0] + p[:, 1], p[:, 2], p[:, 3]], axis=1) / (1 - p[:, 4:])
        assert done.card.outputs[0].classes == ("cat", "bee", "ant")
        np.testing.assert_allclose(ours(done.path, pixels), expected, atol=1e-6)


def test_the_rest_can_be_dropped_and_unknown_names_are_refused(tmp_path):
    made = class_map.make(("a", "b", "c"), {"b": "B", "*": ""})
    assert (made.classes, made.sources) == (("B",), ((1,),))
    with pytest.raises(DataError, match="names 'd'"):
        class_map.make(("a", "b"), {"d": "x"})
    with pytest.raises(DataError, match="drops every class"):
        class_map.make(("a", "b"), {"*": ""})
    (tmp_path / "m.csv").write_text("from,to\n007,bond\n*,\n")
    (tmp_path / "m.json").write_text('{"007": "bond", "*": ""}')
    (tmp_path / "m.toml").write_text('"007" = "bond"\n"*" = ""\n')
    assert {tuple(class_map.read(tmp_path / f"m.{kind}").items()) for kind in ("csv", "json", "toml")} == {
        (("007", "bond"), ("*", ""))
    }
    (tmp_path / "bad.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="no table of class names"):
        class_map.read(tmp_path / "bad.json")


def test_classes_that_are_not_the_competitions_are_refused(workspace):
    source = torch_legacy(workspace / "m.onnx")
    with pytest.raises(CardError, match="says 'wasp' and lacks 'bee'"):
        adopt(source, asked(classes=("ant", "wasp", "cat")), Competition.read(workspace))
    done = adopt(source, asked(classes=("ant", "wasp", "cat"), mapping={"wasp": "bee"}), Competition.read(workspace))
    assert set(done.card.outputs[0].classes) == set(CLASSES)


def test_class_names_from_files(tmp_path, workspace):
    (tmp_path / "c.txt").write_text("ant\nbee\n\ncat\n")
    (tmp_path / "c.json").write_text(json.dumps({"1": "bee", "0": "ant", "10": "cat"}))
    (tmp_path / "l.json").write_text('["ant", "bee", "cat"]')
    said = [adopting.class_names(str(tmp_path / name)) for name in ("c.txt", "c.json", "l.json")]
    assert said == [CLASSES] * 3
    assert adopting.class_names("ant, bee,cat") == CLASSES
    assert adopting.class_names("workspace", Competition.read(workspace)) == CLASSES
    assert adopting.class_names("imagenet")[:2] == ("n01440764", "n01443537")
    (tmp_path / "bad.json").write_text("[1.5]")
    with pytest.raises(CardError, match="no class names"):
        adopting.class_names(str(tmp_path / "bad.json"))


def test_an_adopted_model_takes_part_beside_ours(folds, workspace):
    from tests.requested import ensemble

    competition = Competition.read(workspace)
    adopt(keras_like(workspace / "m.onnx"), asked(), competition)
    adopt(fixed_reshape(workspace / "f.onnx", 1, mixing=True), asked(member="slow"), competition)
    made = ensemble(competition, sorted((workspace / "folds").glob("*.onnx")), tta="hflip")
    assert {model["member"] for model in made.meta["models"]} == {"tiny", "theirs", "slow"}
    assert card().mean == MEAN


def test_the_command_reads_what_it_is_told_and_says_what_it_found(workspace, pixels):
    from click.testing import CliRunner

    from toolkit.cli import cli

    torch_legacy(workspace / "m.onnx", model=network(0, 4), dynamic=False)
    (workspace / "map.csv").write_text("from,to\nwasp,\n")
    mean, std = ("127.5", "102", "76.5"), ("51", "76.5", "63.75")
    said = ["--classes", "ant,bee,wasp,cat", "--class-map", "map.csv", "--range", "0..255", "--member", "told", "--fold", "1"]
    asked = ["adopt", "m.onnx", *said, "--size", "32x32", "--mean", *mean, "--std", *std]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 0, done.output
    for words in (
        "told.fold1, split",
        "Inside    mean 0.5 0.4 0.3",
        "images of fold 1",
        "gives logits",
        "folds/told.fold1.onnx",
    ):
        assert words in done.output, words
    raw = theirs(workspace / "m.onnx", pixels)
    np.testing.assert_allclose(
        ours(workspace / "folds" / "told.fold1.onnx", pixels), softmax(raw[:, [0, 1, 3]], axis=1), atol=1e-5
    )
    again = CliRunner().invoke(cli, asked)
    assert (again.exit_code, "--force" in again.output) == (1, True)
    wrong = CliRunner().invoke(cli, ["adopt", "m.onnx", "--classes", "a", "--size", "big"])
    assert (wrong.exit_code, "is no size" in wrong.output) == (2, True)
