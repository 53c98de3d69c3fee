"""Where names live: public ones, loaded on first use, and what 0.1.0 had elsewhere, found at its new place with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MOVED = {
    "toolkit.cards": "toolkit.core.cards",
    "toolkit.competition": "toolkit.workspace.competition",
    "toolkit.csvs": "toolkit.base.text.csv_text",
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

# Modules of 0.1.0 whose name is a folder now: names that the folder hands on, and the module that has them.
HANDED_ON = {"toolkit.submissions": {"submit": "toolkit.submissions.submission"}}


class _Alias(MetaPathFinder, Loader):
    """Finds the names in MOVED; the module found is the new one itself, so classes and registries stay the same objects."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        warnings.warn(f"{old} is now {MOVED[old]}: see CHANGELOG.md", DeprecationWarning, stacklevel=2)
        sys.modules[old] = importlib.import_module(MOVED[old])  # the import system takes what stands here from now on


class _Folders(MetaPathFinder):
    """Finds the folders in HANDED_ON where they are, and lets them hand on what the module of that name had."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in HANDED_ON else None
        if spec and spec.loader:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                module.__dict__["__getattr__"] = partial(_handed_on, fullname)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _handed_on(folder: str, name: str) -> Any:
    home = HANDED_ON[folder].get(name)
    if home is None:
        raise AttributeError(f"module {folder!r} has no attribute {name!r}")
    warnings.warn(f"{folder}.{name} is now {home}.{name}: see CHANGELOG.md", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(home), name)


def install() -> None:
    """Make the old paths importable; once, however often it is called."""
    if not any(isinstance(finder, _Alias) for finder in sys.meta_path):
        sys.meta_path.append(_Alias())
        sys.meta_path.insert(0, _Folders())


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
