"""`toolkit blend`: members' tables become one, with weights learned out of fold and an honest score, or by vote of labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.blending import WEIGHERS
from toolkit.cli import options, summaries
from toolkit.judging import CALIBRATIONS
from toolkit.voting import VOTES

if TYPE_CHECKING:
    from toolkit.competition import Competition
    from toolkit.judging import Verdict
    from toolkit.mixing import Mixed
    from toolkit.sources import Reading

_NAMES = {"best_single": "best single", "uniform": "plain mean", "in_sample": "blend, in sample", "nested": "blend, nested"}
_CALIBRATE = ["none", *filter(None, CALIBRATIONS)]


class _Several(click.ParamType[tuple[str, ...]]):
    """Names of a registry with commas between them, or auto: nothing said."""

    name = "names"

    def __init__(self, known: Sequence[str]) -> None:
        self.known = list(known)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(name for name in str(value).split(",") if name and name != "auto")
        if unknown := [name for name in names if name not in self.known]:
            self.fail(f"{unknown[0]!r} is not one of auto, {', '.join(self.known)}", param, ctx)
        return tuple("" if name == "none" else name for name in names)


@click.command()
@click.argument("tables", nargs=-1, metavar="[TABLES]...")
@click.option(
    "--weigher",
    "weighers",
    type=_Several([n for n in WEIGHERS if n != "stacking"]),
    default="auto",
    show_default=True,
    help="How weights are looked for; several with commas are chosen among.",
)
@click.option("--vote", "votes", type=_Several(list(VOTES)), default="auto", show_default=True, help="How members combine.")
@click.option(
    "--calibrate",
    type=_Several(_CALIBRATE),
    default="auto",
    show_default=True,
    help=f"What is calibrated: {', '.join(_CALIBRATE)}.",
)
@click.option("--test-prior", "prior", default="", help="Class shares known of the test set: cat=0.5,dog=0.5.")
@click.option("--always", is_flag=True, help="Use the best found even where it cannot be told from the plain mean.")
@click.option("--fit-on", type=click.Choice(["all", "common"]), default="all", help="Rows: all must agree, or those shared.")
@click.option("--apply", "apply", is_flag=True, help="TABLES are of test rows: combine them as blend.json or --weights says.")
@click.option("--labels", "labels", is_flag=True, help="TABLES are of test rows: vote on their labels (earlier submissions).")
@click.option("--weights", default="", help="With --apply or --labels: equal, 2,1,1 or a=0.7,b=0.3.")
@click.option("--name", default="blend", show_default=True, help="Test rows are written to predictions/NAME.parquet.")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="… or to this .csv or .parquet file.")
@options.as_json
@options.tables
def command(
    competition: Competition, tables: tuple[str, ...], fit_on: str, reading: Reading, *, apply: bool, labels: bool, **said: Any
) -> tuple[dict[str, Any], str]:
    """Learn members' weights from out-of-fold tables and write blend.json: the mean unless more is certain.

    TABLES are files (Parquet, CSV, npz; FILE or NAME=FILE), all of oof/ unless told. Weights, vote and calibration are chosen
    inside each fold and scored on the fold left out.

    \b
    toolkit blend
    toolkit blend b4_oof.csv vit_oof.npz --truth train.csv --metric log_loss
    toolkit blend --apply b4_test.csv vit_test.npz --name blended
    toolkit blend --labels monday.csv tuesday.csv theirs.csv --weights 2,1,1
    """
    common = fit_on == "common"
    test = {key: said.pop(key) for key in ("weights", "name", "output")}
    if apply or labels:
        return _combine(competition, tables, labels=labels, common=common, reading=reading, both=apply and labels, **test)
    return _fit(competition, tables, common=common, reading=reading, unused=bool(test["weights"] or test["output"]), **said)


def _fit(competition: Competition, tables: Sequence[str], *, unused: bool, **said: Any) -> tuple[dict[str, Any], str]:
    import json

    from toolkit import fitting
    from toolkit.cli.progress import bar

    if unused:
        raise click.UsageError("--weights and --output are for tables of test rows: use --apply or --labels with them.")
    with bar("Choosing", unit="fits") as report:
        path, verdicts = fitting.fit(competition, fitting.find_tables(competition, tables), report=report, **said)
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    lines = []
    for target, verdict in verdicts.items():
        lines += [f"Target    {target}", *_table(verdict, competition.metric), *_chosen(verdict, record["targets"][target])]
    return record, "\n".join([*lines, f"Wrote     {summaries.shown(path)}"])


def _combine(
    competition: Competition, tables: Sequence[str], *, labels: bool, both: bool, **said: Any
) -> tuple[dict[str, Any], str]:
    from toolkit import mixing, sources

    if both or not tables:
        raise click.UsageError("name the tables of test rows, and one of --apply and --labels.")
    made = mixing.mix(competition, sources.named(tables), labels=labels, **said)
    return made.record, _mixed(made)


def _table(verdict: Verdict, metric: str) -> list[str]:
    lines = [f"          {'':16}  {metric:>9}  {'95 % interval':^21}  {'gain':>9}  {'95 % interval':^21}"]
    for name, one in verdict.estimates.items():
        score = f"{one.score:>9.5f}  {one.low:>9.5f} – {one.high:>9.5f}"
        lines.append(f"          {_NAMES[name]:16}  {score}  {one.gain:>+9.5f}  {one.gain_low:>+9.5f} – {one.gain_high:>+9.5f}")
    return lines


def _chosen(verdict: Verdict, said: dict[str, Any]) -> list[str]:
    """What was chosen and why, in lines; what is as usual is left out."""
    picks = ", ".join(f"{name} ({count})" for name, count in verdict.picks.items())
    lines = [f"Tried     {said['plans']} plans; chosen in the outer folds: {picks}"] if said["plans"] > 1 else []
    lines.append(f"Chosen    {verdict.reason}")
    lines.append("Weights   " + ", ".join(f"{name} {weight:.4g}" for name, weight in said["members"].items()))
    if said["vote"] != "soft":
        lines.append(f"Vote      {said['vote']}")
    if any(value != 1 for value in said["temperatures"].values()):
        lines.append("Cooled    " + ", ".join(f"{name} T = {value:.3g}" for name, value in said["temperatures"].items()))
    if said["temperature"]:
        lines.append(f"Cooled    the outcome, T = {said['temperature']:.3g}")
    if said["thresholds"]:
        lines.append("Classes   " + ", ".join(f"{name} {value:.3g}" for name, value in said["thresholds"].items()))
    if said["test_prior"]:
        lines.append("Prior     the test set's is not that of these rows: its effect cannot be scored on them")
    return lines + [f"Note      {note}" for note in said["notes"]]


def _mixed(made: Mixed) -> str:
    names = list(made.weights)
    width = max(map(len, names))
    lines = [f"Weights   {', '.join(f'{name} {weight:.4g}' for name, weight in made.weights.items())}"]
    if len(names) == len(made.agreement) > 1:
        lines.append("Agreement, share of rows labelled alike:")
        lines.append(f"  {'':{width}}  " + "  ".join(f"{name:>8.8}" for name in names))
        lines += [
            f"  {name:{width}}  " + "  ".join(f"{value:>8.4f}" for value in row)
            for name, row in zip(names, made.agreement, strict=True)
        ]
    if made.ties:
        lines.append(f"Ties      {made.ties:,} rows; each went to the first table named of those tied (or the mean, if soft)")
    lines.append(f"Wrote     {summaries.shown(made.path)} ({made.record['rows']:,} rows × {', '.join(made.predictions)})")
    if made.path.suffix == ".parquet":
        lines.append(f"Next      toolkit submit --name {made.path.stem}")
    return "\n".join(lines)
