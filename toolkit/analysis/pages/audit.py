"""The page of an audit: what was found, pictures that are there twice, and labels that look wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from toolkit.analysis.data_audit import Audit, Issue, Pair
from toolkit.analysis.pages.page import Block, Gallery, Page, PageTable, Points, Section, Thumbnail, of_file
from toolkit.workspace.competition import Competition

MOST = 200  # issues and pairs with pictures; the CSV has all issues
HEADINGS = {
    "train and test": "One picture in train and test",
    "two folds": "One picture in two folds",
    "one place": "One picture twice in one place",
}


def page(competition: Competition, audit: Audit) -> Page:
    """The page of an audit of this workspace."""
    leaks = sum(finding.severity == "leak" for finding in audit.findings)
    subtitle = f"{audit.images:,} pictures, {len(audit.pairs):,} pairs, {len(audit.issues):,} doubtful labels, {leaks} leaks"
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
    for kind, title in HEADINGS.items():
        there = [pair for pair in audit.pairs if pair.kind == kind]
        if there:
            lead = f"{len(there):,} pairs" + (f", the first {MOST} of them shown" if len(there) > MOST else "")
            yield Section(title, [_pair(pair) for pair in there[:MOST]], lead)
    if audit.issues:
        lead = "The surest first; labels_fix.csv has all of them: delete the rows that are right as given, then use it."
        yield Section("Labels that look wrong", [Gallery([_issue(i) for i in audit.issues[:MOST]])], lead)
    if audit.bad:
        yield Section("Pictures that cannot be read", [PageTable(("file", "why"), list(audit.bad.items()))])


def _pair(pair: Pair) -> Gallery:
    sides = zip(pair.ids, pair.paths, pair.homes, pair.labels, strict=True)
    shown = [of_file(path, f"picture {row_id}", row_id, home, label) for row_id, path, home, label in sides]
    turned = "" if pair.turn == "id" else f", turned: {pair.turn}"
    return Gallery(shown, "the same bytes" if pair.exact else f"alike to {pair.similarity:.3f}{turned}")


def _issue(issue: Issue) -> Thumbnail:
    lines = (issue.id, f"given {issue.given} ({issue.p_given:.2f})", f"suggested {issue.suggested} ({issue.p_suggested:.2f})")
    return of_file(issue.path or Path(issue.id), f"picture {issue.id}", *lines)
