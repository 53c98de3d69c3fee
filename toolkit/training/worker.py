"""This process as one of several that train a recipe's folds: what it is to do, and its line to whoever started it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import ToolkitError, TrainingError

if TYPE_CHECKING:
    from toolkit.training.fold.samples import Progress
    from toolkit.training.plan import TrainFold, TrainingPlan

WORKER = "TOOLKIT_WORKER"  # the variable that tells a process what it is to do
GRACE = 10.0  # seconds that a process has to end by itself
OFTEN = 0.2  # seconds between two looks at the processes, and between two words about progress
KEPT = "Finished folds and epochs are kept: run the same command again to go on"
INTERRUPTED = 130


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


class Worker:
    """This process, where another one started it to do a task."""

    def __init__(self, task: Task, line: Connection) -> None:
        self.task, self.line = task, line
        self.over = False
        self._told = 0.0

    def train(self, plan: TrainingPlan, train_fold: TrainFold) -> None:
        """Do the task.

        Raises:
            TrainingError: the script comes to other settings than it did where it was started; or what training raises.
        """
        from toolkit.training.cross_validation import train
        from toolkit.training.fold.process_group import together

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
    from toolkit.training.fold.process_group import PeerError

    work = json.loads(os.environ.pop(WORKER))
    line = Connection(work.pop("line"))
    os.set_inheritable(line.fileno(), False)
    worker = Worker(Task(**{**work, "folds": tuple(work["folds"])}), line)
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
        worker.say("failed", error.message, error.hint, error.code)
    except OSError as error:
        code = 1
        message = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        worker.say("failed", message, f"{KEPT}.", "")
    except MemoryError as error:
        code = 1
        worker.say("failed", f"memory ran out: {error}" if str(error) else "memory ran out", f"{KEPT}, in fewer processes.", "")
    except BaseException as error:  # noqa: BLE001 - told where it can be read, once for all processes
        code = 1
        message, hint = f"{type(error).__name__}: {error}", f"The traceback stands above. {KEPT}."
        worker.say("crashed", message, hint, "", traceback.format_exc())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # at once: an orderly exit would wait for the processes that share this one's batches
