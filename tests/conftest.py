"""Shared fixtures: a small workspace of real image files and real exports with BatchNorm and Dropout in them."""

from __future__ import annotations

import itertools
import os
import re
import signal
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

from tests.exporter import keep_the_registry, remember
from tests.processes import forking, in_turn

CLASSES = ("ant", "bee", "cat")
NUMBERS = itertools.count()

# A hundred processes import torch in these tests: 6 s of work where its bytecode is kept, 20 s where none may be written.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

if "PYTEST_XDIST_WORKER" in os.environ:
    in_turn(
        ("torch.onnx", "torchvision.transforms.v2", "onnxscript", "timm", "pyarrow.parquet", "scipy.stats", "sklearn.metrics")
    )

# A deadline per example measures the machine's load, not the code. Every run draws others; `--hypothesis-profile thorough` draws many.
hypothesis.settings.register_profile("toolkit", deadline=None, max_examples=20)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("toolkit")

# A shell's background jobs ignore Ctrl-C, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread(request, shared):
    """Workers of the test runner share the cores, and what they have translated to ONNX; their pools of processes are forked too."""
    import multiprocessing

    import torch

    if "PYTEST_XDIST_WORKER" in os.environ:
        multiprocessing.set_executable(request.getfixturevalue("python"))
    torch.set_num_threads(1)
    keep_the_registry()
    remember(shared / "exports")


@pytest.fixture
def tmp_path(request, tmp_path_factory) -> Path:
    """A folder of its own; pytest's looks through those of all tests before it to find a number."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    path = tmp_path_factory.getbasetemp() / f"{next(NUMBERS)}_{name}"
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder that all workers of this run see."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def python(shared):
    """A command that does what `sys.executable` does, in a process of its own that need not import torch again."""
    command, line = forking(shared)
    with line:
        yield str(command)


@pytest.fixture
def quick_processes(python, monkeypatch):
    """Processes that the code under test starts with `sys.executable` are such ones too."""
    monkeypatch.setattr(sys, "executable", python)


def draw(rng: np.random.Generator, label: int, height: int = 40, width: int = 52) -> Image.Image:
    """A picture whose colour and stripes tell its class."""
    y, x = np.mgrid[:height, :width]
    base = np.stack([np.sin((label + 1) * x / 5), np.cos((label + 1) * y / 5), np.sin((x + y) / (label + 2))], axis=-1)
    noisy = 127 + 90 * base + rng.normal(0, 20, base.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def make_workspace(root: Path, *, train: int = 24, test: int = 11, classes=CLASSES) -> Path:
    """train/*.png, test/*.png, train.csv, sample_submission.csv, competition.toml, split.csv."""
    from toolkit.workspace.competition import Competition, Images, Target
    from toolkit.workspace.split import make

    rng = np.random.default_rng(7)
    (root / "train").mkdir(parents=True)
    (root / "test").mkdir()
    rows = []
    for i in range(train):
        label = i % len(classes)
        draw(rng, label).save(root / "train" / f"{i:04d}.png")
        rows.append((f"{i:04d}", classes[label]))
    for i in range(test):
        draw(rng, i % len(classes)).save(root / "test" / f"{9000 + i}.png")
    (root / "train.csv").write_text("id,label\n" + "".join(f"{a},{b}\n" for a, b in rows))
    (root / "sample_submission.csv").write_text("id,label\n" + "".join(f"{9000 + i},{classes[0]}\n" for i in range(test)))
    competition = Competition(
        root=root,
        name="insects",
        metric="accuracy",
        targets=(Target("label", "multiclass", classes),),
        train=Images("train", "{id}.png", "train.csv"),
        test=Images("test", "{id}.png"),
        format="labels",
    )
    (root / "competition.toml").write_text(competition.to_toml())
    truth = competition.truth()["label"]
    make(truth.ids, truth.labels, classes, folds=2).write(root / "split.csv")
    return root


def few_digits(root: Path, per_class: int) -> Path:
    """The digits workspace with a few training images of each class, in two folds."""
    import csv

    from toolkit.setup import digits_data
    from toolkit.workspace.split import make

    competition = digits_data.make_workspace(root)
    table = root / "data" / "train.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    kept = [row for digit in range(10) for row in [r for r in rows if r["label"] == str(digit)][:per_class]]
    table.write_text("id,label\n" + "".join(f"{row['id']},{row['label']}\n" for row in kept))
    ids = {row["id"] for row in kept}
    for _, path in competition.images("train"):
        if path.stem not in ids:
            path.unlink()  # nobody asks for them, and tests copy the folder
    truth = competition.truth()["label"]
    make(truth.ids, truth.labels, truth.classes, folds=2).write(root / "split.csv")
    return root


def linked(source: str, target: str) -> str:
    """For `shutil.copytree`: images, which no test writes to, are the same file in each copy."""
    import shutil

    if source.endswith(".png"):
        os.link(source, target)
        return target
    return str(shutil.copy2(source, target))


def few_people(root: Path) -> Path:
    """The mask workspace with twelve drawn people, each gender and age class twice, in two folds."""
    from toolkit.setup import mask_data

    mask_data.draw(root, people=12, test_people=1)
    mask_data.make_split(mask_data.make_workspace(root), count=2)
    return root


def few_pictures(root: Path) -> Path:
    """The workspace of several digits to a picture with seventy of its pictures, in two folds."""
    from toolkit.setup import digits_data
    from toolkit.workspace.competition import Competition
    from toolkit.workspace.split import make

    digits_data.make_multilabel(root)
    table = root / "data" / "train.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:71]) + "\n")
    truth = Competition.read(root).truth()["digits"]
    make(truth.ids, truth.labels, truth.classes, folds=2).write(root / "split.csv")
    return root


def network(seed: int, classes: int = 3, *, sharp: float = 1.0):
    """A small network with BatchNorm (statistics moved off their start) and Dropout, in eval mode."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(64, classes),
    )
    model.train()
    with torch.no_grad():
        for _ in range(4):
            model(torch.randn(16, 3, 32, 32))
        model[-1].weight.mul_(8 * sharp)
    return model.eval()


def card(member: str = "tiny", fold: int | None = 0, *, classes=CLASSES, size=(32, 32), **changes):
    """A card for `network`."""
    from toolkit.core.cards import Card, Output, Preprocess

    said = {
        "outputs": (Output("label", tuple(classes)),),
        "preprocess": Preprocess(size),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.25),
        "metric": "accuracy",
    }
    return Card(member=member, fold=fold, **(said | changes))


@pytest.fixture(scope="session")
def workspace_once(tmp_path_factory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("once") / "work")


@pytest.fixture
def workspace(workspace_once, tmp_path, monkeypatch) -> Path:
    """A fresh workspace, and the current folder."""
    import shutil

    root = Path(shutil.copytree(workspace_once, tmp_path / "work"))
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """folds/: two folds of `tiny` on the split of the workspace above, made once."""
    from toolkit.models.export import export
    from toolkit.models.export_checkpoint import samples
    from toolkit.workspace.competition import Competition
    from toolkit.workspace.split import Split

    root = make_workspace(tmp_path_factory.mktemp("exported") / "work")
    split = Split.read(root / "split.csv").digest
    for fold in range(2):
        said = card(fold=fold, split=split, score=0.5 + fold / 10)
        pixels = samples(Competition.read(root), said.preprocess)
        export(network(fold), said, root / "folds" / f"tiny.fold{fold}.onnx", samples=pixels)
    return root / "folds"


@pytest.fixture
def folds(workspace, exported) -> Path:
    """The workspace with its own copy of the exports in folds/."""
    import shutil

    shutil.copytree(exported, workspace / "folds")
    return workspace / "folds"


@pytest.fixture(scope="module")
def insects(tmp_path_factory):
    """A workspace with two members' out-of-fold tables, predictions, a run and a submission's manifest."""
    import json

    from toolkit.core import prediction_files
    from toolkit.core.predictions import Predictions
    from toolkit.inference.store import timings
    from toolkit.inference.store.timings import Timing
    from toolkit.workspace.competition import Competition

    root = make_workspace(tmp_path_factory.mktemp("pages") / "work", train=48, test=12)
    competition = Competition.read(root)
    truth = competition.truth()["label"]
    rng = np.random.default_rng(3)
    for name, noise in (("good", 0.8), ("poor", 2.0)):
        logits = 2.0 * np.eye(3)[truth.decided] + rng.normal(0, noise, (len(truth), 3))
        values = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        table = Predictions("label", "probabilities", truth.ids, CLASSES, values)
        prediction_files.write_table(root / "oof" / f"{name}.parquet", {"label": table}, {"member": name})
    ids = tuple(str(9000 + i) for i in range(12))
    test = Predictions("label", "probabilities", ids, CLASSES, rng.dirichlet(np.ones(3), 12))
    meta = {"name": "ensemble", "created": "2026-11-23T10:00:00+00:00", "vote": "soft", "views": {"good": ["id"]}}
    prediction_files.write_table(root / "predictions" / "ensemble.parquet", {"label": test}, meta)
    folder = root / "runs" / "good" / "fold0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("epoch,loss,lr,images/s,waited\n1,0.9,0.1,5,0.25\n2,0.4,0.05,5,0.25\n")
    feeding = {"loader": 20.5, "model": 6.5, "said": "feeding: loader 20 images/s; the model waits for images"}
    (folder / "config.json").write_text(json.dumps({"report": [{"feeding": feeding}]}))
    timings.note(root / "store", {timings.key("ab12cd34ef", "cpu", "fp32"): Timing(48, 1.5)})
    timings.note(root / "store", {timings.key(timings.AROUND, "cpu", "fp32"): Timing(12, 0.5)})
    return root
