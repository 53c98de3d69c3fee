"""The workspace and its competition.toml: what is predicted, from which files, scored how, written where."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from toolkit.base import csv_text
from toolkit.core.metrics import METRICS, Metric
from toolkit.core.predictions import Predictions
from toolkit.core.targets import Target as Target  # noqa: PLC0414 - importers of Competition need it as well
from toolkit.core.targets import class_order as class_order  # noqa: PLC0414
from toolkit.errors import CompetitionError, few
from toolkit.images.boxes import Boxes, BoxTable, Found, unknown
from toolkit.workspace import long_form, path_patterns

if TYPE_CHECKING:
    import pandas as pd

FILE = "competition.toml"
SCHEMA = 1
Part = Literal["train", "test"]


@dataclass(frozen=True)
class Images:
    """Where one part's rows and pictures are: a CSV (may be absent for test), a folder, and how a row names its file.

    `pattern` is filled from the row's columns: `{id}.png`, `{patient_id}/{image_id}.png`, `{path}`; with a `*` it may match
    several files, which all belong to the row.
    """

    folder: str
    pattern: str
    table: str = ""


@dataclass(frozen=True)
class Competition:
    """The workspace file: frozen, checked at birth, with `root` the folder it stands in. Relative paths start there.

    `sample_id` is the id column of the sample submission and the test table, where it has another name than in train.csv;
    `boxes_of` has the tables of bounding boxes by name; `max_mb` is the largest submission that the platform takes (10⁶ bytes;
    0: not said);
    `upload` where it goes, as in `kaggle:titanic`; `labels_fix` a table of corrected labels that training uses (see `fixes`).
    """

    root: Path
    name: str
    metric: str
    targets: tuple[Target, ...]
    train: Images
    test: Images
    id: str = "id"
    group: str = ""
    extra: str = ""
    per_id: Literal["", "mean", "max"] = ""
    sample: str = "sample_submission.csv"
    format: str = ""
    sample_id: str = ""
    max_mb: float = 0.0
    upload: str = ""
    labels_fix: str = ""
    boxes_of: Mapping[str, BoxTable] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sample_id", self.sample_id or self.id)
        names = [target.name for target in self.targets]
        if not names or len(set(names)) != len(names):
            raise CompetitionError(f"{FILE}: targets must be present and have different names, got {few(names)}")
        if self.metric not in METRICS:
            raise CompetitionError(f"{FILE}: unknown metric {self.metric!r}", hint=f"Use one of: {', '.join(METRICS)}.")
        if not self.score.multilabel and (several := [t.name for t in self.targets if t.multilabel]):
            raise CompetitionError(
                f"{FILE}: metric {self.metric!r} is for one class per row, target {few(several)} is multilabel",
                hint=f"Use one of: {', '.join(name for name, metric in METRICS.items() if metric.multilabel)}.",
            )
        if not 0 <= self.max_mb < float("inf"):
            raise CompetitionError(f"{FILE}: max_mb is a number of megabytes, not {self.max_mb}")
        if strange := [name for name in self.boxes_of if not name.isidentifier()]:
            raise CompetitionError(f"{FILE}: boxes are named by letters, digits and _, not {few(strange)}")
        if self.per_id not in ("", "mean", "max"):
            raise CompetitionError(f'{FILE}: per_id is "mean" or "max", not {self.per_id!r}')

    @property
    def score(self) -> Metric:
        """The metric itself."""
        return METRICS[self.metric]

    def target(self, name: str) -> Target:
        """The target of that name.

        Raises:
            CompetitionError: there is none.
        """
        for target in self.targets:
            if target.name == name:
                return target
        raise CompetitionError(f"{FILE} has no target {name!r}, only {few(t.name for t in self.targets)}")

    def path(self, *parts: str) -> Path:
        """A path inside the workspace (or wherever an absolute part points)."""
        return self.root.joinpath(*parts)

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
        said = self.boxes_of[name]
        table, where = getattr(said, part), getattr(self, part)
        key = self.id if part == "train" else self.sample_id
        if table:
            key = key if key in csv_text.header(self.path(table)) else self.id
            cells: Mapping[str, Sequence[str]] = csv_text.cells(self.path(table), [key, *said.columns], unique=key)
        else:
            table = where.table or (self.sample if part == "test" else "")
            cells = self._cells(part, list(dict.fromkeys([key, *path_patterns.columns(where.pattern), *said.columns])))
        if missing := [column for column in said.columns if column not in cells]:
            raise CompetitionError(
                f"{table} has no column {few(missing)} of [boxes.{name}]",
                hint=f'Name the table in {FILE}: {part} = "boxes.csv"',
            )
        rows = zip(cells[key], zip(*(cells[column] for column in said.columns), strict=True), strict=True)
        boxes = [said.box(four, f"{table}, {one!r}") for one, four in rows]
        if getattr(said, part):
            by_id = dict(zip(cells[key], boxes, strict=True))
            return {(one, file): by_id[one] for one, file in self.image_files(part) if one in by_id}
        numbered = {**cells, _ROW: list(map(str, range(len(boxes))))}  # ids may repeat where a row is an image
        files = find_files(numbered, _ROW, self.path(where.folder), where.pattern, f"[{part}]")
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
        where = self.train if part == "train" else self.test
        key = self.id if part == "train" else self.sample_id
        names = list(dict.fromkeys([key, *path_patterns.columns(where.pattern)]))
        table = self._cells(part, names)
        folder = self.path(where.folder)
        if not folder.is_dir():
            raise CompetitionError(f"the {part} images' folder {folder} does not exist", hint=f"Set [{part}] images in {FILE}.")
        found = find_files(table, key, folder, where.pattern, f"[{part}]")
        if found and not any(os.path.exists(path) for _, path in found):  # noqa: PTH110
            raise CompetitionError(
                f"none of the {len(found):,} {part} images is there; the first would be {found[0][1]}",
                hint=f"Set [{part}] images and pattern in {FILE}.",
            )
        if len({name for name, _ in found}) < len(found) and not self.per_id:
            raise CompetitionError(
                f"pattern {where.pattern!r} gives several images for one id", hint=f'Set per_id = "mean" in {FILE}.'
            )
        return found

    def _cells(self, part: Part, names: list[str]) -> Mapping[str, Sequence[str]]:
        """Some columns of a part's table, those of them that it has; where it is an ordinary one, without loading pandas."""
        table = self.test.table or self.sample if part == "test" else self.train.table
        if table == self.sample and self.format in long_form.NAMES:
            frame = self._table(part)
            return {str(name): list(frame[name]) for name in frame.columns}
        several = bool(self.per_id) and table != self.sample
        unique = "" if several else names[0]
        if set(names) <= set(csv_text.header(self.path(table))):
            return csv_text.cells(self.path(table), names, unique=unique)
        frame = csv_text.read(self.path(table), columns=names[:1], unique=unique)
        return {str(name): list(frame[name]) for name in frame.columns}

    def _table(self, part: Part) -> pd.DataFrame:
        table = self.test.table or self.sample if part == "test" else self.train.table
        several = bool(self.per_id) and table != self.sample
        key = self.sample_id if part == "test" else self.id
        if table == self.sample and self.format in long_form.NAMES:
            frame = csv_text.read(self.path(table), columns=[key])
            if self.format == "joined":
                frame = frame.assign(**{key: long_form.split(list(frame[key]), self.targets[0].classes)[0]})
            return frame.drop_duplicates(key, ignore_index=True)
        return csv_text.read(self.path(table), columns=[key], unique="" if several else key)

    def to_toml(self) -> str:
        """The file's text; reading it back gives an equal competition."""
        lines = [f"schema = {SCHEMA}", f"name = {_quote(self.name)}", f"metric = {_quote(self.metric)}"]
        lines += ["", "[columns]", f"id = {_quote(self.id)}"]
        lines += [f"{key} = {_quote(value)}" for key, value in (("group", self.group), ("extra", self.extra)) if value]
        for part, where in (("train", self.train), ("test", self.test)):
            lines += ["", f"[{part}]"] + ([f"table = {_quote(where.table)}"] if where.table else [])
            lines += [f"images = {_quote(where.folder)}", f"pattern = {_quote(where.pattern)}"]
            lines += [f"labels_fix = {_quote(self.labels_fix)}"] if self.labels_fix and part == "train" else []
        lines += ["", "[submission]", f"sample = {_quote(self.sample)}"]
        other = self.sample_id if self.sample_id != self.id else ""
        said = (("id", other), ("format", self.format), ("per_id", self.per_id), ("upload", self.upload))
        lines += [f"{key} = {_quote(value)}" for key, value in said if value]
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
    def read(cls, root: Path) -> Competition:
        """Read `root`/competition.toml.

        Raises:
            CompetitionError: missing, not TOML, a key that is unknown, missing or of the wrong type.
        """
        path = root / FILE
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CompetitionError(f"{path} does not exist", hint="Run `toolkit init` there.") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise CompetitionError(f"{path} cannot be read: {error}") from error
        if (schema := raw.get("schema", SCHEMA)) != SCHEMA:
            raise CompetitionError(f"{path} has schema {schema!r}, this version reads {SCHEMA}", hint="Upgrade toolkit.")
        try:
            return cls(root=root, **_fields(raw))
        except CompetitionError as error:
            raise CompetitionError(f"{path}: {error.message}", hint=error.hint) from error
        except KeyError as error:
            raise CompetitionError(f"{path}: the key {error.args[0]!r} is missing", hint=_COMPARE) from error
        except (TypeError, AttributeError, ValueError) as error:
            raise CompetitionError(f"{path}: {error}", hint=_COMPARE) from error

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
) -> list[tuple[str, str]]:
    """(id, file) of every image that a table's rows name; a pattern that matches nothing names one file that is not there.

    Raises:
        CompetitionError: the pattern names no column, or one that the table lacks.
    """
    path_patterns.require(pattern, list(table), where)
    find, fill, inside = path_patterns.finder(folder), path_patterns.filler(pattern), os.path.join(folder, "")  # noqa: PTH118
    rows = zip(*(table[name] for name in path_patterns.columns(pattern)), strict=True)
    found = []
    for name, cells in zip(table[id_column], rows, strict=True):
        pieces = fill(cells)
        files = find(pieces) or ["*".join(pieces)]
        found += [(name, file if file.startswith(os.sep) else inside + file) for file in files]
    return found


def _fields(raw: dict[str, Any]) -> dict[str, Any]:
    """The TOML tables as constructor arguments; what is not known is refused, so that a typo cannot be silent."""
    _check_keys(raw, _KEYS)
    for name, keys in raw["targets"].items():
        _check_keys(keys, _TARGET_KEYS, f" in [targets.{name}]")
        for listed in (keys.get("classes", []), *keys.get("factors", {}).values()):
            if not isinstance(listed, list):
                raise CompetitionError(f'[targets.{name}]: classes are a list, as in ["cat", "dog"], not {listed!r}')
    images = {
        part: Images(folder=raw[part]["images"], pattern=raw[part]["pattern"], table=raw[part].get("table", ""))
        for part in ("train", "test")
    }
    targets = tuple(Target(name=name, **{"classes": (), **keys}) for name, keys in raw["targets"].items())
    asked = {"sample_id" if key == "id" else key: value for key, value in raw.get("submission", {}).items()}
    asked |= {"labels_fix": raw["train"].get("labels_fix", "")}
    for name, keys in raw.get("boxes", {}).items():
        _check_keys(keys, _BOX_KEYS, f" in [boxes.{name}]")
    asked |= {"boxes_of": {name: BoxTable(**keys) for name, keys in raw.get("boxes", {}).items()}}
    return {"name": raw["name"], "metric": raw["metric"], "targets": targets, **images, **raw.get("columns", {}), **asked}


def _check_keys(raw: Any, known: dict[str, Any], where: str = "") -> None:
    """Keys that are unknown and values of another type, at any depth."""
    if not isinstance(raw, dict):
        raise CompetitionError(f"a table is needed{where}, not {raw!r}")
    if unknown := sorted(set(raw) - set(known)):
        raise CompetitionError(f"unknown key {few(unknown)}{where}", hint=f"There may be: {', '.join(known)}.")
    for key, value in raw.items():
        kind = known[key]
        if isinstance(kind, dict):
            _check_keys(value, kind, f" in [{key}]")
        elif not isinstance(value, kind):
            raise CompetitionError(f"{key} must be {_KINDS[kind]}{where}, not {value!r}")


_ROW = "\0row"  # no column of a text file is called so
_COMPARE = "Compare it with the README, or run `toolkit init` again."
_NUMBER = (int, float)
_KINDS: dict[Any, str] = {
    _NUMBER: "a number",
    str: "text in quotes",
    int: "a whole number",
    list: "a list",
    dict: "a table",
}
_IMAGES = {"table": str, "images": str, "pattern": str}
_KEYS: dict[str, Any] = {
    "schema": int,
    "name": str,
    "metric": str,
    "columns": {"id": str, "group": str, "extra": str},
    "train": _IMAGES | {"labels_fix": str},
    "test": _IMAGES,
    "submission": {"sample": str, "id": str, "format": str, "per_id": str, "max_mb": _NUMBER, "upload": str},
    "boxes": dict,
    "targets": dict,
}
_BOX_KEYS: dict[str, Any] = {"columns": list, "form": str, "unit": str, "train": str, "test": str}
_TARGET_KEYS: dict[str, Any] = {
    "task": str,
    "column": str,
    "classes": list,
    "positive": str,
    "factors": dict,
    "separator": str,
}


def _quote(value: Any) -> str:
    """A TOML basic string or array of them; JSON's escapes are TOML's, but for DEL, which JSON leaves bare."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
