"""Where and with what something was made: the time, versions, the commit, and paths that name no machine."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from toolkit.base import git

_PACKAGES = (
    "numpy",
    "pandas",
    "pyarrow",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "torchvision",
    "torchcodec",
    "pillow",
    "ttach",
)


def now(timespec: str = "milliseconds") -> str:
    """The time in UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec=timespec)


def versions() -> dict[str, str]:
    """Versions of what takes part, where installed."""
    known = {"toolkit": metadata.version("toolkit"), "python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return known


def git_commit(folder: Path) -> str | None:
    """The commit that a folder is at, ending in "-dirty" if tracked files differ from it; None outside a repository.

    It ends in "-unchecked" where git cannot tell. Nothing that the repository names is run (see `git`).
    """
    return git.commit_of(folder)


def portable(path: Path, root: Path) -> str:
    """A path as seen from the workspace; of one outside only the name, as the rest says where somebody's files are."""
    relative = os.path.relpath(path, root)
    return path.name if relative.startswith("..") else Path(relative).as_posix()


def from_inside(path: Path, root: Path) -> str:
    """A path as typed or configured in a workspace: relative where it lies inside, else whole, so that it leads there."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
