"""Pictures that are there twice: the same bytes, or the same sight after resizing, recompression, flips and quarter turns."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.base.runners.threads import spread
from toolkit.core.cards import Preprocess
from toolkit.errors import ImageError
from toolkit.images import render

SIDE = 32  # pixels of the grey thumbnail that is hashed and compared
LOW = 8  # its lowest frequencies, in either direction, make the hash
BITS = 5  # hashes of one sight differ in at most so many of 63 bits: JPEG at quality 30 moved 4
SIMILAR = 0.99  # correlation of the thumbnails that proves a pair; recompression and resizing stay above
FLAT = 2.0  # grey levels of standard deviation below which a picture has nothing to compare
CANDIDATES = 600_000_000  # pairs that are looked at, in about 25 s; where there are more, fewer bits may differ
CHUNK = 1_000_000

# transposed, rows reversed, columns reversed: in this order, the eight turns by the names that views have
TURNS: dict[str, tuple[bool, bool, bool]] = {
    "id": (False, False, False),
    "hflip": (False, False, True),
    "vflip": (False, True, False),
    "rot180": (False, True, True),
    "hflip+rot90": (True, False, False),
    "rot270": (True, False, True),
    "rot90": (True, True, False),
    "hflip+rot270": (True, True, True),
}

_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)[:, None, None]

U64 = NDArray[np.uint64]
Report = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Prints:
    """What is kept of N pictures: content digests (None where unreadable: see `bad`), grey thumbnails uint8 [N, 32, 32]."""

    digests: tuple[bytes | None, ...]
    thumbs: NDArray[np.uint8]
    bad: dict[int, str]


@dataclass(frozen=True)
class Twin:
    """Two pictures, by number: `second` is `first` turned by `turn`; `similarity` is their correlation (same bytes: 1)."""

    first: int
    second: int
    turn: str
    similarity: float
    exact: bool


def prints(paths: Sequence[Path], *, progress: Report | None = None) -> Prints:
    """Read every picture once; what cannot be read is noted and left out."""
    thumbs = np.zeros((len(paths), SIDE, SIDE), dtype=np.uint8)

    def print_of(path: Path) -> tuple[bytes, NDArray[np.uint8]] | str:
        try:
            data = render.read(path)
            return render.digest(data), thumb(render.decode(data, str(path), implementation="pillow"), str(path))
        except ImageError as error:
            return error.message

    digests: list[bytes | None] = []
    bad: dict[int, str] = {}
    for place, printed in enumerate(spread(print_of, paths, os.cpu_count() or 1)):
        if isinstance(printed, str):
            bad[place] = printed
            digests.append(None)
        else:
            digests.append(printed[0])
            thumbs[place] = printed[1]
        if progress and (place % 64 == 63 or place + 1 == len(paths)):
            progress(place + 1, len(paths))
    return Prints(tuple(digests), thumbs, bad)


def thumb(decoded: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
    """The grey thumbnail uint8 [32, 32] of RGB pixels [H, W, 3] that is hashed and compared."""
    small = render.render(decoded, Preprocess((SIDE, SIDE)), implementation="pillow", where=where)
    return np.asarray(np.rint((small * _GREY).sum(axis=0)), dtype=np.uint8)


def find(given: Prints, *, similar: float = SIMILAR) -> tuple[list[Twin], int]:
    """All pairs of the same bytes or the same sight, and in how many bits hashes were let differ.

    Of pictures with the same bytes each goes with the first of them; of the others every pair is there once, the lower number
    first.
    """
    homes: dict[bytes, int] = {}
    twins, alone = [], []
    # one by one: numpy would make float64 of all of them at once
    flat = [picture.std() < FLAT for picture in given.thumbs]
    for place, digest in enumerate(given.digests):
        if digest is None:
            continue
        first = homes.setdefault(digest, place)
        if first != place:
            twins.append(Twin(first, place, "id", 1.0, exact=True))
        elif not flat[place]:
            alone.append(place)
    near, bits = _near(given.thumbs[alone], similar)
    twins += [Twin(alone[i], alone[j], turn, value, exact=False) for i, j, turn, value in near]
    return sorted(twins, key=lambda twin: (-twin.similarity, twin.first, twin.second)), bits


def hashes(thumbs: NDArray[np.uint8]) -> U64:
    """Perceptual hashes, uint64 [8, N]: one for each of TURNS (pHash, Zauner 2010: low DCT frequencies against their median).

    A flip changes the sign of the odd frequencies and a transposition swaps them, so that one transform serves all eight.
    """
    from scipy import fft

    bits = np.zeros((len(TURNS), len(thumbs)), dtype=np.uint64)
    odd = np.where(np.arange(LOW) % 2, -1.0, 1.0).astype(np.float32)
    powers = np.uint64(1) << np.arange(1, LOW * LOW, dtype=np.uint64)
    for start in range(0, len(thumbs), 4096):
        part = fft.dctn(thumbs[start : start + 4096].astype(np.float32), axes=(1, 2), norm="ortho")[:, :LOW, :LOW]
        for number, (transposed, rows, columns) in enumerate(TURNS.values()):
            turned = part.transpose(0, 2, 1) if transposed else part
            turned = turned * (odd[:, None] if rows else 1) * (odd if columns else 1)
            flat = turned.reshape(len(part), -1)[:, 1:]  # the first is the brightness
            above = flat > np.median(flat, axis=1, keepdims=True)
            bits[number, start : start + 4096] = (above * powers).sum(axis=1, dtype=np.uint64)
    return bits


def _near(thumbs: NDArray[np.uint8], similar: float) -> tuple[list[tuple[int, int, str, float]], int]:
    """(first, second, turn, correlation) of the pairs that their hashes let come near and their pixels prove."""
    if len(thumbs) < 2:
        return [], BITS
    every = hashes(thumbs)
    bits = next((n for n in range(BITS, 0, -1) if _count(every, n) <= CANDIDATES), 0)
    best: dict[tuple[int, int], tuple[float, str]] = {}
    for number, turn in enumerate(TURNS):
        for left, right in _candidates(every[number], every[0], bits):
            values = _correlations(thumbs, left, right, turn)
            for place in np.flatnonzero(values >= similar).tolist():
                pair, value = (int(left[place]), int(right[place])), float(values[place])
                if value > best.get(pair, (0.0, ""))[0] + 1e-6:  # of equals, the plainest turn
                    best[pair] = value, turn
    return [(i, j, turn, min(value, 1.0)) for (i, j), (value, turn) in best.items()], bits


def _bands(bits: int) -> list[tuple[np.uint64, np.uint64]]:
    """Shift and mask of bits + 1 bands: hashes that differ in `bits` bits agree in one of them."""
    edges = np.linspace(1, LOW * LOW, bits + 2).astype(int).tolist()
    return [(np.uint64(low), np.uint64((1 << (high - low)) - 1)) for low, high in itertools.pairwise(edges)]


def _count(every: U64, bits: int) -> int:
    """How many pairs a search would look at."""
    total = 0
    for shift, mask in _bands(bits):
        ordered = np.sort((every[0] >> shift) & mask)
        for turned in every:
            keys = (turned >> shift) & mask
            total += int((np.searchsorted(ordered, keys, "right") - np.searchsorted(ordered, keys, "left")).sum())
    return total


def _candidates(turned: U64, plain: U64, bits: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs, first before second, whose hashes differ in at most `bits` bits, in parts."""
    bands = _bands(bits)
    for number, (shift, mask) in enumerate(bands):
        keys = (plain >> shift) & mask
        order = np.argsort(keys, kind="stable")
        asked = (turned >> shift) & mask
        low, high = (np.searchsorted(keys[order], asked, side) for side in ("left", "right"))
        upto = np.cumsum(high - low)
        start = 0
        while start < len(turned):
            stop = max(int(np.searchsorted(upto, (upto[start - 1] if start else 0) + CHUNK, "right")), start + 1)
            counts = (high - low)[start:stop]
            left = np.repeat(np.arange(start, stop), counts)
            within = np.arange(len(left)) - np.repeat(np.cumsum(counts) - counts, counts)
            right = order[np.repeat(low[start:stop], counts) + within]
            kept = left < right
            left, right = left[kept], right[kept]
            apart = turned[left] ^ plain[right]
            kept = np.bitwise_count(apart) <= bits
            for earlier, other in bands[:number]:  # these agree there as well and were found there
                kept &= (apart >> earlier) & other != 0
            yield left[kept], right[kept]
            start = stop


def _correlations(
    thumbs: NDArray[np.uint8], left: NDArray[np.int64], right: NDArray[np.int64], turn: str, step: int = 1024
) -> NDArray[np.float32]:
    """Correlation of the turned first with the second thumbnail of each pair."""
    transposed, rows, columns = TURNS[turn]
    correlations = np.empty(len(left), dtype=np.float32)
    for start in range(0, len(left), step):
        pair = [thumbs[side[start : start + step]].astype(np.float32) for side in (left, right)]
        turned = pair[0].transpose(0, 2, 1) if transposed else pair[0]
        turned = turned[:, :: -1 if rows else 1, :: -1 if columns else 1]
        a, b = (x.reshape(len(x), -1) - x.mean(axis=(1, 2))[:, None] for x in (turned, pair[1]))
        correlations[start : start + step] = (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return correlations
