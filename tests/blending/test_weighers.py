"""Weighers: laws over the registry, exact forms against plain ones, optima against SciPy, stacking against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.blending.objectives import BRIER, Decisions, Plain, area, decide, objective
from toolkit.blending.simplex_solvers import least_log_loss
from toolkit.blending.weighers import WEIGHERS, fit_weights
from toolkit.core import metrics
from toolkit.core.activations import softmax
from toolkit.core.metrics import METRICS
from toolkit.errors import DataError

EVERY = [METRICS[name] for name in ("accuracy", "macro_f1", "log_loss", "roc_auc", "map@3", "brier")]
NAMES = [metric.name for metric in EVERY]


def make(rows=120, classes=4, members=5, seed=0, multilabel=False):
    """Members of different skill with partly shared errors, and the truth."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, (rows, classes)) + rng.normal(0, 1.5, (members, rows, classes))
    skill = rng.uniform(1, 3, (members, 1, 1))
    if multilabel:
        truth = rng.random((rows, classes)) < 0.4
        return 1 / (1 + np.exp(-(skill * (truth - 0.5) + noise))), truth
    truth = rng.integers(0, classes, rows)
    return softmax((skill * np.eye(classes)[truth] + noise).reshape(-1, classes)).reshape(noise.shape), truth


def scored(metric, truth, values):
    return metric.score(truth, decide(values, truth) if metric.accepts == "labels" else values)


def cases(how):
    return [False] if how == "stacking" else [False, True]


@pytest.mark.parametrize("metric", EVERY, ids=NAMES)
@pytest.mark.parametrize("how", WEIGHERS)
def test_the_score_is_the_metrics_own_of_what_apply_makes(how, metric):
    for multilabel in cases(how):
        stack, truth = make(multilabel=multilabel)
        found = fit_weights(stack, truth, metric, how)
        assert found.score == pytest.approx(scored(metric, truth, found.apply(stack)), abs=1e-12)
        assert found.how == how
        assert found.message
        if found.bias is None:
            assert found.weights.shape == (5,)
            assert found.weights.min() >= 0
            assert found.weights.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("metric", EVERY, ids=NAMES)
@pytest.mark.parametrize("how", [name for name in WEIGHERS if name not in {"uniform", "best_single", "stacking", "convex"}])
def test_a_search_is_no_worse_than_where_it_starts(how, metric):
    stack, truth = make(seed=1)
    start = {"greedy": "best_single", "hill_climb": "best_single"}.get(how, "uniform")
    found, before = (fit_weights(stack, truth, metric, name) for name in (how, start))
    assert metric.gain(found.score) >= metric.gain(before.score) - 1e-6
    assert found.steps > 0


@pytest.mark.parametrize("how", WEIGHERS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_rows_and_members_in_another_order_give_the_same_score(how, data):
    stack, truth = make(rows=60, members=4, seed=data.draw(st.integers(0, 50)))
    rows, members = data.draw(st.permutations(range(60))), data.draw(st.permutations(range(4)))
    metric = METRICS["log_loss"]
    one = fit_weights(stack, truth, metric, how)
    other = fit_weights(stack[members][:, rows], truth[rows], metric, how)
    # a simplex search may take another way when its vertices are numbered otherwise, L-BFGS stops at a tolerance
    close = {"nelder_mead": 2e-3, "stacking": 1e-4, "coordinate": 1e-3}.get(how, 1e-6)
    assert other.score == pytest.approx(one.score, abs=close)


@pytest.mark.parametrize("metric", EVERY, ids=NAMES)
@pytest.mark.parametrize("how", WEIGHERS)
def test_members_that_are_copies_change_nothing_and_are_reported(how, metric):
    stack, truth = make(members=1)
    found = fit_weights(np.repeat(stack, 3, axis=0), truth, metric, how)
    if how == "stacking":
        return
    assert found.score == pytest.approx(scored(metric, truth, stack[0]), abs=1e-9)
    if how in {"nelder_mead", "coordinate", "hill_climb", "convex"}:
        assert found.steps == 0
        assert "stopped where it started" in found.message


@pytest.mark.parametrize("metric", EVERY, ids=NAMES)
def test_one_member_alone_gets_everything(metric):
    stack, truth = make(members=1)
    for how in WEIGHERS:
        if how != "stacking":
            assert fit_weights(stack, truth, metric, how).weights.tolist() == [1.0]


@pytest.mark.parametrize("name", ["accuracy", "macro_f1"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), picks=st.lists(st.integers(0, 3), min_size=1, max_size=12), coarse=st.booleans())
def test_margins_find_the_labels_that_a_full_search_finds(name, seed, picks, coarse):
    stack, truth = make(rows=80, members=4, seed=seed)
    if coarse:  # many exact ties
        stack = np.round(stack * 4) / 4
    metric, everyone = METRICS[name], np.arange(4)
    quick, plain = Decisions(stack, truth, metric), Plain(objective(stack, truth, metric))
    assert np.array_equal(quick.gains(everyone), plain.gains(everyone))
    for pick in picks:
        quick.add(pick)
        plain.add(pick)
        assert np.array_equal(quick.gains(everyone), plain.gains(everyone))


@pytest.mark.parametrize("metric", EVERY, ids=NAMES)
@pytest.mark.parametrize("multilabel", [False, True])
def test_reduced_objectives_equal_the_metric(metric, multilabel):
    stack, truth = make(multilabel=multilabel, classes=3, seed=2)
    goal = objective(stack, truth, metric)
    for weights in np.random.default_rng(0).dirichlet(np.ones(5), 20):
        expected = metric.gain(scored(metric, truth, np.tensordot(weights, stack, 1)))
        assert goal.of(weights) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), decimals=st.sampled_from([1, 2, 16]), wide=st.booleans())
def test_area_equals_scikit_learn(seed, decimals, wide):
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    positive = np.r_[True, False, rng.random(40) < 0.3]
    score = np.round(rng.normal(0, 2, 42) if wide else rng.random(42), decimals)
    assert area(positive, score) == pytest.approx(roc_auc_score(positive, score), abs=1e-13)


def brute_force(stack, truth, score, steps):
    """Greedy selection as Caruana wrote it, ties to members picked before, then to the lower log-loss (scikit-learn's)."""
    from sklearn.metrics import log_loss

    picks, path = [], []
    for _ in range(steps):
        blends = [stack[[*picks, j]].mean(axis=0) for j in range(len(stack))]
        errors = np.round([score(truth, blend) for blend in blends], 6)
        tied = np.flatnonzero(errors == errors.min()).tolist()
        tied = [j for j in tied if j in picks] or tied
        picks.append(min(tied, key=lambda j: log_loss(truth, blends[j])))
        path.append(score(truth, blends[picks[-1]]))
    best = int(np.argmin(np.round(path, 6)))
    return picks[: best + 1], path[: best + 1]


@pytest.mark.parametrize("seed", range(5))
def test_greedy_makes_the_picks_of_the_plain_algorithm(seed):
    from sklearn.metrics import accuracy_score, log_loss

    stack, truth = make(rows=40, members=8, seed=seed)  # few rows: most steps have a tie in accuracy
    errors = {"log_loss": log_loss, "accuracy": lambda truth, p: 1 - accuracy_score(truth, p.argmax(axis=1))}
    for name, error in errors.items():
        picks, path = brute_force(stack, truth, error, 12)
        found = fit_weights(stack, truth, METRICS[name], "greedy", {"steps": 12, "patience": 12})
        assert list(found.picks) == picks
        np.testing.assert_allclose(found.path, path if name == "log_loss" else 1 - np.array(path), atol=1e-12)
        assert np.array_equal(found.weights, np.bincount(picks, minlength=8) / len(picks))


def test_greedy_stops_when_nothing_helps_and_keeps_the_best_prefix():
    stack, truth = make(rows=400)
    metric = METRICS["log_loss"]
    long, short = (fit_weights(stack, truth, metric, "greedy", {"steps": 200, "patience": p}) for p in (200, 3))
    assert len(short.picks) <= len(long.picks) < 200
    assert short.picks == long.picks[: len(short.picks)]
    assert short.score == min(short.path)


def test_greedy_sorted_start_takes_the_best_members_first():
    stack, truth = make(rows=400, seed=3)
    metric = METRICS["log_loss"]
    order = np.argsort([metric.score(truth, table) for table in stack])
    means = [metric.score(truth, stack[order[: n + 1]].mean(axis=0)) for n in range(5)]
    first = int(np.argmin(means)) + 1
    found = fit_weights(stack, truth, metric, "greedy", {"sorted_start": True})
    assert first > 1
    assert list(found.picks[:first]) == order[:first].tolist()
    np.testing.assert_allclose(found.path[:first], means[:first], atol=1e-12)


def test_bagged_greedy_is_repeatable_and_spreads_its_weight():
    stack, truth = make(members=8)
    metric = METRICS["log_loss"]
    one, again, other = (fit_weights(stack, truth, metric, "greedy", {"bags": 10, "seed": s}) for s in (1, 1, 2))
    assert np.array_equal(one.weights, again.weights)
    assert not np.array_equal(one.weights, other.weights)
    assert (one.weights > 0).sum() > (fit_weights(stack, truth, metric, "greedy").weights > 0).sum()


@pytest.mark.parametrize("metric", [METRICS["log_loss"], BRIER], ids=["log_loss", "brier"])
@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_convex_is_scipys_optimum_or_better(metric, multilabel, seed):
    from scipy.optimize import minimize

    stack, truth = make(rows=200, members=6, seed=seed, multilabel=multilabel)
    found = fit_weights(stack, truth, metric, "convex")
    reference = minimize(
        lambda w: metric.score(truth, np.clip(np.tensordot(w, stack, 1), 0, 1)),
        np.full(6, 1 / 6),
        method="SLSQP",
        bounds=[(0, 1)] * 6,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    weights = np.clip(reference.x, 0, 1) / np.clip(reference.x, 0, 1).sum()
    assert found.score <= scored(metric, truth, np.tensordot(weights, stack, 1)) + 1e-12
    np.testing.assert_allclose(found.weights, weights, atol=1e-3)
    assert float(found.message.split()[-1]) < 1e-8


def test_the_proof_holds_against_every_other_weight():
    stack, truth = make(rows=150, members=4)
    p = stack[:, np.arange(150), truth]
    weights, _, gap = least_log_loss(p)
    others = np.random.default_rng(0).dirichlet(np.ones(4), 2000) @ p
    assert -np.log(weights @ p).mean() <= -np.log(others).mean(axis=1).min() + gap


@pytest.mark.parametrize("spread", [2, 5, 10])
def test_the_proof_is_reached_where_a_full_newton_step_would_overshoot(spread):
    for seed in range(6):
        p = np.exp(spread * np.random.default_rng(seed).normal(size=(6, 40)))
        weights, steps, gap = least_log_loss(p / p.max())
        assert gap < 1e-7
        assert 0 < steps < 50
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(1, abs=1e-12)


def test_convex_takes_exact_zeros():
    p = np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    weights, _, gap = least_log_loss(p)
    np.testing.assert_allclose(weights, [0.5, 0.5, 0], atol=1e-9)
    assert gap < 1e-12
    assert least_log_loss(np.zeros((2, 5)))[0].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("metric", EVERY, ids=NAMES)
def test_a_perfect_member_gets_everything(metric):
    stack, truth = make(members=3)
    stack[1] = np.eye(4)[truth]
    for how in ("best_single", "greedy", "hill_climb", "coordinate"):
        assert metric.gain(fit_weights(stack, truth, metric, how).score) == pytest.approx(
            metric.gain(scored(metric, truth, stack[1]))
        )
    if metric in {METRICS["log_loss"], BRIER}:
        np.testing.assert_allclose(fit_weights(stack, truth, metric, "convex").weights, [0, 1, 0], atol=1e-9)


def test_negative_weights_are_scores_and_refused_where_probabilities_are_needed():
    stack, truth = make(rows=300, members=3)
    stack = np.concatenate([stack, softmax(-np.log(stack[:1]).reshape(-1, 4)).reshape(1, 300, 4)])  # says the opposite
    found = fit_weights(stack, truth, METRICS["roc_auc"], "hill_climb", {"negative": True})
    assert found.weights.sum() == pytest.approx(1)
    assert (found.kind == "scores") == (found.weights.min() < 0)
    only = fit_weights(stack[[0, 3]], truth, METRICS["accuracy"], "hill_climb", {"negative": True})
    assert only.score >= fit_weights(stack[[0, 3]], truth, METRICS["accuracy"], "hill_climb").score
    with pytest.raises(DataError, match="needs probabilities"):
        fit_weights(stack, truth, METRICS["log_loss"], "hill_climb", {"negative": True})


def test_hill_climb_finds_what_a_plain_grid_finds():
    stack, truth = make(rows=150, classes=2, members=4, seed=5)
    metric = METRICS["roc_auc"]
    order = sorted(range(4), key=lambda m: -metric.score(truth, stack[m]))
    blend, pool = stack[order[0]], order[1:]
    best = metric.score(truth, blend)
    while pool:
        trials = [
            (metric.score(truth, (1 - t) * blend + t * stack[m]), m, t) for m in pool for t in np.arange(0.01, 0.51, 0.01)
        ]
        top = max(trials, key=lambda trial: trial[0])
        if top[0] <= best:
            break
        best, member, part = top
        blend = (1 - part) * blend + part * stack[member]
        pool.remove(member)
    found = fit_weights(stack, truth, metric, "hill_climb")
    assert found.score == pytest.approx(best, abs=1e-12)
    np.testing.assert_allclose(found.apply(stack), blend, atol=1e-12)


@pytest.mark.parametrize("c", [1.0, 0.01])
def test_stacking_is_scikit_learns_regression(c):
    from sklearn.linear_model import LogisticRegression

    stack, truth = make(rows=400, members=3)
    features = np.log(stack).transpose(1, 0, 2).reshape(400, -1)
    reference = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(features, truth)
    found = fit_weights(stack, truth, METRICS["log_loss"], "stacking", {"c": c})
    np.testing.assert_allclose(found.apply(stack), reference.predict_proba(features), atol=2e-4)
    np.testing.assert_allclose(found.weights.reshape(4, -1), reference.coef_, atol=2e-3)


def test_stacking_can_be_kept_non_negative():
    stack, truth = make(rows=300, members=3)
    free, bound = (fit_weights(stack, truth, METRICS["log_loss"], "stacking", {"non_negative": n}) for n in (False, True))
    assert free.weights.min() < 0 <= bound.weights.min()
    assert free.score <= bound.score
    many, yes = make(multilabel=True)
    with pytest.raises(DataError, match="exclude each other"):
        fit_weights(many, yes, METRICS["log_loss"], "stacking")


def test_what_cannot_be_is_refused():
    stack, truth = make()
    with pytest.raises(DataError) as caught:
        fit_weights(stack, truth, METRICS["accuracy"], "magic")
    assert all(name in caught.value.hint for name in WEIGHERS)
    with pytest.raises(DataError, match="do not fit"):
        fit_weights(stack, truth[:-1], METRICS["accuracy"])
    stack[2, 5, 1] = np.nan
    with pytest.raises(DataError, match=r"\[2\].*NaN"):
        fit_weights(stack, truth, METRICS["accuracy"])
    with pytest.raises(DataError, match="two classes"):
        fit_weights(make()[0], np.zeros(120, int), METRICS["roc_auc"])


def test_brier_by_hand():
    assert BRIER.score(np.array([0, 1]), np.array([[1.0, 0.0], [0.6, 0.4]])) == pytest.approx((0 + 0.72) / 2)
    assert BRIER.score(np.array([[True, False]]), np.array([[0.5, 0.25]])) == pytest.approx(0.3125)
    assert not BRIER.higher_is_better
    assert metrics.log_loss is METRICS["log_loss"].score


@pytest.mark.parametrize("how", [name for name in WEIGHERS if name != "stacking"])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_classes_in_another_order_give_the_same_weights(how, data):
    stack, truth = make(rows=60, members=4, seed=data.draw(st.integers(0, 50)))
    order = np.array(data.draw(st.permutations(range(4))))
    one = fit_weights(stack, truth, METRICS["log_loss"], how)
    other = fit_weights(stack[:, :, order], np.argsort(order)[truth], METRICS["log_loss"], how)
    np.testing.assert_allclose(other.weights, one.weights, atol=1e-6)


@pytest.mark.parametrize("how", [name for name in WEIGHERS if name != "stacking"])
def test_a_member_without_weight_is_as_good_as_absent(how):
    stack, truth = make(rows=100, members=4, seed=7)
    stack[2] = softmax(np.random.default_rng(0).normal(0, 4, (100, 4)))
    found = fit_weights(stack, truth, METRICS["log_loss"], how)
    kept = found.weights > 0
    if how not in ("uniform", "nelder_mead", "coordinate"):
        assert not kept[2]
    np.testing.assert_allclose(np.tensordot(found.weights[kept], stack[kept], 1), found.apply(stack), atol=1e-12)


@pytest.mark.parametrize("how", [name for name in WEIGHERS if name != "stacking"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), members=st.integers(1, 5))
def test_members_that_agree_are_believed_and_certain_ones_stay_certain(how, seed, members):
    rng = np.random.default_rng(seed)
    truth, said = rng.integers(0, 3, 20), rng.integers(0, 3, 20)
    certain = np.repeat(np.eye(3)[said][None], members, axis=0)
    found = fit_weights(certain, truth, METRICS["accuracy"], how)
    np.testing.assert_allclose(found.apply(certain), certain[0], atol=1e-12)
