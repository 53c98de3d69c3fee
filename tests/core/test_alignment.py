"""Members' tables are brought to the same rows and classes by id and by name, never by position."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from toolkit.core.alignment import align_members, shared_ids, stack_values
from toolkit.core.predictions import Predictions
from toolkit.core.voting import vote
from toolkit.errors import AlignmentError, DataError

CLASSES = ("ant", "bee", "cat")


def table(ids, classes=CLASSES, seed=0):
    values = np.random.default_rng(seed).dirichlet(np.ones(len(classes)), len(ids))
    return Predictions("label", "probabilities", tuple(ids), tuple(classes), values)


def frame(predictions):
    return pd.DataFrame(predictions.values, index=predictions.ids, columns=predictions.classes)


def test_members_meet_as_pandas_joins_them():
    tables = {"a": table("wxyz", seed=1), "b": table("zyxv", ("cat", "ant", "bee"), seed=2), "c": table("yzxq", seed=3)}
    ids = shared_ids(tables, common=True)
    assert ids == ("x", "y", "z")  # the order of the first
    stack = stack_values(align_members(tables, ids))
    joined = [frame(t).loc[list(ids), list(CLASSES)].to_numpy() for t in tables.values()]
    np.testing.assert_array_equal(stack, np.stack(joined))


def test_the_members_named_are_stacked_in_their_order():
    tables = align_members({"a": table("xy", seed=1), "b": table("yx", seed=2)}, ("x", "y"), ("cat", "bee", "ant"))
    assert tables["b"].classes == ("cat", "bee", "ant")
    np.testing.assert_array_equal(stack_values(tables, ["b", "a"]), stack_values(tables)[::-1])


def test_other_rows_are_refused_unless_the_common_ones_are_wanted():
    tables = {"a": table("xyz"), "b": table("xyw")}
    with pytest.raises(AlignmentError, match="'a' and 'b' cover different rows: 2 ids") as caught:
        shared_ids(tables, common=False)
    assert caught.value.code == "tables-differ"
    assert shared_ids(tables, common=True) == ("x", "y")


def test_labels_and_scores_are_no_values_to_combine():
    labels = Predictions("label", "labels", ("x",), CLASSES, labels=np.array([1]))
    scores = Predictions("label", "scores", ("x",), CLASSES, np.array([[3.0, 1.0, 2.0]]))
    for odd, kind in ((labels, "labels"), (scores, "scores")):
        with pytest.raises(DataError, match=f"holds {kind}, and combining needs probabilities"):
            stack_values({"a": table("x"), "b": odd})


def test_a_vote_becomes_a_table_like_those_voted_on():
    tables = {"a": table("xyz", seed=1), "b": table("xyz", seed=2)}
    soft = vote(stack_values(tables)).predictions(tables["a"])
    hard = vote(stack_values(tables), how="hard").predictions(tables["a"])
    assert (soft.kind, soft.ids, soft.classes) == ("probabilities", tuple("xyz"), CLASSES)
    np.testing.assert_allclose(soft.values, (tables["a"].values + tables["b"].values) / 2)
    assert hard.values is None
    assert hard.decided.shape == (3,)


@pytest.mark.parametrize("multilabel", [False, True])
def test_class_shares_are_what_pandas_counts(multilabel):
    rng = np.random.default_rng(0)
    labels = rng.random((50, 3)) < 0.3 if multilabel else rng.integers(0, 2, 50)  # nobody has the last class
    truth = Predictions("label", "labels", tuple(map(str, range(50))), CLASSES, labels=labels, multilabel=multilabel)
    counted = pd.DataFrame(labels).mean() if multilabel else pd.Series(labels).value_counts(normalize=True)
    expected = counted.reindex(range(3), fill_value=0.0).to_numpy()
    np.testing.assert_allclose(truth.class_shares, expected)
    assert truth.class_shares.shape == (3,)
