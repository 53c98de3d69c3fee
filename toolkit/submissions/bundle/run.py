"""What a bundle does when it runs: a hidden test set to a submission, without network, torch or pandas, in time."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from toolkit.base import durations
from toolkit.errors import DataError, DeviceError, ToolkitError, few
from toolkit.images import render
from toolkit.images.boxes import Box, BoxTable, unknown
from toolkit.runtime.devices import gpu_count
from toolkit.submissions.bundle import csv_writer
from toolkit.submissions.bundle import worker as shards
from toolkit.submissions.bundle.contents import Outcome, Part, Recipe, Wanted, agreement_line, blend
from toolkit.submissions.bundle.csv_writer import Sheet
from toolkit.submissions.bundle.worker import Job, Model
from toolkit.workspace import long_form, path_patterns
from toolkit.workspace.competition import Competition

SPARE = 1.0  # seconds of the deadline kept beside the time that writing takes
POLL = 0.1  # seconds between looks at the workers

Say = Callable[[str], object]


@dataclass(frozen=True, eq=False)
class _Plan:
    """All that a run knows: what to predict with, the rows that are wanted, the image files and where the answer goes."""

    folder: Path
    wanted: Wanted
    sheet: Sheet
    paths: tuple[str, ...]
    boxes: Mapping[str, Sequence[Box | None]]
    output: Path


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
        return shards.main(Path(arguments[1]))
    try:
        recipe = Recipe.read(folder)
        asked = _arguments(recipe).parse_args(arguments)
        deadline = durations.seconds(asked.deadline) if asked.deadline else recipe.deadline
        return run(_plan(folder, recipe, asked), asked.device, deadline, started, say)
    except ToolkitError as error:
        say(f"Error: {error.message}" + (f"\nHint: {error.hint}" if error.hint else ""))
        return 1


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


def _plan(folder: Path, recipe: Recipe, asked: argparse.Namespace) -> _Plan:
    competition = Competition.read(folder)
    key, pattern = competition.sample_id, competition.test.pattern
    table: tuple[tuple[str, ...], Sequence[Sequence[str]]] | None = csv_writer.read(asked.table) if asked.table else None
    if asked.sample:
        sheet = csv_writer.sample(asked.sample, key, recipe.header, recipe.form, recipe.fields, competition.targets)
    else:
        ids = _column(table, key, asked.table) if table else _ids_of(asked.test, pattern, key)
        sheet = csv_writer.of_ids(list(dict.fromkeys(ids)), key, recipe.header, recipe.form)
    if table is None:
        long = recipe.form in long_form.NAMES
        table = ((key,), [[name] for name in sheet.once]) if long else (sheet.header, sheet.rows)
    header, rows = table
    path_patterns.require(pattern, header, f"the rows that name the test images (--table sets them); [test] in {folder.name}")
    place = {name: i for i, name in enumerate(sheet.once)}
    find = path_patterns.finder(asked.test)
    found = []
    names = _column(table, key, asked.table or asked.sample)
    for number, (name, row) in enumerate(zip(names, rows, strict=True)):
        pieces = path_patterns.fill(pattern, dict(zip(header, row, strict=True)))
        files = find(pieces) or ["*".join(pieces)]
        found += [(place[name], number, str(asked.test / file)) for file in files if name in place]
    found.sort(key=lambda one: one[0])
    owner = np.array([row for row, _, _ in found], dtype=np.int64)
    wanted = Wanted(recipe, competition, sheet.once, owner)
    given = _given(asked.boxes, _framed(recipe))
    boxes = {box: _boxes(competition, box, table, names, given) for box in _framed(recipe)}
    every = {box: [there[number] for _, number, _ in found] for box, there in boxes.items()}
    return _Plan(folder, wanted, sheet, tuple(path for _, _, path in found), every, asked.out)


def _framed(recipe: Recipe) -> list[str]:
    """The names of the boxes that the models look into."""
    return sorted({model.read_card.preprocess.box for model in recipe.models} - {""})


def _given(said: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """The files that `--boxes` names."""
    found = {name: file for name, _, file in (text.partition("=") for text in said)}
    for name, file in found.items():
        if name not in wanted or not file:
            there = few(wanted) if wanted else "none"
            raise DataError(
                f"--boxes {name}{f'={file}' if file else ''}: the models look into {there}",
                hint="Write it as --boxes NAME=FILE.csv.",
            )
    return found


def _boxes(
    competition: Competition,
    name: str,
    table: tuple[Sequence[str], Sequence[Sequence[str]]],
    ids: Sequence[str],
    files: Mapping[str, str],
) -> list[Box | None]:
    """The box of every row of the table, from its own columns or those of a table of `--boxes`."""
    said = competition.boxes_of.get(name)
    if said is None:
        raise unknown(name, list(competition.boxes_of))
    if name in files or not set(said.columns) <= set(table[0]):
        if name not in files:
            raise DataError(f"nothing says where the boxes {name!r} of the test images are", hint=f"--boxes {name}=FILE.csv")
        other = csv_writer.read(Path(files[name]))
        key = competition.sample_id if competition.sample_id in other[0] else competition.id
        by_id = dict(zip(_column(other, key, files[name]), _cells(other, said, files[name]), strict=True))
        if missing := [one for one in ids if one not in by_id]:
            raise DataError(f"{files[name]} has no row for {len(missing):,} ids: {few(missing)}")
        return [said.box(by_id[one], f"{files[name]}, {one!r}") for one in ids]
    return [said.box(four, f"row {one!r}") for one, four in zip(ids, _cells(table, said, "the table"), strict=True)]


def _cells(table: tuple[Sequence[str], Sequence[Sequence[str]]], said: BoxTable, where: object) -> list[tuple[str, ...]]:
    return list(zip(*(_column(table, column, where) for column in said.columns), strict=True))


def _column(table: tuple[Sequence[str], Sequence[Sequence[str]]], key: str, where: object) -> list[str]:
    header, rows = table
    if key not in header:
        raise DataError(f"{where} has no column {key!r}; it has {few(header, limit=12)}")
    return [row[list(header).index(key)] for row in rows]


def _ids_of(folder: Path, pattern: str, key: str) -> list[str]:
    """The ids that the files of a folder stand for, where the pattern says no more than that."""
    plain = re.fullmatch(r"([^{}*]*)\{" + re.escape(key) + r"\}([^{}*]*|\.\*)", pattern)
    if not plain:
        raise DataError(f"the ids cannot be told from files named {pattern!r}", hint="Name the sample with --sample FILE.")
    before, after = plain.groups()
    end = r"\.[^./]+" if after == ".*" else re.escape(after)
    names = [path.relative_to(folder).as_posix() for path in render.find(folder)]
    found = [re.fullmatch(f"{re.escape(before)}(.+){end}", name) for name in names]
    return [match[1] for match in found if match]


def run(plan: _Plan, device: str, deadline: float, started: float, say: Say) -> int:
    """Write the prior, then work, then write what the models say; again after each model, so that a file always stands.

    Raises:
        DeviceError: CUDA was asked for and is not there.
        StoreError: the submission cannot be written.
    """
    recipe = plan.wanted.recipe
    devices = _devices(device, recipe, len(plan.paths))
    made = f"{recipe.created[:16].replace('T', ' ')}: {len(recipe.models)} models"
    say(f"Bundle {recipe.name!r} of {made}, vote {recipe.vote}, format {recipe.form}")
    say(agreement_line(recipe.agreement))
    where = f"{len(devices)} × {devices[0]}" if devices else "nothing to do"
    limit = f", to end within {deadline:,.0f} s" if deadline else ""
    say(f"{len(plan.sheet.once):,} rows, {len(plan.paths):,} images, {where}{limit}")
    with tempfile.TemporaryDirectory(prefix="bundle-") as scratch:
        bounds = np.linspace(0, len(plan.paths), len(devices) + 1).astype(int).tolist()
        parts = [Part(start, stop, Path(scratch, str(start))) for start, stop in pairwise(bounds)]
        workers = [_Worker(place, part, devices[place]) for place, part in enumerate(parts)]
        try:
            late = _watch(plan, workers, started + deadline if deadline else float("inf"), say)
        finally:
            for worker in workers:
                _stop(worker)
        outcome, _ = _write(plan, parts)
        return _report(plan, workers, outcome, late=late, spent=time.monotonic() - started, say=say)


def _devices(device: str, recipe: Recipe, count: int) -> list[str]:
    """A worker per GPU, or one on the CPU; none without images."""
    gpus = 0 if device == "cpu" or (device == "auto" and recipe.cuda == "cpu") else gpu_count()
    if device == "cuda" and not gpus:
        raise DeviceError("--device cuda was asked for, but no CUDA device can be used here")
    return (["cuda"] * gpus or ["cpu"])[:count]


def _start(plan: _Plan, worker: _Worker) -> None:
    part = worker.part
    paths = plan.paths[part.start : part.stop]
    boxes = {name: every[part.start : part.stop] for name, every in plan.boxes.items()}
    made = Job(str(plan.folder), str(part.out), worker.device, plan.wanted.recipe.models, paths, boxes)
    job = made.write(part.out / "job.json")
    (part.out / "error").unlink(missing_ok=True)
    env = dict(os.environ)
    if worker.device == "cuda":
        visible = [name for name in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        env["CUDA_VISIBLE_DEVICES"] = visible[worker.place] if visible else str(worker.place)
    command = [sys.executable, str(plan.folder / "run.py"), "--worker", str(job)]
    worker.process = subprocess.Popen(command, env=env)  # noqa: S603 - our own script with our own interpreter


def _stop(worker: _Worker) -> None:
    if worker.process is not None and worker.process.poll() is None:
        worker.process.kill()
        worker.process.wait()


def _watch(plan: _Plan, workers: Sequence[_Worker], end: float, say: Say) -> bool:
    """Wait for the workers, writing again when a model is done everywhere; whether the deadline came first."""
    models, parts = plan.wanted.recipe.models, [worker.part for worker in workers]
    _, writing = _write(plan, parts)
    for worker in workers:
        _start(plan, worker)
    told: set[str] = set()
    wrote = time.monotonic()
    while sum(_alive(plan, worker, say) for worker in workers):  # sum looks at every worker, any() would stop at the first
        now = time.monotonic()
        if now > end - 2 * writing - SPARE:
            return True
        done = [model for model in models if all(part.finished(model) for part in parts)]
        if fresh := [model for model in done if model.key not in told]:
            told |= {model.key for model in fresh}
            say(f"  {', '.join(model.title for model in fresh)}: {len(told)} of {len(models)}")
            if now - wrote > 10 * writing and len(told) < len(models):
                writing, wrote = _write(plan, parts)[1], time.monotonic()
        time.sleep(POLL)
    return False


def _alive(plan: _Plan, worker: _Worker, say: Say) -> bool:
    """Whether a worker still works; one that died is started once more, on the CPU, and goes on where it was."""
    code = worker.process.poll() if worker.process else 0
    if code is None:
        return True
    if code == 0 or worker.retried:
        return False
    why = worker.error or f"it ended with exit code {code}"
    say(f"Warning: worker {worker.place} on {worker.device} stopped ({why}); it goes on, on the CPU")
    worker.device, worker.retried = "cpu", True
    _start(plan, worker)
    return True


def _write(plan: _Plan, parts: Sequence[Part]) -> tuple[Outcome, float]:
    """Blend what there is and write it; the seconds it took."""
    started = time.monotonic()
    outcome, recipe = blend(plan.wanted, parts), plan.wanted.recipe
    targets = plan.wanted.competition.targets
    csv_writer.write(plan.output, plan.sheet, recipe.form, recipe.fields, outcome.predictions, targets)
    return outcome, time.monotonic() - started


def _report(plan: _Plan, workers: Sequence[_Worker], outcome: Outcome, *, late: bool, spent: float, say: Say) -> int:
    models, rows = plan.wanted.recipe.models, len(plan.sheet.once)
    say(f"Wrote {plan.output}: {rows:,} rows from {len(outcome.models)} of {len(models)} models in {spent:,.1f} s")
    broken = _failures(models, workers)
    for line in broken:
        say(f"Warning: {line}")
    rest = [model.title for model in models if not all(worker.part.finished(model) for worker in workers)]
    if rest:
        say(f"Not finished{' before the deadline' if late else ''}: {', '.join(rest)}")
    if bad := [why for worker in workers for why in shards.bad_images(worker.part.out).values()]:
        say("\n  ".join([f"{len(bad):,} images cannot be used:", *bad[:10]]))
    if outcome.partial:
        say(f"{outcome.partial:,} rows have the word of a single model")
    if outcome.prior:
        say(f"{outcome.prior:,} rows have the class prior")
    return int(bool(broken or (rest and not late) or (rows and outcome.prior == rows)))


def _failures(models: Sequence[Model], workers: Sequence[_Worker]) -> list[str]:
    found = [f"worker {worker.place}: {worker.error}" for worker in workers if worker.error]
    for worker in workers:
        for model in models:
            path = worker.part.out / f"{model.key}{shards.FAILED}"
            if path.exists():
                found.append(f"{model.title} cannot be used: {path.read_text(encoding='utf-8')}")
    return list(dict.fromkeys(found))
