"""What the tests of bundles share: hidden test sets, a Python that has next to nothing, and what the library says."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.conftest import draw
from toolkit.ensemble.combine import combine
from toolkit.images import views
from toolkit.inference.execution import Execution
from toolkit.inference.exports import WeightedModels, find_exports, output_of, read_exports
from toolkit.inference.predict import predict
from toolkit.inference.store.prediction_store import Store
from toolkit.workspace.competition import Competition
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
    outcome = predict(exports, each, items, Store(workspace / "other"), Execution("cpu", implementation="pillow"))
    share = list(weights[models])
    target = competition.targets[0]
    return combine(competition, target, WeightedModels(exports, each, share), outcome, list(ids))[0].values


def member_values(competition, names, workspace):
    exports = read_exports(find_exports(["folds/*.onnx"]), competition)[::-1]
    each = {export.digest: views.views(TTA) for export in exports}
    items = [Item(name, path) for name, path in competition.images("test")]
    outcome = predict(exports, each, items, Store(workspace / "other"), Execution("cpu", implementation="pillow"))
    target = competition.targets[0].name
    return [outcome.probabilities(e, output_of(e, target), views.views(TTA), outcome.digests) for e in exports]
