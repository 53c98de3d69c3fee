import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from tests.requested import ensemble
from tests.submissions.test_manifest import export
from toolkit.base import files
from toolkit.cli import cli
from toolkit.core.prediction_files import write_table
from toolkit.core.predictions import Predictions
from toolkit.inference.exports import find_exports
from toolkit.runtime.graphs import onnx_file
from toolkit.workspace.competition import Competition

TOML = """schema = 1
name = "zoo"
metric = "accuracy"
[columns]
id = "image"
[train]
table = "train.csv"
images = "train"
pattern = "{image}.png"
[test]
images = "test"
pattern = "{image}.png"
[submission]
sample = "sample_submission.csv"
[targets.animal]
task = "multiclass"
classes = ["cat", "dog"]
"""
IDS = ("007", "010", "001")


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    (tmp_path / "competition.toml").write_text(TOML)
    (tmp_path / "sample_submission.csv").write_text("image,animal\n001,cat\n007,cat\n010,cat\n")
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    return tmp_path


def predict(root, name="ensemble", created="2026-11-23T10:00:00+00:00", first=(0.9, 0.2, 0.4), ids=IDS, **more):
    path = export(root / "folds/b4.fold0.onnx")
    model = {
        "path": "folds/b4.fold0.onnx",
        "member": "b4",
        "fold": 0,
        "digest": onnx_file.digest(path),
        "sha256": files.sha256(path),
    }
    meta = {
        "name": name,
        "created": created,
        "vote": "soft",
        "view_set": "none",
        "views": {"b4": ["id"]},
        "models": [model],
        **more,
    }
    values = np.stack([first, 1 - np.array(first)], axis=1)
    p = Predictions("animal", "probabilities", ids, ("cat", "dog"), values)
    return write_table(root / f"predictions/{name}.parquet", {"animal": p}, meta)


def run(*words):
    return CliRunner().invoke(cli, ["submit", *map(str, words)])


def answers(path):
    return dict(pd.read_csv(path, dtype=str).to_numpy())


def test_submit_exactly_so(zoo):
    predict(zoo)
    done = run()
    assert done.exit_code == 0, done.output
    assert (zoo / "submission.csv").read_bytes() == b"image,animal\n001,dog\n007,cat\n010,dog\n"
    manifest = json.loads((zoo / "submission.json").read_text())
    assert manifest["output"]["sha256"] == files.sha256(zoo / "submission.csv")
    assert manifest["predictions"]["meta"]["models"][0]["member"] == "b4"
    assert str(zoo) not in (zoo / "submission.json").read_text()
    for word in (
        "'ensemble'",
        "2026-11-23 10:00",
        "b4: folds 0; views id",
        "vote soft",
        "3 rows",
        "format labels",
        "submission.csv",
    ):
        assert word in done.output
    assert sorted(p.name for p in zoo.iterdir() if p.is_file()) == [
        "competition.toml", "sample_submission.csv", "submission.csv", "submission.json"
    ]  # fmt: skip


def test_the_last_made_is_taken_unless_one_is_named(zoo):
    predict(zoo, "zz-old", "2026-11-22T23:00:00+00:00", first=(0.1, 0.1, 0.1))
    predict(zoo, "new", "2026-11-23T01:00:00+00:00")
    predict(zoo, "aa-old", "2026-11-23T08:30:00+09:00", first=(0.1, 0.1, 0.1))
    assert run().exit_code == 0
    assert answers(zoo / "submission.csv") == {"007": "cat", "010": "dog", "001": "dog"}
    done = run("--name", "zz-old", "--output", zoo / "other.csv")
    assert done.exit_code == 0, done.output
    assert set(answers(zoo / "other.csv").values()) == {"dog"}
    assert (zoo / "other.json").exists()
    missing = run("--name", "best")
    assert missing.exit_code == 1
    assert "'new'" in missing.output
    assert "toolkit ensemble" in missing.output


def test_no_predictions_yet(zoo):
    done = run()
    assert done.exit_code == 1
    assert "no predictions" in done.output
    assert "toolkit ensemble folds/*.onnx" in done.output


def test_every_problem_is_listed_and_the_old_file_stays(zoo):
    predict(zoo, ids=("007", "010", "77"), bad_images=[{"id": "007", "path": "test/007.png", "why": "truncated"}])
    export(zoo / "folds/b4.fold0.onnx", weight=3.0)
    (zoo / "submission.csv").write_text("old")
    done = run()
    assert done.exit_code == 1
    for word in (
        "SUB020 error",
        "'001'",
        "SUB060 error",
        "folds/b4.fold0.onnx",
        "SUB062 warning",
        "'77'",
        "SUB063 warning",
        "2 errors",
    ):
        assert word in done.output
    assert "Traceback" not in done.output
    assert (zoo / "submission.csv").read_text() == "old"
    assert not (zoo / "submission.json").exists()


def test_warnings_are_printed_and_kept_in_the_manifest(zoo):
    predict(zoo, ids=(*IDS, "099"), first=(0.9, 0.2, 0.4, 0.5))
    done = run()
    assert done.exit_code == 0
    assert "SUB062 warning" in done.output
    assert "SUB062" in json.loads((zoo / "submission.json").read_text())["warnings"][0]


def test_a_rewritten_card_is_no_change_but_a_vanished_export_is(zoo):
    predict(zoo)
    path = export(zoo / "folds/b4.fold0.onnx", note="another card")
    assert run().exit_code == 0
    path.unlink()
    done = run()
    assert done.exit_code == 1
    assert "SUB061" in done.output


@pytest.mark.parametrize("target", ["sample_submission.csv", "predictions/ensemble.parquet", "train.csv"])
def test_inputs_are_never_replaced(zoo, target):
    predict(zoo)
    done = run("--output", zoo / target)
    assert done.exit_code == 1
    assert "is an input" in done.output
    assert run("--output", zoo / "x.json").exit_code == 1


def test_check_only_writes_nothing(zoo):
    good, bad = zoo / "good.csv", zoo / "bad.csv"
    good.write_text("image,animal\n001,cat\n007,dog\n010,cat\n")
    bad.write_text("image,animal\n1,cat\n7,dog\n010,cow\n")
    before = sorted(zoo.rglob("*"))
    done = run("--check-only", good)
    assert done.exit_code == 0, done.output
    assert "No errors" in done.output
    done = run("--check-only", bad)
    assert done.exit_code == 1
    assert "SUB024" in done.output
    assert "SUB040" in done.output
    absent = run("--check-only", zoo / "nowhere.csv")
    assert absent.exit_code == 1
    assert "nowhere.csv is not there" in absent.output
    assert "SUB" not in absent.output
    assert run("--check-only", good, "--name", "x").exit_code == 2
    assert sorted(zoo.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "word"),
    [("image,animal\n001,cat\n001,cat\n", "more than once"), ("id,animal\n001,cat\n", "no column 'image'"), ("", "is empty")],
)
def test_a_broken_sample_is_said(zoo, text, word):
    predict(zoo)
    (zoo / "sample_submission.csv").write_text(text)
    done = run()
    assert done.exit_code == 1
    assert word in done.output
    assert "Traceback" not in done.output
    (zoo / "fine.csv").write_text("image,animal\n001,cat\n")
    assert run("--sample", zoo / "fine.csv").exit_code == 0


def test_a_folder_that_cannot_be_written(zoo):
    predict(zoo)
    done = run("--output", zoo / "competition.toml" / "submission.csv")
    assert done.exit_code == 1
    assert "cannot be written" in done.output
    assert "Traceback" not in done.output


def test_an_ambiguous_format_is_asked_for(zoo):
    predict(zoo)
    (zoo / "sample_submission.csv").write_text("image,animal\n001,0\n007,0\n010,0\n")
    done = run()
    assert done.exit_code == 1
    assert "Set format under [submission]" in done.output
    (zoo / "competition.toml").write_text(TOML.replace("[submission]", '[submission]\nformat = "indices"'))
    assert run().exit_code == 0
    assert answers(zoo / "submission.csv") == {"007": "0", "010": "1", "001": "1"}


def test_what_the_ensemble_makes_is_submitted(workspace, folds):
    competition = Competition.read(workspace)
    made = ensemble(competition, find_exports(["folds/*.onnx"], base=workspace), tta="hflip", device="cpu")
    done = run()
    assert done.exit_code == 0, done.output
    assert "tiny: folds 0 1; views id, hflip" in done.output
    table = made.predictions["label"]
    best = {name: table.classes[i] for name, i in zip(table.ids, table.values.argmax(axis=1), strict=True)}
    assert answers(workspace / "submission.csv") == best
    assert list(pd.read_csv(workspace / "submission.csv", dtype=str)["id"]) == list(
        pd.read_csv(competition.path(competition.sample), dtype=str)["id"]
    )


def test_json_holds_the_receipt_or_every_problem(zoo):
    predict(zoo)
    done = run("--json")
    record = json.loads(done.output)
    assert (done.exit_code, record["ok"], record["rows"], record["format"]) == (0, True, 3, "labels")
    assert record["id"] == files.sha256(zoo / "submission.csv")[:8]
    assert (zoo / "submissions" / f"{record['id']}.csv").read_bytes() == (zoo / "submission.csv").read_bytes()
    bad = zoo / "bad.csv"
    bad.write_text("image,animal\n1,cat\n007,cow\n010,cat\n")
    done = run("--check-only", bad, "--json")
    record = json.loads(done.output)
    assert (done.exit_code, record["ok"]) == (1, False)
    found = {problem["code"]: problem for problem in record["problems"]}
    assert set(found) == {"SUB024", "SUB040"}
    assert (found["SUB040"]["severity"], found["SUB040"]["column"], found["SUB040"]["line"]) == ("error", "animal", 3)
    assert found["SUB040"]["ids"] == ["007"]
    (zoo / "competition.toml").unlink()
    assert json.loads(run("--json").output)["error"].startswith("no competition.toml")


def test_a_file_too_large_is_refused_before_it_is_written(zoo):
    predict(zoo)
    (zoo / "competition.toml").write_text(TOML.replace("[submission]", "[submission]\nmax_mb = 0.00001"))
    done = run()
    assert done.exit_code == 1
    assert "SUB009 error" in done.output
    assert not (zoo / "submission.csv").exists()
    (zoo / "competition.toml").write_text(TOML.replace("[submission]", "[submission]\nmax_mb = -1"))
    assert "max_mb is a number of megabytes" in run().output
