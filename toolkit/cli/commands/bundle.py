"""`toolkit bundle`: an ensemble packed into one folder that runs without network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolkit.base import durations
from toolkit.base.text.printing import Verbatim
from toolkit.cli import options
from toolkit.cli.completion import PREDICTIONS
from toolkit.errors import counted

CUDA = ("12", "13", "cpu")  # a test holds it equal to wheels.ENGINES, which cost too much to import for --help


@click.command()
@click.option("--name", default="", shell_complete=PREDICTIONS, help="Which predictions' ensemble.  [default: those made last]")
@click.option("--output", "-o", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The folder to make.")
@click.option("--python", required=True, metavar="3.12", help="The target's Python.")
@click.option("--cuda", type=click.Choice(CUDA), required=True, help="The target's CUDA.")
@click.option("--no-wheels", is_flag=True, help="Leave out the wheels: the target has onnxruntime, numpy and Pillow.")
@click.option("--deadline", default="", metavar="8h30m", help="When a run stops and writes what it has.  [default: never]")
@options.as_json
@options.workspace
def command(competition: Any, name: str, output: Path, deadline: str, *, no_wheels: bool, **target: Any) -> options.Said:
    """Pack an ensemble into one folder that predicts a hidden test set without network.

    It holds the exports, the vote, the wheels of the target and the few modules that are needed: no torch, no pandas.

    \b
    toolkit bundle -o bundle --python 3.12 --cuda 12 --deadline 8h30m
    python bundle/run.py --test TEST_IMAGES --sample SAMPLE.csv --out submission.csv
    """
    from toolkit.cli.progress import bar
    from toolkit.submissions.bundle import pack

    limit = durations.seconds(deadline) if deadline else 0.0
    with bar("Comparing pixels") as progress:
        bundle = pack.make(competition, output, name=name, wheels=not no_wheels, deadline=limit, progress=progress, **target)
    run = f"python {bundle.path}/run.py --test DIR --sample FILE --out submission.csv"
    size = (
        f"{counted(len(bundle.recipe.models), 'models')}, {counted(len(bundle.wheels), 'wheels')}, {bundle.size / 1e6:,.0f} MB"
    )
    record = {"ok": True, "path": str(bundle.path), "bytes": bundle.size, "wheels": list(bundle.wheels), "run": run}
    return record, [f"Made {bundle.path}: {size}", bundle.agreement, Verbatim(f"Run it as: {run}")]
