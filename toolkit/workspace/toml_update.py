"""Writing competition.toml: a new file as it is described, one that is there with its comments and order kept."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from toolkit.base import documents, files
from toolkit.workspace.competition import FILE, Competition


def write(competition: Competition) -> Path:
    """Write the competition's file; comments, blank lines and order of one that is there survive, its values do not.

    Raises:
        StoreError: the file cannot be written.
    """
    path = competition.path(FILE)
    text = competition.to_toml()
    try:
        before = documents.read_text(path)
    except (OSError, UnicodeDecodeError):
        return files.write_text(path, text)
    return files.write_text(path, rewritten(before, text))


def rewritten(before: str, text: str) -> str:
    """The TOML text `before` with the values of `text`; `text` itself where `before` is no TOML."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(before)
    except TOMLKitError:
        return text
    _take_over(document, tomlkit.parse(text))
    return tomlkit.dumps(document)


def _take_over(table: MutableMapping[str, Any], wanted: MutableMapping[str, Any]) -> None:
    """Give a table the keys and values of another; what is equal already is not touched, so that it keeps its form."""
    for key in [key for key in table if key not in wanted]:
        del table[key]
    for key, value in wanted.items():
        if isinstance(value, MutableMapping) and isinstance(table.get(key), MutableMapping):
            _take_over(table[key], value)
        elif key not in table or table[key] != value:
            table[key] = value
