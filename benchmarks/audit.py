"""How many planted copies an audit finds, which pairs it calls one picture without being it, and how long it takes.

    apt-get install dataset-fashion-mnist
    python benchmarks/audit.py
    python benchmarks/audit.py --speed 60000

Copies are planted among Fashion-MNIST's images, tiles of two photographs and drawn discs with vessels. The sets that hold no
copy are Fashion-MNIST's images, scikit-learn's digits, drawn discs like pictures of eyes (red or orange, plain or with spots,
vessels, noise), flags of other colours and letters. A pair among those is false unless its two files show the same letter.
"""

from __future__ import annotations

import io
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import fashion
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits, load_sample_images

from toolkit.images.duplicates import twins
from toolkit.images.duplicates.prints import prints

BICUBIC, TURN = Image.Resampling.BICUBIC, Image.Transpose
COLOURS = [(200, 30, 30), (0, 140, 60), (245, 245, 245), (20, 50, 160), (250, 210, 30), (250, 150, 30), (10, 10, 10)]
LETTERS = "bdpqnuceoxz69MW"


def resized(image: Image.Image, factor: float, how: Image.Resampling = BICUBIC) -> Image.Image:
    """A copy of another size."""
    return image.resize((round(image.width * factor), round(image.height * factor)), how)


def jpeg(image: Image.Image, quality: int) -> bytes:
    """A recompressed copy."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return data.getvalue()


def cut(image: Image.Image, share: float) -> Image.Image:
    """A copy without its margins."""
    x, y = round(image.width * share / 2), round(image.height * share / 2)
    return image.crop((x, y, image.width - x, image.height - y))


COPIES: dict[str, Callable[[Image.Image], Image.Image | bytes]] = {
    "half the size": lambda image: resized(image, 0.5),
    "half the size, bilinear": lambda image: resized(image, 0.5, Image.Resampling.BILINEAR),
    "0.7 of the size, Lanczos": lambda image: resized(image, 0.7, Image.Resampling.LANCZOS),
    "0.9 of the size": lambda image: resized(image, 0.9),
    "half again as large": lambda image: resized(image, 1.5),
    "JPEG at quality 90": lambda image: jpeg(image, 90),
    "JPEG at quality 70": lambda image: jpeg(image, 70),
    "JPEG at quality 50": lambda image: jpeg(image, 50),
    "0.7 of the size, JPEG at 60": lambda image: jpeg(resized(image, 0.7), 60),
    "mirrored": lambda image: image.transpose(TURN.FLIP_LEFT_RIGHT),
    "a quarter turn, JPEG at 75": lambda image: jpeg(image.transpose(TURN.ROTATE_90), 75),
    "half a turn": lambda image: image.transpose(TURN.ROTATE_180),
    "(grey)": lambda image: image.convert("L"),
    "(cut by 5 %)": lambda image: cut(image, 0.05),
}


def tiles() -> list[Image.Image]:
    """Parts of scikit-learn's two photographs that do not overlap within a size: 96 and 160 pixels."""
    return [
        Image.fromarray(photo[y : y + side, x : x + side])
        for photo in load_sample_images().images
        for side in (96, 160)
        for y in range(0, photo.shape[0] - side + 1, side)
        for x in range(0, photo.shape[1] - side + 1, side)
    ]


def discs(count: int, kind: str, side: int = 224) -> Iterator[Image.Image]:
    """Discs on black, red or orange; place, size, tint and what is on them are drawn anew for each."""
    rng = np.random.default_rng(0)
    for number in range(count):
        image = Image.new("RGB", (side, side))
        pen, centre, radius = ImageDraw.Draw(image), side / 2 + rng.normal(0, 2, 2), side * 0.42 + rng.normal(0, 2)
        tint = np.array([(200, 60, 30), (220, 130, 40)][number % 2]) + rng.normal(0, 8, 3)
        pen.ellipse([*(centre - radius), *(centre + radius)], fill=_colour(tint))
        if kind in ("spots", "vessels"):
            for place in centre + rng.uniform(-0.55, 0.55, (rng.integers(0, 5), 2)) * radius:
                size = rng.uniform(1, 5)
                pen.ellipse([*(place - size), *(place + size)], fill=_colour(tint / 2))
        if kind == "vessels":
            for _ in range(6):
                steps = np.cumsum(rng.normal(0, 0.4, 12)) + rng.uniform(0, 2 * np.pi)
                way = centre + np.cumsum(radius * 0.07 * np.stack([np.cos(steps), np.sin(steps)], axis=1), axis=0)
                pen.line([tuple(point) for point in way], fill=_colour(tint * 0.75), width=2)
        if kind == "noise":
            noisy = np.asarray(image) + rng.normal(0, 4, (side, side, 1))
            image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        yield image


def _colour(levels: np.ndarray) -> tuple[int, ...]:
    return tuple(int(level) for level in levels.clip(0, 255))


def flags() -> Iterator[Image.Image]:
    """Every disc on every other ground, and three stripes of every three colours, lying and standing."""
    for ground in COLOURS:
        for colour in COLOURS:
            if colour != ground:
                image = Image.new("RGB", (96, 64), ground)
                ImageDraw.Draw(image).ellipse([30, 14, 66, 50], fill=colour)
                yield image
            for third in COLOURS:
                for box in ((0, 21, 96, 64), (32, 0, 96, 64)):
                    if colour not in (ground, third):
                        image = Image.new("RGB", (96, 64), ground)
                        pen = ImageDraw.Draw(image)
                        pen.rectangle(box, fill=colour)
                        pen.rectangle((0, 43, 96, 64) if box[1] else (64, 0, 96, 64), fill=third)
                        yield image


def letters() -> dict[str, Image.Image]:
    """Letters in Pillow's own font, at several sizes and places, by names that begin with the letter."""
    drawn = {}
    for size in (24, 32, 48, 64, 96):
        for letter in LETTERS:
            for shift in range(3):
                image = Image.new("L", (2 * size, 2 * size), 255)
                place = (size // 2 + shift, size // 3)
                ImageDraw.Draw(image).text(place, letter, font=ImageFont.load_default(size), fill=0)
                drawn[f"{letter}_{size}_{shift}"] = image
    return drawn


def found(images: dict[str, Image.Image | bytes]) -> tuple[twins.Doubles, list[str], float, float]:
    """What an audit finds among images by name, their names, and the seconds of reading and of comparing."""
    with tempfile.TemporaryDirectory() as folder:
        for name, image in images.items():
            path = Path(folder) / name
            if isinstance(image, bytes):
                path.with_suffix(".jpg").write_bytes(image)
            else:
                image.save(path.with_suffix(".png"), compress_level=1)
        paths = sorted(Path(folder).iterdir())
        started = time.perf_counter()
        seen = prints(paths)
        read = time.perf_counter()
        doubles = twins.find(seen)
        return doubles, [path.stem for path in paths], read - started, time.perf_counter() - read


def recall(name: str, images: list[Image.Image], copies: int) -> None:
    """Plant copies of each kind, look for each kind by itself."""
    rng = np.random.default_rng(0)
    named = {f"{i:05d}": image for i, image in enumerate(images)}
    totals, strays = [0, 0], 0
    for kind, copy in COPIES.items():
        chosen = rng.choice(len(images), min(copies, len(images)), replace=False).tolist()
        doubles, names, _, _ = found(named | {f"{i:05d}x": copy(images[i]) for i in chosen})
        pairs = {(names[t.first], names[t.second]) for t in doubles.twins}
        alike = {(names[t.first], names[t.second]) for t in doubles.alike}
        hits = sum((f"{i:05d}", f"{i:05d}x") in pairs for i in chosen)
        near = sum((f"{i:05d}", f"{i:05d}x") in alike for i in chosen)
        strays += sum(a[:5] != b[:5] for a, b in pairs)
        if not kind.startswith("("):
            totals = [totals[0] + hits, totals[1] + len(chosen)]
        print(f"| {name} | {kind} | {hits} of {len(chosen)} | {near} |", flush=True)
    share = f"{totals[0]} of {totals[1]} ({totals[0] / totals[1]:.1%})"
    print(f"| {name} | all but those in brackets | {share} | false: {strays} |", flush=True)


def precision(name: str, images: dict[str, Image.Image]) -> None:
    """Look for doubles where there are none."""
    doubles, names, read, compared = found(dict(images))
    pairs = [t for t in doubles.twins if not t.exact]
    exact = len(doubles.twins) - len(pairs)
    if "_" in next(iter(images)):  # letters: a larger one is the same picture resized
        pairs = [t for t in pairs if names[t.first].split("_")[0] != names[t.second].split("_")[0]]
    turned = sum(t.turn != "id" for t in pairs)
    counts = [len(names), exact, len(pairs) - turned, turned, len(doubles.alike), len(doubles.templates)]
    print(f"| {name} | {' | '.join(f'{count:,}' for count in counts)} | {read:.1f} s | {compared:.1f} s |", flush=True)


@click.command()
@click.option("--source", type=click.Path(path_type=Path), default=Path("/usr/share/datasets/fashion-mnist"), show_default=True)
@click.option("--images", "count", default=5_000, show_default=True, help="Of Fashion-MNIST.")
@click.option("--copies", default=60, show_default=True, help="Planted of each kind.")
@click.option("--discs", "drawn", default=600, show_default=True, help="Drawn of each kind.")
@click.option("--speed", default=0, help="Only time so many images of Fashion-MNIST.")
def main(source: Path, count: int, copies: int, drawn: int, speed: int) -> None:
    """Print the tables of RESULTS.md."""
    clothes = [Image.fromarray(pixels) for pixels in fashion.read(source, "train", speed or count)[0]]
    if speed:
        doubles, names, read, compared = found({f"{i:05d}": image for i, image in enumerate(clothes)})
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{len(names):,} images read in {read:.1f} s, compared in {compared:.1f} s, {peak:,.0f} MiB at the most")
        print(f"hashes within {doubles.bits} bits")
        print(f"{len(doubles.twins)} pairs of one picture, {len(doubles.alike)} alike")
        return
    print("| among | copies | found | called alike |")
    recall("Fashion-MNIST", clothes[:: max(len(clothes) // 1500, 1)], copies)
    recall("photographs", tiles(), copies)
    recall("discs with vessels", list(discs(drawn // 2, "vessels")), copies)
    print("| no copies in | images | same bytes | one picture | mirrored or turned | alike | of a template | read | compared |")
    precision(f"Fashion-MNIST, {count:,}", {f"{i:05d}": image for i, image in enumerate(clothes)})
    numbers = [Image.fromarray((image * 15.9).astype(np.uint8)) for image in load_digits().images]
    precision("digits, 8 pixels", {f"{i:05d}": image for i, image in enumerate(numbers)})
    precision("digits, 32 pixels", {f"{i:05d}": resized(image, 4) for i, image in enumerate(numbers)})
    for kind in ("plain", "spots", "vessels", "noise"):
        precision(f"discs, {kind}", {f"{i:05d}": image for i, image in enumerate(discs(drawn, kind))})
    precision("flags of other colours", {f"{i:05d}": image for i, image in enumerate(flags())})
    precision("letters, pairs of other letters", letters())


if __name__ == "__main__":
    main()
