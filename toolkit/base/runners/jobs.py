"""Where jobs run: here, or in processes of their own, each with its share of the GPUs."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from typing import Any, Protocol

from toolkit.errors import ToolkitError


@dataclass(frozen=True)
class Job:
    """A function by its name ("toolkit.module:function") and its arguments: paths and plain values, so that it can travel."""

    function: str
    arguments: tuple[Any, ...] = ()

    def run(self) -> Any:
        """Call the function."""
        module, _, name = self.function.partition(":")
        return getattr(import_module(module), name)(*self.arguments)


class Runner(Protocol):
    """A place where jobs run: results come as they are ready, in any order."""

    def __call__(self, jobs: Iterable[Job], *, workers: int = 1, gpus: int = 0) -> Iterator[Any]:
        """Run jobs on so many workers, which share so many GPUs."""
        ...


def here(jobs: Iterable[Job], *, workers: int = 1, gpus: int = 0) -> Iterator[Any]:  # noqa: ARG001 - all of them take these
    """One after the other in this process."""
    for job in jobs:
        yield job.run()


def processes(jobs: Iterable[Job], *, workers: int = 1, gpus: int = 0) -> Iterator[Any]:
    """Side by side in processes that are started afresh, so that each can have a GPU of its own.

    Few more jobs are taken than there are workers, so that they may be made as they are needed. When one fails, those that
    have not begun are dropped, and what the others finished is kept.

    Raises:
        ToolkitError: a process was ended from outside, as when memory runs out; or what a job raises.
    """
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    numbers = context.Queue()
    for number in range(workers):
        numbers.put(number)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(numbers, gpus)) as pool:
        waiting, source = set[Future[Any]](), iter(jobs)
        try:
            while True:
                waiting |= {pool.submit(job.run) for job in islice(source, 2 * workers - len(waiting))}
                if not waiting:
                    return
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise ToolkitError(
                "a worker process was ended from outside: memory may have run out",
                hint="Finished work is kept: start it again, with fewer workers or smaller batches.",
                code="workers-ended",
            ) from error
        finally:
            for future in waiting:
                future.cancel()


RUNNERS: dict[str, Runner] = {"here": here, "processes": processes}


def visible(number: int, gpus: int) -> dict[str, str]:
    """The environment in which the process of this number sees its GPU as the only one; nothing without GPUs."""
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name] or list(map(str, range(gpus)))
    return {"CUDA_VISIBLE_DEVICES": seen[number % min(gpus, len(seen))]} if gpus else {}


def _begin(numbers: Any, gpus: int) -> None:
    """Give a new worker its GPU, and its share of the cores: runtimes count those that a process may use."""
    os.environ.update(visible(numbers.get(), gpus))
