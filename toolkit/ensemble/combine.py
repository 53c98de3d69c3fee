"""Logits of many models and views → one table: views merged, then the images of a row, then one flat vote over fold models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from toolkit.base.arrays import F64
from toolkit.blending.combination import Combination
from toolkit.core import voting
from toolkit.core.predictions import Predictions
from toolkit.errors import DataError, counted
from toolkit.images.views import needs_square, per_member, views
from toolkit.inference.early_stopping import decided
from toolkit.inference.exports import WeightedModels, output_of, share
from toolkit.inference.outcome import PredictOutcome
from toolkit.inference.store.file_index import Digests
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.workspace.competition import Competition, Target

ROWS = 4096  # rows combined at a time, so that memory does not grow with members × views × images


def views_for(exports: Sequence[Export], tta: str) -> dict[str, tuple[str, ...]]:
    """The views of each model, by its digest: of one set, or of a set per member (`b4=flip,vit=none`).

    Raises:
        DataError: see `views.per_member`; quarter turns of inputs that are not square.
    """
    sets = per_member(tta, list(dict.fromkeys(export.card.member for export in exports)))
    by_digest = {export.digest: views(sets[export.card.member]) for export in exports}
    for export in exports:
        height, width = export.card.preprocess.size
        if height != width and any(map(needs_square, by_digest[export.digest])):
            raise DataError(
                f"views {tta} turn images by 90°, {export.title} takes {height}×{width}",
                hint="Flips keep the size: flip, hflip.",
                code="views-oblong",
            )
    return by_digest


def weights_of(competition: Competition, exports: Sequence[Export], combination: Combination) -> dict[str, list[float]]:
    """Per target, the weights of the models in their order, summing to 1.

    Raises:
        DataError: see `share`.
    """
    better = competition.score.higher_is_better
    return {t.name: share(exports, combination.spec(t.name), higher_is_better=better) for t in competition.targets}


def combine(
    competition: Competition,
    target: Target,
    models: WeightedModels,
    outcome: PredictOutcome,
    ids: Sequence[str],
    combination: Combination = Combination(),
) -> tuple[Predictions, int]:
    """One target's predictions for `ids` in their order, and the number of ties that the vote settled.

    Rows without a usable image get the class prior of the training labels. A blend cools each model by its member's temperature
    before the vote, which it names, and adjusts what the vote says. With `labels_only` nothing but labels is given back.

    Raises:
        ModelError: NaN or infinite logits.
        DataError: an unknown vote, or one without a prior for rows that have no image.
    """
    blend = combination.blend[target.name] if combination.blend else None
    place = dict(zip(ids, range(len(ids)), strict=True))
    row = np.array([place.get(name, -1) for name in outcome.items.ids], dtype=np.int64)
    order = np.argsort(row, kind="stable")[int((row < 0).sum()) :]
    rows, starts = np.unique(row[order], return_index=True)
    step = max(len(ids), 1) if (blend.vote if blend else combination.vote) in voting.WHOLE_TABLE else ROWS

    def part(first: int) -> voting.Vote:
        begin, end = starts[first], starts[first + step] if first + step < len(rows) else len(order)
        within = starts[first : first + step] - begin
        stack = _stack(target, models, outcome, outcome.digests[order[begin:end]])
        if end - begin > len(within):
            stack = voting.per_row(stack, within, competition.per_id, multilabel=target.multilabel)
        return _voted(stack, target, models, combination)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # numpy sorts and adds up without the GIL
        votes = list(pool.map(part, range(0, len(rows), step)))
    if combination.labels_only:
        votes = [voting.Vote(None, decided(vote, multilabel=target.multilabel), vote.ties, "labels") for vote in votes]
    ties = sum(int(vote.ties.sum()) for vote in votes)
    return with_prior(competition, target, ids, [ids[i] for i in rows.tolist()], votes), ties


def _stack(target: Target, models: WeightedModels, outcome: PredictOutcome, digests: Digests) -> F64:
    """The models' probabilities of some images, float64 (M, n, C), classes in the competition's order."""
    tables = []
    for export in models.exports:
        output = output_of(export, target.name)
        values = outcome.probabilities(export, output, models.views[export.digest], digests)
        order = [output.classes.index(name) for name in target.classes]
        tables.append(values if order == sorted(order) else values[:, order])
    return np.stack(tables)


def _voted(stack: F64, target: Target, models: WeightedModels, combination: Combination) -> voting.Vote:
    if not combination.blend:
        return voting.vote(stack, how=combination.vote, weights=models.weights, multilabel=target.multilabel)
    blend = combination.blend[target.name]
    tables = zip(models.exports, stack, strict=True)
    cold = [blend.cooled(export.card.member, table, multilabel=target.multilabel) for export, table in tables]
    return blend.combine(np.stack(cold), models.weights or [1.0] * len(cold), multilabel=target.multilabel)


def with_prior(
    competition: Competition, target: Target, ids: Sequence[str], usable: Sequence[str], votes: Sequence[voting.Vote]
) -> Predictions:
    """Votes over the `usable` ids as predictions over all of them; the others say what the training labels say.

    Raises:
        DataError: there are others, and the vote leaves scores, which have no prior.
    """
    kind = votes[0].kind if votes else "probabilities"
    hard = kind == "labels"
    there = set(usable)
    missing = [name for name in ids if name not in there]
    parts: list[Any] = [vote.labels if hard else vote.values for vote in votes]
    if missing:
        if kind == "scores":
            raise DataError(
                f"{counted(len(missing), 'rows have')} no usable image, and ranks have no prior to stand in for them",
                hint="Vote soft.",
                code="vote-soft",
            )
        prior: Any = competition.prior(target)
        if hard:
            prior = prior >= 0.5 if target.multilabel else prior.argmax()
        parts.append(np.stack([prior] * len(missing)))
    rows = np.concatenate(parts) if parts else np.zeros((0, len(target.classes)))
    table = Predictions(
        target.name,
        kind,
        (*usable, *missing),
        target.classes,
        values=None if hard else rows,
        labels=rows if hard else None,
        multilabel=target.multilabel,
    )
    return table.align(ids)
