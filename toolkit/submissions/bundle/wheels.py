"""Wheels for a machine that is not this one: onnxruntime, numpy and Pillow for a Python and a CUDA, fetched by pip."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

from toolkit.errors import DataError, ToolkitError

# what runs the models on a target: PyPI's onnxruntime-gpu was built for CUDA 12 up to 1.26, for CUDA 13 from 1.28
ENGINES: dict[str, str] = {
    "cpu": "onnxruntime>=1.31,<1.32",
    "12": "onnxruntime-gpu>=1.26,<1.27",
    "13": "onnxruntime-gpu>=1.31,<1.32",
}
_BESIDE = ("numpy>=2.2,<3", "pillow>=12")
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def check_target(python: str, cuda: str) -> None:
    """Refuse a target that no bundle runs on.

    Raises:
        DataError: says what may be asked for.
    """
    version = re.fullmatch(r"3\.(\d+)", python)
    if not version or int(version[1]) < 11:
        raise DataError(
            f"{python!r} is no Python that bundles run on", hint="It is 3.11 or later, as in 3.12.", code="bundle-target"
        )
    if cuda not in ENGINES:
        raise DataError(f"CUDA {cuda!r} is unknown", hint=f"Use one of: {', '.join(ENGINES)}.", code="bundle-target")


def fetch(folder: Path, python: str, cuda: str) -> None:
    """Get the wheels of the target with pip, whatever machine this is.

    Raises:
        ToolkitError: there is no pip, or it fails.
    """
    tag = python.replace(".", "")
    command = [*_pip(), "download", "--quiet", "--disable-pip-version-check", "--dest", str(folder), "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", "--abi", f"cp{tag}", "--abi", "abi3", "--abi", "none"]
    command += [word for platform in _PLATFORMS for word in ("--platform", platform)]
    done = subprocess.run([*command, ENGINES[cuda], *_BESIDE], capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise ToolkitError(
            f"pip cannot get the wheels for Python {python}, CUDA {cuda}: {last[-1] if last else 'it does not say why'}",
            hint="Check the network and the target.",
            code="wheels",
        )


def _pip() -> list[str]:
    """A pip of any Python: it is told about the target, and environments made by uv have none of their own."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    for name in ("pip", "pip3"):
        if path := shutil.which(name):
            return [path]
    raise ToolkitError("pip is not installed, which gets the wheels", hint="Install pip.", code="wheels")
