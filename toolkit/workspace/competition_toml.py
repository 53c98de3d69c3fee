"""competition.toml: what is predicted, from which files, scored how, written where; read and checked without any table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from toolkit.base import documents
from toolkit.base.schema import shown
from toolkit.base.text.text_forms import TextForm
from toolkit.core.cards import ALPHAS, Alpha, Preprocess, Window, as_window
from toolkit.core.targets import Target
from toolkit.errors import CardError, CompetitionError, few
from toolkit.images.boxes import BoxTable

FILE = "competition.toml"
SCHEMA = 1


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
class CompetitionFile:
    """The workspace file: frozen, checked at birth, with `root` the folder it stands in. Relative paths start there.

    `sample_id` is the id column of the sample submission and the test table, where it has another name than in train.csv;
    `boxes_of` has the tables of bounding boxes by name; `max_mb` is the largest submission that the platform takes (10⁶ bytes;
    0: not said);
    `upload` where it goes, as in `kaggle:titanic`; `labels_fix` a table of corrected labels that training uses (see `fixes`).
    `encoding` and `delimiter` are those of the tables, where their bytes do not say them.
    `alpha` is what lies behind transparent pixels and `window` the values of 16-bit files that become black and white, of every
    model that is trained or taken in here.
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
    encoding: str = ""
    delimiter: str = ""
    alpha: Alpha = "drop"
    window: Window | None = None

    @property
    def text_form(self) -> TextForm:
        """How the tables are written, where their bytes do not say it."""
        return TextForm(self.encoding, self.delimiter)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sample_id", self.sample_id or self.id)
        names = [target.name for target in self.targets]
        if not names or len(set(names)) != len(names):
            raise CompetitionError(f"{FILE}: targets must be present and have different names, got {few(names)}")
        if not 0 <= self.max_mb < float("inf"):
            raise CompetitionError(f"{FILE}: max_mb is a number of megabytes, not {self.max_mb}")
        if strange := [name for name in self.boxes_of if not name.isidentifier()]:
            raise CompetitionError(f"{FILE}: boxes are named by letters, digits and _, not {few(strange)}")
        if self.alpha not in ALPHAS:
            raise CompetitionError(f"{FILE}: alpha is one of {', '.join(ALPHAS)}, not {self.alpha!r}")
        if self.window is not None:
            try:
                object.__setattr__(self, "window", as_window(self.window))
            except CardError as error:
                raise CompetitionError(f"{FILE}: {error.message}") from error
        if self.per_id not in ("", "mean", "max"):
            raise CompetitionError(f'{FILE}: per_id is "mean" or "max", not {self.per_id!r}')

    def treated(self, preprocess: Preprocess) -> Preprocess:
        """The same pixels with transparent pictures treated as this competition says."""
        return replace(preprocess, alpha=self.alpha, window=self.window)

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

    @classmethod
    def read(cls, root: Path) -> Self:
        """Read `root`/competition.toml.

        Raises:
            CompetitionError: missing, not TOML, a key that is unknown, missing or of the wrong type.
        """
        path = root / FILE
        try:
            raw = documents.read_toml(path)
        except FileNotFoundError:
            raise CompetitionError(f"{path} does not exist", hint="Run `toolkit init` there.") from None
        except (OSError, ValueError) as error:
            raise CompetitionError(f"{path} cannot be read: {error}") from error
        if (schema := raw.get("schema", SCHEMA)) != SCHEMA:
            raise CompetitionError(f"{path} has schema {shown(schema)}, this version reads {SCHEMA}", hint="Upgrade toolkit.")
        try:
            return cls(root=root, **_fields(raw))
        except CompetitionError as error:
            raise CompetitionError(f"{path}: {error.message}", hint=error.hint) from error
        except KeyError as error:
            raise CompetitionError(f"{path}: the key {error.args[0]!r} is missing", hint=_COMPARE) from error
        except (TypeError, AttributeError, ValueError) as error:
            raise CompetitionError(f"{path}: {error}", hint=_COMPARE) from error


def _fields(raw: dict[str, Any]) -> dict[str, Any]:
    """The TOML tables as constructor arguments; what is not known is refused, so that a typo cannot be silent."""
    _check_keys(raw, _KEYS)
    for name, keys in raw["targets"].items():
        _check_keys(keys, _TARGET_KEYS, f" in [targets.{name}]")
        for listed in (keys.get("classes", []), *keys.get("factors", {}).values()):
            if not isinstance(listed, list):
                raise CompetitionError(f'[targets.{name}]: classes are a list, as in ["cat", "dog"], not {shown(listed)}')
            if odd := [value for value in listed if not isinstance(value, _CELL)]:
                raise CompetitionError(f"[targets.{name}]: a class is text or a number, not {shown(odd[0])}")
    images = {
        part: Images(folder=raw[part]["images"], pattern=raw[part]["pattern"], table=raw[part].get("table", ""))
        for part in ("train", "test")
    }
    targets = tuple(Target(name=name, **{"classes": (), **keys}) for name, keys in raw["targets"].items())
    asked = {"sample_id" if key == "id" else key: value for key, value in raw.get("submission", {}).items()}
    asked |= {"alpha": raw.get("alpha", "drop"), "window": raw.get("window")}
    asked |= {"labels_fix": raw["train"].get("labels_fix", "")}
    for name, keys in raw.get("boxes", {}).items():
        _check_keys(keys, _BOX_KEYS, f" in [boxes.{name}]")
        if odd := [value for value in keys.get("columns", []) if not isinstance(value, _CELL)]:
            raise CompetitionError(f"[boxes.{name}]: a column is text, not {shown(odd[0])}")
    asked |= {"boxes_of": {name: BoxTable(**keys) for name, keys in raw.get("boxes", {}).items()}}
    return {"name": raw["name"], "metric": raw["metric"], "targets": targets, **images, **raw.get("columns", {}), **asked}


def _check_keys(raw: Any, known: dict[str, Any], where: str = "") -> None:
    """Keys that are unknown and values of another type, at any depth."""
    if not isinstance(raw, dict):
        raise CompetitionError(f"a table is needed{where}, not {shown(raw)}")
    if unknown := sorted(set(raw) - set(known)):
        raise CompetitionError(f"unknown key {few(unknown)}{where}", hint=f"There may be: {', '.join(known)}.")
    for key, value in raw.items():
        kind = known[key]
        if isinstance(kind, dict):
            _check_keys(value, kind, f" in [{key}]")
        elif not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise CompetitionError(f"{key} must be {_KINDS[kind]}{where}, not {shown(value)}")


_COMPARE = "Compare it with the README, or run `toolkit init` again."
_NUMBER = (int, float)
_CELL = (str, int, float)
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
    "alpha": str,
    "window": list,
    "columns": {"id": str, "group": str, "extra": str, "encoding": str, "delimiter": str},
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
