"""Tables of several members brought to the same rows and classes, by id and by name, so that they can be voted on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from toolkit.core.predictions import Predictions
from toolkit.errors import AlignmentError, DataError, few


def shared_ids(tables: Mapping[str, Predictions], *, common: bool) -> tuple[str, ...]:
    """The ids of tables that must have the same, in the order of the first; with `common`, those that all have.

    >>> a = Predictions("label", "labels", ("x", "y"), ("cat", "dog"), labels=np.array([0, 1]))
    >>> shared_ids({"a": a, "b": a.align(("y",))}, common=True)
    ('y',)

    Raises:
        AlignmentError: tables over different ids, unless `common`.
    """
    first = next(iter(tables))
    ids = tables[first].ids
    for name, table in tables.items():
        differing = set(table.ids) ^ set(ids)
        if differing and not common:
            raise AlignmentError(
                f"{first!r} and {name!r} cover different rows: {len(differing):,} ids are in one of them only, "
                f"as {few(sorted(differing))}",
                code="tables-differ",
            )
        ids = tuple(row_id for row_id in ids if row_id not in differing)
    return ids


def align_members(
    tables: Mapping[str, Predictions], ids: Sequence[str], classes: Sequence[str] | None = None
) -> dict[str, Predictions]:
    """Each member's rows of exactly these ids, in their order, its columns in the order of `classes` (default: the first's).

    >>> a = Predictions("label", "labels", ("x", "y"), ("cat", "dog"), labels=np.array([0, 1]))
    >>> b = Predictions("label", "labels", ("y", "x"), ("dog", "cat"), labels=np.array([0, 1]))
    >>> [table.decided.tolist() for table in align_members({"a": a, "b": b}, ("x", "y")).values()]
    [[0, 1], [0, 1]]

    Raises:
        AlignmentError: a member without one of the ids, or of other classes.
    """
    order = next(iter(tables.values())).classes if classes is None else classes
    return {name: table.align(ids).with_classes(order) for name, table in tables.items()}


def stack_values(tables: Mapping[str, Predictions], members: Iterable[str] | None = None) -> NDArray[np.float64]:
    """The values of aligned tables as float64 [M, N, C], of `members` alone and in their order where they are named.

    >>> a = Predictions("label", "probabilities", ("x",), ("cat", "dog"), np.array([[0.9, 0.1]]))
    >>> stack_values({"a": a, "b": a}).shape
    (2, 1, 2)

    Raises:
        DataError: a table of labels or scores.
    """
    for kind in ("labels", "scores"):
        if odd := [name for name, table in tables.items() if table.kind == kind]:
            code = "labels-to-vote" if kind == "labels" else ""
            raise DataError(f"{few(odd)} holds {kind}, and combining needs probabilities", code=code)
    names = tables if members is None else members
    return np.stack([values for name in names if (values := tables[name].values) is not None])
