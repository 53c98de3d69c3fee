"""Votes that stop: never another label than the full vote's, over hundreds of thousands of rows made to tie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.core.voting import vote
from toolkit.inference.early_stopping import decided
from toolkit.inference.stop_bounds import STOPPING, Race, ballots

KINDS = ("smooth", "sharp", "grid", "one-hot", "close")


def tables(rng, kind, members, rows, classes, *, multilabel):
    """Probabilities [M, N, C] of one kind: certain ones, ones on a coarse grid (many exact ties), ones that nearly tie."""
    if multilabel:
        p = rng.random((members, rows, classes))
        return {
            "smooth": p,
            "sharp": (p > 0.5).astype(float),
            "grid": np.round(4 * p) / 4,
            "one-hot": np.round(p),
            "close": 0.5 + (p - 0.5) * 1e-12,
        }[kind]
    if kind == "grid":
        return rng.multinomial(4, np.full(classes, 1 / classes), (members, rows)) / 4
    if kind == "one-hot":
        return np.eye(classes)[rng.integers(0, classes, (members, rows))]
    scale = {"smooth": 1.0, "sharp": 60.0, "close": 1e-12}[kind]
    logits = scale * (rng.normal(0, 1, (members, rows, classes)) + rng.normal(0, 1, (rows, classes)))
    e = np.exp(logits - logits.max(axis=2, keepdims=True))
    return e / e.sum(axis=2, keepdims=True)


def stopped(stack, weights, how, *, multilabel):
    """Labels by stopping: the heaviest first, the vote itself for what never settles; and the ballots that each row took."""
    share = np.asarray(weights, float) / np.sum(weights)
    race = Race(stack.shape[1], stack.shape[2], multilabel=multilabel)
    took = np.zeros(stack.shape[1])
    for m in np.argsort(-share, kind="stable"):
        if share[m] > 0:
            rows = np.flatnonzero(~race.settled)
            race.add(rows, ballots(stack[m, rows], how, multilabel=multilabel), share[m])
            took[rows] += 1
    labels, rest = race.leaders, ~race.settled
    labels[rest] = decided(vote(stack[:, rest], how=how, weights=weights, multilabel=multilabel), multilabel=multilabel)
    return labels, took


WEIGHTS = {
    "equal": lambda rng, m: np.ones(m),
    "some zero": lambda rng, m: np.r_[1.0, rng.integers(0, 2, m - 1)],
    "small integers": lambda rng, m: rng.integers(1, 4, m).astype(float),
    "any": lambda rng, m: rng.random(m) + 1e-9,
    "far apart": lambda rng, m: 10.0 ** -rng.integers(0, 12, m),
}


@pytest.mark.parametrize("how", STOPPING)
@pytest.mark.parametrize("multilabel", [False, True], ids=["multiclass", "multilabel"])
def test_no_label_changes_over_two_hundred_thousand_rows(how, multilabel):
    rng = np.random.default_rng(0)
    cases = changed = stops = 0
    for kind in KINDS:
        for weigh in WEIGHTS.values():
            for members, classes in ((1, 3), (2, 2), (3, 3), (4, 3), (5, 2), (5, 18), (7, 4), (10, 5)):
                stack = tables(rng, kind, members, 260, classes, multilabel=multilabel)
                weights = weigh(rng, members)
                labels, took = stopped(stack, weights, how, multilabel=multilabel)
                full = decided(vote(stack, how=how, weights=weights, multilabel=multilabel), multilabel=multilabel)
                changed += int((labels != full).reshape(len(labels), -1).any(axis=1).sum())
                stops += int((took < (weights > 0).sum()).sum())
                cases += len(labels)
    assert cases == 52_000  # times four parametrisations
    assert changed == 0
    assert stops > cases / 10  # it does stop


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_label_changes_whatever_the_numbers(data):
    members, rows, classes = (data.draw(st.integers(1, top)) for top in (6, 4, 4))
    classes += 1
    counts = st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, 1e-9, 1e-12, 1e6]), min_size=classes, max_size=classes)
    raw = np.array([[data.draw(counts) for _ in range(rows)] for _ in range(members)], dtype=float)
    raw[..., 0] += raw.sum(axis=2) == 0
    stack = raw / raw.sum(axis=2, keepdims=True)
    weights = np.array(
        data.draw(st.lists(st.sampled_from([0, 1, 1, 2, 1e-6, 0.1, 0.2, 0.3]), min_size=members, max_size=members))
    )
    weights[0] += weights.sum() == 0
    for how in STOPPING:
        labels, _ = stopped(stack, weights, how, multilabel=False)
        assert np.array_equal(labels, decided(vote(stack, how=how, weights=weights), multilabel=False))


def test_five_that_agree_need_three_and_a_tie_needs_all():
    sure = np.tile(np.eye(3)[[0]], (5, 1, 1))
    for how in STOPPING:
        assert stopped(sure, np.ones(5), how, multilabel=False)[1].tolist() == [3]
    split = np.eye(3)[[[0], [1], [0], [1]]]
    labels, took = stopped(split, np.ones(4), "hard", multilabel=False)
    assert (labels.tolist(), took.tolist()) == ([0], [4])
    assert stopped(split, [3, 1, 1, 0.5], "hard", multilabel=False)[1].tolist() == [1]  # one with more than half decides


def test_a_settled_row_stays_settled_when_further_ballots_are_counted():
    race = Race(1, 2)
    race.add(np.array([0]), np.array([[1.0, 0.0]]), 0.6)
    assert race.settled.all()
    for _ in range(4):
        race.add(np.array([0]), np.array([[0.0, 1.0]]), 0.1)
    assert race.settled.all()
    assert race.leaders.tolist() == [0]
