"""toolkit doctor: what this machine can run, and the cure for what it cannot."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

MARKS = {"ok": ("✓", "green"), "absent": ("–", "yellow"), "broken": ("✗", "red")}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.pass_context
def command(ctx: click.Context, *, as_json: bool) -> None:
    """Say what this machine can run, what does not fit together, and the cure.

    Exit code 1 if something is broken; a GPU that is not there is no fault.
    """
    from toolkit.diagnosis import examine

    findings = examine()
    for finding in findings:
        if as_json:
            click.echo(json.dumps(asdict(finding), ensure_ascii=False))
            continue
        mark, colour = MARKS[finding.state]
        click.echo(f"{click.style(mark, fg=colour)} {finding.what:<18} {finding.seen}")
        if finding.cure:
            click.echo(f"  {'':<18} cure: {finding.cure}")
    ctx.exit(1 if any(finding.state == "broken" for finding in findings) else 0)
