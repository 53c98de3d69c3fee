"""Processes for tests that start one: `python` is a command as sys.executable is, but its process has the imports behind it."""

from __future__ import annotations

import fcntl
import importlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

STARTED: list[subprocess.Popen] = []  # kept, since one that is dropped while its process runs is warned of
HERE = Path(__file__).parent
PATIENCE = 180.0  # seconds that the imports of a busy machine may take


def forking(folder: Path) -> tuple[Path, socket.socket]:
    """The command, and a line to the process behind it, which ends when no line to it is open any more.

    All workers of the test runner share `folder`, the command and the process; the first to come starts it.
    """
    command = folder / "python"
    with (folder / "python.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if command.exists():
            try:
                return command, connected(command.read_text().splitlines()[1].removeprefix("# "))
            except OSError:  # it ended with the last worker that was there
                pass
        path = str(Path(tempfile.mkdtemp(prefix="toolkit-")) / "line")  # such a path must be short
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
        server = subprocess.Popen(
            [sys.executable, str(HERE / "forked_server.py"), path, str(folder / "exports")],
            env={**os.environ, **one},
            stdin=subprocess.DEVNULL,
        )
        STARTED.append(server)
        line = connected(path, server)
        words = f'exec "{sys.executable}" -I -S "{HERE / "forked_client.py"}" "{path}" "$@"'
        command.write_text(f"#!/bin/sh\n# {path}\n{words}\n")
        command.chmod(0o755)
        return command, line


def in_turn(names: Sequence[str]) -> None:
    """Import modules while no other worker of the runner does, so that bytecode is made once: 19 s of work on a fresh machine."""
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in names:
            importlib.import_module(name)


def connected(path: str, server: subprocess.Popen | None = None) -> socket.socket:
    """A line to the process that listens there, or will soon."""
    until = time.monotonic() + PATIENCE
    while True:
        line = socket.socket(socket.AF_UNIX)
        try:
            line.connect(path)
        except OSError:
            line.close()
            if server is None or server.poll() is not None or time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return line
