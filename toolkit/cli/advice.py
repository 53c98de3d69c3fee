"""What an error's code means at the command line: the option that helps, added to the library's own hint."""

from __future__ import annotations

from toolkit.errors import ToolkitError

ADVICE: dict[str, str] = {
    "bundle-output": "Remove it, or name another folder with -o.",
    "bundle-target": "That is what --python and --cuda take.",
    "predictions-name": "--name sets it.",
    "submission-output": "Give another --output.",
    "upload-where": "That is what --upload takes.",
    "verify-rebuild": "Try --rebuild.",
    "vote-soft": "Use --vote soft.",
    "wheels": "Or use --no-wheels if the target has onnxruntime, numpy and Pillow.",
}


def hint(error: ToolkitError) -> str:
    """The library's hint and, where the error has a code, the option that helps."""
    return " ".join(filter(None, (error.hint, ADVICE.get(error.code, ""))))
