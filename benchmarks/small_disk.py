"""Training, `ensemble` and `submit` on a disk too small for them (as root, a tmpfs): `python benchmarks/small_disk.py`.

The workspace lies on a tmpfs whose free room is taken by a ballast file but for so many bytes, from none to more than a step
needs. Each time the step has to end well, or to say in a sentence that no space is left and leave no part of a file; and once
the ballast is gone, the same step has to end as one that was never disturbed. Exit code 1 if any did not.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kills
import numpy as np

SIZE = 64 << 20


def command(root: Path, *words: str) -> str:
    """A command line's run in this process; what it said, or its error."""
    from click.testing import CliRunner

    from toolkit.cli import cli
    from toolkit.errors import StoreError

    os.chdir(root)
    done = CliRunner().invoke(cli, list(words))
    if done.exit_code == 0:
        return str(done.output)
    if "Traceback" in done.output or not isinstance(done.exception, SystemExit):
        raise AssertionError(f"{words}: {done.output}\n{done.exception!r}")
    raise StoreError(done.output)


def train(root: Path) -> str:
    """Two folds of one epoch, real exports; the digest of the out-of-fold values."""
    return kills.train(root, kills.Config(epochs=1), "none")[0]


def ensemble(root: Path) -> str:
    """Predictions of the folds; the digest of their values."""
    from toolkit.core import prediction_files

    command(root, "ensemble", "folds/*.onnx", "--tta", "hflip", "--no-tta-check", "--device", "cpu")
    (path,) = (root / "predictions").glob("*.parquet")
    table = prediction_files.read_table(path).predictions["label"]
    return hashlib.sha256(np.asarray(table.values).tobytes()).hexdigest()


def submit(root: Path) -> str:
    """The bytes of the submission."""
    command(root, "submit")
    (path,) = (root / "submissions").glob("*.csv")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def free(folder: Path) -> int:
    """Bytes that can still be written there."""
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize


def attempt(root: Path, step: Callable[[Path], str], before: Path, room: int, whole: str) -> tuple[str, list[str]]:
    """What one step came to with so much room, and what was wrong."""
    shutil.rmtree(root)
    shutil.copytree(before, root)
    ballast = root.parent / "ballast"
    ballast.write_bytes(b"\0" * max(free(root) - room, 0))
    code, said = kills.forked(lambda: step(root))
    wrong: list[str] = []
    name = f"{step.__name__}, {room:,} bytes free"
    if code != 0 and ("No space left" not in said[1] or said[0] != "StoreError"):
        wrong.append(f"{name}: {said}")
    if code == 0 and said != whole:
        wrong.append(f"{name}: another result")
    if parts := [str(path.relative_to(root)) for path in root.rglob("*.part-*")]:
        wrong.append(f"{name}: left {parts}")
    ballast.unlink()
    again, result = kills.forked(lambda: step(root))
    if again != 0 or result != whole:
        wrong.append(f"{name}, then room again: {result}")
    return "ended well" if code == 0 else "refused", wrong


def steps(root: Path, before: Path, count: int) -> list[str]:
    """Every step at every size of room, each from what the undisturbed steps before it left."""
    wrong: list[str] = []
    for step in (train, ensemble, submit):
        shutil.rmtree(before, ignore_errors=True)
        shutil.copytree(root, before)
        room = free(root)
        code, whole = kills.forked(lambda step=step: step(root))
        assert code == 0, whole
        needed = room - free(root)
        tally: dict[str, int] = {}
        for part in np.linspace(0, 1.5 * needed, count):
            outcome, faults = attempt(root, step, before, int(part), whole)
            tally[outcome] = tally.get(outcome, 0) + 1
            wrong += faults
        print(f"{step.__name__}: leaves {needed:,} bytes; {count} sizes of room: {tally}", flush=True)
    return wrong


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, default=25)
    asked: Any = parser.parse_args()
    import pytorch_lightning  # noqa: F401 - once, before anything is forked
    import torch
    import torch.onnx

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="disk-") as folder:
        disk, before = Path(folder, "disk"), Path(folder, "before")
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(disk)]
        if subprocess.run(mount, check=False).returncode:
            sys.exit("A tmpfs cannot be mounted here: run it as root.")
        try:
            root = disk / "work"
            kills.make_workspace(root)
            names = sorted(path.stem for path in (root / "train").iterdir())
            (root / "sample_submission.csv").write_text("id,label\n" + "".join(f"{name},a\n" for name in names))
            wrong = steps(root, before, asked.sizes)
        finally:
            os.chdir("/")
            subprocess.run(["umount", str(disk)], check=True)
    print(f"wrong: {len(wrong)}", *wrong, sep="\n  ")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
