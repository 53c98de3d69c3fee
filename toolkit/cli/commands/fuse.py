"""toolkit fuse: fold models, views, weights and mean → one self-contained .onnx."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.base.text.printing import Mark, Table, Verbatim, facts
from toolkit.cli import options
from toolkit.cli.completion import FILES, MEMBERS, VIEWS
from toolkit.errors import counted

if TYPE_CHECKING:
    from toolkit.blending.combination import Combination
    from toolkit.ensemble.fuse import Fused
    from toolkit.workspace.competition import Competition


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODELS...", shell_complete=FILES)
@click.option(
    "--tta",
    default="none",
    shell_complete=VIEWS,
    show_default=True,
    help="Views that turn images: hflip, flip, d4, or b4=flip,vit=none.",
)
@click.option("--weights", default="", help="A number per model (0.2,0.8), names (b4=0.7,vit=0.3), or score.")
@click.option("--blend", is_flag=True, help="Weights, vote, temperatures and views of blend.json.")
@click.option("--members", default="", shell_complete=MEMBERS, help="Use these members only (b4,vit).")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), default="ensemble.onnx", show_default=True,
    help="The file to write; the member is called as it is.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@options.as_json
@options.workspace
@options.requests
def command(
    competition: Competition,
    models: tuple[str, ...],
    output: Path,
    combination: Combination,
    *,
    force: bool,
) -> options.Said:
    """Make one self-contained .onnx of fold models, views, weights and mean, proved equal to the ensemble.

    It takes what the models take (uint8 images), gives `probabilities` in the competition's order of classes, and needs nothing
    but onnxruntime. What several models have in common is in it once. It may be slower than its parts: both are timed, and the
    answer says so.

    \b
    toolkit fuse folds/*.onnx --tta hflip -o ensemble.onnx
    toolkit ensemble ensemble.onnx
    """
    from toolkit.ensemble import fuse
    from toolkit.inference.exports import find_exports

    fused = fuse.fuse(competition, find_exports(models), output, combination, force=force)
    return asdict(fused) | {"path": str(fused.path)}, _text(fused)


def _text(fused: Fused) -> Table:
    from toolkit.cli.summaries import card, shown

    views = sorted({", ".join(names) for names in fused.views.values()})
    flips = fused.card.parity["flips"]
    smaller, faster = fused.bytes / fused.parts_bytes, fused.rate / fused.parts_rate
    advice = "use the parts where speed matters: toolkit ensemble runs them side by side"
    slower = (
        [(Mark("Warning", "odd"), f"the file takes {1 / faster:.1f} times as long as its parts; {advice}")]
        if faster < 0.95
        else []
    )
    size = f"{fused.bytes / 1e6:.2f} MB, the parts {fused.parts_bytes / 1e6:.2f} MB ({smaller:.2f}×)"
    rows = [
        ("Fused", f"{counted(len(fused.models), 'models')}: {', '.join(fused.models)}"),
        ("Views", "; ".join(views)),
        *card(fused.card),
        ("Labels", f"{flips:.0f} of {fused.checked} changed against the ensemble of the parts"),
        ("Size", f"{size}; {counted(fused.nodes, 'nodes')}, the parts {fused.parts_nodes:,}"),
        ("Speed", f"{fused.rate:,.0f} images/s on the CPU, the parts {fused.parts_rate:,.0f} ({faster:.2f}×)"),
        *slower,
        ("Wrote", shown(fused.path)),
        ("Next", Verbatim(f"toolkit ensemble {shown(fused.path)}")),
    ]
    return facts(rows)
