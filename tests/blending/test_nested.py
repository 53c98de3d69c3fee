"""Nested scores: nothing chosen on the rows it is scored on, intervals against NumPy by hand, groups kept whole, the rule."""

from __future__ import annotations

import numpy as np
import pytest

from tests.blending.test_weighers import EVERY, NAMES, make, scored
from toolkit.blending.nested import Estimate, compare, decide_between, fold_scales, nested, outer_folds, weigher, widening
from toolkit.blending.objectives import BRIER
from toolkit.blending.plan_selection import judge
from toolkit.core.metrics import METRICS
from toolkit.errors import DataError

LOSS = METRICS["log_loss"]


def test_a_chooser_never_sees_the_rows_its_rule_is_scored_on():
    stack, truth = make(rows=50)
    stack[0, :, 0] = np.arange(50)  # each row carries its number
    folds = outer_folds(truth, 5)
    pairs = []

    def choose(seen, _truth):
        rows = set(seen[0, :, 0].astype(int))
        assert _truth.tolist() == truth[sorted(rows)].tolist()

        def rule(unseen):
            pairs.append((rows, set(unseen[0, :, 0].astype(int))))
            return unseen[0]

        return rule

    said = nested(stack, truth, {"spy": choose}, folds)["spy"]
    assert np.array_equal(said, stack[0])  # every row came back in its own place
    assert len(pairs) == 5
    assert all(not seen & unseen and len(seen | unseen) == 50 for seen, unseen in pairs)


def test_a_chooser_that_memorises_gains_nothing():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 400)
    stack = rng.random((60, 400, 1)) * 0.5 + 0.25  # sixty members that know nothing
    stack = np.concatenate([stack, 1 - stack], axis=2)
    verdict = judge(stack, truth, METRICS["accuracy"], "greedy", draws=200)
    assert verdict.estimates["in_sample"].score > 0.57
    assert verdict.estimates["nested"].low < 0.5 < verdict.estimates["nested"].high
    assert verdict.chosen == "uniform"
    assert np.allclose(verdict.weights.weights, 1 / 60)
    assert "cannot be told from noise" in verdict.reason


def test_a_member_that_is_much_better_is_found_and_used():
    stack, truth = make(rows=600, seed=4)
    noise = np.random.default_rng(0).dirichlet(np.ones(4), (6, 600))
    stack = np.concatenate([stack[:1] * 0.2 + 0.8 * np.eye(4)[truth] * 0.9 + 0.02, noise])
    stack /= stack.sum(axis=2, keepdims=True)
    verdict = judge(stack, truth, LOSS, "greedy", draws=200)
    assert verdict.chosen == "greedy"
    assert verdict.weights.weights[0] > 0.9
    assert verdict.estimates["nested"].gain_low > 0
    assert "above zero" in verdict.reason


def test_always_obeys_and_says_what_the_rule_would_have_done():
    stack, truth = make(rows=100, members=3)
    stack[:] = stack[:1]
    verdict = judge(stack, truth, LOSS, "convex", draws=100, always=True)
    assert verdict.chosen == verdict.weights.how == "convex"
    assert "asked for" in verdict.reason


@pytest.mark.parametrize("metric", EVERY, ids=NAMES)
@pytest.mark.parametrize("multilabel", [False, True])
def test_scores_are_the_metrics_and_intervals_those_of_a_plain_bootstrap(metric, multilabel):
    stack, truth = make(rows=80, members=2, multilabel=multilabel)
    said = {"uniform": stack[0], "other": stack[1]}
    found = compare(truth, metric, said, draws=60, seed=3)
    rng = np.random.default_rng(3)
    drawn = []
    for _ in range(60):
        rows = rng.integers(0, 80, 80, dtype=np.int32)
        drawn.append([scored(metric, truth[rows], values[rows]) for values in said.values()])
    drawn = np.array(drawn)
    for column, name in enumerate(said):
        assert found[name].score == pytest.approx(scored(metric, truth, said[name]), abs=1e-12)
        low, high = np.quantile(drawn[:, column], [0.025, 0.975])
        assert (found[name].low, found[name].high) == pytest.approx((low, high), abs=1e-9)
    gains = metric.gain(1) * (drawn[:, 1] - drawn[:, 0])
    assert (found["other"].gain_low, found["other"].gain_high) == pytest.approx(
        tuple(np.quantile(gains, [0.025, 0.975])), abs=1e-9
    )
    assert found["uniform"].gain == found["uniform"].gain_low == found["uniform"].gain_high == 0


def test_grouped_intervals_draw_whole_groups():
    stack, truth = make(rows=60, members=2)
    stack, truth = np.repeat(stack, 10, axis=1), np.repeat(truth, 10)  # every row ten times over: no more is known than before
    groups = [str(i // 10) for i in range(600)]
    said = {"uniform": stack[0]}
    one, torn, whole = (
        compare(truth[cut], LOSS, {"uniform": stack[0][cut]}, groups=g)["uniform"]
        for cut, g in ((slice(None, None, 10), None), (slice(None), None), (slice(None), groups))
    )
    assert whole.score == pytest.approx(one.score)
    assert whole.high - whole.low == pytest.approx(one.high - one.low, rel=0.15)
    assert torn.high - torn.low < 0.5 * (whole.high - whole.low)
    assert said["uniform"].shape == (600, 4)


def test_stretching_an_interval_keeps_its_middle():
    stack, truth = make(rows=200, members=2)
    said = {"uniform": stack[0], "other": stack[1]}
    plain, wide = (compare(truth, LOSS, said, widen=w, draws=200)["other"] for w in (None, {"other": widening(5)}))
    assert widening(5) == pytest.approx(1.5)
    for field, low, high in (("score", "low", "high"), ("gain", "gain_low", "gain_high")):
        middle = getattr(plain, field)
        assert getattr(wide, field) == middle
        assert getattr(wide, low) - middle == pytest.approx(1.5 * (getattr(plain, low) - middle))
        assert getattr(wide, high) - middle == pytest.approx(1.5 * (getattr(plain, high) - middle))


def test_outer_folds_are_even_in_the_classes_and_never_tear_a_group():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [300, 60, 15])
    folds = outer_folds(truth, 5)
    for label in range(3):
        counts = np.bincount(folds[truth == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    groups = [f"g{i}" for i in rng.integers(0, 60, 375)]
    grouped = outer_folds(truth, 5, groups=groups)
    assert all(len({grouped[i] for i in range(375) if groups[i] == g}) == 1 for g in set(groups))
    assert np.bincount(grouped).min() > 40
    assert np.array_equal(np.unique(outer_folds(rng.random((40, 3)) < 0.4, 4)), np.arange(4))
    assert not np.array_equal(folds, outer_folds(truth, 5, seed=1))


def test_folds_that_tear_a_group_are_refused():
    stack, truth = make(rows=40)
    with pytest.raises(DataError, match="group 'a' has rows in several folds"):
        judge(stack, truth, LOSS, groups=["a"] * 2 + [f"b{i}" for i in range(38)], folds=np.arange(40) % 4)


def test_what_cannot_be_is_refused():
    stack, truth = make(rows=20)
    with pytest.raises(DataError, match="at least two folds"):
        nested(stack, truth, {"x": weigher("uniform", LOSS)}, np.zeros(20, int))
    with pytest.raises(DataError, match="3 rows or groups cannot make 5"):
        outer_folds(truth[:3], 5)
    with pytest.raises(DataError, match="cannot be had"):
        compare(np.array([0, 0]), METRICS["roc_auc"], {"uniform": stack[0, :2]}, draws=5)


@pytest.mark.parametrize(("low", "chosen"), [(-0.001, "uniform"), (0.0, "uniform"), (0.001, "greedy")])
def test_the_rule_wants_the_whole_interval_above_zero(low, chosen):
    assert decide_between("greedy", Estimate(0.5, 0.4, 0.6, 0.01, low, 0.02), BRIER)[0] == chosen


def test_the_rule_says_so_when_a_blend_is_worse():
    chosen, reason = decide_between("greedy", Estimate(0.5, 0.4, 0.6, -0.02, -0.03, -0.01), BRIER)
    assert chosen == "uniform"
    assert reason.endswith("so greedy is worse")


def test_nested_weighers_are_fitted_without_their_fold():
    stack, truth = make(rows=90)
    folds = outer_folds(truth, 3)
    said = nested(stack, truth, {"convex": weigher("convex", LOSS)}, folds)["convex"]
    for fold in range(3):
        out = folds == fold
        rule = weigher("convex", LOSS)(stack[:, ~out], truth[~out])
        np.testing.assert_allclose(said[out], rule(stack[:, out]), atol=1e-12)


@pytest.mark.parametrize(("shift", "seen"), [(0.0, False), (4.0, True)])
def test_a_pooled_score_that_folds_do_not_explain_is_said_with_theirs(shift, seen):
    """Fold models that are as good as each other, one of them surer of everything: pooled, their rows are out of order."""
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    truth, folds = rng.integers(0, 2, 400), np.arange(400) % 4
    odds = 1.5 * truth + rng.normal(0, 1, 400) + shift * (folds == 1)
    values = np.stack([1 / (1 + np.exp(odds)), 1 / (1 + np.exp(-odds))], axis=1)
    scales = fold_scales(truth, METRICS["roc_auc"], values, folds)
    assert scales.pooled == pytest.approx(roc_auc_score(truth, odds))
    assert scales.mean == pytest.approx(np.mean([roc_auc_score(truth[folds == k], odds[folds == k]) for k in range(4)]))
    assert bool(scales.note) is seen
    if seen:
        assert scales.low > 0.02
        assert f"{scales.pooled:.5f}" in scales.note
        assert f"{scales.mean:.5f}" in scales.note
    assert fold_scales(truth, METRICS["accuracy"], values, folds) is None
    assert fold_scales(truth, METRICS["roc_auc"], values, np.zeros(400, dtype=np.int64)) is None
