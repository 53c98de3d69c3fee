"""The page of an audit: what was found, pictures that are there twice, and labels that look wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from toolkit.analysis.data_audit import Audit
from toolkit.analysis.label_doubts import Issue
from toolkit.analysis.pages.page import Block, Gallery, Page, PageTable, Points, Section, Thumbnail, of_file
from toolkit.analysis.picture_pairs import Pair, counts
from toolkit.errors import counted
from toolkit.workspace.competition import Competition

MOST = 200  # issues and pairs with pictures; the CSV has all issues
HEADINGS = {
    "train and test": "One picture in train and test",
    "two folds": "One picture in two folds",
    "one place": "One picture twice in one place",
}
OTHERS = {
    "turned": ("One the other's mirror or turn", ": one picture only if that is no other class."),
    "alike": ("Alike, not proved", ": their pixels do not prove that they are one picture."),
}


def page(competition: Competition, audit: Audit) -> Page:
    """The page of an audit of this workspace."""
    leaks = sum(finding.severity == "leak" for finding in audit.findings)
    one = counts(audit.pairs).get("one picture", 0)
    subtitle = f"{counted(audit.images, 'pictures')}, {counted(one, 'pairs')} of one, "
    subtitle += f"{counted(len(audit.issues), 'doubtful labels')}, {counted(leaks, 'leaks')}"
    return Page(f"{competition.name}: audit of the data", subtitle, list(_sections(audit)))


def write(competition: Competition, audit: Audit) -> Path:
    """Write reports/audit.html.

    Raises:
        StoreError: it cannot be written.
    """
    return page(competition, audit).write(competition.path("reports", "audit.html"))


def _sections(audit: Audit) -> Iterator[Section]:
    rows = [(f.severity, f.code, f.what, f.hint) for f in audit.findings]
    blocks: list[Block] = [PageTable(("severity", "what", "seen", "to do"), rows)] if rows else [Points(["Nothing was found."])]
    yield Section("Findings", blocks, "A leak lets models know rows that they are scored on.")
    one = [pair for pair in audit.pairs if pair.relation == "one picture"]
    for kind, title in HEADINGS.items():
        yield from _of_pairs(title, [pair for pair in one if pair.kind == kind])
    for relation, (title, why) in OTHERS.items():
        yield from _of_pairs(title, [pair for pair in audit.pairs if pair.relation == relation], why)
    if audit.issues:
        lead = "The surest first; labels_fix.csv has all of them: delete the rows that are right as given, then use it."
        lead = " ".join([lead, *(f"{judge.target}: {judge}." for judge in audit.judges)])
        yield Section("Labels that look wrong", [Gallery([_issue(i) for i in audit.issues[:MOST]])], lead)
    if audit.bad:
        yield Section("Pictures that cannot be read", [PageTable(("file", "why"), list(audit.bad.items()))])


def _of_pairs(title: str, pairs: Sequence[Pair], why: str = "") -> Iterator[Section]:
    if pairs:
        lead = f"{counted(len(pairs), 'pairs')}" + (f", the first {MOST} of them shown" if len(pairs) > MOST else "")
        yield Section(title, [_pair(pair) for pair in pairs[:MOST]], lead + why)


def _pair(pair: Pair) -> Gallery:
    sides = zip(pair.ids, pair.paths, pair.homes, pair.labels, strict=True)
    shown = [of_file(path, f"picture {row_id}", row_id, home, label) for row_id, path, home, label in sides]
    turned = "" if pair.turn == "id" else f", turned: {pair.turn}"
    proof = f"alike to {pair.similarity:.3f}, {pair.apart}" if pair.relation == "alike" else "proved by their pixels"
    return Gallery(shown, "the same bytes" if pair.exact else f"{proof}{turned}")


def _issue(issue: Issue) -> Thumbnail:
    lines = (issue.id, f"given {issue.given} ({issue.p_given:.2f})", f"suggested {issue.suggested} ({issue.p_suggested:.2f})")
    return of_file(issue.path or Path(issue.id), f"picture {issue.id}", *lines)
