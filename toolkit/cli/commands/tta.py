"""`toolkit tta`: what every view and set of views brings on images the models did not see, and which set pays."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from toolkit.base.text.printing import Part, Verbatim, facts
from toolkit.cli import options
from toolkit.cli.completion import FILES, MEMBERS
from toolkit.images.views import VIEW_SETS
from toolkit.runtime.devices import PROVIDERS

if TYPE_CHECKING:
    from toolkit.blending.combination import Combination
    from toolkit.ensemble.view_selection import ViewFinding
    from toolkit.inference.execution import Execution
    from toolkit.workspace.competition import Competition


@click.command()
@click.argument("models", nargs=-1, metavar="[MODELS]...", shell_complete=FILES)
@click.option(
    "--set",
    "sets",
    multiple=True,
    type=options.SETS,
    help=f"A set to judge, as `ensemble --tta` takes them; may be repeated. All of {', '.join(VIEW_SETS)} unless told.",
)
@click.option("--views", is_flag=True, help="Show every single view as well as the sets.")
@click.option("--members", default="", shell_complete=MEMBERS, help="Judge these members only (b4,vit).")
@click.option("--limit", type=click.IntRange(2), help="About so many held-out rows, drawn by chance, instead of all.")
@click.option(
    "--on-bad-image",
    type=click.Choice(["fail", "decode"]),
    default="fail",
    show_default=True,
    help="Stop, or use what is there of pictures cut short.",
)
@click.option("--device", type=click.Choice(["auto", *PROVIDERS]), default="auto", show_default=True)
@click.option("--batch-size", "batch", type=click.IntRange(1), help="Images a model takes at a time.")
@options.as_json
@options.workspace
@options.requests
def command(
    competition: Competition,
    models: tuple[str, ...],
    sets: tuple[str, ...],
    combination: Combination,
    execution: Execution,
    limit: int | None,
    *,
    views: bool,
) -> options.Said:
    """Judge views on held-out images: score, gain with interval, answers won and lost, and the set that pays.

    MODELS are .onnx files, folders, or globs (folds/*.onnx unless told). Each fold's model predicts the images it did not see,
    once per view, through the store; the set is chosen inside each fold and scored on the fold left out.

    \b
    toolkit tta
    toolkit tta folds/b4.*.onnx --set hflip --set hflip+scale:0.9,1.1
    """
    from toolkit.cli.progress import bar
    from toolkit.ensemble import tta
    from toolkit.inference.exports import find_exports, read_exports

    base = None if models else competition.root
    paths = find_exports(models or ["folds/*.onnx"], base=base)
    exports = read_exports(paths, competition, members=combination.members)
    with bar("Judging views") as progress:
        findings, notes = tta.find(competition, exports, sets, replace(execution, progress=progress), limit=limit)
    return {name: _record(finding) for name, finding in findings.items()} | {"notes": list(notes)}, _text(
        findings, notes, alone=views
    )


def _record(finding: ViewFinding) -> dict[str, Any]:
    return asdict(finding) | {"picks": dict(finding.picks)}


def _text(findings: dict[str, ViewFinding], notes: tuple[str, ...], *, alone: bool) -> list[Part]:
    from toolkit.ensemble.view_selection import table
    from toolkit.images.views import written

    chosen = written({name: finding.chosen for name, finding in findings.items()})
    rows = [*(("Note", note) for note in notes), ("Next", Verbatim(f"toolkit ensemble --tta {chosen} …"))]
    return [part for finding in findings.values() for part in table(finding, alone=alone)] + [facts(rows)]
