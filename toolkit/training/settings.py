"""Settings of a recipe: fields of its frozen dataclass that say what they mean, so that a command line can be made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any


def setting(
    default: Any,
    text: str,
    *,
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    matters: bool = True,
) -> Any:
    """A dataclass field with a default and a sentence of help.

    `choices` are the words that a text may be, or that may stand in place of a number; `minimum` and `maximum` are the least
    and the largest number. Without `matters` it changes speed, not results: a run goes on with another value.
    """
    known = {"help": text, "choices": tuple(choices), "minimum": minimum, "maximum": maximum, "matters": matters}
    return field(default=default, metadata=known)
