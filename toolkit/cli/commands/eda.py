"""`toolkit eda`: a page about the data, and what to do about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.base.text.printing import facts
from toolkit.cli import options, summaries

if TYPE_CHECKING:
    from toolkit.workspace.competition import Competition


@click.command()
@click.option("--sample", type=click.IntRange(1), default=20_000, show_default=True, help="Images of each part to look into.")
@options.as_json
@options.workspace
def command(competition: Competition, sample: int) -> options.Said:
    """Look at the data and write reports/eda.html: classes, files, pixels, shift, and what to do about them.

    Every file's header is read; pixels of a random sample.
    """
    from toolkit.analysis import data_survey
    from toolkit.analysis.pages import data
    from toolkit.cli.progress import bar

    with bar("Looking at images") as progress:
        survey = data_survey.survey(competition, sample=sample, progress=progress)
    path = data.write(survey)
    record = survey.record | {"path": str(path)}
    return record, [facts([*(("-", sentence) for sentence in survey.advice), ("Wrote", summaries.shown(path))])]
