"""Doubles among pictures: the same bytes, one picture by its pixels, or merely alike; and pictures that are alike to many."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.base.runners.threads import spread
from toolkit.errors import ImageError
from toolkit.images import render
from toolkit.images.duplicates import proof
from toolkit.images.duplicates.hashes import ALIKE, TURNS, Neighbours, neighbours, ranks
from toolkit.images.duplicates.prints import FLAT, Prints
from toolkit.images.duplicates.proof import Comparison, Differs, Picture

MANY = 12  # a picture that is alike to so many others shows a template: a chart, a form, a disc on black
SOME = 3  # others from which on a picture is in a crowd, where being near proves less
CERTAIN = 0.5  # distance by pixels up to which pictures of a crowd may be one (half, where they crowd) …
APART = 4.0  # … where every other is so many times as far
BLOCK = 2048  # pictures whose pixels are in memory at once, of up to 48 KB each


@dataclass(frozen=True)
class Twin:
    """Two pictures, by number: `second` is `first` turned by `turn`; `similarity` is their correlation (same bytes: 1).

    `differs` says what keeps them from being one picture: they are then merely alike.
    """

    first: int
    second: int
    turn: str
    similarity: float
    exact: bool
    differs: Differs = ""


@dataclass(frozen=True)
class Doubles:
    """Pairs of one picture, pairs that are merely alike, and the pictures of templates, each surest or lowest first.

    A template's picture is alike to many others without being them: such pairs are not listed as alike. `bits` says in how many
    bits hashes were let differ.
    """

    twins: tuple[Twin, ...]
    alike: tuple[Twin, ...]
    templates: tuple[int, ...]
    bits: int


def find(given: Prints) -> Doubles:
    """All pairs of the same bytes or the same sight.

    Of pictures with the same bytes each goes with the first of them; of the others every pair is there once, the lower number
    first, but of a template's pictures only what is proved. Pixels are read again for that.
    """
    exact, alone = _same_bytes(given)
    places = np.array(alone, dtype=np.int64)
    near = neighbours(given.thumbs[places], given.sides[places])
    asked = np.flatnonzero(ranks(near.first, near.second) < MANY)
    compared = _compared([given.paths[place] for place in alone], near, asked)
    proved, templates = _judged(near, asked, compared)
    twins, alike = list(exact), []
    for place in range(len(near.first)):
        i, j = int(near.first[place]), int(near.second[place])
        turn, similarity = list(TURNS)[near.turn[place]], float(near.similarity[place])
        if place in proved:
            twins.append(Twin(alone[i], alone[j], turn, similarity, exact=False))
        elif similarity >= ALIKE and not (templates[i] or templates[j]):
            differs = compared[place].differs if place in compared else "detail"
            alike.append(Twin(alone[i], alone[j], turn, similarity, exact=False, differs=differs))
    return Doubles(_ordered(twins), _ordered(alike), tuple(places[templates].tolist()), near.bits)


def _judged(
    near: Neighbours, asked: NDArray[np.int64], compared: Mapping[int, Comparison]
) -> tuple[set[int], NDArray[np.bool_]]:
    """The places of pairs that are one picture, and which of the N pictures are a template's (bool [N])."""
    distance = np.array([compared[place].distance for place in asked.tolist()])
    same = np.array([not compared[place].differs for place in asked.tolist()], dtype=bool)
    first, second = near.first[asked], near.second[asked]

    def counted(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(np.concatenate([first[chosen], second[chosen]]), minlength=len(near.partners))

    copies = counted(same)
    templates = (near.partners - copies >= MANY) | (copies >= MANY)
    crowded = templates | (near.partners - copies >= SOME)
    in_crowd = crowded[first] | crowded[second]
    # among many that are alike, two are near each other by chance: a copy is nearer by far than the next that is none
    by_chance = int((in_crowd & (distance > CERTAIN) & (distance <= 1)).sum())
    certain = CERTAIN / 2 if by_chance > crowded.sum() / 10 else CERTAIN
    other = np.full(len(near.partners), np.inf)
    for side in (first, second):
        np.minimum.at(other, side[distance > certain], distance[distance > certain])
    close = same & (distance <= certain)
    full = counted(close) >= MANY
    alone = close & (distance * APART <= np.minimum(other[first], other[second])) & ~(full[first] | full[second])
    one = np.where(in_crowd, alone, same)
    return set(asked[one].tolist()), templates


def _same_bytes(given: Prints) -> tuple[list[Twin], list[int]]:
    """Pairs of the same bytes, and the other pictures that have something to compare."""
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
    return twins, alone


def _compared(paths: Sequence[Path], near: Neighbours, asked: NDArray[np.int64]) -> dict[int, Comparison]:
    """What the pixels of each asked pair say, by its place."""
    compared: dict[int, Comparison] = {}
    turns = list(TURNS)
    for block in _blocks(near, asked):
        needed = sorted({int(side[place]) for place in block for side in (near.first, near.second)})
        pictures = dict(zip(needed, spread(_picture, [paths[i] for i in needed], os.cpu_count() or 1), strict=True))
        for place in block:
            first, second = pictures[int(near.first[place])], pictures[int(near.second[place])]
            if first is not None and second is not None:
                compared[place] = proof.compare(first, second, turns[near.turn[place]])
            else:
                compared[place] = Comparison(np.inf, "detail")
    return compared


def _blocks(near: Neighbours, asked: NDArray[np.int64]) -> Iterator[list[int]]:
    """The asked pairs in parts of at most BLOCK pictures, those of one first picture together."""
    block: list[int] = []
    pictures: set[int] = set()
    for place in asked[np.lexsort((near.second[asked], near.first[asked]))].tolist():
        both = {int(near.first[place]), int(near.second[place])}
        if block and len(pictures | both) > BLOCK:
            yield block
            block, pictures = [], set()
        block.append(place)
        pictures |= both
    if block:
        yield block


def _picture(path: Path) -> Picture | None:
    """A picture as it is compared; None where it has vanished meanwhile."""
    try:
        return Picture(render.decode(render.read(path), str(path), implementation="pillow"), str(path))
    except ImageError:
        return None


def _ordered(twins: list[Twin]) -> tuple[Twin, ...]:
    return tuple(sorted(twins, key=lambda twin: (-twin.similarity, twin.first, twin.second)))
