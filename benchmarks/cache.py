"""Five folds with and without the cache of decoded images, on photographs slow to decode: `python benchmarks/cache.py`.

Both runs train the same small network from the same seed in a process of their own; without the cache every image is decoded
in every epoch of every fold, by two threads. The time includes building the cache. The out-of-fold tables must be equal.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
NET = """
from torch import nn

def build(num_classes):
    body = [nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(128, num_classes))
"""


def make_workspace(root: Path, count: int, side: int) -> None:
    """`count` different JPEG files of two classes, `side` pixels wide, and five folds."""
    from toolkit.workspace.competition import Competition, Images, Target

    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        (root / part).mkdir(parents=True)
    for i in range(count):
        coarse = rng.integers(0, 200, (side // 16, side // 12, 3), dtype=np.uint8)
        coarse[..., i % 2] //= 2
        image = Image.fromarray(coarse).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
        image.save(root / "train" / f"{i}.jpg", quality=90)
    (root / "test" / "t.jpg").write_bytes((root / "train" / "0.jpg").read_bytes())
    (root / "train.csv").write_text("id,label\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(count)))
    (root / "sample_submission.csv").write_text("id,label\nt,a\n")
    competition = Competition(
        root=root,
        name="photographs",
        metric="accuracy",
        targets=(Target("label", "multiclass", ("a", "b")),),
        train=Images("train", "{id}.jpg", "train.csv"),
        test=Images("test", "{id}.jpg"),
    )
    (root / "competition.toml").write_text(competition.to_toml())
    (root / "net.py").write_text(NET)


def run(root: Path, member: str, epochs: int, *options: str) -> float:
    """Seconds that the recipe takes for five folds."""
    command = [sys.executable, str(ROOT / "recipes" / "timm_kfold.py"), "--workspace", str(root), "--member", member]
    command += ["--model", f"{root / 'net.py'}:build", "--size", "64", "--epochs", str(epochs), "--device", "cpu"]
    started = time.monotonic()
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL, cwd=root)
    return time.monotonic() - started


@click.command()
@click.option("--images", default=800, show_default=True)
@click.option("--side", default=1024, show_default=True, help="Width of the photographs in pixels.")
@click.option("--epochs", default=8, show_default=True)
def main(images: int, side: int, epochs: int) -> None:
    """Print both times and their ratio."""
    from toolkit.core import prediction_files

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_workspace(root, images, side)
        without = run(root, "without", epochs, "--no-cache")
        cached = run(root, "cached", epochs)
        ours, theirs = (
            prediction_files.read_table(root / "oof" / f"{name}.parquet").predictions["label"] for name in ("cached", "without")
        )
        assert ours.values is not None
        assert theirs.values is not None
        gap = float(np.abs(ours.values - theirs.values).max())
    print(f"{images} photographs {side} wide, 5 folds x {epochs} epochs; largest difference out of fold {gap:.1e}")
    print(f"without the cache {without:.1f} s, with it {cached:.1f} s: ratio {cached / without:.2f}")


if __name__ == "__main__":
    main()
