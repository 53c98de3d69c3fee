"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from toolkit.errors import ToolkitError


def workspace(body: Callable[..., Any]) -> Callable[..., Any]:
    """Pass the competition of the current workspace (or of --workspace) as the first argument."""

    @click.pass_context
    @wraps(body)
    def wrapped(ctx: click.Context, *args: Any, **kwargs: Any) -> Any:
        from toolkit.competition import Competition

        return ctx.invoke(body, Competition.find(ctx.obj), *args, **kwargs)

    return wrapped


def as_json(body: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command a `--json`: its body returns (plain values, text), or yields several, each shown when it is there.

    With `--json` the values are printed as one object at the end; an error joins what was done before it.
    """
    import json

    @click.option("--json", "machine", is_flag=True, help="Print one JSON object, also for errors.")
    @wraps(body)
    def wrapped(*args: Any, machine: bool, **kwargs: Any) -> None:
        whole: dict[str, Any] = {}
        try:
            found = body(*args, **kwargs)
            for record, text in [found] if isinstance(found, tuple) else found:
                whole |= record
                if not machine:
                    click.echo(text)
        except ToolkitError as error:
            if not machine:
                raise
            problems = whole.get("problems", []) + [problem.record for problem in getattr(error, "problems", ())]
            whole |= {"ok": False, "error": error.message, "hint": error.hint, "problems": problems}
        if machine:
            click.echo(json.dumps(whole, ensure_ascii=False))
        if "error" in whole:
            raise click.exceptions.Exit(1)

    return wrapped
