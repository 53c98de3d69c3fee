"""Scores of a table against scikit-learn: by class, by fold, before and after a temperature that has not seen the fold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from tests.blending.test_weighers import make
from tests.cli.test_blend import table
from toolkit.analysis.scores import calibrated, per_class, score
from toolkit.blending.calibration import calibration_error, temperature
from toolkit.blending.objectives import BRIER, decide
from toolkit.blending.oof import MemberRows
from toolkit.cli import cli
from toolkit.cli.commands.score import command
from toolkit.core.metrics import METRICS
from toolkit.core.predictions import Predictions


def rows(multilabel=False, seed=0, groups=None, **more):
    stack, truth = make(rows=150, members=2, seed=seed, multilabel=multilabel, **more)
    ids = tuple(map(str, range(150)))
    said = Predictions("t", "labels", ids, tuple(f"c{i}" for i in range(stack.shape[2])), labels=truth, multilabel=multilabel)
    return MemberRows(("a", "b"), ids, stack, said, np.arange(150) % 3, groups, {})


@pytest.mark.parametrize("multilabel", [False, True])
def test_classes_are_scikit_learns(multilabel):
    data = rows(multilabel)
    truth, values = data.truth.decided, data.stack[0]
    found = per_class(truth, values)
    expected = precision_recall_fscore_support(truth, decide(values, truth), zero_division=0)
    for ours, theirs in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose([getattr(one, ours) for one in found], theirs, atol=1e-12)
    yes = truth if multilabel else truth[:, None] == np.arange(4)
    np.testing.assert_allclose([one.auc for one in found], [roc_auc_score(yes[:, c], values[:, c]) for c in range(4)])


def test_a_class_without_rows_has_no_area():
    data = rows()
    truth = np.where(data.truth.decided == 3, 0, data.truth.decided)
    assert np.isnan(per_class(truth, data.stack[0])[3].auc)
    assert per_class(truth, data.stack[0])[3].recall == 0


def test_every_metric_is_itself_whole_and_in_each_fold():
    data = rows()
    names = ["macro_f1", "log_loss", "roc_auc"]
    for place, found in enumerate(score(data, names)):
        for name in names:
            metric = METRICS[name]
            for fold, value in found.folds[name].items():
                inside = data.folds == fold
                truth, values = data.truth.decided[inside], data.stack[place][inside]
                assert value == pytest.approx(
                    metric.score(truth, decide(values, truth) if metric.accepts == "labels" else values)
                )
        record = json.loads(json.dumps(found.record("log_loss")))
        assert record["score"] == found.metrics["log_loss"].score
        assert list(record["metrics"]) == names


def test_a_fold_of_one_class_has_no_area():
    data = rows()
    data.truth.labels[data.folds == 1] = 2
    assert score(data, ["roc_auc"])[0].folds["roc_auc"][1] is None


def test_the_temperature_of_each_fold_is_that_of_the_others():
    data = rows(seed=3)
    truth, values = data.truth.decided, data.stack[0]
    found = calibrated(data, values)
    after = np.empty_like(values)
    for fold in range(3):
        out = data.folds == fold
        after[out] = temperature(values[~out], truth[~out]).apply(values[out])
    assert found.after["ece"] == pytest.approx(calibration_error(after, truth), abs=1e-12)
    assert found.after["brier"] == pytest.approx(BRIER.score(truth, after), abs=1e-12)
    assert found.before["log_loss"] == pytest.approx(METRICS["log_loss"].score(truth, values))
    assert sum(one["count"] for one in found.bins) == 150


def run(*arguments):
    return CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)


def test_labels_are_scored_where_labels_are_enough(workspace):
    path = table(workspace, "labels", skill=2, seed=1, kind="labels")
    table(workspace, "full", skill=2, seed=1)
    said = json.loads(run(path, "oof/full.parquet", "--also", "macro_f1", "--json").output)["label"]
    assert said["labels"]["metrics"] == said["full"]["metrics"]
    result = CliRunner().invoke(cli, ["score", str(path), "--also", "log_loss"])
    assert result.exit_code == 1
    assert "holds labels" in result.output


def test_the_command_shows_what_is_asked_for(workspace):
    table(workspace, "good", skill=2, seed=1)
    text = run("--metric", "roc_auc", "--also", "log_loss", "--classes", "--calibration").output
    for words in ("ant  ", "precision", "ECE", "nested", "confidence"):
        assert words in text
    head, *rows = [line.split() for line in text.splitlines()[:3]]
    assert (head[0], head[-1]) == ("table", "mean")
    assert [row[:2] for row in rows] == [["good", "roc_auc"], ["good", "log_loss"]]
    assert float(rows[0][-1]) == pytest.approx((float(rows[0][-2]) + float(rows[0][-3])) / 2, abs=1e-5)
    assert len(rows[1]) == len(rows[0]) - 1  # the mean over folds is for metrics of scores, whose scale differs by fold
    said = json.loads(run("--metric", "roc_auc", "--calibration", "--json").output)["label"]["good"]
    assert set(said["calibration"]) == {"before", "after", "temperature", "bins", "bins_after"}
    for bins, when in (("bins", "before"), ("bins_after", "after")):
        found = said["calibration"][bins]
        gaps = [one["count"] * abs(one["confidence"] - one["accuracy"]) for one in found]
        assert sum(gaps) / sum(one["count"] for one in found) == pytest.approx(said["calibration"][when]["ece"])
    assert said["metrics"]["roc_auc"]["score"] == said["score"]
    assert list(said["classes"]) == ["ant", "bee", "cat"]
