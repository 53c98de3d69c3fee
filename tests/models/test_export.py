"""Exports: equal to torch on real images, self-contained, reproducible; anything else leaves nothing behind."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.conftest import card, make_workspace, network
from tests.exporter import plain
from toolkit.core.cards import Output
from toolkit.errors import ModelError, ParityError
from toolkit.models import export as exporting
from toolkit.models.export import export
from toolkit.models.export_checkpoint import samples
from toolkit.runtime.graphs import onnx_file
from toolkit.workspace.competition import Competition


@pytest.fixture(scope="module", autouse=True)
def _nothing_remembered():
    with plain():
        yield


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    return samples(Competition.read(make_workspace(tmp_path_factory.mktemp("p") / "w")), card().preprocess)


@pytest.fixture(scope="module")
def made(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("made") / "tiny.fold0.onnx"
    return path, export(network(0), card(), path, samples=pixels)


def test_onnxruntime_gives_what_torch_gives_on_normalised_images(made, pixels):
    path, said = made
    mean = torch.tensor(said.mean).reshape(1, 3, 1, 1)
    std = torch.tensor(said.std).reshape(1, 3, 1, 1)
    with torch.inference_mode():
        expected = network(0)((torch.from_numpy(pixels) / 255 - mean) / std).numpy()
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in (1, 2, 7, 13):
        found = session.run(None, {"images": pixels[:size]})[0]
        np.testing.assert_allclose(found, expected[:size], atol=1e-4 * max(1, np.abs(expected).max()))
    assert said.parity["probability"] <= 1e-5
    assert onnx_file.read(path).card == said


def test_the_file_is_self_contained_and_names_no_machine(made):
    path, _ = made
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (10, 20)
    assert list(path.parent.iterdir()) == [path]
    assert not model.graph.doc_string
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert b"site-packages" not in path.read_bytes()
    assert b".py" not in path.read_bytes()


def test_the_same_model_gives_the_same_digest_and_a_rewritten_card_keeps_it(made, tmp_path, pixels):
    path, _ = made
    again = tmp_path / "again.onnx"
    export(network(0), card(score=0.9), again, samples=pixels)
    first, second = onnx_file.read(path), onnx_file.read(again)
    assert first.digest == second.digest
    assert first.sha256 != second.sha256
    other = tmp_path / "other.onnx"
    export(network(1), card(), other, samples=pixels)
    assert onnx_file.read(other).digest != first.digest


def _drift(model):
    model[1].running_mean += 0.5


def _weights(model):
    model[-1].weight.data[0] += 0.05


def _mode(model):
    model[1].train()
    model[8].train()
    model[1].track_running_stats = False


@pytest.mark.parametrize("spoil", [_drift, _weights, _mode], ids=["batchnorm drift", "other weights", "training mode"])
def test_an_export_that_differs_is_refused_and_leaves_nothing(spoil, tmp_path, pixels, monkeypatch):
    true = exporting._to_onnx

    def spoiled(model, batch, said):
        other = copy.deepcopy(model)
        spoil(other.inner)
        return true(other, batch, said)

    monkeypatch.setattr(exporting, "_to_onnx", spoiled)
    path = tmp_path / "bad.onnx"
    with pytest.raises(ParityError, match="differs from torch") as caught:
        export(network(0), card(), path, samples=pixels)
    assert caught.value.gap > 1e-4
    assert list(tmp_path.iterdir()) == []


def test_a_model_left_in_training_mode_is_exported_in_eval_mode_and_left_alone(tmp_path, pixels, made):
    model = network(0).train()
    before = copy.deepcopy(model.state_dict())
    path = tmp_path / "train.onnx"
    export(model, card(), path, samples=pixels)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert onnx_file.read(path).digest == onnx_file.read(made[0]).digest


def test_a_fixed_batch_is_refused(tmp_path, pixels):
    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network(0)

        def forward(self, x):
            return self.inner(x.reshape(2, 3, 32, 32))

    with pytest.raises(ModelError, match="batch"):
        export(Fixed(), card(), tmp_path / "fixed.onnx", samples=pixels)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("classes", "batch", "words"),
    [
        (("a", "b"), None, "card says 2"),
        (None, np.zeros((4, 3, 16, 16), np.uint8), "parity needs uint8 images"),
        (None, np.zeros((0, 3, 32, 32), np.uint8), "parity needs uint8 images"),
        (None, np.zeros((4, 3, 32, 32), np.float32), "parity needs uint8 images"),
    ],
)
def test_what_does_not_fit_is_said_before_exporting(classes, batch, words, tmp_path, pixels):
    said = card(classes=classes) if classes else card()
    with pytest.raises(ModelError, match=words):
        export(network(0), said, tmp_path / "x.onnx", samples=pixels if batch is None else batch)


def test_nan_weights_are_refused(tmp_path, pixels):
    model = network(0)
    model[-1].bias.data[0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        export(model, card(), tmp_path / "x.onnx", samples=pixels)


@given(
    hnp.arrays(np.float32, (6, 4), elements=st.floats(-8, 8, width=32)),
    hnp.arrays(np.float32, (6, 4), elements=st.floats(-0.5, 0.5, width=32)),
)
def test_a_label_changes_only_where_the_margin_is_within_twice_the_gap(theirs, noise):
    output = Output("label", ("a", "b", "c", "d"))
    gaps = exporting.parity(theirs, theirs + noise, [output])
    p, q = _softmax(theirs), _softmax(theirs + noise)
    best = np.sort(p, axis=1)
    changed = p.argmax(axis=1) != q.argmax(axis=1)
    assert gaps["flips"] == changed.sum()
    assert gaps["probability"] == pytest.approx(np.abs(p - q).max(), abs=1e-12)
    assert (best[changed, -1] - best[changed, -2] <= 2 * gaps["probability"] + 1e-12).all()


def _softmax(logits):
    from scipy.special import softmax

    return softmax(logits.astype(np.float64), axis=1)
