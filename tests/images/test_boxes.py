"""Bounding boxes: the same pixels as files that were cut before, in every form, from training to the bundle."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.conftest import CLASSES, card, draw, network
from tests.requested import ensemble, predicted
from toolkit.analysis import explanation
from toolkit.cli import cli
from toolkit.core import cards, prediction_files
from toolkit.core.cards import Preprocess
from toolkit.errors import CardError, CompetitionError, ImageError
from toolkit.images import render
from toolkit.images.boxes import FORMS, Box, BoxTable
from toolkit.inference import multi_process
from toolkit.inference.execution import Execution
from toolkit.inference.exports import find_exports, output_of, read_exports
from toolkit.inference.predict import predict
from toolkit.inference.store.prediction_store import Store
from toolkit.inference.store.retention import merge
from toolkit.models import adopt, export_checkpoint
from toolkit.models.export import export
from toolkit.models.foreign_model import Asked
from toolkit.runtime.graphs.onnx_file import read
from toolkit.runtime.session import open_session
from toolkit.submissions.bundle import pack
from toolkit.training.fold.samples import decode
from toolkit.workspace.competition import Competition, Images, Target
from toolkit.workspace.image_rows import Item
from toolkit.workspace.split import Split, make

ROOT = Path(__file__).parents[2]
WHOLE = Preprocess((32, 32))
BUG = replace(WHOLE, box="bug")
HEIGHT, WIDTH = 90, 120
BUGS, BOTH = "folds/bug*", "folds"


def picture(rng: np.random.Generator, label: int) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Something of a class on a meadow of another, and where it is: left, top, right, bottom."""
    meadow = draw(rng, (label + 1) % 3, HEIGHT, WIDTH)
    wide, high = (int(side) for side in rng.integers(30, 60, 2))
    left, top = int(rng.integers(0, WIDTH - wide)), int(rng.integers(0, HEIGHT - high))
    meadow.paste(draw(rng, label, high, wide), (left, top))
    return meadow, (left, top, left + wide, top + high)


def said(box: tuple[int, int, int, int], form: str, unit: str) -> list[str]:
    """The four cells of a box."""
    left, top, right, bottom = (edge / side if unit == "share" else edge for edge, side in zip(box, (WIDTH, HEIGHT) * 2))  # noqa: B905
    wide, high = right - left, bottom - top
    corner = {"corners": (left, top, right, bottom), "size": (left, top, wide, high)}
    return [repr(edge) for edge in corner.get(form, (left + wide / 2, top + high / 2, wide, high))]


def make_workspace(root: Path, *, train: int = 24, test: int = 9, form: str = "corners", unit: str = "pixels") -> Competition:
    """Pictures with the boxes of training rows in train.csv and those of test rows in a table of their own.

    `cut/` holds the same pictures as somebody would cut them before: the reference.
    """
    rng = np.random.default_rng(1)
    rows = {"train": [], "test": []}
    for part, count in (("train", train), ("test", test)):
        (root / part).mkdir(parents=True)
        (root / "cut" / part).mkdir(parents=True)
        for i in range(count):
            image, box = picture(rng, i % 3)
            name = f"{part}{i:03d}"
            image.save(root / part / f"{name}.png")
            image.crop(box).save(root / "cut" / part / f"{name}.png")
            os.utime(root / part / f"{name}.png", (1e9, 1e9))  # old enough for its digest to be remembered
            rows[part].append([name, *said(box, form, unit), CLASSES[i % 3]])
    heads = ["id", "a", "b", "c", "d"]
    table(root / "train.csv", [*heads, "label"], rows["train"])
    table(root / "boxes.csv", heads, [row[:5] for row in rows["test"]])
    table(root / "sample_submission.csv", ["id", "label"], [[row[0], "ant"] for row in rows["test"]])
    competition = Competition(
        root=root,
        name="meadow",
        metric="accuracy",
        targets=(Target("label", "multiclass", CLASSES),),
        train=Images("train", "{id}.png", "train.csv"),
        test=Images("test", "{id}.png"),
        format="labels",
        boxes_of={"bug": BoxTable(("a", "b", "c", "d"), form, unit, test="boxes.csv")},
    )
    (root / "competition.toml").write_text(competition.to_toml())
    truth = competition.truth()["label"]
    make(truth.ids, truth.labels, CLASSES, folds=2).write(root / "split.csv")
    return Competition.read(root)


def table(path: Path, head, rows) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def edit(path: Path, name: str, *cells: str) -> None:
    """Replace the cells after the id."""
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    table(path, head, [[name, *cells, *row[1 + len(cells) :]] if row[0] == name else row for row in rows])


def load_recipe(name: str):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    if not hasattr(module, "main"):
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def meadow(tmp_path, monkeypatch) -> Competition:
    competition = make_workspace(tmp_path / "meadow")
    monkeypatch.chdir(competition.root)
    return competition


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """Two fold models that look into the box and two that see the whole picture, on the split of every meadow."""
    competition = make_workspace(tmp_path_factory.mktemp("models") / "meadow")
    split = Split.read(competition.path("split.csv")).digest
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
    for number, (member, preprocess) in enumerate({"bug": BUG, "all": WHOLE}.items()):
        for fold in range(2):
            path = competition.path("folds", f"{member}.fold{fold}.onnx")
            export(network(2 * number + fold), card(member, fold, split=split, preprocess=preprocess), path, samples=pixels)
    return competition.path("folds")


@pytest.fixture
def folds(meadow, models) -> Path:
    return Path(shutil.copytree(models, meadow.path("folds")))


def run(competition: Competition, *paths: str, **how):
    made = ensemble(competition, find_exports(paths or [BUGS], base=competition.root), device="cpu", **how)
    return made, made.predictions["label"]


def plain(competition: Competition, folder: str):
    """The vote of the models of boxes over files in a folder as they are."""
    exports = read_exports(find_exports([BUGS], base=competition.root), competition)
    exports = [replace(e, card=replace(e.card, preprocess=WHOLE)) for e in exports]
    items = [Item(name, competition.path(folder, path.name)) for name, path in competition.images("test")]
    outcome = predict(exports, {e.digest: ("id",) for e in exports}, items, Store(competition.path("other")), Execution("cpu"))
    return np.stack([merge([outcome.logits(e, "id", outcome.digests)], output_of(e, "label")) for e in exports]).mean(axis=0)


@pytest.mark.parametrize("unit", ["pixels", "share"])
@pytest.mark.parametrize("form", list(FORMS))
def test_boxes_in_every_form_give_the_pixels_of_files_cut_before(tmp_path, form, unit):
    competition = make_workspace(tmp_path, train=6, test=3, form=form, unit=unit)
    for part in ("train", "test"):
        for name, path in competition.images(part):
            box = competition.boxes.of("bug", name, path)
            for how in render.IMPLEMENTATIONS:
                ours = render.load(path, BUG, box=box, implementation=how)
                cut = render.load(tmp_path / "cut" / part / path.name, WHOLE, implementation=how)
                np.testing.assert_array_equal(ours, cut)


def test_the_ensemble_says_of_boxes_what_it_says_of_files_cut_before(meadow, folds):
    made, table = run(meadow)
    np.testing.assert_allclose(table.values, plain(meadow, "cut/test"), atol=1e-12)
    assert made.outcome.passes == 9 * 2
    assert run(meadow)[0].outcome.passes == 0
    assert not np.allclose(plain(meadow, "test"), table.values, atol=0.01)


def test_models_with_and_without_a_box_share_nothing_and_find_what_they_computed_alone(meadow, folds):
    alone = {name: run(meadow, f"folds/{name}*")[1].values for name in ("bug", "all")}
    made, both = run(meadow, BOTH)
    assert made.outcome.passes == 0
    np.testing.assert_allclose(both.values, (alone["bug"] + alone["all"]) / 2, atol=1e-12)
    meadow.path("store").rename(meadow.path("old"))
    made, again = run(meadow, BOTH)
    assert made.outcome.passes == 9 * 4
    assert again.values.tobytes() == both.values.tobytes()
    assert run(meadow, "folds/all*")[0].outcome.passes == run(meadow, "folds/bug*")[0].outcome.passes == 0


def test_a_changed_box_computes_its_own_row_again_and_no_other(meadow, folds):
    before = run(meadow, BOTH)[1].values
    edit(meadow.path("boxes.csv"), "test004", "0", "0", "50", "50")
    made, after = run(Competition.read(meadow.root), BOTH)
    assert made.outcome.passes == 2
    moved = np.abs(after.values - before).max(axis=1) > 0
    assert [name for name, changed in zip(after.ids, moved, strict=True) if changed] == ["test004"]


def test_two_rows_of_one_file_have_a_box_each(meadow, folds):
    with meadow.path("test", "test001.png").open("rb") as file:
        meadow.path("test", "test000.png").write_bytes(file.read())
    _, found = run(meadow, BOTH)
    boxed = [render.load(path, BUG, box=meadow.boxes.of("bug", name, path)) for name, path in meadow.images("test")[:2]]
    assert not np.array_equal(*boxed)
    assert not np.allclose(found.values[0], found.values[1])
    _, whole = run(meadow, "folds/all*")
    np.testing.assert_array_equal(whole.values[0], whole.values[1])


def test_several_processes_know_the_boxes(meadow, folds, monkeypatch):
    monkeypatch.setattr(multi_process, "SHARD", 4)
    made, spread = run(meadow, BOTH, runner="here", workers=1)
    meadow.path("store").rename(meadow.path("old"))
    assert made.outcome.passes == 9 * 4
    assert spread.values.tobytes() == run(meadow, BOTH)[1].values.tobytes()


def test_margins_and_regions(meadow):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    box = Box(20, 10, 60, 50)
    near = replace(WHOLE, interpolation="nearest")
    for text, edges in {
        "bug": (20, 10, 60, 50),
        "bug+0.1": (16, 6, 64, 54),
        "bug-0.25": (30, 20, 50, 40),
        "bug+1": (0, 0, 100, 90),  # cut off at the image's edge
        "bug:0,0,1,0.5": (20, 10, 60, 30),
    }.items():
        left, top, right, bottom = edges
        expected = render.render(image[top:bottom, left:right], near)
        np.testing.assert_array_equal(render.render(image, near.framing(text), box=box), expected)
        assert near.framing(near.framing(text).framed) == near.framing(text)
    expected = render.render(image[9:81, 30:120], near)
    np.testing.assert_array_equal(render.render(image, near.framing("0.25,0.1,1,0.9")), expected)
    assert WHOLE.framing("") == WHOLE
    for text in ("bug*2", "1,2,3", "a b", "0.5,0,0.5,1", "bug-0.5", "bug:0,0,nan,1"):
        with pytest.raises(CardError):
            WHOLE.framing(text)


def test_the_digest_of_pixels_without_a_box_is_what_it_always_was():
    assert Preprocess((32, 32)).digest == "566a75c2bf4e1ef9"
    assert len({WHOLE.digest, BUG.digest, WHOLE.framing("bug+0.1").digest, WHOLE.framing("0,0,1,0.5").digest}) == 4
    said = card(preprocess=WHOLE.framing("bug+0.1"))
    assert cards.Card.from_json(said.to_json(), where="here") == said


def test_rows_without_a_box(meadow, folds):
    edit(meadow.path("boxes.csv"), "test002", "", "", "", "")
    np.testing.assert_allclose(run(Competition.read(meadow.root))[1].values[2], plain(meadow, "test")[2], atol=1e-12)
    lines = meadow.path("boxes.csv").read_text().splitlines(keepends=True)
    meadow.path("boxes.csv").write_text("".join(line for line in lines if not line.startswith("test003")))
    with pytest.raises(ImageError, match=r"test003\.png has no box 'bug'"):
        run(Competition.read(meadow.root))
    made, _ = run(Competition.read(meadow.root), on_bad_image="prior")
    assert [bad.id for bad in made.outcome.bad] == ["test003"]
    made, _ = run(Competition.read(meadow.root), BOTH, on_bad_image="prior")  # its digest is known by now, its box is not
    assert [bad.id for bad in made.outcome.bad] == ["test003"]


@pytest.mark.parametrize(
    ("cells", "match"),
    [
        (("1", "2", "x", "4"), r"boxes\.csv, 'test005': .* is no box"),
        (("1", "2", "", "4"), "is no box"),
        (("50", "2", "40", "4"), "has no area"),
        (("nan", "2", "40", "4"), "has no area"),
        (("500", "2", "540", "44"), r"nothing of its 120 × 90 pixels lies in the box"),
    ],
)
def test_boxes_that_cannot_be(meadow, folds, cells, match):
    edit(meadow.path("boxes.csv"), "test005", *cells)
    with pytest.raises((CompetitionError, ImageError), match=match):
        run(Competition.read(meadow.root))


def test_what_competition_toml_says_of_boxes_is_checked(meadow, folds):
    assert Competition.read(meadow.root).boxes_of == meadow.boxes_of
    text = meadow.path("competition.toml").read_text()
    for old, new, match in (
        ('form = "corners"', 'form = "corner"', "unknown form"),
        ('"a", "b", "c", "d"', '"a", "b", "c"', "four columns"),
        ("[boxes.bug]", '[boxes."b-g"]', "letters, digits"),
        ('test = "boxes.csv"', 'tset = "boxes.csv"', r"unknown key 'tset' in \[boxes.bug\]"),
    ):
        assert old in text
        meadow.path("competition.toml").write_text(text.replace(old, new))
        with pytest.raises(CompetitionError, match=match):
            Competition.read(meadow.root)
    meadow.path("competition.toml").write_text(text.replace('test = "boxes.csv"', ""))
    with pytest.raises(CompetitionError, match=r"has no column 'a'"):
        Competition.read(meadow.root).boxes.of("bug", "test000", "test/test000.png")
    meadow.path("competition.toml").write_text(text.partition("[boxes")[0] + text[text.index("[targets") :])
    with pytest.raises(CompetitionError, match="no boxes 'bug'"):
        run(Competition.read(meadow.root))


def test_training_pixels_come_from_the_boxes_cached_or_not(meadow):
    expected = np.stack([render.load(meadow.path("cut", "train", path.name), WHOLE) for _, path in meadow.images("train")])
    for cache in (True, False):
        samples = decode(meadow, BUG, "label", cache=cache)
        np.testing.assert_array_equal(samples.pixels[np.arange(len(samples.ids))], expected)
    np.testing.assert_array_equal(export_checkpoint.samples(meadow, BUG), expected)  # what parity is proved on
    (first,) = meadow.path("cache").glob("pixels-*.npy")
    edit(meadow.path("train.csv"), "train001", "0", "0", "9", "9")
    decode(Competition.read(meadow.root), BUG, "label")
    assert len(list(meadow.path("cache").glob("pixels-*.npy"))) == 2
    assert first.exists()


def test_a_recipe_trains_on_boxes_and_its_exports_reproduce_its_table(meadow):
    words = ["--workspace", str(meadow.root), "--device", "cpu", "--no-pretrained", "--model", "test_resnet", "--size", "32"]
    words += ["--epochs", "1", "--batch-size", "8", "--logger", "none", "--box", "bug+0.1"]
    ran = CliRunner().invoke(load_recipe("timm_kfold").main, words)
    assert ran.exit_code == 0, ran.output
    assert read(meadow.path("folds", "timm.fold0.onnx")).card.preprocess.framed == "bug+0.1"
    assert "box bug+0.1" in CliRunner().invoke(cli, ["inspect", "folds/timm.fold0.onnx"]).output
    out = meadow.path("again.parquet")
    predicted(meadow, find_exports(["folds/timm*"], base=meadow.root), "train", out, held_out=True)
    theirs = prediction_files.read_table(meadow.path("oof", "timm.parquet")).predictions["label"]
    ours = prediction_files.read_table(out).predictions["label"].align(theirs.ids)
    np.testing.assert_allclose(ours.values, theirs.values, atol=1e-4)
    edit(meadow.path("train.csv"), "train001", "0", "0", "9", "9")
    ran = CliRunner().invoke(load_recipe("timm_kfold").main, words)
    assert ran.exit_code == 1
    assert "boxes was" in ran.output


@pytest.mark.parametrize(("box", "said"), [("eye", "no boxes 'eye'"), ("bug*2", "'bug*2' is no box"), ("bug-0.5", "has none")])
def test_recipes_refuse_boxes_that_there_are_not(meadow, box, said):
    recipe = load_recipe("timm_kfold")
    words = [
        "--workspace",
        str(meadow.root),
        "--smoke",
        "--model",
        "test_resnet",
        "--no-pretrained",
        "--size",
        "32",
        "--box",
        box,
    ]
    ran = CliRunner().invoke(recipe.main, [*words, "--device", "cpu"])
    assert ran.exit_code == 1, ran.output
    assert said in ran.output


def test_an_explanation_looks_into_the_box(meadow, folds):
    exports = read_exports(find_exports([BUGS], base=meadow.root), meadow)
    found = explanation.explain(meadow, exports, "test003", device="cpu")
    cut = render.load(meadow.path("cut", "test", "test003.png"), WHOLE)
    np.testing.assert_array_equal(found.pixels, cut.transpose(1, 2, 0))
    np.testing.assert_allclose(found.combined, run(meadow)[1].values[3], atol=1e-6)


def test_a_bundle_cuts_boxes_of_a_hidden_test_set(meadow, folds, tmp_path):
    run(meadow)
    made = pack.make(meadow, tmp_path / "bundle", python="{}.{}".format(*sys.version_info), cuda="cpu", wheels=False)
    hidden = make_workspace(tmp_path / "hidden", test=7)
    words = [sys.executable, str(made.path / "run.py"), "--test", str(hidden.path("test")), "--out", str(tmp_path / "out.csv")]
    words += ["--sample", str(hidden.path("sample_submission.csv"))]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "--boxes bug=FILE.csv" in told.stdout
    for wrong in ("boxes.csv", "bog=boxes.csv"):
        told = subprocess.run([*words, "--boxes", wrong], capture_output=True, text=True, check=False)
        assert told.returncode == 1
        assert "the models look into 'bug'" in told.stdout
    words += ["--boxes", f"bug={hidden.path('boxes.csv')}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "out.csv").open() as file:
        written = {row["id"]: row["label"] for row in csv.DictReader(file)}
    shutil.copytree(folds, hidden.path("folds"))
    _, ours = run(hidden)
    assert written == {name: CLASSES[label] for name, label in zip(ours.ids, ours.decided, strict=True)}


def test_a_submission_names_the_table_of_boxes_among_its_inputs(meadow, folds):
    run(meadow)
    ran = CliRunner().invoke(cli, ["submit"])
    assert ran.exit_code == 0, ran.output
    assert "boxes/boxes" in json.loads(meadow.path("submission.json").read_text())["tables"]
    edit(meadow.path("boxes.csv"), "test004", "0", "0", "50", "50")
    ran = CliRunner().invoke(cli, ["verify"])
    assert ran.exit_code == 1
    assert "boxes.csv" in ran.output


def test_boxes_of_a_folder_are_found_by_their_files(meadow, folds):
    expected = run(meadow)[1]
    out = meadow.path("folder.parquet")
    predicted(meadow, find_exports([BUGS], base=meadow.root), "test", out)
    np.testing.assert_array_equal(prediction_files.read_table(out).predictions["label"].values, expected.values)
    predicted(meadow, find_exports([BUGS], base=meadow.root), str(meadow.path("test")), out)
    np.testing.assert_array_equal(prediction_files.read_table(out).predictions["label"].values, expected.values)
    with pytest.raises(ImageError, match="has no box 'bug'"):
        predicted(meadow, find_exports([BUGS], base=meadow.root), str(meadow.path("cut")), out)


def test_models_from_elsewhere_are_given_a_box(meadow, folds):
    done = adopt.adopt(folds / "bug.fold0.onnx", Asked(CLASSES, member="theirs", box="bug"), meadow)
    assert done.card.preprocess == BUG
    cut = np.stack([render.load(meadow.path("cut", "train", path.name), WHOLE) for _, path in meadow.images("train")])
    session = open_session({"m": folds / "bug.fold0.onnx"}, device="cpu")
    said = session.run(session.place(cut), "id", ["m"])["m"].argmax(axis=1)
    assert done.accuracy == np.mean(said == meadow.truth()["label"].decided)
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), meadow.path("mine.safetensors"))
    words = ["export", "mine.safetensors", "--model", "test_resnet", "--size", "32", "--resize", "squash", "--member", "mine"]
    ran = CliRunner().invoke(cli, [*words, "--box", "bug+0.1"])
    assert ran.exit_code == 0, ran.output
    assert read(meadow.path("folds", "mine.all.onnx")).card.preprocess.framed == "bug+0.1"
    assert CliRunner().invoke(cli, [*words, "--force", "--box", "eye"]).exit_code == 1
