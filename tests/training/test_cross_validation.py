"""Training: the loop against a hand-written one, averaged weights, folds that cannot leak, resume, refusals, the digits."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import signal
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests import conftest
from toolkit.core import prediction_files
from toolkit.core.cards import Preprocess
from toolkit.errors import AlignmentError, CompetitionError, DeviceError, TrainingError
from toolkit.runtime.graphs import onnx_file
from toolkit.setup import digits_data
from toolkit.training import Fold, Plan, Samples, choose_device, decode, fit, join, loader, logits, normalise, train
from toolkit.training.fold.fit import precision
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


@pytest.fixture
def samples():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 3, 8, 8), dtype=np.uint8)
    return Samples(tuple(f"{i:03d}" for i in range(50)), pixels, rng.integers(0, 3, 50))


@pytest.fixture
def fold(samples, tmp_path):
    return Fold(0, samples.rows(samples.ids), ("a", "b", "c"), "cpu", tmp_path / "runs" / "m" / "fold0")


def cells(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def prepare(pixels):
    return normalise(pixels, MEAN, STD)


def run_fit(model, fold, *, epochs=3, loss=F.cross_entropy, lr=0.05, **options):
    feed = loader(fold.training, 16)
    optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(feed))
    return fit(model, feed, fold, epochs=epochs, prepare=prepare, loss=loss, optimiser=optimiser, schedule=schedule, **options)


def by_hand(model, fold, *, epochs=3, after_step=lambda _: None):
    """The same training spelt out in plain torch."""
    model = model.to(memory_format=torch.channels_last).train()
    feed = loader(fold.training, 16)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(feed))
    for _ in range(epochs):
        for pixels, labels in feed:
            optimiser.zero_grad()
            images = (pixels.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
            F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels).backward()
            optimiser.step()
            schedule.step()
            after_step(model)
    return model.eval()


def test_fit_equals_a_hand_written_loop(fold):
    ours, theirs = small(), small()
    torch.manual_seed(1)
    trained = run_fit(ours, fold)
    torch.manual_seed(1)
    expected = by_hand(theirs, fold)
    assert not trained.training
    for (name, a), b in zip(trained.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_averaged_weights_and_batchnorm_statistics_follow_the_formula(fold):
    average, steps = {}, 0

    def follow(model):
        nonlocal steps
        steps += 1
        decay = 0.0 if steps <= 1 else min(0.8, 1 - (1 + steps - 1) ** (-2 / 3))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                average[name] = decay * average.get(name, 0 * value) + (1 - decay) * value.clone()

    torch.manual_seed(1)
    trained = run_fit(small(), fold, ema=0.8)
    torch.manual_seed(1)
    last = by_hand(small(), fold, after_step=follow)
    assert "1.running_mean" in average
    for name, value in average.items():
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert not torch.allclose(last[4].weight, trained[4].weight, atol=1e-3)


def test_fit_is_quiet_and_leaves_metrics_only(fold, capfd, caplog, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = []
    run_fit(small(), replace(fold, progress=lambda done, total: seen.append((done, total))))
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if "lightning" in record.name]
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()] == ["runs/m/fold0/metrics.csv"]
    rows = cells(fold.folder / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert seen[0] == (16, 9 * 16)
    assert seen[-1] == (9 * 16, 9 * 16)


def test_batches_cuts_each_epoch_short(fold):
    steps = []
    run_fit(small(), fold, epochs=2, loss=lambda z, y: steps.append(len(y)) or F.cross_entropy(z, y), batches=2)
    assert steps == [16, 16, 16, 16]


def test_a_loss_that_is_no_number_stops_with_a_hint(fold):
    with pytest.raises(TrainingError, match="fold 0: the loss is nan in epoch 1") as caught:
        run_fit(small(), fold, loss=lambda z, y: F.cross_entropy(z, y) * float("nan"))
    assert caught.value.code == "lower-rate"


def test_ctrl_c_is_a_keyboard_interrupt_and_the_next_one_is_heard(fold):
    def interrupt(*_):
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_fit(small(), fold, loss=interrupt)
    assert signal.getsignal(signal.SIGINT) is before


def test_logits_are_those_of_torch_in_row_order(samples):
    model = small().eval()
    rows = samples.rows(["007", "003", "041"])
    images = torch.stack([torch.from_numpy(samples.pixels[i]) for i in (7, 3, 41)]).float() / 255
    with torch.no_grad():
        expected = model((images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1))
    model.train()  # logits must put it back in eval mode
    np.testing.assert_allclose(logits(model, rows, MEAN, STD, device="cpu", batch=2), expected.numpy(), atol=1e-5)


def test_loader_gives_full_shuffled_batches_in_the_order_of_the_seed(samples):
    def order(seed):
        torch.manual_seed(seed)
        return [labels.tolist() for _, labels in loader(rows, 16)]

    rows = replace(samples, labels=np.arange(50)).rows(samples.ids)
    first = order(3)
    assert [len(batch) for batch in first] == [16, 16, 16]
    assert len({i for batch in first for i in batch}) == 48
    assert order(3) == first != order(4)
    ((pixels, labels),) = loader(rows, 500)
    assert pixels.dtype == torch.uint8
    assert len(labels) == 50
    assert all(np.array_equal(pixels[i].numpy(), samples.pixels[labels[i]]) for i in range(50))
    one, label = rows[5]
    assert np.array_equal(one, samples.pixels[5])
    assert label == 5


def test_rows_of_an_unknown_id_are_refused(samples):
    with pytest.raises(AlignmentError, match="'nobody'"):
        samples.rows(["001", "nobody"])


def test_decode_joins_pixels_and_labels_by_id(workspace):
    from PIL import Image

    competition = Competition.read(workspace)
    found = decode(competition, Preprocess((40, 52)), "label")
    truth = {row["id"]: row["label"] for row in cells(workspace / "train.csv")}
    assert list(found.ids) == list(truth)
    for i in (0, 7, 23):
        with Image.open(workspace / "train" / f"{found.ids[i]}.png") as image:
            assert np.array_equal(found.pixels[i].transpose(1, 2, 0), np.asarray(image))
        assert conftest.CLASSES[found.labels[i]] == truth[found.ids[i]]


def test_several_images_per_id_are_refused(workspace):
    competition = Competition.read(workspace)
    images = replace(competition.train, pattern="{id}*.png")
    (workspace / "train" / "0000b.png").write_bytes((workspace / "train" / "0000.png").read_bytes())
    with pytest.raises(TrainingError, match="25 training images for 24 ids"):
        decode(replace(competition, train=images, per_id="mean"), Preprocess((8, 8)), "label")


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    with pytest.raises(DeviceError, match="CUDA was asked for"):
        choose_device("cuda")
    with pytest.raises(DeviceError, match="tpu"):
        choose_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cuda"
    assert precision("cpu") == "32-true"
    for capability, expected in (((7, 5), "16-mixed"), ((8, 0), "bf16-mixed"), ((9, 0), "bf16-mixed")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda found=capability: found)
        assert precision("cuda") == expected


# --- cross-validation -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    member: str = "tiny"
    seed: int = 0
    lr: float = 0.01


def a_plan(root, config=None):
    competition = Competition.read(root)
    return Plan(
        recipe="test",
        config=config or Config(),
        architecture={"model_name": "none"},
        preprocess=Preprocess((8, 8)),
        mean=MEAN,
        std=STD,
        competition=competition,
        split=Split.read(root / "split.csv"),
        root=root,
    )


def a_fold(config, fold):
    return run_fit(nn.Sequential(nn.Flatten(), nn.Linear(192, len(fold.classes))), fold, epochs=2, lr=config.lr)


def no_bar(_):
    return contextlib.nullcontext(lambda _done, _total: None)


def go(plan, train_fold=a_fold, **options):
    return list(train(plan, train_fold, bar=no_bar, **options))


def test_a_fold_trains_on_exactly_the_rows_it_does_not_hold_out(workspace):
    given = []
    plan = a_plan(workspace)
    done = go(plan, lambda config, fold: given.append(fold) or a_fold(config, fold))
    for fold, one in enumerate(given):
        ids = {one.training.samples.ids[i] for i in one.training.places}
        assert ids == set(plan.split.training(fold))
        assert not ids & set(plan.split.held_out(fold))
    assert [d.fold for d in done] == [0, 1]
    assert not any(d.resumed for d in done)


def test_a_killed_run_resumes_and_ends_as_an_uninterrupted_one(workspace, tmp_path):
    import shutil

    shutil.copytree(workspace, tmp_path / "whole")
    whole = a_plan(tmp_path / "whole")
    go(whole)
    score = join(whole)

    def killed(config, fold):
        if fold.number == 1:
            raise KeyboardInterrupt
        return a_fold(config, fold)

    plan = a_plan(workspace)
    with pytest.raises(KeyboardInterrupt):
        go(plan, killed)
    assert join(plan) is None
    assert not plan.oof.exists()
    stamp = plan.export(0).stat().st_mtime_ns
    assert [d.resumed for d in go(plan)] == [True, False]
    assert plan.export(0).stat().st_mtime_ns == stamp
    assert join(plan) == score
    ours, theirs = prediction_files.read_table(plan.oof), prediction_files.read_table(whole.oof)
    assert np.array_equal(ours.predictions["label"].values, theirs.predictions["label"].values)
    assert dict(ours.meta) == dict(theirs.meta)
    for fold in range(2):
        assert onnx_file.read(plan.export(fold)).digest == onnx_file.read(whole.export(fold)).digest


def test_what_is_written_says_what_it_is(workspace):
    from sklearn.metrics import accuracy_score

    plan = a_plan(workspace)
    done = go(plan)
    score = join(plan)
    table = prediction_files.read_table(plan.oof)
    predictions = table.predictions["label"]
    truth = {row["id"]: row["label"] for row in cells(workspace / "train.csv")}
    assert set(predictions.ids) == set(truth)
    labels = [predictions.classes[i] for i in predictions.decided]
    assert score == accuracy_score([truth[i] for i in predictions.ids], labels) == table.meta["score"]
    assert table.meta["folds"] == {str(d.fold): d.score for d in done}
    card = onnx_file.read(plan.export(1)).card
    assert (card.member, card.fold, card.score, card.split) == ("tiny", 1, done[1].score, plan.split.digest)
    about = json.loads((plan.folder(1) / "config.json").read_text())
    assert about["settings"]["config.lr"] == 0.01


@pytest.mark.parametrize("lost", ["runs/tiny/fold1/oof.parquet", "runs/tiny/fold1/model.safetensors", "folds/tiny.fold1.onnx"])
def test_a_fold_with_a_file_missing_is_trained_again(workspace, lost):
    plan = a_plan(workspace)
    go(plan)
    (workspace / lost).unlink()
    assert [d.resumed for d in go(plan)] == [True, False]
    assert (workspace / lost).exists()


def test_changed_settings_and_splits_are_refused_by_name(workspace):
    plan = a_plan(workspace)
    go(plan, folds=[0])
    with pytest.raises(TrainingError, match=r"lr was 0\.01, is 0\.02") as caught:
        go(a_plan(workspace, Config(lr=0.02)), folds=[1])
    assert caught.value.code in ("train-again", "other-settings")
    flipped = replace(plan, split=replace(plan.split, folds=1 - plan.split.folds))
    with pytest.raises(TrainingError, match="split was"):
        go(flipped)
    assert [d.resumed for d in go(a_plan(workspace, Config(lr=0.02)), folds=[0], fresh=True)] == [False]
    assert go(a_plan(workspace, Config(member="other", lr=0.03)), folds=[1])[0].fold == 1


def test_training_a_fold_again_takes_the_joined_table_away_first(workspace):
    plan = a_plan(workspace)
    go(plan)
    join(plan)

    def fails(config, fold):
        raise TrainingError("no")

    with pytest.raises(TrainingError, match="no"):
        go(plan, fails, folds=[1], fresh=True)
    assert not plan.oof.exists()
    assert not plan.export(1).exists()
    assert plan.finished(0)


def test_a_fold_that_the_split_lacks_is_refused(workspace):
    with pytest.raises(TrainingError, match="no fold '2'") as caught:
        go(a_plan(workspace), folds=[2])
    assert caught.value.hint == "Its folds are 0 to 1."


# --- the digits -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits") / "new" / "folder"
    digits_data.make_workspace(root)
    return root


def test_the_digits_are_all_there_once_and_the_truth_is_kept_aside(made):
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    competition = Competition.read(made)
    found = competition.images("train") + competition.images("test")
    assert (len(competition.images("train")), len(competition.images("test"))) == (1437, 360)
    assert sorted(int(name) for name, _ in found) == list(range(1797))
    assert all(len(name) == 4 for name, _ in found)
    for name, path in found[::97]:
        with Image.open(path) as image:
            assert np.array_equal(np.rint(np.asarray(image, dtype=float) * 16 / 255), bunch.images[int(name)])
    labels = {r["id"]: r["label"] for n in ("data/train.csv", "truth.csv") for r in cells(made / n)}
    assert all(labels[f"{i:04d}"] == str(digit) for i, digit in enumerate(bunch.target))
    counts = np.bincount([int(r["label"]) for r in cells(made / "truth.csv")])
    assert set(counts) <= {35, 36, 37}
    assert sorted(p.name for p in made.iterdir()) == ["competition.toml", "data", "sample_submission.csv", "truth.csv"]


def test_an_existing_workspace_stays_and_a_foreign_folder_is_refused(made, tmp_path):
    stamps = {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    split = digits_data.make_split(digits_data.make_workspace(made))
    assert (split.count, len(split.ids)) == (5, 1437)
    assert digits_data.make_split(digits_data.make_workspace(made)).digest == split.digest
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items() if p.is_file())
    (tmp_path / "train.csv").write_text("id,label\n1,cat\n")
    with pytest.raises(CompetitionError, match=r"'train\.csv'"):
        digits_data.make_workspace(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["train.csv"]


def test_a_kill_while_the_digits_are_made_leaves_a_folder_that_can_be_used(tmp_path, monkeypatch):
    (tmp_path / ".making-0123").mkdir()

    write_png = digits_data._write_png

    def full(path, pixels):
        if path.name > "0005.png":
            raise OSError(28, "No space left on device")
        write_png(path, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(digits_data, "_write_png", full)
        with pytest.raises(OSError, match="No space"):
            digits_data.make_workspace(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".making-0123"]
    assert digits_data.make_workspace(tmp_path).name == "digits"


def test_ctrl_c_while_a_state_is_written_is_an_interrupt(tmp_path, monkeypatch):
    from toolkit.training.fold import state_file

    class Torn(io.BytesIO):
        count = 0

        def write(self, data):
            self.count += 1
            if self.count == 3:
                raise KeyboardInterrupt
            return super().write(data)

    with pytest.raises(RuntimeError, match="unexpected pos"):  # what torch makes of it
        torch.save({"weights": torch.zeros(1000)}, Torn())
    monkeypatch.setattr(state_file.io, "BytesIO", Torn)
    with pytest.raises(KeyboardInterrupt):
        state_file.save(tmp_path, "key", {"weights": torch.zeros(1000)})


# --- a fold is finished or said not to be -----------------------------------------------------------------------------


def test_killed_after_its_last_epoch_a_fold_has_its_metrics_and_the_table_is_joined(workspace):
    """Between the state of the last epoch and the export: what a killed run left is removed, no epoch is left to write it."""
    plan = a_plan(workspace)

    def dies(config, fold):
        a_fold(config, fold)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(plan, dies)
    before = cells(plan.folder(0) / "metrics.csv")
    assert [done.resumed for done in go(plan)] == [False, False]
    assert cells(plan.folder(0) / "metrics.csv") == before
    assert join(plan) is not None
    assert [done.resumed for done in go(plan)] == [True, True]


def test_a_fold_that_lacks_a_file_when_it_is_over_is_an_error(workspace):
    plan = a_plan(workspace)

    def forgets(config, fold):
        return nn.Sequential(nn.Flatten(), nn.Linear(192, len(fold.classes))).eval()  # a loop of its own, without metrics

    with pytest.raises(TrainingError, match=r"fold 0 of 'tiny' was trained, but .*metrics\.csv' is not there"):
        go(plan, lambda config, fold: fold.outcome.report.update(processes=1) or forgets(config, fold))


def test_a_finished_fold_that_is_trained_again_is_named(workspace):
    plan = a_plan(workspace)
    go(plan)
    (plan.folder(1) / "metrics.csv").unlink()
    said = []
    assert [done.resumed for done in go(plan, say=said.append)] == [True, False]
    assert any("fold 1 is trained again: 'metrics.csv' of it is gone" in text for text in said)


def test_a_full_disk_while_a_state_is_written_is_a_sentence(tmp_path, monkeypatch):
    """torch closes the archive that it cannot write, and says what it says of any failure."""
    import errno

    from toolkit.errors import StoreError
    from toolkit.training.fold import state_file

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(path, fill):
        with state_file.files.explained(path):
            fill(Full())

    monkeypatch.setattr(state_file.files, "write", full)
    with pytest.raises(StoreError, match="No space left") as caught:
        state_file.save(tmp_path, "key", {"weights": torch.zeros(1000)})
    assert "finished work is kept" in caught.value.hint


def test_a_state_whose_digest_was_cut_off_or_overwritten_is_not_gone_on_from(tmp_path):
    from toolkit.training.fold import state_file

    path = state_file.save(tmp_path, "key", {"weights": torch.arange(100.0)}) or tmp_path / state_file.FILE
    whole = path.read_bytes()
    place = whole.index(torch.arange(100.0).numpy().tobytes()) + 40
    path.write_bytes(whole[:place] + b"\1" + whole[place + 1 : -24] + b"9" * 24)  # a weight, and the mark with it
    assert state_file.load(tmp_path, "key") is None
    path.write_bytes(whole[:-24])  # of before: no digest
    assert state_file.load(tmp_path, "key")["weights"][5] == 5
