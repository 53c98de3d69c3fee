"""`toolkit diagnose`: what is wrong with members, and which of them are of use, from their out-of-fold tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from toolkit.base.printing import INTERVAL, Mark, Part, Table, interval
from toolkit.cli import options
from toolkit.cli.completion import FILES

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
        found = oof.find_tables(competition, tables)
        rows = oof.read_members(competition, target, found, common=fit_on == "common", reading=reading)
        said = member_diagnosis.diagnose(rows, competition.score)
        record[target.name] = said.record
        lines += [f"Target {target.name}, {said.rows:,} rows", *_findings(said), _members(said, competition.metric)]
        lines += [*_pairs(said), *_classes(said)]
    return record, lines


def _findings(said: Diagnosis) -> list[Part]:
    """What should be mended or left out, in sentences."""
    lines = [f"  {note}" for note in said.notes]
    for one in said.permuted:
        moved = ", ".join(f"{column} holds {held}" for column, held in list(one.columns.items())[:_SHOWN])
        lines.append(
            f"  {one.member}: its classes are permuted ({one.certainty:.0f} standard errors; {one.before:.1%} right as named, "
            f"{one.after:.1%} in the likeliest order): column {moved}" + (f"; {one.like}" if one.like else "")
        )
    lines += [f"  {p.first} and {p.second} are {p.copies}: leave one out" for p in said.pairs if p.copies]
    lines += [
        f"  {one.member}: fold {one.fold} scores {one.score:.5f}, others about {one.typical:.5f} (by chance: {one.chance:.2g})"
        for one in said.odd_folds
    ]
    lines += [
        f"  {name}: the plain mean is better without it, {one.gain:+.5f} ({one.gain_low:+.5f} to {one.gain_high:+.5f})"
        for name, one in said.without.items()
        if one.gain_low > 0
    ]
    return ["Findings", *(Mark(line, "odd") for line in lines)] if lines else ["Findings: none"]


def _members(said: Diagnosis, metric: str) -> Table:
    rows = []
    for name, one in {**said.scores, "plain mean": said.mean}.items():
        less = said.without.get(name)
        gain = (f"{less.gain:+.5f}", interval(less.gain_low, less.gain_high, sign="+")) if less else ("", "")
        rows.append((name, f"{one.score:.5f}", interval(one.low, one.high), *gain))
    count = 5 if said.without else 3
    head = ("member", metric, INTERVAL, "the mean without it gains", INTERVAL)
    return Table(head[:count], [row[:count] for row in rows], "lrrrr"[:count])


def _pairs(said: Diagnosis) -> Iterator[Part]:
    if not said.pairs:
        return
    rows = [
        (f"{one.first} – {one.second}", f"{one.correlation:+.3f}", f"{one.disagreement:.4f}", f"{one.both_wrong:.4f}")
        for one in sorted(said.pairs, key=lambda pair: -pair.correlation)[:_SHOWN]
    ]
    head = ("pair", "correlation of errors", "labelled otherwise", "both wrong")
    yield Table(head, rows, "prrr", caption="Pairs, the most alike first: correlation of errors, shares of rows")
    yield from _more(len(said.pairs))


def _classes(said: Diagnosis) -> Iterator[Part]:
    """Classes that a member knows better than the mean does."""
    if len(said.scores) < 2:
        return
    gains: list[tuple[float, str, str, float]] = []
    for label, f1 in said.classes.items():
        best = max((name for name in f1 if name), key=lambda name: f1[name])
        gains.append((f1[best] - f1[""], label, best, f1[""]))
    gains = sorted((one for one in gains if one[0] > 0), key=lambda one: -one[0])
    if gains:
        rows = [(label, f"{mean:.4f}", name, f"{gain:+.4f}") for gain, label, name, mean in gains[:_SHOWN]]
        caption = "Classes that one member knows better than the mean"
        yield Table(("class", "F1 of the mean", "member", "gain"), rows, "prpr", caption=caption)
        yield from _more(len(gains))


def _more(count: int) -> Sequence[str]:
    return [f"… and {count - _SHOWN} more: --json has all"] if count > _SHOWN else []
