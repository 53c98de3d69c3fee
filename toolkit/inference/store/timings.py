"""Timings: what a pass of each model took on each engine, noted while predicting, so that a plan can be made from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from toolkit.base import documents, files
from toolkit.errors import StoreError

FILE = "timings.json"
AROUND = "images"  # instead of a model: what an image costs besides, decoding above all, as far as models had to wait for it


@dataclass(frozen=True)
class Timing:
    """How many passes (or images) took how many seconds in all."""

    passes: int
    seconds: float

    @property
    def each(self) -> float:
        """Seconds per pass."""
        return self.seconds / self.passes


def key(model: str, engine: str, precision: str) -> str:
    """Under which name the passes of a model are noted."""
    return f"{model} {engine} {precision}"


def read(root: Path) -> dict[str, Timing]:
    """All that was noted in a store; nothing where nothing was, or it cannot be understood."""
    try:
        noted = documents.read_json(root / FILE)
        return {str(name): Timing(int(timing[0]), float(timing[1])) for name, timing in noted.items() if timing[0] > 0}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, IndexError):
        return {}  # no result depends on it


def note(root: Path, added: Mapping[str, Timing]) -> None:
    """Add to what was noted; a store that cannot be written is left as it is."""
    known = read(root)
    for name, new in added.items():
        old = known.get(name, Timing(0, 0.0))
        known[name] = Timing(old.passes + new.passes, old.seconds + new.seconds)
    with suppress(StoreError):
        text = json.dumps({name: [timing.passes, timing.seconds] for name, timing in sorted(known.items())}, indent=0)
        files.write_text(root / FILE, text + "\n")
