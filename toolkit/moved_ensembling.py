"""`toolkit.ensembling` as copied recipes of 0.1.0 call it: `run` with every choice as a keyword; see `toolkit.moved`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from toolkit.blending.combination import Combination
from toolkit.ensemble.combine import combine, views_for
from toolkit.ensemble.run import EnsembleRun, run_ensemble
from toolkit.ensemble.unseen import out_of_fold, unseen
from toolkit.inference.execution import Execution
from toolkit.workspace.competition import Competition

__all__ = ["EnsembleRun", "combine", "out_of_fold", "run", "unseen", "views_for"]


def run(competition: Competition, paths: Sequence[Path], **choices: Any) -> EnsembleRun:
    """`run_ensemble`, its two requests made of keywords (`tta="flip"`, `device="cpu"` …).

    Raises:
        ToolkitError: see `run_ensemble`.
    """
    combination, execution = (
        kind(**{field.name: choices.pop(field.name) for field in fields(kind) if field.name in choices})
        for kind in (Combination, Execution)
    )
    return run_ensemble(competition, paths, combination, execution, **choices)  # type: ignore[arg-type]
