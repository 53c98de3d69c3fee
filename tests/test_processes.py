"""The processes that tests start without their imports are real ones."""

from __future__ import annotations

import array
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENDS = {
    "pass": 0,
    "raise SystemExit(3)": 3,
    "import sys; sys.exit('words')": 1,
    "1 / 0": 1,
    "raise KeyboardInterrupt": -2,
    "import os; os._exit(7)": 7,
    "import os; os.kill(os.getpid(), 9)": -9,
    "import os; os.kill(os.getpid(), 11)": -11,
}


@pytest.mark.parametrize("code", ENDS)
def test_they_end_as_an_interpreter_does(python, code):
    ours, theirs = (
        subprocess.run([one, "-c", code], capture_output=True, text=True, check=False) for one in (python, sys.executable)
    )
    assert ours.returncode == theirs.returncode == ENDS[code]
    assert ours.stdout == theirs.stdout == ""
    assert ours.stderr.splitlines()[-1:] == theirs.stderr.splitlines()[-1:]


SEEN = """
import json, os, sys
print(json.dumps([sys.argv, sys.path[0], __name__, os.getcwd(), os.environ["WORD"], sys.stdin.read(), sys.stdout.encoding,
    sys.stdout.isatty(), "toolkit" in sys.modules, "tests" in sys.modules, os.getsid(0) == os.getpid(), os.read(int(sys.argv[-1]), 9).decode()]))
print("last", file=sys.stderr)
"""


@pytest.mark.parametrize("how", ["-c", "file"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_they_see_what_an_interpreter_sees(python, tmp_path, how, encoding):
    (tmp_path / "seen.py").write_text(SEEN)
    found = []
    for one in (python, sys.executable):
        ours, theirs = os.pipe()
        os.write(theirs, b"handed on")
        words = ["-c", SEEN] if how == "-c" else ["seen.py"]
        environment = {**os.environ, "WORD": "꼬리", "PYTHONIOENCODING": encoding, "PYTHONPATH": ""}
        more = {"cwd": tmp_path, "env": environment, "pass_fds": (ours,), "start_new_session": how == "file"}
        done = subprocess.run(
            [one, *words, "a b", "\udcff", str(ours)], input=b"given", capture_output=True, check=True, **more
        )
        found.append((done.stdout, done.stderr))
        os.close(ours)
        os.close(theirs)
    assert found[0] == found[1]
    assert b"handed on" in found[0][0]


WAITS = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("session", [True, False])
def test_a_signal_for_the_command_is_one_for_the_process(python, number, session):
    process = subprocess.Popen(
        [python, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=session
    )
    pid = int(process.stdout.readline())
    assert pid != process.pid
    process.send_signal(number)
    assert process.wait(20) == -number
    assert process.stdout.read() == b""  # closed: nobody holds it
    process.stdout.close()
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise AssertionError(f"{pid} is still there")


def test_they_have_their_imports_and_a_session_runs_in_them(python, exported):
    code = f"""
import sys
there = {{"torch", "timm", "pytorch_lightning"}} <= set(sys.modules)
import numpy as np, onnxruntime as ort, torch
session = ort.InferenceSession({str(exported / "tiny.fold0.onnx")!r}, providers=["CPUExecutionProvider"])
out = session.run(None, {{"images": np.zeros((2, 3, 32, 32), np.uint8)}})[0]
layer = torch.nn.Linear(3, 3)
layer(torch.randn(2, 3)).sum().backward()
print(there, out.shape, layer.weight.grad is not None)
"""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True (2, 3) True\n"


def test_one_that_is_killed_while_it_asks_stops_nobody(python):
    path = Path(python).read_text().splitlines()[1].removeprefix("# ")
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        line.sendmsg([(1000).to_bytes(4, "little")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [2]))])
        line.sendall(b'{"argv": [')
    done = subprocess.run([python, "-c", "print(1)"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "1\n"
