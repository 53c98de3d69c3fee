"""Images that may take long, decoded in a process of their own that is ended when its time is over."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import ImageError
from toolkit.images.treatments import PLAIN, Treatment

SECONDS = 10.0  # of processor time
WAIT = 6.0  # times as long a busy machine may take for it
_HINT = "Save it again as JPEG or PNG, or leave it out."
_ROOT = str(Path(__file__).parents[2])
_CODE = """
import sys
from functools import partial
sys.path.insert(0, sys.argv[1])
from toolkit.images import deadline, decode
deadline.serve(partial(decode.stored, treatment=deadline.read(sys.argv[3])), sys.argv[2])
"""


def decode(data: bytes, where: str, treatment: Treatment = PLAIN) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """RGB pixels as stored, uint8 (height, width, 3), of a file's bytes, by Pillow.

    Raises:
        ImageError: it took longer than SECONDS of processor time; or what decoding raises.
        MemoryError: the process ran out of memory.
    """
    late = ImageError(f"{where} takes longer than {SECONDS:g} s to decode", hint=_HINT)
    command = [sys.executable, "-c", _CODE, _ROOT, str(SECONDS), json.dumps(asdict(treatment))]
    try:
        done = subprocess.run(  # noqa: S603 - our own code
            command,
            input=data,
            capture_output=True,
            check=False,
            timeout=SECONDS * WAIT,
            env={**os.environ, "PYTHONSAFEPATH": "1"},  # no module of the current folder
        )
    except subprocess.TimeoutExpired as error:
        raise late from error
    if done.returncode < 0:
        raise late if -done.returncode in (9, 24) else ImageError(f"{where} ends the decoder by signal {-done.returncode}")
    if done.returncode:
        said = json.loads(done.stdout or b"{}") or {"kind": "", "message": done.stderr.decode(errors="replace")[-300:]}
        if said["kind"] == "MemoryError":
            raise MemoryError(f"not enough memory to decode {where}")
        if said["kind"] == "ImageError":
            raise ImageError(str(said["message"]).replace("the image", where, 1), hint=str(said["hint"]))
        raise RuntimeError(said["message"])
    pixels: np.ndarray[Any, np.dtype[np.uint8]] = np.load(io.BytesIO(done.stdout), allow_pickle=False)
    return pixels


def read(text: str) -> Treatment:
    """In the process: the treatment that was asked for."""
    raw = json.loads(text)
    return Treatment(**raw | {"window": raw["window"] and tuple(raw["window"])})


def serve(stored: Callable[[bytearray], np.ndarray[Any, Any]], seconds: str) -> None:
    """In the process: decode standard input to standard output with `decode.stored`."""
    try:
        import resource

        whole = max(1, int(-(-float(seconds) // 1)))
        resource.setrlimit(resource.RLIMIT_CPU, (whole, whole + 1))
    except (ImportError, ValueError, OSError):  # a system without such limits, or with lower ones: the clock is left
        pass
    try:
        out = io.BytesIO()
        np.save(out, stored(bytearray(sys.stdin.buffer.read())))
        sys.stdout.buffer.write(out.getbuffer())
    except Exception as error:  # noqa: BLE001 - said to the process that asked
        said = {"kind": type(error).__name__, "message": str(error), "hint": getattr(error, "hint", "")}
        sys.stdout.buffer.write(json.dumps(said).encode())
        sys.stdout.flush()
        sys.exit(1)
