"""What an audit says: one finding, and how bad it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["leak", "warning", "note"]


@dataclass(frozen=True)
class AuditFinding:
    """Something wrong, or worth knowing: a leak lets held-out rows be known in training. `count` is of rows or pairs."""

    code: str
    severity: Severity
    what: str
    count: int = 0
    hint: str = ""
