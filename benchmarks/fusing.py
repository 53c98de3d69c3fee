"""One fused file against its parts, onnxruntime and OpenVINO: `python benchmarks/fusing.py --model resnet18`."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from toolkit.blending.combination import Combination
from toolkit.core.cards import Card, Output, Preprocess
from toolkit.ensemble import fuse
from toolkit.images.views import views
from toolkit.models.export import export
from toolkit.models.export_checkpoint import samples
from toolkit.runtime.graphs import onnx_file
from toolkit.runtime.session import open_session
from toolkit.setup import digits_data
from toolkit.workspace.competition import Competition


def make(root: Path, model: str, size: int, count: int, *, frozen: bool) -> Competition:
    """The digits workspace with `count` fold models, untrained; with one backbone for all of them if it is frozen."""
    import timm
    import torch

    digits_data.make_workspace(root)
    competition = Competition.read(root)
    target = competition.targets[0]
    said = Card("m", 0, (Output(target.name, target.classes),), Preprocess((size, size)), (0.5,) * 3, (0.25,) * 3)
    pixels = samples(competition, said.preprocess)
    for fold in range(count):
        torch.manual_seed(0 if frozen else fold)
        network = timm.create_model(model, num_classes=len(target.classes)).eval()
        torch.manual_seed(fold)
        torch.nn.init.normal_(network.get_classifier().weight, std=0.2)
        export(network, replace(said, fold=fold), root / "folds" / f"m.fold{fold}.onnx", samples=pixels)
    return competition


def openvino(path: Path, pixels: Any) -> tuple[Any, Callable[[], Any]] | None:
    """What OpenVINO says in float32, and how to ask again; None where it is not installed."""
    try:
        import openvino as ov
    except ImportError:
        return None
    compiled = ov.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([pixels])[0], lambda: compiled([pixels])


def rates(runs: dict[str, Callable[[], Any]], images: int, pairs: int) -> dict[str, float]:
    """Images per second, medians of runs in turn."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(pairs):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            found[name].append(images / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in found.items()}


@click.command()
@click.option("--model", default="resnet18", show_default=True)
@click.option("--size", default=96, show_default=True)
@click.option("--folds", "count", default=5, show_default=True)
@click.option("--tta", default="hflip", show_default=True)
@click.option("--pairs", default=5, show_default=True)
@click.option("--frozen/--apart", default=False, show_default=True, help="One backbone for all folds, or each its own.")
def main(model: str, size: int, count: int, tta: str, pairs: int, *, frozen: bool) -> None:
    """Print the gaps and labels first, then size and speed."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "digits"
        competition = make(root, model, size, count, frozen=frozen)
        paths = sorted((root / "folds").glob("*.onnx"))
        made = fuse.fuse(competition, paths, root / "ensemble.onnx", Combination(tta))
        gap = made.card.parity
        print(f"onnxruntime  Δp {gap['probability']:.1e}, {gap['flips']:.0f} of {made.checked} labels changed")
        pixels = samples(competition, made.card.preprocess)
        whole = open_session({"fused": made.path}, device="cpu")
        parts = open_session({onnx_file.read(path).digest: path for path in paths}, device="cpu")
        ours = whole.run(pixels, "id")["fused"]
        runs: dict[str, Callable[[], Any]] = {
            "fused": lambda: whole.run(pixels, "id"),
            "parts": lambda: [parts.run(pixels, view) for view in views(tta)],
        }
        if (other := openvino(made.path, pixels)) is not None:
            flips = int((ours.argmax(axis=1) != other[0].argmax(axis=1)).sum())
            print(f"openvino     Δp {np.abs(ours - other[0]).max():.1e}, {flips} of {len(pixels)} labels changed")
            runs["openvino"] = other[1]
        smaller = made.bytes / made.parts_bytes
        print(f"size         {made.bytes / 1e6:.1f} MB, parts {made.parts_bytes / 1e6:.1f} MB: {smaller:.2f}×")
        found = rates(runs, len(pixels), pairs)
        for name, value in found.items():
            print(f"{name:<12} {value:,.0f} images/s: {value / found['parts']:.2f}× the parts")


if __name__ == "__main__":
    main()
