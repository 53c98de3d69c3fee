"""Work in threads: results in order, fewer threads where memory runs out, errors as they are."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from toolkit.base.runners.threads import spread


def test_results_come_in_order_whatever_the_number_of_threads():
    for workers in (1, 2, 7):
        assert list(spread(lambda n: n * n, range(50), workers)) == [n * n for n in range(50)]
    assert list(spread(str, [], 3)) == []


def test_memory_for_so_many_threads_and_no_more():
    """Each piece needs a share of what two threads may use at once; what was done is not done again."""
    room, done, together = threading.Semaphore(2), [], threading.Barrier(4, timeout=5)

    def work(number):
        if not done and together.n_waiting < 4:
            with suppress(threading.BrokenBarrierError):
                together.wait()
        if not room.acquire(blocking=False):
            raise MemoryError
        try:
            threading.Event().wait(0.01)
            done.append(number)
            return number
        finally:
            room.release()

    assert list(spread(work, range(12), 4)) == list(range(12))


def test_one_thread_without_room_is_the_end():
    calls = []

    def work(number):
        calls.append(number)
        raise MemoryError("no")

    with pytest.raises(MemoryError, match="no"):
        list(spread(work, range(8), 4))
    assert 3 <= calls.count(0) <= 3  # with four, with two, with one


def test_other_errors_are_raised_at_once():
    with pytest.raises(KeyError):
        list(spread({}.__getitem__, range(8), 4))
