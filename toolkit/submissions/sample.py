"""The sample submission: which rows and columns it asks for, predictions brought into its form, and files compared with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.text import arrow_csv, csv_text
from toolkit.core.predictions import Predictions
from toolkit.core.targets import LONG_FORMS
from toolkit.errors import CompetitionError
from toolkit.submissions import checks, csv_problems, plausibility
from toolkit.submissions.checks import Problem
from toolkit.submissions.form import layout
from toolkit.submissions.form.layout import SubmissionLayout
from toolkit.workspace.competition import Competition

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Sample:
    """A sample submission: its cells as text, and the layout that it asks for."""

    frame: pd.DataFrame
    layout: SubmissionLayout

    @property
    def form(self) -> str:
        """The name of its format."""
        return self.layout.name

    @property
    def key(self) -> str:
        """Its id column."""
        return self.layout.key

    def written_by(self, writer: int) -> Sample:
        """The same, its numbers written as they were before or are now: 1 or 2."""
        return replace(self, layout=replace(self.layout, writer=writer))


def as_format(frame: pd.DataFrame, competition: Competition, form: str) -> Sample:
    """A table of text as the sample submission, in the format of that name.

    Raises:
        CompetitionError: the format does not fit the table.
    """
    return Sample(frame, layout.fit(form, frame, competition))


def read_sample(competition: Competition, path: Path | None = None) -> Sample:
    """The sample submission of a competition (or of `path`) and the layout that it asks for.

    Raises:
        CompetitionError: it cannot be read, names a row twice, or leaves the format open.
    """
    path = path or competition.path(competition.sample)
    key = competition.sample_id
    frame = csv_text.read(path, columns=[key], form=competition.text_form)
    whole = bool(frame[key].is_unique and (frame[key] != "").all())
    if not whole and competition.format not in ("", *LONG_FORMS):
        csv_text.read(path, unique=key, form=competition.text_form)  # says which ids
    try:
        sample = Sample(frame, layout.infer(frame, competition))
    except CompetitionError as error:
        raise CompetitionError(f"{path}: {error.message}", hint=error.hint, code=error.code) from error
    if not whole and not sample.layout.format.pairs:
        csv_text.read(path, unique=key, form=competition.text_form)
    return sample


def render(predictions: Mapping[str, Predictions], sample: Sample) -> pd.DataFrame:
    """Predictions as text: the sample's columns and rows in its order, joined by id.

    Rows of the sample without predictions are left out, for `check` to report with everything else.

    Raises:
        SubmissionError: a target without predictions, or hard votes where numbers are needed.
        AlignmentError: predictions over other ids per target, or other classes than the competition's.
    """
    import pyarrow as pa

    tables = sample.layout.tables(predictions)
    if sample.layout.format.pairs:
        return _pairs(tables, sample)
    ids, _ = sample.layout.rows(sample.frame)
    rows = {name: arrow_csv.places(ids, table.ids) for name, table in tables.items()}
    there = np.logical_and.reduce([places >= 0 for places in rows.values()])
    columns = sample.layout.texts({name: _taken(table, rows[name][there]) for name, table in tables.items()})
    columns[sample.key] = ids if there.all() else ids.filter(pa.array(there))
    frame: pd.DataFrame = pa.table({name: columns[name] for name in map(str, sample.frame.columns)}).to_pandas()
    return frame


def _pairs(tables: Mapping[str, Predictions], sample: Sample) -> pd.DataFrame:
    """The sample's own rows with their numbers: each stands for an id and a class."""
    import pandas as pd

    column = sample.layout.columns[0]
    table = tables[column.target.name]
    ids, classes = sample.layout.rows(sample.frame)
    rows = arrow_csv.places(ids, table.ids)
    there = rows >= 0
    texts = sample.layout.pair_texts(table, rows[there], classes[there])
    return sample.frame[there].reset_index(drop=True).assign(**{column.name: pd.Series(texts.to_pandas(), dtype="str")})


def _taken(table: Predictions, rows: NDArray[np.int64]) -> Predictions:
    return table if np.array_equal(rows, np.arange(len(table))) else table.take(rows)


def check(frame: pd.DataFrame, sample: Sample, competition: Competition) -> tuple[Problem, ...]:
    """Every problem of a submission whose cells are text, errors and warnings, in order of their codes."""
    key, columns = sample.key, sample.layout.columns
    frame, problems = checks.header(frame, [str(name) for name in sample.frame.columns])
    by = columns[0].by
    if not by:
        problems += checks.ids(frame, sample.frame, key)
    elif {by, key} <= set(frame.columns):
        problems += checks.ids(_paired(frame, key, by), _paired(sample.frame, key, by), key)
    present = tuple(column for column in columns if column.name in frame.columns)
    problems += sample.layout.format.faults(frame, key, present)
    problems += plausibility.same_as_sample(frame, sample.frame, key)
    problems += plausibility.ties(frame, sample.layout, competition.score)
    return tuple(sorted(problems, key=lambda problem: problem.code))


def _paired(frame: pd.DataFrame, key: str, by: str) -> pd.DataFrame:
    """The table with `class, id` for the id: what names a row of the long form."""
    return frame.assign(**{key: frame[by] + checks.PAIR + frame[key]})


def check_file(path: Path, sample: Sample, competition: Competition) -> tuple[Problem, ...]:
    """Every problem of a file made elsewhere, from its bytes to its numbers; what can be read is checked."""
    frame, problems = csv_problems.read(path)
    if frame is not None:
        problems += check(frame, sample, competition)
        problems += check_size(path.stat().st_size, competition)
    return tuple(sorted(problems, key=lambda problem: problem.code))


def check_size(size: int, competition: Competition) -> Iterator[Problem]:
    """Compare the bytes of a submission with what the platform takes."""
    if competition.max_mb and size > competition.max_mb * 1e6:
        yield Problem("SUB009", seen=f"{size / 1e6:,.1f} MB, {competition.max_mb:g} are allowed")


def surplus(table: Predictions, sample: Sample, used: int) -> Iterator[Problem]:
    """Find predicted ids that the sample does not ask for; `used` is how many rows were written of the table."""
    if sample.layout.format.pairs or used < len(table):  # else every one of them was written
        rows = arrow_csv.places(sample.layout.rows(sample.frame)[0], table.ids)
        left: Any = np.delete(np.arange(len(table)), rows[rows >= 0])
        yield from checks.of_ids("SUB062", [table.ids[i] for i in left])
