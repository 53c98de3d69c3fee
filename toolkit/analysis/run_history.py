"""What work left behind: the learning curves of runs, how they were fed, and where the time of predicting went."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from toolkit.base import documents, sealed
from toolkit.inference.store import timings
from toolkit.inference.store.timings import AROUND

Curves = Mapping[str, Mapping[str, list[float]]]
RATE, WAITED = "images/s", "waited"  # columns of metrics.csv that speak of time


@dataclass(frozen=True)
class Fed:
    """How the training of one fold was fed: its median speed, the share of time it waited for data, and what was said of it.

    `loader` and `model` are the images per second that either makes alone; None where a run did not measure them.
    """

    run: str
    epochs: int
    rate: float | None
    waited: float | None
    loader: float | None
    model: float | None
    said: str


@dataclass(frozen=True)
class Spent:
    """What a model's passes took, all that were ever made here, and its share of the whole; decoding counts images."""

    what: str
    how: str
    passes: int
    seconds: float
    share: float

    @property
    def rate(self) -> float:
        """Passes per second."""
        return self.passes / max(self.seconds, 1e-9)


def curves(folder: Path) -> dict[str, dict[str, list[float]]]:
    """The columns of every fold's metrics.csv, by `member.fold<k>`; what cannot be read as numbers is left out."""
    by_run = {}
    for path in sorted(folder.glob("*/fold*/metrics.csv")):
        try:
            rows = list(csv.DictReader(io.StringIO(documents.read_text(path), newline="")))
        except (OSError, ValueError, csv.Error):
            continue
        columns = {name: _numbers([row.get(name) for row in rows]) for name in (rows[0] if rows else {})}
        by_run[_name(path)] = {name: values for name, values in columns.items() if values}
    return by_run


def training(folder: Path, curves: Curves) -> list[Fed]:
    """How each run was fed, from its curves and what it says of itself in config.json."""
    feedings = {_name(path): _feeding(path) for path in sorted(folder.glob("*/fold*/config.json"))}
    rows = []
    for run, columns in curves.items():
        feeding = feedings.get(run, {})
        rate, waited = (float(median(columns[name])) if columns.get(name) else None for name in (RATE, WAITED))
        epochs = max(map(len, columns.values()), default=0)
        words = str(feeding.get("said", "")).rpartition("; ")[2]
        rows.append(Fed(run, epochs, rate, waited, _number(feeding.get("loader")), _number(feeding.get("model")), words))
    return [row for row in rows if row.rate is not None or row.loader is not None]


def predicting(store: Path, models: Sequence[Mapping[str, Any]]) -> list[Spent]:
    """Where the time went while predicting, the most first; `models` are those of the last predictions, known by name."""
    known = timings.read(store)
    names = {str(model.get("digest")): str(model.get("path")) for model in models}
    total = sum(timing.seconds for timing in known.values())
    rows = []
    for key, timing in known.items():
        model, _, how = key.partition(" ")
        what = "decoding, and all else that models waited for" if model == AROUND else names.get(model, f"model {model[:8]}")
        rows.append(Spent(what, how, timing.passes, timing.seconds, timing.seconds / total if total else 0.0))
    return sorted(rows, key=lambda row: -row.seconds)


def _name(path: Path) -> str:
    return f"{path.parts[-3]}.{path.parts[-2]}"


def _feeding(path: Path) -> Mapping[str, Any]:
    """What a run measured of its feeding, of its last model; nothing where it did not, or it cannot be understood."""
    try:
        feeding = sealed.unstamped(documents.read_json(path))["report"][-1]["feeding"]
    except (OSError, ValueError, KeyError, IndexError, TypeError, sealed.DamagedError):
        return {}
    return feeding if isinstance(feeding, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _numbers(cells: list[Any]) -> list[float]:
    try:
        return [float(cell) for cell in cells]
    except (TypeError, ValueError):
        return []
