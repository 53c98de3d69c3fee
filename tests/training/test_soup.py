"""Soups: the mean of weights, statistics that belong to them, judged on rows that no ingredient saw."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner

from tests.conftest import CLASSES, card, make_workspace
from tests.requested import predicted
from toolkit.cli import cli
from toolkit.core import prediction_files
from toolkit.errors import ModelError
from toolkit.models import checkpoints
from toolkit.runtime.graphs import onnx_file
from toolkit.training import soup
from toolkit.training.fold.fit import normalise
from toolkit.training.fold.samples import decode
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split

ARCHITECTURE = {"model_name": "test_resnet", "num_classes": 3}


def fit(model, x, y, steps, seed):
    torch.manual_seed(seed)
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (8,))
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    """A workspace with four runs of fold 0: three seeds that go on from one network, and a spoiled one."""
    root = make_workspace(tmp_path_factory.mktemp("soup") / "work", train=36)
    competition = Competition.read(root)
    split = Split.read(root / "split.csv")
    said = card("seed", 0, split=split.digest, score=0.5)
    samples = decode(competition, said.preprocess, "label")
    rows = samples.rows(split.training(0))
    pixels, labels = rows.__getitems__(range(len(rows)))
    x = normalise(torch.from_numpy(np.asarray(pixels)), said.mean, said.std)
    y = torch.from_numpy(np.asarray(labels))
    torch.manual_seed(0)
    base = fit(timm.create_model(**ARCHITECTURE), x, y, 40, 0)
    for seed in range(3):
        model = fit(copy.deepcopy(base), x, y, 5, seed + 1)
        checkpoints.save(root / "runs" / f"seed{seed}" / "fold0" / "model.safetensors", model, said, ARCHITECTURE)
    torch.manual_seed(9)
    spoiled = timm.create_model(**ARCHITECTURE)
    spoiled.get_classifier().bias.data[0] = 1e4  # so that any mean with it says the first class
    checkpoints.save(root / "runs" / "spoiled" / "fold0" / "model.safetensors", spoiled, said, ARCHITECTURE)
    return root, x


def runs(root, *names):
    return [root / "runs" / name / "fold0" / "model.safetensors" for name in names]


def test_the_mean_of_weights_is_torchs_own(kitchen):
    root, _ = kitchen
    read = [checkpoints.read(path) for path in runs(root, "seed0", "seed1", "seed2")]
    models = [checkpoints.build(one) for one in read]
    reference = torch.optim.swa_utils.AveragedModel(models[0], use_buffers=True)
    for model in models:
        reference.update_parameters(model)
    found = soup.average([one.state for one in read])
    for name, tensor in reference.module.state_dict().items():
        assert found[name].dtype == tensor.dtype
        if tensor.is_floating_point():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_statistics_are_torchs_own(kitchen):
    root, x = kitchen
    model = checkpoints.build(checkpoints.read(runs(root, "seed0")[0]))
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    batches = [x[:9], x[9:]]
    count = soup.statistics(ours, batches)
    torch.optim.swa_utils.update_bn(batches, theirs)
    assert count == sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.modules()) > 3
    before, after, expected = (m.state_dict() for m in (model, ours, theirs))
    moved = [name for name in after if "running" in name and not torch.equal(before[name], after[name])]
    assert moved
    for name in after:
        if "running" in name:
            torch.testing.assert_close(after[name], expected[name])
        elif "num_batches" not in name:
            assert torch.equal(before[name], after[name]), name
    assert not any(layer.training for layer in ours.modules())
    assert [m.momentum for m in ours.modules() if hasattr(m, "momentum")] == [0.1] * count


def test_greedy_leaves_the_spoiled_one_out_and_its_export_scores_what_was_said(kitchen):
    root, _ = kitchen
    competition = Competition.read(root)
    paths = runs(root, "spoiled", "seed0", "seed1", "seed2")
    done = soup.cook(competition, paths, device="cpu", member="greedy")
    assert runs(root, "spoiled")[0] not in done.ingredients
    assert done.best in ("seed0/fold0/model", "seed1/fold0/model", "seed2/fold0/model")
    singles = [done.estimates[f"{name}/fold0/model"].score for name in ("spoiled", "seed0", "seed1", "seed2")]
    assert done.estimates["greedy"].score >= max(singles)
    assert done.estimates["greedy"].score > singles[0]
    said = onnx_file.read(done.export).card
    assert (said.selected, said.selected_on_heldout, said.title) == ("soup", True, "greedy.fold0")
    predicted(competition, [done.export], "train", root / "oof.parquet", held_out=True)
    found = prediction_files.read_table(root / "oof.parquet").predictions["label"]
    assert set(found.ids) == set(Split.read(root / "split.csv").held_out(0))
    score = found.score(competition.score, competition.truth()["label"].align(found.ids))
    assert score == pytest.approx(done.estimates["greedy"].score) == pytest.approx(said.score)
    assert checkpoints.read(done.checkpoint).card == said
    with pytest.raises(ModelError, match="exists"):
        soup.cook(competition, paths, device="cpu", member="greedy")


def test_uniform_is_the_mean_with_fresh_statistics(kitchen, monkeypatch):
    root, x = kitchen
    monkeypatch.chdir(root)
    paths = runs(root, "seed0", "seed1")
    asked = ["soup", *map(str, paths), "--how", "uniform", "--device", "cpu", "--json"]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["member"], said["fold"], said["selected_on_heldout"]) == ("seed-uniform", 0, False)
    assert Path(said["export"]).exists()
    assert len(said["ingredients"]) == 2
    expected = soup.average([checkpoints.read(path).state for path in paths])
    found = checkpoints.read(Path(said["checkpoint"])).state
    for name, tensor in expected.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(found[name], tensor)
    assert any("running" in name and not torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert len(x) == 18


def _fold(one):
    return {"card": replace(one.card, fold=1)}


def _split(one):
    return {"card": replace(one.card, split="0" * 16)}


def _classes(one):
    return {"card": card("seed", 0, split=one.card.split, classes=CLASSES[::-1])}


def _everything(one):
    return {"card": replace(one.card, fold=None)}


def _network(one):
    return {"architecture": {"model_name": "test_vit", "num_classes": 3, "img_size": 32}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_fold, "differ in fold: 0 against 1"),
        (_split, "differ in split"),
        (_classes, "differ in outputs"),
        (_everything, "trained on every row"),
        (_network, "different networks"),
    ],
)
def test_what_does_not_go_together_is_refused(change, words, kitchen, tmp_path):
    root, _ = kitchen
    one = checkpoints.read(runs(root, "seed0")[0])
    changed = {"card": one.card, "architecture": one.architecture} | change(one)
    model = timm.create_model(**changed["architecture"])
    other = checkpoints.save(tmp_path / "other.safetensors", model, changed["card"], changed["architecture"])
    with pytest.raises(ModelError, match=words):
        soup.cook(Competition.read(root), [one.path, other], device="cpu", member="never")
    assert not (root / "folds" / "never.fold0.onnx").exists()


def test_checkpoints_without_cards_and_single_ones_are_refused(kitchen, tmp_path):
    root, _ = kitchen
    torch.save(timm.create_model(**ARCHITECTURE).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ModelError, match="has no card"):
        soup.cook(Competition.read(root), [*runs(root, "seed0"), tmp_path / "bare.pth"])
    with pytest.raises(ModelError, match="needs several"):
        soup.find_checkpoints([root / "runs" / "seed0"])
    assert len(soup.find_checkpoints([root / "runs" / "seed0", root / "runs" / "seed1"])) == 2


def test_the_command_says_scores_before_and_after(kitchen, monkeypatch):
    root, _ = kitchen
    monkeypatch.chdir(root)
    done = CliRunner().invoke(cli, ["soup", "runs/seed0", "runs/seed1", "runs/seed2", "--member", "told", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    for words in ("seed2/fold0/model", "uniform", "greedy", "BatchNorm", "optimistic", "Wrote folds/told.fold0.onnx"):
        assert words in said, words
