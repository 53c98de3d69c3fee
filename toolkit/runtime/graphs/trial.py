"""A trial of graphs whose time and memory cannot be told by looking: opened and run once in a process that may be ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path
from typing import Any

from toolkit.errors import ModelError

SECONDS, MEBIBYTES = 6, 2048  # of processor time and memory for opening a model and its first image; twice its size on top
PATIENCE = 120  # seconds of a busy machine
ELEMENTS = 1 << 25  # of a tensor for one image; beyond, it is tried
SMALL = 2048  # bytes of a constant that may be a shape

_CONTROL = {"Loop", "Scan", "If", "SequenceMap"}


def check(model: Any, path: Path) -> None:
    """Open a graph and run it once where that may take any time or memory; graphs that tell their sizes are not run.

    `model` is the onnx.ModelProto that was read from `path`.

    Raises:
        ModelError: it takes more than SECONDS of processor time or MEBIBYTES of memory for one image.
    """
    if not needed(model):
        return
    data = model.SerializeToString()
    with tempfile.TemporaryDirectory(prefix="toolkit-trial-") as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(data)
        memory = MEBIBYTES + 4 * (len(data) >> 20)
        command = [sys.executable, "-I", str(Path(__file__).with_name("trial_run.py")), str(file), str(SECONDS), str(memory)]
        try:
            done = subprocess.run(  # noqa: S603 - our own script with our own interpreter
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, cwd=folder, check=False, env=_quiet()
            )
        except subprocess.TimeoutExpired:
            raise _beyond(path) from None
        except OSError as error:
            raise ModelError(f"{path} cannot be tried: {error.strerror}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [""]
        if done.returncode < 0 or "alloc" in lines[-1].lower() or "memory" in lines[-1].lower():
            raise _beyond(path, killed=max(-done.returncode, 0))
        # whatever else is wrong is said better by who knows how the model is to be fed


def needed(model: Any) -> bool:
    """Whether a graph has control flow, functions, or a tensor that is large or of a size that only running tells."""
    if model.functions or any(node.op_type in _CONTROL for node in model.graph.node):
        return True
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(_outline(model), data_prop=True).graph
    except Exception:  # noqa: BLE001 - whatever cannot be inferred is tried
        return True
    sizes = {value.name: _elements(value.type) for value in (*inferred.value_info, *inferred.output)}
    names = [name for node in model.graph.node for name in node.output if name]
    return any(not 0 <= sizes.get(name, -1) <= ELEMENTS for name in names)


def _outline(model: Any) -> Any:
    """The graph for one image, without its weights and without what it says itself of the sizes in it."""
    import onnx

    outline = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = outline.graph
    graph.name = "outline"
    graph.node.extend(model.graph.node)
    initialized = {tensor.name for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= SMALL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for value in model.graph.input:
        if value.name not in initialized:
            copy = graph.input.add()
            copy.CopyFrom(value)
            if copy.type.tensor_type.shape.dim and not copy.type.tensor_type.shape.dim[0].dim_value:
                copy.type.tensor_type.shape.dim[0].dim_value = 1
    for value in model.graph.output:
        copy = graph.output.add()
        copy.name = value.name
        copy.type.tensor_type.elem_type = value.type.tensor_type.elem_type
    return outline


def _elements(kind: Any) -> int:
    """How many elements a value has; -1 where nobody knows."""
    tensor = kind.tensor_type
    if not kind.HasField("tensor_type") or not tensor.HasField("shape"):
        return -1
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    return -1 if any(size < 0 for size in dims) else prod(dims)


def _beyond(path: Path, *, killed: int = 0) -> ModelError:
    ended = f" (ended by signal {killed})" if killed and killed not in (signal.SIGXCPU, signal.SIGKILL) else ""
    return ModelError(
        f"{path} takes more than {SECONDS} s of processor time or {MEBIBYTES >> 10} GiB of memory for one image{ended}",
        hint="Export the model without control flow, or get it from a source you trust.",
    )


def _quiet() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
