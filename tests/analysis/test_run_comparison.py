"""Comparisons of runs: what differs, paired verdicts that come true, and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from toolkit.analysis import run_comparison
from toolkit.base.text import html
from toolkit.blending.nested import Estimate
from toolkit.blending.nested import compare as paired
from toolkit.cli import cli
from toolkit.core.metrics import METRICS
from toolkit.core.prediction_files import write_table
from toolkit.core.predictions import Predictions
from toolkit.errors import DataError
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split

ANIMALS = ("ant", "bee", "cat")


def run(root, name, wrong=(), *, folds=(0, 1), split="s", **settings):
    """A run that is right but for the rows `wrong`."""
    competition = Competition.read(root)
    truth, split_table = competition.truth()["label"], Split.read(root / "split.csv")
    for fold in folds:
        ids = split_table.held_out(fold)
        labels = truth.align(ids).decided.copy()
        places = [i for i, one in enumerate(ids) if one in wrong]
        labels[places] = (labels[places] + 1) % 3
        table = Predictions("label", "probabilities", ids, ANIMALS, values=0.7 * np.eye(3)[labels] + 0.1)
        folder = root / "runs" / name / f"fold{fold}"
        write_table(folder / "oof.parquet", {"label": table}, {"member": name})
        said = {"config.member": name, "config.lr": 0.1, "split": split} | {f"config.{k}": v for k, v in settings.items()}
        (folder / "config.json").write_text(json.dumps({"fold": fold, "score": 0.5, "settings": said}))


def test_differences_scores_and_verdict(workspace):
    wrong = [f"{i:04d}" for i in range(12)]
    run(workspace, "base", wrong)
    run(workspace, "good", loss="focal")
    run(workspace, "both", wrong[:6], loss="focal", lr=0.2)
    (found,) = run_comparison.compare(Competition.find(), ["base", "good", "runs/both"])
    assert found.differing == {
        "lr": {"base": 0.1, "good": 0.1, "both": 0.2},
        "loss": {"base": None, "good": "focal", "both": "focal"},
    }
    assert (found.rows, found.estimates["base"].score, found.estimates["good"].score) == (24, 0.5, 1.0)
    assert found.estimates["both"].gain == pytest.approx(0.25)
    per_fold = [np.mean([i not in wrong for i in Split.read(workspace / "split.csv").held_out(fold)]) for fold in (0, 1)]
    assert [found.folds[fold]["base"] for fold in (0, 1)] == pytest.approx(per_fold)
    assert found.verdicts["good"].startswith("better than base: +0.50000 in accuracy")
    assert [note for note in found.notes if "2 settings" in note] == [
        "both differs in 2 settings (lr, loss): no telling which one did it"
    ]
    (turned,) = run_comparison.compare(Competition.find(), ["good", "base"])
    assert turned.verdicts["base"].startswith("worse than good: -0.50000")


def test_the_rows_that_are_said_to_be_missing_are_what_it_takes():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 400)

    def said(right):
        return np.eye(3)[np.where(rng.random(400) < right, truth, (truth + 1) % 3)]

    one, other = said(0.80), said(0.815)
    metric = METRICS["accuracy"]

    def judged(times):
        both = {"a": np.tile(one, (times, 1)), "b": np.tile(other, (times, 1))}
        return paired(np.tile(truth, times), metric, both, baseline="a", draws=400)["b"]

    words = run_comparison.verdict(judged(1), metric, 400, "a")
    assert words.startswith("cannot tell from a")
    more = int(words.split("takes about ")[1].split()[0].replace(",", ""))
    needed = (400 + more) / 400
    assert needed > 2
    assert judged(int(needed * 0.5)).gain_low < 0
    assert judged(int(np.ceil(needed * 1.5))).gain_low > 0


def test_no_difference_has_its_own_words():
    same = Estimate(0.5, 0.4, 0.6, 0.0, 0.0, 0.0)
    assert run_comparison.verdict(same, METRICS["accuracy"], 10, "a") == "the same as a: every row scores alike"
    nothing = Estimate(0.5, 0.4, 0.6, 0.0, -0.1, 0.1)
    assert "next to nothing" in run_comparison.verdict(nothing, METRICS["accuracy"], 10, "a")


def test_other_rows_and_other_splits_are_said(workspace):
    run(workspace, "base")
    run(workspace, "part", folds=(0,), split="t")
    (found,) = run_comparison.compare(Competition.find(), ["base", "part"])
    assert (found.rows, found.folds) == (12, {})
    assert any(note.startswith("base predicted more rows") for note in found.notes)
    assert any(note.startswith("the splits differ") for note in found.notes)
    run(workspace, "twin")
    (found,) = run_comparison.compare(Competition.find(), ["base", "twin"])
    assert found.differing == {}
    assert any("what differs is chance" in note for note in found.notes)


def test_one_run_is_shown_as_it_is(workspace):
    run(workspace, "base")
    (alone,) = run_comparison.compare(Competition.find(), ["base"])
    assert list(alone.estimates) == ["base"]
    assert not alone.differing
    assert not alone.verdicts


def test_what_cannot_be_compared_is_refused(workspace):
    run(workspace, "base")
    competition = Competition.find()
    with pytest.raises(DataError, match="has no finished fold") as caught:
        run_comparison.compare(competition, ["base", "bse"])
    assert caught.value.hint == "There are: base."
    with pytest.raises(DataError, match="runs, each once"):
        run_comparison.compare(competition, ["base", "runs/base"])
    run(workspace, "mixed")
    path = workspace / "runs" / "mixed" / "fold1" / "config.json"
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(DataError, match="fold '1' was trained with other settings"):
        run_comparison.compare(competition, ["base", "mixed"])
    path.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        run_comparison.compare(competition, ["base", "mixed"])
    for name, folds in (("left", (0,)), ("right", (1,))):
        run(workspace, name, folds=folds)
    with pytest.raises(DataError, match="no row in common"):
        run_comparison.compare(competition, ["left", "right"])


def test_the_command(workspace):
    run(workspace, "base", ["0001", "0002"])
    run(workspace, "good", loss="focal")
    done = CliRunner().invoke(cli, ["compare", "base", "good"])
    assert done.exit_code == 0, done.output
    assert "Verdict   good: cannot tell from base" in done.output
    assert "focal" in done.output
    done = CliRunner().invoke(cli, ["compare", "base", "good", "--json"])
    assert json.loads(done.output)["label"]["estimates"]["good"]["score"] == 1
    done = CliRunner().invoke(cli, ["compare", "base", "none", "--json"])
    assert (done.exit_code, json.loads(done.output)["ok"]) == (1, False)


def test_comparisons_show_themselves_in_notebooks(workspace):
    from tests.analysis.pages.test_pages import Reading

    run(workspace, "base", ["0000", "0001", "0002"])
    run(workspace, "<u>", loss="focal")
    (found,) = run_comparison.compare(Competition.find(), ["base", "<u>"])
    reading = Reading(found._repr_html_())
    assert reading.tables == 3
    head = ("run", "accuracy", "95 % from", "to", "gain over base", "95 % from", "to", "")
    assert reading.column(head, "run") == ["base", "<u>"]
    assert reading.column(head, "accuracy") == html.column([one.score for one in found.estimates.values()])
    assert reading.column(head, "gain over base") == ["", html.shown(found.estimates["<u>"].gain)]
    assert reading.column(("setting", "base", "<u>"), "<u>") == ["focal"]


def test_a_config_that_was_changed_or_leads_nowhere_is_no_fold_left_out(workspace):
    from toolkit.base import sealed

    run(workspace, "m", lr=1)
    path = workspace / "runs" / "m" / "fold1" / "config.json"
    sealed.write_json(path, json.loads(path.read_text()))
    competition = Competition.read(workspace)
    assert len(run_comparison.read_run(competition, "m").folds) == 2
    path.write_text(path.read_text().replace('"score": 0.5', '"score": 0.6'))
    with pytest.raises(DataError, match=r"config\.json cannot be read"):
        run_comparison.read_run(competition, "m")
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(DataError, match=r"config\.json cannot be read"):
        run_comparison.read_run(competition, "m")
