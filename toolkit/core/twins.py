"""Names that people take for one and programs for two: they differ only in case, outer spaces or Unicode normal form."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def twins(names: Iterable[str]) -> list[tuple[str, ...]]:
    """The names that look alike, in groups of two or more.

    >>> twins(["cat", "Cat ", "dog"])
    [('Cat ', 'cat')]
    """
    alike: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        composed = unicodedata.normalize("NFC", name.strip())
        alike.setdefault(unicodedata.normalize("NFC", composed.casefold()), []).append(name)
    return [tuple(group) for group in alike.values() if len(group) > 1]


def twins_note(names: Iterable[str], what: str) -> str:
    """Names that look alike, in a sentence; empty where there are none.

    >>> twins_note(["cat", "Cat"], "classes of 'label'")
    "classes of 'label' differ only in case, outer spaces or Unicode normal form: 'Cat' and 'cat'"
    """
    groups = twins(names)
    shown = "; ".join(" and ".join(map(repr, group)) for group in groups[:3])
    more = f"; and {len(groups) - 3:,} more" if len(groups) > 3 else ""
    return f"{what} differ only in case, outer spaces or Unicode normal form: {shown}{more}" if groups else ""
