"""Bounding boxes: which part of each picture a model looks at, told by tables, for training and test images alike."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any, NamedTuple

from toolkit.errors import CompetitionError, ImageError, counted, few

# what the four columns of a table say, in order
FORMS = {
    "corners": ("left", "top", "right", "bottom"),
    "size": ("left", "top", "width", "height"),
    "centre": ("centre x", "centre y", "width", "height"),
}
UNITS = ("pixels", "share")  # of the upright image, or shares of its width and height


class Box(NamedTuple):
    """A rectangle of an upright image: edges in pixels, or in shares of its width and height; (0, 0) is the top left corner."""

    left: float
    top: float
    right: float
    bottom: float
    share: bool = False


Key = tuple[str, str]  # id, file
Found = Mapping[Key, Box | None]  # None: the whole image
Plain = tuple[tuple[str, tuple[tuple[str, str, Any], ...]], ...]


@dataclass(frozen=True)
class BoxTable:
    """`[boxes.NAME]` of competition.toml: four columns, what they say, and in which table they stand.

    `train` and `test` are tables of an id and a box per row; without one, the columns are those of the part's own table.
    """

    columns: tuple[str, ...]
    form: str = "corners"
    unit: str = "pixels"
    train: str = ""
    test: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(map(str, self.columns)))
        if len(self.columns) != 4 or len(set(self.columns)) != 4:
            raise CompetitionError(f"a box has four columns, as in {list(FORMS['corners'])}, not {list(self.columns)}")
        if self.form not in FORMS or self.unit not in UNITS:
            raise CompetitionError(
                f"unknown form {self.form!r} or unit {self.unit!r} of boxes",
                hint=f"form is one of {', '.join(FORMS)}; unit is one of {', '.join(UNITS)}.",
            )

    def box(self, cells: Sequence[str], where: str) -> Box | None:
        """The box that four cells say; None, the whole image, where all are empty.

        Raises:
            CompetitionError: cells that are no numbers, or say a box without any area.
        """
        if not any(cell.strip() for cell in cells):
            return None
        try:
            first, second, third, fourth = (float(cell) for cell in cells)
        except ValueError as error:
            raise CompetitionError(
                f"{where}: {list(cells)} is no box", hint="Four numbers, or four empty cells for the whole image."
            ) from error
        if self.form == "centre":
            first, second = first - third / 2, second - fourth / 2
        right, bottom = (third, fourth) if self.form == "corners" else (first + third, second + fourth)
        box = Box(first, second, right, bottom, self.unit == "share")
        if not all(map(isfinite, box)) or box.left >= box.right or box.top >= box.bottom:
            shown = ", ".join(f"{name} {cell}" for name, cell in zip(FORMS[self.form], cells, strict=True))
            raise CompetitionError(f"{where}: {shown} has no area", hint=f"The form is {self.form!r}: is that so?")
        return box


def likely(columns: Sequence[str]) -> BoxTable | None:
    """The box that four columns seem to say by their names, as xmin, ymin, xmax, ymax or bbox_x, bbox_y, bbox_w, bbox_h."""
    plain = {_AROUND.sub("", name.casefold()).replace("_", "").replace(" ", ""): name for name in columns}
    for form, names in _USUAL:
        if set(names) <= set(plain):
            return BoxTable(tuple(plain[name] for name in names), form)
    return None


_AROUND = re.compile(r"^(bbox|bb|box|roi)[_ .]?|[_ .]?(bbox|box|px)$")
_USUAL = (
    ("corners", ("xmin", "ymin", "xmax", "ymax")),
    ("corners", ("x1", "y1", "x2", "y2")),
    ("corners", ("x0", "y0", "x1", "y1")),
    ("corners", ("left", "top", "right", "bottom")),
    ("corners", ("minx", "miny", "maxx", "maxy")),
    ("size", ("x", "y", "w", "h")),
    ("size", ("x", "y", "width", "height")),
    ("size", ("left", "top", "width", "height")),
    ("size", ("xmin", "ymin", "width", "height")),
    ("centre", ("cx", "cy", "w", "h")),
    ("centre", ("xcenter", "ycenter", "width", "height")),
)


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of all pictures, by name, id and file; a table is read when its name is first asked for.

    `read` gives every row of one name, or raises CompetitionError where there is no such name.
    """

    read: Callable[[str], Found]

    @cached_property
    def _tables(self) -> dict[str, Found]:
        return {}

    @cached_property
    def _files(self) -> dict[str, dict[str, set[Box | None]]]:
        return {}

    def of(self, name: str, key: str, file: str | os.PathLike[str]) -> Box | None:
        """The box of that name of an image; None, the whole image, where the name is "" or the table leaves it open.

        A file under an id that no table has (of a folder, say) is given the box that the file has under its own.

        Raises:
            CompetitionError: no boxes of that name, or a table of them that cannot be read.
            ImageError: no row says anything of the image.
        """
        if not name:
            return None
        table = self._table(name)
        place = (key, os.fspath(file))
        if place in table:
            return table[place]
        if name not in self._files:
            by_file: dict[str, set[Box | None]] = {}
            for (_, other), box in table.items():
                by_file.setdefault(_place(other), set()).add(box)
            self._files[name] = by_file
        boxes = self._files[name].get(_place(file), set())
        if len(boxes) != 1:
            several = f"{counted(len(boxes), 'boxes')} {name!r}, none of them for {key!r}" if boxes else f"no box {name!r}"
            raise ImageError(
                f"{file} has {several}", hint=f"Add a row to the table of [boxes.{name}]; empty cells mean the whole image."
            )
        return next(iter(boxes))

    def key(self, content: bytes, names: Sequence[str], key: str, file: str | os.PathLike[str]) -> bytes:
        """Sixteen bytes that name an image as models of these boxes see it; its content's digest where there are none.

        Raises:
            CompetitionError, ImageError: see `of`.
        """
        used = [name for name in names if name]
        if not used:
            return content
        shown = repr([(name, self.of(name, key, file)) for name in sorted(used)])
        return hashlib.blake2b(content + shown.encode(), digest_size=16).digest()

    def digest(self, name: str, ids: Collection[str]) -> str:
        """Sixteen hex digits that change whenever a box of that name of one of these ids does.

        Raises:
            CompetitionError: see `of`.
        """
        rows = sorted((key, repr(box)) for (key, _), box in self._table(name).items() if key in ids)
        return hashlib.blake2b(repr(rows).encode(), digest_size=8).hexdigest()

    def plain(self, names: Sequence[str], items: Sequence[Key]) -> Plain:
        """What is known of these images as plain values, for another process."""

        def known(name: str) -> tuple[tuple[str, str, Any], ...]:
            rows = []
            for key, file in items:
                try:
                    rows.append((key, file, self.of(name, key, file)))
                except ImageError:
                    continue  # said again, and collected, where the image is asked for
            return tuple(rows)

        return tuple((name, known(name)) for name in sorted(set(names) - {""}))

    @classmethod
    def of_plain(cls, told: Plain) -> Boxes:
        """The boxes that `plain` told."""
        tables = {name: {(key, file): box and Box(*box) for key, file, box in rows} for name, rows in told}
        return cls(lambda name: tables[name] if name in tables else _none(name))

    def _table(self, name: str) -> Found:
        if name not in self._tables:
            self._tables[name] = self.read(name)
        return self._tables[name]


def _place(file: str | os.PathLike[str]) -> str:
    return os.path.abspath(file)  # noqa: PTH100 - links are not followed: a name is a name


def unknown(name: str, known: Sequence[str]) -> CompetitionError:
    """The error for a name that is not among those known."""
    there = f"only {few(known)}" if known else "no boxes at all"
    return CompetitionError(
        f"there are no boxes {name!r}: competition.toml has {there}",
        hint=f'Add [boxes.{name}] with columns = ["left", "top", "right", "bottom"].',
    )


def _none(name: str) -> Found:
    raise unknown(name, ())


NO_BOXES = Boxes(_none)
