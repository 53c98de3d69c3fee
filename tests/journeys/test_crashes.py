"""Killed, out of disk, two at once: what was finished stays, the result is the same to the byte, nothing is corrupted."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import draw
from toolkit.core import prediction_files
from toolkit.errors import StoreError
from toolkit.inference.passes import BLOCK
from toolkit.inference.store import maintenance

pytestmark = pytest.mark.usefixtures("quick_processes")

IMAGES = 320
FLUSHED = 128  # rows between two writes in these runs, so that there are many moments to be killed at

RUN = f"""
import sys
from toolkit.inference import predict as inference
inference.FLUSH_ROWS = {FLUSHED}
from toolkit.cli import main
sys.argv = ["toolkit", "ensemble", "folds", "--tta", "hflip", "--device", "cpu", "--no-tta-check", *sys.argv[1:]]
main()
"""


def command(*more):
    return [sys.executable, "-c", RUN, *more]


def passes(said: str) -> int:
    return int(said.split("Passes ")[1].split(maxsplit=1)[0].replace(",", ""))


def values(root: Path, name: str = "ensemble") -> bytes:
    found = prediction_files.read_table(root / "predictions" / f"{name}.parquet").predictions["label"]
    return json.dumps(found.ids).encode() + found.values.tobytes()


@pytest.fixture
def crowd(workspace, folds):
    rng = np.random.default_rng(0)
    ids = [str(9000 + i) for i in range(IMAGES)]
    for name in ids[11:]:
        draw(rng, 0, 24, 24).save(workspace / "test" / f"{name}.png")
    (workspace / "sample_submission.csv").write_text("id,label\n" + "".join(f"{name},ant\n" for name in ids))
    for path in (workspace / "test").iterdir():
        os.utime(path, (time.time() - 100,) * 2)
    return workspace


def killed_and_resumed(root: Path, moments: int) -> list[int]:
    """Kill runs with SIGKILL at random moments between two rests; the passes that had to be made again, per kill."""
    shutil.rmtree(root / "store", ignore_errors=True)
    whole = subprocess.run(command("--name", "whole"), cwd=root, check=True, capture_output=True, text=True)
    expected, total = values(root, "whole"), passes(whole.stdout)
    draws, again = random.Random(0), []
    for _ in range(moments):
        shutil.rmtree(root / "store", ignore_errors=True)
        process = subprocess.Popen(command(), cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = draws.randrange(0, 2 * 2 * IMAGES // FLUSHED)  # kill when that many segments are there, and a little later
        while process.poll() is None and len(list((root / "store").rglob("*.seg"))) < wanted:
            time.sleep(0.002)
        time.sleep(draws.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        held = sum(len(table) for table in opened(root))
        done = subprocess.run(command(), cwd=root, check=True, capture_output=True, text=True)
        assert values(root) == expected
        assert passes(done.stdout) == total - held  # all that had reached the disk is used
        again.append(total - held)
    return again


def opened(root: Path):
    folders = (root / "store" / "tables").glob("*") if (root / "store").exists() else ()
    return [table for table in map(maintenance._open, folders) if table is not None]


def test_killed_at_any_moment_it_goes_on_and_ends_the_same(crowd):
    (again,) = killed_and_resumed(crowd, 1)
    assert again >= 0


@pytest.mark.slow
def test_killed_at_fifty_moments(crowd):
    again = killed_and_resumed(crowd, 50)
    assert len(set(again)) > 5  # the moments did differ


def test_a_kill_costs_one_chunk_at_most(crowd):
    """Rows computed (counted as they come out of the session) and rows on disk differ by no more than a flush and a block."""
    code = RUN.replace(
        "from toolkit.cli",
        """
true = inference._Work.compute
def counted(self, block):
    true(self, block)
    print(self.passes, file=sys.stderr, flush=True)
inference._Work.compute = counted
from toolkit.cli""",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=crowd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    made = 0
    for line in process.stderr:
        made = int(line)
        if made >= 200 * 4:
            break
    process.kill()
    made = max([made, *(int(word) for word in process.stderr.read().split() if word.isdigit())])
    process.stderr.close()
    process.wait()
    held = sum(len(table) for table in opened(crowd))
    assert held > 0
    assert made - held <= (FLUSHED + BLOCK) * 4


def test_two_runs_at_once_and_compacting_between_them(crowd):
    store = crowd / "store"
    both = [
        subprocess.Popen(command("--name", name), cwd=crowd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    refused = 0
    while any(process.poll() is None for process in both):
        if (store / "lock").exists():
            try:
                maintenance.compact(store)
            except StoreError as error:
                refused += "in use by another run" in error.message
        time.sleep(0.05)
    assert [process.wait() for process in both] == [0, 0], [process.stderr.read() for process in both]
    for process in both:
        process.stdout.close()
        process.stderr.close()
    assert values(crowd, "one") == values(crowd, "two")
    assert refused > 0
    done = maintenance.compact(store)
    held_out = 12  # rows of each fold that its own model predicted, for the score beside the predictions
    assert (done.after, {len(table) for table in opened(crowd)}) == (4, {IMAGES + held_out})
    after = subprocess.run(command("--name", "after"), cwd=crowd, check=True, capture_output=True, text=True)
    assert passes(after.stdout) == 0
    assert values(crowd, "after") == values(crowd, "one")


@pytest.mark.parametrize(
    "limit", [pytest.param(300, marks=pytest.mark.slow), 5_000, pytest.param(9_000, marks=pytest.mark.slow)]
)
def test_a_disk_that_fills_up_at_any_moment_loses_no_finished_row(crowd, limit):
    """A limit on the size of files stands for the full disk: writing beyond it fails as writing to a full one does."""
    # Python writes bytecode that such a limit cuts short, and then reads it for ever (CPython 3.11).
    code = f"import resource, signal, sys\nsys.dont_write_bytecode = True\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    done = subprocess.run([sys.executable, "-c", code + RUN], cwd=crowd, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(crowd.rglob("*.part-*"))
    held = sum(len(table) for table in opened(crowd))
    again = subprocess.run(command(), cwd=crowd, capture_output=True, text=True, check=True)
    assert passes(again.stdout) == IMAGES * 4 - held
