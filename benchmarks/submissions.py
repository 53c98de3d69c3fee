"""Seconds and peak memory of `toolkit submit` on 10,000 and on a million rows: `python benchmarks/submissions.py`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

CODE = """import resource, sys
from toolkit.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_maxrss, used.ru_utime + used.ru_stime, "torch" in sys.modules)
"""


def make_workspace(root: Path, rows: int, classes: int, *, shuffle: bool) -> None:
    """A table of random probabilities, and a sample that asks for them in its order (as ensembles are made) or another."""
    from toolkit.core.prediction_files import write_table
    from toolkit.core.predictions import Predictions
    from toolkit.workspace.competition import Competition, Images, Target

    rng = np.random.default_rng(0)
    names = tuple(f"class{i}" for i in range(classes))
    ids = [f"{i:07d}.jpg" for i in range(rows)]
    target = Target("label", "multiclass", names)
    images = Images("test", "{id}", "train.csv")
    competition = Competition(root, "speed", "log_loss", (target,), images, Images("test", "{id}"), format="probabilities")
    root.mkdir()
    (root / "competition.toml").write_text(competition.to_toml())
    values = rng.dirichlet(np.full(classes, 0.1), rows)
    table = Predictions("label", "probabilities", tuple(ids), names, values)
    meta = {"name": "ensemble", "created": "2026-11-23T10:00:00+00:00"}
    write_table(root / "predictions" / "ensemble.parquet", {"label": table}, meta)
    zeros = ",0" * classes
    head = ",".join(["id", *names])
    lines = [f"{ids[i]}{zeros}" for i in (rng.permutation(rows) if shuffle else range(rows))]
    (root / "sample_submission.csv").write_text("\n".join([head, *lines]) + "\n")


def measure(root: Path) -> tuple[float, float, float, str]:
    """Wall seconds, processor seconds, peak MiB of the command in a process of its own, and whether torch was loaded."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", CODE, "submit"], cwd=root, capture_output=True, text=True, check=True)
    wall = time.perf_counter() - started
    peak, busy, torch = done.stdout.splitlines()[-1].split()
    return wall, float(busy), int(peak) / 1024, torch


@click.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--classes", default=18, show_default=True)
@click.option("--shuffle", is_flag=True, help="The sample's rows in another order than the predictions'.")
@click.option("--repeat", default=3, show_default=True)
def main(rows: int, classes: int, repeat: int, shuffle: bool) -> None:
    """Print the best of several runs (asked: 6 s and 2,000 MiB for a million rows, 1 s for 10,000, no torch)."""
    for count in (10_000, rows):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "work"
            make_workspace(root, count, classes, shuffle=shuffle)
            wall, busy, peak, torch = min(measure(root) for _ in range(repeat))
            size = (root / "submission.csv").stat().st_size / 2**20
        click.echo(
            f"{count:>9,} rows × {classes}  {wall:.2f} s ({busy:.2f} s of processor)  peak {peak:,.0f} MiB  "
            f"{size:.0f} MiB written  torch loaded: {torch}"
        )


if __name__ == "__main__":
    main()
