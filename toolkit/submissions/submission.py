"""Submissions: predictions written in the sample's form, with every problem found first and a manifest beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.base import arrow_csv, csv_text, files
from toolkit.core import prediction_files
from toolkit.core.predictions import Predictions
from toolkit.ensemble import evidence
from toolkit.errors import SubmissionError, few
from toolkit.submissions import checks, csv_problems, formats, ledger, plausibility
from toolkit.submissions import manifest as manifests
from toolkit.submissions.checks import Problem
from toolkit.submissions.formats import Plan, infer_format
from toolkit.workspace import long_form
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import SPLIT_FILE

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Receipt:
    """What `submit` did: the files it wrote, what they were made of, the warnings, its name in the ledger and its scores.

    `changed` is the share of rows that differ from the last submission, None for the first one.
    """

    path: Path
    manifest: Path
    meta: Mapping[str, Any]
    format: str
    rows: int
    warnings: tuple[Problem, ...]
    id: str
    scores: Mapping[str, Any]
    changed: float | None

    @property
    def record(self) -> dict[str, Any]:
        """The receipt as plain values, for machines."""
        return {
            "ok": True, "id": self.id, "path": str(self.path), "manifest": str(self.manifest), "format": self.format,
            "rows": self.rows, "scores": dict(self.scores), "changed": self.changed, "predictions": self.meta.get("name", ""),
            "problems": [problem.record for problem in self.warnings],
        }  # fmt: skip


def render(
    predictions: Mapping[str, Predictions],
    sample: pd.DataFrame,
    competition: Competition,
    form: str,
) -> pd.DataFrame:
    """Predictions as text: the sample's columns and rows in its order, joined by id; float32 as shortest exact text.

    Rows of the sample without predictions are left out, for `check` to report with everything else.

    Raises:
        CompetitionError: the format does not fit the sample.
        SubmissionError: a target without predictions, or hard votes where numbers are needed.
        AlignmentError: predictions over other ids per target, or other classes than the competition's.
    """
    import pyarrow as pa

    fitted = formats.plan(form, sample, competition)
    ready = formats.ready(fitted, predictions)
    if fitted.format.rows:
        return _long(fitted, ready, sample, competition)
    shown = arrow_csv.text(sample[competition.sample_id])
    places = {name: _places(table, shown) for name, table in ready.items()}
    there = np.logical_and.reduce([place >= 0 for place in places.values()])
    columns = formats.cells(fitted, {name: _rows(table, places[name][there]) for name, table in ready.items()})
    columns[competition.sample_id] = shown if there.all() else shown.filter(pa.array(there))
    frame: pd.DataFrame = pa.table({name: columns[name] for name in map(str, sample.columns)}).to_pandas()
    return frame


def _long(fitted: Plan, ready: Mapping[str, Predictions], sample: pd.DataFrame, competition: Competition) -> pd.DataFrame:
    """The sample's own rows with their numbers: each stands for an id and a class."""
    import pandas as pd

    assert fitted.format.rows is not None
    column = fitted.columns[0]
    values = ready[column.target.name].values
    ids, classes = fitted.format.rows(sample, competition.sample_id, fitted.columns)
    places = _places(ready[column.target.name], ids)
    there = places >= 0
    assert values is not None
    cells = formats.as_text(values[places[there], classes[there]])
    return sample[there].reset_index(drop=True).assign(**{column.name: pd.Series(cells.to_pandas(), dtype="str")})


def _places(table: Predictions, ids: Any) -> NDArray[np.int64]:
    """The row of each id in a table, int64 [N], -1 where it has none; Arrow's hashing takes a fifth of a dictionary's time."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.index_in(ids, value_set=pa.array(table.ids, pa.large_string()))
    return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)


def _rows(table: Predictions, places: NDArray[np.int64]) -> Predictions:
    return table if np.array_equal(places, np.arange(len(table))) else table.take(places)


def check(
    frame: pd.DataFrame,
    sample: pd.DataFrame,
    competition: Competition,
    form: str,
) -> tuple[Problem, ...]:
    """Every problem of a submission whose cells are text, errors and warnings, in order of their codes.

    Raises:
        CompetitionError: the format does not fit the sample.
    """
    fitted = formats.plan(form, sample, competition)
    key = competition.sample_id
    frame, problems = checks.header(frame, [str(name) for name in sample.columns])
    by = fitted.columns[0].by
    if not by:
        problems += checks.ids(frame, sample, key)
    elif {by, key} <= set(frame.columns):
        problems += checks.ids(_paired(frame, key, by), _paired(sample, key, by), key)
    present = tuple(column for column in fitted.columns if column.name in frame.columns)
    problems += fitted.format.faults(frame, key, present)
    problems += plausibility.same_as_sample(frame, sample, key)
    problems += plausibility.ties(frame, fitted, competition.score)
    return tuple(sorted(problems, key=lambda problem: problem.code))


def _paired(frame: pd.DataFrame, key: str, by: str) -> pd.DataFrame:
    """The table with `class, id` for the id: what names a row of the long form."""
    return frame.assign(**{key: frame[by] + checks.PAIR + frame[key]})


def check_file(path: Path, sample: pd.DataFrame, competition: Competition, form: str) -> tuple[Problem, ...]:
    """Every problem of a file made elsewhere, from its bytes to its numbers; what can be read is checked.

    Raises:
        CompetitionError: the format does not fit the sample.
    """
    formats.plan(form, sample, competition)
    frame, problems = csv_problems.read(path)
    if frame is not None:
        problems += check(frame, sample, competition, form)
        problems += _size(path.stat().st_size, competition)
    return tuple(sorted(problems, key=lambda problem: problem.code))


def _size(size: int, competition: Competition) -> Iterator[Problem]:
    if competition.max_mb and size > competition.max_mb * 1e6:
        yield Problem("SUB009", seen=f"{size / 1e6:,.1f} MB, {competition.max_mb:g} are allowed")


def read_sample(competition: Competition, path: Path | None = None) -> tuple[pd.DataFrame, str]:
    """The sample submission as text, and the format that it asks for.

    Raises:
        CompetitionError: it cannot be read, names a row twice, or leaves the format open.
    """
    path = path or competition.path(competition.sample)
    key = competition.sample_id
    wanted = csv_text.read(path, columns=[key])
    whole = bool(wanted[key].is_unique and (wanted[key] != "").all())
    if not whole and (competition.format or infer_format(wanted, competition)) not in long_form.NAMES:
        csv_text.read(path, unique=key)  # says which ids
    return wanted, infer_format(wanted, competition)


def examine(competition: Competition, path: Path, *, sample: Path | None = None) -> tuple[str, tuple[Problem, ...]]:
    """The format of the competition and the warnings about a file made elsewhere; nothing is written.

    Raises:
        SubmissionError: there is no such file, or it has errors; it carries all problems.
        CompetitionError: the sample cannot be read, or its format cannot be told.
    """
    if not path.is_file():
        raise SubmissionError(f"{path} is not there", hint="Name the CSV file that is to be checked.")
    wanted, form = read_sample(competition, sample)
    problems = check_file(path, wanted, competition, form)
    refuse(path, problems)
    fitted = formats.plan(form, wanted, competition)
    frame, _ = csv_problems.read(path)
    assert frame is not None
    ours = plausibility.read(frame, fitted, competition.sample_id)
    every = [{"member": table.stem} for table in sorted(competition.path("oof").glob("*.parquet"))]
    found = evidence.gather(competition, {"models": every})
    _, doubts = _doubts(competition, fitted, wanted, ours, found)
    return form, tuple(sorted((*problems, *doubts), key=lambda problem: problem.code))


@dataclass(frozen=True)
class Move:
    """How many rows of one question went from one class (or set of classes) to another."""

    question: str
    before: str
    after: str
    count: int


@dataclass(frozen=True)
class Diff:
    """How two submissions differ over the ids that both have: rows, those that changed, by class, and the ids."""

    rows: int
    changed: int
    moves: tuple[Move, ...]
    ids: tuple[str, ...]

    @property
    def share(self) -> float:
        """Rows that changed, over all."""
        return self.changed / max(1, self.rows)

    @property
    def record(self) -> dict[str, Any]:
        """The difference as plain values, for machines."""
        counts = {"ok": True, "rows": self.rows, "changed": self.changed, "share": self.share}
        return counts | {"moves": [vars(move) for move in self.moves], "ids": list(self.ids)}


def diff(competition: Competition, first: str, second: str) -> Diff:
    """Compare two kept submissions, named as `ledger.find` takes them; the most frequent change first.

    Raises:
        SubmissionError: no such submission, or one whose file cannot be read.
        CompetitionError: the sample cannot be read.
    """
    wanted, form = read_sample(competition)
    fitted = formats.plan(form, wanted, competition)
    entry = ledger.find(competition, second)
    found = []
    for kept in (ledger.find(competition, first), entry):
        frame, problems = csv_problems.read(kept.path)
        if frame is None or competition.sample_id not in frame.columns:
            raise SubmissionError(f"{kept.path} cannot be read", problems=problems)
        found.append(plausibility.read(frame, fitted, competition.sample_id))
    _, changed, ids = plausibility.differing(*found)
    moves = [Move(*move) for move in plausibility.moves(*found)]
    return Diff(len(ids), int(changed.sum()), tuple(moves), tuple(name for name, hit in zip(ids, changed, strict=True) if hit))


def _doubts(
    competition: Competition, fitted: Plan, sample: pd.DataFrame, ours: list[plausibility.Answers], found: evidence.Evidence
) -> tuple[float | None, list[Problem]]:
    """What speaks against answers that are valid, and the share of them that differ from the last submission's."""
    problems = [Problem(doubt.code, doubt.rows, seen=doubt.seen) for doubt in found.doubts]
    expected = {answers.name: answers for answers in plausibility.by_question(fitted, found.predictions)}
    for answers in ours:
        if answers.name in expected:
            problems += plausibility.shifted(answers, expected[answers.name])
            problems += plausibility.unsure(answers, expected[answers.name])
    problems += plausibility.on_disk(competition, sample)
    kept = ledger.entries(competition)
    changed = compare(competition, fitted, ours, kept[-1]) if kept else None
    if changed is not None and changed[0] > plausibility.CHANGED:
        problems.append(Problem("SUB074", int(changed[1].sum()), seen=f"{changed[0]:.1%} against {kept[-1].id}"))
    return (changed[0] if changed else None), problems


def compare(
    competition: Competition, fitted: Plan, ours: list[plausibility.Answers], other: ledger.Entry
) -> tuple[float, NDArray[np.bool_], list[str]] | None:
    """The share of rows whose answers differ from a kept submission's, which, and their ids; None if it is unreadable."""
    frame, _ = csv_problems.read(other.path)
    key = competition.sample_id
    if frame is None or not ours or not {key, *(c.name for c in fitted.columns)} <= set(frame.columns):
        return None
    return plausibility.differing(ours, plausibility.read(frame, fitted, key))


def write(
    path: Path, frame: pd.DataFrame, problems: Sequence[Problem], manifest: Mapping[str, Any], root: Path
) -> dict[str, Any]:
    """Write a checked submission as CSV (UTF-8, \\n, minimal quotes), then its manifest, returned; each is whole or not there.

    Raises:
        SubmissionError: `problems`, which the error carries, hold an error; nothing is touched.
        StoreError: the folder cannot be written or the disk is full.
    """
    refuse(path, problems)
    files.write(path, lambda file: arrow_csv.write(file, frame))
    return manifests.write(path, manifest, problems, root)


def refuse(path: Path, problems: Sequence[Problem]) -> None:
    """Let only warnings pass.

    Raises:
        SubmissionError: there are errors; it carries all problems.
    """
    if errors := checks.errors(problems):
        count = f"{len(errors)} error{'s' if len(errors) > 1 else ''}"
        raise SubmissionError(f"{path.name} cannot be submitted: {count}", problems=problems)


def submit(
    competition: Competition,
    *,
    name: str = "",
    output: Path | None = None,
    sample: Path | None = None,
    command: Sequence[str] = (),
) -> Receipt:
    """Turn the named (or last made) predictions of a workspace into a submission and its manifest, if nothing is wrong.

    Raises:
        SubmissionError: no such predictions, an output that would replace an input, or problems, all of which it carries.
        CompetitionError: the sample cannot be read, or its format cannot be told.
        StoreError: the output cannot be written.
    """
    made = _named(competition, name) if name else last_made(competition)
    sample_path = sample or competition.path(competition.sample)
    path = output or competition.path("submission.csv")
    _refuse_inputs(path, competition, [made, sample_path])
    with ThreadPoolExecutor(
        1
    ) as aside:  # most of what runs beside each other is spent in Arrow and hashing, outside the interpreter
        reading = aside.submit(prediction_files.read_table, made)
        wanted, form = read_sample(competition, sample)
        table = reading.result()
        fitted = formats.plan(form, wanted, competition)
        frame = render(table.predictions, wanted, competition, form)
        found = evidence.gather(competition, table.meta)
        describing = aside.submit(
            manifests.describe, competition.root, sample=sample_path, predictions=made, meta=table.meta, form=form,
            rows=len(frame), command=command, tables=inputs(competition, found), scores=found.scores,
        )  # fmt: skip
        ours = plausibility.by_question(fitted, table.predictions)
        changed, doubts = _doubts(competition, fitted, wanted, ours, found)
        problems = [*check(frame, wanted, competition, form), *_origin(competition, table, fitted, wanted, len(frame)), *doubts]
        problems += _size(arrow_csv.size(frame), competition)
        refuse(path, problems)
        described = describing.result()
    manifest = write(path, frame, problems, described, competition.root)
    name, again = _keep(competition, path, manifest)
    warnings = tuple(sorted((*problems, *again), key=lambda problem: problem.code))
    return Receipt(path, manifests.path_of(path), table.meta, form, len(frame), warnings, name, found.scores, changed)


def inputs(competition: Competition, found: evidence.Evidence) -> dict[str, Path]:
    """What a submission depends on besides predictions, sample and competition file."""
    given = {"train": competition.path(competition.train.table), "split": competition.path(SPLIT_FILE)}
    given |= {"test": competition.path(competition.test.table)} if competition.test.table else {}
    told = {table for boxes in competition.boxes_of.values() for table in (boxes.train, boxes.test) if table}
    given |= {f"boxes/{Path(table).stem}": competition.path(table) for table in sorted(told)}
    return given | {f"oof/{path.stem}": path for path in found.paths}


def _keep(competition: Competition, path: Path, manifest: Mapping[str, Any]) -> tuple[str, list[Problem]]:
    """The name in the ledger, and a warning if the same file is there already."""
    before = {entry.id: entry for entry in ledger.entries(competition)}
    name = ledger.keep(competition, path, manifest)
    again = [Problem("SUB075", seen=f"{name} of {before[name].created:%Y-%m-%d %H:%M}")] if name in before else []
    return name, again


def adopt(competition: Competition, path: Path, source: str) -> tuple[str, tuple[Problem, ...]]:
    """Take a submission made elsewhere into the ledger, once it has no errors; its name there and the warnings.

    Raises:
        SubmissionError: the file has errors; it carries all problems.
        StoreError: the ledger cannot be written.
    """
    form, problems = examine(competition, path)
    frame, _ = csv_problems.read(path)
    rows = 0 if frame is None else len(frame)
    manifest = manifests.foreign(path, competition.root, source=source, form=form, rows=rows, problems=problems)
    name, again = _keep(competition, path, manifest)
    return name, (*problems, *again)


def last_made(competition: Competition) -> Path:
    """The file of the predictions that were made last.

    Raises:
        SubmissionError: there are none.
        DataError: one of them cannot be read.
    """
    from datetime import datetime

    never = "0001-01-01T00:00:00+00:00"  # of tables made elsewhere, which do not say
    made = {path: datetime.fromisoformat(prediction_files.read_meta(path).get("created", never)) for path in _made(competition)}
    if not made:
        raise SubmissionError(
            f"there are no predictions in {competition.path('predictions')}", hint="Run `toolkit ensemble folds/*.onnx` first."
        )
    return max(made, key=lambda path: made[path])


def _made(competition: Competition) -> list[Path]:
    return sorted(competition.path("predictions").glob("*.parquet"))


def _named(competition: Competition, name: str) -> Path:
    every = {path.stem: path for path in _made(competition)}
    if name not in every:
        raise SubmissionError(
            f"there are no predictions named {name!r}, only {few(every, limit=12)}"
            if every
            else f"there are no predictions named {name!r}",
            hint=f"Run `toolkit ensemble folds/*.onnx --name {name}` first.",
        )
    return every[name]


def _refuse_inputs(path: Path, competition: Competition, inputs: list[Path]) -> None:
    ours = {path.resolve(), manifests.path_of(path).resolve()}
    if len(ours) < 2:
        raise SubmissionError(f"{path} is the name that the manifest needs", hint="Give --output a name that ends in .csv.")
    if taken := [p for p in (*inputs, competition.path(competition.train.table)) if p.resolve() in ours]:
        raise SubmissionError(f"{taken[0]} is an input and would be replaced", hint="Give another --output.")


def _origin(
    competition: Competition, table: prediction_files.PredictionTable, fitted: Plan, sample: pd.DataFrame, used: int
) -> Iterator[Problem]:
    """What can be wrong with the predictions themselves: exports that changed, rows too many, images that were not read."""
    yield from manifests.stale(competition.root, table.meta)
    first = next(iter(table.predictions.values()))
    if fitted.format.rows or used < len(first):  # else every one of them was written
        asked = (fitted.format.rows or _plain_rows)(sample, competition.sample_id, fitted.columns)[0]
        found = _places(first, asked)
        surplus = np.delete(np.arange(len(first)), found[found >= 0])
        yield from checks.of_ids("SUB062", [first.ids[i] for i in surplus])
    yield from checks.of_ids("SUB063", [str(bad["id"]) for bad in table.meta.get("bad_images", ())])


def _plain_rows(sample: pd.DataFrame, key: str, _: formats.Columns) -> tuple[Any, None]:
    return arrow_csv.text(sample[key]), None
