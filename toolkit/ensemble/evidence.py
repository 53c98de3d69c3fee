"""Evidence of a submission: the score that its predictions carry, and its members' held-out answers to compare with."""

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
from toolkit.core.metrics import METRICS, Metric
from toolkit.core.predictions import Predictions
from toolkit.errors import DataError, counted, few
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split

MISMATCH = 1e-3  # a card's score and that of its out-of-fold rows come from the same numbers
EARLIER = {"unknown": "made by an earlier version"}


class Doubt(NamedTuple):
    """Something about the tables that makes them poor evidence: a code of submission checks, how often, what was seen."""

    code: str
    rows: int
    seen: str


@dataclass(frozen=True, eq=False)
class Evidence:
    """Held-out predictions of the members per target, the score that the predictions carry, the tables used, and doubts."""

    predictions: Mapping[str, Predictions] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    paths: tuple[Path, ...] = ()
    doubts: tuple[Doubt, ...] = ()


def of(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What predictions say of their score out of fold (see `as_made.measure`): of `unknown` why it is not known."""
    record = meta.get("evidence")
    return dict(record) if isinstance(record, Mapping) and ("unknown" in record or _is_score(record)) else dict(EARLIER)


def _is_score(record: Mapping[str, Any]) -> bool:
    """Whether it says a score, of how many rows, and what kind of number that is; records of before do not."""
    ends, notes = record.get("interval") or [], record.get("notes", [])
    if not (isinstance(ends, list) and isinstance(notes, list) and len(ends) in (0, 2)):
        return False
    numbers = [record.get("out_of_fold"), record.get("rows"), record.get("of"), *ends]
    texts = [record.get("metric"), record.get("kind"), record.get("optimistic")]
    finite = all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers)
    return finite and all(isinstance(text, str) for text in texts)


def described(meta: Mapping[str, Any]) -> dict[str, str]:
    """The views of predictions, as they were asked for, and how their models voted; that a blend was applied."""
    return {
        "views": str(meta.get("view_set", "")),
        "vote": str(meta.get("vote", "")) + (", blend" if meta.get("blend") else ""),
    }


def kind(record: Mapping[str, Any]) -> str:
    """What kind of number a score out of fold is, in a word or two; one that is too good says optimistic.

    >>> kind({"metric": "accuracy", "out_of_fold": 0.9, "kind": "nested", "rows": 500, "of": 900, "optimistic": ""})
    'nested, 500 rows'
    """
    if not record:
        return ""
    record = of({"evidence": record})
    if "unknown" in record:
        return f"unknown: {record['unknown']}"
    words = ["optimistic"] if record.get("optimistic") else []
    words += [record["kind"]] if record["kind"] != "plain" else []
    words += [counted(record["rows"], "rows")] if record["rows"] < record["of"] else []
    return ", ".join(words) or "plain"


def lines(record: Mapping[str, Any]) -> list[str]:
    """The score in sentences: with its interval, on how many rows, and what keeps it from being that of the test set."""
    if not record:
        return []
    record = of({"evidence": record})
    if "unknown" in record:
        return [f"Evidence unknown: {record['unknown']}"]
    low, high = record.get("interval") or (None, None)
    sure = f" (95 % {low:.5f} to {high:.5f})" if low is not None else ""
    mark = " (optimistic)" if record.get("optimistic") else ""
    rows, every = record["rows"], record["of"]
    count = f"{rows:,} of {counted(every, 'held-out rows')}" if rows < every else counted(rows, "rows")
    how = ", nested: what was chosen or fitted had not seen the rows it is scored on" if record.get("kind") == "nested" else ""
    value = f"{record['metric']} {record['out_of_fold']:.5f}"
    return [f"Out of fold {value}{mark}{sure}, {count}, as made{how}", *remarks(record)]


def remarks(record: Mapping[str, Any]) -> list[str]:
    """Why a score is too good, and what else keeps it from being that of the test set."""
    optimistic = [f"Optimistic: {record['optimistic']}"] if record.get("optimistic") else []
    return optimistic + [str(note) for note in record.get("notes", ())]


def gather(competition: Competition, meta: Mapping[str, Any]) -> Evidence:
    """What predictions say of their score, and what oof/<member>.parquet says of their members; nothing where one has no table.

    Members' tables are averaged with their weights, or combined as their vote or blend says, over the ids that all
    of them have, without views: answers to compare with, not a score.
    """
    scores = of(meta)
    records = meta.get("blend") or {}
    weights: dict[str, float] = {}
    for model in meta.get("models", ()):
        weights[model["member"]] = weights.get(model["member"], 0.0) + float(model.get("weight", 1.0))
    paths = {name: competition.path("oof", f"{name}.parquet") for name, weight in weights.items() if weight}
    if not paths or not all(path.is_file() for path in paths.values()):
        return Evidence(scores=scores)
    try:
        tables = {name: prediction_files.read_table(path) for name, path in paths.items()}
        combined = {
            target.name: _combined(
                {name: table.predictions[target.name] for name, table in tables.items()},
                weights,
                records.get(target.name),
                str(meta.get("vote", "soft")),
            )
            for target in competition.targets
        }
        doubts = tuple(_mismatched(competition, meta, tables, competition.truth()))
    except (DataError, KeyError) as problem:
        return Evidence(scores=scores, doubts=(Doubt("SUB066", 1, getattr(problem, "message", str(problem))),))
    return Evidence(combined, scores, tuple(paths.values()), doubts)


def _combined(
    tables: Mapping[str, Predictions], weights: Mapping[str, float], record: Mapping[str, Any] | None, vote: str
) -> Predictions:
    """The members' tables of a target as one: their blend's, where `record` has it, else the mean with their weights."""
    aligned = align_members(tables, shared_ids(tables, common=True))
    like = next(iter(aligned.values()))
    if record is None:
        blend = Blend(
            tuple(aligned), np.array([weights[name] for name in aligned]) / sum(weights[name] for name in aligned), vote
        )
    else:
        blend = read_blend(record, like.classes).among(aligned)
    return blend.apply(stack_values(aligned, blend.members), multilabel=like.multilabel).predictions(like)


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
        score = metric and other_score(table.predictions, truth, metric, split.held_out(fold), stated)
        if score is not None:
            wrong.append(f"{model['path']} says {stated:.4f}, its rows give {score:.4f}")
    return [Doubt("SUB065", len(wrong), few(wrong))] if wrong else []


def other_score(
    predictions: Mapping[str, Predictions],
    truth: Mapping[str, Predictions],
    metric: Metric,
    ids: Sequence[str],
    stated: float,
) -> float | None:
    """The mean score over the targets of these rows of a table, where it is not the one that was stated; None if it is.

    Rows that the table or the truth lacks say nothing, nor do those of which the metric cannot be had.
    """
    targets = [name for name in truth if name in predictions]
    if not targets or not all(set(ids) <= set(predictions[name].ids) and set(ids) <= set(truth[name].ids) for name in targets):
        return None
    try:
        score = float(np.mean([predictions[name].score(metric, truth[name].align(ids)) for name in targets]))
    except DataError:
        return None
    return score if abs(score - stated) > MISMATCH * max(1.0, abs(stated)) else None
