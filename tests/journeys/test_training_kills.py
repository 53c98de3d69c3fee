"""Training killed before a write, or refused by a full disk at one, ends as an undisturbed run: benchmarks/kills.py in small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("quick_processes")

HERE = Path(__file__).parents[2]

# every write between a fold's last epoch and the first of the next one, or each of the whole run
RUN = """
import json, sys
sys.path[:0] = ["benchmarks", "."]
import kills

def end_of_fold(writes):
    state = [place for place, what in enumerate(writes) if what.startswith("rename runs/tiny/fold0/resume.pt")]
    following = next(place for place, what in enumerate(writes) if "runs/tiny/fold1" in what)
    return list(range(state[-1], following + 1))

def before_what_a_fold_leaves(writes):
    return [place for place in end_of_fold(writes) if writes[place].startswith("rename runs")][1:4]

with kills.quick_exports():
    made = kills.attack({moments}, 0, kills.Config(epochs={epochs}), {logger!r}, {chosen})
print("said", json.dumps([made.writes, made.refused, made.wrong]))
"""


def attacked(moments: int, epochs: int, logger: str, chosen: str) -> list[list[str]]:
    code = RUN.format(moments=moments, epochs=epochs, logger=logger, chosen=chosen)
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE, env={**os.environ, **one}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("said ")).removeprefix("said "))


def test_killed_or_out_of_disk_before_what_a_finished_fold_leaves():
    writes, refused, wrong = attacked(0, 1, "none", "before_what_a_fold_leaves")
    assert not wrong
    assert len(refused) == 3
    assert any("metrics.csv" in what or "oof.parquet" in what for what in refused), refused
    assert any("oof/tiny.parquet" in what for what in writes)


@pytest.mark.slow
def test_killed_or_out_of_disk_between_the_last_epoch_and_the_next_fold():
    writes, refused, wrong = attacked(0, 1, "none", "end_of_fold")
    assert not wrong
    assert len(writes) > 60
    assert len(refused) > 8
    assert any("config.json" in what for what in writes)
    assert any("oof/tiny.parquet" in what for what in writes)


@pytest.mark.slow
def test_killed_or_out_of_disk_at_every_write_and_at_fifty_moments():
    writes, refused, wrong = attacked(50, 3, "tensorboard", "None")
    assert not wrong
    assert len(refused) > 30
    assert any("events.out" in what for what in writes)
