"""Folds trained in processes that run the recipe's script again: several folds at once, or all on one fold's batches."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from toolkit.base.runners.jobs import visible
from toolkit.errors import DeviceError, ToolkitError, TrainingError, counted
from toolkit.runtime.devices import cores
from toolkit.training.fold.fit import choose_device
from toolkit.training.fold.samples import Progress
from toolkit.training.plan import Bar, Done, Say, TrainingPlan
from toolkit.training.worker import GRACE, KEPT, OFTEN, WORKER, Task

STDERR = 2

Spread = Literal["folds", "batches"]
SPREADS: tuple[Spread, ...] = ("folds", "batches")


@dataclass(frozen=True)
class ProcessLauncher:
    """Processes that train a plan's folds by running the command (`script` and `arguments`) that made the plan once more.

    `spread` "folds" gives each process a fold at a time; the results are those of one process after another. "batches" has
    them share every batch of one fold at a time. On CUDA they share `gpus`, each seeing one of them.
    """

    script: Path
    arguments: tuple[str, ...]
    processes: int
    gpus: int = 0
    spread: Spread = "folds"

    def splits(self, folds: Sequence[int | None]) -> bool:
        """Whether these folds are more than one process can do alone."""
        return self.processes > 1 and len(folds) > (self.spread == "folds")

    def train(self, plan: TrainingPlan, folds: Sequence[int | None], *, device: str, bar: Bar, say: Say) -> Generator[Done]:
        """Train these folds, which are unfinished, and give them in order; whatever ends this ends all processes.

        Raises:
            TrainingError: a process failed or died; says which fold it was at.
        """
        if note := self._crowded(device):
            say(note)
        alone = self.spread == "folds"
        waiting = [(fold,) for fold in folds] if alone else [tuple(folds)]
        free = list(range(self.processes if alone else 1))
        running: list[_Job] = []
        done: dict[int | None, Done] = {}
        shown = _Shown(len(folds))
        try:
            with TemporaryDirectory(prefix="toolkit-crew-") as folder:
                for fold in folds:
                    with bar(f"{plan.member} {_named([left for left in folds if left not in done])}") as progress:
                        while fold not in done:
                            while waiting and free:
                                meeting = Path(folder) / str(len(waiting))
                                running.append(self._start(plan, waiting.pop(0), free.pop(0), device, meeting))
                            _wait(running)
                            for job in [job for job in running if job.over(done, shown, progress, say)]:
                                running.remove(job)
                                free.append(job.place)
                    yield done[fold]
                while running:  # they are about to end
                    _wait(running)
                    running = [job for job in running if not job.over(done, shown, lambda _done, _total: None, say)]
        finally:
            end([hand for job in running for hand in job.hands])

    def _start(self, plan: TrainingPlan, folds: tuple[int | None, ...], place: int, device: str, meeting: Path) -> _Job:
        size = 1 if self.spread == "folds" else self.processes
        job = _Job(folds, place)
        for rank in range(size):
            task = Task(folds, str(plan.root.absolute()), plan.key, device, rank, size, str(meeting))
            environment = visible(place + rank, self.gpus) if device == "cuda" else {}
            if size > 1 and device == "cpu" and "OMP_NUM_THREADS" not in os.environ:
                environment["OMP_NUM_THREADS"] = str(max(1, cores() // size))
            job.hands.append(Hand.start([str(self.script), *self.arguments], task, environment))
        return job

    def _crowded(self, device: str) -> str:
        """A sentence where several folds have more threads than there are cores: fewer would change the last digits."""
        import torch

        each = torch.get_num_threads()
        if device != "cpu" or self.spread != "folds" or each * self.processes <= cores():
            return ""
        return (
            f"{counted(self.processes, 'processes')} of {each} threads share {counted(cores(), 'cores')}: OMP_NUM_THREADS="
            f"{max(1, cores() // self.processes)} before the command gives each its own (and other last digits)"
        )


def launcher_for(
    command: tuple[Callable[..., Any], Sequence[str]],
    *,
    gpus: int | Literal["all"] | None,
    processes: int | None,
    spread: Spread | None,
    device: str,
    models: int,
) -> ProcessLauncher | None:
    """The launcher that is asked for, None where one process is enough; `command` is a script's function and its arguments.

    `models` is the number of folds to be trained (the model of all rows counts as one).

    Raises:
        DeviceError: more GPUs than there are, or GPUs for work on a CPU.
        TrainingError: nothing to spread, or nothing to spread it over.
    """
    if gpus is None and processes is None:
        if spread:
            raise TrainingError(
                f"spreading {spread} needs to know over how many", hint="Say how many GPUs or processes.", code="spread-over"
            )
        return None
    gpu_count = _gpus(gpus, choose_device(device))
    count, spread = processes or gpu_count, spread or "folds"
    if spread == "batches" and gpu_count and count != gpu_count:
        raise DeviceError(
            f"sharing batches takes a GPU per process, not {counted(count, 'processes')} for {counted(gpu_count, 'GPUs')}",
            hint=f"Use as many GPUs as processes: {count}.",
            code="gpu-per-process",
        )
    if spread == "folds" and models == 1 < count:
        raise TrainingError(
            f"there is one model to train, which {counted(count, 'processes')} cannot share as folds",
            hint="Share its batches, or train it in one process.",
            code="spread-batches",
        )
    function, arguments = command
    script = inspect.getsourcefile(inspect.unwrap(function))
    if script is None:
        raise TrainingError("several processes need a recipe that is a file", hint="Save it as one.")
    return (
        ProcessLauncher(Path(script).absolute(), tuple(arguments), count, min(gpu_count, count), spread) if count > 1 else None
    )


def _gpus(asked: int | Literal["all"] | None, device: str) -> int:
    """How many GPUs are meant, 0 on a CPU."""
    import torch

    there = torch.cuda.device_count() if device == "cuda" else 0
    if not there and asked:
        raise DeviceError(
            f"{asked if asked == 'all' else counted(asked, 'GPUs')} asked for, but the device is the CPU",
            hint="Ask for processes, or run `toolkit doctor` to see why there is no CUDA device.",
            code="processes-on-cpu",
        )
    if isinstance(asked, int) and asked > there:
        raise DeviceError(
            f"{counted(asked, 'GPUs were')} asked for, there {'is' if there == 1 else 'are'} {there}",
            hint="CUDA_VISIBLE_DEVICES may hide some of this machine's.",
            code="gpus-all",
        )
    return there if asked == "all" else asked or min(there, 1)


# --- one process, from outside ---------------------------------------------------------------------------------------


@dataclass
class Hand:
    """A process, and the line to it: what it says comes in; closing it tells it to end, as the death of this process does."""

    process: subprocess.Popen[bytes]
    line: Connection
    rank: int
    failed: ToolkitError | None = None
    lost: bool = False  # it says that another one is gone

    @classmethod
    def start(cls, command: Sequence[str], task: Task, environment: Mapping[str, str]) -> Hand:
        """Begin a process in a session of its own: Ctrl-C at the terminal comes to this one, which then ends them all."""
        ours, theirs = Pipe()
        with theirs:
            work = json.dumps({"line": theirs.fileno(), **asdict(task)})
            process = subprocess.Popen(  # noqa: S603 - the command that runs already
                [sys.executable, *command],
                env={**os.environ, **environment, WORKER: work},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if task.rank else STDERR,  # results are printed by this one
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        return cls(process, ours, task.rank)

    def messages(self) -> Iterator[tuple[Any, ...]]:
        """What it said since the last time."""
        with suppress(EOFError, OSError):
            while self.line.poll():
                yield self.line.recv()


@dataclass
class _Job:
    """Folds that one process trains, or several that share their batches."""

    folds: tuple[int | None, ...]
    place: int
    hands: list[Hand] = field(default_factory=list)
    left: list[int | None] = field(init=False)

    def __post_init__(self) -> None:
        self.left = list(self.folds)

    def over(self, done: dict[int | None, Done], shown: _Shown, progress: Progress, say: Say) -> bool:
        """Hear what its processes have said; whether all of them have finished.

        Raises:
            TrainingError: one of them failed or died.
        """
        codes = [hand.process.poll() for hand in self.hands]  # before the last words are read
        for hand in self.hands:
            for kind, *message in hand.messages():
                if kind == "done":
                    done[message[0].fold] = message[0]
                    self.left.remove(message[0].fold)
                elif kind == "progress":
                    progress(*shown.add(*message))
                elif kind == "lost":
                    hand.lost = True
                else:
                    if kind == "crashed":
                        say(message.pop())
                    hand.failed = hand.failed or ToolkitError(message[0], hint=message[1], code=message[2])
        self._trouble(codes)
        return all(code == 0 for code in codes)

    def _trouble(self, codes: Sequence[int | None]) -> None:
        """Say why the job cannot go on: what a process said, else how one ended; that others lost it is no news."""
        where = "the model of all rows" if not self.left or self.left[0] is None else f"fold {self.left[0]}"
        for hand in self.hands:
            if hand.failed:
                named = where if where not in hand.failed.message else ""
                message = ": ".join(filter(None, (named, hand.failed.message)))
                raise TrainingError(message, hint=hand.failed.hint, code=hand.failed.code)
        for hand, code in zip(self.hands, codes, strict=True):
            if code and not hand.lost:
                how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                which = f"process {hand.rank + 1} of {len(self.hands)}" if len(self.hands) > 1 else "its process"
                why = "Memory may have run out. " if code == -signal.SIGKILL else ""
                raise TrainingError(f"{where}: {which} {how}", hint=f"{why}{KEPT}, perhaps with fewer processes.")
        if all(code is not None for code in codes) and (any(codes) or self.left):
            raise TrainingError(f"{where}: the processes ended without a result", hint=f"{KEPT}.")


def _wait(jobs: Sequence[_Job]) -> None:
    """Wait until a process says something, but look at them often."""
    wait([hand.line for job in jobs for hand in job.hands if hand.process.poll() is None], timeout=OFTEN)


def end(hands: Sequence[Hand]) -> None:
    """Have processes end by themselves, those that do not within GRACE by force."""
    for hand in hands:
        hand.line.close()
    until = time.monotonic() + GRACE
    for hand in hands:
        try:
            hand.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(hand.process.pid, signal.SIGKILL)  # with what prepares its images
            hand.process.wait()


class _Shown:
    """How far several folds are, as one count."""

    def __init__(self, folds: int) -> None:
        self.folds = folds
        self.counts: dict[str, tuple[int, int]] = {}

    def add(self, title: str, done: int, total: int) -> tuple[int, int]:
        """(done, in all) over all folds, now that one of them says how far it is; folds not begun are taken for average."""
        self.counts[title] = (done, total)
        every = sum(total for _, total in self.counts.values()) * self.folds // len(self.counts)
        return sum(done for done, _ in self.counts.values()), every


def _named(folds: Sequence[int | None]) -> str:
    names = ["all" if fold is None else str(fold) for fold in folds]
    return f"fold{'s' if len(names) > 1 else ''} {', '.join(names)}"
