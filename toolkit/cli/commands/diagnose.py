"""`toolkit diagnose`: what is wrong with members, and which of them are of use, from their out-of-fold tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from toolkit.base.text.printing import INTERVAL, Mark, Part, Table, interval
from toolkit.cli import options
from toolkit.cli.completion import FILES
from toolkit.errors import counted

if TYPE_CHECKING:
    from toolkit.analysis.member_diagnosis import Diagnosis
    from toolkit.blending.outside_tables import Reading
    from toolkit.workspace.competition import Competition

_SHOWN = 12  # rows of a table of pairs or classes; all of them stand in --json


@click.command()
@click.argument("tables", nargs=-1, metavar="[TABLES]...", shell_complete=FILES)
@click.option("--fit-on", type=click.Choice(["all", "common"]), default="all", help="Rows: all must agree, or those shared.")
@options.as_json
@options.tables
def command(competition: Competition, tables: tuple[str, ...], fit_on: str, reading: Reading) -> options.Said:
    """Look for permuted classes, copies, odd folds and idle members in out-of-fold tables.

    TABLES are files (Parquet, CSV, npz; FILE or NAME=FILE), all of oof/ unless told.
    """
    from toolkit.analysis import member_diagnosis
    from toolkit.blending import oof

    record: dict[str, Any] = {}
    lines: list[Part] = []
    for target in competition.targets:
        tables_by_member = oof.find_tables(competition, tables)
        rows = oof.read_members(competition, target, tables_by_member, common=fit_on == "common", reading=reading)
        diagnosis = member_diagnosis.diagnose(rows, competition.score)
        record[target.name] = diagnosis.record
        lines += [
            f"Target {target.name}, {counted(diagnosis.rows, 'rows')}",
            *_findings(diagnosis),
            _members(diagnosis, competition.metric),
        ]
        lines += [*_pairs(diagnosis), *_classes(diagnosis)]
    return record, lines


def _findings(diagnosis: Diagnosis) -> list[Part]:
    """What should be mended or left out, in sentences."""
    lines = [f"  {note}" for note in diagnosis.notes]
    lines += [f"  {doubt}" for doubt in (*diagnosis.too_good, *diagnosis.permuted)]
    lines += [f"  {p.first} and {p.second} are {p.copies}: leave one out" for p in diagnosis.pairs if p.copies]
    lines += [
        f"  {odd.member}: fold {odd.fold} scores {odd.score:.5f}, others about {odd.typical:.5f} (by chance: {odd.chance:.2g})"
        for odd in diagnosis.odd_folds
    ]
    lines += [
        f"  {name}: the plain mean is better without it, {alone.gain:+.5f} ({alone.gain_low:+.5f} to {alone.gain_high:+.5f})"
        for name, alone in diagnosis.without.items()
        if alone.gain_low > 0
    ]
    if diagnosis.too_good and len(diagnosis.scores) - len(diagnosis.too_good) > 1:
        lines.append("  What leaving a member out gains is of the mean of the others alone")
    return ["Findings", *(Mark(line, "odd") for line in lines)] if lines else ["Findings: none"]


def _members(diagnosis: Diagnosis, metric: str) -> Table:
    rows = []
    for name, estimate in {**diagnosis.scores, "plain mean": diagnosis.mean}.items():
        less = diagnosis.without.get(name)
        gain = (f"{less.gain:+.5f}", interval(less.gain_low, less.gain_high, sign="+")) if less else ("", "")
        rows.append((name, f"{estimate.score:.5f}", interval(estimate.low, estimate.high), *gain))
    count = 5 if diagnosis.without else 3
    head = ("member", metric, INTERVAL, "the mean without it gains", INTERVAL)
    return Table(head[:count], [row[:count] for row in rows], "lrrrr"[:count])


def _pairs(diagnosis: Diagnosis) -> Iterator[Part]:
    if not diagnosis.pairs:
        return
    rows = [
        (
            f"{compared.first} – {compared.second}",
            f"{compared.correlation:+.3f}",
            f"{compared.disagreement:.4f}",
            f"{compared.both_wrong:.4f}",
        )
        for compared in sorted(diagnosis.pairs, key=lambda pair: -pair.correlation)[:_SHOWN]
    ]
    head = ("pair", "correlation of errors", "labelled otherwise", "both wrong")
    yield Table(head, rows, "prrr", caption="Pairs, the most alike first: correlation of errors, shares of rows")
    yield from _more(len(diagnosis.pairs))


def _classes(diagnosis: Diagnosis) -> Iterator[Part]:
    """Classes that a member knows better than the mean does."""
    if len(diagnosis.scores) < 2:
        return
    gains: list[tuple[float, str, str, float]] = []
    for label, f1 in diagnosis.classes.items():
        best = max((name for name in f1 if name), key=lambda name: f1[name])
        gains.append((f1[best] - f1[""], label, best, f1[""]))
    gains = sorted((class_gain for class_gain in gains if class_gain[0] > 0), key=lambda class_gain: -class_gain[0])
    if gains:
        rows = [(label, f"{mean:.4f}", name, f"{gain:+.4f}") for gain, label, name, mean in gains[:_SHOWN]]
        caption = "Classes that one member knows better than the mean"
        yield Table(("class", "F1 of the mean", "member", "gain"), rows, "prpr", caption=caption)
        yield from _more(len(gains))


def _more(count: int) -> Sequence[str]:
    return [f"… and {count - _SHOWN} more: --json has all"] if count > _SHOWN else []
