"""One worker of a bundle: models one after another over a shard of the images on one device, without torch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base import files
from toolkit.base.arrays import F32, U8, Ints
from toolkit.base.runners.threads import spread
from toolkit.core import voting
from toolkit.core.cards import Preprocess
from toolkit.errors import DeviceError, ImageError, ModelError, ToolkitError, counted
from toolkit.images import decode, geometry
from toolkit.images.boxes import Box
from toolkit.images.treatments import CutShortError
from toolkit.images.views import Cut, parse
from toolkit.runtime.devices import PROVIDERS
from toolkit.submissions.bundle.contents import DONE, PART, Model

BLOCK = 64  # images decoded and run together
SPARE = 1 << 30  # bytes of temporary space that the pixel cache leaves free
FAILED, BAD, CUT_SHORT = ".failed", "bad.jsonl", "cut-short.jsonl"


@dataclass(frozen=True)
class Job:
    """What one worker does: models (in this order) over the images of its shard, results into the folder `out`."""

    bundle: str
    out: str
    device: str
    models: tuple[Model, ...]
    paths: tuple[str, ...]
    boxes: Mapping[str, Sequence[Box | None]] = field(default_factory=dict)  # by name, one per path
    partial: bool = False  # of pictures cut short what is there is used

    def write(self, path: Path) -> Path:
        """Keep the job for the process that does it."""
        return files.write_text(path, json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read what `write` wrote: as long as there are images, with names in any bytes."""
        raw = json.loads(files.read(path))
        models = tuple(Model(**(model | {"views": tuple(model["views"])})) for model in raw["models"])
        boxes = {name: [box and Box(*box) for box in every] for name, every in raw["boxes"].items()}
        return cls(**(raw | {"models": models, "paths": tuple(raw["paths"]), "boxes": boxes}))


def work(job: Job) -> None:
    """Do the job. Per model a table float64 (images, classes of all outputs) grows in place: NaN where nothing is known yet.

    A finished table is renamed to `<key>.npy`; a model that cannot be used leaves `<key>.failed` with the reason. Whatever
    was done before (by a worker that died) is kept and not done again.

    Raises:
        DeviceError: the device is not there.
        StoreError: the results cannot be written.
    """
    out = Path(job.out)
    source = _Pixels(job, out)
    for model in job.models:
        if (out / f"{model.key}{DONE}").exists() or (out / f"{model.key}{FAILED}").exists():
            continue
        table = _table(out / f"{model.key}{PART}", (len(job.paths), model.classes))
        try:
            _fill(job, model, table, source)
        except ModelError as error:
            files.write_text(out / f"{model.key}{FAILED}", error.message)
            continue
        table.flush()
        (out / f"{model.key}{PART}").replace(out / f"{model.key}{DONE}")


def _table(path: Path, shape: tuple[int, int]) -> Any:
    if path.exists():
        return np.lib.format.open_memmap(path, mode="r+")
    with files.explained(path):
        fresh = path.with_suffix(".new")
        table = np.lib.format.open_memmap(fresh, mode="w+", dtype=np.float64, shape=shape)
        table[:] = np.nan
        table.flush()
        fresh.replace(path)
    return np.lib.format.open_memmap(path, mode="r+")


def _fill(job: Job, model: Model, table: Any, source: _Pixels) -> None:
    path = Path(job.bundle, model.file)
    if files.sha256(path) != model.sha256:
        raise ModelError(f"{model.file} is not the file that was bundled: it was damaged on the way")
    card = model.read_card
    run = _runner(path, job.device)
    todo = np.flatnonzero(np.isnan(table).any(axis=1))
    for rows, pixels in source.blocks(card.preprocess, _cuts([model])[card.preprocess], todo):
        views = [run(geometry.turned(pixels[cut], turn)) for cut, turn in map(parse, model.views)]
        if any(logits.shape[1] != card.width for logits in views):
            raise ModelError(f"{model.file} gives {counted(views[0].shape[1], 'logits')} where its card says {card.width}")
        table[rows] = np.concatenate([voting.merge_views(views, output) for output in card.outputs], axis=1)


def _runner(path: Path, device: str) -> Callable[[U8], F32]:
    """A function from uint8 (N, 3, H, W) to logits float32 (N, width), on the CPU or on the one GPU that this process sees.

    Sessions of the library share backbones and place batches with torch; one model at a time needs neither.
    """
    try:
        import onnxruntime as ort
    except ModuleNotFoundError:
        raise DeviceError("onnxruntime is not installed: pip install it, or bundle with wheels") from None
    provider = PROVIDERS[device]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if device == "cpu":
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # a thread per batch, as `sessions` found best
    else:
        ort.preload_dlls()
    try:
        session = ort.InferenceSession(str(path), options, providers=[(provider.execution, dict(provider.options))])
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise ModelError(f"onnxruntime cannot load {path.name}: {error}") from error
    if session.get_providers()[0] != provider.execution:  # it falls back with only a log line
        raise DeviceError(f"onnxruntime opened {path.name} on {session.get_providers()[0]}: a CUDA library is missing")
    workers = ThreadPoolExecutor((os.cpu_count() or 1) if device == "cpu" else 1)
    name, size = session.get_inputs()[0].name, provider.batch

    def padded(part: U8) -> F32:
        whole = np.zeros((size, *part.shape[1:]), dtype=np.uint8)  # one shape only: GPUs tune each new one, and rows
        whole[: len(part)] = part  # must not depend on how many others there are
        logits: F32 = session.run(None, {name: whole})[0]
        if logits.ndim != 2 or len(logits) != size:
            raise ModelError(f"{path.name} gives an output of shape {logits.shape} for {counted(size, 'images')}")
        return logits[: len(part)]

    return lambda pixels: np.concatenate(list(workers.map(padded, [pixels[i : i + size] for i in range(0, len(pixels), size)])))


def _cuts(models: Sequence[Model]) -> dict[Preprocess, list[Cut]]:
    """What the views of models want cut from each decoded image."""
    wanted: dict[Preprocess, dict[Cut, None]] = {}
    for model in models:
        wanted.setdefault(model.read_card.preprocess, {}).update((parse(view)[0], None) for view in model.views)
    return {preprocess: list(cuts) for preprocess, cuts in wanted.items()}


class _Pixels:
    """The images of a shard as all views of its models want them: decoded once, then kept on disk where there is room."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.paths, self.boxes = job.paths, job.boxes
        self.bad, self.cut_short, self.partial = folder / BAD, folder / CUT_SHORT, job.partial
        self._unusable = set(bad_images(folder))
        self._wanted = _cuts(job.models)
        self._kept: dict[tuple[Preprocess, Cut], Any] = {}
        self._rendered = np.zeros(len(self.paths), dtype=bool)
        keys = [(preprocess, cut) for preprocess, cuts in self._wanted.items() for cut in cuts]
        size = sum(3 * preprocess.size[0] * preprocess.size[1] for preprocess, _ in keys)
        if len(job.models) > 1 and len(self.paths) * size + SPARE < shutil.disk_usage(folder).free:
            for key in keys:
                path = folder / f"pixels.{len(self._kept)}.{os.getpid()}"
                self._kept[key] = np.memmap(path, np.uint8, "w+", shape=(len(self.paths), 3, *key[0].size))

    def blocks(self, preprocess: Preprocess, cuts: Sequence[Cut], rows: Ints) -> Iterator[tuple[Ints, dict[Cut, U8]]]:
        """Rows that can be used with their pixels by cut, the next block being decoded while the caller computes."""
        parts = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
        with ThreadPoolExecutor(1) as ahead:
            coming = [ahead.submit(self._block, preprocess, cuts, part) for part in parts[:1]]
            for place in range(len(parts)):
                usable, pixels = coming.pop().result()
                coming += [ahead.submit(self._block, preprocess, cuts, part) for part in parts[place + 1 : place + 2]]
                if len(usable):
                    yield usable, pixels

    def _block(self, preprocess: Preprocess, cuts: Sequence[Cut], rows: Ints) -> tuple[Ints, dict[Cut, U8]]:
        wanted = self._wanted if self._kept else {preprocess: cuts}
        fresh = [row for row in rows.tolist() if not self._rendered[row] and row not in self._unusable]
        rendered = dict(zip(fresh, spread(lambda row: self._render(row, wanted), fresh, os.cpu_count() or 1), strict=True))
        for row, pixels in rendered.items():
            if isinstance(pixels, str):
                self._refuse(row, pixels)
            elif self._kept:
                for key, values in pixels.items():
                    self._kept[key][row] = values
                self._rendered[row] = True
        usable = np.array([row for row in rows.tolist() if row not in self._unusable], dtype=np.int64)
        if self._kept:
            return usable, {cut: np.asarray(self._kept[preprocess, cut][usable]) for cut in cuts}
        parts = {cut: [rendered[row][preprocess, cut] for row in usable.tolist()] for cut in cuts}
        return usable, {cut: np.stack(images) for cut, images in parts.items() if images}

    def _render(self, row: int, wanted: Mapping[Preprocess, Sequence[Cut]]) -> dict[tuple[Preprocess, Cut], U8] | str:
        """One image in every cut, or why it cannot be used."""
        path, boxes = self.paths[row], {name: own[row] for name, own in self.boxes.items()}
        try:
            data = decode.read(Path(path))
            try:
                return geometry.cut_all(data, path, wanted, boxes)
            except CutShortError as error:
                if not self.partial:
                    raise
                pixels = geometry.cut_all(data, path, wanted, boxes, partial=True)
                _note(self.cut_short, row, error.message)
                return pixels
        except ImageError as error:
            return error.message

    def _refuse(self, row: int, why: str) -> None:
        self._unusable.add(row)
        _note(self.bad, row, why)


def _note(path: Path, row: int, why: str) -> None:
    """Add a line on an image of the shard; lines of several threads do not mix, since each is written at once."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"image": row, "why": why}) + "\n")


def bad_images(out: Path) -> dict[int, str]:
    """Places of the images of a shard that could not be used so far, and why."""
    return _noted(out / BAD)


def cut_short(out: Path) -> dict[int, str]:
    """Places of those of which only what is there was used so far, and what is missing."""
    return _noted(out / CUT_SHORT)


def _noted(path: Path) -> dict[int, str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    bad = [json.loads(line) for line in lines if line.endswith("}")]  # the last may be cut short
    return {image["image"]: image["why"] for image in bad}


def work_on(job: Path) -> int:
    """Do the job in that file; 0 if it is done, else the reason stands beside it in `error`."""
    try:
        work(Job.read(job))
    except ToolkitError as error:
        why = error.message
    except MemoryError as error:
        why = f"memory ran out ({error})" if str(error) else "memory ran out"
    except ImportError as error:
        why = f"a package is missing or broken: {error}"
    else:
        return 0
    files.write_text(job.with_name("error"), why)
    return 1
