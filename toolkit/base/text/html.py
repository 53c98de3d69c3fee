"""HTML tables of plain values, for pages and notebooks; every cell is text and escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from numbers import Integral, Real

_NUMBER = ' class="number" style="text-align:right"'  # the style for notebooks, which have no sheet of ours


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> str:
    """A table with a header row (none where no column has a name); numbers stand right, a row's first cell is its heading."""
    every = [list(row) for row in rows]
    numeric = {i for row in every for i, value in enumerate(row) if i and _number(value)}
    head = "".join(
        f'<th scope="col"{_NUMBER if i in numeric else ""}>{escape(str(name))}</th>' for i, name in enumerate(columns)
    )
    written = zip(*(column(values) for values in zip(*every, strict=True)), strict=True)
    body = "".join(
        f"<tr>{''.join(_cell(text, value, first=not i) for i, (text, value) in enumerate(zip(texts, row, strict=True)))}</tr>"
        for texts, row in zip(written, every, strict=True)
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    heads = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    return f"<table>{title}{heads}<tbody>{body}</tbody></table>"


def column(values: Sequence[object]) -> list[str]:
    """The cells of one column as people read them; broken numbers get one number of decimals, so that they can be compared.

    Four at most, fewer where numbers are large; where one would vanish, each is `shown` for itself.
    """
    texts = [shown(value) for value in values]
    broken = [i for i, value in enumerate(values) if _number(value) and not isinstance(value, Integral) and texts[i]]
    sizes = [abs(float(values[i])) for i in broken]  # type: ignore[arg-type]
    places = min(_decimals(max(sizes, default=0.0)), max((len(texts[i].partition(".")[2]) for i in broken), default=0))
    if any("e" in texts[i] or 0 < size < 0.5 * 10**-places for i, size in zip(broken, sizes, strict=True)):
        return texts
    for i in broken:
        texts[i] = f"{float(values[i]):,.{places}f}"  # type: ignore[arg-type]
    return texts


def shown(value: object) -> str:
    """A value as people read it: thousands separated, about four significant digits, nothing for None and NaN."""
    if value is None or value != value:  # noqa: PLR0124 - NaN is the only value unlike itself
        return ""
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        if number == int(number) and abs(number) < 1e15:
            return f"{int(number):,}"
        return f"{number:.4g}" if abs(number) < 1 else f"{number:,.{_decimals(abs(number))}f}"
    return str(value)


def _decimals(size: float) -> int:
    """How many decimals a number of this size deserves."""
    return 4 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0


def _cell(text: str, value: object, *, first: bool) -> str:
    if first:
        return f'<th scope="row">{escape(text)}</th>'
    return f"<td{_NUMBER if _number(value) else ''}>{escape(text)}</td>"


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
