"""Warm starts: on labels that are pure noise, no way of beginning from weights lifts an unmarked score above chance."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.conftest import card
from toolkit.base import sealed
from toolkit.cli import cli
from toolkit.cli.recipes import follow
from toolkit.core import prediction_files
from toolkit.core.cards import Preprocess
from toolkit.core.lineage import Lineage, Seen, SeenIds
from toolkit.errors import ModelError, TrainingError
from toolkit.models import checkpoints
from toolkit.runtime.graphs import onnx_file
from toolkit.training import Plan, SelfTraining, WarmStart, fit, join, loader, normalise, train
from toolkit.training.parts import warm_start
from toolkit.workspace.competition import Competition, Images, Target
from toolkit.workspace.split import Split, make

ROWS, FOLDS, CLASSES = 120, 2, ("no", "yes")
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Config(WarmStart, SelfTraining):
    member: str = "base"
    seed: int = 0
    select: str = "last"


def noise(root):
    """Pictures of noise in groups of three, labels of noise."""
    rng = np.random.default_rng(5)
    (root / "train").mkdir(parents=True)
    groups = [f"g{i // 3}" for i in range(ROWS)]
    labels = np.repeat(rng.permutation(np.arange(ROWS // 3) % 2), 3)
    for i in range(ROWS):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / "train" / f"{i}.png")
    lines = [f"{i},{CLASSES[label]},{group}" for i, (label, group) in enumerate(zip(labels, groups, strict=True))]
    (root / "train.csv").write_text("id,label,group\n" + "\n".join(lines) + "\n")
    images = Images("train", "{id}.png", "train.csv")
    competition = Competition(
        root, "noise", "accuracy", (Target("label", "multiclass", CLASSES),), images, Images("train", "{id}.png"), group="group"
    )
    (root / "competition.toml").write_text(competition.to_toml())
    make([str(i) for i in range(ROWS)], labels, CLASSES, folds=FOLDS, groups=groups).write(root / "split.csv")
    return root


def a_plan(root, **config):
    competition, split = Competition.read(root), Split.read(root / "split.csv")
    network = {"model_name": "none"}
    return Plan("test", Config(**config), network, Preprocess((8, 8)), HALF, HALF, competition, split, root)


def a_fold(config, fold):
    """A layer that learns its rows by heart."""
    torch.manual_seed(fold.seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, len(fold.classes)))
    if config.weights:
        model.load_state_dict(checkpoints.read(Path(config.weights)).state)
    feed = loader(fold.training, 30, seed=fold.seed)
    epochs = 1 if config.weights else 12
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4 if config.weights else 0.05)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimiser)
    options = {"epochs": epochs, "prepare": lambda pixels: normalise(pixels, HALF, HALF), "loss": F.cross_entropy}
    return fit(model, feed, fold, optimiser=optimiser, schedule=schedule, select=config.select, **options)


def go(plan, say=None, **options):
    done = list(
        train(
            plan,
            a_fold,
            bar=lambda _: contextlib.nullcontext(lambda *_: None),
            device="cpu",
            **({"say": say} if say else {}),
            **options,
        )
    )
    return done, join(plan)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workspace with `base`, whose folds begin from nothing."""
    root = noise(tmp_path_factory.mktemp("warm") / "work")
    _, score = go(a_plan(root))
    assert abs(score - 0.5) < 0.15
    return root


@pytest.fixture
def root(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def weights(root, fold="fold0"):
    return str(root / "runs" / "base" / fold / "model.safetensors")


def test_weights_that_saw_held_out_rows_are_refused_with_the_reason(root):
    plan = a_plan(root, member="leak", weights=weights(root))
    with pytest.raises(
        TrainingError, match=r"seen the rows that score fold 1: trained on all rows of split .* but fold 0's"
    ) as why:
        go(plan)
    assert why.value.code == "seen-rows"
    assert "member:base" in why.value.hint
    assert not (root / "runs" / "leak").exists()
    go(plan, folds=[0])  # its own rows: nothing leaks
    assert onnx_file.read(plan.export(0)).card.chosen == "last"


def test_where_they_are_allowed_every_place_says_optimistic(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    plan = a_plan(root, member="leak", weights=weights(root), allow_seen=True)
    follow(plan, a_fold, device="cpu")
    fold0, fold1, whole = capsys.readouterr().out.splitlines()
    assert ["optimistic" in line for line in (fold0, fold1, whole)] == [False, True, True]
    table = prediction_files.read_table(plan.oof)
    assert table.meta["selected"] == "last+seen"
    assert table.meta["folds"]["1"] > 0.85  # learned by heart, where 0.5 is honest
    leaked = onnx_file.read(plan.export(1)).card
    assert (leaked.selected, leaked.exposed) == ("seen", True)
    assert leaked.lineage == Lineage((Seen(plan.split.digest, 1), Seen(plan.split.digest, 0)))
    for words in (["score"], ["compare", "base", "leak"], ["inspect", str(plan.export(1))], ["blend"]):
        shown = CliRunner().invoke(cli, words)
        assert "optimistic" in shown.output, shown.output
    again = a_plan(root, member="leak", weights=weights(root), allow_seen=True)
    assert [done.selected for done in go(again)[0]] == ["last", "seen"]  # read back


def test_a_members_own_folds_are_begun_from_and_chance_stays_chance(root):
    plan = a_plan(root, member="further", weights="member:base")
    done, score = go(plan)
    assert [fold.selected for fold in done] == ["last", "last"]
    assert abs(score - 0.5) < 0.15
    for fold in range(FOLDS):
        about = json.loads((plan.folder(fold) / "config.json").read_text())
        assert about["began"] == weights(root, f"fold{fold}")
        assert about["lineage"] == {"seen": [{"split": plan.split.digest, "fold": fold}], "unknown": []}
        before, after = (
            checkpoints.read(folder / "model.safetensors").state
            for folder in (root / "runs" / "base" / f"fold{fold}", plan.folder(fold))
        )
        gap = max(float((before[name] - after[name]).abs().max()) for name in before)
        assert 0 < gap < 0.02  # begun from it, and trained on
    assert prediction_files.read_table(plan.oof).meta["selected"] == "last"


def test_what_chose_the_weights_is_inherited(root):
    best = a_plan(root, member="best", select="best")
    go(best, folds=[0])
    heir = a_plan(root, member="heir", weights="member:best")
    assert [done.selected for done in go(heir, folds=[0])[0]] == ["inherited"]
    assert onnx_file.read(heir.export(0)).card.selected_on_heldout
    pupil = a_plan(root, member="pupil", soft_labels="best")
    (done,) = train(pupil, a_fold, bar=lambda _: contextlib.nullcontext(lambda *_: None), device="cpu", folds=[0])
    assert done.selected == "inherited"


def test_teachers_that_saw_held_out_rows_teach_nobody_unmarked(root):
    go(a_plan(root, member="leak", weights=weights(root), allow_seen=True), folds=[1])
    asked = {"member": "pupil", "soft_labels": "leak"}
    with pytest.raises(TrainingError, match=r"leak\.fold1 has seen the labels that score fold 1") as why:
        go(a_plan(root, **asked), folds=[1])
    assert why.value.code == "seen-teacher"
    plan = a_plan(root, **asked, allow_seen=True)
    assert [done.selected for done in go(plan, folds=[1])[0]] == ["seen"]
    assert Seen(plan.split.digest, 0) in onnx_file.read(plan.export(1)).card.lineage.seen


def test_models_of_all_rows_and_of_soft_labels_out_of_fold_have_seen_everything(root):
    go(a_plan(root), folds=[None])
    with pytest.raises(TrainingError, match="score folds 0 and 1: trained on all rows of split"):
        go(a_plan(root, member="leak", weights=weights(root, "all")))
    whole = a_plan(root, member="whole", weights="member:base")
    go(whole, folds=[None])
    assert json.loads((whole.folder(None) / "config.json").read_text())["began"] == weights(root, "all")
    told = a_plan(root, member="told", soft_labels="oof/base.parquet")
    go(told, folds=[0])
    with pytest.raises(TrainingError, match="seen the rows that score fold 0"):
        go(a_plan(root, member="heir", weights="member:told"), folds=[0])


@pytest.mark.parametrize("kept", [True, False])
def test_of_another_split_the_ids_tell(kept, root):
    """The same rows in other folds: what was seen is found by id; a checkpoint that lost its ids is not known."""
    split = Split.read(root / "split.csv")
    other = make(
        split.ids, np.array([CLASSES.index(name) for name in split.labels]), CLASSES, folds=3, groups=split.groups, seed=4
    )
    other.write(root / "split.csv")
    origin = checkpoints.read(root / "runs" / "base" / "fold0" / "model.safetensors")
    assert origin.seen.shared(split.ids) == (len(split.training(0)), ROWS)
    if not kept:
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
        checkpoints.save(origin.path, model, origin.card, origin.architecture)
    plan, said = a_plan(root, member="leak", weights=weights(root)), []
    truth = [set(other.held_out(fold)) & set(split.training(0)) for fold in range(3)]
    assert all(truth)
    if kept:
        with pytest.raises(TrainingError, match=f"trained on {len(truth[0])} of {len(other.held_out(0))} ids of fold 0"):
            go(plan)
    else:
        warm_start.check(plan.competition, plan.split, plan.config, [0], said.append)
        assert any("whether rows of this split are among them is not known" in sentence for sentence in said)


def test_rows_of_another_data_set_are_no_leak(root, tmp_path):
    foreign = replace(
        onnx_file.read(root / "folds" / "base.fold0.onnx").card, lineage=Lineage((Seen("elsewhere", 0),)), split="elsewhere"
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    path = checkpoints.save(tmp_path / "foreign.safetensors", model, foreign, {}, SeenIds.of(f"other {i}" for i in range(9)))
    said = []
    plan = a_plan(root, member="heir", weights=str(path))
    assert [done.selected for done in go(plan, said.append, folds=[0])[0]] == ["last"]
    assert not any("seen" in sentence for sentence in said)


def test_files_without_lineage_are_unknown_and_said_so(root, tmp_path, monkeypatch):
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).state_dict(), tmp_path / "net.pth")
    old = checkpoints.read(root / "runs" / "base" / "fold1" / "model.safetensors")
    path = checkpoints.save(
        tmp_path / "old.safetensors", nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), replace(old.card, lineage=None), {}
    )
    said = []
    plan = a_plan(root, member="heir", weights=str(tmp_path / "net.pth"))
    go(plan, said.append)
    assert any("net.pth does not say which rows it has seen" in sentence for sentence in said)
    assert onnx_file.read(plan.export(1)).card.lineage.unknown == ("net.pth",)
    assert prediction_files.read_table(plan.oof).meta["unknown"] == ["net.pth"]
    monkeypatch.chdir(root)
    assert "does not say which rows it has seen" in CliRunner().invoke(cli, ["score"]).output
    with pytest.raises(TrainingError, match="seen the rows that score fold 0"):  # what it does say counts
        go(a_plan(root, member="leak", weights=str(path)))
    go(a_plan(root, member="fold1", weights=str(path)), said.append, folds=[1])
    assert any("does not say all that it has seen (base.fold1 does not)" in sentence for sentence in said)


def test_runs_of_before_there_were_warm_starts_go_on(root):
    plan = a_plan(root)
    for fold in range(FOLDS):
        path = plan.folder(fold) / "config.json"
        about = sealed.read_json(path)
        for name in ("config.allow_seen", "config.weights"):
            del about["settings"][name]
        sealed.write_json(path, about)
    assert all(done.resumed for done in go(plan)[0])
    with pytest.raises(TrainingError, match="weights was ''"):
        go(a_plan(root, weights="member:base", member="base", allow_seen=False))


def test_retrained_members_and_changed_files_are_changed_settings(root):
    plan = a_plan(root, member="further", weights="member:base")
    go(plan, folds=[0])
    path = root / "runs" / "base" / "fold0" / "config.json"
    about = sealed.read_json(path)
    about["settings"]["config.seed"] = 7
    sealed.write_json(path, about)
    with pytest.raises(TrainingError, match="weights content was"):
        go(a_plan(root, member="further", weights="member:base"), folds=[0])


def test_mistakes_are_said(root):
    for asked, words in (
        ("member:nobody", "no member 'nobody'.*to begin from"),
        ("member:../base", "names no member"),
        ("member:", "names no member"),
        ("gone.safetensors", "does not exist"),
    ):
        with pytest.raises((TrainingError, ModelError), match=words):
            go(a_plan(root, member="x", weights=asked))
    shutil.rmtree(root / "runs" / "base" / "fold1")
    with pytest.raises(TrainingError, match="'base' has no fold 1 to begin from"):
        go(a_plan(root, member="x", weights="member:base"))
    assert warm_start.asked(replace(a_plan(root).config, weights="")) == ""
    assert warm_start.asked(type("Other", (), {"weights": "score"})()) == ""


def test_a_trial_of_a_search_begins_from_the_workspace_around_it(root):
    from toolkit.training import search

    (root / "tuning" / "study").mkdir(parents=True)
    inside, split = search.scratch(Competition.read(root), root / "tuning" / "study")
    start = warm_start.start_of(inside, split, Config(weights="member:base"), 1)
    assert start.path.resolve() == (root / "runs" / "base" / "fold1" / "model.safetensors").resolve()


def test_no_checkpoint_is_exported_or_taken_in_as_another_folds(root, monkeypatch):
    monkeypatch.chdir(root)
    digest = Split.read(root / "split.csv").digest
    state = timm.create_model("test_resnet", num_classes=2)
    timms = card("lie", 0, classes=CLASSES, size=(8, 8), split=digest)
    checkpoints.save(root / "mine.safetensors", state, timms, {"model_name": "test_resnet", "num_classes": 2})
    lies = [
        ["export", weights(root), "--fold", "1", "--member", "lie"],
        ["export", "mine.safetensors", "--fold", "1", "--member", "lie", "--model", "test_resnet.r160_in1k"],
        ["adopt", "folds/base.fold0.onnx", "--fold", "1", "--member", "lie", "--classes", "workspace"],
    ]
    for words in lies:
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 1, done.output
        told = " ".join(done.output.split())
        assert "is no model of fold 1: it was trained on all rows of split" in told, told
        assert "Leave --fold out" in told
    assert not list((root / "folds").glob("lie*"))


def test_an_adopted_model_keeps_its_lineage_and_a_foreign_ones_is_unknown(root, monkeypatch):
    monkeypatch.chdir(root)
    words = ["adopt", "folds/base.fold0.onnx", "--fold", "0", "--member", "kin", "--classes", "workspace"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    digest = Split.read(root / "split.csv").digest
    assert onnx_file.read(root / "folds" / "kin.fold0.onnx").card.lineage == Lineage((Seen(digest, 0),))
    import onnx

    bare = onnx.load(root / "folds" / "base.fold0.onnx")
    bare.ClearField("metadata_props")
    onnx.save(bare, root / "bare.onnx")
    words = ["adopt", "bare.onnx", "--fold", "1", "--member", "foreign", "--classes", "workspace"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert "unknown: bare.onnx does not say" in done.output
    assert onnx_file.read(root / "folds" / "foreign.fold1.onnx").card.lineage == Lineage((Seen(digest, 1),), ("bare.onnx",))


def test_predicted_tables_of_training_rows_are_marked_as_their_models_are(root, monkeypatch):
    monkeypatch.chdir(root)
    go(a_plan(root, member="leak", weights=weights(root), allow_seen=True))
    for words, marked in (
        (["folds/base.*.onnx", "--held-out"], "last"),
        (["folds/leak.*.onnx", "--held-out"], "last+seen"),
        (["folds/base.fold0.onnx", "--in-sample"], "seen"),
    ):
        done = CliRunner().invoke(cli, ["predict", *words, "--on", "train", "-o", "table.parquet", "--device", "cpu"])
        assert done.exit_code == 0, done.output
        assert prediction_files.read_meta(root / "table.parquet")["selected"] == marked
        assert ("optimistic" in CliRunner().invoke(cli, ["score", "table.parquet"]).output) == (marked != "last")
