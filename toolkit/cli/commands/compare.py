"""toolkit compare: two runs or more → what differs, by how much, and whether that is more than noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from toolkit.base.text.printing import INTERVAL, Part, Table, facts, interval
from toolkit.cli import options
from toolkit.cli.completion import RUNS
from toolkit.errors import counted

if TYPE_CHECKING:
    from toolkit.analysis.run_comparison import Comparison
    from toolkit.workspace.competition import Competition


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...", shell_complete=RUNS)
@options.as_json
@options.workspace
def command(competition: Competition, runs: tuple[str, ...]) -> options.Said:
    """Compare training runs: which settings differ, the scores of each, and whether one is better.

    RUN is a member's name or its folder under runs/. The first is what the others are compared with, row by row on the
    out-of-fold predictions of all. Names of predictions, each made by `toolkit ensemble --name`, are shown with what they would
    score out of fold as they were made.

    \b
    toolkit compare baseline focal
    toolkit compare plain flipped
    """
    from toolkit.analysis import run_comparison

    if made := run_comparison.as_made(competition, runs):
        return made, list(_as_made(made))
    found = run_comparison.compare(competition, runs)
    lines = [part for one in found for part in ("", *_lines(one))][1:]
    return {one.target: asdict(one) for one in found}, lines


def _as_made(made: dict[str, dict[str, Any]]) -> Iterator[Part]:
    """A row for each predictions' score, and what is to be known of it."""
    from toolkit.ensemble import evidence

    rows = []
    for name, record in made.items():
        score, ends = record.get("out_of_fold"), record.get("interval")
        shown = ("", "") if score is None else (f"{record['metric']} {score:.5f}", interval(*ends) if ends else "")
        rows.append((name, record["views"], record["vote"], *shown, evidence.kind(record)))
    yield Table(("", "views", "vote", "out of fold, as made", INTERVAL, "evidence"), rows, "lllrrp")
    notes = [f"{name}: {line}" for name, record in made.items() for line in evidence.remarks(record)]
    yield facts([("Note", note) for note in [*notes, "intervals are of each alone: a difference is surer than they look"]])


def _lines(found: Comparison) -> Iterator[Part]:
    names, count = list(found.estimates), len(found.estimates)
    yield facts([("Target", f"{found.target}, {found.metric}, {counted(found.rows, 'rows')}")])
    settings = [(key, *(str(said[name]) for name in names)) for key, said in found.differing.items()]
    if settings:
        yield Table(("", *names), settings, "l" + "p" * count, caption="Settings")
    else:
        yield facts([("Settings", "none differ")])
    every = found.estimates.values()
    scores = [(f"fold {fold}", *map(_number, said.values())) for fold, said in found.folds.items()]
    scores.append(("all rows", *(f"{one.score:.5f}" for one in every)))
    scores.append(("95 % from", *(f"{one.low:.5f}" for one in every)))
    scores.append(("95 % to", *(f"{one.high:.5f}" for one in every)))
    yield Table(("", *map(found.title, names)), scores, "l" + "r" * count, caption="Scores")
    verdicts = [f"{name}{':' if words.startswith('cannot') else ' is'} {words}" for name, words in found.verdicts.items()]
    yield facts([*(("Verdict", words) for words in verdicts), *(("Note", note) for note in found.notes)])


def _number(score: float | None) -> str:
    return "none" if score is None else f"{score:.5f}"
