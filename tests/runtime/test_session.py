"""Sessions: what onnxruntime gives, whatever the batch; devices that are not there; probabilities from logits."""

from __future__ import annotations

import time

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit, softmax

from toolkit.core.activations import probabilities
from toolkit.core.cards import Output
from toolkit.errors import DeviceError, ModelError
from toolkit.images.tensor_views import apply
from toolkit.images.views import VIEW_SETS
from toolkit.runtime.devices import PROVIDERS, choose_device, engine_tag, gpu_count
from toolkit.runtime.session import FakeSession, open_session

PIXELS = np.random.default_rng(0).integers(0, 256, (21, 3, 32, 32), dtype=np.uint8)
LOGITS = hnp.arrays(np.float32, (4, 3), elements=st.floats(-200, 200, width=32))


@pytest.fixture(scope="module")
def session(exported):
    return open_session({str(i): exported / f"tiny.fold{i}.onnx" for i in range(2)}, device="cpu")


def bare(path, pixels):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": pixels})[0]


@pytest.mark.parametrize("view", VIEW_SETS["d4"])
def test_equals_a_bare_session_on_ttachs_view(session, exported, view):
    import torch

    seen = np.ascontiguousarray(apply(torch.from_numpy(PIXELS), view).numpy())
    found = session.run(session.place(PIXELS), view)
    for i in range(2):
        np.testing.assert_allclose(found[str(i)], bare(exported / f"tiny.fold{i}.onnx", seen), atol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours_to_the_bit(session):
    whole = session.run(session.place(PIXELS), "id")["0"]
    for start, stop in ((0, 1), (3, 10), (20, 21), (0, 20)):
        part = session.run(session.place(PIXELS[start:stop]), "id")["0"]
        assert part.tobytes() == whole[start:stop].tobytes()


def test_some_models_only(session):
    assert list(session.run(session.place(PIXELS), "id", ["1"])) == ["1"]


def test_a_fake_session_counts_its_passes():
    fake = FakeSession({"a": lambda x: x.mean(axis=(2, 3)), "b": lambda x: x[:, :, 0, 0]})
    flipped = fake.run(fake.place(PIXELS), "hflip")["b"]
    np.testing.assert_array_equal(flipped, PIXELS[:, :, 0, -1].astype(np.float32))
    assert fake.passes == 2 * len(PIXELS)


@pytest.mark.skipif(gpu_count() > 0, reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpu_that_is_not_there_is_an_error_within_seconds(exported, device):
    started = time.monotonic()
    with pytest.raises(DeviceError, match=device):
        open_session({"0": exported / "tiny.fold0.onnx"}, device=device)
    assert time.monotonic() - started < 5
    assert choose_device("auto") == "cpu"


@pytest.mark.skipif(gpu_count() > 0, reason="there is a GPU here")
def test_onnxruntimes_silent_fallback_is_caught(exported, monkeypatch):
    monkeypatch.setattr("toolkit.runtime.devices.gpu_count", lambda: 1)  # the driver counts one, the libraries do not load
    with pytest.raises(DeviceError, match="CPUExecutionProvider"):
        open_session({"0": exported / "tiny.fold0.onnx"}, device="cuda")


def test_unknown_devices_list_the_known():
    with pytest.raises(DeviceError) as caught:
        choose_device("abacus")
    assert all(name in caught.value.hint for name in PROVIDERS)


def test_a_model_onnxruntime_refuses_is_named(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no")
    with pytest.raises(ModelError, match=r"x\.onnx"):
        open_session({"x": tmp_path / "x.onnx"}, device="cpu")


def test_the_engine_names_version_and_provider(session):
    assert session.engine == engine_tag("cpu") == f"onnxruntime{ort.__version__}-cpu"


@given(LOGITS)
def test_softmax_and_sigmoid_are_scipys(logits):
    three = ("a", "b", "c")
    x = logits.astype(np.float64)
    np.testing.assert_allclose(probabilities(logits, Output("t", three)), softmax(x, axis=1), atol=1e-15)
    np.testing.assert_allclose(probabilities(logits, Output("t", three, "sigmoid")), expit(x), atol=1e-15)
    one = probabilities(logits, Output("t", ("no", "yes"), "sigmoid", 1, 2))
    np.testing.assert_allclose(one, np.stack([expit(-x[:, 1]), expit(x[:, 1])], axis=1), atol=1e-15)
    np.testing.assert_allclose(probabilities(logits, Output("t", ("a", "b"), start=1)), softmax(x[:, 1:], axis=1), atol=1e-15)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(bad):
    with pytest.raises(ModelError, match="1 row"):
        probabilities(np.array([[bad, 0.0], [0.0, 1.0]]), Output("t", ("a", "b")))


@pytest.mark.gpu
def test_cuda_gives_what_the_cpu_gives(session, exported):
    cuda = open_session({str(i): exported / f"tiny.fold{i}.onnx" for i in range(2)}, device="cuda")
    for view in VIEW_SETS["d4"]:
        ours, theirs = cuda.run(cuda.place(PIXELS), view), session.run(PIXELS, view)
        for digest in theirs:
            np.testing.assert_allclose(ours[digest], theirs[digest], atol=1e-3)
