"""Tables that have seen their rows, stand in another order or come from models that never saw a class are named everywhere."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from click.testing import CliRunner

from tests.analysis.test_member_diagnosis import rows
from tests.blending.test_weighers import make
from toolkit.analysis.member_diagnosis import diagnose, doubts
from toolkit.analysis.member_doubts import too_good
from toolkit.cli import cli
from toolkit.core.activations import softmax
from toolkit.core.metrics import METRICS
from toolkit.workspace.split import Split

LOSS = METRICS["log_loss"]


@pytest.fixture(scope="module")
def digits():
    """Real tables: out-of-fold ones of three models on digits of which a tenth is labelled wrongly, and one of rows it has seen."""
    from sklearn.datasets import load_digits
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.model_selection import cross_val_predict
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from threadpoolctl import threadpool_limits

    pixels, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(len(labels)) < 0.1, rng.integers(0, 10, len(labels)), labels)[:900]
    pixels = pixels[:900]
    models = {"bayes": GaussianNB(), "near": KNeighborsClassifier(7), "trees": ExtraTreesClassifier(30, random_state=0)}
    with threadpool_limits(1):
        honest = {
            name: cross_val_predict(model, pixels, labels, cv=4, method="predict_proba") for name, model in models.items()
        }
        return honest, models["trees"].fit(pixels, labels).predict_proba(pixels), labels


def test_honest_models_of_any_skill_raise_no_alarm(digits):
    honest, _, labels = digits
    for names in [*itertools.combinations(honest, 2), tuple(honest)]:
        assert too_good(rows(np.stack([honest[name] for name in names]), labels)) == []
    for seed in range(40):
        assert too_good(rows(*make(rows=400, members=4, seed=seed))) == []
        assert too_good(rows(*make(rows=400, members=3, seed=seed, multilabel=True))) == []


def test_a_model_that_has_seen_the_rows_is_named_beside_any_honest_ones(digits):
    honest, seen, labels = digits
    for count in (1, 2, 3):
        for names in itertools.combinations(honest, count):
            (doubt,) = too_good(rows(np.stack([*(honest[name] for name in names), seen]), labels))
            assert doubt.member == f"m{count}"
            assert doubt.right >= 0.99 * doubt.hard > 0
    both = too_good(rows(np.stack([seen, honest["near"], seen**0.5 / (seen**0.5).sum(axis=1, keepdims=True)]), labels))
    assert {doubt.member for doubt in both} == {"m0", "m2"}


def test_a_good_model_beside_broken_ones_raises_no_alarm():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 4, 600)
    good = softmax(8 * np.eye(4)[truth] + rng.normal(0, 1, (600, 4)))
    fair = softmax(3 * np.eye(4)[truth] + rng.normal(0, 1, (600, 4)))
    guess = softmax(rng.normal(0, 1, (600, 4)))
    assert (good.argmax(axis=1) == truth).all()
    assert too_good(rows(np.stack([good, guess]), truth)) == []
    said = doubts(rows(np.stack([good, fair[:, [1, 0, 2, 3]]]), truth))
    assert len(said) == 1
    assert "m1: its classes are permuted" in said[0]


def test_several_labels():
    rng = np.random.default_rng(2)
    truth = rng.random((200, 5)) < 0.4
    honest = np.clip(0.5 + 0.3 * (truth - 0.5) + rng.normal(0, 0.2, truth.shape), 0.01, 0.99)
    seen = np.where(truth, 0.97, 0.02)
    assert [doubt.member for doubt in too_good(rows(np.stack([honest, seen]), truth))] == ["m1"]


def test_the_honest_one_is_not_to_be_left_out(digits):
    honest, seen, labels = digits
    said = diagnose(rows(np.stack([honest["near"], honest["bayes"], seen]), labels), LOSS, draws=100)
    assert [doubt.member for doubt in said.too_good] == ["m2"]
    assert set(said.without) == {"m0", "m1"}
    assert said.without["m0"].gain < 0  # of the mean of the two alone: the better one is of use
    alone = diagnose(rows(np.stack([honest["near"], seen]), labels), LOSS, draws=100)
    assert alone.without == {}


def files(root, labels, tables):
    """Tables of others as CSV, and the truth."""
    names = [f"c{k}" for k in range(10)]
    ids = [f"{i:04d}" for i in range(len(labels))]
    (root / "truth.csv").write_text("id,label\n" + "".join(f"{i},c{k}\n" for i, k in zip(ids, labels, strict=True)))
    for name, table in tables.items():
        cells = "".join(f"{i},{','.join(map(repr, row.tolist()))}\n" for i, row in zip(ids, table, strict=True))
        (root / f"{name}.csv").write_text(f"id,{','.join(names)}\n{cells}")


def run(*arguments):
    done = CliRunner().invoke(cli, [*arguments, "--truth", "truth.csv", "--metric", "log_loss"])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_blend_diagnose_and_score_name_them(digits, tmp_path, monkeypatch):
    honest, seen, labels = digits
    monkeypatch.chdir(tmp_path)
    files(tmp_path, labels, {"honest": honest["near"], "seen": seen, "moved": honest["trees"][:, [1, 2, 0, *range(3, 10)]]})
    for command in ("blend", "diagnose", "score"):
        text = run(command, "honest.csv", "seen.csv")
        assert "seen is too good to be out of fold" in text, command
        assert "honest is too good" not in text
        assert "better without it" not in text
    assert any(
        "seen is too good" in note for note in json.loads((tmp_path / "blend.json").read_text())["targets"]["label"]["notes"]
    )
    for command in ("blend", "diagnose", "score"):
        text = run(command, "honest.csv", "moved.csv")
        assert "moved: its classes are permuted" in text, command
        assert all(moved in text for moved in ("c0 holds c1", "c1 holds c2", "c2 holds c0"))
        assert "too good" not in text


def test_a_class_that_a_fold_model_never_saw_is_named_everywhere(workspace):
    from tests.cli.test_blend import table
    from tests.training.test_training_kit import Config, a_fold, a_plan
    from toolkit.training import cross_validation

    path = workspace / "split.csv"
    split = Split.read(path)
    assert split.unseen_classes() == {}
    moved = Split(
        split.ids,
        split.labels,
        split.groups,
        np.array([0 if n == "bee" else f for n, f in zip(split.labels, split.folds, strict=True)]),
    )
    moved.write(path)
    assert moved.unseen_classes() == {0: ("bee",)}
    words = "every row of class 'bee' is held out by fold 0: its model never sees one"
    for name in ("one", "two"):
        table(workspace, name, skill=2, seed=len(name))
    for command in ("blend", "diagnose", "score"):
        done = CliRunner().invoke(cli, [command])
        assert (done.exit_code, words in " ".join(done.output.split())) == (0, True), done.output
    said = []
    plan = a_plan(workspace, Config(epochs=1))
    list(cross_validation.train(plan, a_fold, bar=_bar, folds=[0], device="cpu", say=said.append))
    assert any(words in line for line in said)


def _bar(_text):
    import contextlib

    return contextlib.nullcontext(lambda _done, _total: None)
