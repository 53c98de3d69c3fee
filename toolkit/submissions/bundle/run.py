"""What a bundle does when it runs: a hidden test set to a submission, without network, torch or pandas, in time."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from toolkit.base import durations
from toolkit.errors import DeviceError, ToolkitError, counted
from toolkit.runtime.devices import gpu_count
from toolkit.submissions.bundle.contents import Blended, Model, Part, Recipe, agreement_line, blend
from toolkit.submissions.bundle.request import Asked, NoBoxesError, Request, read_request, write_submission
from toolkit.submissions.bundle.worker import FAILED, Job, bad_images, cut_short, work_on

SPARE = 1.0  # seconds of the deadline kept beside the time that writing takes
POLL = 0.1  # seconds between looks at the workers

# what an error's code means to whoever runs the bundle: the option that helps, added to the hint
ADVICE: dict[str, str] = {
    "bundle-boxes": "Write it as --boxes NAME=FILE.csv.",
    "bundle-sample": "Name it with --sample FILE.",
    "bundle-table": "Name the table that has these columns with --table FILE.",
    "device-cpu": "Or use --device cpu.",
}

Say = Callable[[str], object]


@dataclass(eq=False)
class _Worker:
    """A process, the part of the images it works on and the device it has."""

    place: int
    part: Part
    device: str
    process: subprocess.Popen[bytes] | None = None
    retried: bool = False

    @property
    def error(self) -> str:
        """Why it gave up, if it said so."""
        path = self.part.out / "error"
        return path.read_text(encoding="utf-8") if path.exists() else ""


def main(folder: Path, arguments: Sequence[str], say: Say, started: float) -> int:
    """`python run.py`: 0 if a submission was written from all that could be, 1 if something went wrong (said by `say`).

    `started` is when the program began (time.monotonic()), from which a deadline counts.
    """
    if list(arguments[:1]) == ["--worker"]:
        return work_on(Path(arguments[1]))
    try:
        recipe = Recipe.read(folder)
        options = _arguments(recipe).parse_args(arguments)
        deadline = durations.seconds(options.deadline) if options.deadline else recipe.deadline
        boxes = {name: file for name, _, file in (text.partition("=") for text in options.boxes)}
        asked = Asked(options.test, options.out, options.sample, options.table, boxes)
        return run(read_request(folder, recipe, asked), options.device, deadline, started, say)
    except ToolkitError as error:
        _say_error(error, say)
        return 1


def _say_error(error: ToolkitError, say: Say) -> None:
    hint = _hint(error)
    say(f"Error: {error.message}" + (f"\nHint: {hint}" if hint else ""))


def _hint(error: ToolkitError) -> str:
    """The error's own hint and the option that helps."""
    advice = f"--boxes {error.name}=FILE.csv" if isinstance(error, NoBoxesError) else ADVICE.get(error.code, "")
    return " ".join(filter(None, (error.hint, advice)))


def _arguments(recipe: Recipe) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py", description=f"Predict a test set with the bundled ensemble {recipe.name!r}."
    )
    parser.add_argument("--test", type=Path, required=True, help="the folder of test images")
    parser.add_argument("--sample", type=Path, help="the sample submission, whose rows are filled in")
    parser.add_argument("--table", type=Path, help="the table of the test images, if the sample does not name their files")
    parser.add_argument(
        "--boxes", action="append", default=[], metavar="NAME=FILE", help="a table of an id and a box per row; may be repeated"
    )
    parser.add_argument("--out", type=Path, default=Path("submission.csv"), help="the file to write")
    parser.add_argument("--deadline", default="", help="stop in time and write what there is, as in 8h30m")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    return parser


def run(request: Request, device: str, deadline: float, started: float, say: Say) -> int:
    """Write the prior, then work, then write what the models say; again after each model, so that a file always stands.

    Raises:
        DeviceError: CUDA was asked for and is not there.
        StoreError: the submission cannot be written.
    """
    recipe = request.wanted.recipe
    for warning in request.warnings:
        say(f"Warning: {warning}")
    for fault in request.faults:
        _say_error(fault, say)
    _write(request, ())  # a file stands from here on, whatever happens
    devices = _devices(device, recipe, len(request.paths))
    packed = f"{recipe.created[:16].replace('T', ' ')}: {counted(len(recipe.models), 'models')}"
    say(f"Bundle {recipe.name!r} of {packed}, vote {recipe.vote}, format {recipe.form}")
    say(agreement_line(recipe.agreement))
    where = f"{len(devices)} × {devices[0]}" if devices else "nothing to do"
    limit = f", to end within {deadline:,.0f} s" if deadline else ""
    say(f"{counted(len(request.sheet.once), 'rows')}, {counted(len(request.paths), 'images')}, {where}{limit}")
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        bounds = np.linspace(0, len(request.paths), len(devices) + 1).astype(int).tolist()
        parts = [Part(start, stop, Path(scratch, str(start))) for start, stop in pairwise(bounds)]
        workers = [_Worker(place, part, devices[place]) for place, part in enumerate(parts)]
        try:
            late = _watch(request, workers, started + deadline if deadline else float("inf"), say)
        finally:
            for worker in workers:
                _stop(worker)
        blended, _ = _write(request, parts)
        return _report(request, workers, blended, late=late, spent=time.monotonic() - started, say=say)


def _devices(device: str, recipe: Recipe, count: int) -> list[str]:
    """A worker per GPU, or one on the CPU; none without images."""
    gpus = 0 if device == "cpu" or (device == "auto" and recipe.cuda == "cpu") else gpu_count()
    if device == "cuda" and not gpus:
        raise DeviceError("CUDA was asked for, but no CUDA device can be used here", code="device-cpu")
    return (["cuda"] * gpus or ["cpu"])[:count]


def _start(request: Request, worker: _Worker) -> None:
    part = worker.part
    paths = request.paths[part.start : part.stop]
    boxes = {name: every[part.start : part.stop] for name, every in request.boxes.items()}
    recipe = request.wanted.recipe
    job = Job(str(request.folder), str(part.out), worker.device, recipe.models, paths, boxes, recipe.partial)
    path = job.write(part.out / "job.json")
    (part.out / "error").unlink(missing_ok=True)
    env = dict(os.environ)
    if worker.device == "cuda":
        visible = [name for name in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        env["CUDA_VISIBLE_DEVICES"] = visible[worker.place] if visible else str(worker.place)
    command = [sys.executable, str(request.folder / "run.py"), "--worker", str(path)]
    worker.process = subprocess.Popen(command, env=env)  # noqa: S603 - our own script with our own interpreter


def _stop(worker: _Worker) -> None:
    if worker.process is not None and worker.process.poll() is None:
        worker.process.kill()
        worker.process.wait()


def _watch(request: Request, workers: Sequence[_Worker], end: float, say: Say) -> bool:
    """Wait for the workers, writing again when a model is done everywhere; whether the deadline came first."""
    models, parts = request.wanted.recipe.models, [worker.part for worker in workers]
    _, writing = _write(request, parts)
    for worker in workers:
        _start(request, worker)
    told: set[str] = set()
    wrote = time.monotonic()
    while sum(_alive(request, worker, say) for worker in workers):  # sum looks at every worker, any() would stop at the first
        now = time.monotonic()
        if now > end - 2 * writing - SPARE:
            return True
        done = [model for model in models if all(part.finished(model) for part in parts)]
        if fresh := [model for model in done if model.key not in told]:
            told |= {model.key for model in fresh}
            say(f"  {', '.join(model.title for model in fresh)}: {len(told)} of {len(models)}")
            if now - wrote > 10 * writing and len(told) < len(models):
                writing, wrote = _write(request, parts)[1], time.monotonic()
        time.sleep(POLL)
    return False


def _alive(request: Request, worker: _Worker, say: Say) -> bool:
    """Whether a worker still works; one that died is started once more, on the CPU, and goes on where it was."""
    code = worker.process.poll() if worker.process else 0
    if code is None:
        return True
    if code == 0 or worker.retried:
        return False
    why = worker.error or f"it ended with exit code {code}"
    say(f"Warning: worker {worker.place} on {worker.device} stopped ({why}); it goes on, on the CPU")
    worker.device, worker.retried = "cpu", True
    _start(request, worker)
    return True


def _write(request: Request, parts: Sequence[Part]) -> tuple[Blended, float]:
    """Blend what there is and write it; the seconds it took."""
    started = time.monotonic()
    blended = blend(request.wanted, parts)
    form = request.wanted.recipe.form
    write_submission(request.output, request.sheet, form, request.columns, blended.predictions)
    return blended, time.monotonic() - started


def _report(request: Request, workers: Sequence[_Worker], blended: Blended, *, late: bool, spent: float, say: Say) -> int:
    models, rows = request.wanted.recipe.models, len(request.sheet.once)
    say(
        f"Wrote {request.output}: {counted(rows, 'rows')} from {len(blended.models)} of {counted(len(models), 'models')} "
        f"in {spent:,.1f} s"
    )
    broken = _failures(models, workers)
    for line in broken:
        say(f"Warning: {line}")
    rest = [model.title for model in models if not all(worker.part.finished(model) for worker in workers)]
    if rest:
        say(f"Not finished{' before the deadline' if late else ''}: {', '.join(rest)}")
    if bad := [why for worker in workers for why in bad_images(worker.part.out).values()]:
        say("\n  ".join([f"{counted(len(bad), 'images')} cannot be used:", *bad[:10]]))
    if cut := [why for worker in workers for why in cut_short(worker.part.out).values()]:
        say("\n  ".join([f"{counted(len(cut), 'images are')} not whole; what is there was used:", *cut[:10]]))
    if blended.partial:
        say(f"{counted(blended.partial, 'rows have')} the word of a single model")
    if blended.prior:
        say(f"{counted(blended.prior, 'rows have')} the class prior")
    return int(bool(broken or request.faults or (rest and not late) or blended.prior == rows))


def _failures(models: Sequence[Model], workers: Sequence[_Worker]) -> list[str]:
    failures = [f"worker {worker.place}: {worker.error}" for worker in workers if worker.error]
    for worker in workers:
        for model in models:
            path = worker.part.out / f"{model.key}{FAILED}"
            if path.exists():
                failures.append(f"{model.title} cannot be used: {path.read_text(encoding='utf-8')}")
    return list(dict.fromkeys(failures))
