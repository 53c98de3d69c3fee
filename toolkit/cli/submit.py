"""`toolkit submit`: from the last predictions to a checked submission and its manifest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.competition import Competition

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option("--name", default="", help="Which predictions.  [default: those made last]")
@click.option("--output", type=_FILE, help="The file to write.  [default: submission.csv in the workspace]")
@click.option("--sample", type=_FILE, help="The sample submission.  [default: that of competition.toml]")
@click.option("--check-only", "foreign", type=_FILE, metavar="FILE", help="Check a file made elsewhere and write nothing.")
@options.workspace
def command(competition: Competition, name: str, output: Path | None, sample: Path | None, foreign: Path | None) -> None:
    """Check the predictions against the sample submission and write submission.csv."""
    from toolkit import manifests, submissions

    if foreign:
        if name or output:
            raise click.UsageError("--check-only writes nothing and takes no predictions: leave out --name and --output.")
        form, problems = submissions.examine(competition, foreign, sample=sample)
        head, tail = [f"Checked {foreign} as format {form}"], ["No errors: it can be submitted."]
    else:
        done = submissions.submit(competition, name=name, output=output, sample=sample, command=["toolkit", *sys.argv[1:]])
        head, problems = manifests.summary(done.meta), done.warnings
        tail = [f"Wrote {done.path}: {done.rows:,} rows, format {done.format}", f"Wrote {done.manifest}: what it was made of"]
    click.echo("\n".join([*head, *map(str, problems), *tail]))
