"""`toolkit bundle`: an ensemble packed into one folder that runs without network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.base import durations
from toolkit.base.text.printing import Verbatim
from toolkit.cli import options
from toolkit.cli.completion import PREDICTIONS
from toolkit.errors import counted

if TYPE_CHECKING:
    from toolkit.submissions.bundle.pack import Bundle

CUDA = ("12", "13", "cpu")  # a test holds it equal to wheels.ENGINES, which cost too much to import for --help


@click.command()
@click.option("--name", default="", shell_complete=PREDICTIONS, help="Which predictions' ensemble.  [default: those made last]")
@click.option("--output", "-o", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The folder to make.")
@click.option("--python", default="", metavar="3.12", help="The target's Python.  [default: this machine's]")
@click.option(
    "--cuda", type=click.Choice(CUDA), help="The target's CUDA.  [default: what this machine has, see toolkit doctor]"
)
@click.option("--no-wheels", is_flag=True, help="Leave out the wheels: the target has onnxruntime, numpy and Pillow.")
@click.option("--deadline", default="", metavar="8h30m", help="When a run stops and writes what it has.  [default: never]")
@options.as_json
@options.workspace
def command(
    competition: Any, name: str, output: Path, deadline: str, python: str, cuda: str | None, *, no_wheels: bool
) -> options.Said:
    """Pack an ensemble into one folder that predicts a hidden test set without network.

    It holds the exports, the vote, the wheels of the target and the few modules that are needed: no torch, no pandas.

    \b
    toolkit bundle -o bundle --python 3.12 --cuda 12 --deadline 8h30m
    python bundle/run.py --test TEST_IMAGES --sample SAMPLE.csv --out submission.csv
    """
    from toolkit.cli.progress import bar
    from toolkit.submissions.bundle import pack

    limit = durations.seconds(deadline) if deadline else 0.0
    python, cuda, chosen = _target(python, cuda)
    with bar("Comparing pixels") as progress:
        bundle = pack.make(
            competition, output, python=python, cuda=cuda, name=name, wheels=not no_wheels, deadline=limit, progress=progress
        )
    run = f"python {bundle.path}/run.py --test DIR --sample FILE --out submission.csv"
    record = {"ok": True, "path": str(bundle.path), "bytes": bundle.size, "wheels": list(bundle.wheels), "run": run}
    record |= {"python": python, "cuda": cuda}
    return record, [f"Made {bundle.path}: {_size(bundle)}", *chosen, bundle.agreement, Verbatim(f"Run it as: {run}")]


def _size(bundle: Bundle) -> str:
    models, wheels = counted(len(bundle.recipe.models), "models"), counted(len(bundle.wheels), "wheels")
    return f"{models}, {wheels}, {bundle.size / 1e6:,.0f} MB"


def _target(python: str, cuda: str | None) -> tuple[str, str, list[str]]:
    """The target, what nobody named being this machine's, and a line that says so."""
    from toolkit.setup import doctor

    if python and cuda:
        return python, cuda, []
    here = doctor.own_target()
    own = [flag for flag, named in (("--python", python), ("--cuda", cuda)) if not named]
    python, cuda = python or here[0], cuda or (here[1] if here[1] in CUDA else "cpu")
    what = f"Python {python}, {'no GPU' if cuda == 'cpu' else f'CUDA {cuda}'}"
    return python, cuda, [f"For {what}: as on this machine; {' and '.join(own)} name{'s' * (len(own) == 1)} another target"]
