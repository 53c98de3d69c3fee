"""`toolkit report`: a page about the ensemble, out of fold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.base.text.printing import Table, facts
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
    from toolkit.ensemble import evidence

    report = ensemble_report.gather(competition)
    path = ensemble.write(report)
    metric = competition.metric
    scores = [
        (f"{judged.target.name}: {judged.title(name)}", f"{scored.metrics[metric].score:.5f}")
        for judged in report.judged
        for name, scored in judged.scores.items()
    ]
    made = [(what.capitalize(), line) for what, record in report.evidence for line in evidence.lines(record)]
    return report.record | {"path": str(path)}, [Table((), scores, "lr"), facts([*made, ("Wrote", summaries.shown(path))])]
