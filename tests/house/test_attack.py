"""A few seeds of the attack on files: nothing is silently wrong, ends in a traceback, hangs, runs code or calls home."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import suppress
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SEEDS = range(4)


def _attack():
    spec = importlib.util.spec_from_file_location("attack", FOLDER / "attack.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["attack"] = module
    spec.loader.exec_module(module)
    module.load_siblings()
    return module


ATTACK = _attack()


@pytest.mark.parametrize("kind", list(ATTACK.KINDS))
def test_a_damaged_file_is_read_as_it_was_refused_or_made_again(kind):
    wrong = []
    counts = ATTACK.run(
        ATTACK.KINDS[kind],
        SEEDS,
        told=lambda seed, outcome, detail: outcome in ATTACK.BAD and wrong.append((seed, outcome, detail)),
    )
    assert not wrong
    assert sum(counts.values()) == len(SEEDS)


def test_the_suite_sees_what_it_is_there_for():
    """A kind that serves what is damaged, one that fails without a sentence, and one that never ends."""

    def served(folder, seed):
        return "silently wrong"

    def broken(folder, seed):
        raise KeyError(seed)

    def calls(folder, seed):
        import socket

        with suppress(OSError):
            socket.create_connection(("127.0.0.1", 9), timeout=1)
        return "same"

    for trial, outcome in ((served, "silently wrong"), (broken, "traceback"), (calls, "connection")):
        kind = ATTACK.Kind("test", lambda folder: None, trial)
        assert dict(ATTACK.run(kind, range(1))) == {outcome: 1}
