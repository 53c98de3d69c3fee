"""The disk is full at each write of `ensemble` and `submit` in turn: a message, nothing half, and the next run finishes."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from toolkit.base import files
from toolkit.cli import cli
from toolkit.core import prediction_files
from toolkit.submissions import manifest

MADE = ("store", "predictions", "submissions", "submission.csv", "submission.json")


class FullDisk:
    """Counts the files that are written, and lets the disk be full in the middle of one of them, or at its end."""

    def __init__(self, monkeypatch) -> None:
        self.written: list[str] = []
        self.full_at, self.at_its_end = -1, False
        true_write, true_fsync = files.write, os.fsync

        def write(path, fill):
            self.written.append(path.name)
            here = len(self.written) - 1 == self.full_at

            def half(file):
                if here and not self.at_its_end:
                    file.write(b"half")
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return fill(file)

            def fsync(handle):
                if here:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                true_fsync(handle)

            monkeypatch.setattr(files.os, "fsync", fsync)
            return true_write(path, half)

        monkeypatch.setattr(files, "write", write)

    def at(self, number: int, *, end: bool = False) -> None:
        """Be full at so manieth file from now on; -1 for never."""
        self.written.clear()
        self.full_at, self.at_its_end = number, end


def journey() -> bool:
    """Whether both commands were through; one that was not says why."""
    for words in (["ensemble", "folds/tiny.fold0.onnx", "--device", "cpu"], ["submit"]):
        done = CliRunner().invoke(cli, words)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        if done.exit_code:
            assert done.exit_code == 1
            assert "The disk is full: free some space" in done.output
            return False
    return True


def whole(root: Path) -> None:
    """Every file that is there is complete, and a manifest has its submission."""
    assert not list(root.rglob(f"*{files.PART}*"))
    for path in root.glob("predictions/*"):
        prediction_files.read_table(path)
    for path in [root / "submission.json", *root.glob("submissions/*.json")]:
        if path.exists():
            assert manifest.read(path)["output"]["sha256"] == files.sha256(path.with_suffix(".csv"))


@pytest.mark.parametrize("end", [False, True], ids=["in the middle", "at the end"])
def test_a_full_disk_at_every_write(workspace, folds, monkeypatch, caplog, end):
    for path in [*folds.iterdir(), *(workspace / "test").iterdir()]:
        os.utime(path, (time.time() - 100,) * 2)
    disk = FullDisk(monkeypatch)
    assert journey()
    expected, count = (workspace / "submission.csv").read_bytes(), len(disk.written)
    scoring = disk.written.index("submission.csv") - disk.written.index("ensemble.parquet") - 1  # the predictions stand by then
    assert {"images.npz", "exports.json", "ensemble.parquet", "submission.csv", "submission.json"} < set(disk.written)
    failed = 0
    for number in range(count):
        for name in MADE:
            path = workspace / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        disk.at(number, end=end)
        failed += not journey()
        whole(workspace)
        disk.at(-1)
        assert journey()
        whole(workspace)
        assert (workspace / "submission.csv").read_bytes() == expected
        assert not caplog.messages  # nothing was damaged
    assert scoring > 0
    assert failed >= count - scoring - 2  # what only saves time does not stop the work: exports.json and timings.json
