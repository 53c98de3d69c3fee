"""Copies planted among Fashion-MNIST's images: how many an audit finds, and how fast: `python benchmarks/audit.py`."""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path

import click
import fashion
import numpy as np
from PIL import Image

from toolkit.images import duplicates

METHODS = ("the same bytes", "JPEG at quality 60", "half again as large", "mirrored", "a quarter turn, JPEG at quality 75")


def altered(image: Image.Image, method: str) -> tuple[str, bytes]:
    """The suffix and bytes of a copy."""
    data = io.BytesIO()
    if method == "half again as large":
        image = image.resize((42, 42), Image.Resampling.BICUBIC)
    if method == "mirrored":
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if method.startswith("a quarter turn"):
        image = image.transpose(Image.Transpose.ROTATE_90)
    if "JPEG" in method:
        image.save(data, "JPEG", quality=int(method.rsplit(" ", 1)[1]))
        return "jpg", data.getvalue()
    image.save(data, "PNG")
    return "png", data.getvalue()


@click.command()
@click.option("--source", type=click.Path(path_type=Path), default=Path("/usr/share/datasets/fashion-mnist"), show_default=True)
@click.option("--images", "count", default=60_000, show_default=True, help="Of the 60,000 for training.")
@click.option("--copies", default=100, show_default=True, help="Planted of each kind.")
def main(source: Path, count: int, copies: int) -> None:
    """Write PNG files, plant copies, look for them."""
    pixels, _ = fashion.read(source, "train", count)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root, planted = Path(folder), {}
        for i, image in enumerate(pixels):
            (root / f"{i:05d}.png").write_bytes(altered(Image.fromarray(image), "the same bytes")[1])
        chosen = rng.choice(len(pixels), copies * len(METHODS), replace=False)
        for n, i in enumerate(chosen.tolist()):
            method = METHODS[n % len(METHODS)]
            suffix, data = altered(Image.fromarray(pixels[i]), method)
            (root / f"copy{i:05d}.{suffix}").write_bytes(data)
            planted[i] = method
        paths = sorted(root.iterdir())
        started = time.perf_counter()
        given = duplicates.prints(paths)
        read = time.perf_counter()
        found, bits = duplicates.find(given)
        done = time.perf_counter()
    names = {frozenset((paths[t.first].stem, paths[t.second].stem)) for t in found}
    for method in METHODS:
        asked = [i for i, one in planted.items() if one == method]
        hits = sum(frozenset((f"{i:05d}", f"copy{i:05d}")) in names for i in asked)
        print(f"{method:<36} {hits} of {len(asked)}")
    print(f"pairs in all                         {len(found):,}, hashes within {bits} bits")
    print(f"{len(paths):,} images read in {read - started:.1f} s, compared in {done - read:.1f} s")


if __name__ == "__main__":
    main()
