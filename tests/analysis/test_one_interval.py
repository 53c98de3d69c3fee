"""One table, one interval: whoever shows its score shows the same, by group where there are groups."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from toolkit.analysis import ensemble_report, run_comparison, scores
from toolkit.blending import oof
from toolkit.cli import cli
from toolkit.core.prediction_files import write_table
from toolkit.core.predictions import Predictions, concat
from toolkit.ensemble import evidence
from toolkit.ensemble.as_made import measure
from toolkit.ensemble.held_out_rows import Making
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split

ANIMALS = ("ant", "bee", "cat")


@pytest.fixture(params=["accuracy", "log_loss", "macro_f1"])
def alone(request, workspace):
    """A workspace with one member: its run's folds, and their rows as oof/tiny.parquet."""
    split = Split.read(workspace / "split.csv")
    if request.param != "macro_f1":  # four rows to a group, none of them torn
        places = {fold: np.flatnonzero(split.folds == fold) for fold in (0, 1)}
        group = {int(row): f"g{fold}{i // 4}" for fold, rows in places.items() for i, row in enumerate(rows)}
        split = replace(split, groups=tuple(group[row] for row in range(len(split.ids))))
        split.write(workspace / "split.csv")
    toml = workspace / "competition.toml"
    toml.write_text(toml.read_text().replace('metric = "accuracy"', f'metric = "{request.param}"'))
    competition = Competition.read(workspace)
    truth, rng = competition.truth()["label"], np.random.default_rng(0)
    parts = []
    for fold in (0, 1):
        labels = truth.align(split.held_out(fold)).decided
        values = rng.dirichlet(np.ones(3), len(labels)) + 0.4 * np.eye(3)[labels]
        values /= values.sum(axis=1, keepdims=True)
        parts.append(Predictions("label", "probabilities", split.held_out(fold), ANIMALS, values))
        folder = workspace / "runs" / "tiny" / f"fold{fold}"
        write_table(folder / "oof.parquet", {"label": parts[-1]}, {})
        (folder / "config.json").write_text(json.dumps({"settings": {"split": split.digest}}))
    write_table(workspace / "oof" / "tiny.parquet", {"label": concat(parts)}, {"split": split.digest})
    return competition


def test_all_of_them_agree(alone):
    target = alone.targets[0]
    tables = oof.find_tables(alone)
    one = scores.score(oof.read_members(alone, target, tables), [alone.metric])[0].metrics[alone.metric]
    assert one.low < one.score < one.high
    record = measure(alone, Making({"label": {"tiny": 1.0}}), rows=0)
    (compared,) = run_comparison.compare(alone, ["tiny"])
    _, verdicts = oof.fit(alone, tables, weighers=["greedy"], votes=["soft"])
    (page,) = ensemble_report.gather(alone).judged
    others = {
        "blend": verdicts["label"].estimates["uniform"],
        "best single": verdicts["label"].estimates["best_single"],
        "compare": compared.estimates["tiny"],
        "report": page.scores["tiny"].metrics[alone.metric],
    }
    expected = pytest.approx([one.score, one.low, one.high], abs=1e-12)
    assert [record["out_of_fold"], *record["interval"]] == expected
    assert {name: [e.score, e.low, e.high] == expected for name, e in others.items()} == dict.fromkeys(others, True)
    shown = CliRunner().invoke(cli, ["score"]).output
    (line, *_) = evidence.lines(record)
    for number in (one.score, one.low, one.high):
        assert f"{number:.5f}" in line
        assert f"{number:.5f}" in shown
