"""`toolkit soup`: the weights of several checkpoints of one fold, averaged."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.competition import Competition
    from toolkit.soups import Soup


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True), metavar="CHECKPOINTS...")
@click.option(
    "--how", type=click.Choice(["greedy", "uniform"]), default="greedy", show_default=True, help="Which one to write."
)
@click.option(
    "--member", default="", help="Name of the member that is made; default the checkpoints' with -greedy or -uniform."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where networks run.")
@click.option("--force", is_flag=True, help="Replace a soup that is there.")
@options.as_json
@options.workspace
def command(competition: Competition, checkpoints: tuple[Path, ...], **choices: Any) -> tuple[dict[str, Any], str]:
    """Average the weights of several checkpoints of one fold, judged on its held-out rows before and after.

    CHECKPOINTS are .safetensors files of one network (other seeds, epochs or settings), or folders of them. The greedy soup
    takes in one after another as long as the held-out score does not fall, so its score is optimistic. BatchNorm's statistics
    are taken anew from training images of the fold.

    \b
    toolkit soup runs/a/fold0 runs/b/fold0 runs/c/fold0 --member soup
    """
    from toolkit import soups
    from toolkit.cli.progress import bar

    with bar("Tasting") as progress:
        done = soups.cook(competition, soups.find_checkpoints(checkpoints), progress=progress, **choices)
    return _record(done), _text(done, choices["how"], competition.metric)


def _record(done: Soup) -> dict[str, Any]:
    return {
        "member": done.card.member,
        "fold": done.card.fold,
        "ingredients": [path.as_posix() for path in done.ingredients],
        "estimates": {name: asdict(one) for name, one in done.estimates.items()},
        "best": done.best,
        "selected_on_heldout": done.card.selected_on_heldout,
        "export": done.export.as_posix(),
        "checkpoint": done.checkpoint.as_posix(),
    }


def _text(done: Soup, how: str, metric: str) -> str:
    from toolkit.cli.summaries import shown

    width = max(map(len, done.estimates))
    lines = [f"{'':{width}}  {metric:>9}  {'95 % interval':^21}  gain over {done.best}"]
    for name, one in done.estimates.items():
        gain = "" if name == done.best else f"{one.gain:+.5f}  ({one.gain_low:+.5f} to {one.gain_high:+.5f})"
        lines.append(f"{name:{width}}  {one.score:>9.5f}  {one.low:>9.5f} – {one.high:>9.5f}  {gain}")
    one = done.estimates[how]
    lines.append(f"Soup      {how}, of {len(done.ingredients)}: {', '.join(map(shown, done.ingredients))}")
    if done.normalised:
        lines.append(f"BatchNorm {done.normalised} layers with statistics of their own")
    if done.card.selected_on_heldout:
        lines.append("Note      the rows that it is scored on also chose what is in it: the score is optimistic")
    if one.gain_low <= 0:
        lines.append(f"Note      it cannot be told from {done.best} on these rows")
    return "\n".join([*lines, f"Wrote     {shown(done.export)}", f"Wrote     {shown(done.checkpoint)}"])
