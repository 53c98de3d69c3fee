"""The layout of AI Stages' mask competition, whose sample calls the id otherwise, from `init` to `submit`."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from click.testing import CliRunner

from tests.conftest import card, draw, network
from toolkit.cli import cli
from toolkit.core.cards import Output
from toolkit.models.export import export
from toolkit.models.export_checkpoint import samples
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split

SHOTS = {"mask1": "wear", "incorrect_mask": "incorrect", "normal": "normal"}
FACTORS = {"mask": ("wear", "incorrect", "normal"), "gender": ("male", "female")}


def layout(root):
    """train/train.csv (a row per picture), train/images/<person>/*.jpg, eval/info.csv, eval/images/<ImageID>."""
    rng = np.random.default_rng(3)
    rows = []
    for person in range(8):
        gender = ("male", "female")[person % 2]
        folder = f"{person:06d}_{gender}_Asian_{20 + person}"
        (root / "train/images" / folder).mkdir(parents=True)
        for shot, mask in SHOTS.items():
            draw(rng, len(rows) % 6).save(root / "train/images" / folder / f"{shot}.jpg")
            rows.append((f"{person:06d}_{shot}", f"{person:06d}", gender, mask, folder, f"{shot}.jpg"))
    pd.DataFrame(rows, columns=["id", "person", "gender", "mask", "path", "file"]).to_csv(root / "train/train.csv", index=False)
    names = [f"{i:040x}.jpg" for i in rng.permutation(7)]
    (root / "eval/images").mkdir(parents=True)
    for i, name in enumerate(names):
        draw(rng, i % 6).save(root / "eval/images" / name)
    pd.DataFrame({"ImageID": names, "ans": 0}).to_csv(root / "eval/info.csv", index=False)
    return names


def test_from_init_to_submit(tmp_path, monkeypatch):
    names = layout(tmp_path)
    monkeypatch.chdir(tmp_path)
    said = [word for name, classes in FACTORS.items() for word in ("--factor", f"{name}={','.join(classes)}")]

    def run(*words):
        done = CliRunner().invoke(cli, [*words])
        assert done.exit_code == 0, done.output
        return done.output

    output = run(
        "init", "--metric", "macro_f1", *said, "--group", "person", "--format", "indices", "--train-images", "train/images"
    )
    assert "id column: id - in train.csv (24 rows) and ImageID in info.csv (7 rows)" in output
    assert "train images: train/images/{path}/{file} - 24 of 24 rows" in output
    assert "test images: eval/images/{ImageID} - 7 of 7 rows" in output
    run("split", "--folds", "2")
    split = pd.read_csv("split.csv", dtype=str)
    assert split.groupby("group")["fold"].nunique().max() == 1
    competition = Competition.read(tmp_path)
    classes = competition.targets[0].classes
    for fold in range(2):
        own = card(
            fold=fold, classes=classes, split=Split.read(tmp_path / "split.csv").digest, outputs=(Output("ans", classes),)
        )
        export(network(fold, 6), own, tmp_path / f"folds/tiny.fold{fold}.onnx", samples=samples(competition, own.preprocess))
    run("ensemble", "folds/*.onnx", "--tta", "hflip", "--device", "cpu")
    run("submit")
    answers = pd.read_csv("submission.csv", dtype=str)
    assert list(answers.columns) == ["ImageID", "ans"]
    assert list(answers["ImageID"]) == names
    predicted = pd.read_parquet("predictions/ensemble.parquet").set_index("id").loc[names]
    assert list(answers["ans"].astype(int)) == list(predicted[[f"ans/{name}" for name in classes]].to_numpy().argmax(axis=1))


def test_the_example_of_the_readme_is_this_layout(tmp_path):
    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (tmp_path / "competition.toml").write_text(re.search(r"```toml\n(.*?)```", page, re.DOTALL)[1], encoding="utf-8")
    competition = Competition.read(tmp_path)
    assert (competition.id, competition.sample_id, len(competition.targets[0].classes)) == ("id", "ImageID", 18)
