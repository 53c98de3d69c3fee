"""Diagnosis: planted faults are found and named, clean members raise no alarm, numbers are NumPy's and SciPy's."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import scipy.stats
from click.testing import CliRunner

from tests.blending.test_weighers import make, scored
from tests.cli.test_blend import table
from toolkit.analysis.member_diagnosis import ablation, diagnose, likeliest, odd_folds, pairs, permutation
from toolkit.blending.oof import MemberRows
from toolkit.cli.commands.diagnose import command
from toolkit.core.activations import sigmoid, softmax
from toolkit.core.metrics import METRICS
from toolkit.core.predictions import Predictions

ACCURACY, LOSS = METRICS["accuracy"], METRICS["log_loss"]


def rows(stack, truth, *, folds=None, groups=None, classes=None):
    classes = classes or tuple(map(str, range(stack.shape[2])))
    ids = tuple(map(str, range(len(truth))))
    said = Predictions("t", "labels", ids, classes, labels=truth, multilabel=truth.ndim == 2)
    return MemberRows(tuple(f"m{i}" for i in range(len(stack))), ids, stack, said, folds, groups, {})


def clean(seed):
    """A member and its truth, of any size, skill, imbalance and leaning towards some classes; also of no skill at all."""
    rng = np.random.default_rng(seed)
    classes, count, skill = int(rng.integers(2, 20)), int(rng.integers(60, 1500)), rng.uniform(0, 3)
    truth = rng.choice(classes, count, p=rng.dirichlet(np.full(classes, 2.0)))
    logits = rng.normal(0, rng.uniform(0.5, 2), (count, classes)) + rng.normal(0, rng.uniform(0, 1.5), classes)
    logits[np.arange(count), truth] += skill
    return softmax(logits)[None], truth


def test_no_false_alarm_on_fifty_clean_pairs():
    assert [seed for seed in range(50) if permutation(rows(*clean(seed)), 0)] == []


def test_members_that_know_nothing_raise_no_alarm_although_some_order_always_fits():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert permutation(rows(softmax(rng.normal(0, 1, (300, 15)))[None], rng.integers(0, 15, 300)), 0) is None


@pytest.mark.parametrize("seed", range(8))
def test_a_planted_swap_is_found_and_named(seed):
    rng = np.random.default_rng(seed)
    stack, truth = make(rows=1000, members=1, classes=6, seed=seed)
    a, b = rng.choice(6, 2, replace=False)
    order = np.arange(6)
    order[[a, b]] = b, a
    found = permutation(rows(stack[:, :, order], truth), 0)
    assert found.columns == {str(a): str(b), str(b): str(a)}
    assert found.after == pytest.approx(np.mean(stack[0].argmax(axis=1) == truth))
    assert found.before < found.after


def test_classes_sorted_as_text_are_found_and_the_mistake_is_named():
    classes = tuple(map(str, range(12)))
    stack, truth = make(rows=1200, members=1, classes=12, seed=1)
    lexical = [classes.index(name) for name in sorted(classes)]
    # the file's columns stand as text sorts them, and were given the names in the order of numbers
    found = permutation(rows(stack[:, :, lexical], truth, classes=classes), 0)
    assert found.columns == {ours: theirs for ours, theirs in zip(classes, sorted(classes), strict=True) if ours != theirs}
    assert "sorted as text" in found.like
    assert permutation(rows(stack, truth, classes=classes), 0) is None


def test_a_multilabel_swap_is_found():
    stack, truth = make(rows=500, members=1, classes=5, seed=2, multilabel=True)
    assert permutation(rows(stack, truth), 0) is None
    found = permutation(rows(stack[:, :, [0, 3, 2, 1, 4]], truth), 0)
    assert found.columns == {"1": "3", "3": "1"}


def test_copies_of_a_few_groups_are_no_evidence():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, 12)
    wrong = softmax(0.8 * np.eye(2)[1 - truth] + rng.normal(0, 1.2, (12, 2)))
    many = {"truth": np.repeat(truth, 50), "stack": np.repeat(wrong, 50, axis=0)[None]}
    groups = tuple(str(i // 50) for i in range(600))
    assert permutation(rows(**many), 0) is not None
    assert permutation(rows(**many, groups=groups), 0) is None


def test_the_assignment_is_the_best_of_all():
    rng = np.random.default_rng(3)
    lift, truth = rng.normal(0, 1, (60, 5)), rng.integers(0, 5, 60)
    found = likeliest(lift, truth)
    best = max(itertools.permutations(range(5)), key=lambda order: lift[np.arange(60), np.array(order)[truth]].sum())
    assert found.tolist() == list(best)


def test_pairs_are_counted_right_and_copies_are_named():
    stack, truth = make(rows=200, members=3, seed=4)
    near = stack[0] * (1 - 1e-4) + 1e-4 / 4
    found = {(p.first, p.second): p for p in pairs(rows(np.stack([*stack, stack[0], near]), truth))}
    labels = stack.argmax(axis=2)
    one = found["m0", "m1"]
    assert one.disagreement == np.mean(labels[0] != labels[1])
    assert one.both_wrong == np.mean((labels[0] != truth) & (labels[1] != truth))
    assert one.correlation == pytest.approx(scipy.stats.pearsonr(labels[0] != truth, labels[1] != truth)[0])
    assert one.copies == ""
    assert found["m0", "m3"].copies == "identical"
    assert found["m0", "m4"].copies == "nearly identical"


def test_leaving_a_member_out_gains_what_it_gains():
    stack, truth = make(rows=300, members=3, seed=5)
    stack[2] = softmax(np.random.default_rng(0).normal(0, 3, (300, 4)))
    found = ablation(rows(stack, truth), LOSS, draws=200)
    for place in range(3):
        less = np.delete(stack, place, axis=0).mean(axis=0)
        expected = scored(LOSS, truth, stack.mean(axis=0)) - scored(LOSS, truth, less)
        assert found[f"m{place}"].gain == pytest.approx(expected, abs=1e-12)
    assert found["m2"].gain_low > 0
    assert found["m0"].gain_high < 0
    assert ablation(rows(stack[:1], truth), LOSS) == {}


@pytest.mark.parametrize("metric", [ACCURACY, LOSS, METRICS["macro_f1"]], ids=lambda m: m.name)
def test_a_fold_that_is_off_is_found(metric):
    stack, truth = make(rows=1500, members=1, seed=6)
    folds = np.arange(1500) % 5
    bad = folds == 3
    stack[0, bad] = np.roll(stack[0, bad], 1, axis=0)  # its rows are in another order
    found = odd_folds(rows(stack, truth, folds=folds), 0, metric)
    assert [one.fold for one in found] == [3]
    assert found[0].score == pytest.approx(scored(metric, truth[bad], stack[0, bad]))


def test_clean_folds_are_off_no_more_often_than_chance_allows():
    alarms = 0
    for seed in range(40):
        stack, truth = make(rows=400, members=1, seed=seed)
        alarms += bool(odd_folds(rows(stack, truth, folds=np.arange(400) % 20), 0, ACCURACY))
    assert alarms <= 2  # 0.4 are expected; 7 if each of the twenty folds had a hundredth to itself


def test_folds_of_groups_are_compared_group_by_group():
    rng = np.random.default_rng(1)
    truth = np.repeat(rng.integers(0, 3, 20), 30)
    # whole groups are right or wrong together, and one fold happens to have more of the bad ones
    good = np.repeat(rng.random(20) < 0.7, 30)
    stack = np.where(good[:, None], np.eye(3)[truth], np.eye(3)[(truth + 1) % 3])[None] * 0.9 + 1 / 30
    groups, folds = tuple(str(i // 30) for i in range(600)), np.repeat(np.arange(20) % 4, 30)
    assert odd_folds(rows(stack, truth, folds=folds), 0, ACCURACY) != []
    assert odd_folds(rows(stack, truth, folds=folds, groups=groups), 0, ACCURACY) == []


def test_the_whole_is_plain_values_for_every_kind_of_target():
    for multilabel in (False, True):
        stack, truth = make(rows=80, members=2, multilabel=multilabel)
        said = diagnose(rows(stack, truth, folds=np.arange(80) % 4), LOSS, draws=50)
        assert set(json.loads(json.dumps(said.record))["without"]) == {"m0", "m1"}
        assert said.classes["0"][""] >= 0
    assert sigmoid(np.array([-1e4, 0, 1e4])).tolist() == [0, 0.5, 1]


def run(*arguments):
    return CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)


def test_the_command_says_what_is_wrong_in_sentences(workspace):
    table(workspace, "good", skill=8, seed=1)
    first = (workspace / "oof" / "good.parquet").read_bytes()
    (workspace / "oof" / "twin.parquet").write_bytes(first)
    import pandas as pd

    frame = pd.read_parquet(workspace / "oof" / "good.parquet")
    frame.columns = ["id", "ant", "cat", "bee"]
    frame.to_csv(workspace / "mixed.csv", index=False)
    text = run("good=oof/good.parquet", "twin=oof/twin.parquet", "mixed.csv").output
    assert "good and twin are identical: leave one out" in text
    assert "mixed: its classes are permuted" in text
    assert "column bee holds cat, cat holds bee" in text or "column cat holds bee, bee holds cat" in text
    said = json.loads(run("--json").output)["label"]
    assert said["permuted"] == []
    assert said["pairs"][0]["copies"] == "identical"


def test_members_of_another_split_are_named(workspace):
    from toolkit.core.prediction_files import read_table, write_table
    from toolkit.workspace.split import Split

    path = table(workspace, "other", seed=1)
    table(workspace, "ours", seed=2)
    here = Split.read(workspace / "split.csv").digest
    for name, split in (("other", "0123456789abcdef"), ("ours", here)):
        path = workspace / "oof" / f"{name}.parquet"
        write_table(path, read_table(path).predictions, {"split": split})
    assert "other comes from another split" in run().output
    assert "ours" not in json.loads(run("--json").output)["label"]["notes"][0]
