"""Devices and precisions: OpenVINO, bf16, int8 and fp16 beside onnxruntime's fp32; memory that runs out; captured graphs."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from tests.conftest import card, draw, network
from toolkit.errors import DeviceError, ModelError
from toolkit.models.export import export
from toolkit.runtime import devices, host, int8, onnxruntime_session
from toolkit.runtime.devices import PRECISIONS, PROVIDERS, check_precision, choose_device, engine_tag
from toolkit.runtime.graphs import onnx_file
from toolkit.runtime.graphs.float16 import to_fp16
from toolkit.runtime.session import open_session

RNG = np.random.default_rng(0)
PIXELS = np.stack(
    [np.asarray(draw(RNG, i % 3, 32, 32)).transpose(2, 0, 1) for i in range(60)]
).copy()  # uint8 (60, 3, 32, 32), three classes that the exports tell apart


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """Two networks that share nothing, two with one backbone, as digest → file."""
    import torch

    root = tmp_path_factory.mktemp("precision")
    found = {}
    for number in range(4):
        model = network(min(2, number))
        if number == 3:
            torch.manual_seed(33)
            torch.nn.init.normal_(model[-1].weight, std=0.5)
        path = root / f"m.fold{number}.onnx"
        export(model, card("m", number), path, samples=PIXELS)
        found[onnx_file.read(path).digest] = path
    return found


def bare(path, pixels=PIXELS):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": pixels})[0]


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_openvino_gives_what_onnxruntime_gives(folds):
    session = open_session(folds, device="openvino")
    assert (session.device, session.engine) == ("openvino", engine_tag("openvino"))
    found = session.run(session.place(PIXELS[:21]), "id")
    for digest, path in folds.items():
        np.testing.assert_allclose(found[digest], bare(path, PIXELS[:21]), atol=2e-5)
    assert [len(unit.heads) for unit in session.units] == [1, 1, 2]  # the shared backbone runs once
    again = session.run(PIXELS[20:21], "id", [next(iter(folds))])
    assert [again[d].tobytes() for d in again] == [found[d][20:].tobytes() for d in again]


def test_openvino_rounds_in_bf16_only_when_asked(folds):
    digest, path = next(iter(folds.items()))
    if "BF16" not in __import__("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(DeviceError, match="bfloat16"):
            open_session({digest: path}, device="openvino", precision="bf16")
        return
    ways = {p: open_session({digest: path}, device="openvino", precision=p) for p in ("fp32", "bf16")}
    gaps = {p: np.abs(softmax(s.run(PIXELS, "id")[digest]) - softmax(bare(path))).max() for p, s in ways.items()}
    assert gaps["fp32"] < 1e-5
    assert 1e-5 < gaps["bf16"] < 0.1


def test_a_runtime_that_computes_otherwise_than_asked_is_caught(folds, monkeypatch):
    monkeypatch.setitem(PROVIDERS, "openvino", devices.Provider("", {}, 8, {"bf16": {"INFERENCE_PRECISION_HINT": "f32"}}))
    with pytest.raises(DeviceError, match=r"bf16 was asked for.*f32|bfloat16 instructions"):
        open_session(folds, device="openvino", precision="bf16")


def test_openvino_that_is_not_installed_says_how_to_get_it(folds, monkeypatch):
    def missing(name):
        raise devices.PackageNotFoundError(name)

    monkeypatch.setattr(devices, "version", missing)
    with pytest.raises(DeviceError, match="not installed") as caught:
        open_session(folds, device="openvino")
    assert "openvino" in caught.value.hint


def test_a_model_openvino_refuses_is_named(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no")
    with pytest.raises(ModelError, match=r"x\.onnx"):
        open_session({"x": tmp_path / "x.onnx"}, device="openvino")


def test_every_precision_has_a_device_and_others_say_which():
    for precision in PRECISIONS:
        able = [name for name, provider in PROVIDERS.items() if precision in provider.precisions]
        assert able
        for name in set(PROVIDERS) - set(able):
            with pytest.raises(DeviceError) as caught:
                check_precision(name, precision)
            assert able[0] in caught.value.hint
    with pytest.raises(DeviceError, match="fp8"):
        check_precision("cpu", "fp8")
    assert choose_device("openvino") == "openvino"


def test_int8_keeps_the_answers_and_shrinks_the_file(folds, tmp_path):
    digest, path = next(iter(folds.items()))
    target = tmp_path / "q.onnx"
    change = int8.quantise(path, target, PIXELS)
    session = open_session({digest: target}, device="cpu", precision="int8")
    ours, theirs = session.run(PIXELS, "id")[digest], bare(path)
    assert change == pytest.approx(np.abs(ours - theirs).mean() / theirs.std(), rel=0.2)
    assert 0 < change < 0.1
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() > 0.95
    assert int8.whole(target)
    whole = target.read_bytes()
    for damaged in (whole[:-1], whole[:-24], whole[:5000] + b"9" + whole[5001:]):
        target.write_bytes(damaged)
        assert not int8.whole(target)
        assert target.with_name("q.onnx.damaged").read_bytes() == damaged
        assert not int8.whole(target)
    target.write_bytes(whole)
    operators = [node.op_type for node in onnx_file.load(target).graph.node]
    assert operators.count("QuantizeLinear") > 2
    first = int8.quantise(path, tmp_path / "again.onnx", PIXELS)
    assert first == change
    assert (tmp_path / "again.onnx").read_bytes() == target.read_bytes()


def test_the_shift_of_rounded_weights_is_what_rounding_does_to_the_mean(folds, tmp_path):
    """Against a run of the graph with its weights rounded: the mean of every channel moves by what is corrected."""
    from onnx import numpy_helper

    model = int8._prepared(next(iter(folds.values())), tmp_path / "plain.onnx")
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    shift = int8._shifts(model, PIXELS)[node.name]
    before = int8._channel_means(model, [node.output[0]], PIXELS)[node.output[0]]
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    values = numpy_helper.to_array(weight)
    step = np.abs(values).reshape(len(values), -1).max(axis=1)[:, None, None, None] / 127
    weight.CopyFrom(numpy_helper.from_array((np.round(values / step) * step).astype(np.float32), weight.name))
    after = int8._channel_means(model, [node.output[0]], PIXELS)[node.output[0]]
    # the border sees zeros, which the shift does not know of
    np.testing.assert_allclose(shift, before - after, atol=0.1 * np.abs(before - after).max() + 1e-6)
    assert np.abs(before - after).max() > 1e-4


def test_a_model_that_cannot_be_quantised_is_named(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no")
    with pytest.raises(ModelError, match=r"x\.onnx"):
        int8.quantise(tmp_path / "x.onnx", tmp_path / "q.onnx", PIXELS)
    assert not (tmp_path / "q.onnx").exists()


def test_fp16_keeps_types_outside_and_halves_within(folds):
    from onnx import TensorProto

    path = next(iter(folds.values()))
    half = to_fp16(onnx_file.load(path))
    assert half.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert half.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    weights = {t.name: t.data_type for t in half.graph.initializer}
    convs = [node for node in half.graph.node if node.op_type == "Conv"]
    assert {weights[node.input[1]] for node in convs} == {TensorProto.FLOAT16}
    first = next(i for i, node in enumerate(half.graph.node) if node.op_type == "Conv")
    before = {name for node in half.graph.node[:first] for name in node.input}
    assert all(kind == TensorProto.FLOAT for name, kind in weights.items() if name in before)  # the normalisation
    gap = np.abs(softmax(bare(half.SerializeToString())) - softmax(bare(path))).max()
    assert 0 < gap < 0.01


class Scarce:
    """A net that has memory for so many images at once."""

    def __init__(self, net, limit, words="Failed to allocate memory for requested buffer of size 123"):
        self.net, self.limit, self.words, self.sizes = net, limit, words, []

    def run(self, outputs, feeds):
        images = next(iter(feeds.values()))
        self.sizes.append(len(images))
        if len(images) > self.limit:
            raise RuntimeError(self.words)
        return self.net.run(outputs, feeds)

    def get_inputs(self):
        return self.net.get_inputs()


def scarce(folds, limit, **words):
    digest, path = next(iter(folds.items()))
    session = open_session({digest: path}, device="cpu")
    (unit,) = session.units
    net = Scarce(unit.heads[digest], limit, **words)
    session.units = [host.Unit(None, (), {digest: net})]
    return session, net, digest, path


@pytest.mark.parametrize("words", ["Failed to allocate memory for requested buffer", "std::bad_alloc", "CUDA out of memory."])
def test_memory_that_runs_out_halves_the_batch_and_goes_on(folds, words):
    session, net, digest, path = scarce(folds, 3, words=words)
    found = session.run(PIXELS[:21], "id")[digest]
    np.testing.assert_allclose(found, bare(path, PIXELS[:21]), atol=1e-5)
    assert session.batch == 2
    assert set(net.sizes) == {8, 4, 2}
    net.sizes.clear()
    session.run(PIXELS[:5], "hflip")  # it does not try the large ones again, and fills the last batch up
    assert set(net.sizes) == {2}


def test_memory_for_no_image_at_all_is_an_error(folds):
    session, *_ = scarce(folds, 0)
    with pytest.raises(DeviceError, match="one image at a time"):
        session.run(PIXELS, "id")
    assert session.batch == 1


def test_another_failure_is_no_lack_of_memory(folds):
    session, net, *_ = scarce(folds, 0, words="Non-zero status code returned while running Conv node")
    with pytest.raises(ModelError, match=r"fold0\.onnx.*Conv node"):
        session.run(PIXELS[:8], "id")
    assert net.sizes == [8]


def test_openvino_compiles_again_for_the_smaller_batch(folds):
    digest, path = next(iter(folds.items()))
    session = open_session({digest: path}, device="openvino")
    (unit,) = session.units
    session.units = [host.Unit(None, (), {digest: Scarce(unit.heads[digest], 4)})]
    found = session.run(PIXELS[:21], "id")[digest]
    assert session.batch == 4
    np.testing.assert_allclose(found, bare(path, PIXELS[:21]), atol=2e-5)


@pytest.fixture
def bound(folds, monkeypatch):
    """The GPU's code on main memory."""
    monkeypatch.setitem(PROVIDERS, "bound", PROVIDERS["cpu"])
    return onnxruntime_session.Gpu(folds, "bound", 8, memory="cpu")


def test_the_gpus_code_halves_its_batch_too(bound, folds, monkeypatch):
    run, sizes = onnxruntime_session._Bound.run, []

    def scarce(self):
        (rows,) = {len(value) for value in self._inputs.values()}
        sizes.append(rows)
        if rows > 2:
            raise RuntimeError("CUDA failure 2: out of memory")
        return run(self)

    monkeypatch.setattr(onnxruntime_session._Bound, "run", scarce)
    found = bound.run(bound.place(PIXELS[:21]), "id")
    assert bound.batch == 2
    assert set(sizes) == {8, 4, 2}
    for digest, path in folds.items():
        np.testing.assert_allclose(found[digest], bare(path, PIXELS[:21]), atol=1e-5)


class Replayed:
    """Stands for a session with a captured graph: the real one, or one that goes on replaying its first results."""

    def __init__(self, session, *, stale):
        self.session, self.stale, self.runs = session, stale, 0

    def io_binding(self):
        return self.session.io_binding()

    def run_with_iobinding(self, binding):
        self.runs += 1
        if self.runs == 1 or not self.stale:
            self.session.run_with_iobinding(binding)


@pytest.mark.parametrize("stale", [False, True])
def test_a_captured_graph_is_used_only_if_it_computes(bound, folds, monkeypatch, stale):
    made = []

    def captured(net):
        made.append(Replayed(net.session, stale=stale))
        return made[-1]

    monkeypatch.setattr(onnxruntime_session.Net, "captured", captured)
    found = bound.run(bound.place(PIXELS[:21]), "hflip")
    for digest, path in folds.items():
        np.testing.assert_allclose(found[digest], bare(path, PIXELS[:21, :, :, ::-1].copy()), atol=1e-5)
    assert made
    assert all(one.runs == (3 if stale else 6) for one in made)  # three to prove itself, then three batches


def test_a_session_that_cannot_capture_stays_plain(folds):
    def opener(extra):
        if extra:
            raise ModelError("This session cannot use the graph capture feature")
        return bare_session

    bare_session = ort.InferenceSession(next(iter(folds.values())), providers=["CPUExecutionProvider"])
    assert onnxruntime_session.Net(opener, capturable=True).captured() is None
    assert onnxruntime_session.Net(opener, capturable=False).captured() is None
    assert onnxruntime_session.Net(lambda extra: extra, capturable=True).captured() == {"enable_cuda_graph": "1"}


@pytest.mark.gpu
def test_cuda_in_half_precision_gives_nearly_what_the_cpu_gives(folds):
    session = open_session(folds, device="cuda", precision="fp16")
    found = session.run(session.place(PIXELS), "id")
    for digest, path in folds.items():
        assert np.abs(softmax(found[digest]) - softmax(bare(path))).max() < 0.02


def test_the_first_use_of_openvino_is_one_threads_alone(monkeypatch):
    """Two threads that both come first wait for each other for ever inside its bindings, now and then."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier, BrokenBarrierError

    from toolkit.runtime import openvino_session as bindings

    monkeypatch.setattr(bindings, "_done", set())
    meeting = Barrier(2)

    def met(_):
        with bindings._alone_at_first("infer"):  # no session tells who else is inside
            try:
                meeting.wait(0.2)
            except BrokenBarrierError:
                meeting.reset()
                return False
            return True

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(met, range(2))) == [False, False]
        assert list(pool.map(met, range(2))) == [True, True]
