"""Views, images of a row and votes: against ttach's wrapper over torch, scipy's ranks and hand computations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import ttach

from tests.conftest import CLASSES, card, network
from tests.ensemble.torch_reference import normalised, pixels_of, run
from toolkit.core.cards import Preprocess
from toolkit.core.voting import VOTES
from toolkit.ensemble import combine
from toolkit.errors import DataError
from toolkit.images.render import load
from toolkit.images.views import VIEW_SETS
from toolkit.models.export import export
from toolkit.models.export_checkpoint import samples
from toolkit.workspace.competition import Competition, Images


@pytest.mark.parametrize(
    ("tta", "transforms"), [("flip", ttach.aliases.flip_transform), ("d4", ttach.aliases.d4_transform)], ids=["flip", "d4"]
)
def test_tta_equals_ttachs_wrapper_over_the_torch_models(workspace, folds, tta, transforms):
    made = run(workspace, tta=tta)
    said = card()
    expected = []
    for fold in range(2):
        probable = torch.nn.Sequential(network(fold), torch.nn.Softmax(dim=1))
        wrapped = ttach.ClassificationTTAWrapper(probable, transforms(), merge_mode="mean")
        with torch.inference_mode():
            expected.append(wrapped(normalised(pixels_of(workspace, said), said)).numpy())
    np.testing.assert_allclose(made.predictions["label"].values, np.mean(expected, axis=0), atol=1e-5)
    assert made.outcome.passes == 11 * 2 * len(VIEW_SETS[tta])


def test_two_members_of_other_sizes_and_opposite_class_order(workspace, folds):
    competition = Competition.read(workspace)
    said = {
        "a": card("a", None, size=(224, 224)),
        "b": card("b", None, classes=CLASSES[::-1], preprocess=Preprocess((96, 96), "crop", 110, "bicubic")),
    }
    expected = []
    for seed, (name, one) in enumerate(said.items()):
        export(network(seed), one, workspace / f"{name}.onnx", samples=samples(competition, one.preprocess))
        with torch.inference_mode():
            p = network(seed)(normalised(pixels_of(workspace, one), one)).softmax(1).numpy()
        expected.append(p if name == "a" else p[:, ::-1])
    made = run(workspace, ["a.onnx", "b.onnx"], weights="a=0.3,b=0.7", name="two")
    np.testing.assert_allclose(made.predictions["label"].values, 0.3 * expected[0] + 0.7 * expected[1], atol=1e-5)
    assert made.predictions["label"].classes == CLASSES


def test_combining_in_chunks_changes_nothing(workspace, folds, monkeypatch):
    whole = run(workspace, tta="flip").predictions["label"].values
    monkeypatch.setattr(combine, "ROWS", 3)
    assert np.array_equal(run(workspace, tta="flip").predictions["label"].values, whole)


def test_ranks_see_the_whole_table_and_are_scores(workspace, folds, monkeypatch):
    from scipy.stats import rankdata

    from toolkit.core.metrics import METRICS

    monkeypatch.setattr(combine, "ROWS", 3)
    found = run(workspace, vote="rank").predictions["label"]
    singles = [run(workspace, weights=f"tiny.fold{fold}=1").predictions["label"].values for fold in range(2)]
    assert found.kind == "scores"
    np.testing.assert_allclose(found.values, np.mean([rankdata(p, axis=0) / 11 for p in singles], axis=0), atol=1e-12)
    truth = replace(found, kind="labels", values=None, labels=np.arange(11) % 3)
    assert 0 <= found.score(METRICS["roc_auc"], truth) <= 1
    with pytest.raises(DataError, match="needs probabilities"):
        found.score(METRICS["log_loss"], truth)


@pytest.mark.parametrize("vote", VOTES)
def test_every_vote_is_offered(workspace, folds, vote):
    made = run(workspace, tta="hflip", vote=vote)
    assert len(made.predictions["label"]) == 11


@pytest.mark.parametrize(("how", "merge"), [("mean", lambda p: p.mean(0)), ("max", lambda p: p.max(0) / p.max(0).sum())])
def test_several_images_per_row(workspace, folds, how, merge):
    competition = replace(
        Competition.read(workspace), test=Images("test", "{image}.png", "test.csv"), per_id=how, sample="two.csv"
    )
    (workspace / "competition.toml").write_text(competition.to_toml())
    (workspace / "two.csv").write_text("id,label\nA,ant\nB,ant\n")
    (workspace / "test.csv").write_text("id,image\n" + "".join(f"{'AB'[i > 3]},{9000 + i}\n" for i in range(11)))
    found = run(workspace).predictions["label"]
    assert found.ids == ("A", "B")
    said, singles = card(), []
    pixels = np.stack([load(workspace / "test" / f"{9000 + i}.png", said.preprocess) for i in range(11)])
    for fold in range(2):
        with torch.inference_mode():
            singles.append(network(fold)(normalised(pixels, said)).softmax(1).numpy().astype(float))
    expected = np.mean([[merge(p[:4]), merge(p[4:])] for p in singles], axis=0)
    np.testing.assert_allclose(found.values, expected, atol=1e-5)


def test_quarter_turns_of_oblong_images_are_refused(workspace, folds):
    said = card("wide", size=(32, 48))
    export(network(3), said, workspace / "wide.onnx", samples=samples(Competition.read(workspace), said.preprocess))
    with pytest.raises(DataError, match="32×48"):
        run(workspace, ["wide.onnx"], tta="d4")
    assert run(workspace, ["wide.onnx"], tta="flip").outcome.passes == 44
