"""toolkit demo on a shortened workspace, and doctor."""

from __future__ import annotations

import csv
import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from tests.conftest import few_digits
from toolkit.cli import cli
from toolkit.core.prediction_files import read_table
from toolkit.errors import TrainingError
from toolkit.setup import demo, digits_data, doctor
from toolkit.submissions import submission
from toolkit.workspace.competition import Competition


@pytest.fixture(scope="module")
def shortened(tmp_path_factory):
    """Two hundred of the digits in two folds: the demo goes on with a workspace that is there."""
    return few_digits(tmp_path_factory.mktemp("demo") / "digits", 20)


@pytest.fixture(scope="module")
def shown(shortened, python):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "executable", python)
        done = CliRunner().invoke(cli, ["demo", str(shortened)])
    assert done.exit_code == 0, done.output
    return done.stdout


def scores(shown):
    lines = [line.removesuffix("  ← chosen").rsplit(maxsplit=1) for line in shown.splitlines()]
    return {name.strip(): float(number) for name, number in (line for line in lines if len(line) == 2 and line[1][1:2] == ".")}


def test_the_demo_shows_every_score_and_they_are_right(shortened, shown):
    found = scores(shown)
    competition = Competition.read(shortened)
    oof = read_table(shortened / "oof" / "digits.parquet").predictions["label"]
    truth = competition.truth()["label"]
    assert found["out of fold, --tta none"] == pytest.approx(oof.score(competition.score, truth), abs=5e-5)
    with (shortened / digits_data.TRUTH).open() as file:
        right = {row["id"]: row["label"] for row in csv.DictReader(file)}
    with (shortened / "submission.csv").open() as file:
        sent = {row["id"]: row["label"] for row in csv.DictReader(file)}
    assert sent.keys() == right.keys()
    chosen = next(line for line in shown.splitlines() if "held-out" in line and "chosen" in line)
    assert float(chosen.split()[-3]) == pytest.approx(np.mean([sent[i] == right[i] for i in right]), abs=5e-5)


def test_mirrored_digits_cost_score_and_are_not_chosen(shown):
    found = scores(shown)
    assert found["out of fold, --tta flip"] < found["out of fold, --tta none"]
    assert "--tta none was chosen on out-of-fold images alone" in shown


def test_the_last_predictions_are_the_chosen_ones(shortened, shown):
    assert submission.last_made(Competition.read(shortened)).stem == "ensemble"


def test_a_finished_demo_goes_on_where_it_was(shortened, shown, quick_processes):
    again = CliRunner().invoke(cli, ["demo", str(shortened)])
    assert again.exit_code == 0, again.output
    assert scores(again.stdout) == scores(shown)


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = CliRunner().invoke(cli, ["demo", str(tmp_path)])
    assert done.exit_code == 1
    assert "thesis.txt" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_recipe_that_fails_is_an_error(tmp_path, monkeypatch, quick_processes):
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit(3)")
    monkeypatch.setattr(demo.recipe_files, "recipe_path", lambda _name: broken)
    with pytest.raises(TrainingError, match="exit code 3"):
        demo.run(tmp_path / "work", say=lambda _line: None)


def test_doctor_finds_this_machine_fit():
    done = CliRunner().invoke(cli, ["doctor", "--json"])
    assert done.exit_code == 0, done.output
    findings = {one["what"]: one for one in json.loads(done.stdout)["findings"]}
    assert findings["--device cpu"]["state"] == "ok"
    assert "torchcodec" in findings["decoder"]["seen"]


def test_doctor_names_versions_that_do_not_fit_and_the_cure(monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda _name: ["numpy>=99", "a-package-nobody-has>=1", "click>=8"])
    found = {finding.what: finding for finding in doctor.versions()}
    assert set(found) == {"numpy", "a-package-nobody-has"}
    assert all(finding.state == "broken" and "pip install" in finding.cure for finding in found.values())
    done = CliRunner().invoke(cli, ["doctor"])
    assert done.exit_code == 1
    assert 'cure: pip install "numpy>=99"' in done.stdout


def test_doctor_survives_whatever_is_broken(monkeypatch):
    def broken(name):
        raise OSError(f"lib{name}.so: undefined symbol")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    assert {finding.what for finding in doctor.imports() if finding.state == "broken"} == set(doctor.MODULES)
