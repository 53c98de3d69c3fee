"""The whole job against the loop competitors write, fold by fold with timm and ttach: `python benchmarks/whole_job.py`."""

from __future__ import annotations

import io
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

FOLDS, CLASSES = 5, tuple("abcdefghij")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photographs(root: Path, count: int) -> None:
    """JPEG files of 512 × 384 pixels with detail at every scale."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    for i in range(count):
        layers = [rng.integers(0, 256, (3 * 2**k, 4 * 2**k, 3), dtype=np.uint8) for k in range(7)]
        grown = [np.asarray(Image.fromarray(layer).resize((512, 384), Image.Resampling.BICUBIC), float) for layer in layers]
        mixed = sum(g / 2 ** (k / 2) for k, g in enumerate(grown)) / sum(1 / 2 ** (k / 2) for k in range(7))
        data = io.BytesIO()
        Image.fromarray(mixed.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
        (root / f"{i}.jpg").write_bytes(data.getvalue())


def make_workspace(root: Path, name: str, count: int, size: int) -> list[Any]:
    """Test images, a competition and five exports; the torch models that they were made from."""
    import timm
    import torch

    from toolkit.cards import Card, Output, Preprocess
    from toolkit.competition import Competition, Images, Target
    from toolkit.exporting import export

    photographs(root / "test", count)
    shutil.copytree(root / "test", root / "train")
    (root / "train.csv").write_text("id,label\n" + "".join(f"{i},{CLASSES[i % 10]}\n" for i in range(count)))
    (root / "sample_submission.csv").write_text("id,label\n" + "".join(f"{i},a\n" for i in range(count)))
    target = Target("label", "multiclass", CLASSES)
    train, test = Images("train", "{id}.jpg", "train.csv"), Images("test", "{id}.jpg")
    competition = Competition(root, "whole-job", "accuracy", (target,), train, test, format="labels")
    (root / "competition.toml").write_text(competition.to_toml())
    samples = np.random.default_rng(0).integers(0, 256, (10, 3, size, size), dtype=np.uint8)
    models = []
    for fold in range(FOLDS):
        torch.manual_seed(fold)
        model = timm.create_model(name, num_classes=len(CLASSES)).eval()
        card = Card("m", None, (Output("label", CLASSES),), Preprocess((size, size)), MEAN, STD)
        export(model, card, root / "folds" / f"m.{fold}.onnx", samples=samples)
        models.append(model)
    return models


def peer(root: Path, models: list[Any], size: int, batch: int) -> Any:
    """One DataLoader with two workers per fold, torchvision transforms on PIL images, ttach's wrapper around softmax."""
    import torch
    import ttach
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms as T  # noqa: N812

    class Files(Dataset):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self.paths = sorted((root / "test").glob("*.jpg"), key=lambda path: int(path.stem))
            self.transform = T.Compose([T.Resize((size, size), antialias=True), T.ToTensor(), T.Normalize(MEAN, STD)])

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, i: int) -> Any:
            return self.transform(Image.open(self.paths[i]).convert("RGB"))

    found = []
    for model in models:
        wrapped = ttach.ClassificationTTAWrapper(
            torch.nn.Sequential(model, torch.nn.Softmax(dim=1)), ttach.aliases.hflip_transform()
        )
        loader = DataLoader(Files(), batch_size=batch, num_workers=2)
        with torch.inference_mode():
            found.append(torch.cat([wrapped(images) for images in loader]).numpy())
    return np.mean(found, axis=0)


def ours(root: Path) -> Any:
    """The same through the library, from files to written predictions, nothing stored."""
    from toolkit import ensembling
    from toolkit.competition import Competition
    from toolkit.members import find_exports

    shutil.rmtree(root / "store", ignore_errors=True)
    made = ensembling.run(Competition.read(root), find_exports(["folds"], base=root), tta="hflip", device="cpu")
    return made.predictions["label"].values


def bare(root: Path, size: int, count: int, layout: tuple[int, int, int]) -> float:
    """Seconds of nothing but session.run for the same passes, on preloaded tensors: (sessions at once, threads each, batch)."""
    from concurrent.futures import ThreadPoolExecutor

    import onnxruntime as ort

    workers, threads, batch = layout
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, size, size), dtype=np.uint8)
    sessions = [
        ort.InferenceSession(p, options, providers=["CPUExecutionProvider"]) for p in sorted((root / "folds").glob("*.onnx"))
    ]
    jobs = [session for session in sessions for _ in range(-(-count // batch) * 2)]
    for session in sessions:
        session.run(None, {"images": pixels})
    with ThreadPoolExecutor(workers) as pool:
        started = time.perf_counter()
        list(pool.map(lambda session: session.run(None, {"images": pixels}), jobs))
        return time.perf_counter() - started


@click.command()
@click.option("--model", default="resnet18", show_default=True)
@click.option("--images", "count", default=64, show_default=True)
@click.option("--size", default=224, show_default=True)
@click.option("--batch", default=32, show_default=True, help="The peer's.")
@click.option("--pairs", default=5, show_default=True)
def main(model: str, count: int, size: int, batch: int, pairs: int) -> None:
    """Check that both agree, then print the median ratio of paired runs, and ours against the best bare session loop."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "work"
        models = make_workspace(root, model, count, size)
        theirs, mine = peer(root, models, size, batch), ours(root)
        gap, same = float(np.abs(theirs - mine).max()), float((theirs.argmax(1) == mine.argmax(1)).mean())
        click.echo(f"{model}, K={FOLDS}, hflip, {count} images: largest difference {gap:.1e}, labels equal {same:.1%}")
        ratios, seconds = [], []
        for _ in range(pairs):
            started = time.perf_counter()
            ours(root)
            middle = time.perf_counter()
            peer(root, models, size, batch)
            seconds.append(middle - started)
            ratios.append((time.perf_counter() - middle) / (middle - started))
        click.echo(f"peer / ours: {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}, {pairs} pairs)")
        layouts = [(w, t, b) for w, t in ((1, 2), (2, 1)) for b in (8, 16, 32)]
        best = min(layouts, key=lambda layout: bare(root, size, count, layout))
        shares = []
        for _ in range(pairs):
            started = time.perf_counter()
            ours(root)
            mine_took = time.perf_counter() - started
            shares.append(bare(root, size, count, best) / mine_took)
        click.echo(f"ours against the best bare loop {best}: {statistics.median(shares):.2f}x of its speed")


if __name__ == "__main__":
    main()
