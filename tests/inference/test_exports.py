"""Which exports take part: found by path, folder and glob, checked against each other, weighted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.conftest import CLASSES, card, network
from toolkit.core.cards import Output
from toolkit.errors import CardError, DataError, ModelError
from toolkit.inference.exports import find_exports, read_exports, share
from toolkit.models.export import export
from toolkit.models.export_checkpoint import samples
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split


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
