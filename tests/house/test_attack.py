"""A few seeds of the attack on files: nothing is silently wrong, ends in a traceback, hangs, runs code or calls home."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import suppress
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def _attack():
    spec = importlib.util.spec_from_file_location("attack", FOLDER / "attack.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["attack"] = module
    spec.loader.exec_module(module)
    module.load_siblings()
    return module


ATTACK = _attack()


QUICK = [name for name, kind in ATTACK.KINDS.items() if kind.share == 1]
SLOW = [name for name, kind in ATTACK.KINDS.items() if kind.share < 1 and not name.startswith("hostile")]  # see tests/journeys


@pytest.mark.parametrize("kind", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_damaged_file_is_read_as_it_was_refused_or_made_again(kind):
    wrong = []
    seeds = range(QUICK.index(kind), QUICK.index(kind) + 2) if kind in QUICK else range(12)
    counts = ATTACK.run(
        ATTACK.KINDS[kind],
        seeds,
        told=lambda seed, outcome, detail: outcome in ATTACK.BAD and wrong.append((seed, outcome, detail)),
    )
    assert not wrong
    assert sum(counts.values()) == len(seeds)


def test_there_are_enough_kinds():
    assert len(ATTACK.KINDS) > 60
    assert {kind.ours for kind in ATTACK.KINDS.values()} == {True, False}


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
