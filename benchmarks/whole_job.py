"""The whole job against the loop competitors write, fold by fold with timm and ttach: `python benchmarks/whole_job.py`.

On a GPU: `python benchmarks/whole_job.py --device cuda --precision fp16 --images 4096 --batch 256`, against the loop under
autocast with channels_last, and against a bare loop over IO bindings on preloaded images.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
from decode import photographs
from PIL import Image

FOLDS, CLASSES = 5, tuple("abcdefghij")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_workspace(root: Path, name: str, count: int, size: int) -> list[Any]:
    """Test images, a competition and five exports; the torch models that they were made from."""
    import timm
    import torch

    from toolkit.core.cards import Card, Output, Preprocess
    from toolkit.models.export import export
    from toolkit.workspace.competition import Competition, Images, Target

    (root / "test").mkdir(parents=True)
    for i, data in enumerate(photographs(count)):
        (root / "test" / f"{i}.jpg").write_bytes(data)
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


def peer(root: Path, models: list[Any], size: int, batch: int, device: str) -> Any:
    """One DataLoader per fold, torchvision transforms on PIL images, ttach's wrapper around softmax; on CUDA under autocast."""
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

    cuda, found = device == "cuda", []
    layout = torch.channels_last if cuda else torch.contiguous_format
    for model in models:
        net = torch.nn.Sequential(model, torch.nn.Softmax(dim=1)).to(device, memory_format=layout)
        wrapped = ttach.ClassificationTTAWrapper(net, ttach.aliases.hflip_transform())
        loader = DataLoader(Files(), batch_size=batch, num_workers=os.cpu_count() or 2, pin_memory=cuda)
        with torch.inference_mode(), torch.autocast(device, torch.float16, enabled=cuda):
            said = [wrapped(images.to(device, memory_format=layout, non_blocking=True)) for images in loader]
        found.append(torch.cat(said).float().cpu().numpy())
    return np.mean(found, axis=0)


def ours(root: Path, device: str, precision: str) -> Any:
    """The same through the library, from files to written predictions, nothing stored."""
    from toolkit.blending.combination import Combination
    from toolkit.ensemble.run import run_ensemble
    from toolkit.inference import engine_choice
    from toolkit.inference.execution import Execution
    from toolkit.inference.exports import find_exports
    from toolkit.workspace.competition import Competition

    shutil.rmtree(root / "store", ignore_errors=True)
    competition, paths = Competition.read(root), find_exports(["folds"], base=root)
    chosen = engine_choice.Engine(device, precision, precision, cache=root / "cache")
    execution = chosen.applied(Execution(runner="processes"))
    made = run_ensemble(competition, paths, Combination("hflip"), execution)
    return made.predictions["label"].values


def bare(root: Path, size: int, count: int, layout: tuple[int, int, int], device: str, precision: str) -> float:
    """Seconds of nothing but session.run for the same passes, on preloaded images: (sessions at once, threads each, batch)."""
    import onnxruntime as ort

    workers, threads, batch = layout
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, size, size), dtype=np.uint8)
    calls = [_call(path, options, pixels, device, precision) for path in sorted((root / "folds").glob("*.onnx"))]
    for call in calls:
        call()
    with ThreadPoolExecutor(workers) as pool:
        started = time.perf_counter()
        list(pool.map(lambda call: call(), [call for call in calls for _ in range(-(-count // batch) * 2)]))
        return time.perf_counter() - started


def _call(path: Path, options: Any, pixels: Any, device: str, precision: str) -> Callable[[], Any]:
    """One run of one model on images that are where it runs."""
    import onnxruntime as ort

    if device == "cpu":
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"images": pixels})
    from toolkit.runtime.graphs import onnx_file
    from toolkit.runtime.graphs.float16 import to_fp16

    ort.preload_dlls()
    model = onnx_file.load(path)
    data = (to_fp16(model) if precision == "fp16" else model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=[("CUDAExecutionProvider", {"prefer_nhwc": "1"})])
    assert session.get_providers()[0] == "CUDAExecutionProvider", "onnxruntime fell back to the CPU"
    binding = session.io_binding()
    binding.bind_ortvalue_input("images", ort.OrtValue.ortvalue_from_numpy(pixels, "cuda", 0))
    binding.bind_output(session.get_outputs()[0].name, "cuda", 0)
    return lambda: (session.run_with_iobinding(binding), binding.synchronize_outputs())


def against_peer(root: Path, models: list[Any], size: int, batch: int, pairs: int, where: tuple[str, str]) -> None:
    """Print the median ratio of paired runs, the same answers first."""
    theirs, mine = peer(root, models, size, batch, where[0]), ours(root, *where)
    gap, same = float(np.abs(theirs - mine).max()), float((theirs.argmax(1) == mine.argmax(1)).mean())
    click.echo(f"largest difference {gap:.1e}, labels equal {same:.1%}")
    ratios = []
    for _ in range(pairs):
        started = time.perf_counter()
        ours(root, *where)
        middle = time.perf_counter()
        peer(root, models, size, batch, where[0])
        ratios.append((time.perf_counter() - middle) / (middle - started))
    click.echo(f"peer / ours: {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}, {pairs} pairs)")


def against_bare(root: Path, size: int, count: int, pairs: int, where: tuple[str, str]) -> None:
    """Print the share of the best bare loop's speed; which layout is best is found on a few images."""
    ours(root, *where)
    some = (
        [(1, 1, b) for b in (64, 128, 256)]
        if where[0] == "cuda"
        else [(w, t, b) for w, t in ((1, 2), (2, 1)) for b in (8, 16, 32)]
    )
    best = min(some, key=lambda layout: bare(root, size, min(count, max(64, layout[2])), layout, *where))
    shares = []
    for _ in range(pairs):
        started = time.perf_counter()
        ours(root, *where)
        took = time.perf_counter() - started
        shares.append(bare(root, size, count, best, *where) / took)
    spread = f"{min(shares):.3f} to {max(shares):.3f}, {pairs} pairs"
    click.echo(f"of the speed of the best bare loop {best}: {statistics.median(shares):.3f}x ({spread})")


@click.command()
@click.option("--model", default="resnet18", show_default=True)
@click.option("--images", "count", default=128, show_default=True)
@click.option("--size", default=224, show_default=True)
@click.option("--batch", default=32, show_default=True, help="The peer's.")
@click.option("--pairs", default=5, show_default=True)
@click.option("--against", type=click.Choice(["both", "peer", "bare"]), default="both", show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True, help="fp16 is for cuda.")
def main(model: str, count: int, size: int, batch: int, pairs: int, against: str, device: str, precision: str) -> None:
    """Check that the answers agree, then print the median ratios of paired runs."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "work"
        models = make_workspace(root, model, count, size)
        click.echo(f"{model}, K={FOLDS}, hflip, {count} images, {precision} on {device}")
        if against != "bare":
            against_peer(root, models, size, batch, pairs, (device, precision))
        if against != "peer":
            against_bare(root, size, count, pairs, (device, precision))


if __name__ == "__main__":
    main()
