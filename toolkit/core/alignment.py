"""Tables of several members brought to the same rows and classes, by id and by name, so that they can be voted on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from toolkit.core.predictions import Predictions
from toolkit.errors import AlignmentError, DataError, counted, few


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
        if differing and not common and (why := spelled(ids, table.ids)):
            raise AlignmentError(f"{first!r} and {name!r} name the same rows in other words: {why}", hint=_SPELLED)
        if differing and not common:
            raise AlignmentError(
                f"{first!r} and {name!r} cover different rows: {counted(len(differing), 'ids are')} in one of them only, "
                f"as {few(sorted(differing))}",
                code="tables-differ",
            )
        ids = tuple(row_id for row_id in ids if row_id not in differing)
    return ids


_SPELLED = "Write the ids of one table as the other has them; keeping only shared rows would drop those that differ."


def spelled(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """How the ids of one table differ from those of another where most are the same but for their spelling; else empty.

    >>> spelled(["007", "012"], ["7", "12"])
    "zeros in front ('007' against '7')"
    """
    here, there = set(ours), set(theirs)
    left, right = [i for i in ours if i not in there], [i for i in theirs if i not in here]
    for what, change in _SPELLINGS.items():
        places: dict[str, str] = {}
        for row_id in left:
            places.setdefault(change(row_id), row_id)
        pairs = [(places[change(row_id)], row_id) for row_id in right if change(row_id) in places]
        if right and len(pairs) > 0.5 * min(len(left), len(right)):
            return f"{what} ({pairs[0][0]!r} against {pairs[0][1]!r})"
    return ""


def _bare(name: str) -> str:
    return re.sub(r"\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif|heic)$", "", name.strip(), flags=re.IGNORECASE)


def _whole(name: str) -> str:
    return re.sub(r"^(\d+)\.0+$", r"\1", name.strip())


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


# in what two spellings of one id may differ, and what is left of an id without it
_SPELLINGS: dict[str, Callable[[str], str]] = {
    "an image suffix": _bare,
    "zeros in front": lambda name: name.strip().lstrip("0") or "0",
    "a decimal point (numbers that became floats)": _whole,
    "zeros in front and a decimal point (numbers that became floats)": lambda name: _whole(name).lstrip("0") or "0",
    "folders": lambda name: _bare(name.replace("\\", "/").rpartition("/")[2]),
    "case, spaces or Unicode normal form": lambda name: _composed(name.strip()),
    "zeros in front, a decimal point or an image suffix": lambda name: _whole(_bare(name)).lstrip("0") or "0",
}


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
