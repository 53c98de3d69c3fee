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
    """Give a command whose body returns (plain values, text) a `--json`: it prints the values, or an error as values."""
    import json

    @click.option("--json", "machine", is_flag=True, help="Print one JSON object, also for errors.")
    @wraps(body)
    def wrapped(*args: Any, machine: bool, **kwargs: Any) -> None:
        try:
            record, text = body(*args, **kwargs)
        except ToolkitError as error:
            if not machine:
                raise
            problems = [problem.record for problem in getattr(error, "problems", ())]
            record = {"ok": False, "error": error.message, "hint": error.hint, "problems": problems}
            click.echo(json.dumps(record, ensure_ascii=False))
            raise click.exceptions.Exit(1) from error
        click.echo(json.dumps(record, ensure_ascii=False) if machine else text)

    return wrapped
