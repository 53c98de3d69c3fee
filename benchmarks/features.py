"""Head-tuning on cached features against the same without: `python benchmarks/features.py --weights WEIGHTS`.

Both train the last layer of ImageNet's tf_efficientnet_lite0 on Fashion-MNIST (see `fashion.py` for data and weights), five
folds from the same seed, each in a process of its own. Compared are the seconds of an epoch after the first, from the images
per second in metrics.csv, and the out-of-fold tables, which must be equal to 1e-4.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from fashion import make_workspace

ROOT = Path(__file__).parent.parent


def run(root: Path, member: str, epochs: int, *options: str) -> tuple[float, float]:
    """Seconds in all, and the median seconds of an epoch after the first."""
    command = [sys.executable, str(ROOT / "recipes" / "timm_kfold.py"), "--workspace", str(root), "--member", member]
    command += ["--model", "tf_efficientnet_lite0", "--tune", "head", "--size", "96", "--epochs", str(epochs), "--lr", "0.005"]
    started = time.monotonic()
    subprocess.run([*command, "--device", "cpu", *options], check=True, stdout=subprocess.DEVNULL, cwd=root)
    spent, rates = time.monotonic() - started, []
    for path in sorted((root / "runs" / member).glob("fold*/metrics.csv")):
        rates += [float(row["images/s"]) for row in list(csv.DictReader(path.read_text().splitlines()))[1:]]
    return spent, 1 / float(np.median(rates))


@click.command()
@click.option("--weights", type=click.Path(exists=True, path_type=Path), required=True, help="efficientnet-lite0-57934424.pth")
@click.option("--source", type=click.Path(path_type=Path), default="/usr/share/datasets/fashion-mnist", show_default=True)
@click.option("--images", default=1_000, show_default=True)
@click.option("--epochs", default=4, show_default=True)
def main(weights: Path, source: Path, images: int, epochs: int) -> None:
    """Print both times, their ratio and the gap."""
    from toolkit.core import prediction_files

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "fashion"
        make_workspace(root, source, images, 100)
        shared = ("--weights", str(weights.absolute()))
        whole, slow = run(root, "whole", epochs, *shared, "--no-features")
        cached, fast = run(root, "cached", epochs, *shared)
        found = [
            prediction_files.read_table(root / "oof" / f"{name}.parquet").predictions["label"] for name in ("whole", "cached")
        ]
        values = [table.align(found[0].ids).values for table in found]
        assert values[0] is not None
        assert values[1] is not None
        gap = float(np.abs(values[0] - values[1]).max())
    print(f"{images:,} images, 5 folds x {epochs} epochs of the head of tf_efficientnet_lite0 at 96 pixels")
    print(f"an image in an epoch after the first: {1e3 * slow:.3f} ms without, {1e3 * fast:.4f} ms with: {slow / fast:.1f}x")
    print(f"in all, with exports: {whole:.0f} s without, {cached:.0f} s with; largest difference out of fold {gap:.1e}")


if __name__ == "__main__":
    main()
