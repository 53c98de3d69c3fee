"""Submissions: predictions written in the sample's form, with every problem found first and a manifest beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.base import files
from toolkit.base.text import arrow_csv
from toolkit.core import prediction_files
from toolkit.ensemble import evidence
from toolkit.ensemble.evidence import Evidence
from toolkit.errors import SubmissionError, counted, few
from toolkit.submissions import answers, checks, csv_problems, ledger, manifest, plausibility
from toolkit.submissions.answers import Answers
from toolkit.submissions.checks import Problem
from toolkit.submissions.difference import compare
from toolkit.submissions.sample import Sample, check, check_file, check_size, read_sample, render, surplus
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import SPLIT_FILE

if TYPE_CHECKING:
    import pandas as pd


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
    predictions = _named(competition, name) if name else last_made(competition)
    sample_path = sample or competition.path(competition.sample)
    path = output or competition.path("submission.csv")
    _refuse_inputs(path, competition, [predictions, sample_path])
    with ThreadPoolExecutor(1) as aside:  # most of what runs side by side is Arrow and hashing, outside the interpreter
        reading = aside.submit(prediction_files.read_table, predictions)
        wanted = read_sample(competition, sample_path)
        table = reading.result()
        frame = render(table.predictions, wanted)
        out_of_fold = evidence.gather(competition, table.meta)
        describing = aside.submit(
            manifest.describe, competition.root, sample=sample_path, predictions=predictions, meta=table.meta,
            form=wanted.form, rows=len(frame), command=command, tables=inputs(competition, out_of_fold),
            scores=out_of_fold.scores,
        )  # fmt: skip
        ours = answers.of_predictions(wanted.layout, table.predictions)
        changed, doubts = _doubts(competition, wanted, ours, out_of_fold)
        problems = [*_checked(frame, wanted, competition, ours, out_of_fold), *doubts]
        problems += _origin(competition, table, wanted, len(frame))
        problems += check_size(arrow_csv.size(frame), competition)
        refuse(path, problems)
        described = describing.result()
    document = write(path, frame, problems, described, competition.root)
    kept, again = _keep(competition, path, document)
    warnings = _sorted(problems, again)
    where = manifest.path_of(path)
    return Receipt(path, where, table.meta, wanted.form, len(frame), warnings, kept, out_of_fold.scores, changed)


def write(
    path: Path, frame: pd.DataFrame, problems: Sequence[Problem], description: Mapping[str, Any], root: Path
) -> dict[str, Any]:
    """Write a checked submission as CSV (UTF-8, \\n, minimal quotes), then its manifest, returned; each is whole or not there.

    Raises:
        SubmissionError: `problems`, which the error carries, hold an error; nothing is touched.
        StoreError: the folder cannot be written or the disk is full.
    """
    refuse(path, problems)
    files.write(path, lambda file: arrow_csv.write(file, frame))
    return manifest.write(path, description, problems, root)


def refuse(path: Path, problems: Sequence[Problem]) -> None:
    """Let only warnings pass.

    Raises:
        SubmissionError: there are errors; it carries all problems.
    """
    if errors := checks.errors(problems):
        raise SubmissionError(f"{path.name} cannot be submitted: {counted(len(errors), 'errors')}", problems=problems)


def examine(competition: Competition, path: Path, *, sample: Path | None = None) -> tuple[str, tuple[Problem, ...]]:
    """The format of the competition and the warnings about a file made elsewhere; nothing is written.

    Raises:
        SubmissionError: there is no such file, or it has errors; it carries all problems.
        CompetitionError: the sample cannot be read, or its format cannot be told.
    """
    if not path.is_file():
        raise SubmissionError(f"{path} is not there", hint="Name the CSV file that is to be checked.")
    wanted = read_sample(competition, sample)
    problems = check_file(path, wanted, competition)
    refuse(path, problems)
    frame, _ = csv_problems.read(path)
    assert frame is not None
    ours = answers.of_frame(frame, wanted.layout)
    members = [{"member": table.stem} for table in sorted(competition.path("oof").glob("*.parquet"))]
    out_of_fold = evidence.gather(competition, {"models": members})
    _, doubts = _doubts(competition, wanted, ours, out_of_fold)
    told = [problem for problem in problems if problem.code != "SUB043" or problem.column not in out_of_fold.predictions]
    return wanted.form, _sorted(told, doubts)


def adopt(competition: Competition, path: Path, source: str) -> tuple[str, tuple[Problem, ...]]:
    """Take a submission made elsewhere into the ledger, once it has no errors; its name there and the warnings.

    Raises:
        SubmissionError: the file has errors; it carries all problems.
        StoreError: the ledger cannot be written.
    """
    form, problems = examine(competition, path)
    frame, _ = csv_problems.read(path)
    rows = 0 if frame is None else len(frame)
    document = manifest.foreign(path, competition.root, source=source, form=form, rows=rows, problems=problems)
    name, again = _keep(competition, path, document)
    return name, (*problems, *again)


def last_made(competition: Competition) -> Path:
    """The file of the predictions that were made last.

    Raises:
        SubmissionError: there are none.
        DataError: one of them cannot be read.
    """
    never = "0001-01-01T00:00:00+00:00"  # of tables made elsewhere, which do not say
    created = {
        path: datetime.fromisoformat(prediction_files.read_meta(path).get("created", never)) for path in _tables(competition)
    }
    if not created:
        raise SubmissionError(
            f"there are no predictions in {competition.path('predictions')}", hint="Run `toolkit ensemble folds/*.onnx` first."
        )
    return max(created, key=lambda path: created[path])


def inputs(competition: Competition, out_of_fold: Evidence) -> dict[str, Path]:
    """What a submission depends on besides predictions, sample and competition file."""
    tables = {"train": competition.path(competition.train.table), "split": competition.path(SPLIT_FILE)}
    tables |= {"test": competition.path(competition.test.table)} if competition.test.table else {}
    named = {table for boxes in competition.boxes_of.values() for table in (boxes.train, boxes.test) if table}
    tables |= {f"boxes/{Path(table).stem}": competition.path(table) for table in sorted(named)}
    return tables | {f"oof/{path.stem}": path for path in out_of_fold.paths}


def _tables(competition: Competition) -> list[Path]:
    return sorted(competition.path("predictions").glob("*.parquet"))


def _named(competition: Competition, name: str) -> Path:
    by_name = {path.stem: path for path in _tables(competition)}
    if name not in by_name:
        there = f", only {few(by_name, limit=12)}" if by_name else ""
        raise SubmissionError(
            f"there are no predictions named {name!r}{there}",
            hint="Run `toolkit ensemble folds/*.onnx` under that name first.",
            code="predictions-name",
        )
    return by_name[name]


def _refuse_inputs(path: Path, competition: Competition, sources: Sequence[Path]) -> None:
    ours = {path.resolve(), manifest.path_of(path).resolve()}
    if len(ours) < 2:
        raise SubmissionError(
            f"{path} is the name that the manifest needs", hint="Choose a name that ends in .csv.", code="submission-output"
        )
    if any("\ud800" <= letter <= "\udfff" for letter in path.name):
        raise SubmissionError(
            f"{path} is no name that a manifest can hold: it is not UTF-8", hint="Choose another.", code="submission-output"
        )
    tables = [*sources, competition.path(competition.train.table)]
    if taken := [table for table in tables if table.resolve() in ours]:
        raise SubmissionError(
            f"{taken[0]} is an input and would be replaced", hint="Write to another file.", code="submission-output"
        )


def _origin(competition: Competition, table: prediction_files.PredictionTable, sample: Sample, used: int) -> Iterator[Problem]:
    """What can be wrong with the predictions themselves: exports that changed, rows too many, images that were not read."""
    yield from manifest.stale(competition.root, table.meta)
    yield from surplus(next(iter(table.predictions.values())), sample, used)
    yield from checks.of_ids("SUB063", [str(bad["id"]) for bad in table.meta.get("bad_images", ())])


def _doubts(
    competition: Competition, sample: Sample, ours: list[Answers], out_of_fold: Evidence
) -> tuple[float | None, list[Problem]]:
    """The share of answers that differ from the last submission's, and what speaks against answers that are valid."""
    problems = [Problem(doubt.code, doubt.rows, seen=doubt.seen) for doubt in out_of_fold.doubts]
    expected = {theirs.name: theirs for theirs in answers.of_predictions(sample.layout, out_of_fold.predictions)}
    for question in ours:
        if question.name in expected and not competition.score.by_rank:  # it knows neither labels nor confidence
            problems += plausibility.absent(question, expected[question.name])
            problems += plausibility.shifted(question, expected[question.name])
            problems += plausibility.unsure(question, expected[question.name])
    problems += plausibility.on_disk(competition, sample.frame)
    kept = ledger.entries(competition)
    change = compare(ours, sample.layout, kept[-1], ordered=competition.score.by_rank) if kept else None
    if change is not None and change.share > plausibility.CHANGED:
        problems.append(Problem("SUB074", change.count, seen=f"{change.share:.1%} against {kept[-1].id}"))
    return (change.share if change else None), problems


def _checked(
    frame: pd.DataFrame, sample: Sample, competition: Competition, ours: list[Answers], out_of_fold: Evidence
) -> Iterator[Problem]:
    """What `check` finds in the cells, but for what is no fault of them: see `plausibility.absent` and `made_by_writing`."""
    for problem in check(frame, sample, competition):
        known = problem.code == "SUB043" and problem.column in out_of_fold.predictions
        own = problem.code == "SUB036" and not plausibility.made_by_writing(problem, ours, sample.layout, frame)
        if not (known or own):
            yield problem


def _keep(competition: Competition, path: Path, document: Mapping[str, Any]) -> tuple[str, list[Problem]]:
    """The name in the ledger, and a warning if the same file is there already."""
    before = {entry.id: entry for entry in ledger.entries(competition)}
    name = ledger.keep(competition, path, document)
    again = [Problem("SUB075", seen=f"{name} of {before[name].created:%Y-%m-%d %H:%M}")] if name in before else []
    return name, again


def _sorted(*groups: Sequence[Problem]) -> tuple[Problem, ...]:
    return tuple(sorted((problem for group in groups for problem in group), key=lambda problem: problem.code))
