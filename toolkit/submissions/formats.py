"""Submission formats: what each column of the sample holds, how predictions become its text, how its cells are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.base import arrow_csv
from toolkit.core.predictions import Predictions
from toolkit.errors import CompetitionError, SubmissionError, few
from toolkit.submissions import checks
from toolkit.submissions.checks import Problem
from toolkit.workspace import long_form
from toolkit.workspace.competition import FILE, Competition, Target

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Column:
    """What one column of a submission holds: a target, or a `part` of it (a factor or a class), or its `k` best labels.

    In the long form it holds the probability of the class that column `by` names, or that the id ends in.
    """

    name: str
    target: Target
    part: str = ""
    k: int = 0
    by: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that may stand in it."""
        return self.target.factors.get(self.part, self.target.classes)


Columns = tuple[Column, ...]


@dataclass(frozen=True)
class Format:
    """One way to write predictions.

    `plan` says what each value column of the sample holds, or raises CompetitionError; `suits` says whether the sample's
    cells and the metric speak for it; `cells` is one column's text (an Arrow array); `faults` finds what is wrong in the
    columns that are there. `values` says that hard votes, which have labels only, cannot be written so. In the long form `rows`
    gives the id (an Arrow array [N]) and class number (int64 [N], -1 where there is none) that each row stands for.
    """

    summary: str
    plan: Callable[[pd.DataFrame, Competition, int], Columns]
    suits: Callable[[pd.DataFrame, Columns, Competition], bool]
    cells: Callable[[Column, Predictions], Any]
    faults: Callable[[pd.DataFrame, str, Columns], Iterator[Problem]]
    values: bool
    rows: Callable[[pd.DataFrame, str, Columns], tuple[Any, Any]] | None = None


@dataclass(frozen=True)
class Plan:
    """A format fitted to a sample: what its value columns hold."""

    name: str
    format: Format
    columns: Columns


def plan(name: str, sample: pd.DataFrame, competition: Competition) -> Plan:
    """Fit a format, written `name` or `name:k`, to the sample's columns.

    Raises:
        CompetitionError: no such format, or the sample has columns that it cannot fill.
    """
    base, _, count = name.partition(":")
    if base not in FORMATS or (count and not (base == "topk" and count.isdecimal() and int(count))):
        raise CompetitionError(f"unknown submission format {name!r}", hint=f"Use one of: {', '.join(FORMATS)}; topk:5 sets k.")
    _require_id(sample, competition)
    return Plan(name, FORMATS[base], FORMATS[base].plan(sample, competition, int(count or 0)))


def _require_id(sample: pd.DataFrame, competition: Competition) -> None:
    if competition.sample_id not in sample.columns or len(sample.columns) < 2:
        raise CompetitionError(
            f"the sample submission needs column {competition.sample_id!r} and another; it has {few(sample.columns, limit=12)}",
            hint=f"Set id under [submission] in {FILE}.",
        )


def infer_format(sample: pd.DataFrame, competition: Competition) -> str:
    """The format that competition.toml names, else the only one that the sample's columns and cells and the metric allow.

    Raises:
        CompetitionError: none or several are possible, or the named one does not fit the sample.
    """
    _require_id(sample, competition)
    if competition.format:
        return plan(competition.format, sample, competition).name
    fitting, suiting = [], []
    for name, form in FORMATS.items():
        try:
            columns = plan(name, sample, competition).columns
        except CompetitionError:
            continue
        fitting.append(name)
        suiting += [name] if form.suits(sample, columns, competition) else []
    if len(suiting) == 1:
        return suiting[0]
    columns_text = few(_values(sample, competition), limit=12)
    doubt = f"could be {' or '.join(suiting or fitting)}" if fitting else "fits no format"
    targets = "; ".join(f"{t.name!r} ({t.task}: {few(t.classes, limit=6)})" for t in competition.targets)
    choices = "; ".join(f"{name}: {FORMATS[name].summary}" for name in (suiting or fitting or FORMATS))
    raise CompetitionError(
        f"the sample submission (columns {columns_text}) {doubt}, for targets {targets} and metric {competition.metric}",
        hint=f"Set format under [submission] in {FILE}: {choices}.",
    )


def _values(sample: pd.DataFrame, competition: Competition) -> list[str]:
    return [str(name) for name in sample.columns if name != competition.sample_id]


def _seen(sample: pd.DataFrame, columns: Columns) -> dict[str, list[str]]:
    """The different non-empty cells per column."""
    return {c.name: [str(cell) for cell in sample[c.name].unique() if cell != ""] for c in columns}


def _by_target(sample: pd.DataFrame, competition: Competition, k: int) -> Columns:
    """A column per target (or per factor of a joint one), found by name; a single one may have any name."""
    places = {factor: (target, factor) for target in competition.targets for factor in target.factors}
    places |= {name: (target, "") for target in competition.targets for name in (target.column, target.name)}
    names = _values(sample, competition)
    if len(names) == len(competition.targets) == 1:
        target, part = places.get(names[0], (competition.targets[0], ""))
        return (Column(names[0], target, part, k),)
    if unknown := [name for name in names if name not in places]:
        raise CompetitionError(f"the sample's columns {few(unknown)} are no target; targets: {few(places)}")
    return tuple(Column(name, *places[name], k) for name in names)


def _by_class(sample: pd.DataFrame, competition: Competition, _: int) -> Columns:
    """A column per class, found by name: `class` where that names one target's class only, `target_class` or `target/class`."""
    places: dict[str, list[tuple[Target, str]]] = {}
    for target in competition.targets:
        for name in target.classes:
            for spelling in {name, f"{target.name}_{name}", f"{target.name}/{name}"}:
                places.setdefault(spelling, []).append((target, name))
    names = _values(sample, competition)
    if unknown := [name for name in names if len(places.get(name, [])) != 1]:
        raise CompetitionError(
            f"the sample's columns {few(unknown)} are not each one class of {few(t.name for t in competition.targets)}"
        )
    columns = tuple(Column(name, *places[name][0]) for name in names)
    for target in {column.target.name: column.target for column in columns}.values():
        held = [column.part for column in columns if column.target is target]
        if set(held) != set(target.classes) or len(held) != len(target.classes):
            raise CompetitionError(f"the sample has no column for classes {few(c for c in target.classes if c not in held)}")
    return columns


def _positive(sample: pd.DataFrame, competition: Competition, k: int) -> Columns:
    columns = _by_target(sample, competition, k)
    if bad := [c.name for c in columns if c.target.task != "binary"]:
        raise CompetitionError(f"columns {few(bad)}: a single probability needs a binary target")
    return tuple(Column(c.name, c.target, c.target.positive) for c in columns)


def _single(sample: pd.DataFrame, competition: Competition, k: int) -> Columns:
    """Like `_by_target`, for lists of labels; without k, it is the longest list that the sample shows."""
    columns = _by_target(sample, competition, k)
    if any(c.target.multilabel or any(" " in name for name in c.classes) for c in columns):
        raise CompetitionError("topk needs targets that are not multilabel, and class names without spaces")
    shown = max((len(cell.split()) for cells in _seen(sample, columns).values() for cell in cells), default=0)
    if not k and shown < 2:
        raise CompetitionError(
            "the sample does not show how many labels a row may have", hint=f'Set format = "topk:5" in {FILE}.'
        )
    return tuple(Column(c.name, c.target, c.part, k or shown) for c in columns)


def _long(sample: pd.DataFrame, competition: Competition, _: int) -> Columns:
    """A column of class names and one of numbers; every id has a row for each class."""
    names = _values(sample, competition)
    target = _only_target(competition)
    by = [name for name in names if set(sample[name]) == set(target.classes)]
    if len(names) != 2 or len(by) != 1:
        raise CompetitionError(f"the sample's columns {few(names)} are not one of class names and one of numbers")
    value = next(name for name in names if name != by[0])
    columns = (Column(value, target, by=by[0]),)
    _require_every_pair(*_long_rows(sample, competition.sample_id, columns), target)
    return columns


def _joined(sample: pd.DataFrame, competition: Competition, _: int) -> Columns:
    """One column of numbers; every id has a row `id_class` for each class."""
    names = _values(sample, competition)
    target = _only_target(competition)
    if len(names) != 1:
        raise CompetitionError(f"the sample's columns {few(names)} are not a single one of numbers")
    columns = (Column(names[0], target),)
    if (_joined_rows(sample.head(9), competition.sample_id, columns)[1] < 0).any():  # before a million ids are taken apart
        raise CompetitionError(f"the sample's ids do not end in the classes of {target.name!r}")
    _require_every_pair(*_joined_rows(sample, competition.sample_id, columns), target)
    return columns


def _only_target(competition: Competition) -> Target:
    if len(competition.targets) > 1:
        raise CompetitionError("the long form holds one target")
    return competition.targets[0]


def _require_every_pair(ids: Any, places: Any, target: Target) -> None:
    import pyarrow.compute as pc

    names = pc.dictionary_encode(ids)
    count = len(names.dictionary)
    pairs = np.unique(names.indices.to_numpy(zero_copy_only=False).astype(np.int64) * len(target.classes) + places)
    if (places < 0).any() or len(pairs) != len(places) or len(pairs) != count * len(target.classes):
        raise CompetitionError(f"the sample has not one row for each id and class of {target.name!r}")


def _long_rows(frame: pd.DataFrame, key: str, columns: Columns) -> tuple[Any, Any]:
    return arrow_csv.text(frame[key]), long_form.numbers(arrow_csv.text(frame[columns[0].by]), columns[0].target.classes)


def _joined_rows(frame: pd.DataFrame, key: str, columns: Columns) -> tuple[Any, Any]:
    import pyarrow as pa

    ids, places = long_form.split(arrow_csv.text(frame[key]).to_pylist(), columns[0].target.classes)
    return pa.array(ids, pa.large_string()), places


def _suits_labels(sample: pd.DataFrame, columns: Columns, competition: Competition) -> bool:
    if competition.score.accepts != "labels" and all(c.target.task == "binary" for c in columns):
        return False
    seen = _seen(sample, columns)
    words = {
        c.name: {w for cell in seen[c.name] for w in (cell.split(c.target.separator) if c.target.multilabel else [cell])}
        for c in columns
    }
    return all(words[c.name] - {""} <= set(c.classes) for c in columns)


def _suits_probability(sample: pd.DataFrame, columns: Columns, competition: Competition) -> bool:
    numeric = not any(checks.probabilities(sample[[c.name]].loc[sample[c.name] != ""], "", c.name)[1] for c in columns)
    return competition.score.accepts != "labels" and numeric


def _suits_probabilities(_: pd.DataFrame, columns: Columns, competition: Competition) -> bool:
    return competition.score.accepts != "labels" or not any(c.target.multilabel for c in columns)


def _suits_flags(sample: pd.DataFrame, columns: Columns, competition: Competition) -> bool:
    flags = all(set(cells) <= {"0", "1"} for cells in _seen(sample, columns).values())
    return flags and competition.score.accepts == "labels" and all(c.target.multilabel for c in columns)


def _suits_topk(sample: pd.DataFrame, columns: Columns, _: Competition) -> bool:
    seen = _seen(sample, columns)
    return all(set(" ".join(seen[c.name]).split()) <= set(c.classes) for c in columns)


def _always(_sample: pd.DataFrame, _columns: Columns, _competition: Competition) -> bool:
    return True  # a sample with every pair of id and class is no coincidence


def _never(_sample: pd.DataFrame, _columns: Columns, _competition: Competition) -> bool:
    return False  # whose index is meant cannot be seen: it must be asked for


def _indices(column: Column, table: Predictions) -> Any:
    labels = table.decided
    if column.part:
        factors = column.target.factors
        labels = np.unravel_index(labels, [len(f) for f in factors.values()])[list(factors).index(column.part)]
    return np.asarray(labels)


def _label_cells(column: Column, table: Predictions) -> Any:
    import pyarrow as pa

    names = pa.array(column.classes, pa.large_string())
    if not table.multilabel:
        return names.take(pa.array(_indices(column, table)))
    return _lists(column, table, table.classes)


def _lists(column: Column, table: Predictions, names: Sequence[str]) -> Any:
    """Cells that list the name of each class that a row has."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = pa.large_string()
    none = pa.scalar(None, kind)
    pairs = zip(names, table.decided.T, strict=True)
    each = [pc.if_else(pa.array(np.ascontiguousarray(yes)), pa.scalar(name, kind), none) for name, yes in pairs]
    separator = column.target.separator
    started = pa.array([""] * len(table), kind)  # so that a row without a class has something to join
    return pc.utf8_slice_codeunits(arrow_csv.join(started, *each, by=separator), start=len(separator))


def _index_cells(column: Column, table: Predictions) -> Any:
    import pyarrow as pa

    if table.multilabel:
        return _lists(column, table, _places(column))
    return pa.array(_indices(column, table)).cast(pa.large_string())


def _places(column: Column) -> list[str]:
    return [str(place) for place in range(len(column.classes))]


def _number_cells(column: Column, table: Predictions) -> Any:
    """The numbers of the column's class as text."""
    assert table.values is not None
    return as_text(table.values[:, table.classes.index(column.part)])


def as_text(numbers: Any) -> Any:
    """The shortest text (an Arrow array [N]) that reads back to the same float32; adding 0 turns -0 into 0."""
    import pyarrow as pa

    return pa.array(numbers.astype(np.float32) + np.float32(0)).cast(pa.large_string())


def _flag_cells(column: Column, table: Predictions) -> Any:
    import pyarrow as pa

    place = table.classes.index(column.part)
    yes = table.decided[:, place] if table.multilabel else table.decided == place
    return pa.array(np.where(yes, "1", "0"), pa.large_string())


def _topk_cells(column: Column, table: Predictions) -> Any:
    import pyarrow as pa

    assert table.values is not None
    values = table.values
    if column.part:
        factors = column.target.factors
        others = tuple(i + 1 for i, name in enumerate(factors) if name != column.part)
        values = values.reshape(-1, *(len(f) for f in factors.values())).sum(axis=others)
    best = np.argsort(-values, axis=1, kind="stable")[:, : column.k]
    names = pa.array(column.classes, pa.large_string())
    return arrow_csv.join(*(names.take(pa.array(np.ascontiguousarray(place))) for place in best.T), by=" ")


def _label_faults(frame: pd.DataFrame, key: str, columns: Columns) -> Iterator[Problem]:
    for c in columns:
        if c.target.multilabel:
            yield from checks.lists(frame, key, c.name, c.classes, c.target.separator)
        else:
            yield from checks.labels(frame, key, c.name, c.classes)


def _index_faults(frame: pd.DataFrame, key: str, columns: Columns) -> Iterator[Problem]:
    for c in columns:
        if c.target.multilabel:
            yield from checks.lists(frame, key, c.name, _places(c), c.target.separator)
        else:
            yield from checks.labels(frame, key, c.name, _places(c))


def _number_faults(frame: pd.DataFrame, key: str, columns: Columns) -> Iterator[Problem]:
    sums: dict[str, Any] = {}
    read = arrow_csv.in_threads(lambda c: checks.probabilities(frame, key, c.name), columns)
    for c, (numbers, problems) in zip(columns, read, strict=True):
        yield from problems
        sums[c.target.name] = sums.get(c.target.name, 0.0) + numbers
    for target in {c.target.name: c.target for c in columns}.values():
        if not target.multilabel and sum(c.target is target for c in columns) == len(target.classes):
            yield from checks.row_sums(frame, key, sums[target.name])


def _long_faults(frame: pd.DataFrame, key: str, columns: Columns) -> Iterator[Problem]:
    import pandas as pd

    for c in columns:
        if c.by and c.by not in frame.columns:
            continue
        if c.by:
            yield from checks.labels(frame, key, c.by, c.classes)
        numbers, problems = checks.probabilities(frame, key, c.name)
        yield from problems
        if c.target.multilabel or key not in frame.columns:
            continue
        ids, places = (_long_rows if c.by else _joined_rows)(frame, key, columns)
        rows, names = pd.factorize(np.array(ids.to_pylist(), dtype=object))
        whole = np.bincount(rows, minlength=len(names)) == len(c.classes)
        sums = np.bincount(rows, weights=numbers, minlength=len(names))
        yield from checks.row_sums(frame, key, np.where(whole & (places >= 0).all(), sums, 1.0)[rows])


def _flag_faults(frame: pd.DataFrame, key: str, columns: Columns) -> Iterator[Problem]:
    for c in columns:
        yield from checks.labels(frame, key, c.name, ("0", "1"), names=False)


def _topk_faults(frame: pd.DataFrame, key: str, columns: Columns) -> Iterator[Problem]:
    for c in columns:
        yield from checks.lists(frame, key, c.name, c.classes, " ", c.k)


FORMATS: dict[str, Format] = {
    "labels": Format(
        "a column of class names per target (multilabel: names joined by the separator)",
        _by_target, _suits_labels, _label_cells, _label_faults, values=False,
    ),
    "indices": Format(
        "a column per target with the place of the class in competition.toml, from 0",
        _by_target, _never, _index_cells, _index_faults, values=False,
    ),
    "flags": Format(
        "a column of 0 and 1 per class",
        _by_class, _suits_flags, _flag_cells, _flag_faults, values=False,
    ),
    "probability": Format(
        "one column with the probability of the positive class",
        _positive, _suits_probability, _number_cells, _number_faults, values=True,
    ),
    "probabilities": Format(
        "a column with the probability of each class",
        _by_class, _suits_probabilities, _number_cells, _number_faults, values=True,
    ),
    "topk": Format(
        "a column with the k most probable labels separated by spaces, best first",
        _single, _suits_topk, _topk_cells, _topk_faults, values=True,
    ),
    "long": Format(
        "a row per id and class: a column of class names and one with the probability",
        _long, _always, _number_cells, _long_faults, values=True, rows=_long_rows,
    ),
    "joined": Format(
        "a row `id_class` per id and class, with the probability",
        _joined, _always, _number_cells, _long_faults, values=True, rows=_joined_rows,
    ),
}  # fmt: skip


def ready(fitted: Plan, predictions: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """The predictions of every target that the format needs, with the competition's order of classes.

    Raises:
        SubmissionError: a target without predictions, or labels where numbers are needed.
        AlignmentError: predictions over other classes than the competition's.
    """
    tables = {}
    for column in fitted.columns:
        target = column.target
        if target.name not in predictions:
            raise SubmissionError(
                f"column {column.name!r}: the predictions have no target {target.name!r}, only {few(predictions)}"
            )
        table = predictions[target.name]
        if fitted.format.values and table.values is None:
            raise SubmissionError(
                f"format {fitted.name!r} needs numbers, and the hard vote on {target.name!r} left only labels",
                hint="Run `toolkit ensemble` again with --vote soft.",
            )
        tables[target.name] = table.with_classes(target.classes)
    return tables


def cells(fitted: Plan, predictions: Mapping[str, Predictions]) -> dict[str, Any]:
    """The text of every value column (Arrow arrays [N]); predictions must hold the same N rows for every target."""
    tables = ready(fitted, predictions)
    made = arrow_csv.in_threads(lambda column: fitted.format.cells(column, tables[column.target.name]), fitted.columns)
    return {column.name: cells for column, cells in zip(fitted.columns, made, strict=True)}
