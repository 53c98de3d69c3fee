"""toolkit audit: leaks, pictures that are there twice, and labels that look wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options
from toolkit.cli.progress import bar

if TYPE_CHECKING:
    from toolkit.competition import Competition


@click.command()
@click.option("--no-test", is_flag=True, help="Leave the test pictures out.")
@options.as_json
@options.workspace
def command(competition: Competition, *, no_test: bool) -> tuple[dict[str, Any], str]:
    """Look for leaks, pictures that are there twice and labels that look wrong; see reports/audit.html.

    Pictures are compared across folds and with the test set, also resized, recompressed, flipped and turned. Labels are judged
    by the out-of-fold predictions of oof/, and reports/labels_fix.csv says what they suggest.
    """
    from toolkit import audits
    from toolkit.cli.summaries import shown
    from toolkit.reports import audit

    with bar("Reading") as progress:
        found = audits.audit(competition, test=not no_test, progress=progress)
    page, fixes = audit.write(competition, found), audits.write_fixes(competition, found.issues)
    marks = {"leak": "Leak", "warning": "Warning", "note": "Note"}
    lines = [f"Looked at {found.images:,} pictures"]
    for one in found.findings:
        lines += [f"{marks[one.severity]:<9} {one.what}", *([f"{'':9} {one.hint}"] if one.hint else [])]
    lines.append("" if found.findings else "Nothing was found.")
    kept = f"{shown(fixes)} ({len(found.issues):,} labels)" if fixes else f"{audits.FIXES} is in use and was left as it is"
    lines.append(f"Wrote     {shown(page)}, {kept}")
    return found.record | {"page": str(page), "labels_fix": str(fixes or "")}, "\n".join(filter(None, lines))
