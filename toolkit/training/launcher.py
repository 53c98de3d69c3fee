"""Folds trained in processes that run the recipe's script again: several folds at once, or all on one fold's batches."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from toolkit.base.runners.jobs import visible
from toolkit.errors import DeviceError, ToolkitError, TrainingError
from toolkit.runtime.devices import cores
from toolkit.training.cross_validation import Bar, Done, Plan, Say, TrainFold, train
from toolkit.training.fold.fit import choose_device
from toolkit.training.fold.process_group import PeerError, together
from toolkit.training.fold.samples import Progress

WORKER = "TOOLKIT_WORKER"  # the variable that tells a process what it is to do
GRACE = 10.0  # seconds that a process has to end by itself
OFTEN = 0.2  # seconds between two looks at the processes, and between two words about progress
KEPT = "Finished folds and epochs are kept: run the same command again to go on"
INTERRUPTED = 130
STDERR = 2

Spread = Literal["folds", "batches"]
SPREADS: tuple[Spread, ...] = ("folds", "batches")


@dataclass(frozen=True)
class Task:
    """What one process is to do, in plain values: train folds, as one (`rank`) of `size` processes that share their batches."""

    folds: tuple[int | None, ...]
    root: str
    key: str  # of the plan's settings
    device: str
    rank: int
    size: int
    meeting: str


@dataclass(frozen=True)
class Crew:
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

    def train(self, plan: Plan, folds: Sequence[int | None], *, device: str, bar: Bar, say: Say) -> Generator[Done]:
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
                    with bar(f"{plan.member} {_named([one for one in folds if one not in done])}") as progress:
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

    def _start(self, plan: Plan, folds: tuple[int | None, ...], place: int, device: str, meeting: Path) -> _Job:
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
            f"{self.processes} processes of {each} threads share {cores()} cores: OMP_NUM_THREADS="
            f"{max(1, cores() // self.processes)} before the command gives each its own (and other last digits)"
        )


def crew(
    command: tuple[Callable[..., Any], Sequence[str]],
    *,
    gpus: int | Literal["all"] | None,
    processes: int | None,
    spread: Spread | None,
    device: str,
    models: int,
) -> Crew | None:
    """The crew that flags ask for, None where one process is enough; `command` is a script's function and its arguments.

    `models` is the number of folds to be trained (the model of all rows counts as one).

    Raises:
        DeviceError: more GPUs than there are, or GPUs for work on a CPU.
        TrainingError: nothing to spread, or nothing to spread it over.
    """
    if gpus is None and processes is None:
        if spread:
            raise TrainingError(
                f"--spread {spread} needs to know over how many", hint="Add --gpus all, or --processes N on a CPU."
            )
        return None
    found = _gpus(gpus, choose_device(device))
    count, spread = processes or found, spread or "folds"
    if spread == "batches" and found and count != found:
        raise DeviceError(
            f"--spread batches takes a GPU per process, not {count} processes for {found} GPUs",
            hint=f"Leave --processes out, or use --gpus {count}.",
        )
    if spread == "folds" and models == 1 < count:
        raise TrainingError(
            f"there is one model to train, which {count} processes cannot share as folds",
            hint="Use --spread batches, or leave --gpus and --processes out.",
        )
    function, arguments = command
    script = inspect.getsourcefile(inspect.unwrap(function))
    if script is None:
        raise TrainingError("several processes need a recipe that is a file", hint="Save it as one.")
    return Crew(Path(script).absolute(), tuple(arguments), count, min(found, count), spread) if count > 1 else None


def _gpus(asked: int | Literal["all"] | None, device: str) -> int:
    """How many GPUs are meant, 0 on a CPU."""
    import torch

    there = torch.cuda.device_count() if device == "cuda" else 0
    if not there and asked:
        raise DeviceError(
            f"--gpus {asked} was asked for, but the device is the CPU",
            hint="Use --processes N for as many processes, or run `toolkit doctor` to see why there is no CUDA device.",
        )
    if isinstance(asked, int) and asked > there:
        raise DeviceError(
            f"--gpus {asked} was asked for, there {'is' if there == 1 else 'are'} {there}",
            hint="Use --gpus all; CUDA_VISIBLE_DEVICES may hide some of this machine's.",
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
            said = json.dumps({"line": theirs.fileno(), **asdict(task)})
            process = subprocess.Popen(  # noqa: S603 - the command that runs already
                [sys.executable, *command],
                env={**os.environ, **environment, WORKER: said},
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
            for kind, *said in hand.messages():
                if kind == "done":
                    done[said[0].fold] = said[0]
                    self.left.remove(said[0].fold)
                elif kind == "progress":
                    progress(*shown.add(*said))
                elif kind == "lost":
                    hand.lost = True
                else:
                    if kind == "crashed":
                        say(said.pop())
                    hand.failed = hand.failed or ToolkitError(said[0], hint=said[1])
        self._trouble(codes)
        return all(code == 0 for code in codes)

    def _trouble(self, codes: Sequence[int | None]) -> None:
        """Say why the job cannot go on: what a process said, else how one ended; that others lost it is no news."""
        where = "the model of all rows" if not self.left or self.left[0] is None else f"fold {self.left[0]}"
        for hand in self.hands:
            if hand.failed:
                named = where if where not in hand.failed.message else ""
                raise TrainingError(": ".join(filter(None, (named, hand.failed.message))), hint=hand.failed.hint)
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


# --- one process, from inside ----------------------------------------------------------------------------------------


class Worker:
    """This process, where another one started it to do a task."""

    def __init__(self, task: Task, line: Connection) -> None:
        self.task, self.line = task, line
        self.over = False
        self._told = 0.0

    def train(self, plan: Plan, train_fold: TrainFold) -> None:
        """Do the task.

        Raises:
            TrainingError: the script comes to other settings than it did where it was started; or what training raises.
        """
        task = self.task
        plan = replace(plan, root=Path(task.root))
        if plan.key != task.key:
            raise TrainingError(
                f"{plan.recipe} comes to other settings each time it runs",
                hint="Several processes need a recipe whose Config follows from its flags alone.",
            )
        with together(task.rank, task.size, Path(task.meeting), task.device) as team:
            for done in train(plan, train_fold, bar=self._bar, folds=task.folds, device=task.device, team=team):
                self.say("done", done)

    def say(self, *message: Any) -> None:
        """Tell the process that started this one."""
        with suppress(OSError):  # it is gone, which `listen` hears as well
            self.line.send(message)

    def listen(self) -> None:
        """Wait for the line to be closed, then end as by Ctrl-C, which closes what is open; by force if that takes long."""
        with suppress(EOFError, OSError):
            self.line.recv()
        if not self.over and (main := threading.main_thread().ident):
            signal.pthread_kill(main, signal.SIGINT)  # also out of a call that waits
        time.sleep(GRACE)
        os._exit(INTERRUPTED)

    @contextmanager
    def _bar(self, title: str) -> Iterator[Progress]:
        def tell(done: int, total: int) -> None:
            now = time.monotonic()
            if self.task.rank == 0 and (now - self._told > OFTEN or done == total):
                self._told = now
                self.say("progress", title, done, total)

        yield tell


@contextmanager
def at_work() -> Iterator[Worker]:
    """This process as the worker that WORKER describes: what ends it is told to the process that started it, not printed."""
    said = json.loads(os.environ.pop(WORKER))
    line = Connection(said.pop("line"))
    os.set_inheritable(line.fileno(), False)
    worker = Worker(Task(**{**said, "folds": tuple(said["folds"])}), line)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would this one
    threading.Thread(target=worker.listen, daemon=True).start()
    try:
        try:
            yield worker
        finally:
            worker.over = True  # no interrupt from here on
        return
    except KeyboardInterrupt:
        code = INTERRUPTED
    except PeerError:
        code = 1
        worker.say("lost")
    except ToolkitError as error:
        code = 1
        worker.say("failed", error.message, error.hint)
    except OSError as error:
        code = 1
        worker.say("failed", ": ".join(str(part) for part in (error.filename, error.strerror or error) if part), f"{KEPT}.")
    except BaseException as error:  # noqa: BLE001 - told where it can be read, once for all processes
        code = 1
        worker.say(
            "crashed", f"{type(error).__name__}: {error}", f"The traceback stands above. {KEPT}.", traceback.format_exc()
        )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at once: an orderly exit would wait for the processes that share this one's batches
