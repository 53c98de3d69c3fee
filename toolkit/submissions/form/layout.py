"""A submission's layout: a format fitted to a sample's columns, found where nothing names it, and filled with predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.base.text import arrow_csv
from toolkit.core.predictions import Predictions
from toolkit.errors import CompetitionError, SubmissionError, few
from toolkit.submissions.form import cells
from toolkit.submissions.form.cells import SUMMED, WRITER, Cells, Columns, Lists, Numbers
from toolkit.submissions.form.formats import FORMATS, Format, value_columns, words_of
from toolkit.workspace import row_files
from toolkit.workspace.competition import FILE, Competition

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SubmissionLayout:
    """A format fitted to a sample: its name (`topk:5`), the id column, what value columns hold, how numbers are written."""

    name: str
    format: Format
    key: str
    columns: Columns
    writer: int = WRITER

    def rows(self, frame: pd.DataFrame) -> tuple[Any, Any]:
        """The id (an Arrow array [N]) and, in the long forms, the class number (int64 [N]) that each row stands for."""
        return self.format.rows(frame, self.key, self.columns)

    def tables(self, predictions: Mapping[str, Predictions]) -> dict[str, Predictions]:
        """The predictions of every target that the columns need, with the competition's order of classes.

        Raises:
            SubmissionError: a target without predictions, or labels where numbers are needed.
            AlignmentError: predictions over other classes than the competition's.
        """
        tables = {}
        for column in self.columns:
            target = column.target
            if target.name not in predictions:
                raise SubmissionError(
                    f"column {column.name!r}: the predictions have no target {target.name!r}, only {few(predictions)}"
                )
            table = predictions[target.name]
            if self.format.values and table.values is None:
                raise SubmissionError(
                    f"format {self.name!r} needs numbers, and the hard vote on {target.name!r} left only labels",
                    hint="Run `toolkit ensemble` again with a soft vote.",
                    code="vote-soft",
                )
            tables[target.name] = table.with_classes(target.classes)
        if self.writer >= 2 and self.format.name in SUMMED:
            return {name: cells.normalised(table) for name, table in tables.items()}
        return tables

    def texts(self, tables: Mapping[str, Predictions]) -> dict[str, Any]:
        """The text of every value column (Arrow arrays [N]); `tables` hold the same N rows for every target."""
        texts = arrow_csv.in_threads(
            lambda column: self._text(self.format.cells(column, tables[column.target.name])), self.columns
        )
        return {column.name: text for column, text in zip(self.columns, texts, strict=True)}

    def pair_texts(self, table: Predictions, rows: Any, classes: Any) -> Any:
        """In the long forms, the text (an Arrow array [N]) of the only value column: row `rows[i]`, class `classes[i]`."""
        assert table.values is not None
        return self._text(cells.summing(table, table.values[rows, classes]))

    def _text(self, content: Cells) -> Any:
        if self.writer < 2 and isinstance(content, Numbers):
            content = cells.numbers(content.values)
        return as_text(content)


def as_text(content: Cells) -> Any:
    """The text of cells as an Arrow array [N], numbers as the shortest that reads back to the same."""
    import pyarrow as pa

    kind = pa.large_string()
    if isinstance(content, Numbers):
        return pa.array(content.values).cast(kind)
    if isinstance(content, Lists):
        return _listed(content)
    names = pa.array(content.names, kind)
    parts = [names.take(pa.array(np.ascontiguousarray(places))) for places in content.places.T]
    return parts[0] if len(parts) == 1 else arrow_csv.join(*parts, by=" ")


def _listed(content: Lists) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = pa.large_string()
    none = pa.scalar(None, kind)
    pairs = zip(content.names, content.has.T, strict=True)
    each = [pc.if_else(pa.array(np.ascontiguousarray(yes)), pa.scalar(name, kind), none) for name, yes in pairs]
    started = pa.array([""] * len(content.has), kind)  # so that a row without a class has something to join
    joined = arrow_csv.join(started, *each, by=content.separator)
    return pc.utf8_slice_codeunits(joined, start=len(content.separator))


def fit(name: str, sample: pd.DataFrame, competition: Competition) -> SubmissionLayout:
    """Fit a format, written `name` or `name:k`, to the sample's columns.

    Raises:
        CompetitionError: no such format, or the sample has columns that it cannot fill.
    """
    base, _, count = name.partition(":")
    if base not in FORMATS or (count and not (base == "topk" and count.isdecimal() and int(count))):
        raise CompetitionError(f"unknown submission format {name!r}", hint=f"Use one of: {', '.join(FORMATS)}; topk:5 sets k.")
    _require_id(sample, competition)
    columns = FORMATS[base].columns(sample, competition, int(count or 0))
    return SubmissionLayout(name, FORMATS[base], competition.sample_id, columns)


def infer(sample: pd.DataFrame, competition: Competition) -> SubmissionLayout:
    """The layout that competition.toml names, else the only one that the sample's columns and cells and the metric allow.

    Raises:
        CompetitionError: none or several are possible, or the named one does not fit the sample.
    """
    _require_id(sample, competition)
    if competition.format:
        return fit(competition.format, sample, competition)
    fitting, suiting = [], []
    for name, form in FORMATS.items():
        try:
            layout = fit(name, sample, competition)
        except CompetitionError:
            continue
        fitting.append(name)
        suiting += [layout] if form.suits(sample, layout.columns, competition) else []
    if len(suiting) == 1:
        return suiting[0]
    raise _undecided(sample, competition, [layout.name for layout in suiting] or fitting)


def infer_format(sample: pd.DataFrame, competition: Competition) -> str:
    """The name of the format that `infer` finds.

    Raises:
        CompetitionError: see `infer`.
    """
    return infer(sample, competition).name


def _require_id(sample: pd.DataFrame, competition: Competition) -> None:
    if competition.sample_id not in sample.columns or len(sample.columns) < 2:
        raise CompetitionError(
            f"the sample submission needs column {competition.sample_id!r} and another; it has {few(sample.columns, limit=12)}",
            hint=f"Set id under [submission] in {FILE}.",
        )


def _undecided(sample: pd.DataFrame, competition: Competition, possible: list[str]) -> CompetitionError:
    columns = few(value_columns(sample, competition), limit=12)
    doubt = f"could be {' or '.join(possible)}" if possible else "fits no format"
    doubt += _strange(sample, competition) if "labels" in possible else ""
    targets = "; ".join(f"{t.name!r} ({t.task}: {few(t.classes, limit=6)})" for t in competition.targets)
    choices = "; ".join(f"{name}: {FORMATS[name].summary}" for name in (possible or FORMATS))
    return CompetitionError(
        f"the sample submission (columns {columns}) {doubt}, for targets {targets} and metric {competition.metric}",
        hint=f"Set format under [submission] in {FILE}: {choices}.",
    )


def _strange(sample: pd.DataFrame, competition: Competition) -> str:
    """What the sample's cells say that is no class, where they are to be class names; with the class that was likely meant."""
    for column in FORMATS["labels"].columns(sample, competition, 0):
        classes = {row_files.folded(name.strip()): name for name in column.classes}
        if unknown := sorted(words_of(sample, column) - {""} - set(column.classes)):
            alike = [(word, classes[key]) for word in unknown if (key := row_files.folded(word.strip())) in classes]
            near = "; but for case, outer spaces or normal form {!r} is {!r}".format(*alike[0]) if alike else ""
            return f": its cells hold {few(unknown)}, which is no class{near}"
    return ""
