"""Predictions check themselves and are joined by id and class name, never by position."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

from toolkit.core.metrics import METRICS
from toolkit.core.predictions import Predictions, concat
from toolkit.errors import AlignmentError, DataError

KINDS = ("probabilities", "scores", "labels")


WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)  # no table on disk holds a NUL


@st.composite
def tables(draw, kind=None, multilabel=None):
    kind = draw(st.sampled_from(KINDS)) if kind is None else kind
    multilabel = draw(st.booleans()) if multilabel is None else multilabel
    ids = draw(st.lists(WORDS, unique=True, max_size=8))
    classes = draw(st.lists(WORDS, unique=True, min_size=1, max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (len(ids), len(classes))
    if kind == "labels":
        labels = rng.random(shape) < 0.5 if multilabel else rng.integers(0, len(classes), len(ids))
        return Predictions("t", kind, ids, classes, labels=labels, multilabel=multilabel)
    values = rng.random(shape)
    if kind == "probabilities" and not multilabel:
        values /= values.sum(axis=1, keepdims=True)
    return Predictions("t", kind, ids, classes, values, multilabel=multilabel)


def said(table):
    """What a table says, free of order: {(id, class): value}, or {id: class} and {id: classes}."""
    grid = table.values if table.labels is None else table.labels
    if table.labels is not None and not table.multilabel:
        return {name: table.classes[i] for name, i in zip(table.ids, grid, strict=True)}
    return {(n, c): grid[i, j] for i, n in enumerate(table.ids) for j, c in enumerate(table.classes)}


@settings(max_examples=60)
@given(tables(), st.randoms())
def test_aligning_moves_rows_and_changes_nothing(table, random):
    order = list(table.ids)
    random.shuffle(order)
    aligned = table.align(order)
    assert aligned.ids == tuple(order)
    assert said(aligned) == said(table)
    some = order[: len(order) // 2]
    kept = {k: v for k, v in said(table).items() if (k if isinstance(k, str) else k[0]) in some}
    assert said(table.align(some)) == kept


@settings(max_examples=60)
@given(tables(), st.randoms())
def test_classes_move_by_name(table, random):
    order = list(table.classes)
    random.shuffle(order)
    moved = table.with_classes(order)
    assert moved.classes == tuple(order)
    assert said(moved) == said(table)
    back = moved.with_classes(table.classes)
    assert said(back) == said(table)
    assert back.classes == table.classes


@settings(max_examples=60)
@given(tables(), st.data())
def test_concat_puts_parts_together_again(table, data):
    cut = data.draw(st.integers(0, len(table)))
    parts = [table.take(np.arange(cut)), table.take(np.arange(cut, len(table)))]
    order = list(table.classes)
    data.draw(st.randoms()).shuffle(order)
    joined = concat([parts[0], parts[1].with_classes(order)])
    assert (joined.ids, joined.classes) == (table.ids, table.classes)
    assert said(joined) == said(table)
    other = concat(parts[::-1])
    assert said(other) == said(table)
    if len(table):
        with pytest.raises(AlignmentError, match="repeat"):
            concat([table, table])


def test_ids_that_are_missing_are_named():
    table = Predictions("t", "labels", ("1", "2"), ("a",), labels=np.zeros(2, dtype=int))
    with pytest.raises(AlignmentError, match="2 of 3 ids have no predictions: '01', '3'"):
        table.align(["1", "01", "3"])
    with pytest.raises(AlignmentError, match="repeat: '1'"):
        table.align(["1", "1"])


def test_classes_that_differ_are_named():
    table = Predictions("t", "labels", ("1",), ("a", "b"), labels=np.zeros(1, dtype=int))
    with pytest.raises(AlignmentError, match="only here 'b'; only there 'c'"):
        table.with_classes(("a", "c"))
    for repeated in (("a", "b", "b"), ("b", "a", "a")):
        with pytest.raises(AlignmentError, match="repeat"):
            table.with_classes(repeated)


BAD = {
    "shape": ({"values": np.ones((3, 2)) / 2}, "shape"),
    "nan": ({"values": np.array([[0.5, 0.5], [np.nan, 1]])}, "NaN or infinite values, ids 'y'"),
    "inf": ({"kind": "scores", "values": np.array([[0.5, 0.5], [np.inf, 1]])}, "infinite"),
    "negative": ({"values": np.array([[1.5, -0.5], [0, 1]])}, "negative probabilities, ids 'x'"),
    "row sums": ({"values": np.array([[0.5, 0.5], [0.5, 0.4]])}, "do not sum to 1 .0.9 to 1., ids 'y'"),
    "above one": ({"values": np.array([[0.5, 0.5], [0.5, 1.4]]), "multilabel": True}, "above 1"),
    "none": ({}, "has values"),
    "both": ({"values": np.ones((2, 2)) / 2, "labels": np.zeros(2)}, "no labels"),
    "labels outside": ({"kind": "labels", "labels": np.array([0, 2])}, r"outside 0\.\.1"),
    "labels negative": ({"kind": "labels", "labels": np.array([0, -1])}, r"outside 0\.\.1"),
    "labels between": ({"kind": "labels", "labels": np.array([0, 0.7])}, "whole numbers"),
    "multilabel between": ({"kind": "labels", "labels": np.array([[0, 0.7], [1, 1]]), "multilabel": True}, "0 and 1"),
    "labels shape": ({"kind": "labels", "labels": np.zeros((2, 2))}, "shape"),
    "labels with values": ({"kind": "labels", "labels": np.zeros(2), "values": np.ones((2, 2)) / 2}, "no values"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_refused(name):
    fields, message = BAD[name]
    with pytest.raises(DataError, match=message):
        Predictions(**{"target": "t", "kind": "probabilities", "ids": ("x", "y"), "classes": ("a", "b")} | fields)


@pytest.mark.parametrize("fields", [{"ids": ("x", "x")}, {"classes": ("a", "a")}])
def test_repeats_are_refused(fields):
    with pytest.raises(AlignmentError, match="repeat"):
        Predictions(
            **{"target": "t", "kind": "scores", "ids": ("x", "y"), "classes": ("a", "b"), "values": np.ones((2, 2))} | fields
        )


def test_tables_that_do_not_belong_together():
    def table(**fields):
        return Predictions(
            **{"target": "t", "kind": "scores", "ids": ("x",), "classes": ("a",), "values": np.ones((1, 1))} | fields
        )

    for other in (table(target="u", ids=("y",)), table(kind="probabilities", ids=("y",)), table(multilabel=True, ids=("y",))):
        with pytest.raises(DataError, match="cannot be joined"):
            concat([table(), other])
    with pytest.raises(DataError, match="no tables"):
        concat([])


def test_scores_are_scikit_learns_whatever_the_order():
    rng = np.random.default_rng(0)
    values = rng.dirichlet(np.ones(3), 200)
    truth = rng.integers(0, 3, 200)
    ids = [str(i) for i in range(200)]
    order = rng.permutation(200)
    table = Predictions("t", "probabilities", [ids[i] for i in order], ("b", "c", "a"), values[order][:, [1, 2, 0]])
    expected = {
        "accuracy": accuracy_score(truth, values.argmax(1)),
        "macro_f1": f1_score(truth, values.argmax(1), average="macro"),
        "log_loss": log_loss(truth, values),
        "roc_auc": roc_auc_score(truth, values, multi_class="ovr"),
    }
    labels = Predictions("t", "labels", ids, ("a", "b", "c"), labels=truth)
    assert {name: table.score(METRICS[name], labels) for name in expected} == pytest.approx(expected, abs=1e-12)


def test_scores_that_make_no_sense_are_refused():
    truth = Predictions("t", "labels", ("1",), ("a", "b"), labels=np.array([0]))
    with pytest.raises(DataError, match="needs probabilities"):
        truth.score(METRICS["log_loss"], truth)
    assert truth.score(METRICS["accuracy"], truth) == 1
    nothing = truth.take(np.array([], dtype=np.int64))
    with pytest.raises(AlignmentError, match="no rows"):
        truth.score(METRICS["accuracy"], nothing)
