"""Spans of time as people write them."""

from __future__ import annotations

import re

from toolkit.errors import DataError


def seconds(text: str) -> float:
    """A span of time written as in 8h30m, 45m or 90s.

    Raises:
        DataError: it is written otherwise.
    """
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    if not match or not any(match.groups()):
        raise DataError(f"{text!r} is no span of time", hint="Write it as 8h30m, 45m or 90s.")
    hours, minutes, rest = (int(part or 0) for part in match.groups())
    return float(3600 * hours + 60 * minutes + rest)
