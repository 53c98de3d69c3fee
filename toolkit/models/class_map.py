"""Class maps: models of other class sets brought to ours by dropping, merging and renaming classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base import documents
from toolkit.base.text import csv_text
from toolkit.errors import DataError, few

REST = "*"  # stands for every class that a map does not name


@dataclass(frozen=True)
class ClassMap:
    """Classes that come out, and for each the columns of the model whose probabilities add up to it.

    Columns in no `sources` are dropped: what is left is renormalised to 1 (multilabel: left as it is).
    """

    classes: tuple[str, ...]
    sources: tuple[tuple[int, ...], ...]

    @property
    def kept(self) -> tuple[int, ...]:
        """The columns of the model that count, in order."""
        return tuple(sorted(column for columns in self.sources for column in columns))

    @property
    def merges(self) -> bool:
        """Whether several columns add up to one class."""
        return any(len(columns) > 1 for columns in self.sources)

    def matrix(self) -> NDArray[np.float32]:
        """Zeros and ones, float32 [kept, classes]: kept columns times this are the classes' probabilities."""
        grid = np.zeros((len(self.kept), len(self.classes)), dtype=np.float32)
        for place, columns in enumerate(self.sources):
            grid[[self.kept.index(column) for column in columns], place] = 1
        return grid


def read(path: Path) -> dict[str, str]:
    """Their class → ours, from a CSV with columns `from` and `to`, or a JSON or TOML table; an empty `to` drops the class.

    Raises:
        DataError: it cannot be read, is no such table, or names a class twice.
    """
    if path.suffix == ".csv":
        frame = csv_text.read(path, columns=["from", "to"], unique="from")
        return dict(zip(frame["from"], frame["to"], strict=True))
    try:
        content: Any = documents.read_toml(path) if path.suffix == ".toml" else documents.read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="A class map is .csv (from,to), .json or .toml.") from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise DataError(f"{path} is no table of class names", hint='For example {"tabby": "cat", "tiger_cat": "cat", "*": ""}.')
    return content


def make(names: Sequence[str], mapping: Mapping[str, str], *, where: str = "the class map") -> ClassMap:
    """The map for a model whose columns are `names`: a class that is not named keeps its name, unless `*` says otherwise.

    Raises:
        DataError: a name that the model does not have, or nothing is left.
    """
    if unknown := [name for name in mapping if name not in names and name != REST]:
        raise DataError(
            f"{where} names {few(unknown)}, which the model does not have; it has {few(names, limit=8)}",
            hint="The column `from` holds the model's names, `to` ours.",
        )
    found: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        if target := mapping.get(name, mapping.get(REST, name)):
            found.setdefault(target, []).append(column)
    if not found:
        raise DataError(f"{where} drops every class of the model")
    return ClassMap(tuple(found), tuple(map(tuple, found.values())))
