"""toolkit ensemble: every fold model × every view over the test images → predictions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options
from toolkit.cli.completion import FILES, MEMBERS
from toolkit.core.voting import VOTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from toolkit.blending.combination import Combination
    from toolkit.inference.execution import Execution
    from toolkit.workspace.competition import Competition


ROWS = 2000  # as `as_made.ROWS`, which takes long to import


class _Rows(click.ParamType[int | None]):
    """A number of rows; all is None, none is 0."""

    name = "all|N|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value is None or isinstance(value, int):
            return value
        if value in ("all", "none"):
            return None if value == "all" else 0
        if not str(value).isdecimal() or not int(value):
            self.fail(f"{value!r} is not all, none or a number of rows", param, ctx)
        return int(value)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODELS...", shell_complete=FILES)
@click.option(
    "--tta",
    type=options.VIEWS,
    default="none",
    show_default=True,
    help="Views: a set (flip), a product (hflip+scale:0.9,1.1), auto: what pays out of fold; per member: b4=flip,vit=auto.",
)
@click.option("--tta-check/--no-tta-check", "check", default=True, help="Check views on some held-out images first.")
@click.option("--vote", type=click.Choice(list(VOTES)), default="soft", show_default=True, help="How fold models combine.")
@click.option("--weights", default="", help="A number per model (0.2,0.8), names (b4=0.7,vit=0.3), or score.")
@click.option("--blend", is_flag=True, help="Weights, vote and calibration as `toolkit blend` wrote them to blend.json.")
@click.option("--members", default="", shell_complete=MEMBERS, help="Use these members only (b4,vit).")
@options.engine
@click.option("--batch-size", "batch", type=click.IntRange(1), help="Images a model takes at a time.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N rows, to try things out.")
@click.option("--name", default="ensemble", show_default=True, help="Written to predictions/NAME.parquet.")
@click.option(
    "--on-bad-image",
    type=click.Choice(["fail", "prior", "decode"]),
    default="fail",
    show_default=True,
    help="Stop without predictions, give such rows the class prior, or use what is there of pictures cut short, and list them.",
)
@click.option("--verify-images", is_flag=True, help="Read every image, also those whose size and time are as they were.")
@click.option(
    "--evidence",
    type=_Rows(),
    default=str(ROWS),
    show_default=True,
    help="Held-out rows on which the score of these views is measured afterwards: all, a number or none.",
)
@options.passes
@options.as_json
@options.workspace
@options.requests
def command(
    competition: Competition,
    models: tuple[str, ...],
    combination: Combination,
    execution: Execution,
    *,
    check: bool,
    evidence: int | None,
    min_agreement: float,
    limit: int | None,
    name: str,
) -> options.Said:
    """Predict the test images with every fold model and view, and combine them by vote.

    MODELS are .onnx files, folders, or globs (quoted or not). Every image is decoded once for all of them, and what was
    computed before is taken from the store.

    \b
    toolkit ensemble folds/*.onnx --tta flip
    toolkit ensemble folds/*.onnx --tta auto
    toolkit ensemble folds --members b4,vit --weights b4=0.7,vit=0.3 --vote hard
    toolkit ensemble folds --labels-only
    toolkit ensemble folds --deadline 8h30m
    toolkit ensemble folds --precision auto
    """
    from toolkit.cli.progress import bar
    from toolkit.cli.summaries import ensemble
    from toolkit.ensemble.run import run_ensemble, with_evidence
    from toolkit.inference.exports import find_exports

    paths = find_exports(models)
    combination, views = options.settled_views(competition, paths, combination, execution, check=check)
    execution, engine = options.settled_engine(
        competition, paths, execution, min_agreement=min_agreement, members=combination.members, limit=limit
    )
    with bar("Predicting") as progress:
        execution = replace(execution, progress=progress, announce=options.announce, runner="processes")
        written = run_ensemble(competition, paths, combination, execution, name=name, limit=limit, origin=views | engine)
    with bar("Scoring out of fold") as progress:
        written = with_evidence(competition, written, replace(execution, progress=progress), rows=evidence, say=options.aside)
    written = replace(written, notes=(*written.notes, *_notes(competition, combination)))
    return written.record, ensemble(written)


def _notes(competition: Competition, combination: Combination) -> Iterator[str]:
    """Labels where the submission needs numbers."""
    from toolkit.submissions.form.formats import FORMATS

    labels = combination.labels_only
    if (labels or combination.votes == "hard") and competition.format in FORMATS and FORMATS[competition.format].values:
        what, cure = ("--labels-only leaves", "leave it out") if labels else ("hard votes leave", "use --vote soft")
        yield f"{what} labels only, and the submission format {competition.format!r} needs numbers: {cure}"
