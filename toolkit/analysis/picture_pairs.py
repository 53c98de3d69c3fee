"""Pictures that are there twice, with what a workspace knows of them: which pairs leak, which are merely alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from toolkit.analysis.audit_findings import AuditFinding, Severity
from toolkit.analysis.label_doubts import names
from toolkit.errors import counted, few
from toolkit.images.duplicates.proof import Differs
from toolkit.images.duplicates.twins import MANY, Doubles, Twin
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split

Relation = Literal["one picture", "turned", "alike"]
Turning = Literal["same class", "other class", "unknown"]
Part = tuple[str, str, Path]  # "train" or "test", id, file

SLIPS = 0.1  # of the labelled pairs of a turn: so many may differ by wrong labels, more say that turning changes the class


@dataclass(frozen=True)
class Pair:
    """Two pictures: ids, files, parts ("train 3" is fold 3, "test"), labels where known; see `Twin`.

    `relation` is "one picture" where pixels prove it, "turned" where one is the other mirrored or turned and that may be, or
    is, another class, and "alike" where pixels say that they are not the same: `differs` in what.
    """

    ids: tuple[str, str]
    paths: tuple[Path, Path]
    homes: tuple[str, str]
    labels: tuple[str, str]
    turn: str
    similarity: float
    exact: bool
    relation: Relation = "one picture"
    differs: Differs = ""

    @property
    def kind(self) -> str:
        """Where they lie: "train and test", "two folds", "one place"."""
        if "test" in self.homes:
            return "one place" if self.homes[0] == self.homes[1] else "train and test"
        return "two folds" if self.homes[0] != self.homes[1] else "one place"

    @property
    def apart(self) -> str:
        """What keeps an alike pair from being proved, in words."""
        return "too small to tell" if self.differs == "too small" else f"apart in {self.differs}"

    @property
    def disagree(self) -> bool | None:
        """Whether their labels differ; None where one is not known."""
        return self.labels[0] != self.labels[1] if all(self.labels) else None


def pairs_of(competition: Competition, split: Split | None, every: Sequence[Part], doubles: Doubles) -> list[Pair]:
    """The doubles with what the workspace knows of them; several pictures of one row are no pair."""
    fold = dict(zip(split.ids, split.folds.tolist(), strict=True)) if split else {}
    names_of = {name: dict(zip(t.ids, names(t), strict=True)) for name, t in competition.truth().items()}

    def home(part: str, row_id: str) -> str:
        return part if part == "test" or row_id not in fold else f"train {fold[row_id]}"

    def label(part: str, row_id: str) -> str:
        return ", ".join(labels.get(row_id, "") for labels in names_of.values()) if part == "train" else ""

    def pair(twin: Twin, relation: Relation) -> Pair:
        (part_a, a, path_a), (part_b, b, path_b) = every[twin.first], every[twin.second]
        homes, labels = (home(part_a, a), home(part_b, b)), (label(part_a, a), label(part_b, b))
        seen = twin.turn, twin.similarity, twin.exact
        return Pair((a, b), (path_a, path_b), homes, labels, *seen, relation, twin.differs)

    apart = [twin for twin in doubles.twins if every[twin.first][:2] != every[twin.second][:2]]
    proved = [pair(twin, "one picture") for twin in apart]
    turning = turns(proved)
    proved = [p if turning.get(p.turn, "same class") == "same class" else replace(p, relation="turned") for p in proved]
    alike = [pair(twin, "alike") for twin in doubles.alike if every[twin.first][:2] != every[twin.second][:2]]
    return proved + alike


def turns(pairs: Sequence[Pair]) -> dict[str, Turning]:
    """Of each turn but none, whether it keeps the class, as the labels of the pairs that are turned so tell.

    A mirrored b is a d: where pairs under a turn have other labels, it makes another class, and no such pair is one picture.
    """
    known = Counter(pair.turn for pair in pairs if pair.disagree is not None)
    apart = Counter(pair.turn for pair in pairs if pair.disagree)
    return {
        turn: "unknown" if not known[turn] else "other class" if apart[turn] > SLIPS * known[turn] else "same class"
        for turn in sorted({pair.turn for pair in pairs} - {"id"})
    }


def findings_of(pairs: Sequence[Pair]) -> Iterator[AuditFinding]:
    """What the pairs mean: leaks, contradictions, turned ones, and those that are merely alike."""
    one = [pair for pair in pairs if pair.relation == "one picture"]
    for kind, hint in (
        ("two folds", "Give such rows one group and split by it: the score out of fold is too good."),
        ("train and test", "Check whether the rules allow it; scores on such rows say nothing of new ones."),
    ):
        if there := [pair for pair in one if pair.kind == kind]:
            exact, turned = sum(pair.exact for pair in there), sum(pair.turn != "id" for pair in there)
            more = f", {turned:,} mirrored or turned" if turned else ""
            what = f"{counted(len(there), 'pairs of one picture lie')} in {kind} "
            what += f"({exact:,} with the same bytes{more}): {_shown(there)}"
            yield AuditFinding(kind.replace(" ", "_"), "leak", what, len(there), hint)
    if clash := [pair for pair in one if pair.disagree]:
        what = f"{counted(len(clash), 'pairs of one picture have')} different labels: {_shown(clash)}"
        yield AuditFinding("contradiction", "warning", what, len(clash), "One of the two is wrong.")
    yield from _turned([pair for pair in pairs if pair.relation == "turned"])
    if alike := [pair for pair in pairs if pair.relation == "alike"]:
        in_what = ", ".join(f"{count:,} {what}" for what, count in Counter(p.apart for p in alike).most_common())
        what = f"{counted(len(alike), 'pairs are')} alike, and not proved to be one picture "
        what += f"by their pixels ({in_what}): {_shown(alike)}"
        yield AuditFinding("alike", "note", what, len(alike), "Look at some: nothing proves that they are one picture.")


def _turned(pairs: Sequence[Pair]) -> Iterator[AuditFinding]:
    """Pairs under a turn that makes another class, and pairs under one of which nothing is known."""
    turning = turns(pairs)
    for answer in ("other class", "unknown"):
        there = [pair for pair in pairs if turning[pair.turn] == answer]
        if not there:
            continue
        ways = ", ".join(sorted({pair.turn for pair in there}))
        what = f"{counted(len(there), 'pairs are')} one another mirrored or turned ({ways}): {_shown(there)}"
        severity: Severity = "note"
        if answer == "other class":
            what += "; their labels differ, so that this makes another class here"
            hint = "Such turns are no augmentation and no view for these classes: --no-flip in training."
        else:
            across = sum(pair.kind != "one place" for pair in there)
            severity = "warning" if across else "note"
            what += f"; {across:,} of them lie in two folds or in train and test"
            hint = "No labelled pair says whether this makes another class: if it does not, they are one picture."
        yield AuditFinding("turned", severity, what, len(there), hint)


def of_templates(shown: Sequence[str]) -> Iterator[AuditFinding]:
    """Pictures, by name, that are alike to many others."""
    if shown:
        what = (
            f"{counted(len(shown), 'pictures are')} alike to {MANY} or more others "
            f"each, as drawings, charts or scans of one form are: "
            f"{few(shown)}"
        )
        hint = "Of these only copies that are nearer to each other than to all others are called one picture."
        yield AuditFinding("template", "note", what, len(shown), hint)


def _shown(pairs: Sequence[Pair]) -> str:
    def text(pair: Pair) -> str:
        between = " = " if pair.relation == "one picture" else " ~ "
        if pair.disagree:
            return f"{pair.ids[0]} ({pair.labels[0]}){between}{pair.ids[1]} ({pair.labels[1]})"
        return between.join(pair.ids)

    return few(map(text, pairs))


def counts(pairs: Sequence[Pair]) -> Mapping[Relation, int]:
    """How many pairs there are of each relation."""
    return Counter(pair.relation for pair in pairs)
