"""What the command lines of recipes share: errors as sentences, Ctrl-C that keeps finished work, options, smoke runs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from toolkit.cli import Explaining
from toolkit.competition import FILE, Competition


class Recipe(Explaining):
    """A recipe's command."""

    kept = "Finished folds are kept"


def common(workspace: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of every recipe: --workspace (with its default), --fold, --device, --fresh, --smoke."""
    options = (
        click.option(
            "--workspace",
            type=click.Path(path_type=Path),
            callback=lambda _context, _parameter, said: said or here(workspace),
            help=f"Where the competition is.  [default: the workspace around the current folder, else {workspace}]",
        ),
        click.option("--fold", "folds", type=click.IntRange(0), multiple=True, help="Only this fold; may be repeated."),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
        click.option("--fresh", is_flag=True, help="Train again what is finished."),
        click.option("--smoke", is_flag=True, help="Two batches of one fold, exported, then thrown away: does it run?"),
    )

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            body = option(body)
        return body

    return decorate


def here(otherwise: str) -> Path:
    """The workspace that holds the current folder; `otherwise` where there is none."""
    folder = Path.cwd()
    found = next((parent for parent in (folder, *folder.parents) if (parent / FILE).is_file()), None)
    return found or Path(otherwise)


@contextmanager
def results(competition: Competition, *, smoke: bool) -> Iterator[Path]:
    """The folder that takes runs/, folds/ and oof/: the workspace, or for a smoke run one that is removed afterwards."""
    if not smoke:
        yield competition.root
        return
    with tempfile.TemporaryDirectory(prefix="toolkit-smoke-") as folder:
        yield Path(folder)
