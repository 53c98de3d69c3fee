"""Ensembles against ttach's wrapper over torch, hand computations, and every way of naming models and weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import ttach

from tests.conftest import CLASSES, card, network
from toolkit.core import prediction_files
from toolkit.core.cards import Output, Preprocess
from toolkit.core.voting import VOTES
from toolkit.ensemble import run as ensembling
from toolkit.errors import CardError, DataError, ImageError, ModelError
from toolkit.images.render import load
from toolkit.images.views import VIEW_SETS
from toolkit.inference.exports import find_exports, read_exports, share
from toolkit.models.export import export
from toolkit.models.export_checkpoint import samples
from toolkit.workspace.competition import Competition, Images
from toolkit.workspace.split import Split


def run(root, patterns=("folds/*.onnx",), **choices):
    return ensembling.run(Competition.read(root), find_exports(patterns, base=root), device="cpu", **choices)


def normalised(pixels, said):
    mean, std = (torch.tensor(x).reshape(1, 3, 1, 1) for x in (said.mean, said.std))
    return (torch.from_numpy(pixels) / 255 - mean) / std


def pixels_of(root, said):
    return np.stack([load(path, said.preprocess) for _, path in Competition.read(root).images("test")])


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


def test_what_is_written_reads_back_and_says_how_it_was_made(workspace, folds):
    made = run(workspace, tta="hflip", vote="hard", weights="0.25,0.75", name="mine")
    table = prediction_files.read_table(workspace / "predictions" / "mine.parquet")
    assert np.array_equal(table.predictions["label"].labels, made.predictions["label"].labels)
    assert table.predictions["label"].ids == tuple(str(9000 + i) for i in range(11))
    assert table.meta["views"] == {"tiny": ["id", "hflip"]}
    assert [model["weight"] for model in table.meta["models"]] == [0.25, 0.75]
    assert [model["path"] for model in table.meta["models"]] == ["folds/tiny.fold0.onnx", "folds/tiny.fold1.onnx"]
    assert str(workspace) not in str(table.meta)


def test_another_vote_runs_no_model(workspace, folds):
    run(workspace, tta="flip")
    assert run(workspace, tta="flip", vote="hard").outcome.passes == 0
    assert run(workspace, tta="hflip", weights="score").outcome.passes == 0


def test_combining_in_chunks_changes_nothing(workspace, folds, monkeypatch):
    whole = run(workspace, tta="flip").predictions["label"].values
    monkeypatch.setattr(ensembling, "ROWS", 3)
    assert np.array_equal(run(workspace, tta="flip").predictions["label"].values, whole)


def test_another_split_and_hard_votes_for_numbers_are_noted(workspace, folds):
    assert run(workspace).notes == ()
    split = Split.read(workspace / "split.csv")
    Split(split.ids, split.labels, split.groups, 1 - split.folds).write(workspace / "split.csv")
    (workspace / "competition.toml").write_text(
        (workspace / "competition.toml").read_text().replace('format = "labels"', 'format = "probabilities"')
    )
    other, hard = run(workspace, vote="hard").notes
    assert "tiny was trained on another split" in other
    assert "--vote soft" in hard


def test_ranks_see_the_whole_table_and_are_scores(workspace, folds, monkeypatch):
    from scipy.stats import rankdata

    from toolkit.core.metrics import METRICS

    monkeypatch.setattr(ensembling, "ROWS", 3)
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


def test_limit(workspace, folds):
    made = run(workspace, limit=3)
    assert made.predictions["label"].ids == ("9000", "9001", "9002")


def test_bad_images_stop_the_writing_but_not_the_work(workspace, folds):
    before = run(workspace).path.read_bytes()
    (workspace / "test" / "9003.png").write_bytes(b"not an image")
    (workspace / "test" / "9004.png").unlink()
    with pytest.raises(ImageError, match="2 images") as caught:
        run(workspace, tta="hflip")
    assert "9003.png" in caught.value.message
    assert "9004.png" in caught.value.message
    assert (workspace / "predictions" / "ensemble.parquet").read_bytes() == before
    made = run(workspace, tta="hflip", on_bad_image="prior")
    assert made.outcome.passes == 0
    assert [bad["id"] for bad in made.meta["bad_images"]] == ["9003", "9004"]
    np.testing.assert_allclose(made.predictions["label"].values[3:5], 1 / 3)
    hard = run(workspace, tta="hflip", vote="hard", on_bad_image="prior")
    assert hard.predictions["label"].labels[3] == 0


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


def test_out_of_fold_is_each_models_own_held_out_rows(workspace, folds):
    competition, split = Competition.read(workspace), Split.read(workspace / "split.csv")
    exports = read_exports(find_exports(["folds"]), competition)
    found = ensembling.out_of_fold(competition, exports, split, device="cpu")["label"]
    assert sorted(found.ids) == sorted(split.ids)
    for fold in range(2):
        ids = split.held_out(fold)
        said = card()
        pixels = np.stack([load(workspace / "train" / f"{name}.png", said.preprocess) for name in ids])
        with torch.inference_mode():
            expected = network(fold)(normalised(pixels, said)).softmax(1).numpy()
        np.testing.assert_allclose(found.align(ids).values, expected, atol=1e-5)


def test_out_of_fold_refuses_another_split(workspace, folds):
    competition = Competition.read(workspace)
    exports = read_exports(find_exports(["folds"]), competition)
    split = Split.read(workspace / "split.csv")
    other = Split(split.ids, split.labels, split.groups, 1 - split.folds)
    with pytest.raises(ModelError, match="was trained on split"):
        ensembling.out_of_fold(competition, exports, other)


# --- which exports take part -------------------------------------------------------------------------------------------


def test_exports_are_found_by_path_folder_and_glob_in_natural_order(tmp_path):
    for fold in (0, 1, 2, 10):
        (tmp_path / f"m.fold{fold}.onnx").touch()
    names = [path.name for path in find_exports([str(tmp_path)])]
    assert names == [f"m.fold{k}.onnx" for k in (0, 1, 2, 10)]
    assert [p.name for p in find_exports(["*.onnx"], base=tmp_path)] == names
    assert find_exports(["m.fold2.onnx", "*.onnx"], base=tmp_path)[0].name == "m.fold2.onnx"
    for nothing in (["*.nothing"], [str(tmp_path / "empty" / "*.onnx")], []):
        with pytest.raises(ModelError):
            find_exports(nothing, base=tmp_path)


@pytest.fixture
def exports(workspace, folds):
    return read_exports(find_exports(["folds"]), Competition.read(workspace))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("", [0.5, 0.5]),
        ("1,3", [0.25, 0.75]),
        ("tiny=2", [0.5, 0.5]),
        ("tiny.fold1=1", [0.0, 1.0]),
        ("score", [0.5, 0.5]),
    ],
)
def test_weights(exports, weights, expected):
    assert share(exports, weights) == expected


@pytest.mark.parametrize("weights", ["1", "1,2,3", "a,b", "other=1", "0,0", "1,-1", "inf,1", "tiny=x"])
def test_weights_that_make_no_sense(exports, weights):
    with pytest.raises(DataError, match="weights"):
        share(exports, weights)


def test_members_weigh_the_same_whatever_the_number_of_their_folds(exports):
    alone = replace(exports[0], card=card("alone", None))
    assert share([*exports, alone], "") == [0.25, 0.25, 0.5]
    with pytest.raises(DataError, match="no score"):
        share([*exports, alone], "score")


def _refused(workspace, said, words, error=ModelError):
    competition = Competition.read(workspace)
    width = said.width
    path = workspace / "folds" / "other.onnx"
    export(network(5, width), said, path, samples=samples(competition, said.preprocess))
    with pytest.raises(error, match=words) as caught:
        read_exports(find_exports(["folds"]), competition)
    assert "other.onnx" in caught.value.message


@pytest.mark.parametrize(
    ("said", "words", "error"),
    [
        (card(fold=2, split="other"), "differ in split", ModelError),
        (card(fold=2, size=(16, 16)), "differ in preprocess", ModelError),
        (card(fold=2, classes=CLASSES[::-1]), "differ in outputs", ModelError),
        (card(fold=2, mean=(0.1, 0.1, 0.1)), "differ in mean", ModelError),
        (card("b", classes=("ant", "bee", "dog")), "only in the model 'dog'", CardError),
        (card("b", outputs=(Output("colour", CLASSES),)), "does not predict target 'label'", CardError),
        (card("b", outputs=(Output("label", CLASSES, "sigmoid"),)), "is multiclass", CardError),
    ],
)
def test_exports_that_disagree_are_refused_with_the_field(workspace, folds, said, words, error):
    split = Split.read(workspace / "split.csv").digest
    _refused(workspace, said if said.split else replace(said, split=split), words, error)


def test_the_same_model_under_two_names_is_refused(workspace, folds):
    (folds / "copy.onnx").write_bytes((folds / "tiny.fold0.onnx").read_bytes())
    with pytest.raises(ModelError, match="same model"):
        read_exports(find_exports(["folds"]), Competition.read(workspace))


def test_members_are_chosen_by_name(workspace, folds):
    competition = Competition.read(workspace)
    assert len(read_exports(find_exports(["folds"]), competition, members=["tiny"])) == 2
    with pytest.raises(ModelError, match="'huge'"):
        read_exports(find_exports(["folds"]), competition, members=["huge"])


def test_quarter_turns_of_oblong_images_are_refused(workspace, folds):
    said = card("wide", size=(32, 48))
    export(network(3), said, workspace / "wide.onnx", samples=samples(Competition.read(workspace), said.preprocess))
    with pytest.raises(DataError, match="32×48"):
        run(workspace, ["wide.onnx"], tta="d4")
    assert run(workspace, ["wide.onnx"], tta="flip").outcome.passes == 44
