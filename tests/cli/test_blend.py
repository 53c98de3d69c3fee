"""`toolkit blend`: what it prints and writes from real tables on disk, and every way in which tables do not fit together."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from toolkit.blending.nested import nested, weigher
from toolkit.blending.weighers import fit_weights
from toolkit.cli import advice
from toolkit.cli.commands.blend import command
from toolkit.core.metrics import METRICS
from toolkit.core.prediction_files import read_table, write_table
from toolkit.core.predictions import Predictions
from toolkit.errors import AlignmentError, DataError
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split


def table(root, name, *, skill=1.0, seed=0, rows=slice(None), classes=None, kind="probabilities", target="label"):
    """oof/<name>.parquet: probabilities that know the truth as well as `skill` says."""
    truth = Competition.read(root).truth()["label"]
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (len(truth), 3)) + skill * np.eye(3)[truth.decided]
    values = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    said = Predictions(target, "probabilities", truth.ids, truth.classes, values)
    said = said.take(np.arange(len(truth))[::-1][rows])  # never in the order of train.csv
    if classes:
        said = said.with_classes(classes)
    if kind == "labels":
        said = Predictions(target, "labels", said.ids, said.classes, labels=said.decided)
    return write_table(root / "oof" / f"{name}.parquet", {target: said}, {})


def run(*arguments):
    return CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture
def members(workspace):
    table(workspace, "good", skill=4, seed=1)
    table(workspace, "weak", skill=0.2, seed=2, classes=("cat", "bee", "ant"))
    return workspace


def test_it_writes_the_weights_of_an_honest_comparison(members):
    result = run("--weigher", "best_single", "--vote", "soft", "--always")
    assert result.exit_code == 0, result.output
    said = json.loads((members / "blend.json").read_text())["targets"]["label"]
    assert said["members"] == {"good": 1.0, "weak": 0.0}
    assert said["weigher"] == "best_single"
    assert said["rows"] == 24
    for words in ("best single", "plain mean", "blend, nested", "Chosen", "Weights   good 1, weak 0", "blend.json"):
        assert words in result.output


def test_numbers_are_those_of_the_folds_of_split_csv(members):
    run("--weigher", "convex", "--vote", "soft", "--calibrate", "none", "--always")
    said = json.loads((members / "blend.json").read_text())["targets"]["label"]
    truth = Competition.read(members).truth()["label"]
    stack = np.stack(
        [
            read_table(members / "oof" / f"{n}.parquet")
            .predictions["label"]
            .with_classes(truth.classes)
            .align(truth.ids)
            .values
            for n in ("good", "weak")
        ]
    )
    split, metric = Split.read(members / "split.csv"), METRICS["accuracy"]
    folds = np.array([split.folds[split.ids.index(i)] for i in truth.ids])
    expected = nested(stack, truth.decided, {"x": weigher("convex", metric)}, folds)["x"]
    assert said["estimates"]["nested"]["score"] == pytest.approx(
        metric.score(truth.decided, expected.argmax(axis=1)), abs=1e-12
    )
    fitted = fit_weights(stack, truth.decided, metric, "convex").weights
    assert list(said["members"].values()) == pytest.approx(fitted.tolist(), abs=1e-9)


def test_the_plain_mean_is_the_answer_where_nothing_is_certain(workspace):
    for seed in range(3):
        table(workspace, f"m{seed}", skill=2, seed=seed)
    result = run("--weigher", "greedy", "--vote", "soft")
    said = json.loads((workspace / "blend.json").read_text())["targets"]["label"]
    assert said["weigher"] == "uniform"
    assert list(said["members"].values()) == [1 / 3] * 3
    assert "cannot be told from noise" in result.output


def test_views_of_the_tables_are_written_down(members):
    path = members / "oof" / "good.parquet"
    write_table(path, read_table(path).predictions, {"tta": "hflip"})
    run()
    said = json.loads((members / "blend.json").read_text())["targets"]["label"]
    assert said["views"] == {"good": "hflip"}


def test_json_is_what_was_written(members):
    result = run("--json")
    assert json.loads(result.output) == {"ok": True} | json.loads((members / "blend.json").read_text())


def test_tables_of_other_rows_are_refused_unless_asked_for(members):
    table(members, "part", skill=1, rows=slice(4, None))
    with pytest.raises(AlignmentError, match="4 ids are in one of them only") as caught:
        run()
    assert "--fit-on common" in advice.hint(caught.value)
    assert not (members / "blend.json").exists()
    assert run("--fit-on", "common").exit_code == 0
    assert json.loads((members / "blend.json").read_text())["targets"]["label"]["rows"] == 20


def test_what_cannot_be_blended_is_refused(workspace):
    with pytest.raises(DataError, match="has no tables"):
        run()
    labels = table(workspace, "labels", kind="labels")
    with pytest.raises(DataError, match="holds labels"):
        run(labels)
    with pytest.raises(DataError, match="no target 'label', only 'other'"):
        run(table(workspace, "other", target="other"))
    good = table(workspace, "good")
    with pytest.raises(DataError, match="two tables are called 'good'"):
        run(good, good)
