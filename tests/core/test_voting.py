"""Laws that every vote obeys, and scikit-learn's VotingClassifier as an independent reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from toolkit.core.predictions import Predictions
from toolkit.core.voting import VOTES, WHOLE_TABLE, vote
from toolkit.errors import DataError

ROW_WISE = [name for name in VOTES if name not in WHOLE_TABLE]
PROBABLE = [name for name in ROW_WISE if name != "hard"]


@st.composite
def stacks(draw, members=(1, 6), rows=(1, 5), classes=(2, 5)):
    shape = (draw(st.integers(*members)), draw(st.integers(*rows)), draw(st.integers(*classes)))
    # few distinct values, so that ties are common
    raw = draw(hnp.arrays(np.float64, shape, elements=st.sampled_from([1e-300, 0.1, 0.2, 0.25, 0.5, 1.0, 3.0])))
    return raw / raw.sum(axis=2, keepdims=True)


def weights_for(stack, draw_from):
    return draw_from.draw(
        st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.0]), min_size=len(stack), max_size=len(stack)), label="weights"
    )


def outcome(result):
    return result.values if result.labels is None else result.labels


@pytest.mark.parametrize("how", VOTES)
@given(stack=stacks(), data=st.data())
def test_member_order_does_not_change_a_bit(how, stack, data):
    weights = weights_for(stack, data)
    order = data.draw(st.permutations(range(len(stack))))
    one = vote(stack, how=how, weights=weights)
    other = vote(stack[order], how=how, weights=[weights[i] for i in order])
    assert np.array_equal(outcome(one), outcome(other))
    assert np.array_equal(one.ties, other.ties)


@pytest.mark.parametrize("how", ROW_WISE)
@given(stack=stacks(rows=(2, 5)), data=st.data())
def test_rows_do_not_see_each_other(how, stack, data):
    order = data.draw(st.permutations(range(stack.shape[1])))
    assert np.array_equal(outcome(vote(stack[:, order], how=how)), outcome(vote(stack, how=how))[order])
    assert np.array_equal(outcome(vote(stack[:, :1], how=how)), outcome(vote(stack, how=how))[:1])


@pytest.mark.parametrize("how", VOTES)
@given(stack=stacks(), data=st.data())
def test_rows_in_another_order_give_the_same_rows(how, stack, data):
    order = data.draw(st.permutations(range(stack.shape[1])))
    assert np.array_equal(outcome(vote(stack[:, order], how=how)), outcome(vote(stack, how=how))[order])


@pytest.mark.parametrize("how", VOTES)
@given(stack=stacks(members=(2, 6)), data=st.data())
def test_zero_weight_is_absence(how, stack, data):
    weights = weights_for(stack, data)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(stack), max_size=len(stack)).filter(any)))
    silenced = vote(stack, how=how, weights=np.where(keep, weights, 0.0))
    absent = vote(stack[keep], how=how, weights=np.array(weights)[keep])
    assert np.array_equal(outcome(silenced), outcome(absent))


@pytest.mark.parametrize("how", ROW_WISE)
@given(stack=stacks(members=(1, 1)), data=st.data())
def test_unanimity_wins(how, stack, data):
    copies = np.repeat(stack, data.draw(st.integers(1, 8)), axis=0)
    result = vote(copies, how=how)
    if result.values is not None:
        np.testing.assert_allclose(result.values, stack[0], atol=1e-15)
    else:
        chosen = np.take_along_axis(stack[0], result.labels[:, None], axis=1)[:, 0]
        assert (chosen == stack[0].max(axis=1)).all()


@given(stack=stacks(), data=st.data())
def test_soft_is_the_weighted_mean_and_a_distribution(stack, data):
    weights = weights_for(stack, data)
    result = vote(stack, how="soft", weights=weights).values
    np.testing.assert_allclose(result, np.average(stack, axis=0, weights=weights), atol=1e-15)
    np.testing.assert_allclose(result.sum(axis=1), 1, atol=1e-12)


@given(stack=stacks(), data=st.data())
def test_hard_follows_the_rule_by_brute_force(stack, data):
    weights = weights_for(stack, data)
    result = vote(stack, how="hard", weights=weights)
    mean = vote(stack, how="soft", weights=weights).values
    for row in range(stack.shape[1]):
        votes = [sum(w for w, p in zip(weights, stack[:, row], strict=True) if p.argmax() == c) for c in range(stack.shape[2])]
        leaders = [c for c, v in enumerate(votes) if abs(v - max(votes)) < 1e-9]
        best = max(mean[row, c] for c in leaders)
        assert result.labels[row] == next(c for c in leaders if mean[row, c] == best)
        assert result.ties[row] == (len(leaders) > 1)


def _classifiers(stack):
    """Fitted classifiers that say what the stack says, for scikit-learn's VotingClassifier."""
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.ensemble import VotingClassifier
    from sklearn.preprocessing import LabelEncoder

    class Says(ClassifierMixin, BaseEstimator):
        def __init__(self, table=None):
            self.table = table

        def predict_proba(self, rows):
            return self.table[rows[:, 0].astype(int)]

        def predict(self, rows):
            return self.predict_proba(rows).argmax(axis=1)

    def build(voting, weights):
        model = VotingClassifier([(str(i), Says(table)) for i, table in enumerate(stack)], voting=voting, weights=weights)
        model.estimators_ = [Says(table) for table in stack]
        model.le_ = LabelEncoder().fit(np.arange(stack.shape[2]))
        model.classes_ = model.le_.classes_
        return model

    return build


@pytest.mark.parametrize("weights", [None, [0.3, 1.0, 0.7, 0.2, 1.1]])
def test_equals_scikit_learns_voting_classifier(weights):
    rng = np.random.default_rng(0)
    stack = rng.dirichlet(np.ones(6) * 0.4, (5, 500))
    rows = np.arange(500)[:, None].astype(float)
    build = _classifiers(stack)
    np.testing.assert_allclose(
        vote(stack, how="soft", weights=weights).values, build("soft", weights).predict_proba(rows), atol=1e-14
    )
    ours = vote(stack, how="hard", weights=weights)
    untied = ~ours.ties
    assert untied.sum() > 250
    assert np.array_equal(ours.labels[untied], build("hard", weights).predict(rows)[untied])


def test_hard_ties_of_sums_that_differ_in_the_last_bit_are_ties():
    # 0.1 + 0.2 against 0.3: equal votes but for rounding
    a, b = [0.9, 0.1], [0.4, 0.6]
    result = vote(np.array([[a], [a], [b]]), how="hard", weights=[0.1, 0.2, 0.3])
    assert result.ties.tolist() == [True]
    assert result.labels.tolist() == [0]


def test_multilabel_hard_counts_each_class():
    stack = np.array([[[0.9, 0.6, 0.1]], [[0.8, 0.4, 0.2]], [[0.2, 0.45, 0.9]]])
    assert vote(stack, how="hard", multilabel=True).labels.tolist() == [[True, False, False]]
    even = vote(stack[:2], how="hard", multilabel=True)
    assert even.labels.tolist() == [[True, True, False]]  # 0.6 and 0.4: a tie, settled by the mean of 0.5
    assert even.ties.tolist() == [True]


@given(stack=stacks(members=(3, 3), classes=(3, 3)))
def test_soft_is_symmetric_in_the_classes(stack):
    for order in itertools.permutations(range(3)):
        assert np.array_equal(vote(stack[:, :, order], how="soft").values, vote(stack, how="soft").values[:, order])


@pytest.mark.parametrize("weights", [[1.0], [0, 0, 0], [1, -1, 1], [1, float("nan"), 1]])
def test_weights_that_cannot_be_are_refused(weights):
    with pytest.raises(DataError, match="3 members need"):
        vote(np.full((3, 2, 2), 0.5), weights=weights)


@pytest.mark.parametrize("how", VOTES)
def test_what_comes_out_is_of_the_kind_it_says(how):
    stack = np.random.default_rng(1).dirichlet(np.ones(4), (3, 50))
    for multilabel in (False, True):
        result = vote(stack, how=how, multilabel=multilabel)
        table = Predictions(
            "t", result.kind, tuple(map(str, range(50))), tuple("abcd"), result.values, result.labels, multilabel=multilabel
        )
        assert (table.kind == "scores") == (how in WHOLE_TABLE)
        assert result.values is None or result.values.dtype == np.float64


@pytest.mark.parametrize("how", PROBABLE)
@given(stack=stacks(members=(1, 8)), data=st.data())
def test_rows_sum_to_one(how, stack, data):
    weights = weights_for(stack, data)
    per_class = np.array([weights_for(stack, data) for _ in range(stack.shape[2])]).T
    for given_weights in (None, weights, per_class):
        values = vote(stack, how=how, weights=given_weights).values
        assert (values >= 0).all()
        np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-12)
        yes = vote(stack, how=how, weights=given_weights, multilabel=True).values
        assert ((yes >= 0) & (yes <= 1)).all()


HARSH = {
    "certain and opposed": [[1.0, 0.0], [0.0, 1.0]],
    "1e-300 eight times": [[1e-300, 1 - 1e-300]] * 8,
    "all disagree": np.eye(3),
    "one against seven": [[1.0, 0.0]] + [[0.0, 1.0]] * 7,
    "smallest subnormal": [[5e-324, 1.0], [1.0, 5e-324]],
}


@pytest.mark.parametrize("how", PROBABLE)
@pytest.mark.parametrize("rows", HARSH.values(), ids=HARSH)
def test_extreme_probabilities_neither_overflow_nor_vanish(how, rows):
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        values = vote(np.array(rows)[:, None, :], how=how).values
    assert np.isfinite(values).all()
    np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-12)
    if np.array_equal(np.sort(rows, axis=0), np.sort(np.array(rows)[:, ::-1], axis=0)):
        np.testing.assert_allclose(values, 1 / values.shape[1], atol=1e-12)
    elif len(np.unique(rows, axis=0)) == 1:
        np.testing.assert_allclose(values[0], rows[0], rtol=1e-9, atol=0)


def test_log_odds_knows_how_certain_a_one_was():
    # both tops round to 1.0; that one was surer (1e-30) than the other (1e-20) stands in their smaller probabilities only
    stack = np.array([[[1.0, 1e-30]], [[1e-20, 1.0]]])
    assert vote(stack, how="log_odds").values[0, 1] == pytest.approx(1e-5, rel=1e-4)


@pytest.mark.parametrize("how", PROBABLE)
@given(stack=stacks(classes=(2, 2)), data=st.data())
def test_a_class_of_a_multilabel_target_is_a_two_class_question(how, stack, data):
    weights = weights_for(stack, data)
    alone = vote(stack[:, :, 1:], how=how, weights=weights, multilabel=True).values
    both = vote(np.concatenate([1 - stack[:, :, 1:], stack[:, :, 1:]], axis=2), how=how, weights=weights).values
    np.testing.assert_allclose(alone[:, 0], both[:, 1], atol=1e-12)


@pytest.mark.parametrize("how", VOTES)
@given(stack=stacks(classes=(3, 3)), data=st.data())
def test_equal_weights_of_every_class_are_a_members_weight(how, stack, data):
    weights = weights_for(stack, data)
    per_class = np.repeat(np.array(weights)[:, None], 3, axis=1)
    one, other = vote(stack, how=how, weights=weights), vote(stack, how=how, weights=per_class)
    np.testing.assert_allclose(outcome(one), outcome(other), atol=1e-14)


@pytest.mark.parametrize("how", [*PROBABLE, "rank"])
@given(stack=stacks(classes=(3, 3)))
def test_classes_are_all_alike(how, stack):
    values = vote(stack, how=how).values
    for order in itertools.permutations(range(3)):
        np.testing.assert_allclose(vote(stack[:, :, order], how=how).values, values[:, order], atol=1e-12)


def _rows(values):
    return values / values.sum(axis=1, keepdims=True)


def _log_odds(stack, weights):
    return scipy.special.expit(np.average(scipy.special.logit(stack), axis=0, weights=weights))


REFERENCES = {
    "geometric": lambda p, w: _rows(scipy.stats.gmean(p, axis=0, weights=np.broadcast_to(w[:, None, None], p.shape))),
    "log_odds": lambda p, w: _rows(_log_odds(p, w)),
    "power": lambda p, w: _rows(scipy.stats.pmean(p, 2, axis=0, weights=np.broadcast_to(w[:, None, None], p.shape))),
    "median": lambda p, w: _rows(np.quantile(p, 0.5, axis=0, weights=w, method="inverted_cdf")),
    "max": lambda p, w: _rows(p.max(axis=0)),
    "rank": lambda p, w: np.average(scipy.stats.rankdata(p, axis=1) / p.shape[1], axis=0, weights=w),
}


@pytest.mark.parametrize("how", REFERENCES)
def test_equals_scipy_and_numpy(how):
    rng = np.random.default_rng(5)
    stack = np.round(rng.dirichlet(np.ones(5), (7, 60)), 3) + 1e-3
    stack /= stack.sum(axis=2, keepdims=True)
    weights = np.array([0.33, 1.0, 0.72, 0.2, 1.13, 0.4, 0.9])
    np.testing.assert_allclose(vote(stack, how=how, weights=weights).values, REFERENCES[how](stack, weights), atol=1e-12)


@pytest.mark.parametrize("members", [1, 2, 4, 5, 10])
def test_unweighted_median_and_trimmed_mean_are_the_usual_ones(members):
    stack = np.random.default_rng(members).dirichlet(np.ones(4), (members, 40))
    np.testing.assert_allclose(vote(stack, how="median").values, _rows(np.median(stack, axis=0)), atol=1e-12)
    if members % 5 == 0:
        np.testing.assert_allclose(vote(stack, how="trimmed").values, _rows(scipy.stats.trim_mean(stack, 0.2)), atol=1e-12)


def test_where_all_medians_are_zero_the_mean_speaks():
    assert vote(np.eye(3)[:, None, :], how="median").values.tolist() == [[1 / 3] * 3]


def test_a_class_nobody_speaks_for_is_refused():
    with pytest.raises(DataError, match="per member and class"):
        vote(np.full((2, 2, 2), 0.5), weights=[[1, 0], [1, 0]])


@pytest.mark.parametrize("how", PROBABLE)
def test_class_weights_let_each_class_trust_another_member(how):
    stack = np.array([[[0.8, 0.2]], [[0.3, 0.7]]])
    np.testing.assert_allclose(vote(stack, how=how, weights=[[1, 0], [0, 1]]).values, [[0.8 / 1.5, 0.7 / 1.5]], atol=1e-14)
    np.testing.assert_allclose(vote(stack, how=how, weights=[[0, 1], [1, 0]]).values, [[0.6, 0.4]], atol=1e-14)


def test_where_each_class_trusts_only_who_denies_it_the_mean_speaks():
    opposed = vote(np.eye(2)[:, None, :], weights=[[0, 1], [1, 0]])
    assert opposed.values.tolist() == [[0.5, 0.5]]


def test_an_unknown_vote_names_the_known_ones():
    with pytest.raises(DataError) as caught:
        vote(np.full((1, 1, 2), 0.5), how="loud")
    assert all(name in caught.value.hint for name in VOTES)


@pytest.mark.parametrize("how", VOTES)
@given(stack=stacks(), data=st.data())
def test_members_that_come_twice_count_as_members_of_double_weight(how, stack, data):
    weights = weights_for(stack, data)
    twice, doubled = np.concatenate([stack, stack[:1]]), [2 * weights[0], *weights[1:]]
    one = vote(twice, how=how, weights=[*weights, weights[0]])
    np.testing.assert_allclose(outcome(one), outcome(vote(stack, how=how, weights=doubled)), atol=1e-12)
    everyone = vote(np.concatenate([stack, stack]), how=how, weights=[*weights, *weights])
    np.testing.assert_allclose(outcome(everyone), outcome(vote(stack, how=how, weights=weights)), atol=1e-12)


@pytest.mark.parametrize("how", ROW_WISE)
@given(members=st.integers(1, 6), classes=st.integers(2, 5), data=st.data())
def test_members_that_are_all_certain_of_one_class_are_believed(how, members, classes, data):
    label = data.draw(st.integers(0, classes - 1))
    result = vote(np.tile(np.eye(classes)[label], (members, 1, 1)), how=how)
    if result.labels is not None:
        assert result.labels.tolist() == [label]
    else:
        np.testing.assert_allclose(result.values[0], np.eye(classes)[label], atol=1e-12)


@given(stack=stacks(classes=(3, 3)), data=st.data())
def test_the_classes_are_alike_to_a_hard_vote_that_is_not_tied(stack, data):
    order = np.array(data.draw(st.permutations(range(3))))
    one, other = vote(stack, how="hard"), vote(stack[:, :, order], how="hard")
    tops = np.sort(stack, axis=2)
    clear = ~one.ties & (tops[:, :, 2] > tops[:, :, 1]).all(axis=0)
    assert np.array_equal(one.labels[clear], order[other.labels[clear]])
