"""`toolkit plan`: what to run when there is a clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options
from toolkit.providers import PROVIDERS

if TYPE_CHECKING:
    from toolkit.competition import Competition
    from toolkit.planning import Line, Plan


@click.command()
@click.argument("models", nargs=-1, metavar="[MODELS]...")
@click.option("--budget", required=True, metavar="8h30m", help="The time there is, as in 90s, 45m, 8h30m.")
@click.option("--device", type=click.Choice(["auto", *PROVIDERS]), default="auto", show_default=True)
@click.option("--images", type=click.IntRange(1), help="How many images there will be.  [default: those of the test set]")
@options.as_json
@options.workspace
def command(
    competition: Competition, models: tuple[str, ...], budget: str, device: str, images: int | None
) -> tuple[dict[str, Any], str]:
    """Find the members, views and precision with the best score that predict the test images in a given time.

    MODELS are .onnx files, folders or globs, folds/ unless told. It goes by the timings of what was predicted before and by
    held-out rows: with views, by those that `toolkit tta` left in the store.
    """
    from toolkit import planning
    from toolkit.members import find_exports
    from toolkit.offline import seconds

    paths = find_exports(models or ("folds",), base=None if models else competition.root)
    found = planning.plan(competition, paths, seconds(budget), device=device, images=images)
    return found.record, _said(found, competition.metric)


def _said(found: Plan, metric: str) -> str:
    width = max(len(_members(line)) for line in (*found.lines, found.chosen))
    head = f"{found.images:,} images on {found.device} in {_span(found.budget)}; scores of {found.rows:,} held-out rows"
    lines = [head, "", f"  {'members and views':{width}}  {'time':>8}  {metric:>9}  95 % interval"]
    for line in found.lines:
        one = line.estimate
        mark = " ← best that fits" if line == found.chosen else "" if line.fits else " (too slow)"
        score = f"{one.score:>9.5f}  {one.low:.5f} – {one.high:.5f}"
        lines.append(f"  {_members(line):{width}}  {_span(line.seconds):>8}  {score}{mark}")
    one = found.nested
    lines += ["", f"Nested    {metric} {one.score:.5f} ({one.low:.5f} – {one.high:.5f}) when chosen so on other folds"]
    lines += [f"Note      {note}" for note in found.notes]
    return "\n".join([*lines, f"Run       {found.command}"])


def _members(line: Line) -> str:
    sets = ", ".join(name if views == "none" else f"{name} ({views})" for name, views in line.members.items())
    return sets if line.precision == "fp32" else f"{sets} in {line.precision}"


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
