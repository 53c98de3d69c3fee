"""toolkit export: a checkpoint → a self-contained .onnx with a card, proved equal to the model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.base.text.printing import facts
from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.workspace.competition import Competition


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Where to write; default folds/MEMBER.foldK.onnx.")
@click.option("--model", help="timm model name, for a state dict that does not say it (resnet18, vit_base_patch16_224…).")
@click.option("--member", help="Member the model belongs to; default the model's name.")
@click.option(
    "--fold", type=click.IntRange(0), help="The fold it did not train on; leave out for a model trained on everything."
)
@click.option("--size", type=click.IntRange(1), help="Input side in pixels; default timm's for the model.")
@click.option("--resize", type=click.Choice(["crop", "squash"]), help="Cut the centre, or resize whole; default timm's.")
@click.option("--box", default="", help="What is cut out of an image first: a box of competition.toml, or shares of its sides.")
@click.option("--interpolation", type=click.Choice(["bilinear", "bicubic"]), help="Default timm's for the model.")
@click.option("--mean", type=(float, float, float), help="Normalisation in units of pixel / 255; default timm's.")
@click.option("--std", type=(float, float, float), help="Normalisation in units of pixel / 255; default timm's.")
@click.option("--force", is_flag=True, help="Replace an export that is there.")
@options.as_json
@options.workspace
def command(competition: Competition, checkpoint: Path, **choices: object) -> options.Said:
    """Turn a checkpoint into a self-contained .onnx with a card, proved equal to the model.

    CHECKPOINT is what a recipe wrote (runs/MEMBER/foldK/*.safetensors), or the state dict of any timm model.

    \b
    toolkit export runs/digits/fold0/model.safetensors
    toolkit export best.pth --model resnet18 --fold 0
    """
    from toolkit.cli.summaries import card, shown
    from toolkit.models.export_checkpoint import ExportRequest, convert

    path, written = convert(competition, checkpoint, ExportRequest(**choices))  # type: ignore[arg-type]
    return {"ok": True, "path": str(path), "card": asdict(written)}, facts([*card(written), ("Wrote", shown(path))])
