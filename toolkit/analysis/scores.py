"""Scores of one table: whole with its interval, fold by fold, class by class, and how far its confidence can be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64
from toolkit.blending.calibration import calibration_error, reliability, temperature
from toolkit.blending.nested import Estimate, compare, fold_scales, nested, outer_folds, score_of, then
from toolkit.blending.objectives import BRIER, area, decide
from toolkit.blending.oof import MemberRows
from toolkit.core import metrics
from toolkit.core.metrics import METRICS, Metric
from toolkit.errors import DataError


@dataclass(frozen=True)
class Class:
    """One class: rows that have it, precision, recall and F1 of the labels, area under its ROC curve (NaN where undefined)."""

    support: int
    precision: float
    recall: float
    f1: float
    auc: float


@dataclass(frozen=True)
class Calibrated:
    """ECE, Brier and log-loss as they are and after a temperature that was fitted without each row's fold; that of all rows.

    `bins` and `bins_after` are the reliability of either.
    """

    before: Mapping[str, float]
    after: Mapping[str, float]
    temperature: float
    bins: tuple[Mapping[str, float], ...]
    bins_after: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True)
class Scored:
    """Scores by metric: the whole with its interval and each fold (None where the metric has no value there); the classes.

    `notes` say where a score over all rows is not what those of the folds explain.
    """

    metrics: Mapping[str, Estimate]
    folds: Mapping[str, Mapping[int, float | None]]
    classes: Mapping[str, Class]
    calibration: Calibrated | None
    rows: int
    notes: tuple[str, ...] = ()

    def record(self, first: str) -> dict[str, Any]:
        """Plain values, those of the metric `first` on top."""

        def whole(name: str) -> dict[str, Any]:
            kept = {key: value for key, value in asdict(self.metrics[name]).items() if not key.startswith("gain")}
            return kept | {"folds": dict(self.folds[name])}

        return whole(first) | {
            "rows": self.rows,
            "notes": list(self.notes),
            "metrics": {name: whole(name) for name in self.metrics},
            "classes": {name: _finite(asdict(class_score)) for name, class_score in self.classes.items()},
            "calibration": asdict(self.calibration) if self.calibration else None,
        }


def score(
    rows: MemberRows, names: Sequence[str], *, calibration: bool = False, widen: Mapping[str, float] | None = None
) -> list[Scored]:
    """Every member's table on each of these metrics; `widen` stretches the intervals of members, of a nested one: `widening`.

    Raises:
        DataError: a metric that needs something else than probabilities of this truth.
    """
    stretch = [{"it": (widen or {}).get(name, 1.0)} for name in rows.members]
    return [_scored(rows, table, names, own, calibration=calibration) for table, own in zip(rows.stack, stretch, strict=True)]


def _scored(rows: MemberRows, table: F64, names: Sequence[str], widen: Mapping[str, float], *, calibration: bool) -> Scored:
    truth = rows.truth.decided
    every = {name: METRICS[name] for name in names}
    whole = {
        name: compare(truth, metric, {"it": table}, baseline="it", groups=rows.groups, widen=widen)["it"]
        for name, metric in every.items()
    }
    numbers = [] if rows.folds is None else np.unique(rows.folds).tolist()
    folds = {name: {int(k): _of_fold(rows, table, metric, k) for k in numbers} for name, metric in every.items()}
    classes_scored = dict(zip(rows.truth.classes, per_class(truth, table), strict=True))
    scales = (
        [] if rows.folds is None else [fold_scales(truth, m, table, rows.folds, groups=rows.groups) for m in every.values()]
    )
    notes = tuple(one.note for one in scales if one and one.note)
    return Scored(whole, folds, classes_scored, calibrated(rows, table) if calibration else None, len(rows.ids), notes)


def _of_fold(rows: MemberRows, table: F64, metric: Metric, fold: int) -> float | None:
    inside = rows.folds == fold
    try:
        return score_of(rows.truth.decided[inside], metric, table[inside])
    except DataError:  # a fold without two classes has no area
        return None


def per_class(truth: NDArray[Any], table: F64) -> list[Class]:
    """Each class against the rest, from the labels that a table [N, C] decides, and its area.

    Precision, recall and F1 of a class that nobody has or says are 0, as in scikit-learn.
    """
    labels, classes = decide(table, truth), range(table.shape[1])
    yes = truth if truth.ndim == 2 else truth[:, None] == np.arange(table.shape[1])
    ours = labels if truth.ndim == 2 else labels[:, None] == np.arange(table.shape[1])
    right, given, there = (yes & ours).sum(axis=0), ours.sum(axis=0), yes.sum(axis=0)
    return [
        Class(
            int(there[c]),
            float(right[c] / max(given[c], 1)),
            float(right[c] / max(there[c], 1)),
            float(2 * right[c] / max(given[c] + there[c], 1)),
            area(yes[:, c], np.ascontiguousarray(table[:, c])) if 0 < there[c] < len(yes) else np.nan,
        )
        for c in classes
    ]


def calibrated(rows: MemberRows, table: F64) -> Calibrated:
    """How well confidence and being right agree, before and after a temperature per outer fold."""
    truth = rows.truth.decided
    folds = outer_folds(truth, groups=rows.groups) if rows.folds is None else rows.folds
    after = nested(table[None], truth, {"cool": then(lambda _stack, _truth: lambda rest: rest[0], temperature)}, folds)["cool"]
    before, cooled = (
        tuple(
            {key: float(value) for key, value in asdict(reliability_bin).items()}
            for reliability_bin in reliability(probabilities, truth)
        )
        for probabilities in (table, after)
    )
    return Calibrated(reliable(truth, table), reliable(truth, after), temperature(table, truth).temperature, before, cooled)


def reliable(truth: NDArray[Any], table: F64) -> dict[str, float]:
    """ECE, Brier score and log-loss of a table [N, C]."""
    return {
        "ece": float(calibration_error(table, truth)),
        "brier": BRIER.score(truth, table),
        "log_loss": metrics.log_loss(truth, table),
    }


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {key: None if np.isnan(value) else value for key, value in values.items()}
