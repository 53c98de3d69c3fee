"""`toolkit score`: the score of out-of-fold tables, with its interval, fold by fold and class by class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.base.text.printing import INTERVAL, Mark, Part, Table, interval
from toolkit.cli import options
from toolkit.cli.completion import FILES
from toolkit.core.metrics import METRICS
from toolkit.errors import counted

if TYPE_CHECKING:
    from toolkit.analysis.scores import Scored
    from toolkit.blending.outside_tables import Reading
    from toolkit.workspace.competition import Competition, Target

_SHOWN = 40  # classes; more only with --json


@click.command()
@click.argument("tables", nargs=-1, metavar="[TABLES]...", shell_complete=FILES)
@click.option(
    "--also", multiple=True, type=click.Choice(list(METRICS)), metavar="NAME", help="A further metric; may be repeated."
)
@click.option("--classes", is_flag=True, help="Precision, recall, F1 and area of each class.")
@click.option("--calibration", is_flag=True, help="ECE, Brier and reliability, before and after a nested temperature.")
@options.as_json
@options.tables
def command(
    competition: Competition,
    tables: tuple[str, ...],
    also: tuple[str, ...],
    reading: Reading,
    *,
    classes: bool,
    calibration: bool,
) -> options.Said:
    """Score out-of-fold tables on the competition's metric, with a 95 % interval and fold by fold.

    TABLES are files (Parquet, CSV, npz; FILE or NAME=FILE), all of oof/ unless told.
    """
    from toolkit.analysis import scores
    from toolkit.blending import oof
    from toolkit.core.lineage import optimistic

    record: dict[str, Any] = {}
    every: dict[tuple[str, str], Scored] = {}
    notes: list[str] = []
    names = list(dict.fromkeys([competition.metric, *also]))
    labels = all(METRICS[name].accepts == "labels" for name in names) and not calibration
    for target in competition.targets:
        for name, path in oof.find_tables(competition, tables).items():
            rows = oof.read_members(competition, target, {name: path}, reading=reading, labels=labels)
            scored = every[target.name, name] = scores.score(rows, names, calibration=calibration)[0]
            record.setdefault(target.name, {})[name] = scored.record(competition.metric)
            notes += [Mark(f"{name}: {note}", "odd") for note in scored.notes]
            how = oof.chosen_by(path)
            record[target.name][name] |= {"selected": how, "optimistic": bool(optimistic(how))} if how != "last" else {}
            notes += [note for note in rows.notes if note not in notes]
        notes += _doubts(competition, target, oof.find_tables(competition, tables), reading, labels=labels)
    return record, [_scores(every), *(Mark(note, "odd") for note in notes), *_details(every, classes=classes)]


def _doubts(
    competition: Competition, target: Target, tables: Mapping[str, Path], reading: Reading, *, labels: bool
) -> list[str]:
    """What tables say against each other, where they share rows."""
    from toolkit.analysis.member_diagnosis import doubts
    from toolkit.blending import oof
    from toolkit.errors import AlignmentError

    try:
        rows = oof.read_members(competition, target, tables, common=True, reading=reading, labels=labels)
    except AlignmentError:  # each was scored on rows of its own
        return []
    return doubts(rows)


def _scores(every: Mapping[tuple[str, str], Scored]) -> Table:
    """A row for each target, table and metric: score, interval, folds, and their mean where a metric is of scores."""
    numbers = list(dict.fromkeys(fold for scored in every.values() for parts in scored.folds.values() for fold in parts))
    several = len({target for target, _ in every}) > 1
    rows = []
    for (target, table), scored in every.items():
        for name, whole in scored.metrics.items():
            parts = [scored.folds[name].get(fold) for fold in numbers]
            known = [value for value in parts if value is not None]
            mean = f"{sum(known) / len(known):.5f}" if known and METRICS[name].accepts == "scores" else ""
            shown = ["–" if value is None else f"{value:.5f}" for value in parts]
            rows.append((table, *[target][:several], name, f"{whole.score:.5f}", interval(whole.low, whole.high), *shown, mean))
    head = ["table", *["target"][:several], "metric", "score", INTERVAL, *(f"fold {fold}" for fold in numbers), "mean"]
    return Table(head, rows, "l" * (2 + several) + "r" * (3 + len(numbers)))


def _details(every: Mapping[tuple[str, str], Scored], *, classes: bool) -> Iterator[Part]:
    """What more was asked for of every table."""
    for what, scored in every.items():
        yield from _details_of(", ".join(what), scored, classes=classes)


def _details_of(what: str, scored: Scored, *, classes: bool) -> Iterator[Part]:
    """Every class, and how far probabilities can be believed, where that was asked for."""
    if classes:
        rows = [
            (name, f"{one.support:,}", *map(_share, (one.precision, one.recall, one.f1, one.auc)))
            for name, one in list(scored.classes.items())[:_SHOWN]
        ]
        yield Table(("class", "rows", "precision", "recall", "F1", "AUC"), rows, "prrrrr", caption=f"Classes of {what}")
        if (more := len(scored.classes) - _SHOWN) > 0:
            yield f"… and {counted(more, 'more classes')}: --json has all"
    if (one := scored.calibration) is not None:
        names = ("ece", "brier", "log_loss")
        before, after = ([f"{values[name]:.5f}" for name in names] for values in (one.before, one.after))
        kinds = [("as it is", *before), ("with temperature, nested", *after)]
        yield Table(("", "ECE", "Brier", "log-loss"), kinds, "prrr", caption=f"Calibration of {what}")
        yield f"Temperature of all rows {one.temperature:.4g}; above 1: too sure of itself"
        bins = [
            (interval(b["low"], b["high"], 2), f"{b['count']:,.0f}", f"{b['confidence']:.4f}", f"{b['accuracy']:.4f}")
            for b in one.bins
        ]
        yield Table(("confidence", "rows", "mean confidence", "right"), bins, "rrrr", caption=f"Reliability of {what}")


def _share(value: float) -> str:
    return "" if isnan(value) else f"{value:.4f}"
