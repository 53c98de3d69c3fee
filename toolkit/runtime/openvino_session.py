"""OpenVINO's sessions on the CPU: every model compiled for one size of batch, in a precision that is set and read back."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from toolkit.base import offline
from toolkit.errors import DeviceError, ModelError
from toolkit.runtime.devices import PROVIDERS, cores, engine_tag
from toolkit.runtime.host import HostSession

# what a compiled model calls the precisions it computes in
_SAID = {"fp32": "f32", "bf16": "bf16"}


def openvino(models: Mapping[str, Path], batch: int, *, precision: str = "fp32") -> HostSession:
    """Models compiled by OpenVINO for the CPU.

    Raises:
        ModelError: OpenVINO cannot load one.
        DeviceError: OpenVINO is not installed, or the CPU does not compute in that precision.
    """
    engine = engine_tag("openvino")
    return HostSession("openvino", engine, models, batch, partial(_compiled, precision=precision), fixed=True)


def _compiled(path: Path, proto: Any, batch: int, *, precision: str) -> _Compiled:
    """A model compiled for this size of batch, as a Net."""
    with _alone_at_first("compile"):
        return _Compiled(_loaded(path, proto, batch, precision))


def _loaded(path: Path, proto: Any, batch: int, precision: str) -> Any:
    import io

    core = _core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise DeviceError(
            "this CPU has no bfloat16 instructions (AVX-512 BF16 or AMX)",
            hint="Use fp32, int8 or what is chosen for you.",
            code="precision-auto",
        )
    # one stream of one thread per core: as many images at once as onnxruntime's one-thread sessions take. Streams of several
    # models pinned to cores would all be pinned to the same ones.
    config: dict[str, Any] = {"NUM_STREAMS": cores(), "INFERENCE_NUM_THREADS": cores(), "ENABLE_CPU_PINNING": False}
    config |= PROVIDERS["openvino"].precisions[precision]
    try:
        model = core.read_model(str(path) if proto is None else io.BytesIO(proto.SerializeToString()))
        shapes = {value: value.get_partial_shape() for value in model.inputs}
        for shape in shapes.values():
            shape[0] = batch
        model.reshape(shapes)
        compiled = core.compile_model(model, "CPU", config)
    except RuntimeError as error:
        raise ModelError(f"OpenVINO cannot load {path}: {error}") from error
    compiled_in = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if compiled_in != _SAID[precision]:
        raise DeviceError(f"{precision} was asked for, and OpenVINO compiled {path.name} in {compiled_in}")
    return compiled


class _Compiled:
    """A compiled model in the shape of onnxruntime's InferenceSession; every thread has an inference request of its own."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._requests = threading.local()
        self._inputs = [SimpleNamespace(name=_name(value)) for value in model.inputs]
        self._outputs = [SimpleNamespace(name=_name(value)) for value in model.outputs]

    def get_inputs(self) -> Sequence[Any]:
        return self._inputs

    def get_outputs(self) -> Sequence[Any]:
        return self._outputs

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Any]:
        """The outputs as arrays; those asked for by name lie in the request's own memory until this thread's next run."""
        if not hasattr(self._requests, "one"):
            self._requests.one = self._model.create_infer_request()
        with _alone_at_first("infer"):
            results = self._requests.one.infer(dict(feeds), share_inputs=True, share_outputs=True)
            if outputs is not None:  # a trunk's values are large, and its heads are done with them before the next batch
                return [results[name] for name in outputs]
            return [results[value.name].copy() for value in self._outputs]


def _name(value: Any) -> str:
    return str(value.get_any_name())


_first = threading.Lock()
_done: set[str] = set()


@contextmanager
def _alone_at_first(what: str) -> Iterator[None]:
    """One thread at a time until one is through.

    What OpenVINO's bindings set up at their first use (element types as NumPy's, say) they set up under a guard of C++, letting
    go of the interpreter's lock in between: a second thread that comes for it then holds the one and waits for the other, for
    ever (seen with OpenVINO 2026.4, under load).
    """
    if what in _done:
        yield
        return
    with _first:
        yield
        _done.add(what)


_cores: list[Any] = []


def _core() -> Any:
    """The one openvino.Core of the process: making one loads the plugins."""
    offline.without_telemetry()
    import openvino as ov

    if not _cores:
        _cores.append(ov.Core())
    return _cores[0]
