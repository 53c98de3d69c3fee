"""Timings: what a pass of each model took on each engine, noted while predicting, so that a plan can be made from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.base import sealed
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
    return sealed.notes(root / FILE, "models are timed again", _understood) or {}


def _understood(noted: dict[str, Any]) -> dict[str, Timing]:
    timings = {str(name): Timing(int(passes), float(seconds)) for name, (passes, seconds) in noted.items() if passes > 0}
    if not all(math.isfinite(timing.seconds) and timing.seconds >= 0 for timing in timings.values()):
        raise ValueError("it holds what is no time")
    return timings


def note(root: Path, added: Mapping[str, Timing]) -> None:
    """Add to what was noted; a store that cannot be written is left as it is."""
    known = read(root)
    for name, new in added.items():
        old = known.get(name, Timing(0, 0.0))
        known[name] = Timing(old.passes + new.passes, old.seconds + new.seconds)
    with suppress(StoreError):
        noted = {name: [timing.passes, timing.seconds] for name, timing in sorted(known.items())}
        sealed.write_json(root / FILE, noted, indent=0)
