"""Seconds and peak memory of `toolkit eda` on Fashion-MNIST's 60,000 training images: `python benchmarks/eda.py`.

    apt-get install dataset-fashion-mnist
    python benchmarks/eda.py
    python benchmarks/eda.py --sample 60000      # the pixels of all, not of 20,000

The images are written as PNG files first, by benchmarks/fashion.py. Memory is the largest resident set of the command, measured
by the kernel for the child alone; `bare` is that of the same command on 100 images: what its libraries take.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from fashion import make_workspace

CODE = """
import resource, sys
from toolkit.cli import cli

cli.main(sys.argv[1:], standalone_mode=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def measure(root: Path, sample: int) -> tuple[float, float, dict[str, object]]:
    """Seconds, peak resident memory in MiB, and what the command says with --json."""
    started = time.perf_counter()
    command = [sys.executable, "-c", CODE, "eda", "--json", "--sample", str(sample)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return time.perf_counter() - started, int(done.stderr.split()[-1]) / 1024, json.loads(done.stdout)


@click.command()
@click.option("--source", type=click.Path(path_type=Path), default="/usr/share/datasets/fashion-mnist", show_default=True)
@click.option("--train", default=60_000, show_default=True)
@click.option("--test", default=10_000, show_default=True)
@click.option("--sample", default=20_000, show_default=True, help="Images of each part whose pixels are looked at.")
def main(source: Path, train: int, test: int, sample: int) -> None:
    """Print both, and the size of the page."""
    if not source.is_dir():
        raise click.ClickException(f"{source} does not exist: apt-get install dataset-fashion-mnist")
    for what, counts in (("bare", (100, 10)), ("full", (train, test))):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "work"
            make_workspace(root, source, *counts)
            seconds, peak, said = measure(root, sample)
            page = (root / "reports" / "eda.html").stat().st_size / 1e6
            images, looked = said["images"], said["sampled"]
            print(f"{what}: {images} files, pixels of {looked}: {seconds:.1f} s, peak {peak:,.0f} MiB, page {page:.1f} MB")
            print(f"  {said['doubles']['exact']} + {said['doubles']['near']} pairs of one picture (same bytes + same sight)")


if __name__ == "__main__":
    main()
