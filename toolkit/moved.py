"""Old import paths: modules of 0.1.0 that copied recipes import, found under their new names with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "toolkit.cards": "toolkit.core.cards",
    "toolkit.competition": "toolkit.workspace.competition",
    "toolkit.csvs": "toolkit.base.csv_text",
    "toolkit.digits": "toolkit.setup.digits_data",
    "toolkit.ensembling": "toolkit.moved_ensembling",
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
