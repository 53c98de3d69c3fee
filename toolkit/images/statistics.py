"""Image files measured: format, size, brightness, colours, a print to find doubles by, and which of them are odd."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64
from toolkit.base.runners.threads import spread
from toolkit.core.cards import Alpha, Window
from toolkit.errors import ImageError, counted
from toolkit.images import decode, render
from toolkit.images.duplicates.prints import FLAT, SIDE, Prints, thumb
from toolkit.images.treatments import PLAIN, Treatment

REACH = 3.0  # interquartile ranges beyond the quartiles from which a file is odd (Tukey's "far out")
RARE = 0.01  # share of the files above which what is odd is a kind of its own
SHAPE = ("width", "height", "aspect", "kilobytes")
PIXEL = ("brightness", "contrast", "red", "green", "blue")


# what the far ends of a property are called; contrast has a lower end of its own: pictures of nothing
_ENDS = {
    "aspect": ("tall", "wide"),
    "width": ("small", "large"),
    "kilobytes": ("small file", "large file"),
    "brightness": ("dark", "bright"),
}


@dataclass(frozen=True, eq=False)
class Files:
    """The image files of one part, column by column; numbers are NaN where a file is bad or was not looked into.

    `shape` holds width, height (pixels), width / height and kilobytes, float64 [N] each; `pixel` brightness (mean grey),
    contrast (its standard deviation) and the channels' means, all in 0..1, of the sampled images; `square` the channels' mean
    squares, from which the standard deviation over all pixels comes; `prints` what doubles are found by, of the `sampled`.
    """

    ids: tuple[str, ...]
    paths: tuple[Path, ...]
    formats: tuple[str, ...]
    modes: tuple[str, ...]
    shape: Mapping[str, F64]
    pixel: Mapping[str, F64]
    square: F64
    bad: Mapping[int, str]
    prints: Prints

    @property
    def sampled(self) -> NDArray[np.int64]:
        """The rows whose pixels were looked at."""
        return np.flatnonzero(np.isfinite(self.pixel["brightness"]))

    def values(self, name: str) -> F64:
        """A property of SHAPE or PIXEL, float64 [N]."""
        return self.shape[name] if name in self.shape else self.pixel[name]


@dataclass(frozen=True)
class Odd:
    """A file that can be used and is unlike the others: `what` it is, and the value that says so."""

    id: str
    path: Path
    what: str
    value: float


@dataclass(frozen=True)
class Peculiar:
    """Kinds of files in a sample that decode otherwise than a person may expect.

    Of `read` files, `hidden` are of one colour without their alpha, which alone has the drawing, and `behind` is what shows it;
    `deep` have 16 bits, none of their values above `largest`; `endless` JPEGs lack their end marker, `several` have more than
    one frame or page.
    """

    read: int = 0
    hidden: int = 0
    behind: Alpha = "drop"
    deep: int = 0
    largest: int = 0
    endless: int = 0
    several: int = 0

    @property
    def window(self) -> Window | None:
        """Black and white of values that fill fewer than 16 bits, as cameras and scanners store them; None: they fill them."""
        top = next((2**bits - 1 for bits in (10, 12, 14) if self.largest < 2**bits), None)
        return (0, top) if self.deep and self.largest > 255 and top else None

    def notes(self, alpha: Alpha, window: Window | None) -> Iterator[str]:
        """A sentence on each kind, as the workspace treats it."""
        of = f"of {counted(self.read, 'pictures')} looked at"
        if self.hidden and alpha == "drop":
            yield (
                f"{self.hidden:,} {of} are of one colour without their alpha, which alone has the drawing: "
                f'alpha = "{self.behind}" in competition.toml shows it'
            )
        elif self.hidden:
            yield f'alpha = "{alpha}": {self.hidden:,} {of} are of one colour without their alpha, which alone has the drawing'
        if self.window and window is None:
            yield (
                f"{self.deep:,} {of} have 16 bits but no value above {self.largest:,}, and come out near black: "
                f"window = [{self.window[0]}, {self.window[1]}] in competition.toml stretches them"
            )
        if self.endless:
            yield f"{self.endless:,} {of} are JPEGs that lack nothing but the end marker: all pixels are there and used"
        if self.several:
            yield f"{self.several:,} {of} have several frames or pages: the first is used"


def peculiar(paths: Sequence[Path], sample: int = 200) -> Peculiar:
    """Look at `sample` of the files, drawn by chance; those that cannot be used are passed over."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(paths))[:sample])
    looks = [look for look in spread(lambda row: _look(paths[row]), chosen.tolist(), os.cpu_count() or 1) if look]
    white = sum(look.behind == "white" for look in looks)
    hidden = sum(look.hidden for look in looks)
    return Peculiar(
        read=len(looks),
        hidden=hidden,
        behind="drop" if not hidden else "white" if 2 * white >= hidden else "black",
        deep=sum(look.deep for look in looks),
        largest=max((look.largest for look in looks), default=0),
        endless=sum(look.endless for look in looks),
        several=sum(look.several for look in looks),
    )


def _look(path: Path) -> Peculiar | None:
    """One file; None if it cannot be used."""
    where = str(path)
    try:
        data = render.read(path)
        kind, mode, _ = decode.describe(data, where)
        behind: Alpha = "drop"
        if mode in ("RGBA", "LA", "PA", "P", "La", "RGBa"):
            plain = render.decode(data, where, implementation="pillow")
            level = plain[0, 0]
            if (plain == level).all():
                other: Alpha = "white" if level.mean() < 128 else "black"
                shown = render.decode(data, where, implementation="pillow", treatment=Treatment(other))
                behind = "drop" if (shown == shown[0, 0]).all() else other
        deep = decode.deep_values(data, where) if kind in ("PNG", "TIFF", "PPM", "JPEG2000") else None
        several = kind in ("GIF", "PNG", "WEBP", "TIFF", "AVIF") and decode.frames(data, where) > 1
        largest = 0 if deep is None else int(deep.max())
        return Peculiar(
            1, int(behind != "drop"), behind, int(deep is not None), largest, int(decode.lacks_end(data)), int(several)
        )
    except ImageError:
        return None


def measure(
    named: Sequence[tuple[str, Path]],
    sample: int,
    report: Callable[[int], None] | None = None,
    treatment: Treatment = PLAIN,
) -> Files:
    """Read the header of every file, and the pixels of `sample` of them drawn by chance; each file is read once.

    `report` is told how many are done, `treatment` is how models of the workspace see the pictures. A file that cannot be used
    is noted as bad.
    """
    rows = len(named)
    chosen = np.sort(np.random.default_rng(0).permutation(rows)[:sample])
    slot = {int(row): place for place, row in enumerate(chosen)}
    shape, pixel = ({name: np.full(rows, np.nan) for name in names} for names in (SHAPE, PIXEL))
    square = np.full((rows, 3), np.nan)
    bad: dict[int, str] = {}
    formats, modes = [""] * rows, [""] * rows
    digests: list[bytes | None] = [None] * len(chosen)
    thumbs = np.zeros((len(chosen), SIDE, SIDE), dtype=np.uint8)

    def look(row: int) -> None:
        path = named[row][1]
        try:
            data = render.read(path)
            formats[row], modes[row], (width, height) = decode.describe(data, str(path))
            for name, value in zip(SHAPE, (width, height, width / height, len(data) / 1e3), strict=True):
                shape[name][row] = value
            if (place := slot.get(row)) is not None:
                rgb = render.decode(data, str(path), implementation="pillow", treatment=treatment)
                thumbs[place] = thumb(rgb, str(path))
                square[row], values = _colours(rgb)
                for name, value in zip(PIXEL, values, strict=True):
                    pixel[name][row] = value
                digests[place] = render.digest(data)
        except ImageError as error:
            bad[row] = error.message

    for done, _ in enumerate(spread(look, range(rows), os.cpu_count() or 1), 1):
        if report and (done % 64 == 0 or done == rows):
            report(done)
    ids, paths = zip(*named, strict=True) if named else ((), ())
    good = [place for place, digest in enumerate(digests) if digest is not None]
    rows_of = chosen[good]
    sides = np.stack([shape["height"][rows_of], shape["width"][rows_of]], axis=1).astype(np.int32)
    prints = Prints(tuple(named[row][1] for row in rows_of), tuple(digests[place] for place in good), sides, thumbs[good], {})
    return Files(
        tuple(ids), tuple(paths), tuple(formats), tuple(modes), shape, pixel, square, dict(sorted(bad.items())), prints
    )


def odd(files: Files) -> list[Odd]:
    """Files that stand far out of the rest in size, shape, weight or brightness, and pictures of nothing; furthest first.

    A property that is odd in more than RARE of the files is passed over: there is then more than one kind of file.
    """
    return [found for name in (*_ENDS, "contrast") for found in _far(files, name)]


def quantiles(values: F64) -> dict[str, float]:
    """Smallest, 5 %, median, 95 %, largest of the finite values; empty if there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {}
    return {
        name: float(np.quantile(finite, q)) for name, q in (("min", 0), ("5%", 0.05), ("50%", 0.5), ("95%", 0.95), ("max", 1))
    }


def _far(files: Files, name: str) -> Iterator[Odd]:
    values = files.values(name)
    finite = np.flatnonzero(np.isfinite(values))
    if not len(finite):
        return
    if name == "contrast":
        out = np.where(values[finite] < FLAT / 255, 1 - values[finite], 0.0)
    else:
        low, high = np.quantile(values[finite], (0.25, 0.75))
        out = np.maximum(low - values[finite], values[finite] - high) - REACH * (high - low)
    far = finite[out > 1e-9]
    if name != "contrast" and len(far) > max(RARE * len(finite), 3):
        return
    for row in far[np.argsort(-out[out > 1e-9], kind="stable")].tolist():
        below = name == "contrast" or values[row] < np.median(values[finite])
        what = "blank" if name == "contrast" else _ENDS[name][0 if below else 1]
        yield Odd(files.ids[row], files.paths[row], what, float(values[row]))


def _colours(rgb: NDArray[np.uint8]) -> tuple[F64, tuple[float, ...]]:
    """Mean squares of the channels [3], and the values of PIXEL, all in 0..1."""
    means, squares = _moments(rgb)
    grey = rgb[:: max(1, len(rgb) // 256), :: max(1, rgb.shape[1] // 256)].mean(axis=2) / 255
    return squares, (float(grey.mean()), float(grey.std()), *map(float, means))


def _moments(rgb: NDArray[np.uint8]) -> tuple[F64, F64]:
    """Channel means and mean squares in 0..1; by counting levels, which takes no float copy of the image."""
    levels = np.arange(256) / 255
    counts = np.stack([np.bincount(rgb[:, :, channel].reshape(-1), minlength=256) for channel in range(3)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    return shares @ levels, shares @ levels**2
