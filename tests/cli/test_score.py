"""`toolkit score`: scores of tables on disk against the metric itself, whole and fold by fold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from tests.cli.test_blend import table
from toolkit.cli.commands.score import command
from toolkit.core.prediction_files import read_table
from toolkit.errors import AlignmentError
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split


def run(*arguments):
    return CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)


def test_scores_are_the_metrics_whole_and_fold_by_fold(workspace):
    table(workspace, "good", skill=2, seed=1)
    table(workspace, "weak", skill=0.5, seed=2)
    said = json.loads(run("--json").output)["label"]
    assert list(said) == ["good", "weak"]
    truth, split = Competition.read(workspace).truth()["label"], Split.read(workspace / "split.csv")
    for name, found in said.items():
        ours = read_table(workspace / "oof" / f"{name}.parquet").predictions["label"].align(truth.ids)
        hits = ours.decided == truth.decided
        folds = np.array([split.folds[split.ids.index(one)] for one in truth.ids])
        assert found["score"] == pytest.approx(hits.mean())
        assert found["low"] <= found["score"] <= found["high"]
        assert found["folds"] == {str(k): pytest.approx(hits[folds == k].mean()) for k in (0, 1)}
    text = run().output
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][-5:] == ["fold", "0", "fold", "1", "mean"]
    assert [line[:3] for line in lines[1:]] == [[name, "accuracy", f"{found['score']:.5f}"] for name, found in said.items()]


def test_without_a_split_there_are_no_folds(workspace):
    (workspace / "split.csv").unlink()
    table(workspace, "good")
    assert "fold" not in run().output


def test_rows_without_a_truth_are_refused(workspace):
    path = table(workspace, "good")
    rows = (workspace / "train.csv").read_text().splitlines()
    (workspace / "train.csv").write_text("\n".join(rows[:-2]) + "\n")
    with pytest.raises(AlignmentError, match="2 of 24 ids"):
        run(path)
