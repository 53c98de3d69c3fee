"""`toolkit store`: what the prediction store holds, and how to make it smaller."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli import options, summaries
from toolkit.errors import counted

if TYPE_CHECKING:
    from toolkit.workspace.competition import Competition


@click.group(invoke_without_command=True)
@click.option("--json", "machine", is_flag=True, help="Print one JSON object, also for errors.")
@click.pass_context
def command(ctx: click.Context, *, machine: bool) -> None:
    """Show what the prediction store holds; compact or prune it.

    \b
    toolkit store                          tables by model and view: rows, size, whether the model is still there
    toolkit store compact                  many small files become few large ones
    toolkit store prune --stale --dry-run  what would go
    """
    options.passed_on(ctx, command, machine=machine)
    if ctx.invoked_subcommand is None:
        ctx.invoke(_list, machine=machine)


@options.as_json
@options.workspace
def _list(competition: Competition) -> options.Said:
    from toolkit.inference.store import maintenance

    tables = maintenance.survey(competition.path("store"), competition.path("folds"))
    size = sum(kept.size for kept in tables)
    return {"ok": True, "bytes": size, "tables": [kept.record for kept in tables]}, summaries.stored(tables)


@command.command()
@options.as_json
@options.workspace
def compact(competition: Competition) -> options.Said:
    """Merge small segments and sweep what killed runs left; a crash loses nothing."""
    from toolkit.inference.store import maintenance

    done = maintenance.compact(competition.path("store"))
    text = f"{counted(done.before, 'segments')} became {done.after:,}, {done.freed / 1e6:,.1f} MB are free again"
    return {"ok": True, "before": done.before, "after": done.after, "freed": done.freed}, text


@command.command()
@click.option("--stale", is_flag=True, help="Tables of models whose files are gone.  [default, unless --older]")
@click.option("--older", type=click.IntRange(0), metavar="DAYS", help="Tables that got no row for so long.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@options.as_json
@options.workspace
def prune(competition: Competition, older: int | None, *, stale: bool, dry_run: bool) -> options.Said:
    """Remove tables that are not needed; what is removed and asked for again is computed again."""
    from toolkit.inference.store import maintenance

    root = competition.path("store")
    tables = maintenance.survey(root, competition.path("folds"))
    chosen = maintenance.useless(tables, stale=stale or older is None, older=older)
    freed = sum(kept.size for kept in chosen) if dry_run else maintenance.prune(root, chosen)
    verb = "would be removed" if dry_run else "removed"
    text = f"{len(chosen)} of {counted(len(tables), 'tables')} {verb}, {freed / 1e6:,.1f} MB"
    record = {"ok": True, "removed": [kept.record for kept in chosen], "bytes": freed, "dry_run": dry_run}
    return record, [*(summaries.stored(chosen) if chosen else []), text]
