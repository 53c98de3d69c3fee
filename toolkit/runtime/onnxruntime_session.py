"""onnxruntime's sessions: on the CPU, and on GPUs with everything bound to memory that is there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.base.arrays import F32
from toolkit.errors import DeviceError, ModelError
from toolkit.images import tensor_views
from toolkit.runtime.devices import PROVIDERS, engine_tag
from toolkit.runtime.host import HostSession, checked, joined, open_units, smaller, wanted

if TYPE_CHECKING:
    import torch


def cpu(models: Mapping[str, Path], batch: int) -> HostSession:
    """Models on the CPU.

    Raises:
        ModelError: onnxruntime cannot load one.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    _share_arena(options)

    def opener(path: Path, proto: Any, _batch: int) -> Any:
        return open_net(path, proto, options, "cpu")

    return HostSession("cpu", engine_tag("cpu"), models, batch, opener)


class Gpu:
    """onnxruntime on a GPU: images are uploaded once as uint8, views are made there, logits alone come back.

    Every batch is padded to one size and lies in the same place, and so do all results: a CUDA graph, captured at the first
    batch, then replays the kernels of a model with one launch. `memory` is where tensors lie ("cuda"); "cpu" runs the same code
    in the tests of machines without a GPU.
    """

    def __init__(
        self,
        models: Mapping[str, Path],
        device: str,
        batch: int,
        *,
        precision: str = "fp32",
        cache: Path | None = None,
        memory: str = "cuda",
    ) -> None:
        import onnxruntime as ort

        if memory == "cuda":
            ort.preload_dlls()  # torch brings most CUDA libraries, the nvidia-* wheels the rest
        self.device, self.batch, self._memory = device, batch, memory
        self.engine = engine_tag(device)
        self._models, self._paths = dict(models), list(models.values())
        self._reopen = partial(open_units, models, partial(self._open, precision=precision, cache=cache))
        self.units = self._reopen()
        self._pixels: torch.Tensor | None = None  # where every batch is put
        self._bound: dict[int, _Bound] = {}

    def place(self, pixels: Any) -> torch.Tensor:
        """Upload the batch."""
        import torch

        return torch.from_numpy(pixels).to(self._memory)

    def run(self, batch: torch.Tensor, view: str, models: Collection[str] | None = None) -> dict[str, F32]:
        """Every model over the view; in half of the batches when memory runs out.

        Raises:
            ModelError: a model fails on the images.
            DeviceError: memory does not suffice for one image.
        """
        while True:
            try:
                return self._run(tensor_views.apply(batch, view), models)
            except Exception as error:  # noqa: BLE001 - the errors of onnxruntime and torch have no common class of their own
                self.batch = smaller(self.batch, error, self._paths)
            self._pixels, self._bound = None, {}
            self.units = self._reopen()  # a captured graph replays one size of batch only

    def _run(self, pixels: torch.Tensor, models: Collection[str] | None) -> dict[str, F32]:
        import torch

        parts = []
        for part in torch.split(pixels, self.batch):
            place = self._placed(part)
            for unit, digests in wanted(self.units, models):
                given = {} if unit.trunk is None else self._bind(unit.trunk, place, {}).run()
                for digest in digests:
                    (logits,) = self._bind(unit.heads[digest], place, given).run().values()
                    parts.append({digest: checked(logits.cpu().numpy().copy(), self.batch, self._models[digest])})
        return joined(parts, len(pixels))

    def _placed(self, part: torch.Tensor) -> torch.Tensor:
        """The images where every batch lies, black ones behind them."""
        import torch

        if self._pixels is None:
            self._pixels = part.new_zeros((self.batch, *part.shape[1:]))
        self._pixels[: len(part)] = part
        self._pixels[len(part) :] = 0
        if self._memory == "cuda":
            torch.cuda.current_stream().synchronize()  # onnxruntime reads on a stream of its own
        return self._pixels

    def _bind(self, net: Net, pixels: torch.Tensor, given: Mapping[str, torch.Tensor]) -> _Bound:
        if id(net) not in self._bound:
            self._bound[id(net)] = _Bound(net, pixels, given)
        return self._bound[id(net)]

    def _open(self, path: Path, proto: Any, *, precision: str, cache: Path | None) -> Net:
        import onnxruntime as ort

        if precision == "fp16" and self.device == "cuda":
            from toolkit.runtime.graphs import onnx_file
            from toolkit.runtime.graphs.float16 import to_fp16

            proto = to_fp16(onnx_file.load(path) if proto is None else proto)
        more = dict(PROVIDERS[self.device].precisions.get(precision, {}))
        if self.device == "tensorrt" and cache is not None:  # an engine takes minutes to build
            more |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache), "trt_timing_cache_enable": "1"}

        def opener(extra: Mapping[str, str]) -> Any:
            return open_net(path, proto, ort.SessionOptions(), self.device, {**more, **extra})

        return Net(opener, capturable=self.device == "cuda")


class Net:
    """A session that can be opened again for a CUDA graph to be captured of it."""

    def __init__(self, opener: Callable[[Mapping[str, str]], Any], *, capturable: bool) -> None:
        self.session = opener({})
        self.capturable, self._opener = capturable, opener

    def captured(self) -> Any | None:
        """The session opened for a CUDA graph; None where onnxruntime refuses, as with parts that run on the CPU."""
        if not self.capturable:
            return None
        try:
            return self._opener({"enable_cuda_graph": "1"})
        except (ModelError, DeviceError):
            return None


class _Bound:
    """A net whose inputs and outputs lie where they are, batch after batch."""

    def __init__(self, net: Net, pixels: torch.Tensor, given: Mapping[str, torch.Tensor]) -> None:
        import torch

        self._inputs = {value.name: given.get(value.name, pixels) for value in net.session.get_inputs()}
        where = (pixels.device.type, pixels.device.index or 0)
        probe = self._binding(net.session)
        names = [value.name for value in net.session.get_outputs()]
        for name in names:
            probe.bind_output(name, *where)
        net.session.run_with_iobinding(probe)
        values = dict(zip(names, probe.get_outputs(), strict=True))
        self.outputs = {
            name: torch.empty(value.shape(), dtype=getattr(torch, _TYPES[value.data_type()]), device=pixels.device)
            for name, value in values.items()
        }
        self._use(net.session)
        plain = {name: value.clone() for name, value in self.run().items()}
        graph = net.captured()
        if graph is not None:
            self._use(graph)
            if self._replays(plain):
                net.session = graph
            else:
                self._use(net.session)

    def run(self) -> dict[str, torch.Tensor]:
        """The outputs for what lies in the inputs now; overwritten by the next run."""
        self._session.run_with_iobinding(self._bindings)
        return self.outputs

    def _use(self, session: Any) -> None:
        self._session, self._bindings = session, self._binding(session)
        for name, value in self.outputs.items():
            element = np.dtype(str(value.dtype).removeprefix("torch."))
            where = (value.device.type, value.device.index or 0)
            self._bindings.bind_output(name, *where, element, tuple(value.shape), value.data_ptr())

    def _binding(self, session: Any) -> Any:
        binding = session.io_binding()
        for name, value in self._inputs.items():
            element = np.dtype(str(value.dtype).removeprefix("torch."))
            where = (value.device.type, value.device.index or 0)
            binding.bind_input(name, *where, element, tuple(value.shape), value.data_ptr())
        return binding

    def _replays(self, plain: Mapping[str, torch.Tensor]) -> bool:
        """Whether a captured graph computes what the plain session gave, and something else in between for other inputs."""
        kept = {name: value.clone() for name, value in self._inputs.items()}
        try:
            self.run()
            for value in self._inputs.values():
                value.copy_(255 - value if value.dtype.itemsize == 1 else value * -0.5 + 1)
            other = {name: value.clone() for name, value in self.run().items()}
            for name, value in self._inputs.items():
                value.copy_(kept[name])
            again = self.run()
        except Exception:  # noqa: BLE001 - a session that cannot capture says so in a way of its own; the plain one is there
            return False
        finally:
            for name, value in self._inputs.items():
                value.copy_(kept[name])
        return all(_near(again[n], plain[n]) for n in plain) and any(not _near(other[n], plain[n]) for n in plain)


_TYPES = {f"tensor({name})": name for name in ("float16", "int64", "int32", "uint8", "bool")} | {"tensor(float)": "float32"}


def _near(first: torch.Tensor, second: torch.Tensor) -> bool:
    gap = (first.double() - second.double()).abs().max()
    return bool(gap <= 1e-2 * second.double().abs().max().clamp(min=1e-6))


def open_net(path: Path, proto: Any, options: Any, device: str, more: Mapping[str, str] | None = None) -> Any:
    """An onnxruntime session of a file, or of an onnx.ModelProto that was made from the file at `path`.

    Raises:
        ModelError: onnxruntime cannot load it.
        DeviceError: it was opened on another device than asked for.
    """
    import onnxruntime as ort

    provider = PROVIDERS[device]
    options.log_severity_level = 4
    model = str(path) if proto is None else proto.SerializeToString()
    try:
        providers = [(provider.execution, {**provider.options, **(more or {})})]
        session = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)  # it would print on stdout
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise ModelError(f"onnxruntime cannot load {path}: {error}") from error
    if session.get_providers()[0] != provider.execution:  # it falls back with only a log line
        raise DeviceError(
            f"{device} was asked for, but onnxruntime opened {path.name} on {session.get_providers()[0]}",
            hint="A CUDA library it needs is missing: `toolkit doctor` says which; the CPU needs none.",
            code="device-cpu",
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
