"""Which commit a folder is at, asked in a way that runs nothing which the repository itself names.

A repository's configuration names programs: monitors, hooks, filters, diff drivers, helpers, pagers, whatever it includes. So
HEAD is read here, and git compares the files in a repository of our own making that borrows objects and index alone.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

_LIMIT = 1 << 20  # bytes of HEAD, of a reference or of packed-refs
_INDEX_LIMIT = 1 << 28
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SECONDS = 10
DIRTY, UNCHECKED = "-dirty", "-unchecked"  # tracked files differ; nobody could tell whether they do


def commit_of(folder: Path) -> str | None:
    """The commit that a folder is at, with "-dirty" if tracked files differ from it; None outside a repository."""
    top = next((place for place in (folder.absolute(), *folder.absolute().parents) if (place / ".git").exists()), None)
    if top is None:
        return None
    try:
        own, common = _folders(top)
        commit = _resolved(own, common)
        return commit and commit + _mark(top, own, common, commit)
    except (OSError, ValueError):
        return None


def _folders(top: Path) -> tuple[Path, Path]:
    """The folder of HEAD and index, and the one of what all work trees share."""
    own = top / ".git"
    if not own.is_dir():
        own = top / _text(own).removeprefix("gitdir:").strip()
    common = own / _text(own / "commondir").strip() if (own / "commondir").is_file() else own
    return own, common


def _resolved(own: Path, common: Path) -> str | None:
    """The commit that HEAD leads to; None where there is none yet, or it is kept in a form that is not known here."""
    name = "HEAD"
    for _ in range(5):  # a reference may name another
        if not (name == "HEAD" or re.fullmatch(r"refs(/[^/.\x00-\x20\x7f][^/\x00-\x20\x7f]*)+", name)):
            return None
        place = own / name if (own / name).is_file() else common / name
        value = _text(place).strip() if place.is_file() else _packed(common, name)
        if not value.startswith("ref:"):
            return value if _COMMIT.fullmatch(value) else None
        name = value.removeprefix("ref:").strip()
    return None


def _packed(common: Path, name: str) -> str:
    """The commit of a reference that stands in the one file of many; "" where it does not."""
    path = common / "packed-refs"
    lines = (line.split(" ", 1) for line in _text(path).splitlines()) if path.is_file() else ()
    return next((parts[0] for parts in lines if parts[1:] == [name]), "")


def _text(path: Path) -> str:
    """A small plain file; whatever waits for a writer, or never ends, is none."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:  # noqa: PTH123 - of a handle that was opened without waiting
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LIMIT:
            raise ValueError(f"{path} is no file of git's")
        return file.read(_LIMIT).decode()


def _mark(top: Path, own: Path, common: Path, commit: str) -> str:
    """What is to be said of the files beside the commit: nothing where they are as it has them."""
    program = shutil.which("git", path=os.pathsep.join(filter(os.path.isabs, os.get_exec_path())))  # none of the folder's own
    index = own / "index"
    if program is None or not index.is_file() or index.stat().st_size > _INDEX_LIMIT:
        return UNCHECKED
    with tempfile.TemporaryDirectory(prefix="toolkit-git-") as borrowed:
        repository = Path(borrowed)
        hashes = "[core]\nrepositoryformatversion = 1\n[extensions]\nobjectformat = sha256\n" if len(commit) == 64 else ""
        (repository / "config").write_text(hashes)
        (repository / "HEAD").write_text(f"{commit}\n")
        for name in ("refs", "objects"):
            (repository / name).mkdir()
        shutil.copy2(index, repository / "index")  # with its time: what changed in that second is compared by its content
        environment = _environment(repository, top, common)

        def asked(*words: str) -> int:
            command = [program, "--no-pager", "--literal-pathspecs", *words]
            return subprocess.run(  # noqa: S603 - fixed words
                command,
                cwd=repository,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_SECONDS,
                check=False,
            ).returncode

        try:
            asked("update-index", "-q", "--ignore-submodules", "--refresh")
            done = asked("diff-index", "--quiet", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all", commit, "--")
        except (OSError, subprocess.SubprocessError):
            return UNCHECKED
    return {0: "", 1: DIRTY}.get(done, UNCHECKED)


def _environment(repository: Path, top: Path, common: Path) -> dict[str, str]:
    """Nothing of the caller's but the PATH: no configuration but the empty one, no prompt, no fetching."""
    return {
        "PATH": os.pathsep.join(filter(os.path.isabs, os.get_exec_path())),
        "HOME": str(repository),
        "LC_ALL": "C",
        "GIT_DIR": str(repository),
        "GIT_WORK_TREE": str(top),
        "GIT_OBJECT_DIRECTORY": str((common / "objects").resolve()),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "",
    }
