"""`toolkit soup`: the weights of several checkpoints of one fold, averaged."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.base.text.printing import INTERVAL, Part, Table, facts, interval
from toolkit.cli import options

if TYPE_CHECKING:
    from toolkit.training.soup import Soup
    from toolkit.workspace.competition import Competition


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True), metavar="CHECKPOINTS...")
@click.option(
    "--how", type=click.Choice(["greedy", "uniform"]), default="greedy", show_default=True, help="Which one to write."
)
@click.option(
    "--member", default="", help="Name of the member that is made; default the checkpoints' with -greedy or -uniform."
)
@click.option("--model", default="", help="Their network, where it is a function of your own: file.py:function.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where networks run.")
@click.option("--force", is_flag=True, help="Replace a soup that is there.")
@options.as_json
@options.workspace
def command(
    competition: Competition, checkpoints: tuple[Path, ...], how: str, member: str, model: str, device: str, *, force: bool
) -> options.Said:
    """Average the weights of several checkpoints of one fold, judged on its held-out rows before and after.

    CHECKPOINTS are .safetensors files of one network (other seeds, epochs or settings), or folders of them. The greedy soup
    takes in one after another as long as the held-out score does not fall, so its score is optimistic. BatchNorm's statistics
    are taken anew from training images of the fold.

    \b
    toolkit soup runs/a/fold0 runs/b/fold0 runs/c/fold0 --member soup
    """
    from toolkit.cli.progress import bar
    from toolkit.training import soup

    with bar("Tasting") as progress:
        paths = soup.find_checkpoints(checkpoints)
        choices = {"how": how, "member": member, "model": model, "device": device}
        cooked = soup.cook(competition, paths, **choices, force=force, progress=progress)
    return _record(cooked), _text(cooked, how, competition.metric)


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


def _text(done: Soup, how: str, metric: str) -> list[Part]:
    from toolkit.cli.summaries import shown
    from toolkit.core.lineage import optimistic

    rows = []
    for name, one in done.estimates.items():
        gain = ("", "") if name == done.best else (f"{one.gain:+.5f}", interval(one.gain_low, one.gain_high, sign="+"))
        rows.append((name, f"{one.score:.5f}", interval(one.low, one.high), *gain))
    scores = Table(("", metric, INTERVAL, f"gain over {done.best}", INTERVAL), rows, "lrrrr")
    said = [("Soup", f"{how}, of {len(done.ingredients)}: {', '.join(map(shown, done.ingredients))}")]
    if done.normalised:
        said.append(("BatchNorm", f"{done.normalised} layers with statistics of their own"))
    if done.card.selected_on_heldout:
        said.append(("Note", f"the score is optimistic: {optimistic(done.card.chosen)}"))
    if done.estimates[how].gain_low <= 0:
        said.append(("Note", f"it cannot be told from {done.best} on these rows"))
    return [scores, facts([*said, ("Wrote", shown(done.export)), ("Wrote", shown(done.checkpoint))])]
