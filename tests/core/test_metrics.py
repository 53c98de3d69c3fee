"""Metrics against scikit-learn, Kaggle's MAP@k and sums by hand, over every entry of the registry."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics as reference

from toolkit.blending.nested import compare
from toolkit.core.metrics import METRICS
from toolkit.core.targets import Target
from toolkit.errors import CompetitionError, DataError
from toolkit.workspace.competition import Competition

RNG = np.random.default_rng(3)
TRUTH = RNG.integers(0, 4, 200)
SOFT = RNG.dirichlet(np.ones(4), 200)
SOFT = 0.6 * SOFT + 0.4 * np.eye(4)[np.where(RNG.random(200) < 0.7, TRUTH, RNG.integers(0, 4, 200))]
MANY = RNG.random((200, 3)) < 0.4
MANY_SOFT = np.clip(0.5 * MANY + 0.5 * RNG.random((200, 3)), 0, 1)


def mapk(truth, values, k):
    """Kaggle's MAP@k (ml_metrics): lists of what is there and of what is said, the best first."""
    scores = []
    for row, said in zip(truth, values, strict=True):
        actual = [row] if truth.ndim == 1 else np.flatnonzero(row).tolist()
        hits, score = 0.0, 0.0
        for i, one in enumerate(np.argsort(-said, kind="stable")[:k].tolist()):
            if one in actual:
                hits += 1
                score += hits / (i + 1)
        scores.append(score / min(len(actual), k) if actual else 0.0)
    return np.mean(scores)


def mrr(truth, values):
    found = []
    for row, said in zip(truth, values, strict=True):
        order = np.argsort(-said).tolist()
        places = [order.index(c) + 1 for c in ([row] if truth.ndim == 1 else np.flatnonzero(row).tolist())]
        found.append(1 / min(places) if places else 0)
    return np.mean(found)


def each(score):
    """A binary score's mean over the columns of a multilabel truth, or the score itself."""
    return lambda t, p: score(t, p) if t.ndim == 1 else np.mean([score(t[:, c], p[:, c]) for c in range(t.shape[1])])


def brier(t, p):
    onehot = np.eye(p.shape[1])[t] if t.ndim == 1 else t
    return ((p - onehot) ** 2).sum(axis=1).mean()


def averages(name, score):
    kinds = ("macro", "micro", "weighted")
    return {f"{kind}_{name}": lambda t, p, kind=kind: score(t, p, average=kind, zero_division=0) for kind in kinds}


REFERENCES = {
    "accuracy": reference.accuracy_score,
    "balanced_accuracy": reference.balanced_accuracy_score,
    **averages("f1", reference.f1_score),
    **averages("precision", reference.precision_score),
    **averages("recall", reference.recall_score),
    "log_loss": each(reference.log_loss),
    "brier": brier,
    "roc_auc": lambda t, p: reference.roc_auc_score(t, p, average="macro", **({"multi_class": "ovr"} if t.ndim == 1 else {})),
    "mae": reference.mean_absolute_error,
    "mse": reference.mean_squared_error,
    "quadratic_kappa": lambda t, p: reference.cohen_kappa_score(t, p, weights="quadratic"),
    "mrr": mrr,
    "ndcg": lambda t, p: reference.ndcg_score(np.eye(p.shape[1])[t] if t.ndim == 1 else t, p),
    **{f"map@{k}": lambda t, p, k=k: mapk(t, p, k) for k in (3, 5, 10)},
}
CASES = [(name, False) for name in METRICS] + [(name, True) for name, metric in METRICS.items() if metric.multilabel]


def given(metric, values, *, multilabel=False):
    if metric.accepts != "labels":
        return values
    return values >= 0.5 if multilabel else values.argmax(axis=1)


def test_every_metric_has_a_reference():
    assert set(REFERENCES) == set(METRICS) == {metric.name for metric in METRICS.values()}


@pytest.mark.parametrize(("name", "multilabel"), CASES)
def test_equals_its_reference(name, multilabel):
    metric = METRICS[name]
    truth, values = (MANY, MANY_SOFT) if multilabel else (TRUTH, SOFT)
    said = given(metric, values, multilabel=multilabel)
    assert metric.score(truth, said) == pytest.approx(REFERENCES[name](truth, said), abs=1e-12)


def test_brier_is_scikit_learns_also_for_several_classes():
    found = METRICS["brier"].score(TRUTH, SOFT)
    assert found == pytest.approx(reference.brier_score_loss(TRUTH, SOFT, scale_by_half=False), abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_perfect_is_best_and_gain_points_up(name):
    metric = METRICS[name]
    perfect, spoiled = np.eye(4)[TRUTH], np.eye(4)[np.roll(TRUTH, 1)]
    best, worse = (metric.gain(metric.score(TRUTH, given(metric, p))) for p in (perfect, spoiled))
    assert best > worse
    assert metric.score(TRUTH, given(metric, perfect)) == pytest.approx(1.0 if metric.higher_is_better else 0.0, abs=1e-12)


@pytest.mark.parametrize(("name", "multilabel"), CASES)
def test_row_order_does_not_matter(name, multilabel):
    metric, order = METRICS[name], RNG.permutation(200)
    truth, values = (MANY, MANY_SOFT) if multilabel else (TRUTH, SOFT)
    said = given(metric, values, multilabel=multilabel)
    assert metric.score(truth[order], said[order]) == pytest.approx(metric.score(truth, said), abs=1e-13)


@pytest.mark.parametrize(("name", "multilabel"), [case for case in CASES if METRICS[case[0]].rows])
def test_rows_are_what_the_score_is_the_mean_of(name, multilabel):
    metric = METRICS[name]
    truth, values = (MANY, MANY_SOFT) if multilabel else (TRUTH, SOFT)
    said = given(metric, values, multilabel=multilabel)
    rows = metric.rows(truth, said)
    assert (rows.shape, rows.dtype) == ((200,), np.float64)
    assert rows.mean() == pytest.approx(metric.score(truth, said), abs=1e-13)
    assert rows[17] == pytest.approx(metric.score(truth[17:18], said[17:18]), abs=1e-13)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_pickles_and_has_an_interval(name):
    metric = pickle.loads(pickle.dumps(METRICS[name]))
    found = compare(TRUTH, metric, {"a": SOFT, "b": np.roll(SOFT, 1, axis=0)}, baseline="b", draws=40)["a"]
    assert found.low <= found.score <= found.high
    assert found.gain_low > 0


@pytest.mark.parametrize("name", METRICS)
def test_a_fold_without_a_class_has_the_score_of_the_others(name):
    """The rows of three classes, predicted over four: the score is that over the three, and never fails."""
    metric, kept = METRICS[name], TRUTH < 3
    four = given(metric, SOFT[kept])
    if metric.accepts == "labels":
        three = np.where(four == 3, 0, four)
        assert metric.score(TRUTH[kept], three) == pytest.approx(REFERENCES[name](TRUTH[kept], three), abs=1e-12)
        assert np.isfinite(metric.score(TRUTH[kept], four))
    elif name == "roc_auc":
        areas = [reference.roc_auc_score(TRUTH[kept] == c, four[:, c]) for c in range(3)]
        assert metric.score(TRUTH[kept], four) == pytest.approx(np.mean(areas), abs=1e-12)
    elif name == "log_loss":
        expected = reference.log_loss(TRUTH[kept], four, labels=[0, 1, 2, 3])
        assert metric.score(TRUTH[kept], four) == pytest.approx(expected, abs=1e-12)
    else:
        assert metric.score(TRUTH[kept], four) == pytest.approx(REFERENCES[name](TRUTH[kept], four), abs=1e-12)


@pytest.mark.parametrize("name", ["macro_recall", "balanced_accuracy"])
def test_recall_does_not_fall_because_a_class_is_absent(name):
    truth, labels = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])
    assert METRICS[name].score(truth, labels) == 0.75
    assert METRICS["macro_precision"].score(truth, labels) == pytest.approx(2 / 3)  # what was given to class 2 is all wrong


@pytest.mark.parametrize("name", METRICS)
def test_a_class_that_is_always_named_gives_a_number(name):
    metric = METRICS[name]
    constant = np.tile([0.1, 0.2, 0.3, 0.4], (200, 1))
    assert np.isfinite(metric.score(TRUTH, given(metric, constant)))
    one = np.zeros(5, dtype=int)
    if name != "roc_auc":
        assert np.isfinite(metric.score(one, given(metric, constant[:5])))
        best = metric.score(one, given(metric, np.eye(4)[one]))
        assert best == pytest.approx(1.0 if metric.higher_is_better else 0.0, abs=1e-12)


def test_distances_are_between_class_numbers():
    truth, labels = np.array([0, 4, 2]), np.array([4, 3, 2])
    assert METRICS["mae"].score(truth, labels) == pytest.approx(5 / 3)
    assert METRICS["mse"].score(truth, labels) == pytest.approx(17 / 3)


def test_ranks_by_hand():
    values = np.array([[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]])
    truth = np.array([2, 1])  # ranks 3 and, the first of equals leading, 2
    assert METRICS["mrr"].score(truth, values) == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert METRICS["map@3"].score(truth, values) == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert METRICS["map@3"].score(np.array([3, 3]), values) == 0
    assert METRICS["ndcg"].score(truth, values) == pytest.approx((0.5 + 1 / np.log2(3)) / 2)
    many = np.array([[True, False, True, False], [False] * 4])  # a row of no class has nothing to find, as on Kaggle
    assert METRICS["map@3"].score(many, values) == pytest.approx((1 + 2 / 3) / 2 / 2)
    five = np.array([[0.5, 0.4, 0.3, 0.2, 0.1]])
    assert METRICS["map@3"].score(np.ones((1, 5), bool), five) == 1


def test_binary_auc_with_ties_is_the_usual_area():
    truth, p = TRUTH % 2, np.round(SOFT[:, 1], 1)
    both = np.stack([1 - p, p], axis=1)
    assert METRICS["roc_auc"].score(truth, both) == pytest.approx(reference.roc_auc_score(truth, p), abs=1e-12)


def test_one_class_alone_has_no_auc():
    with pytest.raises(DataError, match="two classes"):
        METRICS["roc_auc"].score(np.zeros(5, int), SOFT[:5])


def test_no_class_at_all_has_no_f1():
    with pytest.raises(DataError, match="macro-F1 needs at least one row"):
        METRICS["macro_f1"].score(np.zeros((3, 2), bool), np.zeros((3, 2), bool))


def test_certain_and_wrong_is_finite():
    assert np.isfinite(METRICS["log_loss"].score(np.array([0]), np.array([[0.0, 1.0]])))


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if not metric.multilabel])
def test_what_has_no_multilabel_meaning_says_so(name, workspace):
    with pytest.raises(DataError, match="several classes"):
        METRICS[name].score(MANY, MANY)
    several = Target("label", "multilabel", ("ant", "bee", "cat"))
    with pytest.raises(CompetitionError, match="'label' is multilabel") as caught:
        replace(Competition.find(), metric=name, targets=(several,))
    assert "macro_f1" in caught.value.hint
