"""toolkit ensemble: every fold model × every view over the test images → predictions."""

from __future__ import annotations

from typing import Any

import click

from toolkit.cli import options
from toolkit.sessions import PROVIDERS
from toolkit.views import VIEW_SETS
from toolkit.voting import VOTES


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODELS...")
@click.option("--tta", type=click.Choice(list(VIEW_SETS)), default="none", show_default=True, help="Set of views (ttach).")
@click.option("--vote", type=click.Choice(list(VOTES)), default="soft", show_default=True, help="How fold models combine.")
@click.option("--weights", default="", help="A number per model (0.2,0.8), names (b4=0.7,vit=0.3), or score.")
@click.option("--blend", is_flag=True, help="The weights that `toolkit blend` wrote to blend.json.")
@click.option("--members", default="", help="Use these members only (b4,vit).")
@click.option("--device", type=click.Choice(["auto", *PROVIDERS]), default="auto", show_default=True)
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
@options.workspace
def command(competition: Any, models: tuple[str, ...], members: str, *, blend: bool, **choices: Any) -> None:
    """Predict the test images with every fold model and view, and combine them by vote.

    MODELS are .onnx files, folders, or globs (quoted or not). Every image is decoded once for all of them, and what was
    computed before is taken from the store.

    \b
    toolkit ensemble folds/*.onnx --tta flip
    toolkit ensemble folds --members b4,vit --weights b4=0.7,vit=0.3 --vote hard
    """
    from toolkit import ensembling, fitting
    from toolkit.cli.progress import bar
    from toolkit.cli.summaries import ensemble
    from toolkit.members import find_exports

    if blend and choices["weights"]:
        raise click.UsageError("--blend and --weights both say the weights: leave one of them out.")
    if blend:
        choices["weights"] = fitting.given(competition)
    chosen = [name for name in members.split(",") if name]
    with bar("Predicting") as progress:
        made = ensembling.run(competition, find_exports(models), members=chosen, progress=progress, **choices)
    click.echo(ensemble(made, asked=choices["device"]))
