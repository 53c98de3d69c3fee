"""`toolkit submit`: from the last predictions to a checked submission and its manifest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli import options, summaries
from toolkit.cli.completion import PREDICTIONS

if TYPE_CHECKING:
    from toolkit.workspace.competition import Competition

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option("--name", default="", shell_complete=PREDICTIONS, help="Which predictions.  [default: those made last]")
@click.option("--output", type=_FILE, help="The file to write.  [default: submission.csv in the workspace]")
@click.option("--sample", type=_FILE, help="The sample submission.  [default: that of competition.toml]")
@click.option("--check-only", "foreign", type=_FILE, metavar="FILE", help="Check a file made elsewhere and write nothing.")
@click.option("--upload", default="", metavar="PLATFORM", help="Send it: kaggle, kaggle:titanic, command:'send {file}'.")
@click.option("--message", "-m", default="", help="What the platform is told of it.  [default: the predictions' name]")
@options.as_json
@options.workspace
def command(
    competition: Competition,
    name: str,
    output: Path | None,
    sample: Path | None,
    foreign: Path | None,
    upload: str,
    message: str,
) -> Iterator[options.Said]:
    """Check the predictions against the sample submission and write submission.csv."""
    from toolkit.submissions import ledger, submission
    from toolkit.submissions.upload import address, recorded, send

    if foreign:
        if name or output or upload:
            raise click.UsageError(
                "--check-only writes nothing and takes no predictions: leave out --name, --output, --upload."
            )
        form, problems = submission.examine(competition, foreign, sample=sample)
        record = {"ok": True, "format": form, "problems": [problem.record for problem in problems]}
        yield record, [f"Checked {foreign} as format {form}", *map(str, problems), "No errors: it can be submitted."]
        return
    where = address(upload, competition.upload) if upload else ""
    words = recorded(["toolkit", *sys.argv[1:]])
    done = submission.submit(competition, name=name, output=output, sample=sample, command=words)
    yield done.record | {"upload": ""}, summaries.submission(done)
    if where:
        reply = send(where, done.path, message or str(done.meta.get("name", "")))
        ledger.sent(competition, done.id, recorded([where])[0], reply)
        yield {"upload": reply}, ["Uploaded:", *reply.splitlines()]
