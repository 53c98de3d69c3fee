"""Models on a device: uint8 images go in once, logits per model and view come out."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit import views
from toolkit.cards import Output
from toolkit.errors import DeviceError, ModelError

if TYPE_CHECKING:
    import torch

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Provider:
    """A way to run ONNX: onnxruntime's name for it, its options, and how many images it takes at a time unless told."""

    execution: str
    options: Mapping[str, str]
    batch: int


PROVIDERS: dict[str, Provider] = {
    # batch 8 beat 32 on two cores with five models (one-thread sessions, 160 against 157 passes/s)
    "cpu": Provider("CPUExecutionProvider", {}, 8),
    # onnxruntime lets Ampere and later round fp32 products to TF32 (gaps of 1e-3) unless told otherwise
    "cuda": Provider("CUDAExecutionProvider", {"use_tf32": "0", "prefer_nhwc": "1"}, 64),
    "tensorrt": Provider("TensorrtExecutionProvider", {}, 64),
}


class Session(Protocol):
    """One or more models of one input size on one device.

    `engine` names what computes, and is part of the key under which results are stored.
    """

    device: str
    engine: str
    batch: int

    def place(self, pixels: U8) -> Any:
        """Bring images, uint8 (N, 3, H, W), to where the models are; done once for all models and views."""
        ...

    def run(self, batch: Any, view: str, models: Collection[str] | None = None) -> dict[str, F32]:
        """Logits, float32 (N, width), per model digest for one view of placed images; `models` asks for some of them only."""
        ...


def open_session(models: Mapping[str, Path], *, device: str = "auto", batch: int | None = None) -> Session:
    """Open exports (digest → file) on a device: a name from PROVIDERS, or "auto" for CUDA where it works, else the CPU.

    Raises:
        DeviceError: an unknown device, or one that was asked for and is not there.
        ModelError: onnxruntime cannot load a model.
    """
    name = choose_device(device)
    if name == "cpu":
        return _Cpu(models, batch or PROVIDERS[name].batch)
    return _Gpu(models, name, batch or PROVIDERS[name].batch)


def choose_device(device: str) -> str:
    """A name from PROVIDERS for what the user asked; "auto" is "cuda" if the driver counts a GPU, else "cpu".

    Raises:
        DeviceError: an unknown name, or a GPU was asked for and the driver counts none.
    """
    if device == "cpu":
        return device
    if device != "auto" and device not in PROVIDERS:
        raise DeviceError(f"unknown device {device!r}", hint=f"Use auto or one of: {', '.join(PROVIDERS)}.")
    if gpu_count():
        return "cuda" if device == "auto" else device
    if device == "auto":
        return "cpu"
    raise DeviceError(
        f"--device {device} was asked for, but no CUDA device can be used here",
        hint="Run `toolkit doctor` to see why, or use --device cpu.",
    )


def gpu_count() -> int:
    """How many GPUs the CUDA driver counts; asked directly, since importing torch for this would take two seconds."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int()
        ready = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError):
        return 0
    return count.value if ready else 0


def engine_tag(device: str) -> str:
    """What computes on a device, as it stands in the store's keys: onnxruntime's version and the provider.

    Raises:
        DeviceError: onnxruntime is not installed.
    """
    for name in ("onnxruntime-gpu", "onnxruntime"):
        with contextlib.suppress(PackageNotFoundError):
            return f"onnxruntime{version(name)}-{device}"
    raise DeviceError("onnxruntime is not installed", hint="Install toolkit again with its dependencies.")


def probabilities(logits: NDArray[Any], output: Output) -> NDArray[np.float64]:
    """Logits (N, width) of one model as the probabilities (N, C) of one of its outputs: the one place where this is done.

    Softmax and sigmoid in float64; a single logit becomes (1 − p, p); "identity" is renormalised against rounding.

    Raises:
        ModelError: NaN or infinite logits.
    """
    x = np.asarray(logits[:, output.start : output.stop], dtype=np.float64)
    if not np.isfinite(x).all():
        raise ModelError(f"target {output.target!r}: NaN or infinite logits in {int((~np.isfinite(x)).any(axis=1).sum())} rows")
    if output.activation == "softmax":
        e = np.exp(x - x.max(axis=1, keepdims=True))
        return np.asarray(e / e.sum(axis=1, keepdims=True))
    if output.activation == "sigmoid":
        e = np.exp(-np.abs(x))  # never overflows
        p = np.where(x >= 0, 1 / (1 + e), e / (1 + e))
        return np.concatenate([1 - p, p], axis=1) if output.one_logit else p
    return np.asarray(x / x.sum(axis=1, keepdims=True))


class FakeSession:
    """A session for tests: each "model" is a function from a uint8 batch (N, 3, H, W) to logits (N, width)."""

    device = "cpu"
    engine = "fake"

    def __init__(self, models: Mapping[str, Callable[[U8], F32]], *, batch: int = 8) -> None:
        self.models = dict(models)
        self.batch = batch
        self.passes = 0  # images × models × views that went through

    def place(self, pixels: U8) -> U8:
        """Nothing to move."""
        return pixels

    def run(self, batch: U8, view: str, models: Collection[str] | None = None) -> dict[str, F32]:
        """Call every function on the view."""
        pixels = _view(batch, view)
        wanted = list(self.models if models is None else models)
        self.passes += len(pixels) * len(wanted)
        return {digest: np.asarray(self.models[digest](pixels), dtype=np.float32) for digest in wanted}


@dataclass(frozen=True, eq=False)
class _Unit:
    """Models that run together: alone, or the heads behind a trunk whose outputs they share."""

    trunk: Any | None  # an onnxruntime session, as are the heads
    cut: tuple[str, ...]
    heads: Mapping[str, Any]


class _Cpu:
    """One-thread onnxruntime sessions shared by one worker per core, which pull (unit, batch) jobs.

    Measured with EfficientNet-B0 and five models on two cores: 160 passes/s against 92 of five default sessions, which each
    start a thread per core. Every batch is padded to full size: a model may round differently at batch 1 than at batch 8,
    and a stored row must not depend on its neighbours.
    """

    device = "cpu"

    def __init__(self, models: Mapping[str, Path], batch: int) -> None:
        import onnxruntime as ort

        self.batch = batch
        self.engine = engine_tag("cpu")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        _share_arena(options)
        self.units = _units(models, options, "cpu")
        self._workers = ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())

    def place(self, pixels: U8) -> U8:
        """Nothing to move."""
        return pixels

    def run(self, batch: U8, view: str, models: Collection[str] | None = None) -> dict[str, F32]:
        """Every model over the view, in full batches spread over the cores."""
        pixels = _padded(_view(batch, view), self.batch)
        jobs = [
            (unit, wanted, start) for unit, wanted in _wanted(self.units, models) for start in range(0, len(pixels), self.batch)
        ]

        def work(job: tuple[_Unit, list[str], int]) -> dict[str, F32]:
            unit, wanted, start = job
            part = pixels[start : start + self.batch]
            given: dict[str, Any] = {}
            if unit.trunk is not None:
                found = unit.trunk.run(list(unit.cut), {unit.trunk.get_inputs()[0].name: part})
                given = dict(zip(unit.cut, found, strict=True))
            heads = {digest: unit.heads[digest] for digest in wanted}
            return {
                d: head.run(None, {i.name: given.get(i.name, part) for i in head.get_inputs()})[0] for d, head in heads.items()
            }

        return _joined(self._workers.map(work, jobs), len(batch))


class _Gpu:
    """onnxruntime on a GPU: images are uploaded once as uint8, views are made there, logits alone come back.

    `memory` is where tensors lie ("cuda"); "cpu" runs the same code in the tests of machines without a GPU.
    """

    def __init__(self, models: Mapping[str, Path], device: str, batch: int, *, memory: str = "cuda") -> None:
        import onnxruntime as ort

        if memory == "cuda":
            ort.preload_dlls()  # torch brings most CUDA libraries, the nvidia-* wheels the rest
        self.device, self.batch, self._memory = device, batch, memory
        self.engine = engine_tag(device)
        self.units = _units(models, ort.SessionOptions(), device)

    def place(self, pixels: U8) -> torch.Tensor:
        """Upload the batch."""
        import torch

        return torch.from_numpy(pixels).to(self._memory)

    def run(self, batch: torch.Tensor, view: str, models: Collection[str] | None = None) -> dict[str, F32]:
        """Bind the view's memory to every model in turn; nothing but logits crosses the bus."""
        import torch

        pixels = views.apply(batch, view)
        parts = []
        for part in torch.split(pixels, self.batch):
            whole = part.new_zeros((self.batch, *part.shape[1:]))
            whole[: len(part)] = part
            if self._memory == "cuda":
                torch.cuda.current_stream().synchronize()  # onnxruntime reads on a stream of its own
            for unit, wanted in _wanted(self.units, models):
                given: dict[str, Any] = {}
                if unit.trunk is not None:
                    given = dict(zip(unit.cut, self._bound(unit.trunk, whole, {}, unit.cut), strict=True))
                for digest in wanted:
                    (logits,) = self._bound(unit.heads[digest], whole, given, [unit.heads[digest].get_outputs()[0].name])
                    parts.append({digest: np.asarray(logits.numpy())})
        return _joined(parts, len(batch))

    def _bound(self, session: Any, pixels: torch.Tensor, given: Mapping[str, Any], outputs: Collection[str]) -> list[Any]:
        """Run a session on memory that is there; its outputs stay on the device as OrtValues."""
        binding, index = session.io_binding(), pixels.device.index or 0
        for value in session.get_inputs():
            if value.name in given:
                binding.bind_ortvalue_input(value.name, given[value.name])
            else:
                binding.bind_input(value.name, self._memory, index, np.uint8, tuple(pixels.shape), pixels.data_ptr())
        for name in outputs:
            binding.bind_output(name, self._memory, index)
        session.run_with_iobinding(binding)
        return list(binding.get_outputs())


def _units(models: Mapping[str, Path], options: Any, device: str) -> list[_Unit]:
    """Sessions for the models, those that share a backbone behind one trunk."""
    trunks: list[Any] = []
    alone = list(models)
    if len(models) > 1:
        from toolkit import graphs, sharing

        trunks, alone = sharing.find_trunks({digest: graphs.load(path) for digest, path in models.items()})
    units = [_Unit(None, (), {digest: _open(models[digest], str(models[digest]), options, device)}) for digest in alone]
    for trunk in trunks:
        where = models[next(iter(trunk.heads))]
        heads = {d: _open(models[d], head.SerializeToString(), options, device) for d, head in trunk.heads.items()}
        units.append(_Unit(_open(where, trunk.model.SerializeToString(), options, device), trunk.cut, heads))
    return units


def _wanted(units: Sequence[_Unit], models: Collection[str] | None) -> list[tuple[_Unit, list[str]]]:
    """The units that hold some of the models asked for, with those."""
    chosen = [(unit, [digest for digest in unit.heads if models is None or digest in models]) for unit in units]
    return [(unit, digests) for unit, digests in chosen if digests]


def _joined(parts: Iterable[dict[str, F32]], count: int) -> dict[str, F32]:
    """The batches of each model in order, without the padding at the end."""
    found: dict[str, list[F32]] = {}
    for part in parts:
        for digest, logits in part.items():
            found.setdefault(digest, []).append(logits)
    return {digest: np.concatenate(batches)[:count] for digest, batches in found.items()}


def _open(path: Path, model: str | bytes, options: Any, device: str) -> Any:
    """An onnxruntime session of a file, or of bytes that were cut from the model at `path`."""
    import onnxruntime as ort

    provider = PROVIDERS[device]
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model, options, providers=[(provider.execution, dict(provider.options))])
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise ModelError(f"onnxruntime cannot load {path}: {error}") from error
    if session.get_providers()[0] != provider.execution:  # it falls back with only a log line
        raise DeviceError(
            f"--device {device} was asked for, but onnxruntime opened {path.name} on {session.get_providers()[0]}",
            hint="A CUDA library it needs is missing: run `toolkit doctor`, or use --device cpu.",
        )
    return session


def _share_arena(options: Any) -> None:
    """Let all CPU sessions of the process use one memory arena: 1.6 GB instead of 4.0 for five EfficientNet-B0."""
    import onnxruntime as ort

    global _arena  # noqa: PLW0603 - an arena can be registered once per process
    if not _arena:
        memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        ort.create_and_register_allocator(memory, None)
        _arena = True
    options.add_session_config_entry("session.use_env_allocators", "1")


_arena = False


def _view(pixels: U8, view: str) -> U8:
    if view == "id":
        return pixels
    import torch

    return np.ascontiguousarray(views.apply(torch.from_numpy(pixels), view).numpy())


def _padded(pixels: U8, size: int) -> U8:
    short = -len(pixels) % size
    return pixels if not short else np.concatenate([pixels, np.zeros((short, *pixels.shape[1:]), dtype=np.uint8)])
