"""What the Tab key offers besides commands, options and choices: files, views, and names that a workspace holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from toolkit.base.text.printing import safe
from toolkit.images.views import VIEW_SETS

Words = Callable[[click.Context], Iterable[str]]
Found = Callable[[click.Context, click.Parameter, str], list[Any]]


def offer(words: Words | Iterable[str] = (), *, files: bool = False, several: bool = False) -> Found:
    """For `shell_complete`: words that begin so, then files; of `several` words with commas between them the last."""

    def found(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",") if several else ("", "", incomplete)
        known = words(ctx) if callable(words) else words
        items = [CompletionItem(before + comma + word) for word in known if word.startswith(last)]
        return items + ([CompletionItem(incomplete, type="file")] if files else [])

    return found


def there(folder: str, suffix: str = "") -> Words:
    """The names of what lies in a folder of the workspace; none outside of one."""

    def found(ctx: click.Context) -> list[str]:
        from toolkit.workspace.competition import FILE

        said = ctx.find_root().params.get("workspace")
        start = Path(said) if said else Path.cwd()
        root = next((one for one in (start, *start.resolve().parents) if (one / FILE).is_file()), None)
        names = sorted(path.name.removesuffix(suffix) for path in root.glob(f"{folder}/*{suffix}")) if root else []
        return [name for name in names if safe(name) == name]

    return found


VIEWS = offer(VIEW_SETS)
FILES = offer(files=True)
RUNS, PREDICTIONS = offer(there("runs"), files=True), offer(there("predictions", ".parquet"))
MEMBERS, SUBMISSIONS = offer(there("oof", ".parquet"), several=True), offer(there("submissions", ".csv"))
