"""Peak memory of `toolkit ensemble` on 2,000 and on 20,000 images: `python benchmarks/memory.py`."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from PIL import Image

SIDE = 160


def make_workspace(root: Path, count: int) -> None:
    """`count` different JPEG files of 256 × 192 pixels, and two exports of a small network."""
    import timm
    import torch

    from toolkit.core.cards import Card, Output, Preprocess
    from toolkit.models.export import export
    from toolkit.workspace.competition import Competition, Images, Target

    rng = np.random.default_rng(0)
    photos = []
    for _ in range(50):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        data = io.BytesIO()
        coarse.resize((256, 192), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
        photos.append(data.getvalue())
    (root / "test").mkdir(parents=True)
    for i in range(count):  # bytes after the end marker make the contents differ, the decoder does not read them
        (root / "test" / f"{i}.jpg").write_bytes(photos[i % len(photos)] + i.to_bytes(4, "big"))
    (root / "train").mkdir()
    classes = tuple(f"c{i}" for i in range(10))
    (root / "train" / "0.jpg").write_bytes(photos[0])
    (root / "train.csv").write_text("id,label\n0,c0\n")
    (root / "sample_submission.csv").write_text("id,label\n" + "".join(f"{i},c0\n" for i in range(count)))
    target = Target("label", "multiclass", classes)
    train, test = Images("train", "{id}.jpg", "train.csv"), Images("test", "{id}.jpg")
    competition = Competition(root, "memory", "accuracy", (target,), train, test, format="labels")
    (root / "competition.toml").write_text(competition.to_toml())
    for fold in range(2):
        torch.manual_seed(fold)
        model = timm.create_model("test_resnet", num_classes=10)
        card = Card("m", None, (Output("label", classes),), Preprocess((SIDE, SIDE)), (0.5,) * 3, (0.5,) * 3)
        samples = rng.integers(0, 256, (10, 3, SIDE, SIDE), dtype=np.uint8)
        export(model, card, root / "folds" / f"m.{fold}.onnx", samples=samples)


def peak(root: Path) -> tuple[float, float]:
    """Peak resident memory in MiB and seconds of the command, measured by the kernel for the child alone."""
    code = "import resource, sys; from toolkit.cli import cli; cli.main(sys.argv[1:], standalone_mode=False); "
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    command = [sys.executable, "-c", code, "ensemble", "folds/*.onnx", "--tta", "hflip", "--device", "cpu"]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1024, time.perf_counter() - started


@click.command()
@click.option("--small", default=2_000, show_default=True)
@click.option("--large", default=20_000, show_default=True)
def main(small: int, large: int) -> None:
    """Print both peaks and their ratio (at most 1.15 is asked)."""
    found = {}
    for count in (small, large):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "work"
            make_workspace(root, count)
            found[count], seconds = peak(root)
            rate = count * 4 / seconds
            click.echo(f"{count:>7,} images  peak {found[count]:,.0f} MiB  {seconds:.1f} s  {rate:,.0f} passes/s")
    click.echo(f"ratio {found[large] / found[small]:.3f}")


if __name__ == "__main__":
    main()
