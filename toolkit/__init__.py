"""The public names, loaded on first use so that importing the package costs nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Card": "cards",
    "Competition": "competition",
    "FakeSession": "sessions",
    "METRICS": "metrics",
    "Metric": "metrics",
    "Output": "cards",
    "Predictions": "predictions",
    "Preprocess": "cards",
    "Session": "sessions",
    "Split": "folds",
    "ToolkitError": "errors",
    "VIEW_SETS": "views",
    "VOTES": "voting",
    "export": "exporting",
    "read_table": "tables",
    "vote": "voting",
}

__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604 - names are resolved by __getattr__

if TYPE_CHECKING:
    from toolkit.cards import Card as Card
    from toolkit.cards import Output as Output
    from toolkit.cards import Preprocess as Preprocess
    from toolkit.competition import Competition as Competition
    from toolkit.errors import ToolkitError as ToolkitError
    from toolkit.exporting import export as export
    from toolkit.folds import Split as Split
    from toolkit.metrics import METRICS as METRICS
    from toolkit.metrics import Metric as Metric
    from toolkit.predictions import Predictions as Predictions
    from toolkit.sessions import FakeSession as FakeSession
    from toolkit.sessions import Session as Session
    from toolkit.tables import read_table as read_table
    from toolkit.views import VIEW_SETS as VIEW_SETS
    from toolkit.voting import VOTES as VOTES
    from toolkit.voting import vote as vote


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"toolkit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
