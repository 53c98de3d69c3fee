"""Whether two pictures are one, by their pixels: the same but for resizing, recompression and a turn, colours included."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.core.cards import Interpolation, Preprocess
from toolkit.images import render
from toolkit.images.decode import Pixels
from toolkit.images.duplicates.hashes import TURNS

Differs = Literal["", "too small", "brightness", "detail", "colour"]

LEAST = 12  # pixels of the shorter side below which only equal pixels prove anything
FEW = 18  # pixels of a side below which so little is seen that it must agree better, …
FEW_LIMIT = 0.5  # … to this distance
MOST = 64  # the side at which larger pictures are compared
FILTERS: tuple[Interpolation, ...] = ("bilinear", "bicubic")
CELLS = 8  # of a side, whose means are compared; of at least three pixels
TILES = 4  # of a side, whose detail is compared
SHIFT = 2.5  # levels of mean brightness beyond which a picture was made lighter or darker
NOISE = 8.0  # levels of detail that recompression may take away

# opponent colours as JPEG has them: brightness, blue, red
_OPPONENT = np.array([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]], dtype=np.float32)

F32 = NDArray[np.float32]


@dataclass(frozen=True, order=True)
class Comparison:
    """How far two pictures are apart (up to 1 they are one), and in what they differ; "" where they are one."""

    distance: float
    differs: Differs


class Picture:
    """What is kept of RGB pixels uint8 [H, W, 3] to compare them with others: of at most twice MOST a side."""

    def __init__(self, decoded: Pixels, where: str) -> None:
        height, width = decoded.shape[:2]
        size = min(height, 2 * MOST), min(width, 2 * MOST)
        if size != (height, width):
            small = render.render(decoded, Preprocess(size), implementation="pillow", where=where)
            decoded = np.ascontiguousarray(small.transpose(1, 2, 0))
        self.pixels = decoded
        self._planes: dict[tuple[int, Interpolation], F32] = {}
        self._detail: dict[tuple[int, Interpolation], F32] = {}

    def planes(self, side: int, interpolation: Interpolation) -> F32:
        """Brightness and the two opponent colours, float32 [3, side, side]."""
        key = side, interpolation
        if key not in self._planes:
            preprocess = Preprocess((side, side), interpolation=interpolation)
            square = render.render(self.pixels, preprocess, implementation="pillow").astype(np.float32)
            self._planes[key] = np.asarray(np.tensordot(_OPPONENT, square, 1), dtype=np.float32)
        return self._planes[key]

    def detail(self, side: int, interpolation: Interpolation) -> F32:
        """How much the brightness of each tile differs from its surroundings, its mean square, float32 [1, TILES, TILES]."""
        from scipy import ndimage

        key = side, interpolation
        if key not in self._detail:
            plane = self.planes(side, interpolation)[0]
            rest = plane - ndimage.uniform_filter(plane, max(3, side // 8 | 1))
            self._detail[key] = _means(rest[None] ** 2, TILES)
        return self._detail[key]


def compare(one: Picture, other: Picture, turn: str) -> Comparison:
    """How far two pictures are apart, the first turned by `turn`, and in what.

    They are brought to the smaller's size, at most 64 pixels, since a copy that was made smaller
    has no more. Resizing and JPEG leave the means of cells as they are, within a few levels that fall with the cell's pixels,
    and change detail by less than there is: what differs beyond that is another picture.
    """
    first, second = one.pixels, other.pixels
    side = min(MOST, *first.shape[:2], *second.shape[:2])
    if side < LEAST:
        same = first.shape == second.shape and turn == "id" and np.array_equal(first, second)
        return Comparison(0.0, "") if same else Comparison(np.inf, "too small")
    ways = FILTERS if first.shape != second.shape else FILTERS[:1]
    compared = min(_compared(one, other, turn, side, way) for way in ways)
    return (
        compared
        if side >= FEW or compared.distance <= FEW_LIMIT
        else replace(compared, differs=compared.differs or "too small")
    )


def _turned(planes: F32, turn: str) -> F32:
    transposed, rows, columns = TURNS[turn]
    planes = planes.transpose(0, 2, 1) if transposed else planes
    return planes[:, :: -1 if rows else 1, :: -1 if columns else 1]


def _compared(one: Picture, other: Picture, turn: str, side: int, way: Interpolation) -> Comparison:
    apart = _turned(one.planes(side, way), turn) - other.planes(side, way)
    cells = min(CELLS, side // 3)
    pixels = side / cells
    brightness = max(np.abs(_means(apart[:1], cells)).max() / (4.4 + 19.6 / pixels), abs(apart[0].mean()) / SHIFT)
    # JPEG keeps colours at half the size
    colour = np.abs(_means(apart[1:], max(cells // 2, 1))).max() / (2 + 14 / pixels)
    there = np.sqrt(_turned(one.detail(side, way), turn) * other.detail(side, way))
    lost = np.sqrt(_means(apart[:1] ** 2, TILES)) / np.sqrt(there + NOISE**2)
    detail = lost.max() / (0.25 + 2.6 / pixels)
    apart_in: dict[Differs, float] = {"brightness": float(brightness), "colour": float(colour), "detail": float(detail)}
    worst = max(apart_in, key=lambda name: apart_in[name])
    return Comparison(apart_in[worst], worst if apart_in[worst] > 1 else "")


def _means(planes: F32, parts: int) -> F32:
    """Means of the cells of a square cut into parts × parts, [C, parts, parts]."""
    edges = np.linspace(0, planes.shape[-1], parts + 1).astype(int)
    sums = np.add.reduceat(np.add.reduceat(planes, edges[:-1], axis=1), edges[:-1], axis=2)
    widths = np.diff(edges)
    return np.asarray(sums / (widths[:, None] * widths[None, :]), dtype=np.float32)
