"""toolkit doctor: what this machine can run, and the cure for what it cannot."""

from __future__ import annotations

from dataclasses import asdict

import click

from toolkit.base.text.printing import Mark, Table
from toolkit.cli import options

MARKS = {"ok": Mark("✓", "good"), "absent": Mark("–", "odd"), "broken": Mark("✗", "bad")}


@click.command()
@options.as_json
def command() -> options.Said:
    """Say what this machine can run, what does not fit together, and the cure.

    Exit code 1 if something is broken; a GPU that is not there is no fault.
    """
    from toolkit.setup.doctor import examine

    findings = examine()
    rows: list[tuple[str, str, str]] = []
    for finding in findings:
        rows.append((MARKS[finding.state], finding.what, finding.seen))
        rows += [("", "", f"cure: {finding.cure}")] if finding.cure else []
    fit = all(finding.state != "broken" for finding in findings)
    return {"ok": fit, "findings": [asdict(finding) for finding in findings]}, Table((), rows, "llp")
