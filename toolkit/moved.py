"""Where names live: public ones, loaded on first use, and what 0.1.0 had elsewhere, found at its new place with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "toolkit.cards": "toolkit.core.cards",
    "toolkit.competition": "toolkit.workspace.competition",
    "toolkit.csvs": "toolkit.base.csv_text",
    "toolkit.digits": "toolkit.setup.digits_data",
    "toolkit.ensembling": "toolkit.ensemble.run",
    "toolkit.explaining": "toolkit.analysis.explanation",
    "toolkit.fitting": "toolkit.blending.oof",
    "toolkit.folds": "toolkit.workspace.split",
    "toolkit.graphs": "toolkit.runtime.graphs.onnx_file",
    "toolkit.members": "toolkit.inference.exports",
    "toolkit.networks": "toolkit.models.networks",
    "toolkit.payoff": "toolkit.ensemble.view_selection",
    "toolkit.portraits": "toolkit.setup.mask_data",
    "toolkit.reports": "toolkit.analysis.pages",
    "toolkit.reports.explained": "toolkit.analysis.pages.explanation",
    "toolkit.scoring": "toolkit.analysis.scores",
    "toolkit.shipped": "toolkit.setup.recipe_files",
    "toolkit.surveying": "toolkit.analysis.data_survey",
    "toolkit.tables": "toolkit.core.prediction_files",
    "toolkit.tta": "toolkit.ensemble.tta",
    "toolkit.training.augment": "toolkit.training.parts.augment",
    "toolkit.training.choosing": "toolkit.training.parts.by_name",
    "toolkit.training.heads": "toolkit.training.parts.factor_losses",
    "toolkit.training.losses": "toolkit.training.parts.losses",
    "toolkit.training.models": "toolkit.training.parts.transfer",
    "toolkit.training.pseudo": "toolkit.training.pseudo_labels",
    "toolkit.training.schedules": "toolkit.training.parts.schedules",
}


class _Alias(MetaPathFinder, Loader):
    """Finds the names in MOVED; the module found is the new one itself, so classes and registries stay the same objects."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        warnings.warn(f"{old} is now {MOVED[old]}: see CHANGELOG.md", DeprecationWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(MOVED[old])  # the import system takes what stands here from now on


def install() -> None:
    """Make the old paths importable; once, however often it is called."""
    if not any(isinstance(finder, _Alias) for finder in sys.meta_path):
        sys.meta_path.append(_Alias())


def public_name(package: str, name: str, homes: Mapping[str, str]) -> Any:
    """The object of a package's public name: `homes` says "module:name" below toolkit, or the module alone where it is one.

    Raises:
        AttributeError: the package has no such name.
    """
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    module, _, attribute = homes[name].partition(":")
    home = importlib.import_module(f"toolkit.{module}")
    return getattr(home, attribute) if attribute else home
