"""What views bring, on planted gains and losses: scores by scikit-learn, counts and nesting by hand, intervals by group."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, log_loss

from toolkit.core.metrics import METRICS
from toolkit.ensemble.view_selection import NONE, ViewRows, judge, table
from toolkit.workspace.competition import Target

VIEWS = ("id", "hflip", "vflip", "rot180")
CLASSES = tuple("0123456789")
TARGET = Target("label", "multiclass", CLASSES)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def planted(seed=0, rows=600, *, shared=1.0, own=0.0, groups=None, **spoilt):
    """Views of noisy logits: `shared` noise is in all of them, `own` in each; `vflip=(2, 5)` makes that view take 2 for 5."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 10, rows)
    clean = 3.0 * np.eye(10)[truth]
    common = rng.normal(0, shared, clean.shape)
    values = np.stack([clean + common + rng.normal(0, own, clean.shape) for _ in VIEWS])
    for view, (one, other) in spoilt.items():
        hit = np.flatnonzero(truth == one)
        values[VIEWS.index(view), hit] = 12.0 * np.eye(10)[other]
    return ViewRows("m", (TARGET,), VIEWS, {"label": softmax(values)}, {"label": truth}, np.arange(rows) % 5, groups)


def by_name(lines):
    return {line.name: line for line in lines}


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_scores_and_counts_are_those_of_the_merged_views(metric):
    rows = planted(own=1.5)
    found = judge(rows, METRICS[metric], ["hflip", "flip"])
    truth, p = rows.truth["label"], rows.probabilities["label"]
    merged = {NONE: p[0], "hflip": p[:2].mean(0), "flip": p.mean(0)}
    lines = by_name(found.sets)
    assert list(lines) == [NONE, "hflip", "flip"]
    for name, values in merged.items():
        e = lines[name].estimate
        if metric == "accuracy":
            expected = accuracy_score(truth, values.argmax(1))
            gain = expected - accuracy_score(truth, p[0].argmax(1))
        else:
            expected = log_loss(truth, values, labels=range(10))
            gain = log_loss(truth, p[0], labels=range(10)) - expected
        assert e.score == pytest.approx(expected, abs=1e-9)
        assert e.gain == pytest.approx(gain, abs=1e-9)
        assert e.gain_low <= e.gain <= e.gain_high
        before, after = p[0].argmax(1) == truth, values.argmax(1) == truth
        assert (lines[name].won, lines[name].lost) == ((~before & after).sum(), (before & ~after).sum())
    alone = by_name(found.views)
    assert list(alone) == ["id", "hflip", "vflip", "rot180"]
    for view, values in zip(VIEWS, p, strict=True):
        before, after = p[0].argmax(1) == truth, values.argmax(1) == truth
        assert (alone[view].won, alone[view].lost) == ((~before & after).sum(), (before & ~after).sum())
    assert found.sets[0].estimate.gain == found.sets[0].estimate.gain_high == 0


def test_the_choice_is_made_inside_folds_and_scored_on_the_fold_left_out():
    rows = planted(seed=2, rows=200, own=0.4)
    truth, p = rows.truth["label"], rows.probabilities["label"]
    tables = {NONE: p[0], "hflip": p[:2].mean(0), "flip": p.mean(0)}
    right, picks = [], []
    for fold in range(5):
        seen, out = rows.folds != fold, rows.folds == fold
        best = max(tables, key=lambda name: accuracy_score(truth[seen], tables[name][seen].argmax(1)))
        picks.append(best)
        right += (tables[best][out].argmax(1) == truth[out]).tolist()
    found = judge(rows, METRICS["accuracy"], ["hflip", "flip"])
    assert found.nested.score == pytest.approx(np.mean(right))
    assert dict(found.picks) == {name: picks.count(name) for name in tables if name in picks}
    assert len(set(picks)) > 1  # else this would hold without nesting
    assert found.nested.score < max(line.estimate.score for line in found.sets)


def test_a_real_gain_is_taken_and_noise_is_not():
    assert judge(planted(own=2.5), METRICS["accuracy"], ["hflip", "flip"]).chosen == "flip"
    chosen = [judge(planted(seed, own=0.05), METRICS["accuracy"], ["hflip", "flip"], draws=200).chosen for seed in range(20)]
    assert chosen.count(NONE) >= 19
    worse = judge(planted(own=0.0, hflip=(2, 5), vflip=(2, 5)), METRICS["accuracy"], ["hflip", "flip"])
    assert worse.chosen == NONE
    assert worse.reason.startswith("none: no set")


def test_the_reason_has_the_numbers():
    found = judge(planted(own=2.5), METRICS["accuracy"], ["flip"])
    assert f"{found.nested.gain:+.4f} accuracy" in found.reason
    assert "above zero throughout" in found.reason
    unsure = judge(planted(seed=3, own=0.3), METRICS["accuracy"], ["hflip", "flip"])
    assert unsure.chosen == NONE
    assert "noise" in unsure.reason or "costs" in unsure.reason or "no set" in unsure.reason


def test_a_class_that_suffers_is_named_with_what_it_becomes():
    rows = planted(shared=0.5, hflip=(2, 5))
    found = judge(rows, METRICS["accuracy"], ["hflip"])
    (one,) = by_name(found.sets)["hflip"].suffering
    truth, p = rows.truth["label"], rows.probabilities["label"]
    assert (one.target, one.name, one.became, one.rows) == ("label", "2", "5", (truth == 2).sum())
    assert one.lost == ((truth == 2) & (p[0].argmax(1) == 2) & (p[:2].mean(0).argmax(1) != 2)).sum()
    text = "\n".join(map(str, table(found)))
    assert f"class '2': {one.lost} of {one.rows} rows lost (most become '5'), 0 won" in text
    assert "view alone" in text
    assert "view alone" not in "\n".join(map(str, table(found, alone=False)))


@pytest.mark.parametrize(("lost", "won"), [(4, 0), (5, 0), (7, 2), (8, 2), (20, 11), (21, 10)])
def test_suffering_is_mcnemars_exact_test(lost, won):
    truth = np.zeros(60, dtype=np.int64)
    right = np.zeros((2, 60), dtype=bool)
    right[:, 40:] = True
    right[0, :lost] = True
    right[1, lost : lost + won] = True
    yes = np.where(right, 0.9, 0.05)
    p = np.stack([yes, 1 - yes], axis=-1)
    rows = ViewRows(
        "m", (Target("t", "multiclass", ("a", "b")),), ("id", "hflip"), {"t": p}, {"t": truth}, np.arange(60) % 3, None
    )
    alone = by_name(judge(rows, METRICS["accuracy"], ["hflip"], draws=50).views)["hflip"]
    assert (alone.lost, alone.won) == (lost, won)
    assert bool(alone.suffering) == (binomtest(lost, lost + won, alternative="greater").pvalue < 0.05)


def test_groups_are_drawn_whole():
    """Each row ten times over says nothing new: with groups the interval is as wide as without the copies."""
    rows = planted(seed=1, rows=300, own=1.5)
    p, truth = np.repeat(rows.probabilities["label"], 10, axis=1), np.repeat(rows.truth["label"], 10)
    names = tuple(map(str, np.repeat(np.arange(300), 10)))
    folds = np.repeat(rows.folds, 10)
    widths = {}
    for name, groups in (("copies", None), ("groups", names)):
        found = judge(
            ViewRows("m", (TARGET,), VIEWS, {"label": p}, {"label": truth}, folds, groups), METRICS["accuracy"], ["flip"]
        )
        e = by_name(found.sets)["flip"].estimate
        widths[name] = e.gain_high - e.gain_low
    alone = by_name(judge(rows, METRICS["accuracy"], ["flip"]).sets)["flip"].estimate
    assert widths["groups"] == pytest.approx(alone.gain_high - alone.gain_low, rel=0.15)
    assert widths["copies"] < 0.5 * widths["groups"]


def test_several_targets_count_alike_and_one_fold_gets_inner_ones():
    first, second = planted(seed=5, own=1.0), planted(seed=6, own=1.0)
    rng = np.random.default_rng(0)
    labels = rng.random((600, 3)) < 0.4
    third = np.clip(0.2 + 0.6 * labels + rng.normal(0, 0.25, (4, 600, 3)), 0, 1)
    targets = (
        Target("a", "multiclass", CLASSES),
        Target("b", "multiclass", CLASSES),
        Target("c", "multilabel", ("x", "y", "z")),
    )
    said = {"a": first.probabilities["label"], "b": second.probabilities["label"], "c": third}
    truth = {"a": first.truth["label"], "b": second.truth["label"], "c": labels}
    for folds in (first.folds, np.zeros(600, dtype=np.int64)):
        rows = ViewRows("m", targets, VIEWS, said, truth, folds, None)
        found = judge(rows, METRICS["accuracy"], ["flip"], draws=50)
        line = by_name(found.sets)["flip"]
        hits = [
            accuracy_score(truth["a"], said["a"].mean(0).argmax(1)),
            accuracy_score(truth["b"], said["b"].mean(0).argmax(1)),
            accuracy_score(labels, third.mean(0) >= 0.5),
        ]
        assert line.estimate.score == pytest.approx(np.mean(hits))
        after = [said[t].mean(0).argmax(1) == truth[t] for t in "ab"] + [(third.mean(0) >= 0.5) == labels]
        before = [said[t][0].argmax(1) == truth[t] for t in "ab"] + [(third[0] >= 0.5) == labels]
        assert line.won == sum(int((~x & y).sum()) for x, y in zip(before, after, strict=True))
        assert line.lost == sum(int((x & ~y).sum()) for x, y in zip(before, after, strict=True))
        assert sum(found.picks.values()) == 5
