"""Search a recipe's flags with Optuna: trials survive a kill, bad ones are pruned, the last line retrains the best.

python recipes/tune.py space.toml                           40 trials in the workspace around the current folder
python recipes/tune.py space.toml --trials 80               the same command goes on; 80 in all
python recipes/tune.py space.toml --minutes 60 --study b    another study, as long as it takes

space.toml:

    recipe = "digits"             # of this folder or the workspace's recipes/, or a path
    folds = [0, 1]                # that trials are judged on; all if left out

    [search]
    lr = { low = 1e-4, high = 1e-2, log = true }
    batch-size = { choices = [32, 64, 128] }

    [fixed]
    epochs = 12

Writes tuning/<study>/: study.db (any Optuna tool reads it), trials.csv, importance.png, and each trial's runs without weights.
The best of many trials owes part of its score to luck on the rows that chose it: retrain it, and compare on a new split.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from toolkit import Competition, ToolkitError
from toolkit.cli.recipes import INTERRUPTED, Recipe, recipe_path
from toolkit.training import search


def load(name: str, workspace: Path) -> tuple[Path, ModuleType]:
    """A recipe by path, by its name in the workspace's recipes/, or by that of one that came with the toolkit."""
    places = (Path(name), workspace / "recipes" / f"{name}.py")
    path = next((place for place in places if place.is_file()), None) or recipe_path(name)
    spec = importlib.util.spec_from_file_location(f"tuned_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return path, module


def fold_score(
    recipe: ModuleType, inside: Competition, device: str, member: str, flags: Mapping[str, Any], fold: int, watch: Any
) -> float:
    """Train one fold of one trial with the recipe's own command, which goes on where a killed one stopped; its score."""
    about = inside.path("runs", member, f"fold{fold}", "config.json")
    if not about.exists():
        arguments = ["--workspace", str(inside.root), "--member", member, "--fold", str(fold), "--device", device]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                code = recipe.main.main([*arguments, *search.words(flags)], "trial", obj=watch, standalone_mode=False)
        except click.ClickException as error:
            raise (error.__cause__ if isinstance(error.__cause__, ToolkitError) else error) from None
        if code == INTERRUPTED:
            raise KeyboardInterrupt
    return float(json.loads(about.read_text(encoding="utf-8"))["score"])


@click.command(cls=Recipe)
@click.argument("space", type=click.Path(path_type=Path), metavar="SPACE.toml")
@click.option("--workspace", type=click.Path(path_type=Path), help="[default: the one around the current folder]")
@click.option("--trials", type=click.IntRange(1), default=40, show_default=True, help="Complete and pruned ones, in all.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Begin no trial after this time.")
@click.option("--study", "name", default="study", show_default=True, help="Where to begin or go on: tuning/NAME.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the search, not of the trials.")
def main(space: Path, workspace: Path | None, trials: int, minutes: float | None, name: str, device: str, seed: int) -> None:
    """Search a recipe's flags, then print the command that trains the best of them on all folds."""
    competition = Competition.read(workspace) if workspace else Competition.find()
    asked = search.Space.read(space)
    path, recipe = load(asked.recipe, competition.root)
    flags = {option.removeprefix("--"): param for param in recipe.main.params for option in param.opts}
    mine = {"workspace", "fold", "member", "device", "fresh", "smoke", "gpus", "processes", "spread"}
    asked.require(sorted(set(flags) - mine))
    epochs = flags["epochs"].default if "epochs" in flags else 0
    folder, end = competition.path("tuning", name), time.monotonic() + 60 * (minutes or float("inf"))
    with search.alone(folder):
        inside, split = search.scratch(competition, folder)
        asked = replace(asked, folds=asked.folds or tuple(range(split.count)))
        study = search.open_study(folder, name, seed=seed)
        train_fold = partial(fold_score, recipe, inside, device)
        while search.finished(study) < trials and time.monotonic() < end:
            click.echo(search.run_trial(study, asked, train_fold, inside, epochs))
        importance = search.report(study, competition, folder)
    number, score, best = search.best(study, asked, competition)
    luck = "optimistic: these rows chose it among many" if search.finished(study) > 1 else "the only one"
    click.echo(f"best: trial {number}  {competition.metric} {score:.4f}  ({luck}; trials.csv, importance.png: {folder})")
    if importance:
        click.echo("importance: " + ", ".join(f"{flag} {share:.2f}" for flag, share in importance.items()))
    click.echo("Train it on all folds:")
    words = ["python", str(path), "--workspace", str(competition.root), "--member", f"{name}-best", *search.words(best)]
    click.echo(f"  {shlex.join(words)}")


if __name__ == "__main__":
    main()
