"""Stands for `python …` where a test starts one: asks the warmed process to fork, and ends as the forked one does.

It loads next to nothing, so that it is there in milliseconds. Signals are passed on; its own death kills the forked one.
"""

import array
import json
import os
import resource
import signal
import socket
import sys

HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def inherited() -> list[int]:
    """The file descriptors that whoever started this process gave it."""
    numbers = []
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - pathlib is not worth its import here
        try:
            os.fstat(int(name))
        except OSError:  # of the listing itself
            continue
        numbers.append(int(name))
    return sorted(numbers)


def main() -> None:
    """Send arguments, folder, environment and descriptors; pass on signals; end with the code or the signal that comes back."""
    path, *words = sys.argv[1:]
    numbers = inherited()
    line = socket.socket(socket.AF_UNIX)
    line.connect(path)
    asked = json.dumps(
        {
            "argv": [os.fsencode(word).hex() for word in words],
            "cwd": os.getcwd(),  # noqa: PTH109
            "env": {os.fsencode(k).hex(): os.fsencode(v).hex() for k, v in os.environ.items()},
            "numbers": numbers,
            "leads": os.getsid(0) == os.getpid(),
        }
    ).encode()
    for number in HANDED_ON:
        signal.signal(number, lambda got, _frame: line.sendall(bytes([got])))
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))]
    line.sendmsg([len(asked).to_bytes(4, "little")], rights)
    line.sendall(asked)
    for number in numbers:
        os.close(number)  # a pipe is closed when the forked process closes it
    answer = line.recv(4)
    code = int.from_bytes(answer, "little", signed=True) if len(answer) == 4 else 70
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


main()
