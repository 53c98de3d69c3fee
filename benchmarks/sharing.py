"""Five fold models with one frozen backbone against one of them: `python benchmarks/sharing.py`."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np

FOLDS = 5


def make(name: str, root: Path, size: int) -> dict[str, Path]:
    """Exports of `name` whose classifiers differ and whose backbones do not."""
    import timm
    import torch

    from toolkit.core.cards import Card, Output, Preprocess
    from toolkit.models.export import export
    from toolkit.runtime.graphs import onnx_file

    torch.manual_seed(0)
    base = timm.create_model(name, num_classes=10)
    samples = np.random.default_rng(0).integers(0, 256, (10, 3, size, size), dtype=np.uint8)
    found = {}
    for fold in range(FOLDS):
        model = copy.deepcopy(base)
        torch.manual_seed(fold + 1)
        for parameter in model.get_classifier().parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        outputs = (Output("label", tuple("abcdefghij")),)
        path = root / f"{name}.fold{fold}.onnx"
        export(model, Card(name, fold, outputs, Preprocess((size, size)), (0.5,) * 3, (0.5,) * 3), path, samples=samples)
        found[onnx_file.read(path).digest] = path
    return found


@click.command()
@click.option("--models", default="resnet18,efficientnet_b0,convnext_atto", show_default=True)
@click.option("--size", default=224, show_default=True)
@click.option("--images", default=64, show_default=True)
@click.option("--pairs", default=5, show_default=True)
def main(models: str, size: int, images: int, pairs: int) -> None:
    """Print, per backbone, the median of time(K = 5) / time(K = 1) over paired runs, after checking that all bits agree."""
    from toolkit.runtime.session import open_session

    pixels = np.random.default_rng(1).integers(0, 256, (images, 3, size, size), dtype=np.uint8)
    for name in models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            paths = make(name, Path(folder), size)
            several = open_session(paths, device="cpu")
            singles = {digest: open_session({digest: path}, device="cpu") for digest, path in paths.items()}
            found = several.run(pixels, "id")
            exact = all(found[d].tobytes() == one.run(pixels, "id")[d].tobytes() for d, one in singles.items())
            one = next(iter(singles.values()))
            ratios = []
            for _ in range(pairs):
                started = time.perf_counter()
                several.run(pixels, "id")
                middle = time.perf_counter()
                one.run(pixels, "id")
                ratios.append((middle - started) / (time.perf_counter() - middle))
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        click.echo(f"{name:<18} K=5 / K=1: {statistics.median(ratios):.3f} ({spread}, {pairs} pairs), bit-exact: {exact}")


if __name__ == "__main__":
    main()
