"""What predictions would score out of fold as they were made: their members, weights, views, vote, calibration and labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64
from toolkit.blending import oof
from toolkit.blending.blend import Blend, OuterBlends
from toolkit.blending.nested import Estimate, compare, fold_scales, joint, widening
from toolkit.core.alignment import align_members, shared_ids, stack_values
from toolkit.core.predictions import Predictions, concat
from toolkit.core.voting import WHOLE_TABLE
from toolkit.ensemble.held_out_rows import HeldOut, Making, Say, held_out_rows
from toolkit.ensemble.view_selection import DRAWS, FEWER, MANY
from toolkit.errors import DataError, ToolkitError, few
from toolkit.inference.execution import Execution
from toolkit.inference.exports import share
from toolkit.workspace.competition import Competition, Target
from toolkit.workspace.split import Split

ROWS = 2000  # held-out rows on which views are measured that no table has


def measure(
    competition: Competition,
    making: Making,
    execution: Execution = Execution(),
    *,
    rows: int | None = ROWS,
    seconds: float = 0.0,
    say: Say | None = None,
) -> dict[str, Any]:
    """The score of predictions made so, its interval and on how many rows it stands, as plain values; or why it is unknown.

    Views, weights, temperatures and thresholds that were chosen or fitted on held-out rows are, for the rows of each fold,
    those that the other folds lead to. See `held_out_rows` for `rows`, `seconds` and `say`; intervals are those of
    `nested.compare`. Whatever goes wrong is said in `unknown`: the predictions stand.
    """
    try:
        held_out = held_out_rows(competition, making, execution, rows=rows, seconds=seconds, say=say)
        rules = {target.name: _rule(competition, making, target) for target in competition.targets}
        combined = {
            target.name: _combined(held_out.tables[target.name], rules[target.name], target, making)
            for target in competition.targets
        }
        return _record(competition, making, held_out, combined, rules)
    except ToolkitError as error:
        return {"unknown": error.message}
    except Exception as error:  # noqa: BLE001 - runtimes' errors have no class in common, and what was predicted must not be lost
        return {"unknown": f"{type(error).__name__}: {error}"}


# --- the same combination -------------------------------------------------------------------------------------------------


def _rule(competition: Competition, making: Making, target: Target) -> Blend | OuterBlends:
    """How members' rows of a target become one: as the predictions' were, or fold by fold as the other folds lead to."""
    combination = making.combination
    split = Split.if_made(competition)
    folds = dict(zip(split.ids, split.folds.tolist(), strict=True)) if split else {}
    if combination.blend:
        blend = combination.blend[target.name]
        rule: Blend | OuterBlends = blend.outer or _without_prior(blend)
    else:
        own = {name: weight for name, weight in making.weights[target.name].items() if weight}
        rule = Blend(tuple(own), np.array(list(own.values())), combination.vote)
        if _weighed_by_score(making) and (outer := _by_score(competition, making)):
            rule = OuterBlends(outer, folds)
    if isinstance(rule, Blend) and rule.vote in WHOLE_TABLE and folds:  # a model ranks the rows that it sees
        rule = OuterBlends(dict.fromkeys(set(folds.values()), rule), folds)
    return rule


def _without_prior(blend: Blend) -> Blend:
    """The blend without the shift to the test set's class shares, which held-out rows do not have."""
    return replace(blend, adjustment=None, adjusted="") if blend.adjusted == "prior" else blend


def _weighed_by_score(making: Making) -> bool:
    return making.combination.weights == "score" and not making.combination.blend and len(making.members) > 1


def _by_score(competition: Competition, making: Making) -> dict[int, Blend]:
    """Weights by the scores on the cards of other folds, for each fold; nothing where a member has but one."""
    numbers = sorted({export.card.fold for export in making.exports if export.card.fold is not None})
    blends = {}
    for number in numbers:
        rest = [export for export in making.exports if export.card.fold not in (number, None)]
        if {export.card.member for export in rest} != set(making.members):
            return {}
        shares = share(rest, "score", higher_is_better=competition.score.higher_is_better)
        weights = dict.fromkeys(making.members, 0.0)
        for export, weight in zip(rest, shares, strict=True):
            weights[export.card.member] += weight
        blends[number] = Blend(tuple(weights), np.array(list(weights.values())), making.combination.vote)
    return blends


def _combined(tables: Mapping[str, Predictions], rule: Blend | OuterBlends, target: Target, making: Making) -> Predictions:
    """Members' rows of a target as one table, over the ids that all of them have."""
    aligned = align_members(tables, shared_ids(tables, common=True), target.classes)
    like = next(iter(aligned.values()))
    if not len(like):
        raise DataError(f"no row was held out of all members: {few(tables)}")
    members = list(aligned)
    stack = stack_values(aligned, members)
    if isinstance(rule, Blend):
        blend = rule.among(members)
        order = [members.index(name) for name in blend.members]
        table = blend.apply(stack[order], multilabel=target.multilabel).predictions(like)
    else:
        votes = rule.apply(stack, members, like.ids, multilabel=target.multilabel)
        parts = [rows for _, rows in rule.parts(like.ids)]
        if not votes:
            raise DataError("none of the held-out rows has a fold of the blend")
        joined = concat(_of_one_kind([vote.predictions(like.take(rows)) for vote, rows in zip(votes, parts, strict=True)]))
        table = joined.align([like.ids[i] for i in np.sort(np.concatenate(parts)).tolist()])  # as they were: so is the interval
    if making.combination.labels_only and table.labels is None:
        return replace(table, kind="labels", values=None, labels=table.decided)
    return table


def _of_one_kind(tables: Sequence[Predictions]) -> list[Predictions]:
    """Tables of folds that chose different votes: labels where one has nothing else, else scores where not all sum to 1."""
    kinds = {table.kind for table in tables}
    if "labels" in kinds:
        return [replace(table, kind="labels", values=None, labels=table.decided) for table in tables]
    return [replace(table, kind="scores") for table in tables] if len(kinds) > 1 else list(tables)


# --- the score ------------------------------------------------------------------------------------------------------------


def _record(
    competition: Competition,
    making: Making,
    held_out: HeldOut,
    combined: Mapping[str, Predictions],
    rules: Mapping[str, Blend | OuterBlends],
) -> dict[str, Any]:
    truth = competition.truth()
    there = set.intersection(*(set(table.ids) for table in [*combined.values(), *truth.values()]))
    ids = [name for name in next(iter(combined.values())).ids if name in there]
    if not ids:
        raise DataError("none of the held-out rows has a label")
    outer = _outer_folds(making, rules)
    tables = {name: table.align(ids) for name, table in combined.items()}
    estimate = estimated(competition, tables, truth, outer=outer)
    alone = {
        name: float(np.mean([held_out.tables[t][name].score(competition.score, truth[t].align(ids)) for t in combined]))
        for name in making.members
    }
    blends = (making.combination.blend or {}).values()
    prior = ["the test set's class shares are not in it: these rows have others"] if any(_shifted(b) for b in blends) else []
    return {
        "metric": competition.metric,
        "out_of_fold": estimate.score,
        "interval": [estimate.low, estimate.high],
        "rows": len(ids),
        "of": max(held_out.of, len(ids)),
        "kind": "nested" if outer else "plain",
        "optimistic": "; ".join([*held_out.optimistic, *_fitted_on_them(making)]),
        "members": alone,
        "notes": [*held_out.notes, *prior, *_scales(competition, tables, truth)],
    }


def _scales(competition: Competition, tables: Mapping[str, Predictions], truth: Mapping[str, Predictions]) -> Iterator[str]:
    """Of each target whose pooled score is not what its folds' scores explain: both."""
    for name, table in tables.items():
        folds, groups = oof.folds_and_groups(competition, table.ids)
        if folds is None or table.values is None:
            continue
        own = truth[name].align(table.ids).with_classes(table.classes).decided
        scales = fold_scales(own, competition.score, table.values, folds, groups=groups)
        if scales is not None and scales.note:
            yield (f"{name}: " if len(tables) > 1 else "") + scales.note


def _shifted(blend: Blend) -> bool:
    """Whether the score leaves the shift to the test set's class shares out."""
    return "prior" in blend.adjusted.split("+") and (blend.outer is not None or blend.adjusted == "prior")


def _fitted_on_them(making: Making) -> Iterator[str]:
    """What was chosen or fitted on the rows that score it, and cannot be taken apart from them."""
    if lost := [name for name, sets in making.chosen.items() if not sets]:
        yield f"views of {few(lost)} were chosen on the rows that score them"
    for name, blend in (making.combination.blend or {}).items():
        if blend.fitted and blend.outer is None:
            yield f"the blend of {name} was fitted to the rows that score it"
    folds = {name: {e.card.fold for e in making.exports if e.card.member == name} - {None} for name in making.members}
    if _weighed_by_score(making) and min(map(len, folds.values()), default=0) < 2:
        yield "weights by score are of the rows that score them"


def _outer_folds(making: Making, rules: Mapping[str, Blend | OuterBlends]) -> int:
    """The number of folds that something was chosen or fitted without; 0 where nothing was."""
    fitted = any(blend.fitted for blend in (making.combination.blend or {}).values()) or _weighed_by_score(making)
    counts = [len(sets) for sets in making.chosen.values()]
    counts += [len(rule.blends) for rule in rules.values() if isinstance(rule, OuterBlends) and fitted]
    return max(counts, default=0)


def estimated(
    competition: Competition, tables: Mapping[str, Predictions], truth: Mapping[str, Predictions], *, outer: int = 0
) -> Estimate:
    """The mean score over the targets with its interval; `outer` is the number of folds that something was chosen without.

    Raises:
        DataError: the metric cannot be had of such predictions, or of these rows.
    """
    ids = next(iter(tables.values())).ids
    own = {name: truth[name].align(ids).with_classes(tables[name].classes) for name in tables}
    for name, table in tables.items():
        table.score(competition.score, own[name])  # which says what the metric cannot be had of
    metric, joined = joint(competition.score, [t.decided for t in own.values()], [len(t.classes) for t in tables.values()])
    values = np.concatenate([_values(table) for table in tables.values()], axis=1)
    groups = oof.folds_and_groups(competition, ids)[1]
    widen = {"it": widening(outer)} if outer > 1 else {}
    draws = DRAWS if len(ids) < MANY else FEWER
    return compare(joined, metric, {"it": values}, baseline="it", groups=groups, widen=widen, draws=draws)["it"]


def _values(table: Predictions) -> F64:
    if table.values is not None:
        return table.values
    labels: NDArray[Any] = table.decided
    return labels.astype(np.float64) if table.multilabel else np.eye(len(table.classes))[labels]
