"""What is wrong with the data: pictures in two folds or in train and test, torn groups, telling ids, labels that look wrong."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from toolkit.base import provenance
from toolkit.base.arrays import F64, Labels
from toolkit.base.text import csv_text
from toolkit.blending import oof
from toolkit.core.predictions import Predictions
from toolkit.errors import DataError, SplitError, few
from toolkit.images import duplicates
from toolkit.images.duplicates import Report, Twin
from toolkit.workspace import path_patterns
from toolkit.workspace.competition import Competition, Target
from toolkit.workspace.split import SPLIT_FILE, Split

Severity = Literal["leak", "warning", "note"]

FIXES = "labels_fix.csv"
PEOPLE = 20  # a column with fewer different values is a property, not an identity
TELLING = 6.0  # standard deviations above chance at which neighbours in id order share their class
EPS = 1e-9


@dataclass(frozen=True)
class AuditFinding:
    """Something wrong, or worth knowing: a leak lets held-out rows be known in training. `count` is of rows or pairs."""

    code: str
    severity: Severity
    what: str
    count: int = 0
    hint: str = ""


@dataclass(frozen=True)
class Pair:
    """Two pictures of one sight: ids, files, parts ("train 3" is fold 3, "test"), labels where known; see `duplicates.Twin`."""

    ids: tuple[str, str]
    paths: tuple[Path, Path]
    homes: tuple[str, str]
    labels: tuple[str, str]
    turn: str
    similarity: float
    exact: bool

    @property
    def kind(self) -> str:
        """Where they lie: "train and test", "two folds", "one place"."""
        if "test" in self.homes:
            return "one place" if self.homes[0] == self.homes[1] else "train and test"
        return "two folds" if self.homes[0] != self.homes[1] else "one place"


@dataclass(frozen=True)
class Issue:
    """A label that the out-of-fold predictions speak against: the probability of what is given and of what they suggest."""

    id: str
    target: str
    given: str
    suggested: str
    p_given: float
    p_suggested: float
    path: Path | None = None


@dataclass(frozen=True)
class Audit:
    """Everything found; `images` pictures were compared, and hashes were let differ in `bits` bits."""

    findings: tuple[AuditFinding, ...]
    pairs: tuple[Pair, ...]
    issues: tuple[Issue, ...]
    images: int
    bits: int
    bad: Mapping[str, str] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return plain


def audit(competition: Competition, *, test: bool = True, progress: Report | None = None) -> Audit:
    """Look at every picture (those of the test set unless told), the split, the tables and the out-of-fold predictions.

    Raises:
        CompetitionError: the workspace's own files cannot be read.
        DataError, AlignmentError: out-of-fold tables that do not fit the workspace.
    """
    split, torn = _split(competition)
    train = competition.images("train")
    every = [("train", *row) for row in train]
    every += [("test", *row) for row in competition.images("test")] if test else []
    seen = duplicates.prints([path for _, _, path in every], progress=progress)
    twins, bits = duplicates.find(seen)
    pairs = _pairs(competition, split, every, twins)
    issues, notes = _issues(competition, dict(train))
    findings = [*torn, *_of_pairs(pairs), *groups(competition, split), *ordered_ids(competition), *_of_issues(issues), *notes]
    bad = {str(every[place][2]): why for place, why in seen.bad.items()}
    if bad:
        findings.append(AuditFinding("unreadable", "warning", f"{len(bad):,} pictures cannot be read: {few(bad)}", len(bad)))
    if bits < duplicates.BITS:
        findings.append(AuditFinding("hashes", "note", f"many pictures look alike: hashes were let differ in {bits} bits only"))
    return Audit(tuple(findings), tuple(pairs), tuple(issues), len(every), bits, bad)


def confident(p: F64, truth: Labels) -> Labels:
    """The class that each row probably has, where it is not the given one (int64 [N]); else the given one.

    Confident learning (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068): a row counts for the classes whose probability
    reaches the mean that rows given to that class have, and for the most probable of them. `p` is float64 [N, C].
    """
    classes = p.shape[1]
    mean = np.full(classes, np.inf)  # no row is given to an absent class, and none can be confident in it
    for c in np.unique(truth):
        mean[c] = p[truth == c, c].mean()
    confident_in = np.where(p >= mean - EPS, p, -1.0)
    likely = confident_in.argmax(axis=1)
    return np.asarray(np.where(confident_in.max(axis=1) >= 0, likely, truth))


def groups(competition: Competition, split: Split | None) -> Iterator[AuditFinding]:
    """Columns (and folders) whose values have rows in several folds: the competition's group, and what looks like one."""
    if split is None:
        return
    fold = dict(zip(split.ids, split.folds.tolist(), strict=True))
    for name, values in _identities(competition):
        rows = [(value, fold[row_id]) for row_id, value in values.items() if row_id in fold and value]
        homes: dict[str, set[int]] = {}
        for value, number in rows:
            homes.setdefault(value, set()).add(number)
        torn = {value for value, numbers in homes.items() if len(numbers) > 1}
        if not torn:
            continue
        share = sum(value in torn for value, _ in rows) / len(rows)
        what = f"{name}: {len(torn):,} of {len(homes):,} values have rows in several folds ({few(sorted(torn))})"
        known = name == f"column {competition.group!r}"
        yield AuditFinding(
            "group",
            "leak" if known else "warning",
            f"{what}: {share:.0%} of rows are held out from models that were trained on others of the same value",
            len(torn),
            "Make the split again: toolkit split --force"
            if known
            else "If rows of one value show one thing (a person, a place), name it as [columns] group and split again.",
        )


def write_fixes(competition: Competition, issues: Sequence[Issue]) -> Path | None:
    """Write reports/labels_fix.csv: id, given, suggested (and target, where there are several); None where it is in use.

    Raises:
        StoreError: it cannot be written.
    """
    path = competition.path("reports", FIXES)
    if competition.labels_fix and competition.path(competition.labels_fix).resolve() == path.resolve():
        return None
    several = len(competition.targets) > 1
    columns = ("id", "given", "suggested", *(["target"] if several else []))
    return csv_text.write(path, columns, [(i.id, i.given, i.suggested, *([i.target] if several else [])) for i in issues])


def _split(competition: Competition) -> tuple[Split | None, list[AuditFinding]]:
    try:
        split = Split.if_made(competition)
    except SplitError as error:
        return None, [AuditFinding("split", "leak", f"{SPLIT_FILE}: {error.message}", hint=error.hint)]
    if split is None:
        return None, [
            AuditFinding("split", "note", f"{SPLIT_FILE} is not there yet: folds were not looked at", hint="toolkit split")
        ]
    return split, []


def _pairs(
    competition: Competition, split: Split | None, every: Sequence[tuple[str, str, Path]], twins: Sequence[Twin]
) -> list[Pair]:
    """The twins with what the workspace knows of them; several pictures of one row are no twins."""
    fold = dict(zip(split.ids, split.folds.tolist(), strict=True)) if split else {}
    names_of = {name: dict(zip(t.ids, _names(t), strict=True)) for name, t in competition.truth().items()}

    def home(part: str, row_id: str) -> str:
        return part if part == "test" or row_id not in fold else f"train {fold[row_id]}"

    def label(part: str, row_id: str) -> str:
        return ", ".join(labels.get(row_id, "") for labels in names_of.values()) if part == "train" else ""

    pairs = []
    for twin in twins:
        sides = [every[twin.first], every[twin.second]]
        if sides[0][:2] == sides[1][:2]:
            continue
        (a, b), (pa, pb) = ((side[1] for side in sides), (side[2] for side in sides))
        homes, labels = ((of(*sides[0][:2]), of(*sides[1][:2])) for of in (home, label))
        pairs.append(Pair((a, b), (pa, pb), homes, labels, twin.turn, twin.similarity, twin.exact))
    return pairs


def _of_pairs(pairs: Sequence[Pair]) -> Iterator[AuditFinding]:
    for kind, hint in (
        ("two folds", "Give such rows one group and split by it: the score out of fold is too good."),
        ("train and test", "Check whether the rules allow it; scores on such rows say nothing of new ones."),
    ):
        if there := [pair for pair in pairs if pair.kind == kind]:
            exact = sum(pair.exact for pair in there)
            shown = few(f"{pair.ids[0]} = {pair.ids[1]}" for pair in there)
            pairs_lie = "pair of one picture lies" if len(there) == 1 else "pairs of one picture lie"
            what = f"{len(there):,} {pairs_lie} in {kind} ({exact:,} with the same bytes): {shown}"
            yield AuditFinding(kind.replace(" ", "_"), "leak", what, len(there), hint)
    if clash := [pair for pair in pairs if all(pair.labels) and pair.labels[0] != pair.labels[1]]:
        shown = few(f"{p.ids[0]} ({p.labels[0]}) = {p.ids[1]} ({p.labels[1]})" for p in clash)
        pairs_have = "pair of one picture has" if len(clash) == 1 else "pairs of one picture have"
        what = f"{len(clash):,} {pairs_have} different labels: {shown}"
        yield AuditFinding("contradiction", "warning", what, len(clash), "One of the two is wrong.")


def ordered_ids(competition: Competition) -> Iterator[AuditFinding]:
    """Whether neighbours in the order of ids share their class more often than chance."""
    for name, truth in competition.truth().items():
        if truth.multilabel or len(truth) < 20:
            continue
        order = sorted(range(len(truth)), key=lambda row: _natural(truth.ids[row]))
        labels = truth.decided[np.array(order)]
        shares = np.bincount(labels) / len(labels)
        expected, seen = float((shares**2).sum()), float(np.mean(labels[1:] == labels[:-1]))
        noise = np.sqrt(expected * (1 - expected) / (len(labels) - 1))
        if noise and (seen - expected) / noise > TELLING:
            what = (
                f"ids tell {name!r}: neighbours in their order share the class {seen:.0%} of the time, by chance {expected:.0%}"
            )
            hint = "Never let a model see ids, order or times of files; test ids may tell as well."
            yield AuditFinding("ids", "warning", what, len(labels), hint)


def _identities(competition: Competition) -> Iterator[tuple[str, dict[str, str]]]:
    """(name, id → value) of the competition's group, of other columns that may name who is shown, and of the folders."""
    frame, ids = competition.rows, list(competition.rows[competition.id])
    labels = {name for target in competition.targets for name in (target.column, *target.classes, *target.factors)}
    for name in frame.columns:
        values = dict(zip(ids, frame[name], strict=True))
        if name == competition.group or (name not in {competition.id, *labels} and _looks_like_one(values)):
            yield f"column {name!r}", values
    if "/" in competition.train.pattern or any("/" in cell for cell in _pieces(competition)):
        root = competition.path(competition.train.folder)
        folders = {row_id: provenance.from_inside(path.parent, root) for row_id, path in competition.images("train")}
        if _looks_like_one(folders):
            yield "the folder of the picture", folders


def _pieces(competition: Competition) -> Iterator[str]:
    """Some cells that file names are made of."""
    for name in path_patterns.columns(competition.train.pattern):
        yield from competition.rows[name][:50]


def _looks_like_one(values: Mapping[str, str]) -> bool:
    """Many values, most of them several times, as people and places have: not a class, a date of each row or a number."""
    counts = Counter(value for value in values.values() if value)
    several = sum(count for count in counts.values() if count > 1)
    return len(counts) >= PEOPLE and several >= 0.8 * len(values) and max(counts.values()) <= len(values) / 5


def _issues(competition: Competition, paths: Mapping[str, Path]) -> tuple[list[Issue], list[AuditFinding]]:
    """Labels that the mean of all out-of-fold tables speaks against, the surest first."""
    try:
        tables = oof.find_tables(competition)
    except DataError as error:
        return [], [AuditFinding("labels", "note", f"labels were not looked at: {error.message}", hint=error.hint)]
    issues = []
    for target in competition.targets:
        rows = oof.read_members(competition, target, tables, common=True)
        issues += list(doubts(target, rows.truth, rows.stack.mean(axis=0), paths))
    return sorted(issues, key=lambda issue: issue.p_given - issue.p_suggested), []


def doubts(target: Target, truth: Predictions, p: F64, paths: Mapping[str, Path]) -> Iterator[Issue]:
    """Rows whose label the out-of-fold probabilities [N, C] contradict, by confident learning; a row is one issue."""
    labels, rows = truth.decided, np.arange(len(truth))
    if target.multilabel:  # every class is a question of its own; a row's doubts are one issue
        likely = np.stack([confident(np.stack([1 - q, q], axis=1), y) for q, y in zip(p.T, labels.T.astype(int), strict=True)])
        likely = likely.T.astype(bool)
        places = np.flatnonzero((likely != labels).any(axis=1))
        odds = [(np.where(yes, p, 1 - p).min(axis=1)) for yes in (labels, likely)]
    else:
        likely = confident(p, labels)
        places = np.flatnonzero(likely != labels)
        odds = [p[rows, labels], p[rows, likely]]
    corrected = Predictions(truth.target, "labels", truth.ids, truth.classes, labels=likely, multilabel=truth.multilabel)
    given, suggested = _names(truth, target.separator), _names(corrected, target.separator)
    for row in places.tolist():
        row_id = truth.ids[row]
        yield Issue(
            row_id, target.name, given[row], suggested[row], float(odds[0][row]), float(odds[1][row]), paths.get(row_id)
        )


def _of_issues(issues: Sequence[Issue]) -> Iterator[AuditFinding]:
    if issues:
        shown = few(f"{issue.id}: {issue.given} → {issue.suggested}" for issue in issues)
        what = f"{len(issues):,} labels are probably wrong, or hard: {shown}"
        hint = f'Look at them, delete the rows of {FIXES} that are right as given, and set [train] labels_fix = "{FIXES}".'
        yield AuditFinding("labels", "warning", what, len(issues), hint)


def _names(table: Predictions, separator: str = " ") -> list[str]:
    """The labels of a table as its competition writes them."""
    if table.multilabel:
        return [separator.join(name for name, yes in zip(table.classes, row, strict=True) if yes) for row in table.decided]
    return [table.classes[label] for label in table.decided.tolist()]


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]
