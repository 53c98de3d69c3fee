"""The page of an audit: what was found, pictures that are there twice, and labels that look wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from toolkit.analysis.data_audit import Audit, Issue, Pair
from toolkit.analysis.pages.page import Block, Gallery, Page, Points, Section, Table, Thumbnail, of_file
from toolkit.workspace.competition import Competition

MOST = 200  # issues and pairs with pictures; the CSV has all issues
HEADINGS = {
    "train and test": "One picture in train and test",
    "two folds": "One picture in two folds",
    "one place": "One picture twice in one place",
}


def page(competition: Competition, found: Audit) -> Page:
    """The page of an audit of this workspace."""
    leaks = sum(finding.severity == "leak" for finding in found.findings)
    subtitle = f"{found.images:,} pictures, {len(found.pairs):,} pairs, {len(found.issues):,} doubtful labels, {leaks} leaks"
    return Page(f"{competition.name}: audit of the data", subtitle, list(_sections(found)))


def write(competition: Competition, found: Audit) -> Path:
    """Write reports/audit.html.

    Raises:
        StoreError: it cannot be written.
    """
    return page(competition, found).write(competition.path("reports", "audit.html"))


def _sections(found: Audit) -> Iterator[Section]:
    rows = [(f.severity, f.code, f.what, f.hint) for f in found.findings]
    blocks: list[Block] = [Table(("severity", "what", "seen", "to do"), rows)] if rows else [Points(["Nothing was found."])]
    yield Section("Findings", blocks, "A leak lets models know rows that they are scored on.")
    for kind, title in HEADINGS.items():
        there = [pair for pair in found.pairs if pair.kind == kind]
        if there:
            lead = f"{len(there):,} pairs" + (f", the first {MOST} of them shown" if len(there) > MOST else "")
            yield Section(title, [_pair(pair) for pair in there[:MOST]], lead)
    if found.issues:
        lead = "The surest first; labels_fix.csv has all of them: delete the rows that are right as given, then use it."
        yield Section("Labels that look wrong", [Gallery([_issue(i) for i in found.issues[:MOST]])], lead)
    if found.bad:
        yield Section("Pictures that cannot be read", [Table(("file", "why"), list(found.bad.items()))])


def _pair(pair: Pair) -> Gallery:
    sides = zip(pair.ids, pair.paths, pair.homes, pair.labels, strict=True)
    shown = [of_file(path, f"picture {one}", one, home, label) for one, path, home, label in sides]
    turned = "" if pair.turn == "id" else f", turned: {pair.turn}"
    return Gallery(shown, "the same bytes" if pair.exact else f"alike to {pair.similarity:.3f}{turned}")


def _issue(issue: Issue) -> Thumbnail:
    lines = (issue.id, f"given {issue.given} ({issue.p_given:.2f})", f"suggested {issue.suggested} ({issue.p_suggested:.2f})")
    return of_file(issue.path or Path(issue.id), f"picture {issue.id}", *lines)
