"""Pages: what they show equals what --json says, names cannot run, and poor inputs give a page."""

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.conftest import CLASSES, card, few_pictures, make_workspace
from toolkit.analysis import data_survey, ensemble_report, run_history
from toolkit.analysis.pages import data as eda
from toolkit.analysis.pages import ensemble, figures, page
from toolkit.base.text import html as markup
from toolkit.blending.blend import Blend
from toolkit.cli import cli
from toolkit.core import prediction_files
from toolkit.core.predictions import Predictions
from toolkit.ensemble import tta
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split, make

HOSTILE = ("<script>alert(1)</script>", "한국어", '🐝 & "quoted" \'', "שלום עולם", "$x^2$ {{ 7*7 }}")


BREAK: list[str] = []  # between tables


class Reading(HTMLParser):
    """Pictures without words, scripts, addresses that would be fetched, all text, and the rows of every table."""

    def __init__(self, text: str):
        super().__init__()
        self.bare, self.scripts, self.fetched, self.words, self.tables, self.pictures = [], 0, [], [], 0, 0
        self.handlers = []
        self.rows, self.cell = [], False
        self.feed(text)

    def column(self, head: tuple[str, ...], name: str) -> list[str]:
        """A column of the first table with these column names."""
        start = next(i for i, row in enumerate(self.rows) if tuple(row) == head)
        body = []
        for row in self.rows[start + 1 :]:
            if len(row) != len(head) or row is BREAK:
                break
            body.append(row[head.index(name)])
        return body

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.scripts += tag == "script"
        self.tables += tag == "table"
        self.pictures += tag == "img"
        if tag == "table":
            self.rows.append(BREAK)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True
        if tag == "img" and not found.get("alt"):
            self.bare.append(found)
        self.handlers += [name for name in found if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action"):
            if (value := found.get(name)) and not value.startswith(("#", "data:image/")):
                self.fetched.append(value)

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = False
        if tag == "table":
            self.rows.append(BREAK)

    def handle_data(self, data):
        self.words.append(data)
        if self.cell:
            self.rows[-1][-1] += data


def run(root, *words):
    return CliRunner().invoke(cli, ["-C", str(root), *words])


def text_of(path) -> Reading:
    return Reading(path.read_text(encoding="utf-8"))


def sound(reading: Reading):
    assert not reading.bare
    assert not reading.fetched
    assert not reading.handlers
    assert reading.scripts == 1


def test_the_report_shows_what_json_says(insects):
    done = run(insects, "report", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    found = text_of(insects / "reports" / "report.html")
    sound(found)
    target = said["targets"]["label"]
    scores = target["scores"]
    head = ("member", "accuracy", "95 % from", "to", "fold 0", "fold 1")
    assert found.column(head, "member") == ["good", "poor", "ensemble"]
    for column, key in (("accuracy", "score"), ("95 % from", "low"), ("to", "high")):
        assert found.column(head, column) == markup.column([scored[key] for scored in scores.values()])
    for fold in ("0", "1"):
        assert found.column(head, f"fold {fold}") == markup.column([scored["folds"][fold] for scored in scores.values()])
    apart = ("member", "fold", "accuracy", "95 % from", "to")
    every = [target["folds"][fold][name] for name in scores for fold in ("0", "1")]
    for column, key in (("accuracy", "score"), ("95 % from", "low"), ("to", "high")):
        assert found.column(apart, column) == markup.column([one[key] for one in every])
    assert all(one["low"] <= one["score"] <= one["high"] for one in every)
    classes = ("class", "rows", "precision", "recall", "F1", "AUC")
    for column, key in (("rows", "support"), ("precision", "precision"), ("recall", "recall"), ("F1", "f1"), ("AUC", "auc")):
        values = [one[key] for one in scores["ensemble"]["classes"].values()]
        assert found.column(classes, column) == markup.column(values)
    calibration = scores["ensemble"]["calibration"]
    for column, key in (("as it is", "before"), ("after temperature", "after")):
        assert found.column(("", "as it is", "after temperature"), column) == markup.column(list(calibration[key].values()))
    bins = [*calibration["bins"], *calibration["bins_after"]]
    shown = found.column(("", "from", "to", "rows", "confidence", "share right"), "share right")
    assert shown == markup.column([one["accuracy"] for one in bins])
    matrix = ("truth", "rows", *CLASSES)
    for j, name in enumerate(CLASSES):
        counts = [int(cell.replace("·", "0").split()[0].replace(",", "")) for cell in found.column(matrix, name)]
        assert counts == [row[j] for row in target["confused"]]
    histogram = ("class", "out of fold", "test")
    for i, column in enumerate(histogram[1:]):
        assert found.column(histogram, column) == [f"{pair[i]:,}" for pair in target["histogram"].values()]
    left = ("left out", "score", "gain", "95 % from", "to")
    assert found.column(left, "gain") == markup.column([one["gain"] for one in target["without"].values()])
    cells = {word.strip() for word in found.words}
    assert set(said["advice"]) <= cells
    competition = Competition.read(insects)
    both = [prediction_files.read_table(insects / "oof" / f"{name}.parquet").predictions["label"] for name in ("good", "poor")]
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
    assert said["targets"]["label"]["mistakes"] == [mean.ids[row] for row in wrong[: ensemble_report.MISTAKES]]


def test_the_report_remembers_the_last_one(insects):
    run(insects, "report")
    assert json.loads(run(insects, "report", "--json").output)["changes"] == []
    kept = insects / "reports" / "report.json"
    kept.write_text(kept.read_text().replace("label: good", "label: gone"))
    changes = {name: (before, now) for name, before, now in json.loads(run(insects, "report", "--json").output)["changes"]}
    assert changes["label: gone"][1] is None
    assert changes["label: good"][0] is None


def test_the_report_says_what_has_changed(insects):
    assert run(insects, "report").exit_code == 0
    kept = insects / "reports" / "report.json"
    before = json.loads(kept.read_text())
    before["figures"]["label: ensemble"] -= 0.25
    kept.write_text(json.dumps(before))
    said = json.loads(run(insects, "report", "--json").output)
    (change,) = said["changes"]
    found = text_of(insects / "reports" / "report.html")
    head = ("figure", "before", "now", "change")
    assert found.column(head, "figure") == ["label: ensemble"]
    assert found.column(head, "change") == markup.column([change[2] - change[1]])
    assert change[2] - change[1] == pytest.approx(0.25)
    run(insects, "report")
    assert "No figure has changed." in text_of(insects / "reports" / "report.html").words


def test_the_report_says_where_the_time_went(insects):
    said = json.loads(run(insects, "report", "--json").output)
    assert [(one["what"].split(",")[0], one["passes"], one["share"]) for one in said["predicting"]] == [
        ("model ab12cd34", 48, 0.75),
        ("decoding", 12, 0.25),
    ]
    models = [{"digest": "ab12cd34ef", "path": "folds/good.fold0.onnx"}]
    assert run_history.predicting(insects / "store", models)[0].what == "folds/good.fold0.onnx"
    (fed,) = said["training"]
    assert (fed["run"], fed["epochs"], fed["rate"], fed["waited"], fed["loader"]) == ("good.fold0", 2, 5, 0.25, 20.5)
    found = text_of(insects / "reports" / "report.html")
    head = ("what", "engine", "passes or images", "seconds", "per second", "share")
    assert found.column(head, "seconds") == markup.column([one["seconds"] for one in said["predicting"]])
    assert found.column(head, "per second") == markup.column([48 / 1.5, 12 / 0.5])
    head = ("run", "epochs", "images/s", "waited for data, share", "loader alone", "model alone")
    assert found.column(head, "loader alone") == markup.column([20.5])
    assert "good: the model waits for images" in found.words


def test_the_report_has_the_views_that_were_judged(workspace, folds):
    assert run(workspace, "tta", "--set", "hflip", "--set", "vflip").exit_code == 0
    judged = json.loads(run(workspace, "tta", "--set", "hflip", "--set", "vflip", "--json").output)["tiny"]
    run(workspace, "predict", "folds", "--on", "train", "--held-out", "-o", "oof/tiny.parquet")
    done = run(workspace, "report", "--json")
    assert done.exit_code == 0, done.output
    kept = json.loads(done.output)["views"]["tiny"]
    assert kept["chosen"] == judged["chosen"]
    assert [line["name"] for line in kept["sets"]] == ["none", "hflip", "vflip"]
    found = text_of(workspace / "reports" / "report.html")
    head = ("set", "score", "gain", "95 % from", "to", "wrong → right", "right → wrong", "")
    for column, key in (("wrong → right", "won"), ("right → wrong", "lost")):
        assert found.column(head, column) == [str(line[key]) for line in judged["sets"]]
    assert found.column(head, "gain") == markup.column([line["estimate"]["gain"] for line in judged["sets"]])
    assert found.column(head, "").count("chosen") == 1
    (workspace / "reports" / tta.KEPT).write_text("no")
    assert tta.kept(Competition.read(workspace)) == {}


def test_the_report_lists_every_check_of_the_submission(insects):
    stray = insects / "test" / "9999.png"
    Image.new("RGB", (52, 40)).save(stray)
    assert run(insects, "submit").exit_code == 0
    stray.unlink()
    said = json.loads(run(insects, "report", "--json").output)
    manifest = json.loads((insects / "submission.json").read_text())
    seen = [text for *_, text in said["checks"] if text]
    assert sorted(seen) == sorted(manifest["warnings"])
    assert any(text.startswith("SUB076 warning") for text in seen)
    assert any("SUB076" in sentence for sentence in said["advice"])
    found = text_of(insects / "reports" / "report.html")
    head = ("code", "severity", "looks for", "found")
    assert found.column(head, "code") == [code for code, *_ in said["checks"]]
    assert [text for text in found.column(head, "found") if text != "nothing"] == seen
    assert f"{len(said['checks']) - len(seen)} of {len(said['checks'])} checks found nothing." in found.words
    for path in (insects / "submission.json", insects / "submission.csv"):
        path.unlink()


def test_cells_of_the_matrix_open_pictures_that_are_there(insects):
    html = ensemble.page(ensemble_report.gather(Competition.read(insects))).html()
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


NAMES = ("<script>alert(3)<script>", "<img src=x onerror=alert(4)>", "고양이 🐈", "שלום", "a&b;'c")


def hostile(root):
    """A workspace whose classes, files and members have names that would run, if they could."""
    make_workspace(root, train=50, test=10, classes=HOSTILE)
    rows = list(csv.reader((root / "train.csv").read_text().splitlines()))
    for row, name in zip(rows[1:], NAMES, strict=False):
        (root / "train" / f"{row[0]}.png").rename(root / "train" / f"{name}.png")
        row[0] = name
    (root / "train" / f"{NAMES[4]}.png").write_bytes(b"no picture")
    with (root / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (root / "split.csv").unlink()
    truth = Competition.read(root).truth()["label"]
    values = np.random.default_rng(0).dirichlet(np.ones(5), len(truth))
    values[:5] = 0.001 + 0.995 * np.roll(np.eye(5), 1, axis=1)  # sure and wrong: on top of the mistakes
    table = Predictions("label", "probabilities", truth.ids, HOSTILE, values / values.sum(axis=1, keepdims=True))
    prediction_files.write_table(root / "oof" / "<img src=x onerror=alert(2)>.parquet", {"label": table}, {})
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
        if name == "report":
            assert all(one in shown for one in NAMES)


@pytest.mark.parametrize("poor", ["one class said", "one class", "one fold", "no test images", "one image each"])
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
    if poor == "one class":
        text = (root / "train.csv").read_text()
        (root / "train.csv").write_text(text.replace("bee", "ant").replace("cat", "ant"))
    truth = Competition.read(root).truth()["label"]
    values = np.tile([0.8, 0.1, 0.1], (len(truth), 1)) if poor == "one class said" else np.eye(3)[truth.decided]
    table = Predictions("label", "probabilities", truth.ids, competition.targets[0].classes, values)
    prediction_files.write_table(root / "oof" / "a.parquet", {"label": table}, {})
    for words, name in ((("eda",), "eda.html"), (("report",), "report.html")):
        done = run(root, *words)
        assert done.exit_code == 0, done.output
        sound(text_of(root / "reports" / name))


def test_several_labels_make_pages(tmp_path):
    root = few_pictures(tmp_path / "work")
    competition = Competition.read(root)
    truth = competition.truth()["digits"]
    values = np.clip(0.8 * truth.decided + np.random.default_rng(0).uniform(0, 0.4, truth.decided.shape), 0, 1)
    table = Predictions("digits", "probabilities", truth.ids, competition.targets[0].classes, values, multilabel=True)
    for name in ("a", "b"):
        prediction_files.write_table(root / "oof" / f"{name}.parquet", {"digits": table}, {})
    said = {}
    for name in ("eda", "report"):
        done = run(root, name, "--json")
        assert done.exit_code == 0, done.output
        said[name] = json.loads(done.output)
        sound(text_of(root / "reports" / f"{name}.html"))
    found = text_of(root / "reports" / "report.html")
    head = ("label", "rightly not", "wrongly said", "missed", "rightly said")
    for column, (i, j) in zip(head[1:], ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True):
        assert found.column(head, column) == [str(cell[i][j]) for cell in said["report"]["targets"]["digits"]["confused"]]
    assert "A and b are identical: one of them is enough." in said["report"]["advice"]


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
    row = prediction_files.read_table(workspace / "predictions" / "ensemble.parquet").predictions["label"].align(["9001"])
    assert [said["probabilities"][name] for name in row.classes] == pytest.approx(row.values[0].tolist(), abs=1e-6)
    found = text_of(workspace / "reports" / "explain-9001.html")
    sound(found)
    best = sorted(table["probabilities"], key=lambda name: -table["probabilities"][name])
    head = ("model", "view", "weight", "says", *best)
    assert found.column(head, "view") == [one["view"] for one in table["answers"]]
    assert found.column(head, "weight") == markup.column([one["weight"] for one in table["answers"]])
    for name in best:
        assert found.column(head, name) == markup.column([round(one["probabilities"][name], 4) for one in table["answers"]])
    assert run(workspace, "explain", "nobody").exit_code == 1
    assert run(workspace, "explain", "9001", "--vote", "rank").exit_code == 1


def test_saliency_is_where_the_answer_comes_from():
    from toolkit.analysis import explanation

    class Corner:
        """Says "yes" as far as the upper left quarter is bright."""

        def run(self, batch, view, models):
            bright = batch[:, :, :28, :28].mean(axis=(1, 2, 3)) / 255
            return {models[0]: np.stack([np.zeros(len(batch)), 8 * bright - 4], axis=1).astype(np.float32)}

        def place(self, pixels):
            return pixels

    pixels = np.zeros((3, 56, 56), np.uint8)
    pixels[:, :28, :28] = 255
    covered = explanation.covered(pixels)
    assert covered.shape == (explanation.CELLS**2, 3, 56, 56)
    said = Corner().run(covered, "id", ["m"])["m"][:, 1].reshape(explanation.CELLS, explanation.CELLS)
    whole = Corner().run(pixels[None], "id", ["m"])["m"][0, 1]
    fall = whole - said
    assert fall[:6, :6].min() > 0.05
    assert np.abs(fall[8:, 8:]).max() < 1e-6
    grown = explanation.spread(fall, (56, 56))
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
    blend = Blend(("<b>", "vit"), np.array([0.25, 0.75]), "geometric")._repr_html_()
    assert "&lt;b&gt;" in blend
    assert "geometric vote" in blend
    assert "0.75" in blend
    assert "&lt;i&gt;" in card("<i>")._repr_html_()


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
    for side in (page.THUMBNAIL, 360):
        item = page.thumbnail(rng.integers(0, 256, (1500, 2000, 3), dtype=np.uint8), "noise", side=side)
        assert len(item.uri) < 4 / 3 * page.HEAVIEST * (side / page.THUMBNAIL) ** 2 + 40
    noise = page.thumbnail(rng.integers(0, 256, (page.THUMBNAIL, page.THUMBNAIL, 3), dtype=np.uint8), "worst")
    assert len(noise.uri) < 4 / 3 * page.HEAVIEST + 40
    assert page.LIMIT_THUMBNAILS * (4 / 3 * page.HEAVIEST + 200) < 12.6e6
    broken = tmp_path / "x.png"
    broken.write_bytes(b"no")
    missing = page.of_file(broken, "x", "line")
    assert missing.uri == ""
    assert missing.lines[-1].startswith("is not an image")


def test_pages_of_many_images_and_classes_stay_small(tmp_path, monkeypatch):
    """As many thumbnails as a page may bear, each as heavy as may be, with everything that grows with classes and runs."""
    classes = tuple(f"class {i:04d} with a rather long name" for i in range(200))
    root = make_workspace(tmp_path / "work", train=600, test=3, classes=classes)
    truth = Competition.read(root).truth()["label"]
    values = np.random.default_rng(0).dirichlet(np.full(200, 0.02), 600)
    for name in ("a", "b"):
        table = Predictions("label", "probabilities", truth.ids, classes, values)
        prediction_files.write_table(root / "oof" / f"{name}.parquet", {"label": table}, {})
    for i in range(100):
        folder = root / "runs" / f"m{i // 5}" / f"fold{i % 5}"
        folder.mkdir(parents=True)
        rows = [f"{epoch},{1 / epoch + i},{0.1 / epoch}" for epoch in range(1, 501)]
        (folder / "metrics.csv").write_text("\n".join(["epoch,loss,lr", *rows, ""]))
    heaviest = "data:image/jpeg;base64," + "A" * (4 * page.HEAVIEST // 3)
    monkeypatch.setattr(page, "thumbnail", lambda pixels, alt, *lines, side=96: page.Thumbnail(heaviest, alt, lines))
    for made_page in (
        eda.page(data_survey.survey(Competition.read(root))),
        ensemble.page(ensemble_report.gather(Competition.read(root))),
    ):
        html = made_page.html()
        assert Reading(html).pictures > 80
        assert Reading(html).pictures <= page.LIMIT_THUMBNAILS
        assert len(html.encode()) < 15e6 - (page.LIMIT_THUMBNAILS - Reading(html).pictures) * (len(heaviest) + 400)


def test_the_pictures_of_a_matrix_keep_to_their_number(insects):
    (judged,) = ensemble_report.gather(Competition.read(insects)).judged
    paths = dict(Competition.read(insects).images("train"))
    every = ensemble.examples_of(judged, np.arange(3), paths, 1000)
    assert {cell for cell, items in every.items() if items} == {tuple(cell) for cell in np.argwhere(judged.confused)}
    assert all(
        len(items) == min(judged.confused[c], ensemble.RIGHT if c[0] == c[1] else ensemble.PER_CELL)
        for c, items in every.items()
    )
    few = ensemble.examples_of(judged, np.arange(3), paths, 7)
    assert sum(map(len, few.values())) == 7
    html = page.PageTable(("n",), [(i,) for i in range(page.MOST_ROWS + 5)], "numbers").html
    assert len(Reading(html).rows) - 3 == page.MOST_ROWS
    assert "the first 1,000 of 1,005 rows" in html


LONG = "a member with quite a long name"
DRAWN = {
    "bars": lambda n: figures.bars("t", ["a", "b"], {f"{i}{LONG}": [0.9, 0.8] for i in range(n)}),
    "histogram": lambda n: figures.histogram("t", {f"{i}{LONG}": np.linspace(0, 1, 50) for i in range(n)}),
    "lines": lambda n: figures.lines("t", *([{f"{i}{LONG}": [0, 1] for i in range(n)}] * 2), labels=("x", "y")),
    "reliability": lambda n: figures.reliability("t", {f"{i}{LONG}": ([0.1, 0.9], [0.9, 1.0], [3, 4]) for i in range(n)}),
    "scatter": lambda n: figures.scatter("t", {f"{i}{LONG}": np.random.default_rng(i).random((9, 2)) for i in range(n)}),
}  # fmt: skip


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("count", [2, 4])
def test_no_legend_covers_what_is_drawn_or_leaves_the_figure(kind, count, monkeypatch):
    seen = []
    monkeypatch.setattr(figures, "_picture", lambda figure, alt: seen.append(figure))
    DRAWN[kind](count)
    (figure,) = seen
    figure.draw_without_rendering()
    (legend,) = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    names, whole = legend.get_window_extent(), figure.bbox
    assert len(legend.get_texts()) == count
    assert not any(names.overlaps(axes.get_tightbbox()) for axes in figure.axes)
    assert whole.x0 <= names.x0
    assert names.x1 <= whole.x1
