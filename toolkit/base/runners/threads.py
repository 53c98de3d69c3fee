"""Work of many small pieces in threads, with fewer of them where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """The results in order. Where memory runs out, half as many threads go on from there, down to one.

    Raises:
        MemoryError: one thread alone has not enough; or what `work` raises.
    """
    done = 0
    while done < len(items):
        try:
            if workers <= 1:
                yield from map(work, items[done:])
                return
            with ThreadPoolExecutor(workers) as pool:
                futures = [pool.submit(work, item) for item in items[done:]]
                try:
                    for future in futures:
                        result = future.result()
                        done += 1
                        yield result
                finally:
                    for future in futures:
                        future.cancel()
        except MemoryError:
            if workers <= 1:
                raise
            workers //= 2
