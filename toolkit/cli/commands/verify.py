"""`toolkit verify`: is a submission what its manifest says, and would it be made so again?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.base.text.printing import Mark, Table
from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.workspace.competition import Competition


MARKS = {state: Mark(state, "bad") for state in ("changed", "missing")}


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option("--rebuild", is_flag=True, help="Make the file again and compare the bytes.")
@click.option("--verify-images", "images", is_flag=True, help="Read every test image; else size and time are trusted.")
@options.as_json
@options.workspace
def command(competition: Competition, file: Path | None, *, rebuild: bool, images: bool) -> options.Said:
    """Compare a submission and all it was made of with its manifest.

    FILE is a submission with its manifest (.json) beside it; by default submission.csv in the workspace.
    That proves that none of them changed, not that they give this file: one that was edited together with its manifest may
    pass. With --rebuild the work is done again (what the store holds is not computed twice) and the bytes are compared.

    \b
    toolkit verify
    toolkit verify submissions/3f0a91bc.csv --rebuild --verify-images
    """
    from toolkit.submissions import verify

    path = file or competition.path("submission.csv")
    verdict = verify.verify(competition, path, rebuild=rebuild, images=images)
    tail = f"{path.name} made again: the same bytes"
    if not verdict.rebuilt:
        tail = f"{path.name} is the file of its manifest, and so are its inputs; --rebuild proves that they give it"
    rows = [(MARKS.get(source.state, source.state), source.what, source.path) for source in verdict.inputs]
    return verdict.record, [Table((), rows, "llp"), tail]
