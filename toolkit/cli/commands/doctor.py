"""toolkit doctor: what this machine can run, and the cure for what it cannot."""

from __future__ import annotations

from dataclasses import asdict

import click

from toolkit.base.printing import Mark, Table
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
    for one in findings:
        rows.append((MARKS[one.state], one.what, one.seen))
        rows += [("", "", f"cure: {one.cure}")] if one.cure else []
    fit = all(one.state != "broken" for one in findings)
    return {"ok": fit, "findings": [asdict(one) for one in findings]}, Table((), rows, "llp")
