"""Out-of-fold tables of members, aligned by id with the truth, judged, and the blend written with its reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base import documents, files
from toolkit.base.arrays import F64
from toolkit.base.schema import checked
from toolkit.blending import outside_tables
from toolkit.blending.blend import Blend, OuterBlends, read_blend
from toolkit.blending.calibration import prior_shift
from toolkit.blending.outside_tables import Reading
from toolkit.blending.plan_selection import Verdict, judge, plans
from toolkit.core import prediction_files
from toolkit.core.alignment import align_members, shared_ids, stack_values
from toolkit.core.lineage import optimistic
from toolkit.core.predictions import Predictions
from toolkit.errors import AlignmentError, DataError, counted, few
from toolkit.images.views import written
from toolkit.workspace.competition import Competition, Target
from toolkit.workspace.split import Split

Tables = Mapping[str, Path]

SCHEMA = 2
FILE = "blend.json"


@dataclass(frozen=True, eq=False)
class MemberRows:
    """Members over the same rows: values [M, N, C], truth, and each row's fold (int64 [N]) and group where a split says so.

    `views` are the view sets their tables were made with, `notes` what may surprise.
    """

    members: tuple[str, ...]
    ids: tuple[str, ...]
    stack: F64
    truth: Predictions
    folds: NDArray[np.int64] | None
    groups: tuple[str, ...] | None
    views: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def take(self, rows: NDArray[np.int64]) -> MemberRows:
        """The given rows, in that order."""
        return replace(
            self,
            ids=tuple(self.ids[i] for i in rows),
            stack=self.stack.take(rows, axis=1),
            truth=self.truth.take(rows),
            folds=None if self.folds is None else self.folds[rows],
            groups=None if self.groups is None else tuple(self.groups[i] for i in rows),
        )


def find_tables(competition: Competition, words: Sequence[str] = ()) -> dict[str, Path]:
    """The tables named (FILE or NAME=FILE), or all of the workspace's oof/, by member.

    Raises:
        DataError: none were named and oof/ has none, or two have one name.
    """
    tables = outside_tables.named(words or [str(path) for path in sorted(competition.path("oof").glob("*.parquet"))])
    if not tables:
        raise DataError(
            f"{competition.path('oof')} has no tables", hint="Train first (python recipes/<recipe>.py), or name tables."
        )
    return tables


def chosen_by(path: Path) -> str:
    """How a table says that its models were chosen: all but "last" with a say of the rows that score it: see `optimistic`."""
    return str(_meta(path).get("selected", "last"))  # a table made elsewhere does not say


def optimistic_notes(paths: Mapping[str, Path]) -> tuple[str, ...]:
    """A sentence about each table whose scores are optimistic, and about each of which it is not known."""
    notes = []
    for name, path in paths.items():
        meta = _meta(path)
        if why := optimistic(str(meta.get("selected", "last"))):
            notes.append(f"{name} is optimistic: {why}")
        if unknown := meta.get("unknown"):
            notes.append(f"{name}: {few(unknown)} does not say which rows it has seen; held-out ones would make it optimistic")
    return tuple(notes)


def read_members(
    competition: Competition,
    target: Target,
    paths: Tables,
    *,
    common: bool = False,
    reading: Reading | None = None,
    labels: bool = False,
) -> MemberRows:
    """The members' probabilities of one target, rows joined by id and classes by name; `common` keeps the rows all share.

    With `labels` tables of labels are taken as well, as if they were certain.

    Raises:
        DataError: a table that cannot be read, without this target, or of labels or scores.
        AlignmentError: tables of different rows, other classes, or rows of which the truth is not known.
    """
    tables = {name: probabilities(competition, path, target, reading, labels=labels) for name, path in paths.items()}
    metas = {name: _meta(path) for name, path in paths.items()}
    view_sets = {name: str(meta.get("view_set") or meta.get("tta") or "none") for name, meta in metas.items()}
    views = {name: sets for name, sets in view_sets.items() if sets != "none" and "=" not in sets}
    rows = rows_of(competition, target, tables, common=common)
    split, digests = Split.if_made(competition), {meta.get("split") for meta in metas.values()}
    unseen = split.unseen_notes() if split and digests & {None, split.digest} else []
    notes = (*rows.notes, *optimistic_notes(paths), *other_splits(competition, metas), *unseen)
    return replace(rows, views=views, notes=notes)


def rows_of(competition: Competition, target: Target, tables: Mapping[str, Predictions], *, common: bool = False) -> MemberRows:
    """Tables of probabilities beside the truth, joined by id and class.

    Raises:
        AlignmentError: see `read_members`.
    """
    truth = competition.truth()[target.name].with_classes(target.classes)
    ids = shared_ids(tables, common=common)
    if common:
        known = set(truth.ids)
        ids = tuple(row_id for row_id in ids if row_id in known)
    if not ids:
        raise AlignmentError("the tables share no ids", hint="Ids are compared as text: '7' and '007' differ.")
    stack = stack_values(align_members(tables, ids, target.classes))
    folds, groups = folds_and_groups(competition, ids)
    every = {row_id for table in tables.values() for row_id in table.ids}
    few_rows = (
        f"{len(every) - len(ids):,} of {counted(len(every), 'rows are')} left out: not all tables and the truth have them",
    )
    notes = few_rows if len(every) > len(ids) else ()
    return MemberRows(tuple(tables), ids, stack, truth.align(ids), folds, groups, {}, notes=notes)


def other_splits(competition: Competition, metas: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence if members were trained on another split than the workspace's, or than each other."""
    split = Split.if_made(competition)
    here = {split.digest} if split else set()
    digests = {name: str(meta["split"]) for name, meta in metas.items() if meta.get("split")}
    if len(here | set(digests.values())) < 2:
        return []
    usual = next(iter(here)) if here else max(digests.values(), key=list(digests.values()).count)
    other = [name for name, split in digests.items() if split != usual]
    return [f"{', '.join(other)} comes from another split: each row is still out of fold, folds do not compare row by row"]


def fit(
    competition: Competition,
    paths: Tables,
    *,
    weighers: Sequence[str] = (),
    votes: Sequence[str] = (),
    calibrate: Sequence[str] = (),
    prior: str = "",
    always: bool = False,
    common: bool = False,
    reading: Reading | None = None,
    report: Callable[[int, int], None] | None = None,
    doubts: Callable[[MemberRows], Sequence[str]] | None = None,
) -> tuple[Path, dict[str, Verdict]]:
    """Judge the members of every target and write blend.json; the verdicts by target.

    `weighers`, `votes` and `calibrate` are tried in every combination, those that may pay where empty (`plan_selection.plans`).
    `prior` is what is known of the classes of the test set, `cat=0.5,dog=0.5`. What `doubts` says of the rows is noted.

    Raises:
        DataError, AlignmentError: see `read_members` and `judge`; a prior that is none, or several targets and a prior.
    """
    verdicts, records = {}, {}
    if prior and len(competition.targets) > 1:
        raise DataError("class shares of the test set are of one target, and there are several", code="prior-of-one-target")
    for target in competition.targets:
        rows = read_members(competition, target, paths, common=common, reading=reading)
        rows = replace(rows, notes=(*rows.notes, *doubts(rows))) if doubts else rows
        every = plans(competition.score, weighers, votes, calibrate, multilabel=target.multilabel)
        verdict = judge(
            rows.stack, rows.truth.decided, competition.score, every, members=rows.members, folds=rows.folds,
            groups=rows.groups, always=always, report=report,
        )  # fmt: skip
        if verdict.blend is None:
            raise DataError("stacking has no weight per member to write", hint="Use another weigher.")
        outer = OuterBlends(verdict.outer, dict(zip(rows.ids, verdict.folds.tolist(), strict=True))) if verdict.outer else None
        blend = replace(verdict.blend, views=rows.views, outer=outer)
        verdicts[target.name] = replace(verdict, blend=with_prior(blend, rows.truth, prior) if prior else blend)
        records[target.name] = _record(verdicts[target.name], rows, len(every), prior)
        if outer is not None:
            records[target.name]["outer"] = _outer_record(competition, verdicts[target.name].blend, target.classes)
    document = {"schema": SCHEMA, "metric": competition.metric, "targets": records}
    return files.write_text(competition.path(FILE), documents.to_json(document, indent=2) + "\n"), verdicts


def with_prior(blend: Blend, truth: Predictions, prior: str) -> Blend:
    """The blend for a test set whose class shares are known: `cat=0.5,dog=0.5`, each relative to that among the rows fitted to.

    Raises:
        DataError: shares that are missing, unknown, not above zero or (of classes that exclude each other) do not sum to 1.
    """
    shares = outside_tables.pairs(prior, "test prior", code="test-prior")
    if differing := sorted(set(shares) ^ set(truth.classes)):
        raise DataError(f"the test prior needs a share for each class, and only those: {few(differing)}", code="test-prior")
    try:
        after = np.array([float(shares[name]) for name in truth.classes])
    except ValueError as error:
        raise DataError(f"the test prior's shares are numbers: {error}", code="test-prior") from None
    if not truth.multilabel and abs(after.sum() - 1) > 0.01:
        raise DataError(f"the test prior's shares sum to {after.sum():.4g}, not 1", code="test-prior")
    after = after if truth.multilabel else after / after.sum()
    shift = prior_shift(truth.class_shares, after, multilabel=truth.multilabel)
    if blend.adjustment is not None:
        shift = replace(shift, scale=blend.adjustment.scale, bias=blend.adjustment.bias + shift.bias)
    return replace(blend, adjustment=shift, adjusted="+".join(filter(None, (blend.adjusted, "prior"))))


def read_blends(competition: Competition) -> dict[str, Blend]:
    """The blend of every target that blend.json holds.

    Raises:
        DataError: there is no blend.json, it cannot be read, or it lacks a target.
    """
    path = competition.path(FILE)
    try:
        document = checked(documents.read_json(path), dict)
        if document["schema"] not in (1, SCHEMA):  # 1 had weights and nothing else
            raise DataError(f"{path} has schema {document['schema']}, this version reads {SCHEMA}", hint=_AGAIN)
        targets = document["targets"]
        if missing := [target.name for target in competition.targets if target.name not in targets]:
            raise DataError(f"{path} says nothing of target {few(missing)}, only of {few(targets)}", hint=_AGAIN)
        return {t.name: _blend_of(competition, path, targets[t.name], t) for t in competition.targets}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", hint="Run `toolkit blend` first.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error})", hint=_AGAIN) from error


def _blend_of(competition: Competition, path: Path, record: Mapping[str, Any], target: Target) -> Blend:
    try:
        blend = read_blend(record, target.classes)
        fitted = bool(record.get("fitted", record.get("plan") != "uniform"))  # earlier versions said the plan alone
        return replace(blend, fitted=fitted, outer=_read_outer(competition, record.get("outer"), blend, target))
    except DataError as error:
        raise DataError(f"{path}, target {target.name!r}: {error.message}", hint=error.hint, code=error.code) from error


def _outer_record(competition: Competition, blend: Blend | None, classes: Sequence[str]) -> dict[str, Any]:
    """Each outer fold's blend as plain values, which rows it has (those of the split by its digest, else by id), and of what.

    blend.json may be edited: outer folds then say nothing of what stands in it.
    """
    assert blend is not None
    assert blend.outer is not None
    outer = blend.outer
    split = Split.if_made(competition)
    of_split = dict(zip(split.ids, split.folds.tolist(), strict=True)) if split else {}
    known = split is not None and all(of_split.get(name) == fold for name, fold in outer.folds.items())
    rows = {"split": split.digest} if split is not None and known else {"rows": dict(outer.folds)}
    return {"of": _digest(blend, classes)} | rows | {"blends": {str(n): own.record(classes) for n, own in outer.blends.items()}}


def _digest(blend: Blend, classes: Sequence[str]) -> str:
    """Sixteen hex digits of what is done to members' tables."""
    applied = {key: value for key, value in blend.record(classes).items() if key != "views"}
    return hashlib.blake2b(json.dumps(applied, sort_keys=True).encode(), digest_size=8).hexdigest()


def _read_outer(competition: Competition, record: Mapping[str, Any] | None, blend: Blend, target: Target) -> OuterBlends | None:
    """What `_outer_record` wrote; None where it was not written, or blend or split are others by now."""
    if not record or record["of"] != _digest(blend, target.classes):
        return None
    blends = {int(number): read_blend(own, target.classes) for number, own in record["blends"].items()}
    if "rows" in record:
        return OuterBlends(blends, {str(name): int(fold) for name, fold in record["rows"].items()})
    split = Split.if_made(competition)
    if split is None or split.digest != record["split"]:
        return None
    return OuterBlends(blends, dict(zip(split.ids, split.folds.tolist(), strict=True)))


def estimated(competition: Competition) -> dict[str, Any]:
    """What blend.json says of the score of its blends, as predictions keep it: the nested one where something was fitted.

    Of several targets it is the mean, which has no interval. A file that was edited, or does not say what was settled without
    each fold, says nothing of the blends that stand in it.

    Raises:
        DataError: see `read_blends`.
    """
    blends = read_blends(competition)
    targets = documents.read_json(competition.path(FILE))["targets"]
    records = [targets[name] for name in blends]
    whole = [blend.outer is not None if blend.fitted else _is_plain_mean(blend) for blend in blends.values()]
    if not all(whole) or not all("estimates" in record for record in records):
        return {"unknown": f"{FILE} was edited, or written by an earlier version"}
    which = ["nested" if blend.fitted else "uniform" for blend in blends.values()]
    every = [record["estimates"][name] for name, record in zip(which, records, strict=True)]
    rows = min(int(record["rows"]) for record in records)
    alone = len(every) == 1
    return {
        "metric": competition.metric,
        "out_of_fold": float(np.mean([estimate["score"] for estimate in every])),
        "interval": [every[0]["low"], every[0]["high"]] if alone else None,
        "rows": rows,
        "of": rows,
        "kind": "nested" if "nested" in which else "plain",
        "optimistic": "; ".join(dict.fromkeys(n for r in records for n in r.get("notes", ()) if " is optimistic: " in n)),
        "notes": ["of the out-of-fold tables that the blend was made of: those combined now must have been made alike"],
    }


def _is_plain_mean(blend: Blend) -> bool:
    """Whether it is what nothing was fitted for, but for the class shares of the test set."""
    alike = blend.vote == "soft" and bool((blend.warm == 1).all()) and bool(np.ptp(blend.weights) < 1e-12)
    return alike and (blend.adjustment is None or blend.adjusted == "prior")


def views_of(blends: Mapping[str, Blend]) -> str:
    """The view sets that the members' tables were made with, as `--tta` takes them; of the first target that names any."""
    sets = next((dict(blend.views) for blend in blends.values() if blend.views), {})
    members = next(iter(blends.values())).members
    return written({name: sets.get(name, "none") for name in members}) if sets else "none"


_AGAIN = "Run `toolkit blend` again."


def _record(verdict: Verdict, rows: MemberRows, tried: int, prior: str) -> dict[str, Any]:
    """What blend.json says of a target."""
    assert verdict.blend is not None
    return verdict.blend.record(rows.truth.classes) | {
        "weigher": verdict.weights.how,
        "plan": verdict.chosen,
        "fitted": verdict.blend.fitted,
        "reason": verdict.reason,
        "plans": tried,
        "picks": dict(verdict.picks),
        "rows": len(rows.ids),
        "test_prior": prior,
        "estimates": {name: asdict(estimate) for name, estimate in verdict.estimates.items()},
        "notes": list(rows.notes),
    }


def probabilities(
    competition: Competition, path: Path, target: Target, reading: Reading | None = None, *, labels: bool = False
) -> Predictions:
    """A file's probabilities of a target; with `labels` those of labels, as if they were certain.

    Raises:
        DataError: see `outside_tables.read`; it holds labels or scores.
    """
    table = outside_tables.read(path, target, key=competition.id, reading=reading)
    if table.labels is not None and labels:
        values = table.labels if table.multilabel else np.eye(len(table.classes))[table.labels]
        return replace(table, kind="probabilities", values=values.astype(np.float64), labels=None)
    if table.kind != "probabilities":
        code = "labels-to-vote" if table.kind == "labels" else ""
        raise DataError(f"{path} holds {table.kind}, and blending needs probabilities", code=code)
    return table


def _meta(path: Path) -> Mapping[str, Any]:
    """What a table of ours says of itself; nothing of one made elsewhere."""
    try:
        return prediction_files.read_meta(path) if path.suffix == ".parquet" else {}
    except DataError:
        return {}


def folds_and_groups(competition: Competition, ids: Sequence[str]) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Folds and groups of these rows, where split.csv has all of them; else groups alone, where the truth names a column."""
    split = Split.if_made(competition)
    place = {name: i for i, name in enumerate(split.ids)} if split else {}
    if split is None or not set(ids) <= set(place):
        return None, _groups(competition, ids)
    rows = [place[name] for name in ids]
    groups = tuple(split.groups[i] for i in rows)
    folds = split.folds[rows]
    several = len(np.unique(folds)) > 1
    return (folds if several else None), (groups if all(groups) else None)


def _groups(competition: Competition, ids: Sequence[str]) -> tuple[str, ...] | None:
    frame = competition.rows
    if not competition.group or competition.group not in frame.columns:
        return None
    home = dict(zip(frame[competition.id], frame[competition.group], strict=True))
    groups = tuple(home.get(name, "") for name in ids)
    return groups if all(groups) else None
