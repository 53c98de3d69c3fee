"""What views bring out of fold, what auto takes, and the truth afterwards: `python benchmarks/tta.py --data fashion`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import click
import fashion

from toolkit.base.text import csv_text
from toolkit.blending.combination import Combination
from toolkit.blending.nested import compare
from toolkit.ensemble import tta
from toolkit.ensemble.run import run_ensemble
from toolkit.ensemble.view_selection import table
from toolkit.images.views import VIEW_SETS
from toolkit.inference.exports import find_exports, read_exports
from toolkit.setup import digits_data
from toolkit.workspace.competition import FILE, Competition

ROOT = Path(__file__).parent.parent
FASHION = Path("/usr/share/datasets/fashion-mnist")  # apt-get install dataset-fashion-mnist


def held_out(competition: Competition, paths: list[Path], sets: list[str], chosen: str) -> None:
    """Predict the test images with each set, and print its true score with the paired gain over none."""
    kept = csv_text.read(competition.path(digits_data.TRUTH), columns=["id", "label"], unique="id")
    target = competition.targets[0]
    truth = target.truth(kept, kept["id"], digits_data.TRUTH)
    said = {}
    for name in sets:
        file = f"tta-{name}".replace(":", "-")
        made = run_ensemble(competition, paths, Combination(name), name=file).predictions[target.name]
        said[name] = made.align(truth.ids).with_classes(target.classes).values
    found = compare(truth.with_classes(target.classes).decided, competition.score, said, baseline="none")
    print(f"\n| set | true {competition.metric} on {len(truth):,} held-out images | gain | 95 % interval |\n|---|---|---|---|")
    for name, e in found.items():
        mark = " ← auto" if name == chosen else ""
        print(f"| {name}{mark} | {e.score:.4f} | {e.gain:+.4f} | {e.gain_low:+.4f} to {e.gain_high:+.4f} |")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("more", nargs=-1, type=click.UNPROCESSED)
@click.option("--data", type=click.Choice(["digits", "fashion"]), default="digits", show_default=True)
@click.option("--train", type=click.IntRange(100, 60_000), default=12_000, show_default=True, help="Images of Fashion-MNIST.")
@click.option("--test", type=click.IntRange(100, 10_000), default=10_000, show_default=True, help="Held-out images of it.")
@click.option("--recipe", default="digits", show_default=True, help="Which recipe trains; what follows -- is said to it.")
@click.option("--set", "sets", multiple=True, default=tuple(VIEW_SETS), help="Sets to judge; all unless told.")
@click.option(
    "--workspace", type=click.Path(path_type=Path, file_okay=False), help="Keep the workspace here, or go on with it."
)
def main(
    more: tuple[str, ...], data: str, train: int, test: int, recipe: str, sets: tuple[str, ...], workspace: Path | None
) -> None:
    """Train five folds, judge views out of fold, and look at the truth afterwards.

    \b
    python benchmarks/tta.py
    python benchmarks/tta.py --data fashion -- --epochs 6
    python benchmarks/tta.py --data fashion --recipe timm_kfold -- --model test_resnet --no-pretrained --size 32 --epochs 8
    """
    with tempfile.TemporaryDirectory() as folder:
        root = (workspace or Path(folder) / data).absolute()
        if not (root / FILE).exists():
            fashion.make_workspace(root, FASHION, train, test) if data == "fashion" else digits_data.make_workspace(root)
        competition = Competition.read(root)
        digits_data.make_split(competition)
        subprocess.run([sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), "--workspace", str(root), *more], check=True)
        paths = find_exports(["folds/*.onnx"], base=root)
        found, _ = tta.find(competition, read_exports(paths, competition), sets)
        for finding in found.values():
            print("\n".join(table(finding)))
            held_out(competition, paths, list(dict.fromkeys(["none", *sets])), finding.chosen)


if __name__ == "__main__":
    main()
