"""Short timings of engines on this machine, kept so that none is timed twice."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from toolkit.base import documents, files
from toolkit.errors import StoreError
from toolkit.runtime.devices import cores, gpu_count
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.runtime.session import Session

LONG = 1.0  # seconds
ROUNDS, SECONDS = 3, 0.25  # each engine is timed so often for about so long, in turn; its best counts

Opening = Callable[[], Session]


def rates(path: Path, export: Export, ways: Mapping[str, tuple[str, Opening]]) -> dict[str, float]:
    """Images per second of a model by each way's name: from the file at `path`, or timed now and kept there.

    A way is what identifies its engine (runtime, version, precision), and how to open it. Timings depend on the machine, the
    cores this process may use, the model and the engine, and on nothing else.

    Raises:
        DeviceError, ModelError: a session cannot be opened.
    """
    kept = _read(path)
    keys = {name: f"{_machine()}/{export.digest}/{engine}" for name, (engine, _) in ways.items()}
    todo = [name for name in ways if keys[name] not in kept]
    if todo:
        measured = _measured(export, {name: ways[name][1] for name in todo})
        kept |= {keys[name]: rate for name, rate in measured.items()}
        with suppress(StoreError):  # a workspace that cannot be written only has them timed again
            files.write_text(path, json.dumps(kept, indent=1))
    return {name: float(kept[keys[name]]) for name in ways}


def _measured(export: Export, openings: Mapping[str, Opening]) -> dict[str, float]:
    """The best of a few short runs of each, taken in turn, so that a busy moment does not fall on one of them alone."""
    sessions = {name: opening() for name, opening in openings.items()}
    height, width = export.card.preprocess.size
    batches, times = {}, {}
    for name, session in sessions.items():
        count = session.batch * (cores() if session.device in ("cpu", "openvino") else 1)
        batches[name] = session.place(np.random.default_rng(0).integers(0, 256, (count, 3, height, width), dtype=np.uint8))
        session.run(batches[name], "id")  # what is allocated or tuned at first
        started = time.perf_counter()
        session.run(batches[name], "id")
        times[name] = time.perf_counter() - started
    repeats = {name: max(1, int(SECONDS / took)) for name, took in times.items()}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            if times[name] > LONG:
                continue  # long enough to be told from noise, and too long to be had three times more
            started = time.perf_counter()
            for _ in range(repeats[name]):
                session.run(batches[name], "id")
            times[name] = min(times[name], (time.perf_counter() - started) / repeats[name])
    return {name: len(batches[name]) / times[name] for name in sessions}


def _machine() -> str:
    """What the timings depend on of the machine: its processor, the cores that may be used, its GPUs."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        facts = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in reversed(lines)}
        name = " ".join(facts.get(key, "") for key in ("model name", "cpu family", "model", "stepping"))
    return f"{name} × {cores()} + {gpu_count()} GPU"


def _read(path: Path) -> dict[str, float]:
    try:
        kept = documents.read_json(path)
    except (OSError, ValueError):
        return {}  # it only saves time
    return {k: float(v) for k, v in kept.items() if isinstance(v, int | float)} if isinstance(kept, dict) else {}
