"""The public names, loaded on first use so that importing the package costs nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from toolkit import moved

__version__ = "0.1.0"

moved.install()

_HOMES = {
    "Card": "core.cards",
    "Competition": "workspace.competition",
    "FakeSession": "runtime.session",
    "METRICS": "core.metrics",
    "Metric": "core.metrics",
    "Output": "core.cards",
    "Predictions": "core.predictions",
    "Preprocess": "core.cards",
    "Session": "runtime.session",
    "Split": "workspace.split",
    "ToolkitError": "errors",
    "VIEW_SETS": "images.views",
    "VOTES": "core.voting",
    "export": "models.export",
    "read_table": "core.prediction_files",
    "vote": "core.voting",
}

__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604 - names are resolved by __getattr__

if TYPE_CHECKING:
    from toolkit.core.cards import Card as Card
    from toolkit.core.cards import Output as Output
    from toolkit.core.cards import Preprocess as Preprocess
    from toolkit.core.metrics import METRICS as METRICS
    from toolkit.core.metrics import Metric as Metric
    from toolkit.core.prediction_files import read_table as read_table
    from toolkit.core.predictions import Predictions as Predictions
    from toolkit.core.voting import VOTES as VOTES
    from toolkit.core.voting import vote as vote
    from toolkit.errors import ToolkitError as ToolkitError
    from toolkit.images.views import VIEW_SETS as VIEW_SETS
    from toolkit.models.export import export as export
    from toolkit.runtime.session import FakeSession as FakeSession
    from toolkit.runtime.session import Session as Session
    from toolkit.workspace.competition import Competition as Competition
    from toolkit.workspace.split import Split as Split


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"toolkit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
