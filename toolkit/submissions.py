"""Submissions: predictions written in the sample's form, with every problem found first and a manifest beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import checks, csvs, delimited, files, formats, manifests, tables
from toolkit.checks import Problem
from toolkit.competition import Competition
from toolkit.errors import SubmissionError, few
from toolkit.formats import infer_format
from toolkit.predictions import Predictions

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Receipt:
    """What `submit` did: the files it wrote, what they were made of and the warnings."""

    path: Path
    manifest: Path
    meta: Mapping[str, Any]
    format: str
    rows: int
    warnings: tuple[Problem, ...]


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
    needed = {column.target.name for column in fitted.columns} & set(predictions)
    shown = checks.text(sample[competition.id]).to_pylist()
    for name in needed:
        known = set(predictions[name].ids)
        shown = [id_ for id_ in shown if id_ in known]
    columns = formats.cells(fitted, {name: _rows(predictions[name], shown) for name in needed})
    columns[competition.id] = pa.array(shown, pa.large_string())
    frame: pd.DataFrame = pa.table({name: columns[name] for name in map(str, sample.columns)}).to_pandas()
    return frame


def _rows(table: Predictions, ids: list[str]) -> Predictions:
    return table if list(table.ids) == ids else table.align(ids)


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
    frame, problems = checks.header(frame, [str(name) for name in sample.columns])
    problems += checks.ids(frame, sample, competition.id)
    present = tuple(column for column in fitted.columns if column.name in frame.columns)
    problems += fitted.format.faults(frame, competition.id, present)
    return tuple(sorted(problems, key=lambda problem: problem.code))


def check_file(path: Path, sample: pd.DataFrame, competition: Competition, form: str) -> tuple[Problem, ...]:
    """Every problem of a file made elsewhere, from its bytes to its numbers; what can be read is checked.

    Raises:
        CompetitionError: the format does not fit the sample.
    """
    formats.plan(form, sample, competition)
    frame, problems = delimited.read(path)
    if frame is not None:
        problems += check(frame, sample, competition, form)
    return tuple(sorted(problems, key=lambda problem: problem.code))


def examine(competition: Competition, path: Path, *, sample: Path | None = None) -> tuple[str, tuple[Problem, ...]]:
    """The format of the competition and the warnings about a file made elsewhere; nothing is written.

    Raises:
        SubmissionError: the file has errors; it carries all problems.
        CompetitionError: the sample cannot be read, or its format cannot be told.
    """
    wanted = csvs.read(sample or competition.path(competition.sample), columns=[competition.id], unique=competition.id)
    form = infer_format(wanted, competition)
    problems = check_file(path, wanted, competition, form)
    refuse(path, problems)
    return form, problems


def write(path: Path, frame: pd.DataFrame, problems: Sequence[Problem], manifest: Mapping[str, Any], root: Path) -> Path:
    """Write a checked submission as CSV (UTF-8, \\n, minimal quotes), then its manifest; each is whole or not there.

    Raises:
        SubmissionError: `problems`, which the error carries, hold an error; nothing is touched.
        StoreError: the folder cannot be written or the disk is full.
    """
    refuse(path, problems)
    files.write(path, lambda file: delimited.write(file, frame))
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
    table = tables.read_table(made)
    wanted = csvs.read(sample_path, columns=[competition.id], unique=competition.id)
    form = infer_format(wanted, competition)
    frame = render(table.predictions, wanted, competition, form)
    problems = (*check(frame, wanted, competition, form), *_origin(competition, table, wanted))
    refuse(path, problems)
    manifest = manifests.describe(
        competition.root, sample=sample_path, predictions=made, meta=table.meta, form=form, rows=len(frame), command=command
    )
    return Receipt(path, write(path, frame, problems, manifest, competition.root), table.meta, form, len(frame), problems)


def last_made(competition: Competition) -> Path:
    """The file of the predictions that were made last.

    Raises:
        SubmissionError: there are none.
        DataError: one of them cannot be read.
    """
    from datetime import datetime

    never = "0001-01-01T00:00:00+00:00"  # of tables made elsewhere, which do not say
    made = {path: datetime.fromisoformat(tables.read_meta(path).get("created", never)) for path in _made(competition)}
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


def _origin(competition: Competition, table: tables.Table, sample: pd.DataFrame) -> Iterator[Problem]:
    """What can be wrong with the predictions themselves: exports that changed, rows too many, images that were not read."""
    yield from manifests.stale(competition.root, table.meta)
    wanted = set(checks.text(sample[competition.id]).to_pylist())
    ids = next(iter(table.predictions.values())).ids
    yield from checks.of_ids("SUB062", [name for name in ids if name not in wanted])
    yield from checks.of_ids("SUB063", [str(bad["id"]) for bad in table.meta.get("bad_images", ())])
