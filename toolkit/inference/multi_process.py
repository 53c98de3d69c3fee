"""One prediction spread over several processes: each fills the store with the rows of its shard, and the caller reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from toolkit.base.runners.jobs import RUNNERS, Job
from toolkit.images import boxes as boxing
from toolkit.images.boxes import Boxes, Plain
from toolkit.inference.predict import Progress, predict
from toolkit.inference.store.prediction_store import Store
from toolkit.runtime.devices import gpu_count
from toolkit.runtime.graphs import onnx_file
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.runtime.session import Session, open_session
from toolkit.workspace.image_rows import Item

SHARD = 2048  # images per job: a worker that is late holds the others up by at most one

Views = Mapping[str, Sequence[str]]
"""The views of each model, by digest."""


def fill(
    exports: Sequence[Export],
    views: Views,
    items: Sequence[Item],
    store: Path,
    *,
    device: str,
    precision: str = "fp32",
    key: str = "fp32",
    files: Mapping[str, Path] | None = None,
    batch: int | None = None,
    boxes: Boxes = boxing.NONE,
    workers: int = 0,
    shard: int = SHARD,
    runner: str = "processes",
    progress: Progress | None = None,
) -> int:
    """Bring the rows of every item into the store, by a process per GPU or by `workers`; how many passes were made.

    `runner` is one of RUNNERS. `files` are opened instead of the exports where there are such (quantised ones), `key` is the
    precision in the store's keys. Afterwards `predict` finds every row there; images that cannot be used are found by it, and
    no job fails of them.

    Raises:
        ToolkitError: a process was ended from outside.
        DeviceError, ModelError, StoreError: see `predict`.
    """
    gpus = gpu_count() if device not in ("cpu", "openvino") else 0
    opened = {export.digest: str((files or {}).get(export.digest, export.path)) for export in exports}
    common = (
        tuple(str(export.path) for export in exports),
        tuple((export.digest, tuple(views[export.digest])) for export in exports),
        str(store),
        (device, precision, key, batch, tuple(opened.items())),
    )
    names = sorted({export.card.preprocess.box for export in exports})

    def job(start: int) -> Job:
        part = tuple((item.id, str(item.path)) for item in items[start : start + shard])
        return Job("toolkit.inference.multi_process:work", (*common, part, boxes.plain(names, part)))

    jobs = (job(start) for start in range(0, len(items), shard))
    done = passes = 0
    for count, made in RUNNERS[runner](jobs, workers=workers or max(gpus, 1), gpus=gpus):
        done, passes = done + count, passes + made
        if progress:
            progress(done, len(items))
    return passes


def work(
    paths: Sequence[str],
    views: Sequence[tuple[str, Sequence[str]]],
    store: str,
    how: tuple[str, str, str, int | None, tuple[tuple[str, str], ...]],
    items: Sequence[tuple[str, str]],
    boxes: Plain = (),
) -> tuple[int, int]:
    """One shard in a worker: (images, passes). Sessions stay open for the next one."""
    device, precision, key, batch, files = how

    def opener(models: Mapping[str, Path], *, device: str, batch: int | None) -> Session:
        return _session(tuple((digest, dict(files)[digest]) for digest in models), device, batch, precision)

    outcome = predict(
        _exports(tuple(paths)),
        dict(views),
        [Item(name, Path(path)) for name, path in items],
        Store(Path(store)),
        device=device,
        batch=batch,
        precision=key,
        boxes=Boxes.of_plain(boxes),
        opener=opener,
    )
    return len(items), outcome.passes


@lru_cache(maxsize=1)
def _exports(paths: tuple[str, ...]) -> list[Export]:
    return [onnx_file.read(Path(path)) for path in paths]


@lru_cache
def _session(models: tuple[tuple[str, str], ...], device: str, batch: int | None, precision: str) -> Session:
    named = {digest: Path(path) for digest, path in models}
    return open_session(named, device=device, batch=batch, precision=precision)
