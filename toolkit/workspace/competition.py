"""The workspace and its competition.toml: what is predicted, from which files, scored how, written where."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.base.text import csv_text
from toolkit.core.metrics import METRICS, Metric
from toolkit.core.predictions import Predictions
from toolkit.core.targets import LONG_FORMS, split_pairs
from toolkit.core.targets import Target as Target  # noqa: PLC0414 - importers of Competition need it as well
from toolkit.core.targets import class_order as class_order  # noqa: PLC0414
from toolkit.errors import CompetitionError, counted, few
from toolkit.images.boxes import Boxes, Found, unknown
from toolkit.workspace import path_patterns, row_files
from toolkit.workspace.competition_toml import FILE as FILE  # noqa: PLC0414
from toolkit.workspace.competition_toml import SCHEMA, CompetitionFile
from toolkit.workspace.competition_toml import Images as Images  # noqa: PLC0414
from toolkit.workspace.row_files import RowFiles

if TYPE_CHECKING:
    import pandas as pd

Part = Literal["train", "test"]


@dataclass(frozen=True)
class Competition(CompetitionFile):
    """A workspace: its file, and the tables and images that the file names, each read when it is first asked for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric not in METRICS:
            raise CompetitionError(f"{FILE}: unknown metric {self.metric!r}", hint=f"Use one of: {', '.join(METRICS)}.")
        if not self.score.multilabel and (several := [t.name for t in self.targets if t.multilabel]):
            raise CompetitionError(
                f"{FILE}: metric {self.metric!r} is for one class per row, target {few(several)} is multilabel",
                hint=f"Use one of: {', '.join(name for name, metric in METRICS.items() if metric.multilabel)}.",
            )

    @property
    def score(self) -> Metric:
        """The metric itself."""
        return METRICS[self.metric]

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The training table, every cell as text; ids may repeat only where `per_id` says that a row has several images.

        Raises:
            CompetitionError: the table cannot be read or lacks the id column.
        """
        return self._table("train")

    def truth(self) -> dict[str, Predictions]:
        """The true labels per target, one row per id.

        Raises:
            CompetitionError: unknown labels, or images of one id that disagree.
        """
        frame = self.rows
        ids = list(frame[self.id])
        first = frame.drop_duplicates(self.id)
        where = self.train.table
        truth = {target.name: target.truth(first, first[self.id], where) for target in self.targets}
        if len(first) < len(frame):
            for target in self.targets:
                every = target.truth(frame, map(str, range(len(frame))), where)
                expected = truth[target.name].align(ids_once(ids)).decided[_places(ids)]
                if (clash := np.flatnonzero((every.decided != expected).reshape(len(ids), -1).any(axis=1))).size:
                    raise CompetitionError(
                        f"{where}: images of one id disagree on {target.name!r}: {few(ids[i] for i in clash)}"
                    )
        return truth

    def prior(self, target: Target) -> NDArray[np.float64]:
        """The share of each class among the training labels, float64 [C]: what is said of a row that nothing is known of.

        Raises:
            CompetitionError: see `truth`.
        """
        return self.truth()[target.name].with_classes(target.classes).class_shares

    @cached_property
    def boxes(self) -> Boxes:
        """The bounding boxes of all images, read when a model asks for them."""
        return Boxes(self._boxes)

    def _boxes(self, name: str) -> Found:
        """Every box of that name, by id and file of both parts."""
        if name not in self.boxes_of:
            raise unknown(name, list(self.boxes_of))
        parts: tuple[Part, ...] = ("train", "test")
        there = [part for part in parts if self.path(getattr(self, part).folder).is_dir()]
        return {key: box for part in there for key, box in self._boxes_in(name, part).items()}

    def _boxes_in(self, name: str, part: Part) -> Found:
        """One part's; rows of a table of its own are joined by id, those of the part's table are its images' own."""
        box_table = self.boxes_of[name]
        table, where = getattr(box_table, part), getattr(self, part)
        key = self.id if part == "train" else self.sample_id
        if table:
            key = key if key in csv_text.header(self.path(table), self.text_form) else self.id
            columns = [key, *box_table.columns]
            cells: Mapping[str, Sequence[str]] = csv_text.cells(self.path(table), columns, unique=key, form=self.text_form)
        else:
            table = where.table or (self.sample if part == "test" else "")
            cells = self._cells(part, list(dict.fromkeys([key, *path_patterns.columns(where.pattern), *box_table.columns])))
        if missing := [column for column in box_table.columns if column not in cells]:
            raise CompetitionError(
                f"{table} has no column {few(missing)} of [boxes.{name}]",
                hint=f'Name the table in {FILE}: {part} = "boxes.csv"',
            )
        rows = zip(cells[key], zip(*(cells[column] for column in box_table.columns), strict=True), strict=True)
        boxes = [box_table.box(four, f"{table}, {row_id!r}") for row_id, four in rows]
        if getattr(box_table, part):
            by_id = dict(zip(cells[key], boxes, strict=True))
            return {(row_id, file): by_id[row_id] for row_id, file in self.image_files(part) if row_id in by_id}
        numbered = {**cells, _ROW: list(map(str, range(len(boxes))))}  # ids may repeat where a row is an image
        files, _ = find_files(numbered, _ROW, self.path(where.folder), where.pattern, f"[{part}]")
        return {(cells[key][int(row)], file): boxes[int(row)] for row, file in files}

    def images(self, part: Part) -> list[tuple[str, Path]]:
        """(id, file) of every image of a part, in table order; files are not opened.

        Raises:
            CompetitionError: the folder is missing, a pattern names an unknown column, or not a single file is there.
        """
        return [(name, Path(file)) for name, file in self.image_files(part)]

    def image_files(self, part: Part) -> list[tuple[str, str]]:
        """As `images`, with files as text: a hundred thousand paths take half a second to make.

        Raises:
            CompetitionError: see `images`.
        """
        return self.found_images(part)[0]

    def found_images(self, part: Part) -> tuple[list[tuple[str, str]], list[str]]:
        """As `image_files`, and what is to be said of them: files called otherwise than rows name them, images of no row.

        Raises:
            CompetitionError: see `images`.
        """
        files, located = self._located(part)
        same = self.path(self.train.folder).resolve() == self.path(self.test.folder).resolve()
        notes = (located.note, "" if same else located.unused_note)
        return files, [f"{part} images: {note}" for note in notes if note]

    def _located(self, part: Part) -> tuple[list[tuple[str, str]], RowFiles]:
        where = self.train if part == "train" else self.test
        key = self.id if part == "train" else self.sample_id
        names = list(dict.fromkeys([key, *path_patterns.columns(where.pattern)]))
        table = self._cells(part, names)
        folder = self.path(where.folder)
        if not folder.is_dir():
            raise CompetitionError(f"the {part} images' folder {folder} does not exist", hint=f"Set [{part}] images in {FILE}.")
        files, located = find_files(table, key, folder, where.pattern, f"[{part}]")
        if files and not located.found:
            raise CompetitionError(
                f"none of the {counted(len(files), f'{part} images')} is there; the first would be {files[0][1]}",
                hint=f"Set [{part}] images and pattern in {FILE}.",
            )
        if len({name for name, _ in files}) < len(files) and not self.per_id:
            number = next((i for i, own in enumerate(located.files) if len(own) > 1), 0)
            both = f": {few(located.files[number])}" if len(located.files[number]) > 1 else ""
            raise CompetitionError(
                f"pattern {where.pattern!r} gives several images for one id{both}",
                hint=f'Take away what is not meant, or set per_id = "mean" in {FILE}.',
            )
        return files, located

    def _cells(self, part: Part, names: list[str]) -> Mapping[str, Sequence[str]]:
        """Some columns of a part's table, those of them that it has; where it is an ordinary one, without loading pandas."""
        table = self.test.table or self.sample if part == "test" else self.train.table
        if table == self.sample and self.format in LONG_FORMS:
            frame = self._table(part)
            return {str(name): list(frame[name]) for name in frame.columns}
        several = bool(self.per_id) and table != self.sample
        unique = "" if several else names[0]
        if set(names) <= set(csv_text.header(self.path(table), self.text_form)):
            return csv_text.cells(self.path(table), names, unique=unique, form=self.text_form)
        frame = csv_text.read(self.path(table), columns=names[:1], unique=unique, form=self.text_form)
        return {str(name): list(frame[name]) for name in frame.columns}

    def _table(self, part: Part) -> pd.DataFrame:
        table = self.test.table or self.sample if part == "test" else self.train.table
        several = bool(self.per_id) and table != self.sample
        key = self.sample_id if part == "test" else self.id
        if table == self.sample and self.format in LONG_FORMS:
            frame = csv_text.read(self.path(table), columns=[key], form=self.text_form)
            if self.format == "joined":
                frame = frame.assign(**{key: split_pairs(list(frame[key]), self.targets[0].classes)[0]})
            return frame.drop_duplicates(key, ignore_index=True)
        return csv_text.read(self.path(table), columns=[key], unique="" if several else key, form=self.text_form)

    def to_toml(self) -> str:
        """The file's text; reading it back gives an equal competition."""
        lines = [f"schema = {SCHEMA}", f"name = {_quote(self.name)}", f"metric = {_quote(self.metric)}"]
        lines += [f"alpha = {_quote(self.alpha)}"] if self.alpha != "drop" else []
        lines += [f"window = [{self.window[0]}, {self.window[1]}]"] if self.window else []
        lines += ["", "[columns]", f"id = {_quote(self.id)}"]
        lines += [f"{key} = {_quote(value)}" for key in _NAMED if (value := getattr(self, key))]
        for part, where in (("train", self.train), ("test", self.test)):
            lines += ["", f"[{part}]"] + ([f"table = {_quote(where.table)}"] if where.table else [])
            lines += [f"images = {_quote(where.folder)}", f"pattern = {_quote(where.pattern)}"]
            lines += [f"labels_fix = {_quote(self.labels_fix)}"] if self.labels_fix and part == "train" else []
        lines += ["", "[submission]", f"sample = {_quote(self.sample)}"]
        other = self.sample_id if self.sample_id != self.id else ""
        options = (("id", other), ("format", self.format), ("per_id", self.per_id), ("upload", self.upload))
        lines += [f"{key} = {_quote(value)}" for key, value in options if value]
        lines += [f"max_mb = {self.max_mb!r}"] if self.max_mb else []
        for name, box in self.boxes_of.items():
            lines += ["", f"[boxes.{name}]", f"columns = {_quote(list(box.columns))}"]
            plain = (("form", box.form), ("unit", box.unit), ("train", box.train), ("test", box.test))
            lines += [f"{key} = {_quote(value)}" for key, value in plain if value]
        for target in self.targets:
            lines += [
                "",
                f"[targets.{_quote(target.name)}]",
                f"task = {_quote(target.task)}",
                f"column = {_quote(target.column)}",
            ]
            if target.factors:
                factors = ", ".join(f"{_quote(k)} = {_quote(list(v))}" for k, v in target.factors.items())
                lines.append(f"factors = {{ {factors} }}")
            lines.append(f"classes = {_quote(list(target.classes))}")
            lines += [f"positive = {_quote(target.positive)}"] if target.task == "binary" else []
            lines += [f"separator = {_quote(target.separator)}"] if target.multilabel else []
        return "\n".join(lines) + "\n"

    @classmethod
    def find(cls, start: Path | None = None) -> Competition:
        """The workspace that holds `start` (default: the current folder), walking up as git does.

        Raises:
            CompetitionError: there is none up to the root.
        """
        here = (start or Path.cwd()).absolute()
        if not here.is_dir():
            raise CompetitionError(f"{here} does not exist")
        for folder in (here, *here.parents):
            if (folder / FILE).is_file():
                return cls.read(folder)
        raise CompetitionError(
            f"no {FILE} in {here} or any folder above it", hint="Run `toolkit init` in the competition's folder, or cd into it."
        )


def ids_once(ids: Iterable[str]) -> list[str]:
    """The ids in order of first appearance, each once."""
    return list(dict.fromkeys(ids))


def _places(ids: list[str]) -> Any:
    place = {name: i for i, name in enumerate(ids_once(ids))}
    return np.array([place[name] for name in ids], dtype=np.int64)


def find_files(
    table: Mapping[str, Sequence[str]], id_column: str, folder: Path, pattern: str, where: str
) -> tuple[list[tuple[str, str]], RowFiles]:
    """(id, file) of every image that a table's rows name, and how they were found; a row without names one that is not there.

    Raises:
        CompetitionError: the pattern names no column, or one that the table lacks; rows for which several files could be meant.
    """
    path_patterns.require(pattern, list(table), where)
    fill, inside = path_patterns.filler(pattern), os.path.join(folder, "")  # noqa: PTH118
    located = row_files.locate(
        folder, pattern, map(fill, zip(*(table[name] for name in path_patterns.columns(pattern)), strict=True))
    )
    if located.doubt:
        raise CompetitionError(
            f"{where}: {located.doubt}", hint=f"Take away what is not meant, or set {where} images and pattern."
        )
    pairs = [
        (name, file if file.startswith(os.sep) else inside + file)
        for name, files, named in zip(table[id_column], located.files, located.named, strict=True)
        for file in files or [named]
    ]
    return pairs, located


_NAMED = ("group", "extra", "encoding", "delimiter")  # the optional keys of [columns]
_ROW = "\0row"  # no column of a text file is called so


def _quote(value: Any) -> str:
    """A TOML basic string or array of them; JSON's escapes are TOML's, but for DEL, which JSON leaves bare."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
