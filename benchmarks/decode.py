"""Decode and resize of JPEGs per core, against Pillow with torchvision v1 transforms: `python benchmarks/decode.py`."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
from PIL import Image


def photographs(count: int) -> list[bytes]:
    """JPEG files of 512 × 384 pixels with detail at every scale, in memory: no disk takes part."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        layers = [rng.integers(0, 256, (3 * 2**k, 4 * 2**k, 3), dtype=np.uint8) for k in range(7)]
        grown = [np.asarray(Image.fromarray(layer).resize((512, 384), Image.Resampling.BICUBIC), float) for layer in layers]
        mixed = sum(g / 2 ** (k / 2) for k, g in enumerate(grown)) / sum(1 / 2 ** (k / 2) for k in range(7))
        data = io.BytesIO()
        Image.fromarray(mixed.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
        found.append(data.getvalue())
    return found


def peer(size: int) -> Callable[[bytes], Any]:
    """What competitors write: Pillow, Resize, ToTensor, Normalize."""
    from torchvision import transforms as T  # noqa: N812

    transform = T.Compose(
        [
            T.Resize((size, size), interpolation=T.InterpolationMode.BICUBIC, antialias=True),
            T.ToTensor(),
            T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return lambda data: transform(Image.open(io.BytesIO(data)).convert("RGB"))


def ours(size: int) -> Callable[[bytes], Any]:
    """Evaluation pixels as inference makes them; normalisation is inside the exported graph."""
    from toolkit.core.cards import Preprocess
    from toolkit.images import render

    preprocess = Preprocess((size, size), interpolation="bicubic")
    return lambda data: render.render(render.decode(data, "the photograph"), preprocess)


def rate(work: Callable[[bytes], Any], files: list[bytes]) -> float:
    """Images per second of processor time of one thread, which neighbours on the machine disturb less than the wall clock."""
    started = time.process_time()
    for data in files:
        work(data)
    return len(files) / (time.process_time() - started)


@click.command()
@click.option("--images", "count", default=200, show_default=True)
@click.option("--size", default=224, show_default=True)
@click.option("--pairs", default=9, show_default=True)
def main(count: int, size: int, pairs: int) -> None:
    """Check that both agree to a level, then print the median ratio of paired runs on one thread."""
    import torch

    torch.set_num_threads(1)
    files = photographs(count)
    theirs, mine = peer(size), ours(size)
    back = theirs(files[0]).numpy() * np.array([0.229, 0.224, 0.225])[:, None, None]
    back = np.rint((back + np.array([0.485, 0.456, 0.406])[:, None, None]) * 255)
    click.echo(f"largest difference {np.abs(back - mine(files[0])).max():.0f} level of 255")
    rates = [(rate(mine, files), rate(theirs, files)) for _ in range(pairs)]
    ratios = [a / b for a, b in rates]
    fast, slow = (statistics.median(column) for column in zip(*rates, strict=True))
    click.echo(f"{fast:,.0f} images/s per core against {slow:,.0f}")
    click.echo(f"ours / peer: {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}, {pairs} pairs)")


if __name__ == "__main__":
    main()
