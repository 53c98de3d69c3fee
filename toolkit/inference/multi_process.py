"""One prediction spread over several processes: each fills the store with the rows of its shard, and the caller reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from toolkit.base.runners.jobs import RUNNERS, Job
from toolkit.images.boxes import NO_BOXES, Boxes, Plain
from toolkit.inference.execution import Execution
from toolkit.inference.exports import Views
from toolkit.inference.predict import predict
from toolkit.inference.store.prediction_store import Store
from toolkit.runtime.devices import gpu_count
from toolkit.runtime.graphs import onnx_file
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.runtime.session import Session, open_session
from toolkit.workspace.image_rows import Item

SHARD = 2048  # images per job: a worker that is late holds the others up by at most one

_Plain = tuple[str, str, int | None, tuple[tuple[str, str], ...]]  # device, precision, batch, and the files to open by digest


def fill(
    exports: Sequence[Export],
    views: Views,
    items: Sequence[Item],
    store: Path,
    execution: Execution,
    *,
    boxes: Boxes = NO_BOXES,
) -> int:
    """Bring the rows of every item into the store (a folder) by `execution.workers` processes; how many passes were made.

    Its runner is "processes" unless it names another; without a number of workers it is one per GPU. Afterwards `predict`
    finds every row there; images that cannot be used are found by it, and no job fails of them.

    Raises:
        ToolkitError: a process was ended from outside.
        DeviceError, ModelError, StoreError: see `predict`.
    """
    gpus = gpu_count() if execution.device not in ("cpu", "openvino") else 0
    opened = {export.digest: str(execution.files.get(export.digest, export.path)) for export in exports}
    common = (
        tuple(str(export.path) for export in exports),
        tuple((export.digest, tuple(views[export.digest])) for export in exports),
        str(store),
        (execution.device, execution.precision, execution.batch, tuple(opened.items())),
    )
    names = sorted({export.card.preprocess.box for export in exports})

    def job(start: int) -> Job:
        part = tuple((item.id, str(item.path)) for item in items[start : start + SHARD])
        return Job("toolkit.inference.multi_process:work", (*common, part, boxes.plain(names, part)))

    jobs = (job(start) for start in range(0, len(items), SHARD))
    run = RUNNERS[execution.runner or "processes"]
    done = passes = 0
    for images, shard_passes in run(jobs, workers=execution.workers or max(gpus, 1), gpus=gpus):
        done, passes = done + images, passes + shard_passes
        if execution.progress:
            execution.progress(done, len(items))
    return passes


def work(
    paths: Sequence[str],
    views: Sequence[tuple[str, Sequence[str]]],
    store: str,
    how: _Plain,
    items: Sequence[tuple[str, str]],
    boxes: Plain = (),
) -> tuple[int, int]:
    """One shard in a worker: (images, passes). Sessions stay open for the next one."""
    device, precision, batch, files = how
    named = {digest: Path(path) for digest, path in files}
    with Store(Path(store)) as opened:
        outcome = predict(
            _exports(tuple(paths)),
            dict(views),
            [Item(name, Path(path)) for name, path in items],
            opened,
            Execution(device=device, precision=precision, batch=batch, files=named, opener=_opened),
            boxes=Boxes.of_plain(boxes),
        )
    return len(items), outcome.passes


@lru_cache(maxsize=1)
def _exports(paths: tuple[str, ...]) -> list[Export]:
    return [onnx_file.read(Path(path)) for path in paths]


def _opened(
    models: Mapping[str, Path], *, device: str, batch: int | None, precision: str = "fp32", cache: Path | None = None
) -> Session:
    return _session(tuple(models.items()), device, batch, precision, cache)


@lru_cache
def _session(
    models: tuple[tuple[str, Path], ...], device: str, batch: int | None, precision: str, cache: Path | None
) -> Session:
    return open_session(dict(models), device=device, batch=batch, precision=precision, cache=cache)
