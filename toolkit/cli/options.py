"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click


def workspace(body: Callable[..., Any]) -> Callable[..., Any]:
    """Pass the competition of the current workspace (or of --workspace) as the first argument."""

    @click.pass_context
    @wraps(body)
    def wrapped(ctx: click.Context, *args: Any, **kwargs: Any) -> Any:
        from toolkit.competition import Competition

        return ctx.invoke(body, Competition.find(ctx.obj), *args, **kwargs)

    return wrapped
