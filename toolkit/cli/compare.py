"""toolkit compare: two runs or more → what differs, by how much, and whether that is more than noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.comparing import Comparison
    from toolkit.competition import Competition


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
@options.as_json
@options.workspace
def command(competition: Competition, runs: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """Compare training runs: which settings differ, the scores of each, and whether one is better.

    RUN is a member's name or its folder under runs/. The first is what the others are compared with, row by row on the
    out-of-fold predictions of all.

    \b
    toolkit compare baseline focal
    """
    from toolkit import comparing

    found = comparing.compare(competition, runs)
    return {one.target: asdict(one) for one in found}, "\n\n".join("\n".join(_lines(one)) for one in found)


def _lines(found: Comparison) -> Iterator[str]:
    names = list(found.estimates)
    yield f"Target    {found.target}, {found.metric}, {found.rows:,} rows"
    wide = max([12, *map(len, names)])
    rows = [("", names), *((key, [str(said[name]) for name in names]) for key, said in found.differing.items())]
    yield "Settings  " + ("" if found.differing else "none differ")
    yield from _table(rows[1:] and rows, wide)
    yield "Scores"
    scores = [("", names)] + [(f"fold {fold}", list(map(_number, said.values()))) for fold, said in found.folds.items()]
    scores.append(("all rows", [f"{one.score:.5f}" for one in found.estimates.values()]))
    scores.append(("95 % from", [f"{one.low:.5f}" for one in found.estimates.values()]))
    scores.append(("95 % to", [f"{one.high:.5f}" for one in found.estimates.values()]))
    yield from _table(scores, wide)
    for name, words in found.verdicts.items():
        yield f"Verdict   {name} is {words}" if not words.startswith("cannot") else f"Verdict   {name}: {words}"
    yield from (f"Note      {note}" for note in found.notes)


def _number(score: float | None) -> str:
    return "none" if score is None else f"{score:.5f}"


def _table(rows: list[tuple[str, list[str]]], wide: int) -> Iterator[str]:
    left = max((len(name) for name, _ in rows), default=0)
    for name, cells in rows:
        yield "          " + f"{name:<{left}}  " + "  ".join(f"{cell:>{wide}}" for cell in cells)
