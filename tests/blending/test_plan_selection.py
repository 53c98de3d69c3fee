"""Choosing among plans: by nested cross-validation written out by hand, never with a row that is scored, worth it or not at all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.blending.test_weighers import make, scored
from toolkit.blending import plan_selection
from toolkit.blending.calibration import ADJUSTMENTS, temperature
from toolkit.blending.nested import outer_folds
from toolkit.blending.objectives import BRIER
from toolkit.blending.plan_selection import CALIBRATIONS, BlendPlan, choose, judge, plans
from toolkit.blending.weighers import fit_weights
from toolkit.core.activations import softmax
from toolkit.core.metrics import METRICS
from toolkit.core.voting import VOTES, vote
from toolkit.errors import DataError

LOSS, ACCURACY, F1, AUC = (METRICS[name] for name in ("log_loss", "accuracy", "macro_f1", "roc_auc"))


def by_hand(plan, seen, truth, unseen, metric):
    """One plan written out: temperatures, weights on the mean, the vote, the adjustment fitted to what it says of seen rows."""
    warm = np.ones(len(seen))
    if plan.calibrate == "members":
        warm = np.array([temperature(table, truth).temperature for table in seen])

    def cold(stack):
        return np.stack([softmax(np.log(np.maximum(p, 2.3e-16)) / t) for p, t in zip(stack, warm, strict=True)])

    weights = fit_weights(cold(seen), truth, metric, plan.weigher).weights

    def said(stack):
        outcome = vote(cold(stack), how=plan.vote, weights=weights)
        return np.eye(stack.shape[2])[outcome.labels] if outcome.values is None else outcome.values

    if plan.calibrate in ADJUSTMENTS:
        return ADJUSTMENTS[plan.calibrate](said(seen), truth, metric).apply(said(unseen))
    return said(unseen)


def chosen_by_hand(stack, truth, every, folds, metric, left):
    """The plan with the best cross-validated score on the folds that are not left out."""
    kept = np.flatnonzero(~np.isin(folds, left))
    gains = []
    for plan in every:
        said = np.zeros(stack.shape[1:])
        for fold in set(folds[kept]):
            seen, out = kept[folds[kept] != fold], kept[folds[kept] == fold]
            said[out] = by_hand(plan, stack[:, seen], truth[seen], stack[:, out], metric)
        gains.append(metric.gain(scored(metric, truth[kept], said[kept])))
    return every[int(np.argmax(np.round(gains, 12)))]


@pytest.mark.parametrize("metric", [LOSS, F1, AUC, BRIER], ids=lambda m: m.name)
def test_the_choice_is_nested_cross_validation_written_out(metric):
    stack, truth = make(rows=90, members=3, classes=3, seed=2)
    every = plans(metric, ("uniform", "convex"), multilabel=False)
    folds = outer_folds(truth, 3)
    said, outer, best = choose(stack, truth, metric, every, folds)
    for fold in range(3):
        expected = chosen_by_hand(stack, truth, every, folds, metric, [fold])
        assert outer[fold].plan == expected
        seen, out = folds != fold, folds == fold
        np.testing.assert_allclose(said[out], by_hand(expected, stack[:, seen], truth[seen], stack[:, out], metric), atol=1e-9)
    assert best.plan == chosen_by_hand(stack, truth, every, folds, metric, [])
    np.testing.assert_allclose(best.apply(stack), by_hand(best.plan, stack, truth, stack, metric), atol=1e-9)


def test_what_a_fold_says_depends_on_no_truth_of_its_own():
    stack, truth = make(rows=120, members=4, seed=3)
    folds = outer_folds(truth, 4)
    every = plans(LOSS, multilabel=False)
    before = choose(stack, truth, LOSS, every, folds)[0]
    rng = np.random.default_rng(0)
    for fold in range(4):
        changed = truth.copy()
        changed[folds == fold] = rng.integers(0, 4, (folds == fold).sum())
        after = choose(stack, changed, LOSS, every, folds)[0]
        assert np.array_equal(before[folds == fold], after[folds == fold])
        assert not np.array_equal(before[folds != fold], after[folds != fold])


@pytest.mark.parametrize(
    "plan", [BlendPlan(*one) for one in itertools.product(("convex",), VOTES, CALIBRATIONS)], ids=lambda p: p.name
)
def test_the_blend_of_a_plan_says_what_the_plan_says(plan):
    for multilabel, metric in itertools.product((False, True), (LOSS, F1, AUC)):
        if not plan.suits(metric, multilabel=multilabel):
            continue
        stack, truth = make(rows=80, members=3, seed=4, multilabel=multilabel)
        verdict = judge(stack, truth, metric, [plan], draws=20, always=True, members=("a", "b", "c"))
        assert verdict.chosen == plan.name
        outcome = verdict.blend.apply(stack, multilabel=multilabel)
        table = outcome.values if outcome.labels is None else None
        if table is None:
            table = outcome.labels.astype(float) if multilabel else np.eye(4)[outcome.labels]
        assert verdict.estimates["in_sample"].score == pytest.approx(scored(metric, truth, table), abs=1e-9)


def test_a_vote_that_is_better_is_found_and_said():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 600)
    # each member is right and sure, or knows nothing and says so less surely: products of odds know whom to believe
    logits = rng.normal(0, 0.3, (5, 600, 3))
    knows = rng.random((5, 600)) < 0.4
    logits[:, np.arange(600), truth] += np.where(knows, 6.0, 0.0)
    stack = softmax(logits.reshape(-1, 3)).reshape(5, 600, 3)
    verdict = judge(stack, truth, LOSS, plans(LOSS, multilabel=False), draws=200)
    assert "geometric" in verdict.chosen
    assert verdict.blend.vote == "geometric"
    assert sum(verdict.picks.values()) == 5
    assert verdict.estimates["nested"].gain_low > 0


def test_members_that_differ_by_chance_alone_are_averaged():
    used = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        truth = rng.integers(0, 4, 250)
        logits = rng.normal(0, 1, (250, 4)) + rng.normal(0, 1, (8, 250, 4)) + 2 * np.eye(4)[truth]
        stack = softmax(logits.reshape(-1, 4)).reshape(8, 250, 4)
        verdict = judge(stack, truth, ACCURACY, plans(ACCURACY, multilabel=False), draws=100, seed=seed)
        used += verdict.blend.vote != "soft" or not np.allclose(verdict.blend.weights, 1 / 8)
    assert used <= 1


def test_plans_are_those_that_suit_the_metric():
    for metric in METRICS.values():
        for multilabel in (False, True):
            found = plans(metric, multilabel=multilabel)
            assert found[0] == BlendPlan("uniform")
            assert len({plan.name for plan in found}) == len(found)
            assert all(plan.suits(metric, multilabel=multilabel) for plan in found)
            assert (metric.accepts == "labels") == any(plan.vote == "hard" for plan in found)
    assert any(plan.calibrate == "factors" for plan in plans(F1, multilabel=False))
    assert [plan.name for plan in plans(LOSS, ["greedy"], ["soft"], ["members"], multilabel=False)] == [
        "greedy, temperature per member"
    ]
    with pytest.raises(DataError, match="suits log_loss"):
        plans(LOSS, votes=["hard"], multilabel=False)


def test_few_folds_cannot_choose_and_score_but_others_are_made():
    stack, truth = make(rows=60, members=2)
    every = plans(LOSS, multilabel=False)
    with pytest.raises(DataError, match="2 folds cannot choose among 8 plans"):
        choose(stack, truth, LOSS, every, np.arange(60) % 2)
    verdict = judge(stack, truth, LOSS, every, folds=np.arange(60) % 2, draws=20)
    assert sum(verdict.picks.values()) == 5


def test_of_many_rows_some_choose_and_all_settle(monkeypatch):
    stack, truth = make(rows=400, members=3, seed=6)
    every, folds = plans(LOSS, multilabel=False), outer_folds(truth)
    monkeypatch.setattr(plan_selection, "ENOUGH", 150)
    said, outer, best = choose(stack, truth, LOSS, every, folds)
    for fold, fitted in outer.items():
        seen, out = folds != fold, folds == fold
        np.testing.assert_allclose(said[out], by_hand(fitted.plan, stack[:, seen], truth[seen], stack[:, out], LOSS), atol=1e-9)
    np.testing.assert_allclose(best.apply(stack), by_hand(best.plan, stack, truth, stack, LOSS), atol=1e-9)


def test_progress_counts_to_the_end():
    stack, truth = make(rows=60, members=2)
    seen = []
    choose(
        stack,
        truth,
        LOSS,
        plans(LOSS, multilabel=False),
        outer_folds(truth, 3),
        report=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (7, 7)  # three pairs, three singles, all
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
