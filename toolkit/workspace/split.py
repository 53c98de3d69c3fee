"""Splits: which fold holds out which row, made stratified or grouped, checked as realised, named by a digest."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base import files
from toolkit.base.text import csv_text, html
from toolkit.core.targets import class_order
from toolkit.errors import CompetitionError, SplitError, counted, few
from toolkit.workspace.competition import Competition

SPLIT_FILE = "split.csv"
EXTRA = -1  # the fold of rows that train in every fold and are never scored
IMBALANCE = 5.0  # rows of the largest class for one of the smallest, from which a run says so


@dataclass(frozen=True, eq=False)
class Split:
    """Fold numbers 0..K-1 per id (EXTRA for rows that are never held out), with the labels and groups they were made from.

    `labels` are class names as text, several of one row joined by `join_names`; `groups` are empty where there are none.

    Raises:
        SplitError: ids that repeat, empty folds, numbers that are no folds, or a group in two folds.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    folds: NDArray[np.int64]

    def __post_init__(self) -> None:
        folds = np.asarray(self.folds, dtype=np.int64)
        object.__setattr__(self, "folds", folds)
        if not len(self.ids) == len(self.labels) == len(self.groups) == len(folds):
            raise SplitError("a split needs one label, group and fold per id")
        if len(set(self.ids)) != len(self.ids):
            raise SplitError(f"ids repeat: {few(sorted(name for name, n in Counter(self.ids).items() if n > 1))}")
        count = int(folds.max(initial=EXTRA)) + 1
        if count < 1 or folds.min(initial=0) < EXTRA:
            raise SplitError("a split needs at least one fold, numbered from 0")
        if empty := sorted(set(range(count)) - set(folds.tolist())):
            raise SplitError(f"folds {few(empty)} of {count} hold out no row", hint="Use fewer folds.")
        homes: dict[str, set[int]] = {}
        for group, fold in zip(self.groups, folds.tolist(), strict=True):
            if group:
                homes.setdefault(group, set()).add(fold)
        if torn := sorted(group for group, folds_of_group in homes.items() if len(folds_of_group) > 1):
            raise SplitError(
                f"{counted(len(torn), 'groups are')} in more than one fold: {few(torn)}", hint="Make the split again."
            )

    @property
    def count(self) -> int:
        """Number of folds K (1 for a single hold-out)."""
        return int(self.folds.max()) + 1

    def _repr_html_(self) -> str:
        """Rows of each class per fold, for notebooks."""
        classes = class_order(set(self.labels))
        folds = sorted(set(self.folds.tolist()))
        counts = Counter(zip(self.labels, self.folds.tolist(), strict=True))
        rows = [(name, *(counts[name, fold] for fold in folds)) for name in classes]
        heads = ["never held out" if fold == EXTRA else f"fold {fold}" for fold in folds]
        return html.table(("class", *heads), rows, caption=f"split {self.digest}: {counted(len(self.ids), 'rows')}")

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits over the rows as a set: equal for equal splits whatever the order of their rows."""
        rows = sorted(map(str, zip(self.ids, self.labels, self.groups, self.folds.tolist(), strict=True)))
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]

    def held_out(self, fold: int) -> tuple[str, ...]:
        """The ids that a fold is scored on."""
        return tuple(self.ids[i] for i in np.flatnonzero(self.folds == fold))

    def training(self, fold: int | None) -> tuple[str, ...]:
        """The ids that a fold trains on; None means every id."""
        return tuple(self.ids[i] for i in np.flatnonzero(self.folds != fold)) if fold is not None else self.ids

    def balance(self) -> list[dict[str, Any]]:
        """What was really made: per fold its rows, groups, and rows of each class, in class order."""
        split = {label: split_names(label) for label in set(self.labels)}
        names = class_order(name for label_names in split.values() for name in label_names)
        table = []
        for fold in [*range(self.count), *([EXTRA] if (self.folds == EXTRA).any() else [])]:
            rows = np.flatnonzero(self.folds == fold)
            counts = Counter(name for i in rows for name in split[self.labels[i]])
            groups = {self.groups[i] for i in rows} - {""}
            table.append({"fold": fold, "rows": len(rows), "groups": len(groups), "classes": {n: counts[n] for n in names}})
        return table

    def missing_classes(self) -> list[tuple[int, str]]:
        """(fold, class) wherever a fold holds out no row of a class: its score there says nothing about that class."""
        return [
            (row["fold"], name) for row in self.balance() if row["fold"] != EXTRA for name, n in row["classes"].items() if not n
        ]

    def unseen_classes(self) -> dict[int, tuple[str, ...]]:
        """Classes whose rows a fold holds out all: its model never sees one, and its column for them says nothing."""
        balance = self.balance()
        names = list(balance[0]["classes"])
        total = {name: sum(row["classes"][name] for row in balance) for name in names}
        unseen = {row["fold"]: tuple(n for n in names if row["classes"][n] == total[n]) for row in balance if row["fold"] >= 0}
        return {fold: classes for fold, classes in unseen.items() if classes}

    def unseen_notes(self, fold: int | None = None) -> list[str]:
        """A sentence about every fold (or only the one) whose model never sees a class."""
        return [
            f"every row of class {few(classes)} is held out by fold {number}: its model never sees one, and what it says of "
            f"{'it' if len(classes) == 1 else 'them'} is no prediction"
            for number, classes in self.unseen_classes().items()
            if fold in (None, number)
        ]

    def write(self, path: Path) -> Path:
        """Write the split as CSV: id, label, group, fold."""
        rows = zip(self.ids, self.labels, self.groups, self.folds.tolist(), strict=True)
        return files.write_rows(path, [("id", "label", "group", "fold"), *rows])

    @classmethod
    def of(cls, competition: Competition) -> Split:
        """The workspace's split.

        Raises:
            SplitError, CompetitionError: see `read`.
        """
        return cls.read(competition.path(SPLIT_FILE))

    @classmethod
    def if_made(cls, competition: Competition) -> Split | None:
        """The workspace's split; None as long as there is none.

        Raises:
            SplitError, CompetitionError: see `read`.
        """
        path = competition.path(SPLIT_FILE)
        return cls.read(path) if path.exists() else None

    @classmethod
    def read(cls, path: Path) -> Split:
        """Read a split from CSV.

        Raises:
            SplitError: the file is missing, or a fold is no number.
            CompetitionError: it is no table of a split.
        """
        if not path.exists():
            raise SplitError(f"{path} does not exist", hint="Run `toolkit split` first.")
        try:
            frame = csv_text.cells(path, ["id", "label", "group", "fold"], unique="id")
        except CompetitionError as error:
            hint = "`toolkit split` makes such a table: id, label, group, fold." if "no column" in error.message else error.hint
            raise CompetitionError(error.message, hint=hint) from error
        try:
            folds = np.array([int(cell) for cell in frame["fold"]], dtype=np.int64)
        except (ValueError, OverflowError) as error:
            raise SplitError(f"{path}: column 'fold' must hold whole numbers ({error})") from error
        try:
            return cls(tuple(frame["id"]), tuple(frame["label"]), tuple(frame["group"]), folds)
        except SplitError as error:
            raise SplitError(f"{path}: {error.message}", hint=error.hint, code=error.code) from error


def join_names(names: Iterable[str]) -> str:
    """Class names as one text: joined by `|`, which is written `\\|` inside a name (and `\\` as `\\\\`).

    >>> join_names(["cat", "dog|wolf"])
    'cat|dog\\\\|wolf'
    """
    return "|".join(name.replace("\\", r"\\").replace("|", r"\|") for name in names)


def split_names(text: str) -> list[str]:
    """The class names that `join_names` joined; none for an empty text."""
    parts = re.findall(r"(?:[^\\|]|\\.)+", text, re.DOTALL)
    return [re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL) for part in parts]


def make(
    ids: Sequence[str],
    labels: NDArray[Any],
    names: Sequence[str],
    *,
    folds: int = 5,
    holdout: float | None = None,
    seed: int = 0,
    groups: Sequence[str] | None = None,
    extra: NDArray[np.bool_] | None = None,
) -> Split:
    """Stratified folds: by class, by class within groups, or by every class at once for a bool [N, C] `labels`.

    `labels` is int64 [N] or bool [N, C], `names` the class names. `holdout` asks for a single held-out part of that
    share (fold 0, the rest never held out). Rows of `extra` (bool [N]) are never held out. Sources: scikit-learn's
    StratifiedKFold, StratifiedShuffleSplit and StratifiedGroupKFold; Sechidis et al. 2011 for multilabel
    (iterative-stratification; over groups, a group has the classes that any of its rows has).

    Raises:
        SplitError: fewer rows, groups or members of a class than folds; a share that is not between 0 and 1; a group with extra
            rows and others.
    """
    rows = np.arange(len(ids)) if extra is None else np.flatnonzero(~extra)
    homes = None if groups is None else np.array(groups, dtype=object)[rows]
    if holdout is not None and not 0 < holdout < 1:
        raise SplitError(f"a hold-out is a share between 0 and 1, not {holdout:g}", code="holdout-share")
    _check(labels[rows], names, folds if holdout is None else 2, homes, len(rows))
    assigned = np.full(len(ids), EXTRA, dtype=np.int64)
    if holdout is None:
        assigned[rows] = _assign(labels[rows], folds, seed, homes)
    else:
        assigned[rows[_hold_out(labels[rows], holdout, seed, homes)]] = 0
    text = [join_names(np.array(names)[row] if labels.ndim == 2 else [names[row]]) for row in labels]
    return Split(tuple(ids), tuple(text), tuple(groups) if groups is not None else ("",) * len(ids), assigned)


def _assign(labels: NDArray[Any], parts: int, seed: int, groups: NDArray[Any] | None) -> NDArray[np.int64]:
    """The fold of each row, int64 [N]."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if labels.ndim == 2:
        from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

        if groups is not None:
            return _of_groups(labels, groups, lambda merged: _assign(merged, parts, seed, None))
        splitter: Any = MultilabelStratifiedKFold(parts, shuffle=True, random_state=seed)
    else:
        kind = StratifiedKFold if groups is None else StratifiedGroupKFold
        splitter = kind(parts, shuffle=True, random_state=seed)
    folds = np.zeros(len(labels), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # rare classes: checked before, with names
        for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(labels)), labels, groups)):
            folds[held_out] = fold
    return folds


def _hold_out(labels: NDArray[Any], share: float, seed: int, groups: NDArray[Any] | None) -> NDArray[np.int64]:
    """The numbers of the rows that are held out, about `share` of them."""
    from sklearn.model_selection import StratifiedShuffleSplit

    if groups is not None:
        fraction = Fraction(share).limit_denominator(20)
        if not 0 < fraction < 1:
            raise SplitError(f"a hold-out of {share:g} is too uneven where rows are grouped", hint="Use 0.05 to 0.95.")
        parts = min(fraction.denominator, len(set(groups)))
        wanted = max(1, round(parts * share))
        return np.flatnonzero(_assign(labels, parts, seed, groups) < min(wanted, parts - 1))
    if labels.ndim == 2:
        from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit as Shuffle
    else:
        Shuffle = StratifiedShuffleSplit  # noqa: N806 - a class
    try:
        held_out: NDArray[np.int64] = next(Shuffle(1, test_size=share, random_state=seed).split(np.zeros(len(labels)), labels))[
            1
        ]
    except ValueError as error:
        raise SplitError(f"a hold-out of {share:g} cannot be made: {error}", hint="Use a larger share.") from error
    return held_out


def _of_groups(
    labels: NDArray[Any], groups: NDArray[Any], assign: Callable[[NDArray[Any]], NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Assign whole groups: each stands as one row with the classes (bool [G, C]) that any of its rows has."""
    names, place = np.unique(groups.astype(str), return_inverse=True)
    merged = np.zeros((len(names), labels.shape[1]), dtype=bool)
    np.logical_or.at(merged, place, labels)
    return assign(merged)[place]


def _check(labels: NDArray[Any], names: Sequence[str], parts: int, groups: NDArray[Any] | None, count: int) -> None:
    if parts < 2:
        raise SplitError(
            f"{counted(parts, 'folds')}: at least 2 are needed", hint="A single split is a hold-out.", code="one-split"
        )
    if count < parts:
        raise SplitError(f"{counted(count, 'rows')} cannot make {counted(parts, 'folds')}")
    members = count_members(labels, len(names))
    small = [f"{names[c]} ({members[c]})" for c in range(len(names)) if 0 < members[c] < parts]
    if small:
        raise SplitError(
            f"{counted(len(small), 'classes have')} fewer than {counted(parts, 'members')}: {few(small, limit=10)}",
            hint="Make fewer folds, or let such rows train in every fold, never scored.",
            code="rare-classes",
        )
    if groups is None:
        return
    if empty := int((groups == "").sum()):
        raise SplitError(f"{counted(empty, 'rows have')} an empty group", hint="Give each of them a group of its own.")
    if len(set(groups)) < parts:
        raise SplitError(
            f"{counted(len(set(groups)), 'groups')} cannot make {counted(parts, 'folds')}", hint="Use fewer folds."
        )


def count_members(labels: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Rows of each class, int64 [C], for labels int64 [N] or bool [N, C]."""
    return labels.sum(axis=0, dtype=np.int64) if labels.ndim == 2 else np.bincount(labels, minlength=classes)


def limited(split: Split, rows: int | None) -> Split:
    """The split with at most so many of its rows, every fold and class in the share that it had."""
    if not rows or rows >= len(split.ids):
        return split
    order = np.lexsort((np.array(split.labels), split.folds))
    kept = np.sort(order[np.linspace(0, len(order) - 1, rows).round().astype(np.int64)])
    ids, labels, groups = (tuple(column[i] for i in kept) for column in (split.ids, split.labels, split.groups))
    return Split(ids, labels, groups, split.folds[kept])


def imbalance(labels: NDArray[Any], classes: Sequence[str], metric: str) -> list[str]:
    """A sentence where the largest class has many times the rows of the smallest; `labels` as in `Samples`."""
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(classes))
    if labels.dtype.kind == "f" or not counts.max(initial=0) >= IMBALANCE * max(int(counts.min()), 1):
        return []
    most, least = int(counts.argmax()), int(counts.argmin())
    plain = "" if "f1" in metric else f" {metric} says little about the small ones: look at macro_f1 too (toolkit score)."
    sentence = (
        f"classes are imbalanced: {classes[most]!r} has {counted(counts[most], 'rows')}, "
        f"{classes[least]!r} {counts[least]:,}.{plain} "
        f"A class-weighted or focal loss or a weighted sampler gives them more say."
    )
    return [sentence]
