"""Surveys: what is counted is what is there, what is wrong or odd is found, and the page says what --json says."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from tests.analysis.pages.test_pages import run, sound, text_of
from tests.conftest import CLASSES, draw, make_workspace
from toolkit.analysis import data_survey
from toolkit.analysis.pages import data
from toolkit.base.text import html
from toolkit.core.metrics import METRICS
from toolkit.images import statistics
from toolkit.workspace.competition import Competition


def test_the_survey_counts_what_is_there(insects):
    found = data_survey.survey(Competition.read(insects))
    assert found.record["images"] == {"train": 48, "test": 12}
    assert found.record["classes"]["label"] == dict.fromkeys(CLASSES, 16)
    assert found.record["formats"]["train"] == {"PNG": 48}
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted((insects / "train").iterdir())]) / 255
    np.testing.assert_allclose(found.mean, pixels.mean(axis=(0, 1, 2)), atol=1e-9)
    np.testing.assert_allclose(found.std, pixels.std(axis=(0, 1, 2)), atol=1e-9)
    assert found.record["shape"]["train"]["width"]["50%"] == 52
    assert found.advice == ["Nothing stands out: balanced classes, sound files, test images like the training images."]


def test_the_survey_finds_what_is_wrong(tmp_path):
    root = make_workspace(tmp_path / "work", train=60, test=30)
    (root / "train" / "0003.png").write_bytes(b"")
    (root / "train" / "0007.png").write_bytes((root / "train" / "0001.png").read_bytes())
    (root / "train" / "0004.png").write_bytes((root / "train" / "0004.png").read_bytes()[:-20])
    rng = np.random.default_rng(0)
    for i in range(30):
        picture = draw(rng, i % 3, 40, 104)
        picture.point(lambda level: level // 3).save(root / "test" / f"{9000 + i}.png")
    text = (root / "train.csv").read_text().splitlines()
    body = [f"{line},p{i // 6}" for i, line in enumerate(text[1:])]
    kept = [line for line in body if ",cat," not in line or line.startswith("0002")]
    (root / "train.csv").write_text("\n".join([text[0] + ",person", *kept, ""]))
    toml = (root / "competition.toml").read_text().replace('id = "id"', 'id = "id"\ngroup = "person"')
    (root / "competition.toml").write_text(
        toml if "group" in toml else toml.replace("[train]", '[columns]\ngroup = "person"\n[train]')
    )
    done = run(root, "eda", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert len(said["bad"]["train"]) == 2
    assert any("is empty" in why for why in said["bad"]["train"].values())
    assert any("cut short" in why for why in said["bad"]["train"].values())
    assert said["imbalance"] == 20
    assert said["doubles"]["pairs"][0][0][:2] == ["train", "0001"]
    assert said["doubles"]["pairs"][0][1][:2] == ["train", "0007"]
    assert said["doubles"]["exact"] == 1
    advice = " ".join(said["advice"])
    assert "imbalanced 20:1 (fewest: 'cat' with 1): accuracy hardly sees the rare ones" in advice
    assert "brightness" in advice
    assert "aspect" in advice
    assert "2 train images cannot be used" in advice
    assert "split by group" in advice
    groups = text_of(root / "reports" / "eda.html")
    head = ("target", "group", "rows", "labels")
    rows = list(csv.DictReader((root / "train.csv").read_text().splitlines()))
    people = {row["person"]: [r["label"] for r in rows if r["person"] == row["person"]] for row in rows}
    mixed = {name: (len(labels), len(set(labels))) for name, labels in people.items() if len(set(labels)) > 1}
    assert dict(zip(groups.column(head, "group"), groups.column(head, "labels"), strict=True)) == {
        name: str(count) for name, (_, count) in mixed.items()
    }
    assert {group: (rows, labels) for _, group, rows, labels in said["groups"]["mixed"]} == mixed
    assert sum(int(size) * count for size, count in said["groups"]["sizes"].items()) == len(rows)
    assert {shift["what"] for shift in said["shifts"] if shift["distance"] > 0.9} >= {"width", "brightness"}
    sound(text_of(root / "reports" / "eda.html"))


def test_the_page_of_the_data_shows_what_json_says(insects):
    for i, level in enumerate((255, 0)):  # blank ones, brighter and darker than any other
        Image.new("RGB", (52, 40), (level,) * 3).save(insects / "test" / f"{9000 + i}.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 520, 3), np.uint8)).save(insects / "test" / "9002.png")
    done = run(insects, "eda", "--json")
    said = json.loads(done.output)
    found = text_of(insects / "reports" / "eda.html")
    classes, normal = ("class", "images", "share"), ("channel", "mean", "standard deviation")
    assert found.column(classes, "images") == [str(count) for count in said["classes"]["label"].values()]
    assert found.column(normal, "mean") == html.column(said["mean"])
    assert found.column(normal, "standard deviation") == html.column(said["std"])
    spread = ("part", "", "smallest", "5 %", "median", "95 %", "largest")
    values = [quantiles["50%"] for part in ("train", "test") for quantiles in said["shape"][part].values()]
    assert found.column(spread, "median") == html.column(values)
    shifts = ("property", "distance", "p-value", "")
    for column, key in (("distance", "distance"), ("p-value", "p")):
        assert found.column(shifts, column) == html.column([shift[key] for shift in said["shifts"]])
    assert set(said["advice"]) <= {word.strip() for word in found.words}
    odd = {(one["id"], one["what"]) for one in said["odd"]["test"]["files"]}
    assert {("9000", "blank"), ("9001", "blank"), ("9002", "wide"), ("9002", "large")} <= odd
    assert said["odd"]["train"]["count"] == 0
    for i in range(3):
        draw(np.random.default_rng(i), i).save(insects / "test" / f"{9000 + i}.png")


def test_what_many_files_share_is_not_odd(tmp_path):
    for i in range(40):
        Image.new("RGB", (40 if i % 4 else 80, 40), (i * 6, 0, i)).save(tmp_path / f"{i}.png")
    named = [(str(i), tmp_path / f"{i}.png") for i in range(40)]
    seen = []
    found = statistics.measure(named, 30, seen.append)
    assert seen[-1] == 40
    assert len(found.sampled) == len(found.prints.digests) == 30
    assert {one.what for one in statistics.odd(found)} == {"blank"}


def test_a_sample_is_said_to_be_one(insects):
    found = data_survey.survey(Competition.read(insects), sample=10)
    assert found.record["sampled"] == {"train": 10, "test": 10}
    assert "random sample: 10 of 48" in data.page(found).html()


def test_the_survey_names_what_pictures_hide(tmp_path):
    """A drawing in alpha alone, 12 bits in 16: named with what shows them, and no longer once competition.toml says so."""
    root = make_workspace(tmp_path / "work", train=12, test=6)
    drawing = Image.linear_gradient("L").resize((16, 16))
    for path in sorted((root / "train").iterdir())[:4]:
        Image.merge("LA", (Image.new("L", (16, 16), 0), drawing)).save(path)
    for path in (root / "test").iterdir():
        Image.fromarray(np.linspace(0, 4095, 256).astype(np.uint16).reshape(16, 16)).save(path)
    advice = data_survey.survey(Competition.read(root)).advice
    assert sum("alpha alone" in line or 'alpha = "white" in competition.toml shows it' in line for line in advice) == 1
    assert sum("window = [0, 4095] in competition.toml stretches them" in line for line in advice) == 1
    text = (root / "competition.toml").read_text()
    (root / "competition.toml").write_text(text.replace("[columns]", 'alpha = "white"\nwindow = [0, 4095]\n[columns]', 1))
    survey = data_survey.survey(Competition.read(root))
    assert not any("in competition.toml" in line for line in survey.advice)
    assert not any(odd.what == "blank" for odd in survey.odd["train"])
    brightness = survey.files["test"].pixel["brightness"]
    assert np.allclose(brightness, 0.5, atol=0.01)


@pytest.mark.parametrize(
    ("metric", "said", "not_said"),
    [
        ("quadratic_kappa", "keep what gains quadratic_kappa", "F1"),
        ("macro_f1", "keep what gains macro_f1", "hardly"),
        ("roc_auc", "keep what gains roc_auc", "calibrate"),
        ("log_loss", "calibrate after those", "try a weighted"),
        ("weighted_f1", "weighted_f1 hardly sees", "try a weighted"),
    ],
)
def test_the_cure_of_imbalance_is_one_for_the_metric(metric, said, not_said):
    (advice,) = data_survey._about_classes("label", {"a": 900, "b": 9}, METRICS[metric])  # a sentence of a page of many
    assert said in advice
    assert not_said not in advice
