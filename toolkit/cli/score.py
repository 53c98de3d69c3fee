"""`toolkit score`: the score of out-of-fold tables, with its interval and fold by fold."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.competition import Competition


@click.command()
@click.argument("tables", nargs=-1, type=click.Path(path_type=Path, dir_okay=False), metavar="[TABLES]...")
@options.as_json
@options.workspace
def command(competition: Competition, tables: tuple[Path, ...]) -> tuple[dict[str, Any], str]:
    """Score out-of-fold tables on the competition's metric, with a 95 % interval and fold by fold.

    TABLES are files of oof/ (all of them unless told).
    """
    from toolkit import fitting

    record: dict[str, Any] = {}
    lines = []
    for target in competition.targets:
        for path in fitting.find_tables(competition, tables):
            whole, folds = fitting.score(competition, target, path)
            kept = {key: value for key, value in asdict(whole).items() if not key.startswith("gain")}
            record.setdefault(target.name, {})[path.stem] = kept | {"folds": folds}
            parts = "  ".join(f"{fold}: {value:.5f}" for fold, value in folds.items())
            interval = f"{whole.score:.5f} (95 % {whole.low:.5f} – {whole.high:.5f})"
            lines.append(f"{target.name}  {path.stem}  {competition.metric} {interval}" + (f"  folds {parts}" if parts else ""))
    return record, "\n".join(lines)
