"""One self-contained HTML file from sections of tables, pictures and galleries; every name in it is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit import __version__
from toolkit.base import files
from toolkit.base.text.html import shown, table
from toolkit.errors import counted

if TYPE_CHECKING:
    import jinja2

THUMBNAIL = 96  # pixels of a thumbnail's longer side: about 3 KB as JPEG
HEAVIEST = 3600  # bytes of a thumbnail: what does not compress gets a lower quality
LIMIT_THUMBNAILS = 2500  # of a page: at most 12 MB, so that the page stays under 15 MB
MOST_ROWS = 1000  # of a table; the rest is in --json
_QUALITIES = (80, 65, 50, 35, 20)


@dataclass(frozen=True)
class PageTable:
    """Rows of plain values under column names; a `folded` one shows its caption until it is opened."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    folded: bool = False
    kind: Literal["table"] = "table"

    @property
    def html(self) -> str:
        """The table, escaped, at most MOST_ROWS long."""
        return table(self.columns, self.rows[:MOST_ROWS], caption="" if self.folded else self.title)

    @property
    def title(self) -> str:
        """The caption, and how much is shown where that is not all."""
        more = f"the first {MOST_ROWS:,} of {counted(len(self.rows), 'rows')}, the others are in --json"
        return self.caption if len(self.rows) <= MOST_ROWS else f"{self.caption}: {more}" if self.caption else more


@dataclass(frozen=True)
class Picture:
    """An inline SVG, with what it shows in words."""

    alt: str
    svg: str
    kind: Literal["picture"] = "picture"


@dataclass(frozen=True)
class Facts:
    """Figures that stand out: each a name, its value, and a few words or nothing."""

    items: Sequence[tuple[str, object, str]]
    kind: Literal["facts"] = "facts"

    @property
    def shown(self) -> list[tuple[str, str, str]]:
        """The same as text."""
        return [(name, shown(value), note) for name, value, note in self.items]


@dataclass(frozen=True)
class Thumbnail:
    """A small picture as data URI ("" where the file cannot be read), its description, and the lines under it."""

    uri: str
    alt: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gallery:
    """Thumbnails in a row that wraps."""

    items: Sequence[Thumbnail]
    caption: str = ""
    side: int = THUMBNAIL
    kind: Literal["gallery"] = "gallery"


@dataclass(frozen=True)
class Confusion:
    """Counts int64 (C, C), truth by prediction; `examples` are the thumbnails that a click on a cell shows."""

    classes: tuple[str, ...]
    counts: NDArray[np.int64]
    examples: Mapping[tuple[int, int], Sequence[Thumbnail]] = field(default_factory=dict)
    caption: str = ""
    kind: Literal["confusion"] = "confusion"

    @property
    def rows(self) -> list[tuple[str, int, list[dict[str, Any]]]]:
        """Per true class its name, size, and cells: count, share of the class, and the key of its examples."""
        totals = self.counts.sum(axis=1)
        return [
            (
                name,
                int(totals[i]),
                [
                    {
                        "count": int(count),
                        "share": float(count / totals[i]) if totals[i] else 0.0,
                        "key": f"{i}-{j}" if self.examples.get((i, j)) else "",
                        "right": i == j,
                        "predicted": self.classes[j],
                    }
                    for j, count in enumerate(self.counts[i])
                ],
            )
            for i, name in enumerate(self.classes)
        ]

    @property
    def drawers(self) -> list[tuple[str, str, Sequence[Thumbnail]]]:
        """(key, heading, thumbnails) of every cell that has examples."""
        return [
            (
                f"{i}-{j}",
                f"{self.classes[i]} taken for {self.classes[j]}" if i != j else f"{self.classes[i]}, right but least certain",
                items,
            )
            for (i, j), items in sorted(self.examples.items())
            if items
        ]


@dataclass(frozen=True)
class Points:
    """Sentences, as a list; the first words may say what to do."""

    sentences: Sequence[str]
    kind: Literal["points"] = "points"


Block = PageTable | Picture | Facts | Gallery | Confusion | Points


@dataclass(frozen=True)
class Section:
    """A heading, a sentence or two, and what is shown."""

    title: str
    blocks: Sequence[Block] = ()
    lead: str = ""


@dataclass(frozen=True)
class Page:
    """A page's title, the line under it, and its sections."""

    title: str
    subtitle: str
    sections: Sequence[Section]

    def html(self) -> str:
        """The whole file."""
        return _template().render(page=self, version=__version__)

    def write(self, path: Path) -> Path:
        """Write the file.

        Raises:
            StoreError: the folder cannot be written.
        """
        return files.write_text(path, self.html())


@cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("toolkit.analysis.pages").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(source)


def thumbnail(pixels: NDArray[np.uint8], alt: str, *lines: str, side: int = THUMBNAIL) -> Thumbnail:
    """RGB pixels (height, width, 3) as a small JPEG of at most HEAVIEST bytes (as many per area for another `side`)."""
    from PIL import Image

    small = Image.fromarray(pixels)
    small.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    limit = HEAVIEST * (side / THUMBNAIL) ** 2
    while True:
        for quality in _QUALITIES:
            data = io.BytesIO()
            small.save(data, "JPEG", quality=quality)
            if data.tell() <= limit:
                return Thumbnail(f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}", alt, lines)
        small = small.resize((max(1, small.width // 2), max(1, small.height // 2)))


def of_file(path: Path, alt: str, *lines: str) -> Thumbnail:
    """The thumbnail of an image file; one that cannot be read has no picture and says why."""
    from toolkit.errors import ImageError
    from toolkit.images import render

    try:
        return thumbnail(render.decode(render.read(path), str(path), implementation="pillow"), alt, *lines)
    except ImageError as error:
        return Thumbnail("", alt, (*lines, error.message.removeprefix(f"{path} ")))
