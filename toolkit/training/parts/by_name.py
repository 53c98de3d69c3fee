"""Picking an entry of a registry by name, with options that it knows: `focal`, or `focal:gamma=1.5`."""

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


def choose(kind: str, registry: Mapping[str, T], choice: str, options: Mapping[str, float]) -> tuple[str, dict[str, Any]]:
    """The name of an entry, and its options: the defaults, but for those given; `kind` names it in messages.

    `said` is the name, or NAME:OPTION=NUMBER,OPTION=NUMBER as a flag takes it.

    Raises:
        TrainingError: there is none, it does not have an option, or an option that is no number.
    """
    name, _, text = choice.partition(":")
    entry = registry.get(name)
    if entry is None:
        raise TrainingError(f"unknown {kind} {name!r}", hint=f"Use one of: {', '.join(registry)}.")
    given = {**_numbers(kind, choice, text), **options}
    if unknown := sorted(set(given) - set(entry.options)):
        known = ", ".join(f"{key}={value:g}" for key, value in entry.options.items()) or "no options"
        raise TrainingError(f"{kind} {name!r} has no option {', '.join(unknown)}", hint=f"It has {known}.")
    return name, {**entry.options, **given}


def described(registry: Mapping[str, Entry]) -> str:
    """The names of a registry with the options of each, as a flag's help lists them."""
    return ", ".join(":".join([name, *([",".join(one.options)] if one.options else [])]) for name, one in registry.items())


def _numbers(kind: str, choice: str, text: str) -> dict[str, float]:
    """OPTION=NUMBER,… as a mapping."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    try:
        return {key.strip(): float(value) for key, _, value in pairs}
    except ValueError as error:
        raise TrainingError(
            f"{choice!r} is no {kind} with options", hint="Write NAME:OPTION=NUMBER, with commas between several options."
        ) from error
