"""One process that has imported what every training and prediction imports, and forks itself for each command of a test.

A forked process is a process of its own: own pid, real exit code, real signals, and the package itself imported afresh. Only
the dependencies are there already. It forks before any session, thread or loader exists, with one thread for the kernels.
"""

from __future__ import annotations

import array
import atexit
import codecs
import fcntl
import gc
import io
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
import types
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

# Not onnxruntime: importing it starts a thread, for which a forked process would wait at its end.
HEAVY = (
    "torch.onnx",
    "torchvision.transforms.v2",
    "torch.utils.tensorboard",
    "onnxscript",
    "timm",
    "pandas",
    "pyarrow.parquet",
    "scipy.stats",
    "sklearn.model_selection",
    "sklearn.metrics",
    "matplotlib.figure",
    "pytorch_lightning",
    "PIL.Image",
    "click",
    "rich.table",
)


ASKING = ("getaddrinfo", "gethostbyname", "create_connection")


def watch() -> None:
    """From now on, whoever looks up a host is written down in `socket.asked` and refused; a test reads it in a forked process."""
    socket.asked = asked = []  # type: ignore[attr-defined]

    def refuse(*given: Any, **_: Any) -> NoReturn:
        asked.append(repr(given))
        raise OSError("closed")

    for name in ASKING:
        setattr(socket, name, refuse)


def warm(exports: Path) -> None:
    """Import, and export a network once: what a first export loads and tabulates is there for all that follow."""
    import importlib

    import torch
    from tqdm import tqdm

    torch.set_num_threads(1)
    watched, tqdm.monitor_interval = tqdm.monitor_interval, 0  # it would start a thread
    for name in HEAVY:
        importlib.import_module(name)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.exporter import keep_the_registry, remember

    sys.path.pop(0)
    keep_the_registry()
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "toolkit")]:
        del sys.modules[name]
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten(), torch.nn.Linear(72, 2))
    shapes = ({0: torch.export.Dim("batch")},)
    with suppress(Exception):
        torch.onnx.export(
            layer.eval(), (torch.zeros(2, 3, 8, 8),), dynamo=True, opset_version=20, dynamic_shapes=shapes, verbose=False
        )
    remember(exports)
    tqdm.monitor_interval = watched


class Server:
    """The socket, its clients, and the forked process of each."""

    def __init__(self, path: str) -> None:
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(path)
        self.listening.listen(64)
        self.ready = selectors.DefaultSelector()
        self.ready.register(self.listening, selectors.EVENT_READ)
        self.woken, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(self.woken, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.ready.register(self.woken, selectors.EVENT_READ)
        self.wake = wake
        self.children: dict[int, tuple[socket.socket, bool]] = {}
        self.clients: set[socket.socket] = set()

    def serve(self) -> dict[str, Any] | None:
        """What a forked process is to run; None in the server itself once nobody needs it."""
        begun = False
        while self.clients or not begun:
            for key, _ in self.ready.select():
                if key.fileobj is self.listening:
                    client, _ = self.listening.accept()
                    begun = True
                    self.clients.add(client)
                    self.ready.register(client, selectors.EVENT_READ)
                elif key.fileobj == self.woken:
                    with suppress(BlockingIOError):
                        os.read(self.woken, 4096)
                    self.reap()
                elif asked := self.hear(key.fileobj):
                    return asked
        return None

    def hear(self, client: socket.socket) -> dict[str, Any] | None:
        """A request, which is forked for; or a signal for what was forked; or the client's end, which is the forked one's."""
        pid = next((pid for pid, (line, _) in self.children.items() if line is client), None)
        if pid is not None:
            got = client.recv(1)
            self.send(pid, got[0] if got else signal.SIGKILL)
            if not got:
                self.forget(client)
            return None
        numbers = array.array("i")
        head, rights, *_ = client.recvmsg(4, socket.CMSG_SPACE(64 * numbers.itemsize))
        if not head:
            self.forget(client)
            return None
        for _level, _kind, data in rights:
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
        asked, left = b"", int.from_bytes(head, "little")
        while len(asked) < left:
            more = client.recv(left - len(asked))
            if not more:  # it was killed while it asked
                for number in numbers:
                    os.close(number)
                self.forget(client)
                return None
            asked += more
        request = json.loads(asked)
        if pid := os.fork():
            for number in numbers:
                os.close(number)
            self.children[pid] = client, request["leads"]
            return None
        self.become(request, list(numbers))
        return request

    def send(self, pid: int, number: int) -> None:
        with suppress(ProcessLookupError):
            (os.killpg if self.children[pid][1] else os.kill)(pid, number)

    def forget(self, client: socket.socket) -> None:
        self.ready.unregister(client)
        self.clients.discard(client)
        client.close()

    def reap(self) -> None:
        """Tell the clients of processes that have ended how they did."""
        while self.children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            client, _ = self.children.pop(pid)
            if client in self.clients:
                with suppress(OSError):
                    client.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "little", signed=True))
                self.forget(client)

    def become(self, request: dict[str, Any], received: list[int]) -> None:
        """In the forked process: nothing of the server, and everything of who asked."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if request["leads"]:
            os.setsid()
        self.ready.close()
        for line in (self.listening, *self.clients):
            line.close()
        os.close(self.woken)
        os.close(self.wake)
        far = [fcntl.fcntl(number, fcntl.F_DUPFD, 500) for number in received]
        for number in received:
            os.close(number)
        for number, target in zip(far, request["numbers"], strict=True):
            os.dup2(number, target)
            os.close(number)
        os.chdir(request["cwd"])
        os.environ.clear()
        for name, value in request["env"].items():
            os.environb[bytes.fromhex(name)] = bytes.fromhex(value)


def streams() -> None:
    """Standard streams on the new descriptors, as an interpreter opens them."""
    named, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    encoding = codecs.lookup(named or "utf-8").name
    strict = errors or ("strict" if named else "surrogateescape" if os.environ.get("LC_ALL") == "C" else "strict")
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "rb", closefd=False)), encoding, strict)
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = io.BufferedWriter(io.FileIO(number, "wb", closefd=False))
        how = strict if number == 1 else "backslashreplace"
        buffered = number == 1 and not os.isatty(1) and not os.environ.get("PYTHONUNBUFFERED")
        stream = io.TextIOWrapper(raw, encoding, how, line_buffering=not buffered, write_through=number == 2)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def run(argv: list[bytes]) -> None:
    """What `python` does with these words: `-c code …`, `-m module …` or `file …`."""
    import numpy as np
    import torch

    streams()
    random.seed()
    np.random.seed(None)  # noqa: NPY002 - as in a process that starts
    torch.seed()
    torch.set_num_threads(1)  # makes its pool anew, before the threads of autograd race for it ("Invalid thread pool")
    first, *rest = map(os.fsdecode, argv)
    sys.path[:] = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *sys.path[1:]]
    if first == "-m":
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
        sys.argv = [rest[0], *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    if first == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest[1:]]
        code = compile(rest[0], "<string>", "exec")
    else:
        sys.path.insert(0, str(Path(first).parent.absolute()))
        sys.argv = [first, *rest]
        main.__file__ = first
        code = compile(Path(first).read_bytes(), first, "exec")
    exec(code, vars(main))


def end(run: Callable[[list[bytes]], None], argv: list[bytes]) -> NoReturn:
    """Run and end as an interpreter does, but for taking every module apart, which takes seconds."""
    code = 0
    try:
        run(argv)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if error.code is not None and not isinstance(error.code, int):
            sys.stderr.write(f"{error.code}\n")
    except BaseException as error:  # noqa: BLE001 - as the interpreter does
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
        sys.excepthook(type(error), error, error.__traceback__)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    hosts = {name: getattr(socket, name) for name in ASKING}
    watch()
    warm(Path(sys.argv[2]))
    for name, function in hosts.items():
        setattr(socket, name, function)
    tasks = [path.joinpath("comm").read_text().strip() for path in Path("/proc/self/task").glob("*")]
    others = [name for name in tasks if name != "jemalloc_bg_thd"]  # which knows of forks
    assert len(others) <= 1, f"threads {others}: a fork would carry their locks"
    gc.collect()
    gc.freeze()  # what is there already is left alone, and its memory stays shared
    request = Server(sys.argv[1]).serve()
    if request:
        end(run, [bytes.fromhex(word) for word in request["argv"]])
    os._exit(0)
