"""No library asks for a connection when it is imported: a process without names and connections imports them all."""

from __future__ import annotations

import subprocess
import sys

CLOSED = """
import socket, sys, threading
asked = []
def refuse(*arguments, **options):
    asked.append(repr(arguments))
    raise OSError("closed")
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse)
own = socket.socket.connect
socket.socket.connect = lambda self, address: own(self, address) if self.family == socket.AF_UNIX else refuse(address)
socket.socket.sendto = refuse
import toolkit
%s
for thread in threading.enumerate():
    if thread is not threading.main_thread() and not thread.daemon:
        thread.join(5)
import time
time.sleep(0.3)
print("ASKED", asked)
"""


def asked(lines: str) -> str:
    done = subprocess.run([sys.executable, "-c", CLOSED % lines], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


def test_openvino_looks_up_no_host():
    lines = "from toolkit.runtime import openvino_session\nopenvino_session._core()"
    assert asked(lines) == "ASKED []"


def test_what_training_imports_looks_up_no_host(python):
    """What the forked process holds already was imported with hosts watched; the rest is imported here."""
    held = "import socket, sys\nprint('HELD', socket.asked, {'torch', 'timm', 'pytorch_lightning'} <= set(sys.modules))\n"
    lines = "import albumentations, optuna, pytorch_lightning, timm, huggingface_hub, onnxruntime"
    done = subprocess.run([python, "-c", held + CLOSED % lines], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout.splitlines()
    assert said[0] == "HELD [] True"
    assert said[-1] == "ASKED []"
