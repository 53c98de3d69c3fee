"""Predictions: a table of rows by classes that checks itself at birth and is only ever joined by id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import Labels
from toolkit.base.text import html
from toolkit.errors import AlignmentError, DataError, counted, few

if TYPE_CHECKING:
    from toolkit.core.metrics import Metric

Kind = Literal["probabilities", "scores", "labels"]
_SHOWN = 10  # rows and classes of a table in a notebook


ROW_SUM = 1e-4  # probabilities come from float64 softmax (1e-15) or from others' tables rounded to five digits


@dataclass(frozen=True, eq=False)
class Predictions:
    """What is said of N rows over C classes of one target.

    `values` is float64 [N, C]: probabilities are finite and >= 0, with rows that sum to 1 (multilabel: each in [0, 1]); scores
    are finite. `labels` is int64 [N] (multilabel: bool [N, C]) and is what kind "labels" consists of, as the truth does.

    Raises:
        DataError: shapes that do not fit, values that are not what `kind` says.
        AlignmentError: ids or classes that repeat.
    """

    target: str
    kind: Kind
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    values: NDArray[np.float64] | None = None
    labels: Labels | None = None
    multilabel: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(self.ids))
        object.__setattr__(self, "classes", tuple(self.classes))
        _unique(self.ids, f"target {self.target!r}: ids")
        _unique(self.classes, f"target {self.target!r}: classes")
        if self.kind == "labels":
            self._check_labels()
        elif self.labels is not None or self.values is None:
            raise DataError(f"target {self.target!r}: a table of {self.kind} has values and no labels")
        else:
            self._check_values()

    def _check_values(self) -> None:
        values = np.asarray(self.values, dtype=np.float64)
        object.__setattr__(self, "values", values)
        if values.shape != (len(self.ids), len(self.classes)):
            raise DataError(
                f"target {self.target!r}: values of shape {values.shape} for "
                f"{counted(len(self.ids), 'ids')} × {counted(len(self.classes), 'classes')}"
            )
        bad = ~np.isfinite(values).all(axis=1)
        what = "NaN or infinite values"
        if self.kind == "probabilities" and not bad.any():
            bad, what = (values < 0).any(axis=1), "negative probabilities"
            if self.multilabel and not bad.any():
                bad, what = (values > 1).any(axis=1), "probabilities above 1"
            elif not bad.any():
                sums = values.sum(axis=1)
                bad = np.abs(sums - 1) > ROW_SUM
                what = f"rows that do not sum to 1 ({sums.min():.4g} to {sums.max():.4g})" if bad.any() else ""
        if bad.any():
            ids = [self.ids[i] for i in np.flatnonzero(bad)[:4]]
            raise DataError(f"target {self.target!r}: {counted(int(bad.sum()), 'rows')} with {what}, ids {few(ids)}")

    def _check_labels(self) -> None:
        labels = np.asarray(self.labels)
        shape: tuple[int, ...] = (len(self.ids), len(self.classes)) if self.multilabel else (len(self.ids),)
        if self.values is not None or labels.shape != shape:
            raise DataError(f"target {self.target!r}: labels of shape {labels.shape} where {shape} is needed, and no values")
        given, labels = labels, labels.astype(bool if self.multilabel else np.int64)
        if not np.array_equal(given, labels):
            wanted = "0 and 1" if self.multilabel else "whole numbers"
            raise DataError(f"target {self.target!r}: labels must be {wanted}, not {given.dtype} values between them")
        object.__setattr__(self, "labels", labels)
        if not self.multilabel and len(labels) and not (labels.min() >= 0 and labels.max() < len(self.classes)):
            raise DataError(f"target {self.target!r}: labels outside 0..{len(self.classes) - 1}")

    def __len__(self) -> int:
        return len(self.ids)

    def _repr_html_(self) -> str:
        """The first rows, for notebooks."""
        what = f"{self.target}: {self.kind} of {counted(len(self), 'rows')} over {counted(len(self.classes), 'classes')}"
        names = self.classes[:_SHOWN] + (("…",) if len(self.classes) > _SHOWN else ())
        if self.values is None:
            labels = np.asarray(self.decided[:_SHOWN])
            several = labels.ndim == 2
            cells = [
                [" ".join(self.classes[c] for c in np.flatnonzero(row)) if several else self.classes[row]] for row in labels
            ]
            return html.table(("id", "label"), [(i, *cell) for i, cell in zip(self.ids, cells, strict=False)], caption=what)
        rows = [(row_id, *map(float, row[:_SHOWN])) for row_id, row in zip(self.ids, self.values[:_SHOWN], strict=False)]
        return html.table(("id", *names), rows, caption=what)

    @property
    def decided(self) -> Labels:
        """The labels: those carried, else the most probable class (the first on a tie), or each class at 0.5 and above."""
        if self.labels is not None:
            return self.labels
        assert self.values is not None
        return self.values >= 0.5 if self.multilabel else self.values.argmax(axis=1)

    @property
    def class_shares(self) -> NDArray[np.float64]:
        """The share of the rows whose label is each class (multilabel: that have it), float64 [C]: the prior, of a truth."""
        labels = self.decided
        counts = labels.sum(axis=0) if self.multilabel else np.bincount(labels, minlength=len(self.classes))
        return np.asarray(counts / len(labels), dtype=np.float64)

    def take(self, rows: NDArray[np.int64]) -> Predictions:
        """The given rows, in that order."""
        return replace(
            self,
            ids=tuple(map(self.ids.__getitem__, rows.tolist())),
            values=None if self.values is None else self.values[rows],
            labels=None if self.labels is None else self.labels[rows],
        )

    def align(self, ids: Sequence[str]) -> Predictions:
        """The rows of exactly these ids, in their order.

        >>> table = Predictions("label", "probabilities", ("a", "b"), ("cat", "dog"), np.array([[0.9, 0.1], [0.2, 0.8]]))
        >>> table.align(("b", "a")).values
        array([[0.2, 0.8],
               [0.9, 0.1]])

        Raises:
            AlignmentError: an id has no row here; rows that were not asked for are left out without a word.
        """
        if tuple(ids) == self.ids:
            return self
        place = dict(zip(self.ids, range(len(self.ids)), strict=True))
        if missing := [name for name in ids if name not in place]:
            raise AlignmentError(
                f"target {self.target!r}: {len(missing):,} of {counted(len(ids), 'ids have')} no predictions: {few(missing)}",
                hint="Ids are compared as text: '7' and '007' differ.",
            )
        return self.take(np.fromiter(map(place.__getitem__, ids), dtype=np.int64, count=len(ids)))

    def with_classes(self, classes: Sequence[str]) -> Predictions:
        """The same table with its columns in another order of the same classes.

        >>> table = Predictions("label", "probabilities", ("a",), ("cat", "dog"), np.array([[0.9, 0.1]]))
        >>> table.with_classes(("dog", "cat")).values
        array([[0.1, 0.9]])

        Raises:
            AlignmentError: the class sets differ.
        """
        if tuple(classes) == self.classes:
            return self
        if set(classes) != set(self.classes):
            raise AlignmentError(
                f"target {self.target!r}: classes differ: only here {few(sorted(set(self.classes) - set(classes)))}; "
                f"only there {few(sorted(set(classes) - set(self.classes)))}"
            )
        place = {name: i for i, name in enumerate(self.classes)}
        order = np.array([place[name] for name in classes])
        labels = self.labels
        if labels is not None:
            labels = labels[:, order] if self.multilabel else np.argsort(order)[labels]
        values = None if self.values is None else np.ascontiguousarray(self.values[:, order])
        return replace(self, classes=tuple(classes), values=values, labels=labels)

    def score(self, metric: Metric, truth: Predictions) -> float:
        """The metric over the ids of `truth` (a table of kind "labels"), joined by id, classes by name.

        Raises:
            AlignmentError: ids of the truth that have no row here, other classes, or no rows at all.
            DataError: the metric needs probabilities and this table has none.
        """
        ours = self.align(truth.ids).with_classes(truth.classes)
        if not len(ours):
            raise AlignmentError(f"target {self.target!r}: no rows to score")
        if metric.accepts == "labels":
            return metric.score(truth.decided, ours.decided)
        if ours.values is None or (metric.accepts == "probabilities" and ours.kind != "probabilities"):
            raise DataError(f"{metric.name} needs {metric.accepts}, this table has {ours.kind}", code="needs-probabilities")
        return metric.score(truth.decided, ours.values)


def concat(tables: Iterable[Predictions]) -> Predictions:
    """One table with the rows of all, which share target, kind and classes (matched by name) and no id.

    >>> halves = [Predictions("label", "labels", (name,), ("cat", "dog"), labels=np.array([1])) for name in ("a", "b")]
    >>> concat(halves).ids
    ('a', 'b')

    Raises:
        AlignmentError: an id in two tables, or class sets that differ.
        DataError: no tables, or tables of different kinds.
    """
    every = list(tables)
    if not every:
        raise DataError("there are no tables to join")
    first = every[0]
    every = [table.with_classes(first.classes) for table in every]
    if any((t.target, t.kind, t.multilabel) != (first.target, first.kind, first.multilabel) for t in every):
        raise DataError(f"tables of different kinds cannot be joined: {few(sorted({f'{t.target}: {t.kind}' for t in every}))}")
    return replace(
        first,
        ids=tuple(name for table in every for name in table.ids),
        values=None if first.values is None else np.concatenate([t.values for t in every if t.values is not None]),
        labels=None if first.labels is None else np.concatenate([t.labels for t in every if t.labels is not None]),
    )


def _unique(names: tuple[str, ...], what: str) -> None:
    if len(set(names)) != len(names):
        seen: set[str] = set()
        repeated = {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
        raise AlignmentError(f"{what} repeat: {few(sorted(repeated))}")
