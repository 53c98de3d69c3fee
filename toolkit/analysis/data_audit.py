"""What is wrong with the data: pictures in two folds or in train and test, torn groups, telling ids, labels that look wrong."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.analysis import label_doubts, picture_pairs
from toolkit.analysis.audit_findings import AuditFinding
from toolkit.analysis.label_doubts import FIXES, Issue, LabelJudge
from toolkit.analysis.picture_pairs import Pair
from toolkit.base import provenance
from toolkit.base.text import csv_text
from toolkit.core.twins import twins as names_alike
from toolkit.core.twins import twins_note
from toolkit.errors import SplitError, counted, few
from toolkit.images.duplicates import twins
from toolkit.images.duplicates.hashes import BITS
from toolkit.images.duplicates.prints import Report, prints
from toolkit.workspace import path_patterns
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import SPLIT_FILE, Split

PEOPLE = 20  # a column with fewer different values is a property, not an identity
TELLING = 6.0  # standard deviations above chance at which neighbours in id order share their class


@dataclass(frozen=True)
class Audit:
    """Everything that was seen; `images` pictures were compared, and hashes were let differ in `bits` bits.

    `pairs` are of one picture, turned or merely alike, as each says; `judges` how good the predictions are that judge labels.
    """

    findings: tuple[AuditFinding, ...]
    pairs: tuple[Pair, ...]
    issues: tuple[Issue, ...]
    images: int
    bits: int
    bad: Mapping[str, str] = field(default_factory=dict)
    judges: tuple[LabelJudge, ...] = ()

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
    seen = prints([path for _, _, path in every], progress=progress)
    doubles = twins.find(seen)
    pairs = picture_pairs.pairs_of(competition, split, every, doubles)
    issues, judges, of_labels = label_doubts.judged(competition, dict(train))
    of_pairs = [*picture_pairs.findings_of(pairs), *picture_pairs.of_templates([every[i][1] for i in doubles.templates])]
    findings = [
        *torn,
        *of_pairs,
        *groups(competition, split),
        *twin_names(competition, split),
        *ordered_ids(competition),
        *of_labels,
    ]
    bad = {str(every[place][2]): why for place, why in seen.bad.items()}
    if bad:
        findings.append(
            AuditFinding("unreadable", "warning", f"{counted(len(bad), 'pictures')} cannot be read: {few(bad)}", len(bad))
        )
    if doubles.bits < BITS:
        what = f"many pictures look alike: hashes were let differ in {doubles.bits} bits only"
        findings.append(AuditFinding("hashes", "note", what))
    return Audit(tuple(findings), tuple(pairs), tuple(issues), len(every), doubles.bits, bad, tuple(judges))


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
        what = f"{name}: {len(torn):,} of {counted(len(homes), 'values have')} rows in several folds ({few(sorted(torn))})"
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


def twin_names(competition: Competition, split: Split | None) -> Iterator[AuditFinding]:
    """Classes and groups that differ only in case, outer spaces or normal form; groups in several folds are a leak."""
    for target in competition.targets:
        alike = names_alike(target.classes)
        if note := twins_note(target.classes, f"classes of {target.name!r}"):
            hint = "If they are one class, write it one way in the table, then: toolkit init --force, toolkit split --force"
            yield AuditFinding("twins", "warning", note, len(alike), hint)
    column = competition.group
    if not column or not (note := twins_note(competition.rows[column], f"groups of {column!r}")):
        return
    homes = dict(zip(split.ids, split.folds.tolist(), strict=True)) if split else {}
    folds: dict[str, set[int]] = {}
    for row_id, name in zip(competition.rows[competition.id], competition.rows[column], strict=True):
        folds.setdefault(name, set()).update({homes[row_id]} if row_id in homes else ())
    alike = names_alike(folds)
    torn = sum(len(set().union(*(folds[name] for name in names))) > 1 for names in alike)
    what = f"{note}: {torn:,} of {len(alike):,} stand in several folds" if split else note
    hint = "If they are one group, write it one way in the table, then: toolkit split --force"
    yield AuditFinding("twins", "leak" if torn else "warning", what, len(alike), hint)


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


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]
