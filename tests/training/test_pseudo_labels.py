"""Pseudo-labels and soft labels: the targets by their formula, and that no fold learns anything of the labels that score it."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.conftest import CLASSES, draw
from toolkit.core import prediction_files
from toolkit.core.cards import Preprocess
from toolkit.core.predictions import Predictions
from toolkit.ensemble.unseen import out_of_fold
from toolkit.errors import AlignmentError, ModelError, TrainingError
from toolkit.runtime.graphs import onnx_file
from toolkit.training import Plan, decode, fit, join, loader, normalise, train
from toolkit.training.pseudo_labels import SelfTraining, leaks, taught
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


@dataclass(frozen=True)
class Config(SelfTraining):
    member: str = "student"
    seed: int = 0


def a_plan(root, **config):
    return Plan(
        recipe="test",
        config=Config(**config),
        architecture={"model_name": "none"},
        preprocess=Preprocess((8, 8)),
        mean=MEAN,
        std=STD,
        competition=Competition.read(root),
        split=Split.read(root / "split.csv"),
        root=root,
    )


def a_fold(config, fold):
    torch.manual_seed(fold.seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, len(fold.classes)))
    feed = loader(fold.training, 4, seed=fold.seed)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 6 * len(feed))
    prepare = lambda pixels: normalise(pixels, MEAN, STD)  # noqa: E731
    options = {"epochs": 6, "prepare": prepare, "loss": F.cross_entropy, "optimiser": optimiser, "schedule": schedule}
    return fit(model, feed, fold, **options)


def go(plan, train_fold=a_fold, **options):
    return list(train(plan, train_fold, bar=lambda _: contextlib.nullcontext(lambda _done, _total: None), **options))


def flip_held_out_labels(root, fold):
    """Other labels for the rows that score a fold; everything else stays, the split's folds included."""
    split = Split.read(root / "split.csv")
    other = dict(zip(CLASSES, (*CLASSES[1:], CLASSES[0]), strict=True))
    held_out = set(split.held_out(fold))
    for name in ("train.csv", "split.csv"):
        rows = list(csv.DictReader((root / name).read_text().splitlines()))
        for row in rows:
            row["label"] = other[row["label"]] if row["id"] in held_out else row["label"]
        with (root / name).open("w") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A workspace with a trained teacher, and one whose only difference is the labels that score fold 0."""
    from tests.conftest import make_workspace

    made = []
    for flipped in (False, True):
        root = make_workspace(tmp_path_factory.mktemp("pseudo") / "work")
        rng = np.random.default_rng(3)
        (root / "more").mkdir()
        for i in range(9):
            draw(rng, i % 3).save(root / "more" / f"{i}.png")
        if flipped:
            flip_held_out_labels(root, 0)
        plan = a_plan(root, member="teacher")
        go(plan)
        join(plan)
        made.append(root)
    return made


@pytest.fixture
def taught_root(roots, tmp_path):
    return shutil.copytree(roots[0], tmp_path / "copy")


def rows_of(plan, fold):
    samples = decode(plan.competition, plan.preprocess, plan.target.name)
    return samples.rows(plan.split.training(fold))


def targets(root, fold, **config):
    plan = a_plan(root, **config)
    rows, report = taught(plan, fold, rows_of(plan, fold), "cpu")
    return rows, report


@pytest.mark.parametrize(
    "asked", [{"soft_labels": "teacher", "soft_weight": 0.5}, {"pseudo": "more", "teacher": "teacher", "floor": 0}]
)
def test_no_target_of_a_fold_depends_on_the_labels_that_score_it(roots, asked):
    """Other labels on fold 0's held-out rows, all models trained anew: fold 0's targets are the same to the bit."""
    first, second = (targets(root, 0, **asked)[0] for root in roots)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert len(np.unique(first.labels)) > 4  # soft indeed
    elsewhere = [targets(root, 1, **asked)[0].labels for root in roots]
    assert not np.array_equal(*elsewhere)  # fold 1 trains on those rows, so that they must show there


def test_out_of_fold_soft_labels_do_depend_on_them_and_say_so(roots):
    asked = {"soft_labels": "oof/teacher.parquet", "soft_weight": 0.5}
    first, second = (targets(root, 0, **asked)[0].labels for root in roots)
    assert np.abs(first - second).max() > 0.01
    plan = a_plan(roots[0], **asked)
    assert "scores are optimistic" in leaks(plan)
    assert leaks(a_plan(roots[0], soft_labels="teacher")) == leaks(a_plan(roots[0])) == ""


def test_scores_from_out_of_fold_soft_labels_are_marked(taught_root):
    plan = a_plan(taught_root, soft_labels="oof/teacher.parquet", member="told")
    assert [done.selected for done in go(plan)] == ["soft-oof"] * 2
    join(plan)
    card = onnx_file.read(plan.export(0)).card
    assert (card.selected, card.selected_on_heldout) == ("soft-oof", True)
    assert prediction_files.read_table(plan.oof).meta["selected"] == "soft-oof"
    honest = a_plan(taught_root, soft_labels="teacher", member="honest")
    assert [done.selected for done in go(honest, folds=[0])] == ["last"]


def test_soft_targets_are_the_label_and_the_teachers_own_fold_by_weight(roots):
    root = roots[0]
    plan = a_plan(root)
    rows, report = targets(root, 1, soft_labels="teacher", soft_weight=0.3)
    ids = [rows.samples.ids[i] for i in rows.places]
    teacher = onnx_file.read(root / "folds" / "teacher.fold1.onnx")
    import onnxruntime as ort
    from scipy.special import softmax

    session = ort.InferenceSession(str(teacher.path), providers=["CPUExecutionProvider"])
    pixels = rows.samples.pixels[rows.places]
    said = softmax(session.run(None, {session.get_inputs()[0].name: pixels})[0], axis=1)
    truth = plan.competition.truth()["label"].align(ids).labels
    np.testing.assert_allclose(rows.soft, 0.7 * np.eye(3)[truth] + 0.3 * said, atol=1e-5)
    assert rows.soft.dtype == np.float32
    assert report["soft_labels"] == {"teachers": ["teacher.fold1"], "rows": 12, "weight": 0.3}


def test_soft_targets_from_a_table_are_joined_by_id_and_class_name(roots):
    root = roots[0]
    table = prediction_files.read_table(root / "oof" / "teacher.parquet").predictions["label"]
    some = table.take(np.arange(0, 24, 2)).with_classes(CLASSES[::-1])
    prediction_files.write_table(root / "oof" / "some.parquet", {"label": some}, {})
    rows, report = targets(root, 0, soft_labels="oof/some.parquet", soft_weight=1.0)
    ids = [rows.samples.ids[i] for i in rows.places]
    truth = a_plan(root).competition.truth()["label"].align(ids).labels
    known = set(some.ids)
    assert report["soft_labels"]["rows"] == sum(name in known for name in ids) < len(ids)
    for name, label, target in zip(ids, truth, rows.soft, strict=True):
        expected = table.align([name]).values[0] if name in known else np.eye(3)[label]
        np.testing.assert_allclose(target, expected, atol=1e-6)


def test_pseudo_labelled_rows_are_what_the_folds_own_teacher_is_sure_of(roots):
    root = roots[0]
    rows, report = targets(root, 0, pseudo="more", teacher="teacher", floor=0.0)
    assert len(rows) == 12 + 9
    assert rows.labels.shape == (21, 3)
    confidence = rows.labels[12:].max(1)
    floor = float(np.median(confidence)) + 1e-6
    kept, report = targets(root, 0, pseudo="more", teacher="teacher", floor=floor)
    np.testing.assert_array_equal(kept.labels[12:], rows.labels[12:][confidence >= floor])
    assert report["pseudo"] | {"below the floor": 5, "used": 4} == report["pseudo"]
    assert report["pseudo"]["teachers"] == ["teacher.fold0"]
    for row in range(len(kept)):  # pixels and targets belong to each other
        pixels, _ = kept[row]
        assert pixels.shape == (3, 8, 8)
    by_pixels = {rows[row][0].tobytes(): rows.labels[row] for row in range(21)}
    for row in range(len(kept)):
        np.testing.assert_array_equal(by_pixels[kept[row][0].tobytes()], kept.labels[row])
    none, report = targets(root, 0, pseudo="more", teacher="teacher", floor=1.0)
    assert (len(none), report["pseudo"]["used"]) == (12, 0)


def test_labelled_and_broken_images_are_left_out(taught_root):
    shutil.copy(taught_root / "train" / "0005.png", taught_root / "more" / "copy of a training image.png")
    (taught_root / "more" / "broken.png").write_bytes(b"\x89PNG\r\n")
    rows, report = targets(taught_root, 0, pseudo="more", teacher="teacher", floor=0.0)
    assert len(rows) == 12 + 9
    assert report["pseudo"] | {"images": 11, "labelled already": 1, "unreadable": 1, "used": 9} == report["pseudo"]


def test_a_student_is_trained_exported_and_reproduces_its_table(taught_root):
    asked = {"pseudo": "more", "teacher": "teacher", "floor": 0.4, "soft_labels": "teacher"}
    plan = a_plan(taught_root, **asked)
    seen = []
    go(plan, lambda config, fold: seen.append(fold.training) or a_fold(config, fold))
    join(plan)
    assert all(rows.extra is not None and rows.soft is not None for rows in seen)
    for fold, rows in enumerate(seen):
        labelled = {rows.samples.ids[i] for i in rows.places}
        assert labelled == set(plan.split.training(fold))
        assert {Path(name).parent.name for name in rows.extra.samples.ids} == {"more"}
    about = json.loads((plan.folder(1) / "config.json").read_text())
    assert about["taught"]["pseudo"]["teachers"] == ["teacher.fold1"]
    exports = [onnx_file.read(plan.export(fold)) for fold in range(2)]
    found = out_of_fold(plan.competition, exports, plan.split)["label"]
    table = prediction_files.read_table(plan.oof).predictions["label"]
    np.testing.assert_allclose(found.align(table.ids).values, table.values, atol=1e-4)


def test_a_model_of_all_rows_is_taught_by_all_folds(roots):
    _, report = targets(roots[0], None, pseudo="more", teacher="teacher", floor=0.0)
    assert report["pseudo"]["teachers"] == ["teacher.fold0", "teacher.fold1"]


def test_changed_teachers_and_images_are_changed_settings(taught_root):
    asked = {"pseudo": "more", "teacher": "teacher", "soft_labels": "oof/teacher.parquet"}
    plan = a_plan(taught_root, **asked)
    before = plan.config.source_digests(plan)
    assert len(before) == 3
    draw(np.random.default_rng(8), 1).save(taught_root / "more" / "new.png")
    after = plan.config.source_digests(plan)
    assert [name for name in before if before[name] != after[name]] == ["pseudo images"]
    plan = a_plan(taught_root, pseudo="more", teacher="teacher", floor=0.0)
    go(plan, folds=[0])
    draw(np.random.default_rng(9), 1).save(taught_root / "more" / "newer.png")
    with pytest.raises(TrainingError, match="pseudo images was"):
        go(a_plan(taught_root, pseudo="more", teacher="teacher", floor=0.0), folds=[0])
    assert "pseudo images" not in a_plan(taught_root).settings
    assert set(before) <= set(a_plan(taught_root, **asked).settings)


def test_multilabel_needs_every_class_to_be_sure(taught_root, monkeypatch):
    from toolkit.training import pseudo_labels

    plan = a_plan(taught_root, pseudo="more", teacher="teacher", floor=0.9)
    target = replace(plan.competition.targets[0], task="multilabel")
    plan = replace(plan, competition=replace(plan.competition, targets=(target,)))
    said = np.array([[0.95, 0.02, 0.5], [0.95, 0.02, 0.99], [0.05, 0.05, 0.05]])
    items = [pseudo_labels.Item(str(i), taught_root / "more" / f"{i}.png") for i in range(3)]
    monkeypatch.setattr(pseudo_labels, "_teachers", lambda *_: [])
    monkeypatch.setattr(pseudo_labels, "_predict", lambda *_: (items, said, 0))
    rows, _ = pseudo_labels._label(plan, 0, "cpu")
    np.testing.assert_allclose(rows.labels, said[1:])


def test_mistakes_are_said(taught_root):
    (taught_root / "empty").mkdir()
    for asked, error, text in (
        ({"pseudo": "more"}, TrainingError, "pseudo-labels need a teacher"),
        ({"pseudo": "empty", "teacher": "teacher"}, TrainingError, "no folder with images"),
        ({"pseudo": "more", "teacher": "nobody"}, ModelError, r"nobody\.\*\.onnx matches no"),
        ({"pseudo": "more", "teacher": "student"}, TrainingError, "cannot teach itself"),
        ({"pseudo": "more", "teacher": "teacher", "floor": 1.5}, TrainingError, "floor is between 0 and 1"),
        ({"soft_labels": "teacher", "soft_weight": -0.1}, TrainingError, "soft_weight is between 0 and 1"),
        ({"soft_labels": "oof/nobody.parquet"}, TrainingError, "does not exist"),
    ):
        with pytest.raises(error, match=text):
            targets(taught_root, 0, **asked)
    (taught_root / "folds" / "teacher.fold0.onnx").unlink()
    with pytest.raises(TrainingError, match="no model of fold 0, and its other folds have seen"):
        targets(taught_root, 0, soft_labels="teacher")
    split = Split.read(taught_root / "split.csv")
    replace(split, folds=1 - split.folds).write(taught_root / "split.csv")
    with pytest.raises(TrainingError, match="was trained on split"):
        targets(taught_root, 1, soft_labels="teacher")
    ids = split.ids
    other = Predictions("label", "probabilities", ids, ("ant", "bee", "dog"), np.full((24, 3), 1 / 3))
    prediction_files.write_table(taught_root / "oof" / "other.parquet", {"label": other}, {})
    with pytest.raises(AlignmentError, match="dog"):
        targets(taught_root, 1, soft_labels="oof/other.parquet")
