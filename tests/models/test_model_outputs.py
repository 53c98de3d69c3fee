"""What models give in place of logits: every kind is told apart, adopted as what it is or refused by name, and never trained on."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from scipy.special import expit, log_softmax, softmax
from torch import nn

from tests.conftest import CLASSES
from toolkit.core import raw_outputs
from toolkit.core.activations import probabilities
from toolkit.core.cards import Preprocess
from toolkit.errors import ModelError, ToolkitError
from toolkit.images import render
from toolkit.models import network_outputs, networks
from toolkit.models.adopt import adopt
from toolkit.models.foreign_model import Asked
from toolkit.runtime import session as sessions
from toolkit.runtime.graphs import onnx_file
from toolkit.workspace.competition import Competition

BINARY = ("no", "yes")
WEIGHTS = np.random.default_rng(4).normal(0, 60, (3, 5)).astype(np.float32)
BIAS = (np.array([0.4, -0.3, 0.1, -0.2, 0.2]) - 0.5 * WEIGHTS.sum(axis=0)).astype(np.float32)  # pictures are grey on average


def node(kind, given, output, **attributes):
    return helper.make_node(kind, [given] if isinstance(given, str) else given, [output], **attributes)


SOFT = node("Softmax", "z", "p", axis=1)
# the nodes from logits "z" (N, width) to the output "y": what people's exports end in
ENDS = {
    "logits": [node("Identity", "z", "y")],
    "(N, C, 1, 1)": [node("Unsqueeze", ["z", "two_axes"], "y")],
    "probabilities": [node("Softmax", "z", "y", axis=1)],
    "softmax with temperature": [node("Div", ["z", "three"], "t"), node("Softmax", "t", "y", axis=1)],
    "softmax by hand": [
        node("Exp", "z", "e"), helper.make_node("ReduceSum", ["e", "one_axis"], ["s"], keepdims=1), node("Div", ["e", "s"], "y"),
    ],
    "percent": [SOFT, node("Mul", ["p", "hundred"], "y")],
    "log-softmax": [node("LogSoftmax", "z", "y", axis=1)],
    "sigmoids": [node("Sigmoid", "z", "y")],
    "sums to 255": [SOFT, node("Mul", ["p", "levels"], "y")],
    "percent of each": [node("Sigmoid", "z", "s"), node("Mul", ["s", "hundred"], "y")],
    "transposed": [node("Transpose", "z", "y", perm=[1, 0])],
    "labels": [helper.make_node("ArgMax", ["z"], ["y"], axis=1, keepdims=0)],
    "labels as floats": [helper.make_node("ArgMax", ["z"], ["l"], axis=1, keepdims=1), node("Cast", "l", "y", to=1)],
    "one-hot": [
        helper.make_node("ReduceMax", ["z"], ["m"], axes=[1], keepdims=1), node("Equal", ["z", "m"], "q"),
        node("Cast", "q", "y", to=1),
    ],
    "a map for each class": [node("Expand", ["u", "map"], "y")],
    "NaN": [node("Neg", "zz", "n"), node("Sqrt", "n", "y")],
    "constant": [node("Mul", ["z", "zero"], "c"), node("Add", ["c", "b"], "y")],
    "softmax over the images": [node("Softmax", "z", "y", axis=0)],
    "less the mean of the batch": [
        helper.make_node("ReduceMean", ["z"], ["m"], axes=[0], keepdims=1), node("Sub", ["z", "m"], "y"),
    ],
    "BatchNorm in training": [
        helper.make_node("BatchNormalization", ["z", "ones", "zeros", "zeros", "ones"], ["y", "mo", "vo"], training_mode=1),
    ],
    "Dropout in training": [node("Dropout", ["z", "half", "true"], "y")],
}  # fmt: skip


def graph(path, kind, width=3, *, also=(), batch="N"):
    """A classifier of mean colours that ends in a kind of output."""
    constants = {
        "W": WEIGHTS[:, :width], "b": BIAS[:width], "two_axes": np.array([2, 3]), "one_axis": np.array([1]),
        "three": np.float32(3), "hundred": np.float32(100), "levels": np.float32(255), "zero": np.float32(0),
        "ones": np.ones(width, np.float32), "zeros": np.zeros(width, np.float32), "half": np.float32(0.5),
        "true": np.array(True), "map": np.array([1, 1, 4, 5]),
    }  # fmt: skip
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m0"], axes=[2, 3], keepdims=0),
        node("MatMul", ["m0", "W"], "z0"),
        node("Add", ["z0", "b"], "z"),
        *([node("Unsqueeze", ["z", "two_axes"], "u")] if kind == "a map for each class" else []),
        *([node("Mul", ["z", "z"], "zz")] if kind == "NaN" else []),
        *ENDS[kind],
    ]
    element = TensorProto.INT64 if kind == "labels" else TensorProto.FLOAT
    outputs = [helper.make_tensor_value_info("y", element, None)]
    outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, size]) for name, size in also]
    made = helper.make_graph(
        nodes, "theirs", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 32, 32])], outputs,
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 15)], ir_version=8), path)
    return path


def asked(**changes):
    return Asked(**({"classes": CLASSES, "member": "theirs", "mean": (0.0,) * 3, "std": (1.0,) * 3} | changes))


@pytest.fixture(scope="module")
def images(workspace_once):
    """Pixels of the workspace's own files."""
    return np.stack([render.load(path, Preprocess((32, 32))) for path in sorted((workspace_once / "train").glob("*.png"))])


def logits_of(images, width=3):
    """The truth, computed aside."""
    return (images / 255).mean(axis=(2, 3)) @ WEIGHTS[:, :width].astype(np.float64) + BIAS[:width]


def ours(path, pixels):
    export = onnx_file.read(path)
    session = sessions.open_session({export.digest: path}, device="cpu", batch=4)
    return probabilities(session.run(session.place(pixels), "id")[export.digest], export.card.outputs[0])


def shares(z):
    p = expit(z)
    return p / p.sum(axis=1, keepdims=True)


# kind: what is said of it, and the probabilities that come out of the workspace's images; or what is refused, in words
ADOPTED = {
    "logits": ({}, lambda z: softmax(z, axis=1), "gives logits"),
    "(N, C, 1, 1)": ({}, lambda z: softmax(z, axis=1), "gives logits"),
    "probabilities": ({}, lambda z: softmax(z, axis=1), "gives probabilities"),
    "softmax with temperature": ({}, lambda z: softmax(z / 3, axis=1), "gives probabilities"),
    "softmax by hand": ({}, lambda z: softmax(z, axis=1), "gives probabilities"),
    "percent": ({}, lambda z: softmax(z, axis=1), "gives percent"),
    "log-softmax": ({}, lambda z: softmax(z, axis=1), "gives log-probabilities"),
    "sigmoids": ({"output": "sigmoid"}, shares, ""),
    "sums to 255": ({"output": "sigmoid"}, lambda z: softmax(z, axis=1), ""),
    "percent of each": ({"output": "sigmoid"}, shares, ""),
    "one-hot": ({}, lambda z: np.eye(3)[z.argmax(axis=1)], "every row is one 1 and else 0"),
    "constant": ({}, lambda z: softmax(np.tile(BIAS[:3], (len(z), 1)), axis=1), "the same numbers for all of"),
}
REFUSED = {
    "sigmoids": "a sigmoid for each class, where only one is right",
    "sums to 255": "each row sums to the same number, which is neither 1 nor 100",
    "transposed": "3 × 1 for 1 image: classes × images, transposed",
    "labels": "gives labels .int64",
    "labels as floats": "gives 1 number per image .* for 3 classes: a label",
    "a map for each class": r"gives 3 × 4 × 5 numbers per image: a map for each class",
    "NaN": "gives NaN or infinite numbers for",
    "softmax over the images": "its columns sum to 1 over the images of a batch",
    "less the mean of the batch": "depend on the other images of its batch",
    "BatchNorm in training": "its BatchNormalization acts as in training mode",
    "Dropout in training": "its Dropout acts as in training mode",
}


@pytest.mark.parametrize("kind", ADOPTED)
def test_what_is_certain_is_adopted_as_what_it_is(kind, workspace, images):
    said, truth, note = ADOPTED[kind]
    done = adopt(graph(workspace / "m.onnx", kind), asked(**said), Competition.read(workspace))
    np.testing.assert_allclose(ours(done.path, images), truth(logits_of(images)), atol=1e-5)
    assert note in " ".join(done.notes)
    if done.card.outputs[0].activation == "identity":  # the graph itself gives what its card says
        session = ort.InferenceSession(done.path, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: images})[0].sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_score_or_not_certain_is_refused_by_name(kind, workspace):
    with pytest.raises(ToolkitError, match=REFUSED[kind]) as caught:
        adopt(graph(workspace / "m.onnx", kind), asked(), Competition.read(workspace))
    assert caught.value.hint
    assert not (workspace / "folds").exists()


def test_every_kind_is_tried():
    assert set(ADOPTED) | set(REFUSED) == set(ENDS)


@pytest.mark.parametrize("batch", [3, 4])
def test_a_fixed_batch_hides_nothing(batch, workspace):
    for kind, words in (("transposed", "transposed"), ("less the mean of the batch", "other images of its batch")):
        with pytest.raises(ModelError, match=words):
            adopt(graph(workspace / "m.onnx", kind, batch=batch), asked(), Competition.read(workspace))
    with pytest.raises(ModelError, match=r"columns sum to 1|other images of its batch"):
        adopt(graph(workspace / "m.onnx", "softmax over the images", batch=batch), asked(), Competition.read(workspace))
    adopt(graph(workspace / "m.onnx", "probabilities", batch=batch), asked(), Competition.read(workspace))


def test_two_classes_in_one_column_or_in_two(tmp_path, images):
    def path(name):
        return tmp_path / name

    two, one = logits_of(images, 2), logits_of(images, 1)[:, 0]
    pair = {"classes": BINARY}
    done = adopt(graph(path("two.onnx"), "logits", 2), asked(**pair), output=path("a.onnx"))
    np.testing.assert_allclose(ours(done.path, images), softmax(two, axis=1), atol=1e-5)
    done = adopt(graph(path("one.onnx"), "logits", 1), asked(**pair), output=path("b.onnx"))
    np.testing.assert_allclose(ours(done.path, images)[:, 1], expit(one), atol=1e-5)
    source = graph(path("p.onnx"), "sigmoids", 1)
    with pytest.raises(ModelError, match="logits or probabilities"):
        adopt(source, asked(**pair), output=path("x.onnx"))
    with pytest.raises(ModelError, match="no logits but sigmoid"):
        adopt(source, asked(**pair, output="logits"), output=path("x.onnx"))
    done = adopt(source, asked(**pair, output="probabilities"), output=path("c.onnx"))
    np.testing.assert_allclose(ours(done.path, images)[:, 1], expit(one), atol=1e-5)
    hundred = graph(path("h.onnx"), "percent of each", 1)
    done = adopt(hundred, asked(**pair, output="percent"), output=path("d.onnx"))
    np.testing.assert_allclose(ours(done.path, images)[:, 1], expit(one), atol=1e-5)
    several = graph(path("l.onnx"), "percent of each")
    done = adopt(several, asked(output="percent", multilabel=True), output=path("e.onnx"))
    np.testing.assert_allclose(ours(done.path, images), expit(logits_of(images)), atol=1e-5)
    with pytest.raises(ModelError, match="a sigmoid for each class, where only one is right"):
        adopt(graph(path("s.onnx"), "sigmoids", 2), asked(**pair), output=path("x.onnx"))
    with pytest.raises(ToolkitError, match="a yes or no in two columns, and one is named"):
        adopt(graph(path("y.onnx"), "logits", 2), asked(classes=("yes",), multilabel=True), output=path("x.onnx"))
    with pytest.raises(ModelError, match="as if one class were right, not several"):
        adopt(graph(path("m.onnx"), "probabilities"), asked(multilabel=True), output=path("x.onnx"))


def test_several_outputs_are_listed_with_the_one_that_fits(workspace):
    source = graph(workspace / "m.onnx", "probabilities", 4, also=[("z", 4), ("m0", 3)])
    with pytest.raises(ModelError, match=r"3 outputs: 'y', 'z' \(N × 4\), 'm0' \(N × 3\); .* 3 classes: 'm0'"):
        adopt(source, asked(), Competition.read(workspace))


@pytest.mark.parametrize(("told", "kind"), [("logits", "percent"), ("percent", "probabilities"), ("probabilities", "percent")])
def test_what_was_said_wrongly_is_refused(told, kind, tmp_path):
    with pytest.raises(ModelError, match=f"its numbers are no {told}"):
        adopt(graph(tmp_path / "m.onnx", kind), asked(output=told), output=tmp_path / "x.onnx")
    with pytest.raises(ModelError, match="its numbers are no logits but sigmoid"):
        adopt(graph(tmp_path / "s.onnx", "sigmoids"), asked(output="logits"), output=tmp_path / "x.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["torchvision/squeezenet1_1", "torchvision/shufflenet_v2_x0_5", "torchvision/mnasnet0_5", "resnet10t", "ghostnet_100",
             "mobilenetv3_small_050"],
)  # fmt: skip
@pytest.mark.parametrize("soft", [False, True], ids=["logits", "softmax"])
def test_models_that_packages_have_give_what_they_give_by_themselves(name, soft, tmp_path):
    import warnings

    torch.manual_seed(0)
    model = networks.create({"model_name": name, "num_classes": 10}).eval()
    model = nn.Sequential(model, nn.Softmax(1)) if soft else model
    source, classes = tmp_path / "m.onnx", tuple(f"c{k}" for k in range(10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"x": {0: "n"}, "y": {0: "n"}}
        said = {"dynamo": False, "opset_version": 17, "input_names": ["x"], "output_names": ["y"], "dynamic_axes": axes}
        torch.onnx.export(model, (torch.randn(1, 3, 64, 64),), source, **said)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    done = adopt(source, asked(classes=classes, mean=mean, std=std, size=(64, 64)), output=tmp_path / "out.onnx")
    pixels = np.random.default_rng(1).integers(0, 256, (6, 3, 64, 64), dtype=np.uint8)
    x = (pixels / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    raw = np.concatenate([session.run(None, {"x": x[i : i + 1].astype(np.float32)})[0] for i in range(6)]).astype(np.float64)
    assert done.card.outputs[0].activation == ("identity" if soft else "softmax")
    np.testing.assert_allclose(ours(done.path, pixels), raw if soft else softmax(raw, axis=1), atol=1e-4)


# --- networks, before they are trained --------------------------------------------------------------------------------


class Calls(nn.Module):
    """A network, and a function of what it gives and of the network."""

    def __init__(self, function, width=3):
        super().__init__()
        self.function = function
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, width)
        self.norm = nn.BatchNorm1d(width, track_running_stats=False)
        self.hidden = [nn.BatchNorm1d(width)]  # eval() does not get there

    def forward(self, images):
        return self.function(self.head(self.body(images)), self)


def trained_on(function, classes=3, width=3, exclusive=True, seed=0):
    torch.manual_seed(seed)
    images = torch.randn(network_outputs.asked_of(classes), 3, 16, 16)
    network_outputs.check(Calls(function, width), images, classes, where="net", exclusive=exclusive)


TRAINED = {
    "softmax": (lambda z, _: z.softmax(1), "net gives probabilities, as a softmax does"),
    "softmax with temperature": (lambda z, _: (z / 5).softmax(1), "net gives probabilities"),
    "softmax by hand": (lambda z, _: z.exp() / z.exp().sum(1, keepdim=True), "net gives probabilities"),
    "softmax in eval mode": (lambda z, net: z if net.training else z.softmax(1), "net gives probabilities"),
    "softmax in training mode": (
        lambda z, net: z.softmax(1) if net.training else z,
        "net in training mode gives probabilities",
    ),
    "percent": (lambda z, _: 100 * z.softmax(1), "rows sum to 100 to 100"),
    "sums to 255": (lambda z, _: 255 * z.softmax(1), "rows sum to 255 to 255"),
    "sigmoids": (lambda z, _: z.sigmoid(), "the outcome of a sigmoid"),
    "sigmoids of one column": (lambda z, _: z.sigmoid()[:, :1], "1 number per image .* for 3 classes: one value"),
    "labels": (lambda z, _: z.argmax(1), "gives labels .int64"),
    "labels as floats": (lambda z, _: z.argmax(1, keepdim=True).float(), "for 3 classes: a label"),
    "transposed": (lambda z, _: z.T, "3 × 5 for 5 images: classes × images, transposed"),
    "(N, C, 1, 1)": (lambda z, _: z[:, :, None, None], "training wants rows"),
    "a map": (lambda z, _: z[:, :, None, None].expand(-1, -1, 4, 4), "a map for each class"),
    "too many": (lambda z, _: torch.cat([z, z], 1), "gives 6 numbers per image .* for 3 classes"),
    "no rows": (lambda z, _: z.mean(), "no row for each"),
    "a tuple": (
        lambda z, _: (z, z.new_zeros(5, 7)),
        r"several outputs, a tuple: \[0\] .5, 3., \[1\] .5, 7.; the logits may be \[0\]",
    ),
    "a dictionary": (lambda z, _: {"features": z[:, :2], "logits": z}, "the logits may be 'logits'"),
    "an aux head": (lambda z, net: (z, z) if net.training else z, "net in training mode gives several outputs"),
    "nothing": (lambda *_: None, "gives NoneType, no tensor"),
    "NaN": (lambda z, _: (-z.square()).sqrt(), "gives NaN or infinite numbers for 5 of 5 images"),
    "softmax over the images": (lambda z, _: z.softmax(0), "its columns sum to 1 over the images"),
    "no running statistics": (lambda z, net: net.norm(z), "in eval mode the numbers of an image depend on the other images"),
    "a list of layers": (lambda z, net: net.hidden[0](z), "in eval mode the numbers of an image depend on the other images"),
    "dropout in eval mode": (lambda z, _: nn.functional.dropout(z), "other numbers for the same images each time"),
}


@pytest.mark.parametrize("kind", TRAINED)
def test_networks_that_give_no_logits_are_refused_before_they_are_trained(kind):
    function, words = TRAINED[kind]
    with pytest.raises(ModelError, match=words) as caught:
        trained_on(function)
    assert caught.value.hint


def test_two_classes_want_two_columns():
    with pytest.raises(ModelError, match="one logit for two"):
        trained_on(lambda z, _: z, classes=2, width=1)
    trained_on(lambda z, _: z, classes=2, width=2)


def test_a_softmax_where_several_classes_may_hold_is_refused():
    for end in (lambda z, _: z.softmax(1), lambda z, _: z.sigmoid()):
        with pytest.raises(ModelError, match="where training wants logits"):
            trained_on(end, exclusive=False)


HONEST = {
    "logits": lambda z, _: z,
    "log-softmax": lambda z, _: z.log_softmax(1),
    "nearly constant, from 0 to 1": lambda z, _: z * 1e-4 + torch.tensor([0.2, 0.3, 0.4]),
    "all zero": lambda z, _: z * 0,
    "constant": lambda z, _: z * 0 + torch.tensor([0.1, 0.7, 0.9]),
    "the priors": lambda z, _: z * 0 + torch.tensor([0.1, 0.7, 0.2]).log(),
    "capped": lambda z, _: 30 * torch.tanh(z / 30),
    "cosines": lambda z, _: nn.functional.normalize(z, dim=1),
    "above zero": lambda z, _: nn.functional.softplus(z),
}


@pytest.mark.parametrize("kind", HONEST)
def test_honest_logits_are_never_refused(kind):
    for seed in range(6):
        for exclusive in (True, False):
            trained_on(HONEST[kind], exclusive=exclusive, seed=seed)


def test_untrained_networks_of_many_seeds_are_logits():
    rng = np.random.default_rng(0)
    for classes in (2, 3, 10):
        for _ in range(300):  # as torch draws a last layer, on features that hardly differ
            features = np.abs(rng.normal(1, 1e-3, (5, 1)) * rng.normal(0, 1, (1, 16)))
            z = features @ rng.uniform(-0.25, 0.25, (16, classes)) + rng.uniform(-0.25, 0.25, classes)
            look = raw_outputs.look(z, exclusive=True, end="linear")
            assert look.kind == "logits", z


def test_a_check_changes_nothing_and_draws_nothing():
    model = Calls(lambda z, _: nn.functional.dropout(z, training=_.training)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    network_outputs.check(model, torch.randn(5, 3, 16, 16), 3, where="net")
    drawn = torch.rand(3)
    torch.manual_seed(3)
    torch.randn(5, 3, 16, 16)
    assert torch.equal(drawn, torch.rand(3))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("gives", "function"),
    [("probabilities", lambda z: z.softmax(1)), ("percent", lambda z: 100 * z.softmax(1)), ("sigmoid", torch.sigmoid)],
)
def test_what_a_network_gives_is_undone_by_name(gives, function):
    class Ends(nn.Module):
        def forward(self, z):
            return function(z)

    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 4
    logits = networks.as_logits(Ends(), gives)(z).numpy()
    truth = z.numpy().astype(np.float64)
    expected = truth if gives == "sigmoid" else log_softmax(truth, axis=1)
    np.testing.assert_allclose(logits, expected, atol=2e-4)
    with pytest.raises(ModelError, match="no logits can be made of 'labels'"):
        networks.as_logits(Ends(), "labels")
