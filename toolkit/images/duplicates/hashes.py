"""Pairs of pictures that may show one sight: perceptual hashes under the eight turns, then the correlation of thumbnails."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LOW = 8  # the lowest frequencies of a thumbnail, in either direction, make its hash
BITS = 5  # hashes of one sight differ in at most so many of 63 bits: JPEG at quality 30 moved 4
MARGIN = 6.0  # above the median, or else the zeros of what is symmetric are bits of chance: 2 to 3 levels of noise are 2 to 3
MOST_BITS = 9  # … in so many where there are few pictures: a plain sky, recompressed at quality 50, moved 8
CHEAP = 40_000_000  # pairs that are looked at, in about 2 s
CANDIDATES = 600_000_000  # pairs that are looked at, in about 25 s; where there are more, fewer bits may differ
CHUNK = 1_000_000
ALIKE = 0.99  # correlation of thumbnails from which two pictures are called alike
CLOSE = 0.98  # … from which their pixels are asked; JPEG at quality 50 leaves pictures of 28 pixels at 0.99
LOOSE = 0.85  # the same where one is smaller than SMALL pixels and has another size: halved to 14 pixels, 0.87 is left
SMALL = 64
PARTNERS = 32  # of a picture that is alike to very many, so many of the best pairs are kept
ROOM = 4_000_000  # pairs in memory, of 21 bytes, before all but the best are dropped

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

U64 = NDArray[np.uint64]


def hashes(thumbs: NDArray[np.uint8]) -> U64:
    """Perceptual hashes, uint64 [8, N]: one for each of TURNS (pHash, Zauner 2010: low DCT frequencies against their median,
    here MARGIN above it).

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
            above = flat > np.median(flat, axis=1, keepdims=True) + MARGIN
            bits[number, start : start + 4096] = (above * powers).sum(axis=1, dtype=np.uint64)
    return bits


@dataclass(frozen=True, eq=False)
class Neighbours:
    """P pairs of N pictures that may show one sight, the most alike first.

    `first` < `second` (int64 [P]) number the pictures, `turn` (int64 [P]) counts in TURNS, `similarity` (float32 [P]) is the
    correlation of the turned first thumbnail with the second. `partners` (int64 [N]) says how many are ALIKE to each picture;
    of a picture that is alike to very many, the pairs with the best PARTNERS alone are there.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    turn: NDArray[np.int64]
    similarity: NDArray[np.float32]
    partners: NDArray[np.int64]
    bits: int


def neighbours(thumbs: NDArray[np.uint8], sides: NDArray[np.int32]) -> Neighbours:
    """The pairs whose hashes come near each other and whose thumbnails correlate, and in how many bits hashes were let differ.

    `thumbs` is uint8 [N, 32, 32], `sides` [N, 2] in pixels.
    """
    every = hashes(thumbs)
    bits = _bits(every)
    pairs, partners = _no_pairs(), np.zeros(len(thumbs), dtype=np.int64)
    parts, waiting = [pairs], 0
    for number, name in enumerate(TURNS):
        for left, right in _candidates(every[number], every[0], bits) if len(thumbs) > 1 else ():
            values = _correlations(thumbs, left, right, name)
            kept = values >= _least(sides, left, right)
            parts.append(_pairs_of(left[kept], right[kept], number, values[kept]))
            waiting += int(kept.sum())
            if waiting > ROOM:
                pairs, waiting = _best(np.concatenate(parts), partners), 0
                parts = [pairs]
    pairs = _best(np.concatenate(parts), partners)
    similarity = np.minimum(pairs["similarity"], np.float32(1))
    return Neighbours(pairs["first"], pairs["second"], pairs["turn"].astype(np.int64), similarity, partners, bits)


def _bits(every: U64) -> int:
    """In how many bits hashes may differ: BITS, more where that costs little, fewer where it would cost too much."""
    if every.shape[1] < 2:
        return BITS
    cheap = next((n for n in range(MOST_BITS, BITS, -1) if _count(every, n) <= CHEAP), 0)
    return cheap or next((n for n in range(BITS, 0, -1) if _count(every, n) <= CANDIDATES), 0)


_PAIR = np.dtype([("first", np.int64), ("second", np.int64), ("turn", np.int8), ("similarity", np.float32)])


def _no_pairs() -> NDArray[np.void]:
    return np.zeros(0, dtype=_PAIR)


def _pairs_of(
    left: NDArray[np.int64], right: NDArray[np.int64], turn: int, similarity: NDArray[np.float32]
) -> NDArray[np.void]:
    pairs = np.zeros(len(left), dtype=_PAIR)
    pairs["first"], pairs["second"], pairs["turn"], pairs["similarity"] = left, right, turn, similarity
    return pairs


def _least(sides: NDArray[np.int32], left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float32]:
    """The correlation from which a pair is worth its pixels: lower where a small picture was made smaller and lost much."""
    short, long = sides.min(axis=1), sides.max(axis=1)
    resized = (short[left] != short[right]) | (long[left] != long[right])
    small = np.minimum(short[left], short[right]) < SMALL
    return np.where(resized & small, LOOSE, CLOSE).astype(np.float32)


def _best(pairs: NDArray[np.void], partners: NDArray[np.int64]) -> NDArray[np.void]:
    """Each pair once under its best turn (of equals, the plainest), with the best of each picture's, the most alike first.

    `partners` [N] is brought up to date: of how many pictures each is alike to.
    """
    level = np.rint(pairs["similarity"] * 1e5)
    order = np.lexsort((pairs["turn"], -level, pairs["second"], pairs["first"]))
    pairs = pairs[order]
    new = np.ones(len(pairs), dtype=bool)
    new[1:] = (pairs["first"][1:] != pairs["first"][:-1]) | (pairs["second"][1:] != pairs["second"][:-1])
    pairs = pairs[new]
    alike = pairs[pairs["similarity"] >= ALIKE]
    counts = np.bincount(np.concatenate([alike["first"], alike["second"]]), minlength=len(partners))
    np.maximum(partners, counts, out=partners)
    pairs = pairs[np.lexsort((pairs["second"], pairs["first"], -pairs["similarity"]))]
    return pairs[ranks(pairs["first"], pairs["second"]) < PARTNERS]


def ranks(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each pair, how many better pairs that one of its two pictures has, whichever has fewer: pairs in order, best first."""
    nodes = np.concatenate([first, second])
    order = np.lexsort((np.tile(np.arange(len(first)), 2), nodes))
    ordered = nodes[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(ordered) else np.zeros(0, np.int64)
    within = np.arange(len(ordered)) - np.repeat(starts, np.diff(np.append(starts, len(ordered))))
    rank = np.empty(len(nodes), dtype=np.int64)
    rank[order] = within
    return np.minimum(rank[: len(first)], rank[len(first) :])


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
