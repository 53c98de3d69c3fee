"""`toolkit plan`: what to run when there is a clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.base.printing import INTERVAL, Mark, Part, Table, Verbatim, facts, interval
from toolkit.cli import options
from toolkit.cli.completion import FILES
from toolkit.runtime.devices import PROVIDERS

if TYPE_CHECKING:
    from toolkit.ensemble.time_budget import Line, Plan
    from toolkit.workspace.competition import Competition


@click.command()
@click.argument("models", nargs=-1, metavar="[MODELS]...", shell_complete=FILES)
@click.option("--budget", required=True, metavar="8h30m", help="The time there is, as in 90s, 45m, 8h30m.")
@click.option("--device", type=click.Choice(["auto", *PROVIDERS]), default="auto", show_default=True)
@click.option("--images", type=click.IntRange(1), help="How many images there will be.  [default: those of the test set]")
@options.as_json
@options.workspace
def command(competition: Competition, models: tuple[str, ...], budget: str, device: str, images: int | None) -> options.Said:
    """Find the members, views and precision with the best score that predict the test images in a given time.

    MODELS are .onnx files, folders or globs, folds/ unless told. It goes by the timings of what was predicted before and by
    held-out rows: with views, by those that `toolkit tta` left in the store.
    """
    from toolkit.base.durations import seconds
    from toolkit.ensemble import time_budget
    from toolkit.inference.exports import find_exports

    paths = find_exports(models or ("folds",), base=None if models else competition.root)
    found = time_budget.plan(competition, paths, seconds(budget), device=device, images=images)
    return found.record, _said(found, competition.metric)


def _said(found: Plan, metric: str) -> list[Part]:
    head = f"{found.images:,} images on {found.device} in {_span(found.budget)}; scores of {found.rows:,} held-out rows"
    rows = []
    for line in found.lines:
        one = line.estimate
        mark = Mark("← best that fits", "good") if line == found.chosen else "" if line.fits else Mark("(too slow)", "odd")
        rows.append((_members(line), _span(line.seconds), f"{one.score:.5f}", interval(one.low, one.high), mark))
    one = found.nested
    said = [("Nested", f"{metric} {one.score:.5f} ({interval(one.low, one.high)}) when chosen so on other folds")]
    said += [*(("Note", note) for note in found.notes), ("Run", Verbatim(found.command))]
    return [Table(("members and views", "time", metric, INTERVAL, ""), rows, "prrrp", caption=head), facts(said)]


def _members(line: Line) -> str:
    sets = ", ".join(name if views == "none" else f"{name} ({views})" for name, views in line.members.items())
    return sets if line.precision == "fp32" else f"{sets} in {line.precision}"


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
