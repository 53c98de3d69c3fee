"""HTML tables of plain values, for pages and notebooks; every cell is text and escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from numbers import Real

_NUMBER = ' class="number" style="text-align:right"'  # the style for notebooks, which have no sheet of ours


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> str:
    """A table with a header row; numbers stand right, the first cell of a row is its heading."""
    every = [list(row) for row in rows]
    numeric = {i for row in every for i, value in enumerate(row) if i and _number(value)}
    head = "".join(
        f'<th scope="col"{_NUMBER if i in numeric else ""}>{escape(str(name))}</th>' for i, name in enumerate(columns)
    )
    body = "".join(f"<tr>{''.join(_cell(value, first=not i) for i, value in enumerate(row))}</tr>" for row in every)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def shown(value: object) -> str:
    """A value as people read it: thousands separated, four significant digits, nothing for None and NaN."""
    if value is None or value != value:  # noqa: PLR0124 - NaN is the only value unlike itself
        return ""
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        if number == int(number) and abs(number) < 1e15:
            return f"{int(number):,}"
        return f"{number:.4g}" if abs(number) < 1 else f"{number:,.4f}".rstrip("0")
    return str(value)


def _cell(value: object, *, first: bool) -> str:
    text = escape(shown(value))
    if first:
        return f'<th scope="row">{text}</th>'
    return f"<td{_NUMBER if _number(value) else ''}>{text}</td>"


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
