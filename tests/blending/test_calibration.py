"""Calibration against scikit-learn and SciPy, factors against brute force, and the worth of both on rows not fitted to."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.blending.test_weighers import make, scored
from toolkit.blending import calibration
from toolkit.blending.calibration import calibration_error, factors, prior_shift, reliability, temperature, vector_scaling
from toolkit.blending.nested import nested, outer_folds, then, weigher
from toolkit.blending.objectives import decide
from toolkit.core.activations import softmax
from toolkit.core.metrics import METRICS
from toolkit.errors import DataError

LOSS, F1 = METRICS["log_loss"], METRICS["macro_f1"]


def sure(factor, multilabel=False, rows=2000, seed=0):
    """Honest probabilities of truths drawn from them, and the same with logits times `factor`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (rows, 4))
    if multilabel:
        return 1 / (1 + np.exp(-factor * logits)), rng.random((rows, 4)) < 1 / (1 + np.exp(-logits))
    truth = (softmax(logits).cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
    return softmax(factor * logits), truth


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_temperature_finds_the_factor_and_is_scipys_optimum(factor, multilabel):
    from scipy.optimize import minimize_scalar

    p, truth = sure(factor, multilabel)
    found = temperature(p, truth)
    assert found.temperature == pytest.approx(factor, rel=0.1)
    logits = np.log(p) - np.log1p(-p) if multilabel else np.log(p)

    def loss(t):
        return LOSS.score(truth, 1 / (1 + np.exp(-logits / t)) if multilabel else softmax(logits / t))

    reference = minimize_scalar(loss, bounds=(0.01, 100), method="bounded", options={"xatol": 1e-9})
    assert found.temperature == pytest.approx(reference.x, rel=1e-5)
    assert LOSS.score(truth, found.apply(p)) <= reference.fun + 1e-12


def test_temperature_is_scikit_learns():
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Says(ClassifierMixin, BaseEstimator):
        def __init__(self):
            self.classes_ = np.arange(4)

        def fit(self, rows, truth):
            return self

        def decision_function(self, rows):
            return rows

        def predict(self, rows):
            return rows.argmax(axis=1)

    p, truth = sure(3.0)
    reference = CalibratedClassifierCV(FrozenEstimator(Says()), method="temperature").fit(np.log(p), truth)
    np.testing.assert_allclose(temperature(p, truth).apply(p), reference.predict_proba(np.log(p)), atol=1e-4)


@pytest.mark.parametrize("multilabel", [False, True])
def test_temperature_keeps_every_decision(multilabel):
    p, truth = sure(2.5, multilabel)
    assert np.array_equal(decide(temperature(p, truth).apply(p), truth), decide(p, truth))


def test_temperature_survives_certainty():
    truth = np.arange(30) % 3
    right = temperature(np.eye(3)[truth], truth)
    wrong = temperature(np.eye(3)[(truth + 1) % 3], truth)
    assert right.temperature < 1
    assert LOSS.score(truth, right.apply(np.eye(3)[truth])) < 1e-15
    assert wrong.temperature == pytest.approx(100, rel=1e-3)
    assert np.isfinite(wrong.apply(np.eye(3))).all()


@pytest.mark.parametrize("multilabel", [False, True])
def test_vector_scaling_is_the_optimum(multilabel):
    from scipy.optimize import minimize

    p, truth = sure(2.0, multilabel, rows=600)
    found = vector_scaling(p, truth)
    logits = np.log(p) - np.log1p(-p) if multilabel else np.log(p)

    def loss(x):
        z = x[:4] * logits + x[4:]
        return LOSS.score(truth, 1 / (1 + np.exp(-z)) if multilabel else softmax(z))

    reference = minimize(loss, np.r_[np.ones(4), np.zeros(4)], method="BFGS", options={"gtol": 1e-7})
    assert LOSS.score(truth, found.apply(p)) == pytest.approx(reference.fun, abs=1e-8)
    assert LOSS.score(truth, found.apply(p)) < LOSS.score(truth, temperature(p, truth).apply(p))


def test_calibration_helps_on_rows_it_was_not_fitted_to():
    p, truth = sure(3.0)
    stack = np.stack([p, p])
    folds, plain = outer_folds(truth), weigher("uniform", LOSS)
    said = nested(stack, truth, {"plain": plain, "cool": then(plain, temperature)}, folds)
    assert LOSS.score(truth, said["cool"]) < LOSS.score(truth, said["plain"])
    assert calibration_error(said["cool"], truth) < calibration_error(said["plain"], truth)
    for fold in range(5):
        out = folds == fold
        mean = stack.mean(axis=0)
        np.testing.assert_allclose(said["cool"][out], temperature(mean[~out], truth[~out]).apply(mean[out]), atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), multilabel=st.booleans(), name=st.sampled_from(["accuracy", "macro_f1"]))
def test_factors_never_lose_on_the_rows_they_were_fitted_to(seed, multilabel, name):
    stack, truth = make(rows=60, members=1, seed=seed, multilabel=multilabel)
    metric, p = METRICS[name], stack[0]
    adjusted = factors(p, truth, metric, points=17).apply(p)
    assert scored(metric, truth, adjusted) >= scored(metric, truth, p) - 1e-12


def test_factors_come_near_the_best_of_a_full_grid():
    stack, truth = make(rows=80, classes=3, members=1, seed=6)
    p = stack[0]
    found = F1.score(truth, factors(p, truth, F1).apply(p).argmax(axis=1))
    grid = np.geomspace(1 / 16, 16, 33)
    best = max(F1.score(truth, (p * [1, a, b]).argmax(axis=1)) for a, b in itertools.product(grid, grid))
    assert found >= best - 0.02


def test_factors_help_macro_f1_where_a_class_is_rare_and_unheard():
    rng = np.random.default_rng(0)
    truth = (rng.random(4000) < 0.05).astype(int)
    logit = rng.normal(0, 1, 4000) + 2 * truth - 3.5
    p = np.stack([1 / (1 + np.exp(logit)), 1 / (1 + np.exp(-logit))], axis=1)
    plain = weigher("uniform", F1)
    said = nested(p[None], truth, {"plain": plain, "factors": then(plain, lambda v, t: factors(v, t, F1))}, outer_folds(truth))
    assert scored(F1, truth, said["factors"]) > scored(F1, truth, said["plain"]) + 0.05


@pytest.mark.parametrize("multilabel", [False, True])
def test_one_class_at_a_time_decides_as_all_at_once_ties_included(multilabel):
    logits = np.random.default_rng(0).integers(-1, 2, (200, 4)).astype(float)
    expected = logits >= 0 if multilabel else logits.argmax(axis=1)
    for c in range(4):
        # `factors` moves one class at a time by these two; ties to the last bit cannot be had through its result
        others = calibration._others(logits, c, multilabel=multilabel)
        assert np.array_equal(calibration._with(others, logits[:, c], c), expected)


def test_factors_are_for_labels_only():
    p, truth = sure(1.0, rows=50)
    with pytest.raises(DataError, match="decide labels"):
        factors(p, truth, LOSS)


def test_a_known_test_prior_is_bayes_rule():
    rng = np.random.default_rng(0)
    like = rng.random((3, 50, 4))
    before, after = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4))
    p, expected = (x / x.sum(axis=1, keepdims=True) for x in (like[0] * before, like[0] * after))
    np.testing.assert_allclose(prior_shift(before, after).apply(p), expected, atol=1e-12)
    yes, no = like[1], like[2]
    p, expected = (yes * x / (yes * x + no * (1 - x)) for x in (before, after))
    np.testing.assert_allclose(prior_shift(before, after, multilabel=True).apply(p), expected, atol=1e-12)
    with pytest.raises(DataError, match="must be positive"):
        prior_shift(np.array([0.0, 1.0]), np.array([0.5, 0.5]))


def test_calibration_error_by_hand():
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [1.0, 0.0]])
    truth = np.array([0, 1, 1, 0])
    table = reliability(p, truth, bins=10)
    assert [(b.count, b.confidence, b.accuracy) for b in table] == [(1, 0.6, 1.0), (2, 0.9, 0.5), (1, 1.0, 1.0)]
    assert calibration_error(p, truth, bins=10) == pytest.approx((0.4 + 2 * 0.4 + 0) / 4)
    assert calibration_error(np.array([[0.9, 0.2]]), np.array([[True, False]]), bins=10) == pytest.approx((0.1 + 0.2) / 2)


def test_honest_probabilities_have_next_to_no_calibration_error():
    p, truth = sure(1.0, rows=20_000)
    assert calibration_error(p, truth) < 0.02
    hot, truth = sure(3.0, rows=20_000)
    assert calibration_error(hot, truth) > 0.1
    assert calibration_error(temperature(hot, truth).apply(hot), truth) < 0.02


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), multilabel=st.booleans(), coarse=st.booleans())
def test_counted_macro_f1_is_that_of_labels_made_one_by_one(seed, multilabel, coarse):
    stack, truth = make(rows=50, members=1, seed=seed, multilabel=multilabel)
    p = np.round(stack[0] * 8) / 8 if coarse else stack[0]  # many exact ties
    # the fast count and the slow one that it stands for: `factors` never uses both on one metric
    logits = calibration.logits_of(p, multilabel=multilabel)
    grid = np.linspace(-3, 3, 13)
    for c in range(4):
        others = calibration._others(logits, c, multilabel=multilabel)
        counted = calibration._f1_of(truth, others, logits[:, c], c, grid)
        np.testing.assert_allclose(counted, calibration._gains_of(F1)(truth, others, logits[:, c], c, grid), atol=1e-12)
