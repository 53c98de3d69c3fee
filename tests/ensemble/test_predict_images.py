"""Tables of any models on any images: with and without a workspace, held out and in sample, one by one and combined."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from tests.conftest import CLASSES
from tests.requested import ensemble, predicted
from toolkit.blending import outside_tables
from toolkit.cli import cli
from toolkit.core import prediction_files
from toolkit.errors import CardError, DataError, ImageError
from toolkit.runtime.graphs import onnx_file
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split


def exports(workspace):
    return sorted((workspace / "folds").glob("*.onnx"))


def values(path):
    return prediction_files.read_table(path).predictions["label"]


def test_the_test_images_get_what_the_ensemble_says(folds, workspace):
    competition = Competition.read(workspace)
    made = ensemble(competition, exports(workspace), tta="flip", vote="geometric")
    out = workspace / "p.parquet"
    predicted(competition, exports(workspace), "test", out, tta="flip", vote="geometric")
    np.testing.assert_array_equal(values(out).values, made.predictions["label"].values)
    assert values(out).ids == made.predictions["label"].ids


def test_a_folder_needs_no_workspace_and_ids_are_paths_in_it(folds, workspace, tmp_path, monkeypatch):
    apart = tmp_path / "apart"
    shutil.copytree(workspace / "test", apart / "photos" / "deep")
    shutil.copytree(folds, apart / "models")
    monkeypatch.chdir(apart)
    done = CliRunner().invoke(cli, ["predict", "models", "--on", "photos", "-o", "p.csv", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["written"] == {"p.csv": 11}
    assert sorted(path.name for path in apart.iterdir()) == ["models", "p.csv", "photos"]  # no store is left behind
    rows = list(csv.DictReader((apart / "p.csv").read_text().splitlines()))
    assert rows[0]["id"] == "deep/9000.png"
    expected = workspace / "q.parquet"
    predicted(Competition.read(workspace), exports(workspace), "test", expected)
    by_id = dict(zip(values(expected).ids, values(expected).values, strict=True))
    for row in rows:
        found = np.array([float(row[name]) for name in CLASSES])
        np.testing.assert_array_equal(found, by_id[row["id"].split("/")[1].removesuffix(".png")])
    target = Competition.read(workspace).targets[0]
    read = outside_tables.read(apart / "p.csv", target)
    assert read.ids == tuple(row["id"] for row in rows)


def test_a_csv_names_images_by_id_and_path(folds, workspace):
    folder = workspace / "elsewhere"
    folder.mkdir()
    (folder / "list.csv").write_text("code,file\n007,../test/9001.png\n7,../train/0000.png\n")
    out = workspace / "p.parquet"
    predicted(None, exports(workspace), str(folder / "list.csv"), out)
    assert values(out).ids == ("007", "7")
    (folder / "list.csv").write_text("code,where\n007,../test/9001.png\n")
    with pytest.raises(DataError, match="which column holds"):
        predicted(None, exports(workspace), str(folder / "list.csv"), out)
    predicted(None, exports(workspace), str(folder / "list.csv"), out, path_column="where", id_column="code")
    assert values(out).ids == ("007",)


def test_rows_that_a_model_saw_are_refused_or_named(folds, workspace):
    competition, out = Competition.read(workspace), workspace / "p.parquet"
    with pytest.raises(DataError, match=r"tiny\.fold0 was trained on 12 of these 24 rows.*tiny\.fold1"):
        predicted(competition, exports(workspace), "train", out)
    assert not out.exists()
    done = predicted(competition, exports(workspace), "train", out, in_sample=True)
    assert done.notes[0] == "in-sample: tiny.fold0 was trained on 12 of these 24 rows"
    assert prediction_files.read_meta(out)["notes"] == list(done.notes)
    first = [name for name, _ in competition.images("train")][:5]
    seen = len(set(first) & set(Split.read(workspace / "split.csv").training(0)))
    done = predicted(competition, exports(workspace)[:1], "train", out, in_sample=True, limit=5)
    assert done.notes == (f"in-sample: tiny.fold0 was trained on {seen} of these 5 rows",)
    split = workspace / "split.csv"
    split.write_text(split.read_text().replace(",0\n", ",9\n").replace(",1\n", ",0\n").replace(",9\n", ",1\n"))
    with pytest.raises(DataError, match="another split: which of these 24 rows it saw is not known"):
        predicted(competition, exports(workspace), "train", out)


def test_held_out_rows_come_from_the_fold_that_did_not_see_them(folds, workspace):
    competition, out = Competition.read(workspace), workspace / "p.parquet"
    predicted(competition, exports(workspace), "train", out, held_out=True)
    split = Split.read(workspace / "split.csv")
    found = values(out)
    assert set(found.ids) == set(split.ids)
    for fold, path in enumerate(exports(workspace)):
        alone = workspace / f"alone{fold}.parquet"
        predicted(competition, [path], "train", alone, in_sample=True)
        ids = split.held_out(fold)
        np.testing.assert_array_equal(found.align(ids).values, values(alone).align(ids).values)
    with pytest.raises(DataError, match="only training rows"):
        predicted(competition, exports(workspace), "test", out, held_out=True)


def test_members_are_combined_over_held_out_rows(folds, workspace):
    from dataclasses import replace

    import onnx

    for path in exports(workspace):
        model = onnx.load(path)
        said = onnx_file.read(path).card
        bias = next(t for t in model.graph.initializer if list(t.dims) == [3])
        moved = onnx.numpy_helper.to_array(bias) + np.array([1, 0, -1], dtype=np.float32)
        bias.CopyFrom(onnx.numpy_helper.from_array(moved, bias.name))
        onnx_file.embed(model, replace(said, member="other"))
        onnx.save(model, workspace / "folds" / f"other.fold{said.fold}.onnx")
    competition, out = Competition.read(workspace), workspace / "p.parquet"
    predicted(competition, exports(workspace), "train", out, held_out=True, weights="tiny=3,other=1")
    done = predicted(competition, exports(workspace), "train", workspace / "e.parquet", held_out=True, each=True)
    assert [path.name for path in done.written] == ["e.other.parquet", "e.tiny.parquet"]
    other, tiny = (values(path).align(values(out).ids).values for path in done.written)
    np.testing.assert_allclose(values(out).values, 0.75 * tiny + 0.25 * other, atol=1e-12)
    assert np.abs(tiny - other).max() > 0.01


def test_each_model_has_a_table_of_its_own(folds, workspace):
    competition, out = Competition.read(workspace), workspace / "p.parquet"
    done = predicted(competition, exports(workspace), "test", out, each=True)
    assert [path.name for path in done.written] == ["p.tiny.fold0.parquet", "p.tiny.fold1.parquet"]
    predicted(competition, exports(workspace), "test", out)
    mean = np.mean([values(path).values for path in done.written], axis=0)
    np.testing.assert_allclose(values(out).values, mean, atol=1e-12)


def test_hard_votes_are_labels_in_both_formats(folds, workspace):
    competition = Competition.read(workspace)
    for name in ("p.csv", "p.parquet"):
        predicted(competition, exports(workspace), "test", workspace / name, vote="hard")
    rows = list(csv.DictReader((workspace / "p.csv").read_text().splitlines()))
    table = values(workspace / "p.parquet")
    assert [row["label"] for row in rows] == [CLASSES[i] for i in table.decided]


def test_images_that_cannot_be_used_are_an_error_or_left_out(folds, workspace):
    (workspace / "test" / "9003.png").write_bytes(b"nonsense")
    competition, out = Competition.read(workspace), workspace / "p.parquet"
    with pytest.raises(
        ImageError, match=r"1 image cannot be used; the others are finished and kept, nothing was written:\n  .*9003\.png"
    ):
        predicted(competition, exports(workspace), "test", out)
    done = predicted(competition, exports(workspace), "test", out, on_bad_image="skip")
    assert [image.id for image in done.bad] == ["9003"]
    assert len(values(out)) == 10


@pytest.mark.parametrize(
    ("competition", "on", "output", "error", "words"),
    [
        (False, "test", "p.csv", DataError, "a workspace's, and this is none"),
        (True, "test", "p.xlsx", DataError, "no kind of table"),
        (True, "nowhere", "p.csv", DataError, "no such folder"),
        (True, "empty", "p.csv", DataError, "no image files"),
    ],
)
def test_what_cannot_be_is_said(competition, on, output, error, words, folds, workspace):
    (workspace / "empty").mkdir()
    with pytest.raises(error, match=words):
        predicted(Competition.read(workspace) if competition else None, exports(workspace), on, workspace / output)


def test_models_of_other_classes_are_refused(folds, workspace):
    toml = workspace / "competition.toml"
    toml.write_text(toml.read_text().replace('"cat"', '"cow"'))
    with pytest.raises(CardError, match="cow"):
        predicted(Competition.read(workspace), exports(workspace), "test", workspace / "p.csv")
