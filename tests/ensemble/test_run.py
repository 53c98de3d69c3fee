"""The ensemble of the test images: what is written, how it was made, what stops it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.ensemble.torch_reference import run
from toolkit.cli import advice, cli
from toolkit.core import prediction_files
from toolkit.errors import ImageError
from toolkit.workspace.split import Split


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


def test_another_split_and_hard_votes_for_numbers_are_noted(workspace, folds):
    assert run(workspace).notes == ()
    split = Split.read(workspace / "split.csv")
    Split(split.ids, split.labels, split.groups, 1 - split.folds).write(workspace / "split.csv")
    (workspace / "competition.toml").write_text(
        (workspace / "competition.toml").read_text().replace('format = "labels"', 'format = "probabilities"')
    )
    (other,) = run(workspace, vote="hard").notes
    assert "tiny was trained on another split" in other
    said = json.loads(CliRunner().invoke(cli, ["ensemble", "folds", "--vote", "hard", "--json"]).stdout)["notes"]
    assert said[0] == other
    assert "'probabilities' needs numbers: use --vote soft" in said[1]
    said = json.loads(CliRunner().invoke(cli, ["ensemble", "folds", "--labels-only", "--json"]).stdout)["notes"]
    assert "needs numbers: leave it out" in said[1]


def test_models_that_never_saw_a_class_are_noted(workspace):
    from types import SimpleNamespace

    from toolkit.ensemble.run import _notes
    from toolkit.workspace.competition import Competition

    split = Split.read(workspace / "split.csv")
    folds = np.where(np.array(split.labels) == "bee", 1, split.folds)
    Split(split.ids, split.labels, split.groups, folds).write(workspace / "split.csv")
    here = Split.read(workspace / "split.csv").digest
    cards = [SimpleNamespace(member="tiny", fold=fold, split=here) for fold in (0, 1, None)]
    notes = [list(_notes(Competition.read(workspace), [SimpleNamespace(card=card)])) for card in cards]
    assert [len(of_card) for of_card in notes] == [0, 1, 0]
    assert "every row of class 'bee' is held out by fold 1: its model never sees one" in notes[1][0]


def test_limit(workspace, folds):
    made = run(workspace, limit=3)
    assert made.predictions["label"].ids == ("9000", "9001", "9002")


def test_jpegs_without_their_end_and_pictures_cut_short(workspace, folds):
    """Those that lack only the marker count as whole, with one note; of the others what is there is used where that is asked."""
    (workspace / "competition.toml").write_text((workspace / "competition.toml").read_text().replace('{id}.png"', '{id}.*"'))
    paths = sorted((workspace / "test").iterdir())
    for path in paths:
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    files = [path.with_suffix(".jpg") for path in paths]
    whole = run(workspace).predictions["label"].values
    for path in files[:2]:
        path.write_bytes(path.read_bytes()[:-2])
    ended = run(workspace)
    assert [note for note in ended.notes if "end marker" in note] == [
        "2 JPEGs lack nothing but the end marker: all pixels are there and used"
    ]
    np.testing.assert_array_equal(ended.predictions["label"].values, whole)
    data = files[5].read_bytes()
    files[5].write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"1 image cannot be used.*\n.*9005\.jpg is cut short") as caught:
        run(workspace)
    assert "decode" in advice.hint(caught.value)
    partly = run(workspace, on_bad_image="decode")
    assert [cut["id"] for cut in partly.meta["cut_short"]] == ["9005"]
    assert not partly.meta["bad_images"]
    assert any("1 picture is not whole; what is there was used" in note and "9005.jpg" in note for note in partly.notes)
    again, early = run(workspace, on_bad_image="decode"), run(workspace, on_bad_image="decode", labels_only=True)
    assert again.outcome.passes == 0
    assert [cut["id"] for cut in again.meta["cut_short"]] == ["9005"] == [cut["id"] for cut in early.meta["cut_short"]]
    values = partly.predictions["label"].values
    assert list(early.predictions["label"].labels) == list(values.argmax(axis=1))
    np.testing.assert_array_equal(values[:5], whole[:5])
    assert np.abs(values[5] - whole[5]).max() > 1e-4
    with pytest.raises(ImageError, match="1 image cannot be used"):  # what was kept of a part is never taken for the whole
        run(workspace)
    files[6].write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"9006\.jpg is not an image"):
        run(workspace, on_bad_image="decode")


def test_bad_images_stop_the_writing_but_not_the_work(workspace, folds):
    before = run(workspace).path.read_bytes()
    (workspace / "test" / "9003.png").write_bytes(b"not an image")
    (workspace / "test" / "9004.png").unlink()
    with pytest.raises(ImageError, match="2 images") as caught:
        run(workspace, tta="hflip")
    assert "9003.png" in caught.value.message
    assert "9004.png" in caught.value.message
    assert "--on-bad-image prior" in advice.hint(caught.value)
    assert (workspace / "predictions" / "ensemble.parquet").read_bytes() == before
    made = run(workspace, tta="hflip", on_bad_image="prior")
    assert made.outcome.passes == 0
    assert [bad["id"] for bad in made.meta["bad_images"]] == ["9003", "9004"]
    np.testing.assert_allclose(made.predictions["label"].values[3:5], 1 / 3)
    hard = run(workspace, tta="hflip", vote="hard", on_bad_image="prior")
    assert hard.predictions["label"].labels[3] == 0
