"""Progress on stderr for a terminal: an estimate before long work, then a bar with rate and time left; else nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from toolkit.cli import terminal

LONG = 10.0  # seconds of work from which an estimate is worth a line
WIDE, NARROW = 80, 55  # cells of a line from which there is a bar, and a rate


@contextmanager
def bar(what: str, *, unit: str = "images") -> Iterator[Callable[[int, int], None]]:
    """A function to be called with (done, in all) of some unit; draws nothing where stderr is no terminal."""
    if not terminal.interactive(sys.stderr) or terminal.dumb():
        yield lambda _done, _total: None
        return
    from rich.progress import Progress

    console = terminal.console(sys.stderr)
    started = time.monotonic()
    told, first, before = False, 0.0, 0
    with Progress(*_columns(unit, console.width), console=console, transient=True) as progress:
        task = progress.add_task(what, total=None, rate=0.0)

        def report(done: int, total: int) -> None:
            nonlocal told, first, before
            now = time.monotonic()
            if not first:  # the first call includes loading the models, which says nothing about the rate
                first, before = now, done
            rate = (done - before) / max(now - first, 1e-9)
            progress.update(task, completed=done, total=total, rate=rate)
            if not told and rate and now - started > 1:
                told = True
                if (total - done) / rate > LONG:
                    console.print(f"{what}: about {_span((total - done) / rate)} for {total:,} {unit} at {rate:,.0f} {unit}/s")

        yield report


def _columns(unit: str, cells: int) -> Iterator[Any]:
    """What is shown of the work, as far as a line of so many cells has room for it without cutting numbers."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    yield TextColumn("{task.description}", markup=False)
    if cells >= WIDE:
        yield BarColumn()
    yield MofNCompleteColumn()
    if cells >= NARROW:
        yield TextColumn("{task.fields[rate]:,.0f} " + f"{unit}/s")
    yield TimeRemainingColumn()


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
