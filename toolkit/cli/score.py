"""`toolkit score`: the score of out-of-fold tables, with its interval, fold by fold and class by class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options
from toolkit.metrics import METRICS

if TYPE_CHECKING:
    from toolkit.competition import Competition
    from toolkit.scoring import Scored
    from toolkit.sources import Reading

_SHOWN = 40  # classes; more only with --json


@click.command()
@click.argument("tables", nargs=-1, metavar="[TABLES]...")
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
) -> tuple[dict[str, Any], str]:
    """Score out-of-fold tables on the competition's metric, with a 95 % interval and fold by fold.

    TABLES are files (Parquet, CSV, npz; FILE or NAME=FILE), all of oof/ unless told.
    """
    from toolkit import fitting, scoring

    record: dict[str, Any] = {}
    lines = []
    names = list(dict.fromkeys([competition.metric, *also]))
    labels = all(METRICS[name].accepts == "labels" for name in names) and not calibration
    for target in competition.targets:
        for name, path in fitting.find_tables(competition, tables).items():
            rows = fitting.read_members(competition, target, {name: path}, reading=reading, labels=labels)
            found = scoring.score(rows, names, calibration=calibration)[0]
            record.setdefault(target.name, {})[name] = found.record(competition.metric)
            lines += _said(f"{target.name}  {name}", found, classes=classes)
            if (how := fitting.chosen_by(path)) != "last":
                record[target.name][name] |= {"selected": how}
                lines.append(f"  optimistic: the rows it is scored on also chose the epochs ({how})")
    return record, "\n".join(lines)


def _said(what: str, found: Scored, *, classes: bool) -> list[str]:
    lines = []
    for name, whole in found.metrics.items():
        parts = found.folds[name]
        shown = "  ".join(f"{fold}: {'–' if value is None else f'{value:.5f}'}" for fold, value in parts.items())
        known = [value for value in parts.values() if value is not None]
        mean = f"  mean {sum(known) / len(known):.5f}" if known and METRICS[name].accepts == "scores" else ""
        interval = f"{whole.score:.5f} (95 % {whole.low:.5f} – {whole.high:.5f})"
        lines.append(f"{what}  {name} {interval}" + (f"  folds {shown}{mean}" if shown else ""))
    if classes:
        lines.append(f"  {'class':20}  {'rows':>8}  precision  recall   F1       AUC")
        for name, one in list(found.classes.items())[:_SHOWN]:
            numbers = f"{one.precision:9.4f}  {one.recall:.4f}  {one.f1:.4f}"
            lines.append(f"  {name:20}  {one.support:>8,}  {numbers}" + ("" if one.auc != one.auc else f"  {one.auc:.4f}"))
    return lines + _calibration(found)


def _calibration(found: Scored) -> list[str]:
    one = found.calibration
    if one is None:
        return []
    lines = [f"  {'':22}  {'ECE':>8}  {'Brier':>8}  log-loss"]
    for what, values in (("as it is", one.before), ("with temperature, nested", one.after)):
        lines.append(f"  {what:24}{values['ece']:8.5f}  {values['brier']:8.5f}  {values['log_loss']:.5f}")
    lines.append(f"  temperature of all rows {one.temperature:.4g}; above 1: too sure of itself")
    lines.append("  confidence      rows      mean confidence  right")
    return lines + [
        f"  {b['low']:.2f} – {b['high']:.2f}  {b['count']:>9,.0f}  {b['confidence']:15.4f}  {b['accuracy']:.4f}"
        for b in one.bins
    ]
