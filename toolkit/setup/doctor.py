"""What this machine can run: packages that fit together, providers that really open, the GPU, and the cure for what fails."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from typing import Any, Literal

from toolkit.base import offline
from toolkit.errors import DeviceError, ModelError, counted
from toolkit.runtime.devices import PROVIDERS, gpu_count
from toolkit.runtime.session import open_session

State = Literal["ok", "absent", "broken"]
MODULES = (
    *("torch", "torchvision", "torchcodec", "timm", "ttach"),
    *("onnx", "onnxscript", "onnxruntime", "numpy", "pandas", "pyarrow"),
)


@dataclass(frozen=True)
class HealthCheck:
    """One line of the page: what was tried, whether it works ("absent" is no fault), what was seen, and the cure."""

    what: str
    state: State
    seen: str
    cure: str = ""


def examine() -> list[HealthCheck]:
    """Try everything once; nothing is raised, whatever is broken."""
    steps: list[Callable[[], Iterator[HealthCheck]]] = [_machine, versions, imports, _conflicts, _decoder, _gpu, _providers]
    findings: list[HealthCheck] = []
    for step in steps:
        try:
            findings += step()
        except Exception as error:  # noqa: BLE001 - a broken package may raise anything, and that is what is examined
            findings.append(HealthCheck(step.__name__.strip("_"), "broken", f"{type(error).__name__}: {error}", _REINSTALL))
    return findings


_REINSTALL = "Make a fresh environment: pip install uv && uv sync"


def _machine() -> Iterator[HealthCheck]:
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    yield HealthCheck(
        "machine",
        "ok",
        f"{system}, {counted(os.cpu_count() or 1, 'cores')}, {pages:.0f} GiB memory, {free:.0f} GiB disk free here",
    )


def versions() -> Iterator[HealthCheck]:
    """Installed versions against what toolkit asks for."""
    from packaging.requirements import Requirement

    for text in requires("toolkit") or ():
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            have = version(need.name)
        except PackageNotFoundError:
            yield HealthCheck(need.name, "broken", f"not installed; {need.specifier} is needed", f'pip install "{need}"')
            continue
        if not need.specifier.contains(have, prereleases=True):
            yield HealthCheck(need.name, "broken", f"{have} is installed; {need.specifier} is needed", f'pip install "{need}"')


def imports() -> Iterator[HealthCheck]:
    """Whether every package that toolkit needs can be imported."""
    seen = []
    for name in MODULES:
        try:
            offline.without_telemetry()
            module: Any = importlib.import_module(name)
            seen.append(f"{name} {getattr(module, '__version__', '') or version(name)}")
        except Exception as error:  # noqa: BLE001 - pairs that do not fit fail with OSError, ImportError, RuntimeError…
            first = (str(error).splitlines() or [""])[0]
            yield HealthCheck(name, "broken", f"cannot be imported: {type(error).__name__}: {first}", _REINSTALL)
    yield HealthCheck("packages", "ok", ", ".join(seen))


def _conflicts() -> Iterator[HealthCheck]:
    """Two onnxruntime wheels write the same files, and the last one installed wins."""
    both = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            both.append(distribution(name).metadata["Name"])
        except PackageNotFoundError:
            continue
    if len(both) > 1:
        cure = 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "onnxruntime-gpu[cuda,cudnn]"'
        yield HealthCheck("onnxruntime", "broken", "onnxruntime and onnxruntime-gpu are both installed", cure)


def _decoder() -> Iterator[HealthCheck]:
    import io

    import numpy as np
    from PIL import Image

    from toolkit.images import render

    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    decoded = render.decode(data.getvalue(), "a test picture")
    same = np.array_equal(np.asarray(decoded), picture)
    yield HealthCheck("decoder", "ok" if same else "broken", render.implementation_tag(), "" if same else _REINSTALL)


def _gpu() -> Iterator[HealthCheck]:
    import torch

    count = gpu_count()
    if not count:
        hint = "an NVIDIA driver is needed" if platform.system() == "Linux" else "CUDA needs Linux with an NVIDIA GPU"
        yield HealthCheck("gpu", "absent", f"none: everything runs on the CPU ({hint} for more)")
        return
    if not torch.cuda.is_available():
        cure = f"Update the NVIDIA driver to one that supports CUDA {torch.version.cuda}"
        yield HealthCheck("gpu", "broken", f"the driver counts {count}, torch {torch.__version__} can use none", cure)
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        amp = "bf16" if facts.major >= 8 else "fp16 with a GradScaler"
        size = facts.total_memory / 2**30
        yield HealthCheck(
            f"gpu {index}", "ok", f"{facts.name}, capability {facts.major}.{facts.minor}, {size:.0f} GiB; trains in {amp}"
        )


def own_target() -> tuple[str, str]:
    """The Python and the CUDA of this machine, as a bundle names its target: `3.12` and `13`, or `cpu` where no GPU works."""
    import sys

    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not gpu_count():
        return python, "cpu"
    import torch

    major = (torch.version.cuda or "").partition(".")[0]
    return python, major if torch.cuda.is_available() and major else "cpu"


def _providers() -> Iterator[HealthCheck]:
    """Open a tiny model on every provider: being listed by onnxruntime proves nothing."""
    import tempfile

    from onnx import TensorProto, helper

    shape = ["n", 3, 4, 4]
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe.onnx")
        path.write_bytes(model.SerializeToString())
        for name in PROVIDERS:
            try:
                open_session({"probe": path}, device=name)
                yield HealthCheck(f"--device {name}", "ok", "opens")
            except (DeviceError, ModelError) as error:
                wanted = gpu_count() > 0 and name == "cuda"
                cure = 'pip install "onnxruntime-gpu[cuda,cudnn]"' if wanted else ""
                cure = error.hint if name == "openvino" else cure
                yield HealthCheck(f"--device {name}", "broken" if wanted else "absent", error.message, cure)
