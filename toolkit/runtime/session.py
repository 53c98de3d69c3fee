"""Models on a device: uint8 images go in once, logits per model and view come out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from toolkit.base.arrays import F32, U8
from toolkit.runtime.devices import PROVIDERS, check_precision, choose_device
from toolkit.runtime.host import seen


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


def open_session(
    models: Mapping[str, Path],
    *,
    device: str = "auto",
    batch: int | None = None,
    precision: str = "fp32",
    cache: Path | None = None,
) -> Session:
    """Open exports (digest → file) on a device: a name from PROVIDERS, or "auto" for CUDA where it works, else the CPU.

    For "int8" the files are quantised ones (see `quantising`). `cache` is a folder for what a runtime builds from models.

    Raises:
        DeviceError: an unknown device, one that was asked for and is not there, or one that does not compute in `precision`.
        ModelError: the runtime cannot load a model.
    """
    name = choose_device(device)
    check_precision(name, precision)
    batch = batch or PROVIDERS[name].batch
    if name == "openvino":
        from toolkit.runtime import openvino_session

        return openvino_session.openvino(models, batch, precision=precision)
    from toolkit.runtime import onnxruntime_session

    if name == "cpu":
        return onnxruntime_session.cpu(models, batch)
    return onnxruntime_session.Gpu(models, name, batch, precision=precision, cache=cache)


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
        pixels = seen(batch, view)
        wanted = list(self.models if models is None else models)
        self.passes += len(pixels) * len(wanted)
        return {digest: np.asarray(self.models[digest](pixels), dtype=np.float32) for digest in wanted}
