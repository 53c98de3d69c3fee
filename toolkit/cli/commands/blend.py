"""`toolkit blend`: members' tables become one, with weights learned out of fold and an honest score, or by vote of labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.base import documents
from toolkit.base.text.printing import INTERVAL, Part, Table, Verbatim, facts, interval
from toolkit.blending.plan_selection import CALIBRATIONS
from toolkit.blending.weighers import WEIGHERS
from toolkit.cli import options, summaries
from toolkit.cli.completion import FILES, offer
from toolkit.core.voting import VOTES
from toolkit.errors import counted

if TYPE_CHECKING:
    from toolkit.blending.mix_tables import Mixed
    from toolkit.blending.outside_tables import Reading
    from toolkit.blending.plan_selection import Verdict
    from toolkit.workspace.competition import Competition

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

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Names of the registry."""
        return offer(["auto", *self.known], several=True)(ctx, param, incomplete)


@click.command()
@click.argument("tables", nargs=-1, metavar="[TABLES]...", shell_complete=FILES)
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
    competition: Competition,
    tables: tuple[str, ...],
    fit_on: str,
    reading: Reading,
    *,
    weighers: tuple[str, ...],
    votes: tuple[str, ...],
    calibrate: tuple[str, ...],
    prior: str,
    always: bool,
    apply: bool,
    labels: bool,
    weights: str,
    name: str,
    output: Path | None,
) -> options.Said:
    """Learn members' weights from out-of-fold tables and write blend.json: the mean unless more is certain.

    TABLES are files (Parquet, CSV, npz; FILE or NAME=FILE), all of oof/ unless told. Weights, vote and calibration are chosen
    inside each fold and scored on the fold left out.

    \b
    toolkit blend
    toolkit blend b4_oof.csv vit_oof.npz --truth train.csv --metric log_loss
    toolkit blend --apply b4_test.csv vit_test.npz --name blended
    toolkit blend --labels monday.csv tuesday.csv theirs.csv --weights 2,1,1
    """
    from toolkit.analysis import member_diagnosis
    from toolkit.blending import mix_tables, oof
    from toolkit.cli.progress import bar

    common = fit_on == "common"
    if apply or labels:
        mixed = mix_tables.mix(
            competition, _of_test_rows(tables, both=apply and labels), labels=labels, weights=weights, name=name,
            output=output, common=common, reading=reading,
        )  # fmt: skip
        return mixed.record, _mixed(mixed)
    if weights or output:
        raise click.UsageError("--weights and --output are for tables of test rows: use --apply or --labels with them.")
    with bar("Choosing", unit="fits") as report:
        path, verdicts = oof.fit(
            competition, oof.find_tables(competition, tables), weighers=weighers, votes=votes, calibrate=calibrate,
            prior=prior, always=always, common=common, reading=reading, report=report,
            doubts=member_diagnosis.doubts,
        )  # fmt: skip
    return _fitted(path, verdicts, competition.metric)


def _of_test_rows(tables: Sequence[str], *, both: bool) -> dict[str, Path]:
    from toolkit.blending.outside_tables import named

    if both or not tables:
        raise click.UsageError("name the tables of test rows, and one of --apply and --labels.")
    return named(tables)


def _fitted(path: Path, verdicts: Mapping[str, Verdict], metric: str) -> options.Said:
    """What was written, and per target what was chosen."""
    record: dict[str, Any] = documents.read_json(path)
    lines: list[Part] = []
    for target, verdict in verdicts.items():
        lines += [_table(target, verdict, metric), facts(_chosen(verdict, record["targets"][target]))]
    return record, [*lines, facts([("Wrote", summaries.shown(path))])]


def _table(target: str, verdict: Verdict, metric: str) -> Table:
    rows = [
        (
            *(_NAMES[name], f"{estimate.score:.5f}", interval(estimate.low, estimate.high)),
            *(f"{estimate.gain:+.5f}", interval(estimate.gain_low, estimate.gain_high, sign="+")),
        )
        for name, estimate in verdict.estimates.items()
    ]
    return Table(("", metric, INTERVAL, "gain", INTERVAL), rows, "lrrrr", caption=f"Target    {target}")


def _chosen(verdict: Verdict, record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was chosen and why; what is as usual is left out."""
    if record["plans"] > 1:
        picks = ", ".join(f"{name} ({count})" for name, count in verdict.picks.items())
        yield "Tried", f"{counted(record['plans'], 'plans')}; chosen in the outer folds: {picks}"
    yield "Chosen", verdict.reason
    yield "Weights", _listed(record["members"], "{} {:.4g}")
    if record["vote"] != "soft":
        yield "Vote", record["vote"]
    if any(value != 1 for value in record["temperatures"].values()):
        yield "Cooled", _listed(record["temperatures"], "{} T = {:.3g}")
    if record["temperature"]:
        yield "Cooled", f"the outcome, T = {record['temperature']:.3g}"
    if record["thresholds"]:
        yield "Classes", _listed(record["thresholds"], "{} {:.3g}")
    if record["test_prior"]:
        yield "Prior", "the test set's is not that of these rows: its effect cannot be scored on them"
    yield from (("Note", note) for note in record["notes"])


def _listed(values: Mapping[str, float], form: str) -> str:
    return ", ".join(form.format(name, value) for name, value in values.items())


def _mixed(mixed: Mixed) -> list[Part]:
    names = list(mixed.weights)
    lines: list[Part] = [facts([("Weights", _listed(mixed.weights, "{} {:.4g}"))])]
    if len(names) == len(mixed.agreement) > 1:
        rows = [(name, *(f"{value:.4f}" for value in row)) for name, row in zip(names, mixed.agreement, strict=True)]
        kinds = "l" + "r" * len(names)
        lines.append(Table(("", *names), rows, kinds, caption="Agreement, share of rows labelled alike:"))
    summary = []
    if mixed.ties:
        summary.append(
            ("Ties", f"{counted(mixed.ties, 'rows')}; each went to the first table named of those tied (or the mean, if soft)")
        )
    summary.append(
        ("Wrote", f"{summaries.shown(mixed.path)} ({counted(mixed.record['rows'], 'rows')} × {', '.join(mixed.predictions)})")
    )
    if mixed.path.suffix == ".parquet":
        summary.append(("Next", Verbatim(f"toolkit submit --name {mixed.path.stem}")))
    return [*lines, facts(summary)]
