"""Tracking: what TensorBoard and W&B hold after a run, read back with their own readers; pictures against the numbers."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.training.test_pseudo_labels import MEAN, STD
from tests.training.test_pseudo_labels import a_plan as plain_plan
from tests.training.test_pseudo_labels import go as run
from toolkit.errors import TrainingError
from toolkit.training import fit, loader, normalise
from toolkit.training.fold import state_file
from toolkit.training.loggers import LOGGERS, Run, as_fed, confusion, matrix, start


def a_plan(root, logger="tensorboard"):
    return replace(plain_plan(root, member="tiny"), logger=logger)


def a_fold(config, fold, epochs=3):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, len(fold.classes)))
    feed = loader(fold.training, 4, seed=fold.seed)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    return fit(
        model,
        feed,
        fold,
        epochs=epochs,
        prepare=lambda pixels: normalise(pixels, MEAN, STD),
        loss=F.cross_entropy,
        optimiser=optimiser,
        schedule=torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * len(feed)),
    )


def go(plan, train_fold=a_fold, **options):
    return run(plan, train_fold, **options)


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_a_disk_that_takes_no_events_is_an_error_of_the_run_and_no_traceback_of_a_thread(tmp_path, python):
    code = """
import builtins, errno, io, sys
from pathlib import Path
from toolkit.training.loggers import Run, start
tracker = start("tensorboard", Run(Path(sys.argv[1]), "c", "m", 0, {}, ""))
real = io.open
def full(path, *rest, **more):
    if "tfevents" in str(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    return real(path, *rest, **more)
io.open = full
try:
    tracker.scalars(1, {"loss": 1.0})
except OSError as error:
    print("said", error.errno == errno.ENOSPC)
"""
    done = subprocess.run([python, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert done.stdout == "said True\n", done.stderr
    assert "Traceback" not in done.stderr


def picture(events, tag):
    import io

    from PIL import Image

    (event,) = events.Images(tag)
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


def test_a_run_can_be_watched_in_tensorboard(workspace):
    import csv

    plan = a_plan(workspace)
    go(plan, folds=[1])
    folder = plan.folder(1)
    events = read(folder)
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert {"loss", "lr", "images/s"} <= set(events.Tags()["scalars"])
    for tag in ("loss", "lr"):
        found = events.Scalars(tag)
        assert [event.step for event in found] == [1, 2, 3]
        np.testing.assert_allclose([event.value for event in found], [float(row[tag]) for row in rows], rtol=1e-5)
    assert set(events.Tags()["images"]) == {"images as fed", "confusion"}
    assert picture(events, "images as fed").shape == (16, 16, 3)  # a batch of four, two by two
    assert events.Tags()["tensors"] == ["settings/text_summary"]
    assert plan.export(1).exists()


def test_the_confusion_picture_is_that_of_the_held_out_rows(workspace):
    from toolkit.core import prediction_files

    plan = a_plan(workspace)
    go(plan, folds=[0])
    predicted = prediction_files.read_table(plan.folder(0) / "oof.parquet").predictions["label"]
    truth = plan.competition.truth()["label"].align(predicted.ids)
    expected = matrix(confusion_matrix(truth.labels, predicted.values.argmax(1), labels=range(3)), truth.classes)
    np.testing.assert_array_equal(picture(read(plan.folder(0)), "confusion"), expected)


def test_none_leaves_metrics_only(workspace):
    plan = a_plan(workspace, "none")
    go(plan, folds=[0])
    assert not [path.name for path in plan.folder(0).iterdir() if "tfevents" in path.name]
    assert (plan.folder(0) / "metrics.csv").exists()


def test_a_run_that_is_gone_on_from_keeps_its_curve_and_a_fresh_one_starts_anew(workspace):
    plan = a_plan(workspace)

    def killed(config, fold):
        seen = []

        def watch(row, model):
            fold.watch(row, model)
            seen.append(row)
            if len(seen) == 2:
                raise KeyboardInterrupt

        return a_fold(config, replace(fold, watch=watch))

    with pytest.raises(KeyboardInterrupt):
        go(plan, killed, folds=[0])
    assert (plan.folder(0) / state_file.FILE).exists()  # of epoch 1: the kill came before that of epoch 2
    go(plan, folds=[0])
    assert [event.step for event in read(plan.folder(0)).Scalars("loss")] == [1, 2, 2, 3]
    go(plan, folds=[0], fresh=True)
    assert [event.step for event in read(plan.folder(0)).Scalars("loss")] == [1, 2, 3]


def test_a_tracker_is_closed_when_training_fails(workspace, monkeypatch):
    closed = []

    class Spy:
        def __init__(self, run):
            self.run = run

        def close(self):
            closed.append(self.run.name)

    monkeypatch.setitem(LOGGERS, "none", Spy)

    def fails(config, fold):
        raise TrainingError("no")

    with pytest.raises(TrainingError, match="no"):
        go(a_plan(workspace, "none"), fails, folds=[1])
    assert closed == ["tiny.fold1"]


def test_images_as_fed_are_the_batch_side_by_side():
    batch = torch.zeros(5, 3, 4, 6)
    for i in range(5):
        batch[i] = i - 2
    grid = as_fed(batch)
    assert grid.shape == (8, 18, 3)  # two rows of three
    assert grid.dtype == np.uint8
    for i in range(5):
        top, left = 4 * (i // 3), 6 * (i % 3)
        assert (grid[top : top + 4, left : left + 6] == round(i * 255 / 4)).all()
    assert (grid[4:, 12:] == 0).all()
    coloured = torch.zeros(1, 3, 2, 2)
    coloured[0, 1] = 1
    assert as_fed(coloured)[0, 0].tolist() == [0, 255, 0]
    assert as_fed(torch.rand(40, 3, 4, 4)).shape == (16, 16, 3)
    assert as_fed(torch.ones(1, 3, 2, 2)).shape == (2, 2, 3)


def test_confusion_counts_are_scikit_learns():
    rng = np.random.default_rng(0)
    truth, decided = rng.integers(0, 4, (2, 300))
    np.testing.assert_array_equal(confusion(truth, decided, "abcd"), confusion_matrix(truth, decided))
    assert confusion(np.array([0]), np.array([2]), "abcd").shape == (4, 4)  # also for classes that never come
    truth, decided = rng.random((2, 50, 3)) < 0.4
    tables = multilabel_confusion_matrix(truth, decided)
    np.testing.assert_array_equal(confusion(truth, decided, "abc"), [[t.trace(), t.sum() - t.trace()] for t in tables])


@pytest.mark.parametrize("classes", [2, 24, 25, 1000])
def test_the_matrix_is_dark_where_the_counts_are(classes):
    counts = np.diag(np.full(classes, 5))
    counts[0, 1] = 5
    image = matrix(counts, [f"class {i}" for i in range(classes)]).astype(int)
    named = classes <= 24
    assert image.shape[0] - 20 * named == (32 if named else max(2, 640 // classes)) * classes
    cell = 32 if named else max(2, 640 // classes)
    left = image.shape[1] - cell * classes
    corner = image[20 * named :, left:][::cell, ::cell].sum(axis=2)  # the first pixel of every cell
    assert corner[1, 1] < corner[0, 0] == corner[0, 1] < corner[1, 0] == 3 * 255
    assert (np.diag(corner)[1:] == corner[1, 1]).all()


def test_an_unknown_logger_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="unknown logger 'mlflow'") as caught:
        start("mlflow", Run(tmp_path, "c", "m", 0, {}))
    assert "tensorboard, wandb, none" in caught.value.hint


def test_wandb_works_without_network_and_account(workspace, monkeypatch, tmp_path, capfd):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    plan = a_plan(workspace, "wandb")
    go(plan, folds=[0])
    (kept,) = (plan.folder(0) / "wandb").glob("offline-run-*/run-*.wandb")
    rows = (plan.folder(0) / "metrics.csv").read_text().splitlines()
    losses = [row.split(",")[1] for row in rows[1:]]
    assert len(losses) == 3
    until = time.monotonic() + 20
    while not all(said.encode() in kept.read_bytes() for said in [*losses, plan.split.digest]):  # values are JSON texts
        assert time.monotonic() < until  # W&B's own process writes, a moment later
        time.sleep(0.05)
    assert len(list(kept.parent.rglob("*.png"))) == 2
    assert "wandb" not in "".join(capfd.readouterr()).lower()


def test_a_missing_wandb_says_how_to_get_it(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrainingError, match="needs the package wandb") as caught:
        start("wandb", Run(tmp_path, "c", "m", 0, {}))
    assert "pip install wandb" in caught.value.hint
