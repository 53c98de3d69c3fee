"""Blends as data: laws of what they say, the record read back, and the same blend applied by `ensemble --blend` to exports."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.blending.test_weighers import make
from toolkit.blending.adjustment import Adjustment
from toolkit.blending.blend import Blend, cool, read_blend
from toolkit.blending.calibration import temperature
from toolkit.blending.oof import read_blends, with_prior
from toolkit.cli import cli
from toolkit.core.activations import softmax
from toolkit.core.prediction_files import read_meta, read_table
from toolkit.core.predictions import Predictions
from toolkit.core.voting import VOTES, vote
from toolkit.errors import DataError
from toolkit.submissions.bundle.contents import Recipe
from toolkit.workspace.competition import Competition

STACK, TRUTH = make(rows=50, members=3)
CLASSES = tuple("abcd")


def adjustment(multilabel=False):
    return Adjustment(np.array([1.2, 0.8, 1, 1.5]), np.array([0.1, -0.4, 0, 0.3]), multilabel)


def outcome(result):
    return result.values if result.labels is None else result.labels


@pytest.mark.parametrize("how", VOTES)
@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(3)), classes=st.permutations(range(4)))
def test_order_of_members_and_of_classes_does_not_matter(how, order, classes):
    soft = how not in ("hard", "rank")
    one = Blend(
        ("x", "y", "z"), np.array([0.5, 0.2, 0.3]), how, np.array([1.5, 1, 0.7]), adjustment() if soft else None, "vector"
    )
    turned = Blend(tuple(one.members[i] for i in order), one.weights[order], how, one.warm[order], one.adjustment, one.adjusted)
    assert np.allclose(outcome(one.apply(STACK)), outcome(turned.apply(STACK[order])), atol=1e-12)
    again = read_blend(json.loads(json.dumps(one.record(CLASSES))), [CLASSES[i] for i in classes])
    ours, theirs = outcome(one.apply(STACK)), outcome(again.apply(STACK[:, :, classes]))
    if how == "hard":
        assert np.array_equal(np.array(CLASSES)[ours], np.array(CLASSES)[classes][theirs])
    else:
        assert np.allclose(ours[:, classes], theirs, atol=1e-12)


@pytest.mark.parametrize("how", VOTES)
def test_a_plain_blend_is_the_vote_and_zero_weight_is_absence(how):
    weights = np.array([0.6, 0.0, 0.4])
    blend = Blend(("x", "y", "z"), weights, how)
    assert blend.plain
    assert np.array_equal(outcome(blend.apply(STACK)), outcome(vote(STACK, how=how, weights=weights)))
    less = blend.among({"x", "z"})
    assert less.members == ("x", "z")
    assert np.array_equal(outcome(less.apply(STACK[[0, 2]])), outcome(blend.apply(STACK)))


def test_members_are_cooled_before_the_vote_and_the_outcome_after():
    one = Blend(("x", "y", "z"), np.ones(3) / 3, "soft", np.array([2.0, 1.0, 0.5]), adjustment(), "vector")
    cold = [softmax(np.log(table) / t) for table, t in zip(STACK, (2.0, 1.0, 0.5), strict=True)]
    mean = np.mean(cold, axis=0)
    np.testing.assert_allclose(
        one.apply(STACK).values, softmax(one.adjustment.scale * np.log(mean) + one.adjustment.bias), atol=1e-12
    )
    table = STACK[0]
    assert cool(table, 1.0) is table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vote": "loud"}, "unknown vote"),
        ({"weights": np.ones(2)}, "3 members need"),
        ({"weights": np.zeros(3)}, "all zero"),
        ({"weights": np.array([1, -1, 1])}, "negative"),
        ({"temperatures": np.array([1, 0, 1])}, "above zero"),
        ({"vote": "hard", "adjustment": adjustment()}, "no probabilities to adjust"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        Blend(**({"members": ("x", "y", "z"), "weights": np.ones(3) / 3} | change))


def test_the_record_says_temperature_and_thresholds_for_people():
    found = Blend(("x",), np.ones(1), adjustment=temperature(STACK[0], TRUTH), adjusted="temperature").record(CLASSES)
    assert found["temperature"] == pytest.approx(temperature(STACK[0], TRUTH).temperature)
    assert found["thresholds"] is None
    shift = Adjustment(np.ones(4), np.log([1, 2, 4, 0.5]))
    assert Blend(("x",), np.ones(1), adjustment=shift, adjusted="factors").record(CLASSES)["thresholds"] == pytest.approx(
        dict(zip(CLASSES, (1, 2, 4, 0.5), strict=True))
    )
    yes = Adjustment(np.ones(4), np.log([1, 3, 1, 1]), multilabel=True)
    said = Blend(("x",), np.ones(1), adjustment=yes, adjusted="factors").record(CLASSES)["thresholds"]
    assert said["b"] == pytest.approx(0.25)  # odds times three pass one half from a quarter on
    with pytest.raises(DataError, match="fitted to the classes"):
        read_blend(found, tuple("abce"))


def test_a_known_prior_is_bayes_rule():
    truth = Predictions("t", "labels", tuple(map(str, range(50))), CLASSES, labels=TRUTH)
    blend = with_prior(Blend(("x", "y", "z"), np.ones(3) / 3), truth, "a=0.4,b=0.3,c=0.2,d=0.1")
    before = np.bincount(TRUTH, minlength=4) / 50
    expected = STACK.mean(axis=0) * (np.array([0.4, 0.3, 0.2, 0.1]) / before)
    np.testing.assert_allclose(blend.apply(STACK).values, expected / expected.sum(axis=1, keepdims=True), atol=1e-12)
    both = with_prior(Blend(("x",), np.ones(1), adjustment=adjustment(), adjusted="vector"), truth, "a=0.4,b=0.3,c=0.2,d=0.1")
    assert both.adjusted == "vector+prior"
    expected = adjustment().apply(STACK[0]) * (np.array([0.4, 0.3, 0.2, 0.1]) / before)
    np.testing.assert_allclose(both.apply(STACK[:1]).values, expected / expected.sum(axis=1, keepdims=True), atol=1e-12)
    for wrong, message in (("a=1", "share for each class"), ("a=1,b=1,c=1,d=1", "sum to 4"), ("a=x,b=0,c=0,d=0", "could not")):
        with pytest.raises(DataError, match=message):
            with_prior(blend, truth, wrong)


def run(*arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)


def written(root, **changes):
    """blend.json for the member of the workspace's exports."""
    said = Blend(("tiny",), np.ones(1)).record(("ant", "bee", "cat")) | changes
    (root / "blend.json").write_text(json.dumps({"schema": 2, "metric": "accuracy", "targets": {"label": said}}))


def test_ensemble_applies_all_of_it_and_verify_makes_it_again(workspace, folds):
    assert run("ensemble", "folds").exit_code == 0
    plain = read_table(workspace / "predictions/ensemble.parquet").predictions["label"]

    alone = []
    for fold in range(2):
        assert run("ensemble", f"folds/tiny.fold{fold}.onnx", "--name", f"f{fold}").exit_code == 0
        alone.append(read_table(workspace / f"predictions/f{fold}.parquet").predictions["label"].values)
    bias = {"ant": 3.0, "bee": -1.0, "cat": 0.0}
    scale = dict.fromkeys(bias, 1.0)
    written(
        workspace,
        vote="geometric",
        temperatures={"tiny": 2.0},
        adjustment={"how": "factors", "scale": scale, "bias": bias, "multilabel": False},
    )
    result = run("ensemble", "folds", "--blend")
    assert result.exit_code == 0, result.output
    made = read_table(workspace / "predictions/ensemble.parquet")
    cold = [np.log(p) / 2 - np.log((p**0.5).sum(axis=1, keepdims=True)) for p in alone]
    expected = softmax(np.mean(cold, axis=0) + np.array([3, -1, 0]))
    np.testing.assert_allclose(made.predictions["label"].values, expected, atol=1e-12)
    assert not np.allclose(expected, plain.values, atol=0.01)
    assert made.meta["vote"] == "geometric"
    assert made.meta["blend"]["label"]["temperatures"] == {"tiny": 2.0}
    assert made.meta["calibration"] is True
    result = run("submit")
    assert result.exit_code == 0, result.output
    rows = dict(line.split(",") for line in (workspace / "submission.csv").read_text().split()[1:])
    names = ("ant", "bee", "cat")
    assert rows == {name: names[i] for name, i in zip(made.predictions["label"].ids, expected.argmax(axis=1), strict=True)}
    result = run("verify", "--rebuild")
    assert "the same bytes" in result.output, result.output
    result = run("bundle", "--output", "out", "--python", "3.12", "--cuda", "cpu", "--no-wheels")
    assert result.exit_code == 0, result.output
    bundled = Recipe.read(workspace / "out")
    assert bundled.blend["label"] == made.meta["blend"]["label"]


def test_the_views_of_the_tables_are_those_of_the_ensemble(workspace, folds):
    written(workspace, views={"tiny": "hflip"})
    assert run("ensemble", "folds", "--blend", "--no-tta-check").exit_code == 0
    assert read_meta(workspace / "predictions/ensemble.parquet")["views"] == {"tiny": ["id", "hflip"]}
    assert run("ensemble", "folds", "--blend", "--tta", "vflip", "--no-tta-check").exit_code == 0
    assert read_meta(workspace / "predictions/ensemble.parquet")["views"] == {"tiny": ["id", "vflip"]}


def test_what_blend_json_cannot_say_is_refused(workspace, folds):
    result = run("ensemble", "folds", "--blend")
    assert result.exit_code == 1
    assert "toolkit blend" in result.output
    written(workspace, members={"gone": 1.0})
    result = run("ensemble", "folds", "--blend")
    assert result.exit_code == 1
    assert "name 'gone', which is no member" in result.output
    for text in (
        "{",
        "[]",
        '{"schema": 1, "targets": {}}',
        '{"schema": 2, "targets": {}}',
        '{"schema": 2, "targets": {"label": 3}}',
    ):
        (workspace / "blend.json").write_text(text)
        with pytest.raises(DataError, match=r"blend\.json") as caught:
            read_blends(Competition.read(workspace))
        assert "toolkit blend" in caught.value.hint
    (workspace / "blend.json").write_text('{"schema": 2, "targets": {"label": {"members": {"m": 1}, "vote": "snft"}}}')
    with pytest.raises(DataError, match=r"blend\.json, target 'label': unknown vote"):
        read_blends(Competition.read(workspace))
    written(workspace)
    for more in (["--weights", "tiny=1"], ["--vote", "hard"]):
        assert run("ensemble", "folds", "--blend", *more).exit_code == 2
