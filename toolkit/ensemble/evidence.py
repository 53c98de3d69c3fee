"""Out-of-fold evidence of a submission: its members' tables joined and weighted as they are in it, scored with an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from toolkit.blending.blend import Blend, read_blend
from toolkit.core import prediction_files
from toolkit.core.alignment import align_members, shared_ids, stack_values
from toolkit.core.metrics import METRICS
from toolkit.core.predictions import Predictions
from toolkit.errors import DataError, few
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split

BLOCKS = 20  # of the jackknife
MISMATCH = 1e-3  # a card's score and that of its out-of-fold rows come from the same numbers


class Doubt(NamedTuple):
    """Something about the tables that makes them poor evidence: a code of submission checks, how often, what was seen."""

    code: str
    rows: int
    seen: str


@dataclass(frozen=True, eq=False)
class Evidence:
    """The ensemble's out-of-fold predictions per target, its scores as plain JSON values, the tables used, and doubts."""

    predictions: Mapping[str, Predictions] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    paths: tuple[Path, ...] = ()
    doubts: tuple[Doubt, ...] = ()


def gather(competition: Competition, meta: Mapping[str, Any]) -> Evidence:
    """What oof/<member>.parquet says of the members of predictions; empty where a member has no table.

    Members are averaged with their weights, or combined as their blend says, over the ids that all of them have, without views:
    a score that is not fitted on the rows it is taken from, as long as the weights were not.
    """
    records = meta.get("blend") or {}
    weights: dict[str, float] = {}
    for model in meta.get("models", ()):
        weights[model["member"]] = weights.get(model["member"], 0.0) + float(model.get("weight", 1.0))
    paths = {name: competition.path("oof", f"{name}.parquet") for name, weight in weights.items() if weight}
    if not paths or not all(path.is_file() for path in paths.values()):
        return Evidence()
    try:
        tables = {name: prediction_files.read_table(path) for name, path in paths.items()}
        truth = competition.truth()
        combined = {
            target.name: _combined(
                {name: table.predictions[target.name] for name, table in tables.items()}, weights, records.get(target.name)
            )
            for target in competition.targets
        }
        members = {name: _score(competition, table.predictions, truth)[0] for name, table in tables.items()}
        score, error = _score(competition, combined, truth)
    except (DataError, KeyError) as problem:
        return Evidence(doubts=(Doubt("SUB066", 1, getattr(problem, "message", str(problem))),))
    scores = {
        "metric": competition.metric,
        "out_of_fold": score,
        "interval": None if math.isnan(error) else [score - 1.96 * error, score + 1.96 * error],
        "rows": len(next(iter(combined.values()))),
        "members": members,
    }
    return Evidence(combined, scores, tuple(paths.values()), tuple(_mismatched(competition, meta, tables, truth)))


def _combined(tables: Mapping[str, Predictions], weights: Mapping[str, float], record: Mapping[str, Any] | None) -> Predictions:
    """The members' tables of a target as one: their blend's, where `record` has it, else the mean with their weights."""
    aligned = align_members(tables, shared_ids(tables, common=True))
    like = next(iter(aligned.values()))
    if record is None:
        blend = Blend(tuple(aligned), np.array([weights[name] for name in aligned]) / sum(weights[name] for name in aligned))
    else:
        blend = read_blend(record, like.classes).among(aligned)
    return blend.apply(stack_values(aligned, blend.members), multilabel=like.multilabel).predictions(like)


def _score(
    competition: Competition, predictions: Mapping[str, Predictions], truth: Mapping[str, Predictions]
) -> tuple[float, float]:
    """The mean score over the targets and its standard error, by the jackknife that leaves out each twentieth of the rows."""
    full, parts = [], []
    for target in competition.targets:
        table, labels = predictions[target.name], truth[target.name].align(predictions[target.name].ids)
        full.append(table.score(competition.score, labels))
        blocks = [np.flatnonzero(np.arange(len(table)) % BLOCKS != b) for b in range(BLOCKS)] if len(table) > BLOCKS else []
        parts.append([table.take(rows).score(competition.score, labels.take(rows)) for rows in blocks])
    spread = np.mean(parts, axis=0)
    error = math.sqrt((BLOCKS - 1) * float(np.var(spread))) if len(spread) else math.nan
    return float(np.mean(full)), error


def _mismatched(
    competition: Competition,
    meta: Mapping[str, Any],
    tables: Mapping[str, prediction_files.PredictionTable],
    truth: Mapping[str, Predictions],
) -> Sequence[Doubt]:
    """Exports whose score is not what their held-out rows give: another checkpoint, class order or split."""
    split = Split.if_made(competition)
    wrong = []
    for model in meta.get("models", ()):
        table = tables.get(model["member"])
        stated, fold = model.get("score"), model.get("fold")
        if table is None or split is None or stated is None or fold is None or table.meta.get("split") != split.digest:
            continue
        metric = METRICS.get(model.get("metric") or table.meta.get("metric") or competition.metric)
        ids = split.held_out(fold)
        if metric is None or not set(ids) <= set(next(iter(table.predictions.values())).ids):
            continue
        names = [target.name for target in competition.targets if target.name in table.predictions]
        score = np.mean([table.predictions[name].score(metric, truth[name].align(ids)) for name in names])
        if abs(score - stated) > MISMATCH * max(1.0, abs(stated)):
            wrong.append(f"{model['path']} says {stated:.4f}, its rows give {score:.4f}")
    return [Doubt("SUB065", len(wrong), few(wrong))] if wrong else []
