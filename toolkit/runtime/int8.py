"""int8: weights and activations of a graph in 8 bits, calibrated on images, biases corrected, harmful layers left alone."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base import files, sealed
from toolkit.base.arrays import F32, U8
from toolkit.base.quiet import quiet
from toolkit.errors import DataError, ModelError, ToolkitError
from toolkit.runtime.graphs.shared_trunks import HEAVY

BATCH = 8
# How many of the first convolutions stay float32, tried in this order until the logits change little: their outputs are the
# largest and the hardest to hold in 8 bits (efficientnet-lite0: 6 of 49 left alone halve the change in probability).
KEPT = (0, 1, 3, 6, 9, 12)
# The mean change of a logit, in standard deviations of the logits over the images. Labels of calibration images would say less:
# models were trained on them and are surer there than elsewhere.
SMALL = 0.03
FIELD = b"\xc2\x3e" + bytes([sealed.TAIL])  # of ModelProto, number 1000, for the digest: readers pass over it
_POOLING = ("ReduceMean", "GlobalAveragePool", "AveragePool", "Flatten", "Reshape", "Squeeze", "Identity")


def name(digest: str, images: Sequence[bytes]) -> str:
    """What a quantised model is called in the cache: the digest of the model, and of all that its calibration depends on."""
    return f"{digest}-{calibration(images)}.onnx"


def calibration(images: Sequence[bytes]) -> str:
    """Eight hex digits of the calibration images (by their content digests), the method and the version of onnxruntime."""
    state = hashlib.sha256(repr((KEPT, SMALL, _runtime())).encode())
    for digest in images:
        state.update(digest)
    return state.hexdigest()[:8]


def whole(target: Path) -> bool:
    """Whether `quantise` wrote a file here that is as it was; another, also one of before without a digest, is set aside."""
    try:
        carried = sealed.content(files.read(target))[1]
    except FileNotFoundError:
        return False
    except (OSError, DataError) as error:
        sealed.set_aside(target, error, "quantised again")
        return False
    if not carried:
        sealed.set_aside(target, "it has no digest", "quantised again")
    return carried


def quantise(path: Path, target: Path, samples: U8) -> float:
    """Write the export at `path` with 8-bit weights (per channel) and activations to `target`.

    Returns the mean change of a logit over the samples (uint8 (N, 3, H, W)), in standard deviations of the logits.

    Static quantisation by onnxruntime (QDQ, MinMax ranges). By how much rounding its weights shifts the mean output of a
    convolution is added to its bias (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
    Correction", with measured instead of assumed means). The classifier and the pooling before it stay float32: next to nothing
    to compute, and every error there is an error of the answer.

    Raises:
        ModelError: onnxruntime cannot quantise the model.
    """
    try:
        with tempfile.TemporaryDirectory() as folder, quiet("root", "onnxruntime"):
            best = _best(path, Path(folder), samples)
            files.write(target, lambda file: file.write(best[1] + FIELD + sealed.tail(best[1], FIELD)))
    except ToolkitError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise ModelError(
            f"{path} cannot be quantised: {error}",
            hint="Use fp32, bf16 (which OpenVINO computes in) or what is chosen for you.",
            code="precision-device",
        ) from error
    return best[0]


def _best(path: Path, folder: Path, samples: U8) -> tuple[float, bytes]:
    """The first of KEPT with which logits change little, else the one with which they change least."""
    import onnx

    model = _prepared(path, folder / "plain.onnx")
    reference = _logits(model.SerializeToString(), samples)
    shifts = _shifts(model, samples)
    heavy = [place for place, node in enumerate(model.graph.node) if node.op_type in HEAVY]
    best = (float("inf"), b"")
    for kept in KEPT:
        if kept and kept >= len(heavy) // 2:
            break
        alone = _left_alone(model, heavy, kept)
        corrected = onnx.ModelProto()
        corrected.CopyFrom(model)
        _correct(corrected, {name: shift for name, shift in shifts.items() if name not in alone})
        data = _quantised(corrected, folder, alone, samples)
        logits = _logits(data, samples)
        change = float(np.abs(logits - reference).mean() / max(reference.std(), 1e-9)) if np.isfinite(logits).all() else np.inf
        best = min(best, (change, data), key=lambda tried: tried[0])
        if change <= SMALL:
            break
    return best


def _prepared(path: Path, target: Path) -> Any:
    """The model after onnxruntime's basic optimisations (constants folded), every node with a name."""
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = onnx.load(target)
    for place, node in enumerate(model.graph.node):
        node.name = f"{place}.{node.op_type}"
    return model


def _left_alone(model: Any, heavy: Sequence[int], kept: int) -> set[str]:
    """Nodes that stay float32: pixels' normalisation, the first `kept` heavy operators, the pooling and the classifier."""
    nodes = model.graph.node
    if not heavy:
        return {node.name for node in nodes}
    stop = heavy[kept - 1] + 1 if kept else heavy[0]
    start = heavy[-1]
    while start and nodes[start - 1].op_type in _POOLING:
        start -= 1
    return {node.name for node in [*nodes[:stop], *nodes[start:]]}


def _quantised(model: Any, folder: Path, alone: Collection[str], samples: U8) -> bytes:
    """The model in QDQ form; ranges are measured once and kept in the folder."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = _batches(samples)

        def get_next(self) -> dict[str, U8] | None:
            batch = next(self._batches, None)
            return None if batch is None else {model.graph.input[0].name: batch}

    source, target = folder / "source.onnx", folder / "target.onnx"
    onnx.save(model, source)
    quantize_static(
        str(source),
        str(target),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=sorted(alone),
        calibration_cache_path=str(folder / "ranges.json"),
    )
    return target.read_bytes()


def _shifts(model: Any, samples: U8) -> dict[str, NDArray[np.float64]]:
    """Per convolution (by node name), by how much rounding its weights to 8 bits moves the mean of each output channel."""
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Conv" and set(node.input[1:]) <= set(weights)]
    means = _channel_means(model, list(dict.fromkeys(node.input[0] for node in nodes)), samples)
    shifts = {}
    for node in nodes:
        weight = numpy_helper.to_array(weights[node.input[1]]).astype(np.float64)
        step = np.abs(weight).reshape(len(weight), -1).max(axis=1).reshape(-1, *[1] * (weight.ndim - 1)) / 127
        rounded = np.round(weight / np.where(step > 0, step, 1)) * step
        lost = (weight - rounded).sum(axis=tuple(range(2, weight.ndim)))  # (out, in per group)
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        mean = means[node.input[0]].reshape(groups, -1)  # (groups, in per group)
        shifts[node.name] = (lost * np.repeat(mean, len(weight) // groups, axis=0)).sum(axis=1)
    return shifts


def _channel_means(model: Any, values: Sequence[str], samples: U8) -> dict[str, NDArray[np.float64]]:
    """The mean over images and positions of each channel of these values."""
    import onnx
    from onnx import helper, numpy_helper

    if not values:  # a network without convolutions: onnxruntime would ask for an output
        return {}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3]), "all.but.channels"))
    for place, value in enumerate(values):
        mean = f"mean.{place}"
        watched.graph.node.append(helper.make_node("ReduceMean", [value, "all.but.channels"], [mean], keepdims=0))
        watched.graph.output.append(helper.make_tensor_value_info(mean, onnx.TensorProto.FLOAT, None))
    session = _session(watched.SerializeToString())
    total = [np.zeros(1)] * len(values)
    for batch in _batches(samples):
        means = session.run(None, {session.get_inputs()[0].name: batch})
        total = [
            before + len(batch) / len(samples) * np.asarray(now, np.float64) for before, now in zip(total, means, strict=True)
        ]
    return dict(zip(values, total, strict=True))


def _correct(model: Any, shifts: dict[str, NDArray[np.float64]]) -> None:
    """Add each convolution's shift to its bias. In place."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.name in shifts:
            old = numpy_helper.to_array(tensors[node.input[2]]) if len(node.input) > 2 else 0.0
            bias = numpy_helper.from_array((old + shifts[node.name]).astype(np.float32), f"{node.name}.bias")
            del node.input[2:]
            node.input.append(bias.name)  # of its own: two nodes may have shared one
            model.graph.initializer.append(bias)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)


def _logits(data: bytes, samples: U8) -> F32:
    session = _session(data)
    return np.concatenate([session.run(None, {session.get_inputs()[0].name: batch})[0] for batch in _batches(samples)])


def _session(data: bytes) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _batches(samples: U8) -> Iterator[U8]:
    return (samples[start : start + BATCH] for start in range(0, len(samples), BATCH))


def _runtime() -> str:
    for package in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return version(package)
        except ModuleNotFoundError:
            continue
    return ""
