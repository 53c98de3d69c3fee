"""From raw digits to the number beside a submission: whatever was done to the predictions, it is near what they are worth.

The labels of the test images are kept aside, as a platform does. Members are ridge regressions, so that nothing is trained
for minutes; what follows is the toolkit's own way from exports to the printed score.
"""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.conftest import card
from toolkit.cli import cli
from toolkit.core import prediction_files
from toolkit.core.cards import Preprocess
from toolkit.core.predictions import Predictions
from toolkit.images.render import load
from toolkit.models.export import export
from toolkit.models.export_checkpoint import samples
from toolkit.setup import digits_data
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split, make

FOLDS = 2
PIXELS = Preprocess((8, 8))
MEMBERS = {"whole": 1.0, "few": 0.15}  # the share of its training rows that each learned from


def linear(weights, bias):
    """The regression as a network of pixels / 255."""
    import torch
    from torch import nn

    layer = nn.Linear(3 * 64, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(np.tile(weights / 3, (1, 3))))
        layer.bias.copy_(torch.tensor(bias))
    return nn.Sequential(nn.Flatten(), layer).eval()


def ridge(pixels, labels):
    """Weights [10, 64] and bias [10] of a regression to the classes, as logits."""
    rows = np.c_[pixels, np.ones(len(pixels))]
    solved = np.linalg.solve(rows.T @ rows + np.eye(65), rows.T @ np.eye(10)[labels]).T * 8
    return solved[:, :64], solved[:, 64]


def make_member(competition: Competition, split: Split, pixels: dict[str, np.ndarray], name: str, share: float) -> None:
    """Fold models in folds/, and oof/NAME.parquet as NumPy has it."""
    truth = competition.truth()["label"]
    label = dict(zip(truth.ids, truth.decided.tolist(), strict=True))
    rng = np.random.default_rng(len(name))
    ids, values = [], []
    for fold in range(FOLDS):
        training = [n for n in split.training(fold) if rng.random() < share]
        weights, bias = ridge(np.stack([pixels[n] for n in training]), [label[n] for n in training])
        held_out = split.held_out(fold)
        ids += held_out
        odds = np.exp(np.stack([pixels[n] for n in held_out]) @ weights.T + bias)
        values.append(odds / odds.sum(axis=1, keepdims=True))
        score = (values[-1].argmax(axis=1) == [label[n] for n in held_out]).mean()
        of_it = {"classes": truth.classes, "mean": (0.0,) * 3, "std": (1.0,) * 3, "split": split.digest, "score": float(score)}
        said = card(name, fold, size=(8, 8), **of_it)
        path = competition.path("folds", f"{name}.fold{fold}.onnx")
        export(linear(weights, bias), said, path, samples=samples(competition, said.preprocess))
    table = Predictions("label", "probabilities", tuple(ids), truth.classes, np.concatenate(values))
    meta = {"member": name, "split": split.digest, "selected": "last"}
    prediction_files.write_table(competition.path("oof", f"{name}.parquet"), {"label": table}, meta)


@pytest.fixture(scope="module")
def digits_once(tmp_path_factory) -> Path:
    """The digits with three members of three folds each, and the truth of the test images beside them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # two thousand images need not survive a power cut
        competition = digits_data.make_workspace(tmp_path_factory.mktemp("honest") / "work")
    truth = competition.truth()["label"]
    split = make(truth.ids, truth.labels, truth.classes, folds=FOLDS)
    split.write(competition.path("split.csv"))
    pixels = {name: load(path, PIXELS)[0].ravel() / 255.0 for name, path in competition.images("train")}
    for name, share in MEMBERS.items():
        make_member(competition, split, pixels, name, share)
    return competition.root


@pytest.fixture
def digits(digits_once, monkeypatch) -> Path:
    """The workspace as the current folder; each test writes predictions of its own."""
    monkeypatch.chdir(digits_once)
    return digits_once


def run(*words: str) -> str:
    result = CliRunner().invoke(cli, list(words))
    assert result.exit_code == 0, result.output
    return result.output


def worth(root: Path) -> float:
    """The accuracy of submission.csv against the labels that were kept aside."""
    truth = {row["id"]: row["label"] for row in csv.DictReader((root / digits_data.TRUTH).read_text().splitlines())}
    sent = {row["id"]: row["label"] for row in csv.DictReader((root / "submission.csv").read_text().splitlines())}
    assert sent.keys() == truth.keys()
    return float(np.mean([sent[name] == truth[name] for name in truth]))


def printed(output: str) -> float:
    """The score that a person reads."""
    (number,) = re.findall(r"Out of fold accuracy (\d\.\d+)", output)
    return float(number)


WAYS = {
    "plain": ["folds/whole.*.onnx"],
    "flip": ["folds/whole.*.onnx", "--tta", "flip"],
    "hflip on a sample": ["folds/whole.*.onnx", "--tta", "hflip+scale:0.9", "--evidence", "600"],
    "auto": ["folds/whole.*.onnx", "--tta", "auto"],
    "hard vote of all": ["folds/*.onnx", "--vote", "hard"],
    "score": ["folds/*.onnx", "--weights", "score", "--tta", "few=hflip,whole=none"],
    "labels": ["folds/whole.*.onnx", "--tta", "vflip", "--labels-only"],
}


@pytest.mark.parametrize("way", WAYS)
def test_the_printed_score_is_near_the_truth_of_the_file(digits, way):
    """Within what so few images let one see; fold models are together usually better than one that rows were held out of."""
    run("ensemble", *WAYS[way], "--device", "cpu")
    shown = run("submit")
    score, truth = printed(shown), worth(digits)
    chance = np.sqrt(truth * (1 - truth) * (1 / 360 + 1 / 1437))
    assert abs(score - truth) < 3 * chance, f"{way}: printed {score:.4f}, the file is worth {truth:.4f}"
    manifest = json.loads((digits / "submission.json").read_text())["scores"]
    low, high = manifest["interval"]
    assert low < score < high
    (kept,) = [e for e in json.loads(run("submissions", "--json"))["submissions"] if e["id"] in shown]
    assert kept["out_of_fold"] == manifest["out_of_fold"] == pytest.approx(score, abs=5e-5)
    assert kept["optimistic"] == ""
    if way == "flip":
        assert score < worth_of_the_plain(digits) - 6 * chance  # flipping hurts, and the number shows it
        assert kept["views"] == "flip"
    if way == "hflip on a sample":
        assert kept["evidence"] == "600 rows"
        assert "600 of 1,437 held-out rows" in shown
    if way in ("auto", "score"):
        assert kept["evidence"].startswith("nested") or way == "auto"


def worth_of_the_plain(root: Path) -> float:
    """The score of the plain table in oof/, which must not be taken for that of other views."""
    meta = prediction_files.read_table(root / "oof" / "whole.parquet").predictions["label"]
    truth = Competition.read(root).truth()["label"].align(meta.ids)
    return float((meta.decided == truth.decided).mean())


def test_a_blend_and_thresholds_have_their_nested_score(digits):
    """What was fitted to these rows is scored by what the other folds lead to, as `toolkit blend` says beside it."""
    fitted = run("blend", "--weigher", "greedy", "--calibrate", "factors", "--vote", "soft", "--always")
    nested, in_sample = (float(re.search(rf"{row} +(\d\.\d+)", fitted)[1]) for row in ("nested", "in sample"))
    assert nested != in_sample
    made = run("ensemble", "folds/*.onnx", "--blend", "--device", "cpu", "--name", "blended")
    shown = run("submit", "--name", "blended")
    assert printed(made) == printed(shown) == pytest.approx(nested, abs=5e-5)
    assert "nested" in shown
    assert float(re.search(r"label: ensemble +(\d\.\d+)", run("report"))[1]) == pytest.approx(nested, abs=1e-5)
    record = json.loads((digits / "blend.json").read_text())
    record["targets"]["label"]["members"] = {"whole": 0.5, "few": 0.5}  # edited by hand: no nested score is known of this
    (digits / "blend.json").write_text(json.dumps(record))
    run("ensemble", "folds/*.onnx", "--blend", "--device", "cpu", "--name", "blended")
    shown = run("submit", "--name", "blended")
    assert "(optimistic)" in shown
    assert "Optimistic: the blend of label was fitted to the rows that score it" in shown
    assert "optimistic" in run("submissions")
    assert "label: ensemble (optimistic)" in run("report")


def test_predictions_of_before_say_so_and_no_number(digits):
    run("ensemble", "folds/whole.*.onnx", "--device", "cpu", "--name", "old")
    run("ensemble", "folds/whole.*.onnx", "--device", "cpu", "--tta", "flip", "--name", "flipped")
    both = run("compare", "old", "flipped")
    plain, flipped = (float(number) for number in re.findall(r"accuracy (\d\.\d+)", both))
    assert plain == pytest.approx(worth_of_the_plain(digits), abs=1e-5)
    assert flipped < plain - 0.1
    path = digits / "predictions" / "old.parquet"
    table = prediction_files.read_table(path)
    prediction_files.write_table(path, table.predictions, {k: v for k, v in table.meta.items() if k != "evidence"})
    assert "unknown: made by an earlier version" in " ".join(run("compare", "old", "flipped").split())
    shown = run("submit", "--name", "old")
    assert "Evidence unknown: made by an earlier version" in shown
    assert "Out of fold" not in shown
    assert "unknown: made by an earlier version" in " ".join(run("submissions").split())


def test_a_deadline_drops_it_first_and_none_is_none(digits):
    run(
        "ensemble",
        "folds/few.*.onnx",
        "--device",
        "cpu",
        "--tta",
        "add:9",
        "--no-tta-check",
        "--deadline",
        "1h",
        "--name",
        "late",
    )
    assert "Evidence unknown: held-out rows with these views were not computed" in run("submit", "--name", "late")
    words = ["--tta", "add:9", "--no-tta-check", "--evidence", "none", "--name", "none"]
    run("ensemble", "folds/few.*.onnx", "--device", "cpu", *words)
    assert "Evidence unknown: held-out rows with these views were not computed" in run("submit", "--name", "none")
    run("ensemble", "folds/few.*.onnx", "--device", "cpu", "--deadline", "1h", "--name", "late")
    assert "1,437 rows" in run("submit", "--name", "late")  # plain rows are in oof/: nothing needs computing
