"""What an error's code means at the command line: the option that helps, added to the library's own hint."""

from __future__ import annotations

from toolkit.errors import ToolkitError

ADVICE: dict[str, str] = {
    "predictions-name": "--name sets it.",
    "submission-needs-numbers": "Use --vote soft.",
    "submission-output": "Give another --output.",
    "verify-rebuild": "Try --rebuild.",
}


def hint(error: ToolkitError) -> str:
    """The library's hint and, where the error has a code, the option that helps."""
    return " ".join(filter(None, (error.hint, ADVICE.get(error.code, ""))))
