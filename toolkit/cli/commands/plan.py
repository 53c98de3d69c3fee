"""`toolkit plan`: what to run when there is a clock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.base.text.printing import INTERVAL, Mark, Part, Table, Verbatim, facts, interval
from toolkit.cli import options
from toolkit.cli.completion import FILES
from toolkit.errors import counted
from toolkit.images.views import written
from toolkit.runtime.devices import PROVIDERS

if TYPE_CHECKING:
    from toolkit.ensemble.time_budget import PlanLine, TimePlan
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
    plan = time_budget.plan(competition, paths, seconds(budget), device=device, images=images)
    line = _command(plan, competition.root.resolve())
    return plan.record | {"command": line}, _text(plan, competition.metric, line)


def _text(plan: TimePlan, metric: str, command_line: str) -> list[Part]:
    head = f"{counted(plan.images, 'images')} on {plan.device} in {_span(plan.budget)}"
    head += f"; scores of {counted(plan.rows, 'held-out rows')}"
    rows = []
    for line in plan.lines:
        score = line.estimate
        mark = Mark("← best that fits", "good") if line == plan.chosen else "" if line.fits else Mark("(too slow)", "odd")
        rows.append((_members(line), _span(line.seconds), f"{score.score:.5f}", interval(score.low, score.high), mark))
    nested = plan.nested
    below = [("Nested", f"{metric} {nested.score:.5f} ({interval(nested.low, nested.high)}) when chosen so on other folds")]
    below += [*(("Note", note) for note in plan.notes), ("Run", Verbatim(command_line))]
    return [Table(("members and views", "time", metric, INTERVAL, ""), rows, "prrrp", caption=head), facts(below)]


def _command(plan: TimePlan, root: Path) -> str:
    """The `toolkit ensemble` line that runs the plan, from the workspace's folder."""
    used = [path.resolve() for path in plan.models]
    shown = [path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path) for path in used]
    folders = {path.parent for path in used}
    everything = {path for folder in folders for path in folder.glob("*.onnx")} == set(used)
    words = sorted({str(Path(name).parent) for name in shown}) if everything else shown
    sets = written(dict(plan.chosen.members))
    parts = ["toolkit ensemble", *words, f"--device {plan.device}"]
    parts += [f"--tta {sets}"] if sets != "none" else []
    parts += [f"--precision {plan.chosen.precision}"] if plan.chosen.precision != "fp32" else []
    return " ".join(parts)


def _members(line: PlanLine) -> str:
    sets = ", ".join(name if views == "none" else f"{name} ({views})" for name, views in line.members.items())
    return sets if line.precision == "fp32" else f"{sets} in {line.precision}"


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
