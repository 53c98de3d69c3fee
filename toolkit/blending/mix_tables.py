"""Tables of test rows from anywhere, combined into predictions: by blend.json, by given weights, or by a vote of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base import files, provenance
from toolkit.base.arrays import F64, Labels
from toolkit.base.text import arrow_csv
from toolkit.blending import oof, outside_tables
from toolkit.blending.blend import Blend
from toolkit.blending.outside_tables import Reading
from toolkit.core import prediction_files
from toolkit.core.alignment import align_members, shared_ids, stack_values
from toolkit.core.predictions import Predictions
from toolkit.core.voting import Vote
from toolkit.errors import DataError, counted, few
from toolkit.workspace.competition import Competition

_EVEN = 1e-12  # sums of different weights may differ in the last bits where exact arithmetic would tie


@dataclass(frozen=True, eq=False)
class Mixed:
    """What was made: predictions per target and their file, the members with their weights, and how alike their labels are.

    `agreement` is float64 [M, M]: the share of rows (of all targets) that two members label alike; `ties` counts even votes.
    """

    path: Path
    predictions: Mapping[str, Predictions]
    weights: Mapping[str, float]
    agreement: F64
    ties: int

    @property
    def record(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "ok": True,
            "path": str(self.path),
            "rows": len(next(iter(self.predictions.values()))),
            "members": dict(self.weights),
            "agreement": self.agreement.tolist(),
            "ties": self.ties,
        }


def mix(
    competition: Competition,
    paths: Mapping[str, Path],
    *,
    labels: bool = False,
    weights: str = "",
    name: str = "blend",
    output: Path | None = None,
    common: bool = False,
    reading: Reading | None = None,
) -> Mixed:
    """Tables combined as blend.json says, as a mean with given weights (`a=0.7,b=0.3`, `2,1`, `equal`), or by vote of labels.

    With `labels` the label with most weight wins, and an even vote goes to whom was named first of those tied; tables of
    probabilities take part with the labels that they decide.

    Raises:
        DataError: see `oof.read_blends`, `outside_tables.read`; members without a table or the reverse, odd weights.
        AlignmentError: tables over other rows or classes.
    """
    share = _weights(weights or "equal", list(paths)) if labels or weights else {}
    blends = {} if labels else _blends(competition, share, paths)
    combined, ballots, ties = {}, [], 0
    for target in competition.targets:
        read = partial(outside_tables.read, target=target, key=competition.sample_id, reading=reading)
        tables = {name: read(path) for name, path in paths.items()}
        aligned = align_members(tables, shared_ids(tables, common=common), target.classes)
        blend = None if labels else blends[target.name].among(aligned)
        voters = blend.members if blend else aligned
        ballots.append([aligned[name].decided for name in voters])
        if blend:
            outcome = blend.apply(stack_values(aligned, blend.members), multilabel=target.multilabel)
        else:
            outcome = _voted(np.stack(ballots[-1]), np.array([share[name] for name in voters]), len(target.classes))
        combined[target.name] = outcome.predictions(next(iter(aligned.values())))
        ties += int(outcome.ties.sum())
    meta: dict[str, Any] = {"vote": "hard", "ties": {"all": ties}}
    if blends:
        first = next(iter(blends.values()))
        share = {n: w for n, w in zip(first.members, first.weights.tolist(), strict=True) if n in paths}
        meta |= {"vote": first.vote, "blend": {t.name: blends[t.name].record(t.classes) for t in competition.targets}}
    given = "labels were counted" if labels else "weights were given"
    unknown = {"unknown": f"tables made elsewhere were combined, and {given}: no held-out rows are known of that"}
    meta["evidence"] = unknown if labels or weights else oof.estimated(competition)
    path = _written(competition, name, output, combined, paths, share, meta)
    return Mixed(path, combined, share, agreement(ballots), ties)


def _blends(competition: Competition, share: Mapping[str, float], paths: Mapping[str, Path]) -> dict[str, Blend]:
    """What to do per target: a mean where weights were given, else what blend.json says."""
    if share:
        return {target.name: Blend(tuple(share), np.array(list(share.values()))) for target in competition.targets}
    blends = oof.read_blends(competition)
    for blend in blends.values():
        _check(blend, paths)
    return blends


def _voted(ballots: Labels, weights: F64, classes: int) -> Vote:
    labels, tied = majority(ballots, weights, classes)
    return Vote(None, labels, tied, "labels")


def majority(ballots: Labels, weights: F64, classes: int) -> tuple[Labels, NDArray[np.bool_]]:
    """The labels with most weight and where that was even, from int64 [M, N] (multilabel: bool [M, N, C], class by class).

    An even vote goes to the first member that voted for one of those tied.

    >>> labels, tied = majority(np.array([[0, 1], [1, 1], [2, 0]]), np.array([1.0, 1.0, 1.0]), 3)
    >>> labels, tied  # the first row ties: who was named first decides
    (array([0, 1]), array([ True, False]))
    """
    share = weights / weights.sum()
    if ballots.ndim == 3:
        yes = np.tensordot(share, ballots.astype(np.float64), axes=1)
        even = np.abs(yes - 0.5) < _EVEN
        return np.where(even, ballots[0], yes > 0.5), np.asarray(even.any(axis=1))
    rows = np.arange(ballots.shape[1])
    votes = np.zeros((len(rows), classes))
    for labels, weight in zip(ballots, share, strict=True):
        votes[rows, labels] += weight
    leads = votes >= votes.max(axis=1, keepdims=True) - _EVEN
    chosen = votes.argmax(axis=1)
    for labels in ballots[::-1]:
        chosen = np.where(leads[rows, labels], labels, chosen)
    return chosen, np.asarray(leads.sum(axis=1) > 1)


def agreement(targets: Sequence[Sequence[Labels]]) -> F64:
    """The share of rows that each two members label alike in every target, float64 [M, M].

    >>> agreement([[np.array([0, 1]), np.array([0, 0])]])
    array([[1. , 0.5],
           [0.5, 1. ]])
    """
    count = len(targets[0])
    shares = np.eye(count)
    for a in range(count):
        for b in range(a):
            same = [member[a] == member[b] for member in targets]
            whole = np.logical_and.reduce([alike.all(axis=1) if alike.ndim == 2 else alike for alike in same])
            shares[a, b] = shares[b, a] = float(whole.mean())
    return shares


def _weights(text: str, names: Sequence[str]) -> dict[str, float]:
    """The weights of tables: `equal`, a number for each in their order, or `a=0.7,b=0.3`; summing to 1."""
    try:
        if text == "equal":
            given = dict.fromkeys(names, 1.0)
        elif "=" in text:
            given = {name: float(value) for name, value in outside_tables.pairs(text, "weights", code="table-weights").items()}
        else:
            given = dict(zip(names, map(float, text.split(",")), strict=True))
    except ValueError as error:
        raise DataError(
            f"weighting {text!r} does not fit {counted(len(names), 'tables')}: {error}",
            hint=f"The order is: {', '.join(names)}.",
            code="table-weights",
        ) from None
    if unknown := [name for name in given if name not in names]:
        raise DataError(
            f"the weighting names {few(unknown)}, and there is no such table", hint=f"There are: {', '.join(names)}."
        )
    numbers = np.array([given.get(name, 0.0) for name in names])
    if not (np.isfinite(numbers).all() and (numbers >= 0).all() and numbers.any()):
        raise DataError(f"weights must not be negative or all zero, got {numbers.tolist()}")
    return dict(zip(names, (numbers / numbers.sum()).tolist(), strict=True))


def _check(blend: Blend, paths: Mapping[str, Path]) -> None:
    """Every member that weighs something has a table, and every table is a member's."""
    absent = [n for n, w in zip(blend.members, blend.weights, strict=True) if w and n not in paths]
    if absent:
        raise DataError(
            f"{oof.FILE} gives weight to {few(absent)}, and no table of it was named; there are {few(paths, limit=8)}",
            hint=f"Name it: {absent[0]}=FILE",
        )
    if unknown := [name for name in paths if name not in blend.members]:
        raise DataError(
            f"{few(unknown)} is no member of {oof.FILE}, which has {few(blend.members, limit=8)}",
            hint=f"Leave it out, or say whose it is: {blend.members[0]}={paths[unknown[0]]}",
        )


def _written(
    competition: Competition,
    name: str,
    output: Path | None,
    combined: Mapping[str, Predictions],
    paths: Mapping[str, Path],
    weights: Mapping[str, float],
    meta: Mapping[str, Any],
) -> Path:
    """Write the predictions and what they were made of."""
    made_of = [
        {
            "member": member,
            "path": provenance.portable(path.resolve(), competition.root.resolve()),
            "sha256": files.sha256(path),
            "weight": weights.get(member, 0.0),
        }
        for member, path in paths.items()
    ]
    whole = {"created": provenance.now(), "name": name, "models": [], "sources": made_of, "view_set": "none"} | dict(meta)
    path = output or competition.path("predictions", f"{name}.parquet")
    if path.suffix == ".csv":
        return files.write(path, lambda file: arrow_csv.write(file, _frame(combined, competition.sample_id)))
    return prediction_files.write_table(path, combined, whole)


def _frame(combined: Mapping[str, Predictions], key: str) -> Any:
    """Predictions as text: the id and, per target, its label or a column per class."""
    import pandas as pd

    several = len(combined) > 1
    columns: dict[str, Any] = {key: next(iter(combined.values())).ids}
    for name, table in combined.items():
        if table.labels is not None and not table.multilabel:
            columns[name] = [table.classes[i] for i in table.labels]
            continue
        grid = table.values if table.labels is None else table.labels.astype(np.int64)
        assert grid is not None
        columns |= {f"{name}/{c}" if several else c: list(map(repr, grid[:, i].tolist())) for i, c in enumerate(table.classes)}
    return pd.DataFrame(columns, dtype="str")
