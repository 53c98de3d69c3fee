"""Metrics against scikit-learn, over every entry of the registry."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as reference

from toolkit.errors import DataError
from toolkit.metrics import METRICS

RNG = np.random.default_rng(3)
TRUTH = RNG.integers(0, 4, 200)
SOFT = RNG.dirichlet(np.ones(4), 200)
SOFT = 0.6 * SOFT + 0.4 * np.eye(4)[np.where(RNG.random(200) < 0.7, TRUTH, RNG.integers(0, 4, 200))]
MANY = RNG.random((200, 3)) < 0.4
MANY_SOFT = np.clip(0.5 * MANY + 0.5 * RNG.random((200, 3)), 0, 1)

REFERENCES = {
    "accuracy": reference.accuracy_score,
    "macro_f1": lambda t, p: reference.f1_score(t, p, average="macro"),
    "log_loss": lambda t, p: (
        reference.log_loss(t, p) if t.ndim == 1 else np.mean([reference.log_loss(t[:, c], p[:, c]) for c in range(t.shape[1])])
    ),
    "roc_auc": lambda t, p: reference.roc_auc_score(t, p, average="macro", **({"multi_class": "ovr"} if t.ndim == 1 else {})),
}


def _input(metric, values):
    if metric.accepts != "labels":
        return values
    return values >= 0.5 if values.shape[1] == 3 else values.argmax(axis=1)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(("truth", "values"), [(TRUTH, SOFT), (MANY, MANY_SOFT)], ids=["multiclass", "multilabel"])
def test_equals_scikit_learn(name, truth, values):
    metric = METRICS[name]
    given = _input(metric, values)
    assert metric.score(truth, given) == pytest.approx(REFERENCES[name](truth, given), abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_perfect_is_best_and_gain_points_up(name):
    metric = METRICS[name]
    perfect, spoiled = np.eye(4)[TRUTH], np.eye(4)[np.roll(TRUTH, 1)]
    best, worse = (metric.gain(metric.score(TRUTH, _input(metric, p))) for p in (perfect, spoiled))
    assert best > worse
    assert metric.score(TRUTH, _input(metric, perfect)) == pytest.approx(1.0 if metric.higher_is_better else 0.0, abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_row_order_does_not_matter(name):
    metric = METRICS[name]
    order = RNG.permutation(200)
    given = _input(metric, SOFT)
    assert metric.score(TRUTH[order], given[order]) == pytest.approx(metric.score(TRUTH, given), abs=1e-13)


def test_a_class_without_rows_does_not_shift_a_score():
    truth = np.where(TRUTH == 3, 0, TRUTH)
    labels = np.where(SOFT.argmax(1) == 3, 0, SOFT.argmax(1))
    assert METRICS["macro_f1"].score(truth, labels) == pytest.approx(
        reference.f1_score(truth, labels, average="macro"), abs=1e-12
    )
    auc = np.mean([reference.roc_auc_score(truth == c, SOFT[:, c]) for c in range(3)])
    assert METRICS["roc_auc"].score(truth, SOFT) == pytest.approx(auc, abs=1e-12)
    assert METRICS["log_loss"].score(truth, SOFT) == pytest.approx(
        reference.log_loss(truth, SOFT, labels=[0, 1, 2, 3]), abs=1e-12
    )


def test_binary_auc_with_ties_is_the_usual_area():
    truth, p = TRUTH % 2, np.round(SOFT[:, 1], 1)
    both = np.stack([1 - p, p], axis=1)
    assert METRICS["roc_auc"].score(truth, both) == pytest.approx(reference.roc_auc_score(truth, p), abs=1e-12)


def test_one_class_alone_has_no_auc():
    with pytest.raises(DataError, match="two classes"):
        METRICS["roc_auc"].score(np.zeros(5, int), SOFT[:5])


def test_certain_and_wrong_is_finite():
    assert np.isfinite(METRICS["log_loss"].score(np.array([0]), np.array([[0.0, 1.0]])))
