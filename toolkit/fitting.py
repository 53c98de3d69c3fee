"""Out-of-fold tables of members, aligned by id with the truth, judged, and the blend written with its reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import files, tables
from toolkit.competition import Competition, Target
from toolkit.errors import AlignmentError, DataError, few
from toolkit.folds import Split
from toolkit.predictions import Predictions
from toolkit.selection import Estimate, Verdict, compare, judge

F64 = NDArray[np.float64]

SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Rows:
    """Members over the same rows: values [M, N, C], truth, and each row's fold (int64 [N]) and group where a split says so."""

    members: tuple[str, ...]
    ids: tuple[str, ...]
    stack: F64
    truth: Predictions
    folds: NDArray[np.int64] | None
    groups: tuple[str, ...] | None


def find_tables(competition: Competition, paths: Sequence[Path]) -> list[Path]:
    """The tables named, or all of the workspace's oof/.

    Raises:
        DataError: none were named and oof/ has none, or two have one name.
    """
    found = list(paths) or sorted(competition.path("oof").glob("*.parquet"))
    if not found:
        raise DataError(f"{competition.path('oof')} has no tables", hint="Train first: python recipes/<recipe>.py")
    names = [path.stem for path in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"two tables are called {few(repeated)}", hint="A member is called as its file: rename one.")
    return found


def read_members(competition: Competition, target: Target, paths: Sequence[Path], *, common: bool = False) -> Rows:
    """The members' probabilities of one target, rows joined by id and classes by name; `common` keeps the rows all share.

    Raises:
        DataError: a table without this target, or of labels or scores.
        AlignmentError: tables of different rows, other classes, or rows of which the truth is not known.
    """
    said = {path.stem: _probabilities(path, target) for path in paths}
    truth = competition.truth()[target.name].with_classes(target.classes)
    first = next(iter(said))
    ids = said[first].ids
    for name, table in said.items():
        differing = set(table.ids) ^ set(ids)
        if differing and not common:
            raise AlignmentError(
                f"{first!r} and {name!r} cover different rows: {len(differing):,} ids are in one of them only, "
                f"as {few(sorted(differing))}",
                hint="Use --fit-on common to keep the rows that all tables share.",
            )
        ids = tuple(one for one in ids if one not in differing)
    if not ids:
        raise AlignmentError("the tables share no ids")
    stack = np.stack([_values(table.align(ids).with_classes(target.classes)) for table in said.values()])
    folds, groups = _split(competition, ids)
    return Rows(tuple(said), ids, stack, truth.align(ids), folds, groups)


def fit(
    competition: Competition, paths: Sequence[Path], *, how: str = "greedy", always: bool = False, common: bool = False
) -> tuple[Path, dict[str, Verdict]]:
    """Judge the members of every target and write blend.json; the verdicts by target.

    Raises:
        DataError, AlignmentError: see `find_tables`, `read_members` and `judge`; weights that a file cannot hold.
    """
    verdicts, said = {}, {}
    for target in competition.targets:
        rows = read_members(competition, target, find_tables(competition, paths), common=common)
        verdict = judge(
            rows.stack, rows.truth.decided, competition.score, how, folds=rows.folds, groups=rows.groups, always=always
        )
        if verdict.weights.bias is not None:
            raise DataError("stacking has no weight per member to write", hint="Use another weigher.")
        verdicts[target.name] = verdict
        said[target.name] = _record(verdict, rows)
    text = json.dumps({"schema": SCHEMA, "metric": competition.metric, "targets": said}, indent=2, ensure_ascii=False)
    return files.write_text(competition.path("blend.json"), text + "\n"), verdicts


def given(competition: Competition) -> str:
    """The weights of blend.json as `--weights` takes them: `b4=0.7,vit=0.3`.

    Raises:
        DataError: there is no blend.json, it cannot be read, or it was fitted on several targets.
    """
    path = competition.path("blend.json")
    try:
        targets = json.loads(path.read_text(encoding="utf-8"))["targets"]
        members = [found["members"] for found in targets.values()]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", hint="Run `toolkit blend` first.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read ({error})", hint="Run `toolkit blend` again.") from error
    if len(members) != 1:
        raise DataError(f"{path} has weights for {len(members)} targets, and an ensemble takes one set", hint="Use --weights.")
    return ",".join(f"{name}={weight!r}" for name, weight in members[0].items())


def score(competition: Competition, target: Target, path: Path) -> tuple[Estimate, dict[int, float]]:
    """A table's score on the competition's metric with its interval, and its score in each fold of split.csv.

    Raises:
        DataError, AlignmentError: see `read_members`.
    """
    rows, metric = read_members(competition, target, [path]), competition.score
    table = Predictions(
        target.name, "probabilities", rows.ids, target.classes, values=rows.stack[0], multilabel=target.multilabel
    )
    whole = compare(rows.truth.decided, metric, {path.stem: rows.stack[0]}, baseline=path.stem, groups=rows.groups)[path.stem]
    numbers = [] if rows.folds is None else np.unique(rows.folds).tolist()
    parts = {fold: rows.truth.take(np.flatnonzero(rows.folds == fold)) for fold in numbers}
    return whole, {fold: table.score(metric, part) for fold, part in parts.items()}


def _record(verdict: Verdict, rows: Rows) -> dict[str, Any]:
    return {
        "members": dict(zip(rows.members, map(float, verdict.weights.weights), strict=True)),
        "vote": "soft",
        "weigher": verdict.chosen,
        "reason": verdict.reason,
        "rows": len(rows.ids),
        "estimates": {name: asdict(estimate) for name, estimate in verdict.estimates.items()},
    }


def _probabilities(path: Path, target: Target) -> Predictions:
    found = tables.read_table(path).predictions
    if target.name not in found:
        raise DataError(f"{path} has no target {target.name!r}, only {few(found)}")
    if found[target.name].kind != "probabilities":
        raise DataError(f"{path} holds {found[target.name].kind}, and blending needs probabilities")
    return found[target.name]


def _values(table: Predictions) -> F64:
    assert table.values is not None
    return table.values


def _split(competition: Competition, ids: Sequence[str]) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Folds and groups of these rows, where split.csv has all of them."""
    path = competition.path("split.csv")
    if not path.exists():
        return None, None
    split = Split.read(path)
    place = {name: i for i, name in enumerate(split.ids)}
    if not set(ids) <= set(place):
        return None, None
    rows = [place[name] for name in ids]
    groups = tuple(split.groups[i] for i in rows)
    folds = split.folds[rows]
    several = len(np.unique(folds)) > 1
    return (folds if several else None), (groups if all(groups) else None)
