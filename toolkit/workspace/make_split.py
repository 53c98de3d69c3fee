"""The split of a competition: its labels, groups and extra rows gathered by id, rare classes decided, folds made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.core.predictions import Predictions
from toolkit.errors import CompetitionError, SplitError, few
from toolkit.workspace.competition import FILE, Competition
from toolkit.workspace.split import SPLIT_FILE, Split, count_members, make

Rare = Literal["refuse", "extra"]

SEVERAL = (
    "rows have several images: predictions are merged per row, but recipes train on one image per row and refuse these; give "
    "each image a row of its own, or train such models yourself and take them in with `toolkit adopt`"
)

_YES = {"1", "true", "yes"}
_NO = {"0", "false", "no", ""}


def for_competition(
    competition: Competition, *, count: int = 5, holdout: float | None = None, seed: int = 0, rare: Rare = "refuse"
) -> Split:
    """Stratified folds over the ids of train.csv, with the competition's groups and extra rows.

    Several targets are stratified on their combination (with a multilabel one among them: on every class at once). `rare`
    "extra" turns the members of classes too small for the folds into extra rows, with the groups they belong to.

    Raises:
        SplitError: rows of one id that disagree on group, cells that are no yes or no, or folds that cannot be made.
        CompetitionError: train.csv cannot be read, or holds unknown labels.
    """
    labels, names = stratify_on(list(competition.truth().values()))
    rows = competition.rows
    ids = list(dict.fromkeys(rows[competition.id]))
    groups = _groups(competition, ids) if competition.group else None
    extra = _extra(competition, ids)
    if rare == "extra":
        extra = _with_rare(labels, extra, groups, count if holdout is None else 2)
    return make(ids, labels, names, folds=count, holdout=holdout, seed=seed, groups=groups, extra=extra)


def create(
    competition: Competition,
    *,
    count: int = 5,
    holdout: float | None = None,
    seed: int = 0,
    rare: Rare = "refuse",
    force: bool = False,
) -> Split:
    """Make the split of `for_competition` and write it to the workspace's split.csv.

    Raises:
        SplitError: split.csv exists and `force` is not set, or no such split can be made.
    """
    path = competition.path(SPLIT_FILE)
    if path.exists() and not force:
        raise SplitError(
            f"{path} exists, and exports and out-of-fold tables may have been made from it",
            hint="Models trained on the old one have to be trained again once it is made anew.",
            code="split-exists",
        )
    split = for_competition(competition, count=count, holdout=holdout, seed=seed, rare=rare)
    split.write(path)
    return split


def several_images_note(competition: Competition) -> str:
    """That training rows have several images, where they have: no recipe trains on such rows. "" where files cannot be told."""
    if not competition.per_id:
        return ""
    try:
        files = competition.images("train")
    except CompetitionError:
        return ""
    return SEVERAL if len({name for name, _ in files}) < len(files) else ""


def load(competition: Competition) -> Split:
    """The workspace's split.csv, which must hold the ids of train.csv and keep the competition's groups whole.

    Raises:
        SplitError: it is missing, covers other ids, or was made from other groups.
        CompetitionError: train.csv cannot be read.
    """
    path = competition.path(SPLIT_FILE)
    split = Split.of(competition)
    known = list(dict.fromkeys(competition.rows[competition.id]))
    if other := set(known) ^ set(split.ids):
        raise SplitError(
            f"{path} and {competition.train.table} hold different ids: {few(sorted(other))}", hint=_AGAIN, code="split-outdated"
        )
    if competition.group:
        groups = dict(zip(known, _groups(competition, known), strict=True))
        moved = [name for name, group in zip(split.ids, split.groups, strict=True) if groups[name] != group]
        if moved:
            raise SplitError(
                f"{path} was not made from the groups in column {competition.group!r}: {few(moved)}",
                hint=_AGAIN,
                code="split-outdated",
            )
    return split


def load_or_make(competition: Competition, *, count: int = 5) -> Split:
    """The workspace's split; where there is none yet, that of `for_competition`, written there.

    Raises:
        SplitError, CompetitionError: see `load` and `for_competition`.
    """
    path = competition.path(SPLIT_FILE)
    if not path.exists():
        for_competition(competition, count=count).write(path)
    return load(competition)


_AGAIN = "Make it again (models trained on the old one have to be trained again)."


def stratify_on(truths: Sequence[Predictions]) -> tuple[NDArray[Any], tuple[str, ...]]:
    """The labels to balance and their names: int64 [N] of a target or a combination of several, or bool [N, C]."""
    if any(truth.multilabel for truth in truths):
        grids = [t.decided if t.multilabel else t.decided[:, None] == np.arange(len(t.classes)) for t in truths]
        prefix = [f"{t.target}=" if len(truths) > 1 else "" for t in truths]
        names = tuple(f"{p}{name}" for p, truth in zip(prefix, truths, strict=True) for name in truth.classes)
        return np.concatenate(grids, axis=1), names
    if len(truths) == 1:
        return truths[0].decided, truths[0].classes
    combined = np.stack([truth.decided for truth in truths], axis=1)
    combinations, labels = np.unique(combined, axis=0, return_inverse=True)
    names = tuple("_".join(t.classes[i] for t, i in zip(truths, row, strict=True)) for row in combinations)
    if len(set(names)) < len(names):  # "a_b" + "c" and "a" + "b_c"
        names = tuple(repr(tuple(t.classes[i] for t, i in zip(truths, row, strict=True))) for row in combinations)
    return labels.reshape(-1).astype(np.int64), names


def _groups(competition: Competition, ids: list[str]) -> list[str]:
    homes: dict[str, set[str]] = {name: set() for name in ids}
    for name, group in zip(competition.rows[competition.id], _column(competition, competition.group), strict=True):
        homes[name].add(group)
    if torn := [name for name, values in homes.items() if len(values) > 1]:
        raise SplitError(
            f"{competition.train.table}: rows of one id have different values of {competition.group!r}: {few(torn)}",
            hint=f"Correct them, or name another group column in {FILE}.",
        )
    return [homes[name].pop() for name in ids]


def _extra(competition: Competition, ids: list[str]) -> NDArray[np.bool_]:
    """Bool [N] over the ids: any of the id's rows is marked."""
    if not competition.extra:
        return np.zeros(len(ids), dtype=bool)
    cells = [cell.strip().casefold() for cell in _column(competition, competition.extra)]
    if unknown := sorted(set(cells) - _YES - _NO):
        raise SplitError(
            f"{competition.train.table}: column {competition.extra!r} marks extra rows by 1, true or yes, not {few(unknown)}"
        )
    marked = {name for name, cell in zip(competition.rows[competition.id], cells, strict=True) if cell in _YES}
    return np.array([name in marked for name in ids], dtype=bool)


def _with_rare(labels: NDArray[Any], extra: NDArray[np.bool_], groups: list[str] | None, parts: int) -> NDArray[np.bool_]:
    """Extra rows and the members of rare classes; a group goes whole, which may make further classes rare."""
    classes = labels.shape[1] if labels.ndim == 2 else int(labels.max(initial=0)) + 1
    homes = [group or i for i, group in enumerate(groups or [""] * len(labels))]  # a row without a group is one of its own
    place = np.unique(np.array(homes, dtype=str), return_inverse=True)[1]
    while True:
        members = count_members(labels[~extra], classes)
        few_members = (members > 0) & (members < parts)
        rare = (labels[:, few_members].any(axis=1) if labels.ndim == 2 else few_members[labels]) & ~extra
        if not rare.any():
            return extra
        extra = extra | np.isin(place, place[rare])


def _column(competition: Competition, name: str) -> list[str]:
    if name not in competition.rows.columns:
        raise SplitError(
            f"{competition.train.table} has no column {name!r}; it has {few(competition.rows.columns, limit=12)}",
            hint=f"Name the right column in {FILE}.",
        )
    return list(competition.rows[name])
