"""toolkit ensemble: every fold model × every view over the test images → predictions."""

from __future__ import annotations

from typing import Any

import click

from toolkit.cli import options
from toolkit.cli.completion import FILES, MEMBERS
from toolkit.core.voting import VOTES


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODELS...", shell_complete=FILES)
@click.option(
    "--tta",
    "asked",
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
    type=click.Choice(["fail", "prior"]),
    default="fail",
    show_default=True,
    help="Stop without predictions, or give such rows the class prior and list them.",
)
@options.passes
@options.as_json
@options.workspace
def command(
    competition: Any, models: tuple[str, ...], members: str, asked: str, *, blend: bool, check: bool, **choices: Any
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
    from toolkit.blending import oof
    from toolkit.cli.progress import bar
    from toolkit.cli.summaries import ensemble
    from toolkit.ensemble import run
    from toolkit.inference.exports import find_exports

    if blend and (choices["weights"] or choices["vote"] != "soft"):
        raise click.UsageError("--blend says weights and vote: leave --weights and --vote out.")
    if blend:
        choices["blend"] = oof.read_blends(competition)
        asked = oof.views_of(choices["blend"]) if asked == "none" else asked
    paths = find_exports(models)
    choices |= {"members": [name for name in members.split(",") if name], "announce": options.aside}
    choices |= options.settled_views(competition, paths, asked, check=check, how=choices)
    choices |= options.settled_engine(competition, paths, how=choices)
    del choices["min_agreement"]
    with bar("Predicting") as progress:
        made = run.run(competition, paths, progress=progress, **choices)
    return made.record, ensemble(made)
