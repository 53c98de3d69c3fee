"""Where results meet people: tables fitted to the terminal, plain lines in a pipe, colours only where they are wanted."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from typing import IO, TYPE_CHECKING

import click

from toolkit.base.text.printing import GAP, Part, Table, Verbatim, facts, lines, safe, width

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_WORDS = 14  # cells that a column of words keeps; where there are fewer, rows become blocks
_BENEATH = 3  # tables that the columns of one may need, and rows that it must have, not to become blocks
_TONES = {"good": "green", "odd": "yellow", "bad": "red", "": ""}
_TRAILING = re.compile(r"(?: |\x1b\[[\d;]*m)+$", re.MULTILINE)
_ENDLESS = 1 << 20  # cells; where nothing is folded


def coloured(stream: IO[str]) -> bool:
    """Whether colours and bold print may go there.

    NO_COLOR (https://no-color.org) wins over FORCE_COLOR (https://force-color.org) and CLICOLOR_FORCE, these over what the
    stream is; a dumb terminal and CLICOLOR=0 (https://bixense.com/clicolors) have none.
    """
    said = os.environ.get
    if said("NO_COLOR"):
        return False
    if said("FORCE_COLOR") or said("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    return interactive(stream) and not dumb() and said("CLICOLOR") != "0"


def interactive(stream: IO[str]) -> bool:
    """Whether a person sees it: the stream is a terminal."""
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def dumb() -> bool:
    """Whether the terminal says that it understands no control codes."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def room(stream: IO[str]) -> int | None:
    """How many cells a line of the terminal has (COLUMNS overrides it); None where nobody looks and nothing is folded."""
    if not interactive(stream):
        return None
    if (said := os.environ.get("COLUMNS", "")).isdecimal() and int(said):
        return int(said)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def console(stream: IO[str], file: IO[str] | None = None) -> Console:
    """Rich's console with our rules: no markup, nothing highlighted, and colours only where `coloured` says so."""
    from rich.console import Console

    return Console(
        file=file or stream,
        width=room(stream) or _ENDLESS,
        color_system="standard" if coloured(stream) else None,
        force_terminal=True,
        markup=False,
        highlight=False,
        emoji=False,
    )


def show(*parts: Part, err: bool = False) -> None:
    """Print parts: fitted to the terminal with what marks them, plain where the stream is none."""
    stream = sys.stderr if err else sys.stdout
    cells, colours = room(stream), coloured(stream)
    plain = [line for part in parts for line in lines(part)]
    styled = colours and not all(type(part) is str for part in parts)
    tables = cells is not None and any(isinstance(part, Table) for part in parts)
    if styled or tables or (cells and any(width(line) > cells for line in plain)):
        click.echo(_drawn(parts, stream), nl=False, err=err, color=True)
    elif plain:
        click.echo("\n".join(plain), err=err)


def _drawn(parts: Sequence[Part], stream: IO[str]) -> str:
    text = StringIO()
    drawing = _Drawing(console(stream, text))
    for part in parts:
        drawing.add(part)
    return _TRAILING.sub(lambda end: end[0].replace(" ", ""), text.getvalue())


class _Drawing:
    """Parts as rich draws them; nothing is ever cut off, whatever the width."""

    def __init__(self, to: Console) -> None:
        self.to = to
        self.folds = to.width < _ENDLESS
        self.before: Part = ""

    def add(self, part: Part) -> None:
        """Draw one part; tables with a head stand by themselves."""
        alone = [one for one in (self.before, part) if isinstance(one, Table) and one.head]
        if alone and self.before != "" and self.folds:
            self.to.print()
        self.before = part
        if isinstance(part, str):
            self._line(part)
            return
        if part.caption:
            self._line(part.caption, "bold")
        if not part.head:
            self._facts(part)
            return
        if not fit(part, self.to.width):
            part = self._said_once(part)
        several = [(one, fit(one, self.to.width)) for one in _beneath(part, self.to.width)]
        for place, (one, widths) in enumerate(several):
            self.to.print(end="\n" * (place > 0))
            if widths:
                self._table(one, widths)
            else:
                self._blocks(one)

    def _line(self, line: str, style: str = "") -> None:
        """A line, folded between words under its own indent."""
        indent = len(line) - len(line.lstrip(" "))
        self._hang(_text(""), _text(line, style)[indent:], indent, whole=isinstance(line, Verbatim))

    def _facts(self, table: Table, indent: int = 0) -> None:
        """Words, and beside them what there is to say; below them where there is no room beside."""
        starts = [indent + sum(table.lengths[:i]) + GAP * i for i in range(len(table.kinds))]
        for *words, said in table.rows:
            lead, start = _text(""), starts[-1]
            for at, word in zip(starts, words, strict=False):
                lead = _beside(lead, at, _text(word, "bold" * (at == indent)))
            if start > self.to.width - _WORDS:
                self._hang(_text(""), lead, indent)
                lead, start = _text(""), indent + GAP
            self._hang(lead, _text(said), start, whole=isinstance(said, Verbatim))

    def _said_once(self, table: Table) -> Table:
        """The table without the columns that say the same in every row, which stand before it."""
        columns = list(zip(*table.rows, strict=True))
        same = {i for i, column in enumerate(columns) if i and len(column) > 1 and len(set(column)) == 1}
        same -= {i for i in same if table.kinds[i] == "r" and columns[i][0]}  # that numbers agree is not all there is to them
        self._facts(facts([(table.head[i], columns[i][0]) for i in sorted(same) if columns[i][0]]))
        return _columns(table, [i for i in range(len(table.kinds)) if i not in same])

    def _hang(self, lead: Text, body: Text, indent: int, *, whole: bool = False) -> None:
        """`body` in as many lines as it takes, all from the same cell on, the first beside `lead`."""
        space = max(self.to.width - indent, 1)
        folded = [body] if whole or body.cell_len <= space else body.wrap(self.to, space, overflow="fold")
        for line in folded:
            self.to.print(_beside(lead, indent, line), soft_wrap=True)
            lead = _text("")

    def _table(self, table: Table, widths: Sequence[int]) -> None:
        from rich import box
        from rich.table import Table as Drawn

        rule = box.SIMPLE_HEAD if self.folds else None
        gap = GAP - 1 if rule else GAP  # the rule brings a cell between columns
        drawn = Drawn(box=rule, show_edge=False, pad_edge=False, padding=(0, gap, 0, 0))
        drawn.header_style, drawn.border_style = "bold", "dim"
        for head, kind, cells in zip(table.head, table.kinds, widths, strict=True):
            drawn.add_column(_text(head), width=cells, justify="right" if kind == "r" else "left", overflow="fold")
        for row in table.rows:
            drawn.add_row(*map(_text, row))
        self.to.print(drawn)

    def _blocks(self, table: Table) -> None:
        """A block for each row: its first cell and what has no head, and the others below beside their heads."""
        for place, (title, *rest) in enumerate(table.rows):
            self.to.print(end="\n" * (place > 0))
            said = [(head, cell) for head, cell in zip(table.head[1:], rest, strict=True) if cell]
            first = _text(title, "bold")
            for mark in [cell for head, cell in said if not head]:
                first = _beside(first, first.cell_len + GAP, _text(mark))
            self._hang(_text(""), first, 0)
            self._facts(facts([(head, cell) for head, cell in said if head]), indent=GAP)


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(safe(text), style=_TONES[getattr(text, "tone", "")] or style, end="")


def _beside(lead: Text, indent: int, line: Text) -> Text:
    from rich.text import Text

    return Text.assemble(lead, " " * (indent - lead.cell_len), line, end="")


def _columns(table: Table, places: Sequence[int]) -> Table:
    rows = [[row[i] for i in places] for row in table.rows]
    return replace(table, head=[table.head[i] for i in places], rows=rows, kinds="".join(table.kinds[i] for i in places))


def _beneath(table: Table, cells: int) -> list[Table]:
    """The table, or its columns in several tables one beneath the other, each with the first; one where that is no help."""
    groups: list[list[int]] = [[]]
    for place in range(1, len(table.kinds)):
        if not fit(_columns(table, [0, *groups[-1], place]), cells):
            groups.append([])
        groups[-1].append(place)
    several = [_columns(table, [0, *one]) for one in groups]
    helps = len(groups) <= _BENEATH <= len(table.rows) and all(fit(one, cells) for one in several)
    return several if helps else [table]


def fit(table: Table, cells: int) -> list[int] | None:
    """The widths of columns in a terminal of so many cells, or None where names and numbers would have to be cut.

    Heads are folded between words, columns of words down to a few cells; what is left goes to those that lack least.
    """
    whole = table.lengths
    least = []
    for place, (head, kind) in enumerate(zip(table.head, table.kinds, strict=True)):
        body = max((width(row[place]) for row in table.rows), default=0)
        least.append(max([min(body, _WORDS) if kind == "p" else body, *map(width, head.split())]))
    least[0] = max(least[0], table.key)
    spare = cells - GAP * (len(whole) - 1) - sum(least)
    if spare < 0:
        return None
    widths = list(least)
    lacking = sorted(range(len(whole)), key=lambda place: whole[place] - least[place])
    for left, place in zip(range(len(whole), 0, -1), lacking, strict=True):
        more = min(whole[place] - least[place], spare // left)
        widths[place], spare = least[place] + more, spare - more
    return widths
