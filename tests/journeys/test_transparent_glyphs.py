"""Glyphs that stand in alpha alone, from files to answers: what is behind them is the same wherever a model meets them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.conftest import CLASSES, make_workspace, network
from tests.models.test_adopt import asked, torch_legacy
from tests.requested import ensemble
from tests.submissions.bundle.helpers import HERE
from toolkit.core import prediction_files
from toolkit.core.cards import Preprocess
from toolkit.inference.exports import find_exports
from toolkit.models import checkpoints
from toolkit.models.adopt import adopt
from toolkit.models.export_checkpoint import ExportRequest, convert
from toolkit.runtime.graphs import onnx_file
from toolkit.submissions.bundle import pack, worker
from toolkit.training import soup
from toolkit.training.cross_validation import join, train
from toolkit.training.fold.fit import normalise
from toolkit.training.plan import TrainingPlan
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split

SIDE = 16
HALF = (0.5, 0.5, 0.5)
NETWORK = {"model_name": "test_resnet", "num_classes": 3}


@dataclass(frozen=True)
class Config:
    member: str = "glyphs"
    seed: int = 0


@pytest.fixture
def glyphs(tmp_path, monkeypatch):
    """A workspace of LA files whose grey is 0 throughout, and what each shows before white, worked out by hand: uint8 [16, 16]."""
    root = make_workspace(tmp_path / "work", train=12, test=4)
    rng, seen = np.random.default_rng(5), {}
    for path in sorted(root.glob("t*/*.png")):
        alpha = rng.integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
        Image.fromarray(np.dstack([np.zeros_like(alpha), alpha]), "LA").save(path)
        seen[path.stem] = 255 - alpha
    text = (root / "competition.toml").read_text()
    (root / "competition.toml").write_text(text.replace("[columns]", 'alpha = "white"\n\n[columns]', 1))
    monkeypatch.chdir(root)
    return Competition.read(root), seen


def truth(model, seen, ids):
    """Probabilities of what is really there, by plain torch."""
    pixels = torch.from_numpy(np.stack([np.repeat(seen[name][None], 3, axis=0) for name in ids]))
    with torch.no_grad():
        return torch.softmax(model.eval()(normalise(pixels.float(), HALF, HALF)), 1).numpy()


def still(_config, fold):
    """A model that needs no epochs: its answers are what its pixels make of them."""
    fold.folder.mkdir(parents=True, exist_ok=True)
    (fold.folder / "metrics.csv").write_text("epoch,loss\n1,1\n")
    return fixed(fold.number)


def fixed(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 3)).eval()


def test_trained_ensembled_and_bundled_they_are_what_is_before_white(glyphs):
    competition, seen = glyphs
    split = Split.read(competition.path("split.csv"))
    plan = TrainingPlan(
        "glyphs", Config(), {}, Preprocess((SIDE, SIDE)), HALF, HALF, competition, split, competition.root, cache=False
    )
    assert len(list(train(plan, still, bar=lambda _: contextlib.nullcontext(lambda *_: None), device="cpu"))) == 2
    models = [fixed(0), fixed(1)]
    join(plan)
    held_out = prediction_files.read_table(plan.oof).predictions["label"]
    assert len(held_out.ids) == 12
    for fold, model in enumerate(models):
        rows = [held_out.ids.index(name) for name in split.held_out(fold)]
        np.testing.assert_allclose(held_out.values[rows], truth(model, seen, split.held_out(fold)), atol=1e-4)
    paths = find_exports(["folds/*.onnx"])
    assert {onnx_file.read(path).card.preprocess.alpha for path in paths} == {"white"}
    for implementation in ("fast", "pillow"):
        made = ensemble(competition, paths, device="cpu", implementation=implementation).predictions["label"]
        expected = np.mean([truth(model, seen, made.ids) for model in models], axis=0)
        np.testing.assert_allclose(made.values, expected, atol=1e-4)
    bundle = pack.make(competition, competition.root.parent / "bundle", python=HERE, cuda="cpu", wheels=False)
    images = competition.images("test")
    out = competition.root.parent / "out"
    out.mkdir()
    worker.work(worker.Job(str(bundle.path), str(out), "cpu", bundle.recipe.models, tuple(str(path) for _, path in images)))
    given = [np.load(out / f"{model.key}.npy").reshape(len(images), -1) for model in bundle.recipe.models]
    expected = [truth(model, seen, [name for name, _ in images]) for model in models]
    for probabilities in given:
        assert min(np.abs(probabilities - one).max() for one in expected) < 1e-4


def test_every_way_to_a_card_says_it(glyphs, tmp_path):
    """A state dict exported, someone's model adopted, a soup of both: models made in the workspace see what it says."""
    import timm
    from safetensors.torch import save_file

    competition, _ = glyphs
    torch.manual_seed(0)
    state = {key: value.contiguous() for key, value in timm.create_model(**NETWORK).state_dict().items()}
    save_file(state, tmp_path / "theirs.safetensors")
    path, said = convert(
        competition, tmp_path / "theirs.safetensors", ExportRequest(model="test_resnet", fold=0, size=SIDE * 2)
    )
    assert said.preprocess.alpha == onnx_file.read(path).card.preprocess.alpha == "white"
    adopted = adopt(torch_legacy(tmp_path / "a.onnx", model=network(0)), asked(classes=CLASSES), competition)
    assert onnx_file.read(adopted.path).card.preprocess.alpha == "white"
    runs = [competition.path("runs", name, "fold0", "model.safetensors") for name in ("a", "b")]
    for run in runs:
        checkpoints.save(run, timm.create_model(**NETWORK), replace(said, member=run.parts[-3]), NETWORK)
    cooked = soup.cook(competition, runs, device="cpu", member="both", how="uniform")
    assert onnx_file.read(cooked.export).card.preprocess.alpha == "white"
