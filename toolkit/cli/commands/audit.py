"""toolkit audit: leaks, pictures that are there twice, and labels that look wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.base.text.printing import Mark, Part, facts
from toolkit.cli import options
from toolkit.cli.progress import bar
from toolkit.errors import counted

if TYPE_CHECKING:
    from toolkit.workspace.competition import Competition


MARKS = {"leak": Mark("Leak", "bad"), "warning": Mark("Warning", "odd"), "note": "Note"}


@click.command()
@click.option("--no-test", is_flag=True, help="Leave the test pictures out.")
@options.as_json
@options.workspace
def command(competition: Competition, *, no_test: bool) -> options.Said:
    """Look for leaks, pictures that are there twice and labels that look wrong; see reports/audit.html.

    Pictures are compared across folds and with the test set, also resized, recompressed, flipped and turned; pixels, colours
    included, prove a pair, others are called alike. Labels are judged by the out-of-fold predictions of oof/ where these are
    good enough, and reports/labels_fix.csv says what they suggest.
    """
    from toolkit.analysis import data_audit
    from toolkit.analysis.label_doubts import FIXES
    from toolkit.analysis.pages import audit
    from toolkit.cli.summaries import shown

    with bar("Reading") as progress:
        report = data_audit.audit(competition, test=not no_test, progress=progress)
    page, fixes = audit.write(competition, report), data_audit.write_fixes(competition, report.issues)
    rows: list[tuple[str, str]] = []
    for finding in report.findings:
        rows += [(MARKS[finding.severity], finding.what), *([("", finding.hint)] if finding.hint else [])]
    rows += [("Judge", f"{judge.target}: {judge}") for judge in report.judges]
    kept = f"{shown(fixes)} ({counted(len(report.issues), 'labels')})" if fixes else f"{FIXES} is in use and was left as it is"
    rows.append(("Wrote", f"{shown(page)}, {kept}"))
    nothing = [] if report.findings else ["Nothing was found."]
    lines: list[Part] = [f"Looked at {counted(report.images, 'pictures')}", *nothing, facts(rows)]
    return report.record | {"page": str(page), "labels_fix": str(fixes or "")}, lines
