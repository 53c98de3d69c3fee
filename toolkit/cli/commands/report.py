"""`toolkit report`: a page about the ensemble, out of fold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.base.text.printing import Table
from toolkit.cli import options, summaries

if TYPE_CHECKING:
    from toolkit.workspace.competition import Competition


@click.command()
@options.as_json
@options.workspace
def command(competition: Competition) -> options.Said:
    """Show how good the ensemble is, where it errs and why, in reports/report.html.

    From what is there: oof/, blend.json, the last predictions, the submission, the runs. No model is run.
    """
    from toolkit.analysis import ensemble_report
    from toolkit.analysis.pages import ensemble

    report = ensemble_report.gather(competition)
    path = ensemble.write(report)
    scores = Table((), [(name, f"{score:.5f}") for name, score in report.figures.items()], "lr")
    return report.record | {"path": str(path)}, [scores, f"Wrote {summaries.shown(path)}"]
