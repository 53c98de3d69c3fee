"""Picking an entry of a registry by name, with options that it knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from toolkit.errors import TrainingError


class Entry(Protocol):
    """What has options with defaults."""

    @property
    def options(self) -> Mapping[str, float]:
        """Name → default."""
        ...


T = TypeVar("T", bound=Entry)


def choose(kind: str, registry: Mapping[str, T], name: str, options: Mapping[str, float]) -> tuple[T, dict[str, Any]]:
    """The entry of that name, and its options: the defaults, but for those given; `kind` names it in messages.

    Raises:
        TrainingError: there is none, or it does not have an option.
    """
    entry = registry.get(name)
    if entry is None:
        raise TrainingError(f"unknown {kind} {name!r}", hint=f"Use one of: {', '.join(registry)}.")
    if unknown := sorted(set(options) - set(entry.options)):
        known = ", ".join(f"{key}={value:g}" for key, value in entry.options.items()) or "no options"
        raise TrainingError(f"{kind} {name!r} has no option {', '.join(unknown)}", hint=f"It has {known}.")
    return entry, {**entry.options, **options}
