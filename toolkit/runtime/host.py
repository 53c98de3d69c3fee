"""Models that run together: alone or as heads behind a shared trunk, in full batches, smaller ones when memory runs out."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from toolkit.base.arrays import F32, U8
from toolkit.errors import DeviceError, ModelError, ToolkitError, counted, few
from toolkit.images import geometry
from toolkit.runtime.devices import cores

# how onnxruntime, OpenVINO, oneDNN, CUDA and torch say that memory is used up
_EXHAUSTED = re.compile(
    r"bad.?alloc|out of memory|failed to allocate|cannot allocate memory|could not allocate|ALLOC_FAILED|memory allocation fail"
    r"|MemoryAllocation",
    re.IGNORECASE,
)


class Net(Protocol):
    """One opened graph: onnxruntime's InferenceSession, or what looks like one."""

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, Any]) -> Sequence[Any]:
        """The outputs of these names (all of them for None) as arrays."""
        ...

    def get_inputs(self) -> Sequence[Any]:
        """The inputs, each with a `name`."""
        ...

    def get_outputs(self) -> Sequence[Any]:
        """The outputs, each with a `name`."""
        ...


@dataclass(frozen=True, eq=False)
class Unit:
    """Models that run together: alone, or the heads behind a trunk whose outputs they share."""

    trunk: Any | None  # a Net, as are the heads
    cut: tuple[str, ...]
    heads: Mapping[str, Any]


Opener = Callable[[Path, Any], Any]  # (where a model came from, its onnx.ModelProto or None for the file itself) → Net
BatchOpener = Callable[[Path, Any, int], Any]  # the same, and the size of the batches that will come


def open_units(models: Mapping[str, Path], opener: Opener) -> list[Unit]:
    """Nets for the models (digest → file), those that share a backbone behind one trunk; opened side by side."""
    trunks: list[Any] = []
    alone = list(models)
    with ThreadPoolExecutor(cores()) as pool:
        if len(models) > 1:
            from toolkit.runtime.graphs import onnx_file, shared_trunks

            protos = dict(zip(models, pool.map(onnx_file.load, models.values()), strict=True))
            trunks, alone = shared_trunks.find_trunks(protos)
            del protos
        singles = {digest: pool.submit(opener, models[digest], None) for digest in alone}
        shared = []
        for trunk in trunks:
            where = models[next(iter(trunk.heads))]
            heads = {digest: pool.submit(opener, models[digest], head) for digest, head in trunk.heads.items()}
            shared.append((pool.submit(opener, where, trunk.model), trunk.cut, heads))
        units = [Unit(None, (), {digest: single.result()}) for digest, single in singles.items()]
        units += [Unit(trunk.result(), cut, {d: head.result() for d, head in heads.items()}) for trunk, cut, heads in shared]
    return units


class HostSession:
    """Nets of one thread each in main memory, shared by one worker per core, which pull (unit, batch) jobs.

    Measured with EfficientNet-B0 and five models on two cores: 160 passes/s against 92 of five default sessions, which each
    start a thread per core. Every batch is padded to full size: a model may round differently at batch 1 than at batch 8,
    and a stored row must not depend on its neighbours.
    """

    def __init__(
        self, device: str, engine: str, models: Mapping[str, Path], batch: int, opener: BatchOpener, *, fixed: bool = False
    ) -> None:
        """`fixed` says that nets take batches of one size only, and must be opened again for another."""
        self.device, self.engine, self.batch = device, engine, batch
        self._models, self._opener, self._fixed = dict(models), opener, fixed
        self.units = open_units(models, lambda path, proto: opener(path, proto, batch))
        self._workers = ThreadPoolExecutor(cores())

    def place(self, pixels: U8) -> U8:
        """Nothing to move."""
        return pixels

    def run(self, batch: U8, view: str, models: Collection[str] | None = None) -> dict[str, F32]:
        """Every model over the view, in full batches spread over the cores; in half of them when memory runs out.

        Raises:
            ModelError: a model fails on the images.
            DeviceError: memory does not suffice for one image.
        """
        pixels = seen(batch, view)
        while True:
            try:
                return self._run(pixels, models)
            except Exception as error:  # noqa: BLE001 - runtimes' errors have no common class of their own
                self.batch = smaller(self.batch, error, self._models.values())
            if self._fixed:
                self.units = open_units(self._models, lambda path, proto: self._opener(path, proto, self.batch))

    def _run(self, pixels: U8, models: Collection[str] | None) -> dict[str, F32]:
        count, size = len(pixels), self.batch
        pixels = padded(pixels, size)
        jobs = [(unit, digests, start) for unit, digests in wanted(self.units, models) for start in range(0, len(pixels), size)]

        def work(job: tuple[Unit, list[str], int]) -> dict[str, F32]:
            unit, digests, start = job
            part = pixels[start : start + size]
            given: dict[str, Any] = {}
            if unit.trunk is not None:
                shared = unit.trunk.run(list(unit.cut), {unit.trunk.get_inputs()[0].name: part})
                given = dict(zip(unit.cut, shared, strict=True))
            heads = {digest: unit.heads[digest] for digest in digests}
            logits = {}
            for d, head in heads.items():
                feeds = {i.name: given.get(i.name, part) for i in head.get_inputs()}
                logits[d] = checked(head.run(None, feeds)[0], size, self._models[d])
            return logits

        return joined(self._workers.map(work, jobs), count)


def smaller(batch: int, error: Exception, paths: Iterable[Path]) -> int:
    """Half the batch, for an error that says that memory is used up.

    Raises:
        DeviceError: memory does not suffice for one image.
        ModelError: the error is of another kind.
    """
    if isinstance(error, ToolkitError):
        raise error
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if not (isinstance(error, MemoryError) or _EXHAUSTED.search(str(error))):
        raise ModelError(f"{few(paths)}: the models fail on the images: {first}") from error
    if batch == 1:
        raise DeviceError(
            f"{few(paths)}: memory does not suffice for one image at a time: {first}",
            hint="Use fewer models at once, or another device.",
            code="members",
        ) from error
    return batch // 2


def wanted(units: Sequence[Unit], models: Collection[str] | None) -> list[tuple[Unit, list[str]]]:
    """The units that hold some of the models asked for, with those."""
    chosen = [(unit, [digest for digest in unit.heads if models is None or digest in models]) for unit in units]
    return [(unit, digests) for unit, digests in chosen if digests]


def checked(logits: Any, rows: int, path: Path) -> F32:
    """What a model gave for a batch, where that is a row of numbers for each image: a graph may say one thing and do another.

    Raises:
        ModelError: it is of another shape or type.
    """
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 2 or shape[0] != rows or logits.dtype.kind != "f":
        raise ModelError(
            f"{path} gives an output of shape {shape} for {counted(rows, 'images')}, not a row of logits for each",
            hint="Export the model again.",
        )
    return logits  # type: ignore[no-any-return]


def joined(parts: Iterable[dict[str, F32]], count: int) -> dict[str, F32]:
    """The batches of each model in order, without the padding at the end."""
    by_model: dict[str, list[F32]] = {}
    for part in parts:
        for digest, logits in part.items():
            by_model.setdefault(digest, []).append(logits)
    return {digest: np.concatenate(batches)[:count] for digest, batches in by_model.items()}


def seen(pixels: U8, view: str) -> U8:
    """The view of a batch in main memory."""
    return pixels if view == "id" else geometry.turned(pixels, view)


def padded(pixels: U8, size: int) -> U8:
    """The images with black ones behind them, up to a multiple of `size`."""
    short = -len(pixels) % size
    return pixels if not short else np.concatenate([pixels, np.zeros((short, *pixels.shape[1:]), dtype=np.uint8)])
