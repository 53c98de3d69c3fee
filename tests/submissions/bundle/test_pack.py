"""A bundle runs alone, in time, and says what the ensemble says; what it is made of agrees with the library's own parts."""

from __future__ import annotations

import csv
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from tests.conftest import draw
from toolkit import cli
from toolkit.base import durations
from toolkit.cli.commands.bundle import CUDA
from toolkit.core import voting
from toolkit.core.predictions import Predictions
from toolkit.ensemble import run as ensembling
from toolkit.errors import DataError, SubmissionError, ToolkitError
from toolkit.images import views
from toolkit.inference.exports import find_exports, output_of, read_exports
from toolkit.inference.predict import predict
from toolkit.inference.store.prediction_store import Store
from toolkit.submissions import formats
from toolkit.submissions.bundle import contents, csv_writer, pack, wheels, worker
from toolkit.submissions.bundle import run as offline
from toolkit.submissions.bundle.contents import Part, Recipe, Wanted, blend
from toolkit.submissions.bundle.csv_writer import Field
from toolkit.submissions.layout import fit
from toolkit.submissions.sample import as_format, render
from toolkit.workspace import long_form
from toolkit.workspace.competition import Competition, Images, Target
from toolkit.workspace.image_rows import Item

TTA = "hflip+scale:0.9"  # cut and turned
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"

# what the target need not have, and the network that it has not
ALONE = """
import sys, socket
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "torchcodec", "ttach", "timm", "pandas", "pyarrow", "onnx", "click", "rich", "sklearn"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
def refuse(*_): raise OSError("no network")
socket.socket.connect = refuse
"""


def probabilistic(root: Path) -> Competition:
    """The workspace with a column of probabilities per class."""
    text = (root / "competition.toml").read_text().replace('format = "labels"', 'format = "probabilities"')
    (root / "competition.toml").write_text(text)
    ids = [line.split(",")[0] for line in (root / "sample_submission.csv").read_text().splitlines()[1:]]
    (root / "sample_submission.csv").write_text("id,ant,bee,cat\n" + "".join(f"{name},1,0,0\n" for name in ids))
    return Competition.read(root)


@pytest.fixture
def packed(workspace, folds):
    """A bundle of two fold models of unequal weight with four views, without wheels, beside the workspace."""
    competition = probabilistic(workspace)
    ensembling.run(competition, find_exports(["folds/*.onnx"]), tta=TTA, weights="0.3,0.7", device="cpu")
    made = pack.make(competition, workspace.parent / "bundle", python=HERE, cuda="cpu", wheels=False)
    (workspace.parent / "alone").mkdir()
    (workspace.parent / "alone" / "sitecustomize.py").write_text(ALONE)
    return made


def hidden(folder: Path, count: int = 150) -> tuple[Path, Path]:
    """A test set that the bundle has not seen: images and a sample with ids of their own, in an order of its own."""
    rng = np.random.default_rng(3)
    (folder / "images").mkdir(parents=True)
    ids = [f"{i:05d}" for i in rng.permutation(count)]
    for i, name in enumerate(ids):
        draw(rng, i % 3, 30 + i % 20, 45).save(folder / "images" / f"{name}.png")
    sample = folder / "sample.csv"
    sample.write_text("id,ant,bee,cat\n" + "".join(f"{name},0.5,0.5,0\n" for name in ids))
    return folder / "images", sample


def run(bundle: Path, *arguments: object) -> tuple[int, str]:
    """`python run.py` where nothing but onnxruntime, numpy and Pillow can be imported and no network can be reached."""
    env = os.environ | {"PYTHONPATH": str(bundle.parent / "alone")}
    words = [sys.executable, str(bundle / "run.py"), *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=120, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def written(path: Path) -> dict[str, list[float]]:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "ant", "bee", "cat"]
    return {row[0]: [float(cell) for cell in row[1:]] for row in rows[1:]}


def expected(workspace: Path, images: Path, ids, *, models=slice(None), weights=(0.3, 0.7)) -> np.ndarray:
    """What the library makes of the same images with Pillow's pixels: its own store, sessions, torch views and vote."""
    competition = Competition.read(workspace)
    exports = read_exports(find_exports(["folds/*.onnx"], base=workspace), competition)[models]
    each = {export.digest: views.views(TTA) for export in exports}
    items = [Item(name, images / f"{name}.png") for name in ids]
    outcome = predict(exports, each, items, Store(workspace / "other"), device="cpu", implementation="pillow")
    share = list(weights[models])
    target = competition.targets[0]
    return ensembling.combine(competition, target, exports, outcome, list(ids), views=each, share=share)[0].values


def test_a_bundle_says_what_the_ensemble_says(packed, workspace, tmp_path):
    images, sample = hidden(tmp_path / "hidden")
    moved = packed.path.rename(packed.path.with_name("elsewhere"))
    code, said = run(moved, "--test", images, "--sample", sample, "--out", tmp_path / "out.csv")
    assert code == 0, said
    assert packed.agreement in said
    assert "150 rows from 2 of 2 models" in said
    found = written(tmp_path / "out.csv")
    assert list(found) == [line.split(",")[0] for line in sample.read_text().splitlines()[1:]]
    np.testing.assert_allclose(list(found.values()), expected(workspace, images, found), rtol=0, atol=1e-6)
    frame = pd.read_csv(tmp_path / "out.csv", dtype={"id": str})
    assert list(frame.id) == list(found)
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("bundle-*/0/job.json"))


def test_a_target_without_onnxruntime_is_told(packed, tmp_path):
    images, sample = hidden(tmp_path / "hidden", 5)
    (packed.path.parent / "alone" / "sitecustomize.py").write_text(ALONE.replace('"torch",', '"torch", "onnxruntime",', 1))
    code, said = run(packed.path, "--test", images, "--sample", sample, "--out", tmp_path / "out.csv")
    assert code == 1
    assert "onnxruntime is not installed" in said


def test_images_that_cannot_be_used_get_the_prior(packed, workspace, tmp_path):
    images, sample = hidden(tmp_path / "hidden", 20)
    broken, missing = "00003", "00007"
    (images / f"{broken}.png").write_bytes(b"no image")
    (images / f"{missing}.png").unlink()
    code, said = run(packed.path, "--test", images, "--sample", sample, "--out", tmp_path / "out.csv")
    assert code == 0, said
    assert "2 images cannot be used" in said
    assert f"{broken}.png is not an image" in said
    assert "2 rows have the class prior" in said
    found = written(tmp_path / "out.csv")
    counts = pd.read_csv(workspace / "train.csv").label.value_counts(normalize=True)
    np.testing.assert_allclose(found.pop(broken), counts[["ant", "bee", "cat"]], atol=1e-6)
    np.testing.assert_allclose(found.pop(missing), counts[["ant", "bee", "cat"]], atol=1e-6)
    np.testing.assert_allclose(list(found.values()), expected(workspace, images, found), rtol=0, atol=1e-6)


def hang(model: Path) -> None:
    """Reading it never ends."""
    model.unlink()
    os.mkfifo(model)


def test_the_deadline_leaves_what_is_finished(packed, workspace, tmp_path):
    images, sample = hidden(tmp_path / "hidden", 40)
    first, second = sorted((packed.path / "models").iterdir())
    assert first.name == "00-tiny.fold1.onnx", "the model of most weight comes first"
    hang(second)
    started = time.monotonic()
    code, said = run(packed.path, "--test", images, "--sample", sample, "--out", tmp_path / "out.csv", "--deadline", "6s")
    assert time.monotonic() - started < 10
    assert code == 0, said
    assert "40 rows from 1 of 2 models" in said
    assert "Not finished before the deadline: tiny.fold0" in said
    found = written(tmp_path / "out.csv")
    np.testing.assert_allclose(list(found.values()), expected(workspace, images, found, models=slice(1, 2)), atol=1e-6)


def test_the_prior_stands_where_nothing_is_finished(packed, workspace, tmp_path):
    images, sample = hidden(tmp_path / "hidden", 10)
    for model in (packed.path / "models").iterdir():
        hang(model)
    raw = json.loads((packed.path / "bundle.json").read_text())
    (packed.path / "bundle.json").write_text(json.dumps(raw | {"deadline": 4.0}))
    code, said = run(packed.path, "--test", images, "--sample", sample, "--out", tmp_path / "out.csv")
    assert code == 1
    assert "10 rows have the class prior" in said
    np.testing.assert_allclose(list(written(tmp_path / "out.csv").values()), [[1 / 3] * 3] * 10, atol=1e-6)


def test_a_damaged_model_is_named_and_left_out(packed, workspace, tmp_path):
    images, sample = hidden(tmp_path / "hidden", 10)
    damaged = packed.path / "models" / "01-tiny.fold0.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    code, said = run(packed.path, "--test", images, "--sample", sample, "--out", tmp_path / "out.csv")
    assert code == 1
    assert "tiny.fold0 cannot be used: models/01-tiny.fold0.onnx is not the file that was bundled" in said
    found = written(tmp_path / "out.csv")
    np.testing.assert_allclose(list(found.values()), expected(workspace, images, found, models=slice(1, 2)), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda text: text.replace("id,ant", "id,ants"), "has the columns"),
        (lambda text: text + text.splitlines()[1] + "\n", "repeats rows"),
        (lambda text: text + "x,1\n", "another number of cells"),
        (lambda _: "", "is empty"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(packed, tmp_path, change, match):
    images, sample = hidden(tmp_path / "hidden", 3)
    sample.write_text(change(sample.read_text()))
    said: list[str] = []
    words = ["--test", str(images), "--sample", str(sample), "--out", str(tmp_path / "out.csv")]
    assert offline.main(packed.path, words, said.append, time.monotonic()) == 1
    assert match in said[0]
    assert not (tmp_path / "out.csv").exists()


def test_every_gpu_has_a_worker_and_a_dead_one_goes_on_on_the_cpu(packed, workspace, tmp_path, monkeypatch):
    """Without a GPU here, onnxruntime refuses CUDA, which is what a machine with a broken CUDA does."""
    images, sample = hidden(tmp_path / "hidden", 30)
    seen, start = [], subprocess.Popen
    monkeypatch.setattr(offline, "gpu_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr(
        offline.subprocess, "Popen", lambda words, env: seen.append(env["CUDA_VISIBLE_DEVICES"]) or start(words, env=env)
    )
    recipe = replace(Recipe.read(packed.path), cuda="13")
    recipe.write(packed.path)
    said: list[str] = []
    words = ["--test", str(images), "--sample", str(sample), "--out", str(tmp_path / "out.csv")]
    assert offline.main(packed.path, words, said.append, time.monotonic()) == 0, said
    assert seen[:2] == ["4", "6"]
    assert "2 × cuda" in "".join(said)
    assert sum("goes on, on the CPU" in line for line in said) == 2
    found = written(tmp_path / "out.csv")
    np.testing.assert_allclose(list(found.values()), expected(workspace, images, found), rtol=0, atol=1e-6)


def test_without_a_sample_the_folder_says_the_ids(packed, tmp_path):
    images, sample = hidden(tmp_path / "hidden", 12)
    code, said = run(packed.path, "--test", images, "--out", tmp_path / "out.csv")
    assert code == 0, said
    assert list(written(tmp_path / "out.csv")) == sorted(line.split(",")[0] for line in sample.read_text().splitlines()[1:])


def test_a_table_can_name_the_files(packed, tmp_path):
    images, sample = hidden(tmp_path / "hidden", 6)
    text = (packed.path / "competition.toml").read_text()
    (packed.path / "competition.toml").write_text(text.replace('pattern = "{id}.png"', 'pattern = "{folder}/{id}.png"'))
    ids = [line.split(",")[0] for line in sample.read_text().splitlines()[1:]]
    (tmp_path / "test.csv").write_text("folder,id\n" + "".join(f"images,{name}\n" for name in ids))
    asked = ["--test", images.parent, "--sample", sample, "--out", tmp_path / "out.csv"]
    code, said = run(packed.path, *asked)
    assert code == 1
    assert "--table" in said
    code, said = run(packed.path, *asked, "--table", tmp_path / "test.csv")
    assert (code, "prior" in said) == (0, False), said


def test_what_a_bundle_holds(packed, workspace):
    names = {path.relative_to(packed.path).as_posix() for path in packed.path.rglob("*")}
    assert {
        "run.py",
        "bundle.json",
        "competition.toml",
        "README.txt",
        "toolkit/submissions/bundle/run.py",
        "toolkit/core/voting.py",
    } <= names
    assert not {"toolkit/submissions/formats.py", "toolkit/ensemble/run.py", "toolkit/training", "wheels"} & names
    text = (packed.path / "bundle.json").read_text() + (packed.path / "README.txt").read_text()
    assert str(workspace) not in text
    recipe = packed.recipe
    assert [(m.title, m.weight) for m in recipe.models] == [("tiny.fold1", 0.7), ("tiny.fold0", 0.3)]
    assert all(m.views == views.views(TTA) for m in recipe.models)
    assert Recipe.read(packed.path) == recipe
    assert recipe.agreement["rows"] == 24
    assert recipe.agreement["what"] == "out-of-fold images"
    assert 0 < recipe.agreement["gap"] < 0.05


def test_the_agreement_would_tell_if_the_pixels_differed(packed, workspace, monkeypatch):
    from toolkit.images import render

    competition = Competition.read(workspace)
    chosen = [(export, 1.0, ("id",)) for export in read_exports(find_exports(["folds/*.onnx"]), competition)]
    assert pack.agreement(competition, chosen)["same"] == 24
    plain = render.cuts
    monkeypatch.setattr(
        render,
        "cuts",
        lambda image, *wanted, implementation, where, box: plain(image // (1 + 7 * (implementation == "pillow")), *wanted),
    )
    shutil.rmtree(workspace / "store")
    (workspace / "split.csv").unlink()
    found = pack.agreement(competition, chosen)
    assert found["same"] < found["rows"] == 48
    assert "seen by the models" in found["what"]
    shutil.rmtree(workspace / "train")
    assert pack.agreement(competition, chosen) == {}


def test_a_bundle_that_cannot_be_made_leaves_nothing(workspace, folds, tmp_path):
    competition = probabilistic(workspace)
    with pytest.raises(SubmissionError, match="no predictions"):
        pack.make(competition, tmp_path / "b", python=HERE, cuda="cpu")
    ensembling.run(competition, find_exports(["folds/*.onnx"]), vote="hard", device="cpu")
    with pytest.raises(DataError, match="hard vote leaves labels"):
        pack.make(competition, tmp_path / "b", python=HERE, cuda="cpu", wheels=False)
    ensembling.run(competition, find_exports(["folds/*.onnx"]), device="cpu")
    for python, cuda in (("3.10", "cpu"), ("3", "cpu"), ("3.12", "11")):
        with pytest.raises(DataError, match=r"--python|--cuda"):
            pack.make(competition, tmp_path / "b", python=python, cuda=cuda)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(DataError, match="exists"):
        pack.make(competition, tmp_path / "full", python=HERE, cuda="cpu")
    first = folds / "tiny.fold0.onnx"
    shutil.copyfile(folds / "tiny.fold1.onnx", first)
    with pytest.raises(SubmissionError) as caught:
        pack.make(competition, tmp_path / "b", python=HERE, cuda="cpu", wheels=False)
    assert [problem.code for problem in caught.value.problems] == ["SUB060"]
    assert sorted(path.name for path in tmp_path.iterdir() if path != workspace) == ["full"]


def test_the_command(workspace, folds, tmp_path):
    ensembling.run(Competition.read(workspace), find_exports(["folds/*.onnx"]), device="cpu")
    words = ["bundle", "-o", str(tmp_path / "b"), "--python", HERE, "--cuda", "cpu", "--no-wheels", "--deadline", "1h30m"]
    done = CliRunner().invoke(cli.cli, words)
    assert done.exit_code == 0, done.output
    assert "2 models, 0 wheels" in done.output
    assert Recipe.read(tmp_path / "b").deadline == 5400
    again = CliRunner().invoke(cli.cli, words)
    assert again.exit_code == 1
    assert "exists" in again.output
    assert CliRunner().invoke(cli.cli, [*words[:-1], "soon"]).exit_code == 1
    assert set(CUDA) == set(wheels.ENGINES)


@pytest.mark.parametrize(("text", "found"), [("8h30m", 30600), ("90s", 90), ("45m", 2700), ("1h1m1s", 3661)])
def test_spans_of_time(text, found):
    assert durations.seconds(text) == found


@pytest.mark.parametrize("text", ["", "8", "h", "8h30", "-1h", "1.5h"])
def test_what_is_no_span_of_time(text):
    with pytest.raises(DataError, match="no span of time"):
        durations.seconds(text)


@pytest.mark.parametrize("view", sorted(views.VIEW_SETS["d4"]))
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 6, 9)])
def test_views_by_indexing_are_ttachs(view, shape):
    import torch

    if views.needs_square(view) and shape[2] != shape[3]:
        return
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = worker.turned(pixels, view)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, views.apply(torch.from_numpy(pixels), view).numpy())


def test_an_unknown_view_is_refused():
    with pytest.raises(DataError, match="unknown view"):
        worker.turned(np.zeros((1, 3, 2, 2), np.uint8), "hflip+spin")


FIVE = ("a", "b", "c", "d", "e")
COMPETITIONS = {
    "multiclass": (Target("t", "multiclass", FIVE),),
    "binary": (Target("t", "binary", ("no", "yes"), positive="yes"),),
    "joint": (Target("t", "multiclass", (), factors={"mask": ("on", "off", "half"), "sex": ("f", "m")}),),
    "multilabel": (Target("t", "multilabel", FIVE, separator="|"),),
}
CASES = [
    ("multiclass", "labels", "id,t", "1,a", [Field("t", "t")]),
    ("multiclass", "indices", "id,t", "1,0", [Field("t", "t")]),
    ("multiclass", "flags", "id,a,b,c,d,e", "1,1,0,0,0,0", [Field(c, "t", c) for c in FIVE]),
    ("multiclass", "probabilities", "id,a,b,c,d,e", "1,1,0,0,0,0", [Field(c, "t", c) for c in FIVE]),
    ("multiclass", "topk:3", "id,t", "1,a b c", [Field("t", "t", k=3)]),
    ("multiclass", "long", "id,class,p", "1,a,0", [Field("p", "t", by="class")]),
    ("multiclass", "joined", "id,p", "1_a,0", [Field("p", "t")]),
    ("binary", "probability", "id,t", "1,0.5", [Field("t", "t", "yes")]),
    ("joint", "labels", "id,mask,sex", "1,on,f", [Field("mask", "t", "mask"), Field("sex", "t", "sex")]),
    ("joint", "indices", "id,mask,sex", "1,0,0", [Field("mask", "t", "mask"), Field("sex", "t", "sex")]),
    ("joint", "topk:2", "id,mask,sex", "1,on off,f m", [Field("mask", "t", "mask", 2), Field("sex", "t", "sex", 2)]),
    ("multilabel", "labels", "id,t", "1,a|b", [Field("t", "t")]),
    ("multilabel", "indices", "id,t", "1,0|1", [Field("t", "t")]),
    ("multilabel", "flags", "id,a,b,c,d,e", "1,1,0,0,0,0", [Field(c, "t", c) for c in FIVE]),
]


def test_every_format_has_a_case():
    forms = {form.partition(":")[0] for _, form, *_ in CASES}
    assert forms == set(formats.FORMATS) == set(csv_writer.CELLS) | set(long_form.NAMES)


@pytest.mark.parametrize(("task", "form", "header", "line", "fields"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_rows_are_written_as_the_library_writes_them(task, form, header, line, fields, tmp_path):

    targets = COMPETITIONS[task]
    where = Images("test", "{id}.png", "train.csv")
    competition = Competition(tmp_path, "x", "accuracy", targets, where, where, format=form)
    classes = targets[0].classes
    rng = np.random.default_rng(1)
    ids = tuple(f"{i:03d}" for i in rng.permutation(60))
    values = rng.dirichlet(np.full(len(classes), 0.3), len(ids))
    values[0] = np.eye(len(classes))[0]
    values[1] = values[1] * 1e-9 + (1 - 1e-9) * np.eye(len(classes))[1]
    if task == "multilabel":
        values = rng.random((len(ids), len(classes)))
        values[np.arange(len(ids)), rng.integers(0, len(classes), len(ids))] = 0.75
    table = {"t": Predictions("t", "probabilities", ids, classes, values, multilabel=task == "multilabel")}
    rest = line.split(",")[1:]
    order = sorted(ids)
    if form == "long":
        lines = [f"{name},{label},0" for name in order for label in classes]
    elif form == "joined":
        lines = [f"{name}_{label},0" for label in classes for name in order]
    else:
        lines = [",".join([name, *rest]) for name in order]
    path = tmp_path / "sample.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    plan = fit(form, frame, competition)
    assert [Field(c.name, c.target.name, c.part, c.k, c.by) for c in plan.columns] == fields
    wanted = render(table, as_format(frame, competition, form))
    sheet = csv_writer.sample(path, "id", header.split(","), form, fields, targets)
    csv_writer.write(tmp_path / "out.csv", sheet, form, fields, table, targets)
    found = pd.read_csv(tmp_path / "out.csv", dtype=str, keep_default_na=False)
    assert list(found.columns) == list(wanted.columns)
    for name in wanted.columns:
        if plan.format.values and not form.startswith("topk") and name in {field.name for field in fields}:
            ours, theirs = found[name].astype(np.float32), wanted[name].astype(np.float32)
            np.testing.assert_array_equal(ours.to_numpy().view(np.int32), theirs.to_numpy().view(np.int32))
        else:
            assert list(found[name]) == list(wanted[name])


def test_a_row_may_have_no_label():
    target, sheet = COMPETITIONS["multilabel"][0], np.array([1, 0])
    table = Predictions("t", "labels", ("1", "2"), FIVE, labels=np.array([[1, 0, 1, 0, 0], [0] * 5]), multilabel=True)
    assert csv_writer.cells("labels", Field("t", "t"), target, table, sheet, sheet) == ["", "a|c"]


def test_cells_with_commas_and_quotes_survive(tmp_path):
    target = Target("t", "multiclass", ('a,"b"', "c\nd"))
    table = {"t": Predictions("t", "labels", ("x,1", "2"), target.classes, labels=np.array([0, 1]))}
    sheet = csv_writer.of_ids(["2", "x,1"], "id", ["id", "t"], "labels")
    csv_writer.write(tmp_path / "out.csv", sheet, "labels", [Field("t", "t")], table, [target])
    assert list(pd.read_csv(tmp_path / "out.csv")["t"]) == ["c\nd", 'a,"b"']


@pytest.fixture
def done(packed, workspace):
    """The recipe with the finished tables of a worker over 11 test images, made in this process."""
    competition, recipe = Competition.read(workspace), packed.recipe
    names = [name for name, _ in competition.images("test")]
    paths = tuple(str(path) for _, path in competition.images("test"))
    out = workspace.parent / "part"
    out.mkdir()
    worker.work(worker.Job(str(packed.path), str(out), "cpu", recipe.models, paths))
    return competition, recipe, names, out


def member_values(competition, names, workspace):
    exports = read_exports(find_exports(["folds/*.onnx"]), competition)[::-1]
    each = {export.digest: views.views(TTA) for export in exports}
    items = [Item(name, path) for name, path in competition.images("test")]
    outcome = predict(exports, each, items, Store(workspace / "other"), device="cpu", implementation="pillow")
    target = competition.targets[0].name
    return [outcome.probabilities(e, output_of(e, target), views.views(TTA), outcome.digests) for e in exports]


def test_a_model_alone_keeps_no_pixels_and_says_the_same(done, packed, workspace):
    competition, recipe, _, out = done
    paths = tuple(str(path) for _, path in competition.images("test"))
    alone = workspace.parent / "alone-part"
    alone.mkdir()
    worker.work(worker.Job(str(packed.path), str(alone), "cpu", recipe.models[:1], paths))
    assert list(out.glob("pixels.*"))
    assert not list(alone.glob("pixels.*"))
    key = recipe.models[0].key
    np.testing.assert_array_equal(np.load(alone / f"{key}.npy"), np.load(out / f"{key}.npy"))


@pytest.mark.parametrize("how", list(voting.VOTES))
def test_every_vote_is_the_librarys(done, workspace, how):
    competition, recipe, names, out = done
    wanted = Wanted(replace(recipe, vote=how), competition, tuple(names), np.arange(len(names)))
    found = blend(wanted, [Part(0, len(names), out)])
    vote = voting.vote(np.stack(member_values(competition, names, workspace)), how=how, weights=[0.7, 0.3])
    ours = found.predictions["label"]
    assert (found.whole, found.partial, found.prior, ours.kind) == (len(names), 0, 0, vote.kind)
    if vote.labels is not None:
        np.testing.assert_array_equal(ours.labels, vote.labels)
    else:
        np.testing.assert_allclose(ours.values, vote.values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("per_id", ["mean", "max"])
def test_several_images_of_a_row(done, workspace, per_id):
    competition, recipe, names, out = done
    owner = np.array([0, 0, 0, 1, 2, 2, 2, 2, 4, 4, 4])
    wanted = Wanted(recipe, replace(competition, per_id=per_id), ("a", "b", "c", "none", "e"), owner)
    found = blend(wanted, [Part(0, len(names), out)])
    rows = []
    for place in (0, 1, 2, 4):
        each = [values[owner == place] for values in member_values(competition, names, workspace)]
        merged = [v.mean(axis=0) if per_id == "mean" else v.max(axis=0) / v.max(axis=0).sum() for v in each]
        rows.append(0.7 * merged[0] + 0.3 * merged[1])
    ours = found.predictions["label"].values
    np.testing.assert_allclose(ours[[0, 1, 2, 4]], rows, rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours[3], recipe.priors["label"])
    assert (found.whole, found.prior) == (4, 1)


def test_what_is_there_is_blended_and_nothing_else(done, tmp_path):
    """Three parts: finished, finished with the first model only, and cut off in the middle of the first model."""
    competition, recipe, names, out = done
    first, second = (np.load(out / f"{model.key}.npy") for model in recipe.models)
    bounds = [(0, 4), (4, 8), (8, 11)]
    parts = [Part(start, stop, tmp_path / str(start)) for start, stop in bounds]
    for part in parts:
        part.out.mkdir()
    keys = [model.key for model in recipe.models]
    np.save(parts[0].out / f"{keys[0]}.npy", first[:4])
    np.save(parts[0].out / f"{keys[1]}.npy", second[:4])
    np.save(parts[1].out / f"{keys[0]}.npy", first[4:8])
    np.save(parts[1].out / f"{keys[1]}.part.npy", second[4:8])
    begun = first[8:].copy()
    begun[1:] = np.nan
    np.save(parts[2].out / f"{keys[0]}.part.npy", begun)
    found = blend(Wanted(recipe, competition, tuple(names), np.arange(11)), parts)
    assert found.models == ("tiny.fold1",)
    assert (found.whole, found.partial, found.prior) == (9, 0, 2)
    ours = found.predictions["label"].values
    np.testing.assert_allclose(ours[:9], first[:9], atol=1e-12)
    np.testing.assert_allclose(ours[9:], [recipe.priors["label"]] * 2)
    np.save(parts[1].out / f"{keys[1]}.npy", second[4:8])
    found = blend(Wanted(recipe, competition, tuple(names), np.arange(11)), parts)
    assert (found.models, found.whole, found.partial, found.prior) == (("tiny.fold1", "tiny.fold0"), 8, 1, 2)
    ours = found.predictions["label"].values
    np.testing.assert_allclose(ours[:8], 0.7 * first[:8] + 0.3 * second[:8], atol=1e-12)
    np.testing.assert_allclose(ours[8], first[8], atol=1e-12)
    np.save(parts[2].out / f"{keys[1]}.part.npy", second[8:])
    found = blend(Wanted(recipe, competition, tuple(names[8:]), np.arange(3)), [replace(parts[2], start=0, stop=3)])
    assert (found.models, found.whole, found.partial, found.prior) == ((), 0, 3, 0)
    np.testing.assert_allclose(found.predictions["label"].values, [first[8], *second[9:]], atol=1e-12)


def test_a_worker_goes_on_where_another_died(done, packed, monkeypatch):
    competition, recipe, _names, out = done
    paths = tuple(str(path) for _, path in competition.images("test"))
    job = worker.Job(str(packed.path), str(out), "cpu", recipe.models, paths)
    key = recipe.models[0].key
    whole = np.load(out / f"{key}.npy")
    half = whole.copy()
    half[6:] = np.nan
    half[:6] = 0.25
    (out / f"{key}.npy").unlink()
    np.save(out / f"{key}.part.npy", half)
    before = (out / f"{recipe.models[1].key}.npy").stat().st_mtime_ns
    job.write(out / "job.json")
    assert worker.main(out / "job.json") == 0
    found = np.load(out / f"{key}.npy")
    np.testing.assert_array_equal(found[:6], 0.25)
    np.testing.assert_array_equal(found[6:], whole[6:])
    assert (out / f"{recipe.models[1].key}.npy").stat().st_mtime_ns == before


def test_pixels_are_made_once_or_again_where_there_is_no_room(done, packed, tmp_path, monkeypatch):
    competition, recipe, _names, out = done
    paths = tuple(str(path) for _, path in competition.images("test"))
    counts = {}
    decode = worker.images.decode
    for room in (True, False):
        made: list[str] = []
        monkeypatch.setattr(
            worker.images, "decode", lambda data, where, made=made, **k: made.append(where) or decode(data, where, **k)
        )
        if not room:
            monkeypatch.setattr(worker, "SPARE", 1 << 60)
        again = tmp_path / str(room)
        again.mkdir()
        worker.work(worker.Job(str(packed.path), str(again), "cpu", recipe.models, paths))
        counts[room] = len(made)
        for model in recipe.models:
            np.testing.assert_array_equal(np.load(again / f"{model.key}.npy"), np.load(out / f"{model.key}.npy"))
    assert counts == {True: len(paths), False: 2 * len(paths)}


def test_the_loop_of_imports_ends_and_knows_type_checking():
    found = pack.modules()
    bundle = "toolkit.submissions.bundle"
    assert {f"{bundle}.run", f"{bundle}.worker", f"{bundle}.contents", f"{bundle}.csv_writer", bundle, "toolkit"} <= set(found)
    assert {"toolkit.core.voting", "toolkit.images.render", "toolkit.errors"} <= set(found)
    kept_out = {"ensemble.run", "submissions.submission", "submissions.formats", "inference.predict", f"{bundle}.pack"}
    assert not {f"toolkit.{name}" for name in kept_out} & set(found)


@pytest.mark.parametrize("cuda", list(wheels.ENGINES))
def test_wheels_are_asked_for_the_target(cuda, tmp_path, monkeypatch):
    seen = tmp_path / "seen"
    fake = tmp_path / "pip"
    fake.write_text(f"#!{sys.executable}\nimport sys\nopen({str(seen)!r}, 'w').write('\\n'.join(sys.argv[1:]))\n")
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(wheels, "_pip", lambda: [str(fake)])
    wheels.fetch(tmp_path / "wheels", "3.12", cuda)
    words = seen.read_text().splitlines()
    assert words[words.index("--python-version") + 1] == "3.12"
    assert "cp312" in words
    assert "--only-binary=:all:" in words
    assert wheels.ENGINES[cuda] in words
    assert wheels.ENGINES[cuda].startswith("onnxruntime-gpu") == (cuda != "cpu")
    fake.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('ERROR: No matching distribution')\n")
    with pytest.raises(ToolkitError, match=rf"Python 3.12, CUDA {cuda}: ERROR: No matching"):
        wheels.fetch(tmp_path / "wheels", "3.12", cuda)


def test_wheels_need_a_pip(monkeypatch, tmp_path):
    import importlib.util

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ToolkitError, match="pip is not installed"):
        wheels.fetch(tmp_path / "wheels", "3.12", "cpu")


@pytest.mark.slow
def test_an_empty_environment_with_the_network_closed(workspace, folds, tmp_path):
    """The real wheels in a virtual environment that has nothing, not even pip, and (where we may) in a network of its own."""
    competition = probabilistic(workspace)
    ensembling.run(competition, find_exports(["folds/*.onnx"]), tta=TTA, weights="0.3,0.7", device="cpu")
    made = pack.make(competition, tmp_path / "bundle", python=HERE, cuda="cpu")
    assert {name.split("-")[0] for name in made.wheels} >= {"onnxruntime", "numpy", "pillow"}
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "empty")], check=True)
    images, sample = hidden(tmp_path / "hidden", 30)
    closed = ["unshare", "-n"] if subprocess.run(["unshare", "-n", "true"], check=False).returncode == 0 else []
    words = [*closed, str(tmp_path / "empty" / "bin" / "python"), str(made.path / "run.py"), "--test", str(images)]
    words += ["--sample", str(sample), "--out", str(tmp_path / "out.csv")]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    found = written(tmp_path / "out.csv")
    np.testing.assert_allclose(list(found.values()), expected(workspace, images, found), rtol=0, atol=1e-6)


def test_a_newer_bundle_is_refused(tmp_path):
    (tmp_path / "bundle.json").write_text(json.dumps({"schema": contents.SCHEMA + 1}))
    with pytest.raises(DataError, match="schema"):
        Recipe.read(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        Recipe.read(tmp_path / "nowhere")
