"""`toolkit blend`: weights of members from their out-of-fold tables, with an honest score and a reason."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.blending import WEIGHERS
from toolkit.cli import options, summaries

if TYPE_CHECKING:
    from toolkit.competition import Competition
    from toolkit.selection import Verdict

_FILE = click.Path(path_type=Path, dir_okay=False)
_NAMES = {"best_single": "best single", "uniform": "plain mean", "in_sample": "blend, in sample", "nested": "blend, nested"}


@click.command()
@click.argument("tables", nargs=-1, type=_FILE, metavar="[TABLES]...")
@click.option(
    "--weigher",
    "how",
    type=click.Choice([n for n in WEIGHERS if n != "stacking"]),
    default="greedy",
    show_default=True,
    help="How weights are looked for.",
)
@click.option("--always", is_flag=True, help="Use the weigher even where it cannot be told from the plain mean.")
@click.option("--fit-on", type=click.Choice(["all", "common"]), default="all", help="Rows: all must agree, or those shared.")
@options.as_json
@options.workspace
def command(
    competition: Competition, tables: tuple[Path, ...], how: str, fit_on: str, *, always: bool
) -> tuple[dict[str, Any], str]:
    """Learn members' weights from out-of-fold tables and write blend.json: the mean unless more is certain.

    TABLES are files of oof/ (all of them unless told). Weights are chosen inside each fold and scored on the fold left out.
    """
    import json

    from toolkit import fitting

    path, verdicts = fitting.fit(competition, tables, how=how, always=always, common=fit_on == "common")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    lines = []
    for target, verdict in verdicts.items():
        weights = ", ".join(f"{name} {weight:.4g}" for name, weight in record["targets"][target]["members"].items())
        lines += [
            f"Target    {target}",
            *_table(verdict, competition.metric),
            f"Chosen    {verdict.reason}",
            f"Weights   {weights}",
        ]
    return record, "\n".join([*lines, f"Wrote     {summaries.shown(path)}"])


def _table(verdict: Verdict, metric: str) -> list[str]:
    lines = [f"          {'':16}  {metric:>9}  {'95 % interval':^21}  {'gain':>9}  {'95 % interval':^21}"]
    for name, one in verdict.estimates.items():
        score = f"{one.score:>9.5f}  {one.low:>9.5f} – {one.high:>9.5f}"
        lines.append(f"          {_NAMES[name]:16}  {score}  {one.gain:>+9.5f}  {one.gain_low:>+9.5f} – {one.gain_high:>+9.5f}")
    return lines
