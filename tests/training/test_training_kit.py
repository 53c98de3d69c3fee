"""The training kit: steps in parts, out of memory, resume after kill -9, selection, tuning, features, augmentation, feeding."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from toolkit.base import user_functions
from toolkit.core import prediction_files
from toolkit.core.cards import Preprocess
from toolkit.errors import ModelError, TrainingError
from toolkit.models import networks
from toolkit.runtime.graphs import onnx_file
from toolkit.training import Fold, Plan, Samples, fit, join, limited, loader, normalise, setting, train
from toolkit.training.fold import batch_size, state_file, throughput
from toolkit.training.fold.features import precomputed
from toolkit.training.parts import augment, schedules, transfer
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


@pytest.fixture
def samples():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    pixels = rng.integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)
    return Samples(tuple(f"{i:03d}" for i in range(60)), pixels, labels)


@pytest.fixture
def fold(samples, tmp_path):
    return Fold(0, samples.rows(samples.ids), ("a", "b", "c"), "cpu", tmp_path / "fold0", seed=5)


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def prepare(pixels):
    return normalise(pixels, MEAN, STD)


def run(model, fold, *, epochs=3, batch=20, lr=0.05, loss=F.cross_entropy, feed=None, interval="step", **options):
    feed = feed or loader(fold.training, batch, seed=fold.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    if interval == "epoch":
        schedule = torch.optim.lr_scheduler.StepLR(optimiser, 1)
    else:
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=epochs * len(feed) + 1)
    said = {"prepare": prepare, "loss": loss, "optimiser": optimiser, "schedule": schedule, "interval": interval}
    return fit(model, feed, fold, epochs=epochs, **said, **options)


def same(a, b, **tolerance):
    for (name, one), two in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, msg=name, **(tolerance or {"rtol": 0, "atol": 0}))


# --- one step -------------------------------------------------------------------------------------------------------


class Narrow(nn.Module):
    """A network on a device that holds no more than `most` images at once."""

    def __init__(self, most, fails=0):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.most, self.fails, self.seen = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), most, fails, []

    def forward(self, images):
        self.seen.append(len(images))
        if len(images) > self.most or len(self.seen) == self.fails:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.inner(images)


def test_parts_of_a_batch_give_the_gradient_of_the_whole(fold):
    whole, parts = Narrow(1000), Narrow(1000)
    run(whole, fold)
    run(parts, fold, micro=7)
    same(whole, parts, rtol=1e-4, atol=1e-5)
    assert set(whole.seen) == {20}
    assert parts.seen[:3] == [7, 7, 6]


def test_out_of_memory_halves_the_parts_and_keeps_the_effective_batch(fold):
    whole, narrow = Narrow(1000), Narrow(6)
    run(whole, fold)
    run(narrow, fold)
    same(whole, narrow, rtol=1e-4, atol=1e-5)
    assert narrow.seen[:7] == [20, 10, 5, 5, 5, 5, 5]
    assert max(narrow.seen[3:]) == 5
    assert fold.outcome.report["micro_batch"] == 5
    assert fold.outcome.report["effective_batch"] == 20


def test_what_a_step_had_gathered_when_memory_ran_out_is_forgotten(fold):
    whole, failing = Narrow(1000), Narrow(1000, fails=4)  # in the second part of the second step
    run(whole, fold)
    run(failing, fold, micro=10)
    same(whole, failing, rtol=1e-4, atol=1e-5)
    assert failing.seen[:8] == [10, 10, 10, 10, 5, 5, 5, 5]


def test_not_even_one_image_is_a_sentence_and_other_errors_pass(fold):
    with pytest.raises(TrainingError, match="a single image does not fit") as caught:
        run(Narrow(0), fold)
    assert caught.value.code == "smaller-images"

    def broken(_logits, _labels):
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        run(Narrow(99), fold, loss=broken)


def test_the_largest_batch_is_found_by_trying():
    tried = []

    def step(size, most=37):
        tried.append(size)
        if size > most:
            raise RuntimeError("CUDA out of memory.")

    assert batch_size.largest(step, 256) == 32
    assert tried == [2, 4, 8, 16, 32, 64]
    assert batch_size.largest(step, 20) == 20
    with pytest.raises(TrainingError, match="does not fit"):
        batch_size.largest(partial(step, most=1), 256)
    assert not batch_size.out_of_memory(ValueError("out of memory"))
    assert batch_size.out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))


def test_the_gradient_is_clipped_to_its_norm(fold):
    norms = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            result = super().step(closure)
            norms.append(math.sqrt(sum(float((p.grad**2).sum()) for g in self.param_groups for p in g["params"])))
            return result

    model = small()
    optimiser = Spy(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)
    feed = loader(fold.training, 20)
    said = {"prepare": prepare, "loss": lambda z, y: 100 * F.cross_entropy(z, y), "optimiser": optimiser, "schedule": schedule}
    fit(model, feed, fold, epochs=1, clip=0.5, **said)
    assert max(norms) <= 0.5001
    assert min(norms) > 0.4


def test_a_schedule_by_epoch_and_one_that_watches_the_loss(fold):
    run(small(), fold, epochs=3, interval="epoch", lr=0.1)
    rates = [float(row["lr"]) for row in cells(fold.folder / "metrics.csv")]
    assert rates == pytest.approx([0.1, 0.01, 0.001])
    model = small()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule, interval, plateau = schedules.make("plateau", optimiser, epochs=9, steps_per_epoch=3, lr=0.1, patience=1)
    steady = lambda z, y: 0 * F.cross_entropy(z, y) + 1.0  # noqa: E731 - never better
    feed = loader(fold.training, 20)
    said = {"prepare": prepare, "loss": steady, "optimiser": optimiser, "schedule": schedule}
    fit(model, feed, fold, epochs=6, interval=interval, plateau=plateau, **said)
    rates = [float(row["lr"]) for row in cells(fold.folder / "metrics.csv")]
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] < 0.002


def test_bfloat16_runs_the_network_but_not_what_prepares_its_images(fold):
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(192, 3)

        def forward(self, images):
            out = self.inner(images.flatten(1))
            seen.append((images.dtype, out.dtype))
            return out

    def exact(pixels):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        return prepare(pixels)

    model = Spy()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimiser)
    said = {"loss": F.cross_entropy, "optimiser": optimiser, "schedule": schedule}
    fit(model, loader(fold.training, 20), fold, epochs=1, prepare=exact, arithmetic="bf16", **said)
    assert set(seen[-2:]) == {(torch.float32, torch.bfloat16)}  # before, the network was looked at


def cells(path):
    return list(csv.DictReader(path.read_text().splitlines()))


# --- resume ---------------------------------------------------------------------------------------------------------


class Stopped(Exception):  # noqa: N818 - stands for a kill
    pass


@pytest.mark.parametrize("after", [1, 2, 4])
@pytest.mark.parametrize("select", ["last", "best", "soup"])
def test_a_run_stopped_after_any_epoch_ends_as_an_uninterrupted_one(samples, tmp_path, after, select):
    rows, held_out = samples.rows(samples.ids[:40]), samples.rows(samples.ids[40:])

    def judge(model):
        with torch.no_grad():
            logits = model.eval()(prepare(torch.from_numpy(held_out.samples.pixels[held_out.places])))
        truth = torch.from_numpy(held_out.labels)
        return {"loss": float(F.cross_entropy(logits, truth)), "score": float((logits.argmax(1) == truth).float().mean())}

    def a_fold(name, **more):
        return Fold(0, rows, ("a", "b", "c"), "cpu", tmp_path / name, seed=5, key="k", judge=judge, **more)

    def stop(row, _model):
        if row["epoch"] == after + 1:
            raise Stopped

    def noisy(image):
        return (image + torch.randint(0, 9, image.shape, dtype=torch.uint8)).clamp(0, 255)

    def go(fold):
        feed = loader(fold.training, 16, seed=fold.seed, augment=noisy)
        return run(small(), fold, epochs=4 if after < 4 else 5, feed=feed, ema=0.7, select=select)

    whole = go(a_fold("whole"))
    with pytest.raises(Stopped):
        go(a_fold("killed", watch=stop))
    torch.manual_seed(99)  # another process starts from anywhere
    resumed = go(a_fold("killed"))
    same(whole, resumed)
    ours, theirs = (cells(tmp_path / name / "metrics.csv") for name in ("killed", "whole"))
    assert [(r["epoch"], r["loss"], r["lr"]) for r in ours] == [(r["epoch"], r["loss"], r["lr"]) for r in theirs]


def test_what_is_resumed_from_is_whole_plain_and_of_the_same_settings(fold, tmp_path):
    kept = replace(fold, key="one")
    run(small(), kept)
    path = kept.folder / state_file.FILE
    state = torch.load(path, weights_only=True)
    assert state["epoch"] == 3
    assert state_file.load(kept.folder, "other") is None
    assert state_file.load(kept.folder, "one")["steps"] == state["steps"] == 9
    good = path.read_bytes()
    for damaged in (good[:1000], good[:-1], *(flipped(good, place) for place in (10, len(good) // 2, len(good) - 5))):
        path.write_bytes(damaged)
        assert state_file.load(kept.folder, "one") is None
        assert not path.exists()
        assert path.with_name("resume.pt.damaged").read_bytes() == damaged
    path.write_bytes(good[:-24])  # as 0.1.0 wrote it
    assert state_file.load(kept.folder, "one")["steps"] == 9


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from tests.training import test_training_kit as kit
from pathlib import Path

def watch(fold, row, model):
    if fold.number == 1 and row["epoch"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)

kit.go(kit.a_plan(Path({root!r})), watch=watch)
"""


@dataclass(frozen=True)
class Config:
    member: str = "tiny"
    seed: int = 0
    seeds: int = 1
    epochs: int = 4
    select: str = "last"
    workers: int = setting(0, "Processes.", matters=False)


def a_plan(root, config=None, **more):
    competition, split = Competition.read(root), Split.read(root / "split.csv")
    said = {"architecture": {"model_name": "none"}, "preprocess": Preprocess((8, 8)), "mean": MEAN, "std": STD}
    return Plan("test", config or Config(), competition=competition, split=split, root=root, **said, **more)


def a_fold(config, fold):
    torch.manual_seed(config.seed)
    return run(small(), fold, epochs=config.epochs, batch=6, ema=0.5, select=config.select)


def go(plan, train_fold=a_fold, **options):
    return list(train(plan, train_fold, bar=lambda _: contextlib.nullcontext(lambda _done, _total: None), **options))


def test_a_run_killed_in_the_middle_of_a_fold_ends_as_an_uninterrupted_one(workspace, tmp_path, quick_processes):
    import shutil

    whole = a_plan(Path(shutil.copytree(workspace, tmp_path / "whole")))
    go(whole)
    script = KILLED.format(tests=str(Path(__file__).parents[2]), root=str(workspace))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], check=False, env=environment, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    plan = a_plan(workspace)
    assert plan.finished(0)
    assert not plan.finished(1)
    assert (plan.folder(1) / state_file.FILE).exists()
    epochs = []
    assert [d.resumed for d in go(plan, watch=lambda _fold, row, _model: epochs.append(row["epoch"]))] == [True, False]
    assert epochs == [3, 4]  # the third was not saved yet when the kill came
    assert join(plan) == join(whole)
    ours, theirs = (prediction_files.read_table(p.oof).predictions["label"] for p in (plan, whole))
    assert np.array_equal(ours.values, theirs.values)
    assert not list((workspace / "runs").rglob(state_file.FILE))


def test_fresh_forgets_the_epochs_and_other_speed_is_the_same_run(workspace):
    seen = []

    def stop(_fold, row, _model):
        seen.append(row["epoch"])
        if len(seen) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        go(a_plan(workspace), folds=[0], watch=stop)
    with contextlib.suppress(Stopped):
        go(a_plan(workspace), folds=[0], fresh=True, watch=lambda _f, row, _m: seen.append(row["epoch"]))
    assert seen == [1, 2, 3, 1, 2, 3, 4]
    assert [d.resumed for d in go(a_plan(workspace, Config(workers=2)), folds=[0])] == [True]


# --- selection and several models -------------------------------------------------------------------------------------


def test_choosing_the_epoch_on_held_out_rows_scores_noise_above_chance(tmp_path):
    scores = {"last": [], "best": []}
    for draw in range(8):
        rng = np.random.default_rng(draw)
        pixels, labels = rng.integers(0, 256, (60, 3, 8, 8), dtype=np.uint8), rng.permutation(np.arange(60) % 2)
        samples = Samples(tuple(map(str, range(60))), pixels, labels)
        images, truth = prepare(torch.from_numpy(pixels[40:])), torch.from_numpy(labels[40:])

        def judge(model, images=images, truth=truth):
            with torch.no_grad():
                logits = model.eval()(images)
            return {"loss": float(F.cross_entropy(logits, truth)), "score": float((logits.argmax(1) == truth).float().mean())}

        for select, found in scores.items():
            fold = Fold(0, samples.rows(samples.ids[:40]), ("a", "b", "c"), "cpu", tmp_path, seed=draw, judge=judge)
            found.append(judge(run(small(draw), fold, epochs=12, lr=0.2, select=select))["score"])
            assert fold.outcome.selected == select
    assert abs(np.mean(scores["last"]) - 0.5) < 0.08  # two standard errors of 160 coins
    assert np.mean(scores["best"]) > 0.56


def test_the_card_the_table_and_the_line_say_that_held_out_rows_chose(workspace, capsys):
    from click.testing import CliRunner

    from toolkit.cli import cli
    from toolkit.cli.recipes import follow

    for select, folds in (("last", (0,)), ("best", (0, 1))):
        plan = a_plan(workspace, Config(member=select, select=select, epochs=2))
        follow(plan, a_fold, folds=folds, device="cpu")
        lines = capsys.readouterr().out.splitlines()
        assert [("optimistic" in line) for line in lines] == ([False] if select == "last" else [True] * 3)
        card = onnx_file.read(plan.export(0)).card
        assert (card.selected, card.selected_on_heldout) == (select, select == "best")
        assert prediction_files.read_table(plan.folder(0) / "oof.parquet").meta["selected"] == select
    assert prediction_files.read_table(plan.oof).meta["selected"] == "best"
    scored = CliRunner().invoke(cli, ["score"])
    assert "optimistic: the rows it is scored on also chose the epochs (best)" in scored.output


def test_best_keeps_the_epoch_that_scored_best_and_patience_stops(samples, tmp_path):
    scores = iter([0.2, 0.9, 0.5, 0.4, 0.3, 0.2])
    weights = []

    def judge(model):
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"loss": 1.0, "score": next(scores)}

    fold = Fold(0, samples.rows(samples.ids), ("a", "b", "c"), "cpu", tmp_path, judge=judge)
    trained = run(small(), fold, epochs=6, select="best", patience=2)
    assert len(weights) == 4
    for name, value in trained.state_dict().items():
        assert torch.equal(value, weights[1][name])
    assert fold.outcome.selected == "best"
    assert [row["held_out_gain"] for row in cells(tmp_path / "metrics.csv")] == ["0.2", "0.9", "0.5", "0.4"]


def test_a_soup_takes_in_only_what_does_not_lower_the_score(samples, tmp_path):
    epochs, mixed = [], []

    def judge(model):
        flat = torch.cat([value.flatten() for value in model.state_dict().values()])
        if len(epochs) < 4:
            epochs.append(flat.clone())
            return {"loss": 1.0, "score": [0.5, 0.9, 0.8, 0.7][len(epochs) - 1]}
        mixed.append(flat.clone())
        return {"loss": 1.0, "score": [0.95, 0.1, 0.99][len(mixed) - 1]}

    fold = Fold(0, samples.rows(samples.ids), ("a", "b", "c"), "cpu", tmp_path, judge=judge)
    trained = run(small(), fold, epochs=4, select="soup")
    first, second, third, fourth = epochs[1], epochs[2], epochs[3], epochs[0]
    torch.testing.assert_close(mixed[0], (first + second) / 2)
    torch.testing.assert_close(mixed[1], (first + second + third) / 3)
    torch.testing.assert_close(mixed[2], (first + second + fourth) / 3)
    torch.testing.assert_close(torch.cat([v.flatten() for v in trained.state_dict().values()]), mixed[2])


def test_choosing_an_epoch_needs_rows_to_choose_by(fold):
    with pytest.raises(TrainingError, match="holds out no rows"):
        run(small(), replace(fold, number=None), select="best")
    with pytest.raises(TrainingError, match="unknown selection"):
        run(small(), fold, select="worst")


def test_three_epochs_or_seeds_of_a_fold_are_one_member(workspace):
    from toolkit.ensemble.unseen import out_of_fold
    from toolkit.inference.exports import read_exports, share

    best = a_plan(workspace, Config(member="best", select="top3"))
    seeds = a_plan(workspace, Config(member="seeds", seeds=2))
    for plan, count in ((best, 3), (seeds, 2)):
        go(plan, folds=[0])
        exports = read_exports([plan.export(0, number) for number in range(count)], plan.competition)
        assert len({export.digest for export in exports}) == count
        assert {export.card.selected for export in exports} == {"best" if plan is best else "last"}
        assert share(exports, "") == pytest.approx([1 / count] * count)
        again = out_of_fold(plan.competition, exports, plan.split)["label"]
        written = prediction_files.read_table(plan.folder(0) / "oof.parquet").predictions["label"]
        np.testing.assert_allclose(again.align(written.ids).values, written.values, atol=1e-4)
    single = a_plan(workspace, Config(member="single", seed=1))
    go(single, folds=[0])
    assert onnx_file.read(single.export(0)).digest == onnx_file.read(seeds.export(0, 1)).digest


def test_a_model_of_all_rows_sees_all_and_is_not_scored(workspace):
    given = []
    plan = a_plan(workspace)

    def spy(config, fold):
        given.append(fold)
        return a_fold(config, fold)

    (done,) = go(plan, spy, folds=[None])
    assert done.score is None
    assert done.fold is None
    assert len(given[0].training) == 24
    assert given[0].judge is None
    card = onnx_file.read(plan.export(None)).card
    assert (card.fold, card.score, card.title) == (None, None, "tiny.all")
    assert plan.export(None).name == "tiny.all.onnx"
    assert not (plan.folder(None) / "oof.parquet").exists()
    assert [d.resumed for d in go(plan, spy, folds=[None])] == [True]
    assert [d.fold for d in go(plan, spy, folds=[1, None])] == [1, None]


# --- networks and tuning --------------------------------------------------------------------------------------------------


def test_networks_come_from_timm_torchvision_and_the_users_file(tmp_path):
    (tmp_path / "net.py").write_text("from torch import nn\n\ndef build(num_classes):\n    return nn.Linear(4, num_classes)\n")
    made = networks.create({"model_name": f"{tmp_path / 'net.py'}:build", "num_classes": 7})
    assert made.out_features == 7
    assert networks.create({"model_name": "torchvision/squeezenet1_1", "num_classes": 5})(torch.zeros(1, 3, 64, 64)).shape == (
        1,
        5,
    )
    assert networks.create({"model_name": "test_resnet", "num_classes": 5})(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    for name, said in (("resnt18", "resnet18"), ("torchvision/resnt18", "resnet18"), ("nothere.py:f", "file.py:function")):
        with pytest.raises(ModelError) as caught:
            networks.create({"model_name": name, "num_classes": 2})
        assert said in caught.value.hint
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        user_functions.user_function(f"{tmp_path / 'bad.py'}:f")


def test_without_a_hub_the_message_says_what_to_do(monkeypatch):
    import timm

    def unreachable(*_names, **_said):
        raise OSError("We couldn't connect to 'https://huggingface.co' to load this file")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(ModelError, match="pretrained weights of resnet18 cannot be had") as caught:
        transfer.start({"model_name": "resnet18", "num_classes": 2}, pretrained=True)
    assert caught.value.code == "weights"


def test_weights_of_a_file_are_loaded_but_for_a_head_of_other_classes(tmp_path):
    said = {"model_name": "test_resnet", "num_classes": 5}
    torch.manual_seed(1)
    source = networks.create({**said, "num_classes": 9})
    torch.save(source.state_dict(), tmp_path / "w.pth")
    torch.manual_seed(2)
    loaded = transfer.start(said, pretrained=True, weights=str(tmp_path / "w.pth"))
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]) == (not name.startswith("fc.")), name
    torch.save({f"x{i}": v for i, v in enumerate(source.state_dict().values())}, tmp_path / "renamed.pth")
    renamed = transfer.start(said, pretrained=False, weights=str(tmp_path / "renamed.pth"))
    assert torch.equal(next(renamed.parameters()), next(source.parameters()))
    with pytest.raises(ModelError, match="does not fit the network"):
        transfer.start({**said, "model_name": "test_vit"}, pretrained=False, weights=str(tmp_path / "w.pth"))


def test_factored_heads_multiply_their_softmaxes():
    logits = torch.randn(4, 8)
    parts = [part.softmax(1) for part in logits.split([3, 2, 3], dim=1)]
    expected = torch.einsum("na,nb,nc->nabc", *parts).flatten(1)
    joint = networks.combined(logits, [3, 2, 3])
    torch.testing.assert_close(joint.softmax(1), expected)
    for ours, theirs in zip(networks.apart(joint, [3, 2, 3]), parts, strict=True):
        torch.testing.assert_close(ours.softmax(1), theirs)
    model = networks.create({"model_name": "test_resnet", "num_classes": 18, "factors": [3, 2, 3]})
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 18)
    assert networks.classifier(model)[1].out_features == 8
    with pytest.raises(ModelError, match="18 combinations"):
        networks.create({"model_name": "test_resnet", "num_classes": 17, "factors": [3, 2, 3]})


def test_a_head_learns_alone_and_its_backbone_does_not_move(samples, tmp_path):
    model = networks.create({"model_name": "test_resnet", "num_classes": 3})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fold = Fold(0, samples.rows(samples.ids), ("a", "b", "c"), "cpu", tmp_path)
    trained = run(model, fold, epochs=1, freeze=transfer.Tuning("head", model, 1))
    moved = {name for name, value in trained.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"fc.weight", "fc.bias"}  # BatchNorm's statistics among the others


def test_gradual_tuning_unfreezes_from_the_head_backwards():
    model = networks.create({"model_name": "test_resnet", "num_classes": 3})
    tuning = transfer.Tuning("gradual", model, 8)
    free = []
    for epoch in range(8):
        model.train()
        tuning(model, epoch)
        free.append({name for name, p in model.named_parameters() if p.requires_grad})
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.training == (f"{name}.weight" in free[-1])
    every = {name for name, _ in model.named_parameters()}
    assert free[0] == {"fc.weight", "fc.bias"}
    assert all(one <= two for one, two in pairwise(free))
    assert free[1] != free[2]
    assert free[4] == free[7] == every
    names = [name for name, _ in model.named_parameters()]
    for one in free:
        assert one == set(names[len(names) - len(one) :])  # always the last ones of the network


def test_the_summary_counts_what_is_trainable():
    text = transfer.summary({"model_name": "test_resnet", "num_classes": 3}, "head")
    model = networks.create({"model_name": "test_resnet", "num_classes": 3})
    every, head = sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.fc.parameters())
    assert text.splitlines()[-1].split()[-2:] == [f"{every:,}", f"{head:,}"]
    rows = {line.split()[0]: line.split()[-1] for line in text.splitlines()[1:-1]}
    assert rows.pop("fc") == f"{head:,}"
    assert set(rows.values()) == {"0"}


def test_features_train_the_same_head_and_run_the_backbone_once(tmp_path, workspace):
    passes = []

    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5))
            self.head = nn.Linear(8 * 36, 3)

        def forward(self, images):
            passes.append(len(images))
            return self.head(self.body(images))

    plan = a_plan(workspace)
    from toolkit.training import decode

    samples = decode(plan.competition, plan.preprocess, "label")
    rows = samples.rows(plan.split.training(0))
    fold = Fold(0, rows, ("a", "b", "c"), "cpu", tmp_path / "f", seed=3, cache=tmp_path / "cache")
    without = Counted().eval()
    run(without, fold, epochs=5, batch=4, freeze=transfer.Tuning("head", without, 5))
    passes.clear()
    model = Counted()
    head = transfer.Head(model, fold, prepare)
    assert sum(passes) == len(samples.ids) + 1  # each image of all folds once, and one to learn the shape
    layer = fit_head(head, epochs=5)
    cached = head.finish(layer)
    assert sum(passes) == len(samples.ids) + 1
    images = prepare(torch.from_numpy(samples.pixels[np.arange(24)]))
    with torch.no_grad():
        torch.testing.assert_close(cached(images), without.eval()(images), rtol=1e-4, atol=1e-5)
    passes.clear()
    transfer.Head(Counted(), replace(fold, number=1, training=samples.rows(plan.split.training(1))), prepare)
    assert sum(passes) == 1  # another fold finds them
    changed = Counted()
    with torch.no_grad():
        changed.body[0].bias += 1
    passes.clear()
    found = precomputed(changed, rows, fold, prepare)
    assert sum(passes) == len(samples.ids) + 1
    assert not np.allclose(found.samples.pixels[0], head.rows.samples.pixels[0])


def fit_head(head, epochs):
    feed = loader(head.rows, 4, seed=head.fold.seed)
    optimiser = torch.optim.AdamW(head.layer.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.05, total_steps=epochs * len(feed) + 1)
    said = {"loss": F.cross_entropy, "optimiser": optimiser, "schedule": schedule}
    return fit(head.layer, feed, head.fold, epochs=epochs, prepare=lambda features: features, **said)


# --- augmentation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in augment.PRESETS if name != "none"])
def test_every_preset_changes_images_and_keeps_their_kind(name):
    transform = augment.make(name, (32, 40))
    torch.manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 32, 40), dtype=torch.uint8)
    moved = [transform(image) for image in images]
    assert all(one.dtype == torch.uint8 and one.shape == (3, 32, 40) for one in moved)
    assert sum(not torch.equal(one, two) for one, two in zip(moved, images, strict=True)) == 6
    assert augment.PRESETS[name].source


def test_no_flip_means_no_mirror_and_erasing_blanks_a_rectangle():
    ramp = torch.arange(32, dtype=torch.uint8).mul(8).expand(3, 32, 32).contiguous()  # brighter to the right
    torch.manual_seed(0)
    mirrored = [
        bool(one[0, :, 0].float().mean() > one[0, :, -1].float().mean())
        for one in map(augment.make("light", (32, 32)), [ramp] * 40)
    ]
    assert 5 < sum(mirrored) < 35
    kept = map(augment.make("light", (32, 32), flip=False), [ramp] * 40)
    assert not any(one[0, :, 0].float().mean() > one[0, :, -1].float().mean() for one in kept)
    erase = augment.make("none", (32, 32), erase=1.0)
    white = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    assert all(0 < (erase(white) == 0).float().mean() < 0.5 for _ in range(5))
    assert augment.make("none", (32, 32)) is None


def test_mixing_gives_images_and_labels_the_same_shares():
    labels = torch.arange(8)
    images = labels.float().reshape(8, 1, 1, 1).expand(8, 3, 16, 16).contiguous()
    torch.manual_seed(0)
    for mixup, cutmix in ((0.4, 0.0), (0.0, 1.0), (0.4, 1.0)):
        mixed, shares = augment.mixer(mixup, cutmix, 8)(images, labels)
        torch.testing.assert_close(shares.sum(1), torch.ones(8))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), (shares * labels).sum(1), rtol=1e-3, atol=1e-3)
        assert (shares.max(1).values < 1).all()
    soft = torch.rand(8, 5)
    _, shares = augment.mixer(0.4, 0.0, 5)(images, soft)
    torch.testing.assert_close(shares.sum(), soft.sum())
    assert augment.mixer(0.0, 0.0, 5) is None
    with pytest.raises(TrainingError, match="from 0 up"):
        augment.mixer(-1.0, 0.0, 5)


def test_an_albumentations_compose_is_taken_and_follows_the_seed(tmp_path, samples):
    pytest.importorskip("albumentations")
    (tmp_path / "mine.py").write_text(
        "import albumentations as A\n\n\ndef transform():\n"
        "    return A.Compose([A.RandomBrightnessContrast(p=1.0), A.HorizontalFlip(p=0.5)])\n"
    )
    transform = augment.make(f"{tmp_path / 'mine.py'}:transform", (8, 8))
    rows = samples.rows(samples.ids)

    def draw(seed):
        return torch.cat([pixels for pixels, _ in loader(rows, 20, seed=seed, augment=transform)])

    one, two, other = draw(1), draw(1), draw(2)
    assert one.dtype == torch.uint8
    assert one.shape == (60, 3, 8, 8)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    import albumentations

    steady = albumentations.Compose([albumentations.HorizontalFlip(p=1.0)])
    image = torch.from_numpy(samples.pixels[0])
    assert torch.equal(augment.Albumentations(steady)(image), image.flip(2))


def test_what_is_no_augmentation_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="unknown augmentation 'hvy'") as caught:
        augment.make("hvy", (8, 8))
    assert "heavy" in caught.value.hint
    (tmp_path / "mine.py").write_text("def transform():\n    return 3\n")
    with pytest.raises(TrainingError, match="gives int, which is no transform"):
        augment.make(f"{tmp_path / 'mine.py'}:transform", (8, 8))


# --- feeding ------------------------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes only where a test lets it."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(throughput.time, "perf_counter", lambda: self.now)


class PerPixel:
    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def __call__(self, image):
        self.clock.now += image.numel() * self.seconds
        return image


class Shrink:
    def __call__(self, image):
        return image[:, ::2, ::2]


def test_a_slow_transform_is_found_and_a_fast_loader_is_left_alone(fold, monkeypatch):
    import time

    class Slow(PerPixel):
        def __call__(self, image):
            time.sleep(0.004)
            return super().__call__(image)

    from torchvision.transforms import v2

    slow = loader(fold.training, 20, augment=v2.Compose([Slow(Clock(monkeypatch), 0.004 / 192), Shrink()]))
    run(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), fold, epochs=1, feed=slow)
    report = fold.outcome.report["feeding"]
    assert report["transforms"] == {"Slow": 4.0, "Shrink": 0.0}
    assert report["cheaper"] == ("Shrink", "Slow")
    assert report["waiting"] > 0.3
    assert report["loader"] < 250  # 4 ms an image, and more where the machine is busy
    assert "--workers" in report["said"]
    assert "the order Shrink, Slow" in report["said"]
    assert throughput.Feeding(loader=1000, model=100, waiting=0.01).advice == "the loader keeps up: nothing to change"
    assert "--batch-size" in throughput.Feeding(loader=9000, model=100, waiting=0.4).advice


def test_the_cheaper_order_is_measured(monkeypatch):
    slow, images = PerPixel(Clock(monkeypatch), 1e-6), [torch.zeros(3, 32, 32, dtype=torch.uint8)] * 4
    costs, cheaper = throughput._costs([slow, Shrink()], images)
    assert costs == pytest.approx({"PerPixel": 3.072, "Shrink": 0.0})
    assert cheaper == ("Shrink", "PerPixel")
    assert throughput._costs([Shrink(), slow], images) == ({"Shrink": 0.0, "PerPixel": 0.768}, ())


@pytest.mark.parametrize(
    ("training", "held_out", "word"),
    [(0.05, 0.6, "overfitting"), (0.55, 0.6, "a fair fit"), (2.2, 2.25, "underfitting"), (0.001, 0.002, "a fair fit")],
)
def test_the_gap_between_training_and_held_out_rows_has_a_plain_verdict(training, held_out, word):
    said = throughput.verdict({"loss": training, "score": 0.9, "chance": math.log(10)}, {"loss": held_out, "score": 0.9})
    assert said.startswith(word)


# --- data ---------------------------------------------------------------------------------------------------------------------


def test_the_same_draws_whatever_the_number_of_workers(samples):
    def noisy(image):
        return torch.randint(0, 256, image.shape, dtype=torch.uint8)

    rows = samples.rows(samples.ids)
    here = [pixels for pixels, _ in loader(rows, 20, seed=1, augment=noisy)]
    before = torch.random.get_rng_state()
    loader(rows, 20, augment=noisy).dataset.__getitems__((3, [0, 1]))
    assert torch.equal(torch.random.get_rng_state(), before)
    there = [pixels for pixels, _ in loader(rows, 20, seed=1, augment=noisy, workers=2)]
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    feed = loader(rows, 20, seed=1, augment=noisy)
    first, second = ([pixels for pixels, _ in feed] for _ in range(2))
    assert not torch.equal(first[0], second[0])


def test_a_weighted_sampler_shows_every_class_equally_often():
    labels = np.array([0] * 900 + [1] * 90 + [2] * 10)
    rows = Samples(tuple(map(str, range(1000))), np.zeros((1000, 3, 1, 1), np.uint8), labels)
    drawn = torch.cat([y for _, y in loader(rows.rows(rows.ids), 100, seed=0, weighted=True)])
    assert all(250 < count < 420 for count in drawn.bincount().tolist())
    several = Samples(("a", "b"), np.zeros((2, 3, 1, 1), np.uint8), np.array([[True, False], [True, True]]))
    with pytest.raises(TrainingError, match="one class per row"):
        loader(several.rows(["a", "b"]), 2, weighted=True)


def test_imbalance_is_said_and_points_to_f1(workspace):
    from toolkit.workspace.split import imbalance

    (said,) = imbalance(np.array([0] * 50 + [1] * 10), ("cat", "dog"), "accuracy")
    assert "'cat' has 50 rows, 'dog' 10" in said
    assert "macro_f1" in said
    assert "macro_f1" not in imbalance(np.array([0] * 50 + [1] * 10), ("cat", "dog"), "macro_f1")[0]
    assert imbalance(np.array([0] * 50 + [1] * 11), ("cat", "dog"), "accuracy") == []
    assert "'dog' 0" in imbalance(np.array([0] * 50), ("cat", "dog"), "accuracy")[0]


def test_a_limited_split_keeps_the_shares_of_folds_and_classes():
    labels = tuple("ab"[i % 3 == 0] for i in range(300))
    split = Split(tuple(map(str, range(300))), labels, ("",) * 300, np.arange(300) % 5)
    some = limited(split, 60)
    assert len(some.ids) == 60
    assert [len(some.held_out(fold)) for fold in range(5)] == [12] * 5
    for fold in range(5):
        rows = [label for label, where in zip(some.labels, some.folds, strict=True) if where == fold]
        assert rows.count("b") == 4
    whole = dict(zip(split.ids, split.folds.tolist(), strict=True))
    assert all(whole[name] == where for name, where in zip(some.ids, some.folds.tolist(), strict=True))
    assert limited(split, None) is split
