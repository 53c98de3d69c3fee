"""Lineage: whose labels a model's weights have learned from, through everything they began from or were taught by."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SKETCH = 4096  # ids that are kept of those seen: all of them in most competitions, a fair sample beyond

# what made a score optimistic, in words, by how a card or a table says that its model was chosen
OPTIMISTIC = {
    "best": "the rows it is scored on also chose the epochs (best)",
    "soup": "the rows it is scored on also chose what is in it (soup)",
    "stopped": "the rows it is scored on also chose the epochs (stopped)",
    "soft-oof": "its targets come from models that saw the labels of the rows it is scored on (soft-oof)",
    "seen": "its weights, or what taught them, have seen the labels of the rows it is scored on (seen)",
    "inherited": "the rows it is scored on chose what its weights began from or were taught by (inherited)",
}


@dataclass(frozen=True)
class Seen:
    """All rows of a split, by its digest, but those that one fold holds out; `fold` None: without exception."""

    split: str
    fold: int | None = None

    def __str__(self) -> str:
        return f"all rows of split {self.split}" + ("" if self.fold is None else f" but fold {self.fold}'s")


@dataclass(frozen=True)
class Lineage:
    """What weights have seen, and by name what they began from or were taught by that does not say what it has seen.

    Weights of a hub are in neither: they are foreign to the competition.
    """

    seen: tuple[Seen, ...] = ()
    unknown: tuple[str, ...] = ()

    def __or__(self, other: Lineage) -> Lineage:
        return Lineage(tuple(dict.fromkeys((*self.seen, *other.seen))), tuple(dict.fromkeys((*self.unknown, *other.unknown))))

    def exposed(self, split: str, fold: int | None) -> tuple[Seen, ...]:
        """What has seen rows that a fold of a split holds out, as far as digests tell; None holds out nothing."""
        if fold is None:
            return ()
        return tuple(seen for seen in self.seen if seen.split == split and seen.fold != fold)

    def elsewhere(self, split: str) -> tuple[Seen, ...]:
        """What was seen of other splits: which rows these are, only their ids tell."""
        return tuple(seen for seen in self.seen if seen.split != split)


@dataclass(frozen=True, eq=False)
class SeenIds:
    """The ids whose labels weights have learned: the smallest of their 64-bit hashes, uint64 [N], sorted, N <= 4096.

    `whole` says that all are there; else they are a fair sample of the ids, and of those shared with any others. Source:
    Beyer et al. 2007, On Synopses for Distinct-Value Estimation Under Multiset Operations.
    """

    hashes: NDArray[np.uint64]
    whole: bool = True

    @classmethod
    def of(cls, ids: Iterable[str]) -> SeenIds:
        """The sketch of these ids."""
        return _smallest(_hashes(ids), whole=True)

    def __or__(self, other: SeenIds) -> SeenIds:
        limits = [int(part.hashes[-1]) for part in (self, other) if not part.whole]
        every = np.union1d(self.hashes, other.hashes)
        return _smallest(every[every <= min(limits)] if limits else every, whole=not limits)

    def shared(self, ids: Iterable[str]) -> tuple[int, int]:
        """How many of these ids were seen, and how many of them the sketch can tell of."""
        asked = _hashes(ids)
        if not self.whole:
            asked = asked[asked <= self.hashes[-1]]
        return int(np.isin(asked, self.hashes).sum()), len(asked)

    def to_text(self) -> str:
        """As text for a file's metadata."""
        return f"{'whole' if self.whole else 'sample'}:{base64.b64encode(self.hashes.astype('<u8').tobytes()).decode()}"

    @classmethod
    def from_text(cls, text: str) -> SeenIds | None:
        """What `to_text` wrote; None of anything else: what cannot be read says nothing."""
        kind, colon, data = text.partition(":")
        try:
            hashes = np.frombuffer(base64.b64decode(data, validate=True), dtype="<u8").astype(np.uint64)
        except (binascii.Error, ValueError):
            return None
        ordered = len(hashes) <= SKETCH and bool((hashes[1:] > hashes[:-1]).all())
        if not colon or kind not in ("whole", "sample") or not ordered or (kind == "sample" and not len(hashes)):
            return None
        return cls(hashes, kind == "whole")


def optimistic(selected: str) -> str:
    """Why scores of a model chosen so are too good, in words; empty where they are not. Several ways are joined by `+`.

    >>> optimistic("last")
    ''
    >>> optimistic("best+last")
    'the rows it is scored on also chose the epochs (best)'
    """
    ways = [how for how in selected.split("+") if how != "last"]
    return "; ".join(OPTIMISTIC.get(how, f"held-out rows had a say ({how})") for how in ways)


def _hashes(ids: Iterable[str]) -> NDArray[np.uint64]:
    """A hash of each, sorted, each once."""
    data = b"".join(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest() for name in ids)
    return np.unique(np.frombuffer(data, dtype="<u8").astype(np.uint64))


def _smallest(hashes: NDArray[np.uint64], *, whole: bool) -> SeenIds:
    return SeenIds(hashes[:SKETCH], whole and len(hashes) <= SKETCH)
