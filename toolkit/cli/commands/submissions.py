"""`toolkit submissions`: what was submitted, what it scored, and how two submissions differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options, summaries
from toolkit.cli.completion import SUBMISSIONS

if TYPE_CHECKING:
    from toolkit.workspace.competition import Competition


@click.group(invoke_without_command=True)
@click.option("--json", "machine", is_flag=True, help="Print one JSON object, also for errors.")
@click.pass_context
def command(ctx: click.Context, *, machine: bool) -> None:
    """List the submissions kept in submissions/ with their scores.

    \b
    toolkit submissions                      out of fold, public and private scores, and whether they agree
    toolkit submissions score 3f0a91bc 0.912
    toolkit submissions diff 3f0a91bc last
    toolkit submissions add theirs.csv --from Mina
    """
    options.passed_on(ctx, command, machine=machine)
    if ctx.invoked_subcommand is None:
        ctx.invoke(_list, machine=machine)


@options.as_json
@options.workspace
def _list(competition: Competition) -> options.Said:
    from toolkit.submissions import ledger

    every = ledger.entries(competition)
    link, warning = ledger.correlation(every), ledger.warning(competition, every)
    record = {"ok": True, "submissions": [entry.record for entry in every], "correlation": link, "warning": warning}
    return record, summaries.kept(every, link, warning)


@command.command()
@click.argument("name", metavar="ID", shell_complete=SUBMISSIONS)
@click.argument("value", type=float, metavar="SCORE")
@click.option("--private", "board", flag_value="private", default="public", help="It is the private board's score.")
@options.as_json
@options.workspace
def score(competition: Competition, name: str, value: float, board: Any) -> options.Said:
    """Note what the platform gave a submission.  ID may be shortened, or `last`."""
    from toolkit.submissions import ledger

    entry = ledger.score(competition, name, value, board)
    return {"ok": True} | entry.record, f"{entry.id}: {board} score {value:g}"


@command.command()
@click.argument("first", metavar="A", shell_complete=SUBMISSIONS)
@click.argument("second", metavar="B", shell_complete=SUBMISSIONS)
@options.as_json
@options.workspace
def diff(competition: Competition, first: str, second: str) -> options.Said:
    """Show how many rows two submissions answer otherwise, by class."""
    from toolkit.submissions import difference

    changes = difference.diff(competition, first, second)
    return changes.record, summaries.diff(changes, first, second)


@command.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--from", "source", required=True, metavar="NAME", help="Who made it.")
@options.as_json
@options.workspace
def add(competition: Competition, file: Path, source: str) -> options.Said:
    """Check a teammate's submission and keep it."""
    from toolkit.submissions import submission

    name, problems = submission.adopt(competition, file, source)
    record = {"ok": True, "id": name, "problems": [problem.record for problem in problems]}
    return record, [*map(str, problems), f"Kept as {name}"]
