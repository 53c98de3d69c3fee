"""Pages: what they show equals what --json says, names cannot run, and poor inputs give a page."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import CLASSES, draw, make_workspace
from PIL import Image

from toolkit import markup, reporting, surveying, tables
from toolkit.cli import cli
from toolkit.competition import Competition
from toolkit.folds import Split, make
from toolkit.predictions import Predictions
from toolkit.reports import eda, figures, page, report

HOSTILE = ("<script>alert(1)</script>", "한국어", '🐝 & "quoted" \'', "שלום עולם", "$x^2$ {{ 7*7 }}")


class Reading(HTMLParser):
    """Pictures without words, scripts, addresses that would be fetched, and all text."""

    def __init__(self, text: str):
        super().__init__()
        self.bare, self.scripts, self.fetched, self.words, self.tables = [], 0, [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.scripts += tag == "script"
        self.tables += tag == "table"
        if tag == "img" and not found.get("alt"):
            self.bare.append(found)
        for name in ("src", "href", "xlink:href", "action"):
            if (value := found.get(name)) and not value.startswith(("#", "data:image/")):
                self.fetched.append(value)

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def insects(tmp_path_factory):
    """A workspace with two members' out-of-fold tables, predictions, a run and a submission's manifest."""
    root = make_workspace(tmp_path_factory.mktemp("pages") / "work", train=48, test=12)
    competition = Competition.read(root)
    truth = competition.truth()["label"]
    rng = np.random.default_rng(3)
    for name, noise in (("good", 0.8), ("poor", 2.0)):
        logits = 2.0 * np.eye(3)[truth.decided] + rng.normal(0, noise, (len(truth), 3))
        values = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        table = Predictions("label", "probabilities", truth.ids, CLASSES, values)
        tables.write_table(root / "oof" / f"{name}.parquet", {"label": table}, {"member": name})
    ids = tuple(str(9000 + i) for i in range(12))
    test = Predictions("label", "probabilities", ids, CLASSES, rng.dirichlet(np.ones(3), 12))
    meta = {"name": "ensemble", "created": "2026-11-23T10:00:00+00:00", "vote": "soft", "views": {"good": ["id"]}, "models": []}
    tables.write_table(root / "predictions" / "ensemble.parquet", {"label": test}, meta)
    folder = root / "runs" / "good" / "fold0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("epoch,loss,lr,images/s\n1,0.9,0.1,5\n2,0.4,0.05,5\n")
    return root


def run(root, *words):
    return CliRunner().invoke(cli, ["-C", str(root), *words])


def text_of(path) -> Reading:
    return Reading(path.read_text(encoding="utf-8"))


def sound(reading: Reading):
    assert not reading.bare
    assert not reading.fetched
    assert reading.scripts == 1


def test_the_report_shows_what_json_says(insects):
    done = run(insects, "report", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    found = text_of(insects / "reports" / "report.html")
    sound(found)
    cells = {word.strip() for word in found.words}
    for scored in said["targets"]["label"]["scores"].values():
        for name in ("score", "low", "high"):
            assert markup.shown(scored[name]) in cells
        assert {markup.shown(value) for value in scored["folds"].values()} <= cells
    for row in said["targets"]["label"]["confused"]:
        assert {f"{count:,}" for count in row if count} <= cells
    for name, pair in said["targets"]["label"]["histogram"].items():
        assert sum(pair) >= 0
        assert name in cells
    competition = Competition.read(insects)
    both = [tables.read_table(insects / "oof" / f"{name}.parquet").predictions["label"] for name in ("good", "poor")]
    mean = Predictions("label", "probabilities", both[0].ids, CLASSES, (both[0].values + both[1].values) / 2)
    accuracy = mean.score(competition.score, competition.truth()["label"])
    assert said["figures"]["label: ensemble"] == pytest.approx(accuracy, abs=1e-12)
    truth, labels = competition.truth()["label"].decided, mean.decided
    expected = [[int(((truth == i) & (labels == j)).sum()) for j in range(3)] for i in range(3)]
    assert said["targets"]["label"]["confused"] == expected
    (pair,) = said["targets"]["label"]["pairs"]
    errors = [(table.decided != truth).astype(float) for table in both]
    assert pair["correlation"] == pytest.approx(np.corrcoef(*errors)[0, 1], abs=1e-9)
    alone = said["targets"]["label"]["without"]["poor"]["score"]
    assert alone == pytest.approx(both[0].score(competition.score, competition.truth()["label"]), abs=1e-12)
    assert markup.shown(alone) in cells
    sure = mean.values.max(axis=1)
    wrong = sorted(np.flatnonzero(truth != labels), key=lambda row: -sure[row])
    assert said["targets"]["label"]["mistakes"] == [mean.ids[row] for row in wrong[: reporting.MISTAKES]]


def test_the_report_remembers_the_last_one(insects):
    run(insects, "report")
    assert json.loads(run(insects, "report", "--json").output)["changes"] == []
    kept = insects / "reports" / "report.json"
    kept.write_text(kept.read_text().replace("label: good", "label: gone"))
    changes = {name: (before, now) for name, before, now in json.loads(run(insects, "report", "--json").output)["changes"]}
    assert changes["label: gone"][1] is None
    assert changes["label: good"][0] is None


def test_cells_of_the_matrix_open_pictures_that_are_there(insects):
    html = report.page(reporting.gather(Competition.read(insects))).html()
    keys = re.findall(r'<button[^>]*aria-controls="([^"]+)"', html)
    assert keys
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert f'id="{key}" hidden' in html
    drawers = re.findall(r'class="drawer".*?</figure>', html, re.DOTALL)
    assert all("data:image/jpeg" in drawer for drawer in drawers)


def test_a_blend_is_what_the_ensemble_row_shows(insects, tmp_path):
    assert run(insects, "blend", "--weigher", "greedy", "--always").exit_code == 0
    said = json.loads(run(insects, "report", "--json").output)
    weights = said["blend"]["targets"]["label"]["members"]
    assert said["targets"]["label"]["how"].startswith("blend.json")
    assert set(weights) == {"good", "poor"}
    assert "The blend" in " ".join(text_of(insects / "reports" / "report.html").words)
    (insects / "blend.json").unlink()


def test_the_survey_counts_what_is_there(insects):
    found = surveying.survey(Competition.read(insects))
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
    assert "imbalanced 20:1 (fewest: 'cat' with 1)" in advice
    assert "brightness" in advice
    assert "aspect" in advice
    assert "2 train images cannot be used" in advice
    assert "split by group" in advice
    assert {shift["what"] for shift in said["shifts"] if shift["distance"] > 0.9} >= {"width", "brightness"}
    sound(text_of(root / "reports" / "eda.html"))


def test_a_sample_is_said_to_be_one(insects):
    found = surveying.survey(Competition.read(insects), sample=10)
    assert found.record["sampled"] == {"train": 10, "test": 10}
    assert "random sample: 10 of 48" in eda.page(found).html()


def hostile(root):
    """A workspace whose classes have names that would run, if they could."""
    make_workspace(root, train=50, test=10, classes=HOSTILE)
    truth = Competition.read(root).truth()["label"]
    values = np.random.default_rng(0).dirichlet(np.ones(5), len(truth))
    table = Predictions("label", "probabilities", truth.ids, HOSTILE, values)
    tables.write_table(root / "oof" / "<img src=x onerror=alert(2)>.parquet", {"label": table}, {})
    return root


def test_hostile_names_are_only_text(tmp_path):
    root = hostile(tmp_path / "work")
    for name in ("eda", "report"):
        done = run(root, name)
        assert done.exit_code == 0, done.output
        found = text_of(root / "reports" / f"{name}.html")
        sound(found)
        shown = " ".join(found.words)
        for class_name in HOSTILE:
            assert class_name in shown


@pytest.mark.parametrize("poor", ["one class said", "one fold", "no test images", "one image each"])
def test_poor_inputs_give_a_page(poor, tmp_path):
    train = 3 if poor == "one image each" else 24
    root = make_workspace(tmp_path / "work", train=24, test=4)
    competition = Competition.read(root)
    if poor == "one image each":
        lines = (root / "train.csv").read_text().splitlines()[: train + 1]
        (root / "train.csv").write_text("\n".join(lines) + "\n")
        (root / "split.csv").unlink()
    if poor == "one fold":
        (root / "split.csv").unlink()
    if poor == "no test images":
        for path in (root / "test").iterdir():
            path.unlink()
        (root / "test").rmdir()
    truth = Competition.read(root).truth()["label"]
    values = np.tile([0.8, 0.1, 0.1], (len(truth), 1)) if poor == "one class said" else np.eye(3)[truth.decided]
    table = Predictions("label", "probabilities", truth.ids, competition.targets[0].classes, values)
    tables.write_table(root / "oof" / "a.parquet", {"label": table}, {})
    for words, name in ((("eda",), "eda.html"), (("report",), "report.html")):
        done = run(root, *words)
        assert done.exit_code == 0, done.output
        sound(text_of(root / "reports" / name))


def test_a_report_without_tables_says_what_to_do(tmp_path):
    root = make_workspace(tmp_path / "work")
    done = run(root, "report")
    assert done.exit_code == 1
    assert "has no tables" in done.output


def test_an_image_is_explained(folds, workspace):
    done = run(workspace, "explain", "9001", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    table = json.loads(run(workspace, "explain", "9001", "--tta", "hflip", "--json").output)
    assert len(table["answers"]) == 2 * len(said["answers"])
    assert sum(said["probabilities"].values()) == pytest.approx(1)
    assert run(workspace, "ensemble", "folds").exit_code == 0
    row = tables.read_table(workspace / "predictions" / "ensemble.parquet").predictions["label"].align(["9001"])
    assert [said["probabilities"][name] for name in row.classes] == pytest.approx(row.values[0].tolist(), abs=1e-6)
    sound(text_of(workspace / "reports" / "explain-9001.html"))
    assert run(workspace, "explain", "nobody").exit_code == 1
    assert run(workspace, "explain", "9001", "--vote", "rank").exit_code == 1


def test_saliency_is_where_the_answer_comes_from():
    from toolkit import explaining

    class Corner:
        """Says "yes" as far as the upper left quarter is bright."""

        def run(self, batch, view, models):
            bright = batch[:, :, :28, :28].mean(axis=(1, 2, 3)) / 255
            return {models[0]: np.stack([np.zeros(len(batch)), 8 * bright - 4], axis=1).astype(np.float32)}

        def place(self, pixels):
            return pixels

    pixels = np.zeros((3, 56, 56), np.uint8)
    pixels[:, :28, :28] = 255
    covered = explaining._covered(pixels)
    assert covered.shape == (explaining.CELLS**2, 3, 56, 56)
    said = Corner().run(covered, "id", ["m"])["m"][:, 1].reshape(explaining.CELLS, explaining.CELLS)
    whole = Corner().run(pixels[None], "id", ["m"])["m"][0, 1]
    fall = whole - said
    assert fall[:6, :6].min() > 0.05
    assert np.abs(fall[8:, 8:]).max() < 1e-6
    grown = explaining._grown(fall, (56, 56))
    assert grown.shape == (56, 56)
    assert grown[:20, :20].min() > 0.05 > np.abs(grown[40:, 40:]).max()


def test_tables_are_escaped_and_numbers_readable():
    html = markup.table(("<b>", "n"), [("<i>", 1234567), ("x", 0.123456), ("y", None), ("z", float("nan"))], caption="&")
    assert "<b>" not in html
    assert "<i>" not in html
    assert "1,234,567" in html
    assert "0.1235" in html
    assert "nan" not in html
    assert "<caption>&amp;</caption>" in html


def test_objects_show_themselves_in_notebooks(insects):
    competition = Competition.read(insects)
    truth = competition.truth()["label"]
    table = Predictions("<b>", "probabilities", ("<i>", "b"), CLASSES, np.full((2, 3), 1 / 3))
    assert "&lt;i&gt;" in table._repr_html_()
    assert "ant" in truth._repr_html_()
    split = Split.read(insects / "split.csv")
    html = split._repr_html_()
    assert "fold 1" in html
    assert Reading(html).tables == 1
    assert make(truth.ids, truth.labels, CLASSES, folds=2)._repr_html_() == html


def test_ink_follows_the_page_and_ids_differ():
    one, two = (figures.bars(title, ["a", "<b>"], {"n": [1, 2]}) for title in ("first", "second"))
    assert "currentColor" in one.svg
    assert figures._INK not in one.svg
    assert not set(re.findall(r'id="([^"]+)"', one.svg)) & set(re.findall(r'id="([^"]+)"', two.svg))
    assert "&lt;b&gt;" in one.svg
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', one.svg))
    assert used <= set(re.findall(r'id="([^"]+)"', one.svg))


def test_thumbnails_are_small(tmp_path):
    rng = np.random.default_rng(0)
    item = page.thumbnail(rng.integers(0, 256, (1500, 2000, 3), dtype=np.uint8), "noise")
    assert len(item.uri) < 12_000
    broken = tmp_path / "x.png"
    broken.write_bytes(b"no")
    missing = page.of_file(broken, "x", "line")
    assert missing.uri == ""
    assert "not an image" in missing.lines[-1]
