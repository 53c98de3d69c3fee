"""recipes/timm_kfold.py: its flags reach what they name, together and one by one."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from tests.conftest import few_digits
from toolkit.core.cards import Preprocess
from toolkit.training import Fold, Samples
from toolkit.training.parts import transfer

ROOT = Path(__file__).parents[2]
TINY = ["--model", "test_resnet", "--no-pretrained", "--size", "32", "--device", "cpu", "--epochs", "2"]


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("recipe_timm_kfold", ROOT / "recipes" / "timm_kfold.py")
    module = sys.modules.setdefault("recipe_timm_kfold", importlib.util.module_from_spec(spec))
    if not hasattr(module, "main"):
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return few_digits(tmp_path_factory.mktemp("timm") / "digits", 6)


@pytest.fixture
def fold(tmp_path):
    import numpy as np

    rng = np.random.default_rng(0)
    samples = Samples(tuple(map(str, range(40))), rng.integers(0, 256, (40, 3, 32, 32), dtype=np.uint8), np.arange(40) % 2)
    return Fold(0, samples.rows(samples.ids), ("a", "b"), "cpu", tmp_path / "fold0")


def run(recipe, *options):
    return CliRunner().invoke(recipe.main, [*TINY, *options])


def test_the_summary_trains_nothing(recipe, tiny):
    before = sorted(tiny.rglob("*"))
    ran = run(recipe, "--workspace", str(tiny), "--summary", "--tune", "head")
    assert ran.exit_code == 0, ran.output
    assert ran.output.splitlines()[0].split() == ["module", "type", "parameters", "trainable"]
    assert sorted(tiny.rglob("*")) == before


def test_a_head_is_trained_on_features_in_a_limited_workspace_and_a_second_fold_finds_them(recipe, tiny, tmp_path):
    import shutil

    root = shutil.copytree(tiny, tmp_path / "copy")
    (root / "split.csv").unlink()
    ran = run(
        recipe, "--workspace", str(root), "--tune", "head", "--limit", "50", "--batch-size", "8", "--fold", "0", "--seeds", "2"
    )
    assert ran.exit_code == 0, ran.output
    assert "made split.csv: 5 folds of 60 rows" in ran.output
    about = json.loads((root / "runs" / "timm" / "fold0" / "config.json").read_text())
    assert about["models"] == 2
    assert sorted(path.name for path in (root / "folds").iterdir()) == ["timm.fold0.1.onnx", "timm.fold0.onnx"]
    features = list((root / "cache").glob("features-*.npy"))
    assert len(features) == 2  # without pretrained weights every seed begins from a backbone of its own
    assert len(list((root / "cache").glob("pixels-*.npy"))) == 1


def test_many_flags_at_once_run_and_are_recorded_nowhere_in_a_smoke_run(recipe, tiny, tmp_path):
    (tmp_path / "loss.py").write_text(
        "from torch.nn import functional as F\n\ncalls = []\n\n\ndef mine(logits, labels):\n"
        "    calls.append(labels.shape)\n    return F.cross_entropy(logits, labels)\n"
    )
    flags = ["--tune", "gradual", "--layer-decay", "0.7", "--mixup", "0.2", "--cutmix", "1", "--erase", "0.2", "--ema", "0.9"]
    flags += ["--clip", "1", "--batch-size", "auto", "--effective-batch", "12", "--sampler", "weighted", "--select", "best"]
    flags += ["--augment", "trivialaugment", "--optimiser", "sgd", "--schedule", "onecycle", "--patience", "3"]
    flags += ["--precision", "bf16", "--resize", "crop", "--loss", f"{tmp_path / 'loss.py'}:mine"]
    before = sorted(tiny.rglob("*"))
    ran = run(recipe, "--workspace", str(tiny), "--smoke", *flags)
    assert ran.exit_code == 0, ran.output
    assert "optimistic" in ran.output
    assert sorted(tiny.rglob("*")) == before
    from toolkit.base.user_functions import user_function

    calls = sys.modules[user_function(f"{tmp_path / 'loss.py'}:mine").__module__].calls
    assert calls == [torch.Size([12, 10])] * 2  # two batches of 12, mixed labels over ten classes


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--augment", "hvy"], "unknown augmentation"),
        (["--loss", "nothing"], "unknown loss"),
        (["--optimiser", "nothing"], "no optimiser"),
        (["--model", "resnt18"], "resnet18"),
        (["--batch-size", "many"], "auto"),
        (["--fold", "x"], "all"),
        (["--weights", "nothere.pth"], "does not exist"),
    ],
)
def test_what_cannot_be_is_a_sentence(recipe, tiny, flags, hint):
    ran = run(recipe, "--workspace", str(tiny), "--smoke", *flags)
    assert ran.exit_code in (1, 2)
    assert hint in ran.output
    assert "Traceback" not in ran.output


def test_pixels_are_those_of_timms_own_evaluation():
    import timm

    preprocess, mean, std = transfer.pixels("tf_efficientnet_lite0", 224, "crop")
    config = timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg("tf_efficientnet_lite0").to_dict())
    assert (preprocess.size, preprocess.shorter, preprocess.interpolation) == ((224, 224), 256, config["interpolation"])
    assert (mean, std) == (config["mean"], config["std"])
    assert transfer.pixels("torchvision/resnet18", 64)[1:] == transfer.IMAGENET
    assert transfer.pixels("net.py:build", 64)[0] == Preprocess((64, 64))


def test_a_transformer_of_a_fixed_grid_is_told_the_size(fold):
    said = transfer.architecture("test_vit", 2, 64)
    assert said["img_size"] == 64
    assert transfer.start(said, pretrained=False)(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
    assert transfer.architecture("resnet18", 2, 64) == {"model_name": "resnet18", "num_classes": 2}


def test_compiling_runs_the_compiled_network_and_exports_the_plain_one(recipe, fold, monkeypatch):
    made = []

    def compiled(model):
        calls = []
        made.append((model, calls))
        return lambda images: calls.append(len(images)) or model(images)

    monkeypatch.setattr(torch, "compile", compiled)
    config = recipe.Config(model="test_resnet", pretrained=False, size=32, epochs=1, batch_size=20, compile=True, flip=False)
    trained = recipe.train_fold(config, fold)
    ((model, calls),) = made
    assert calls == [20, 20]
    assert trained is model
    assert isinstance(trained, nn.Module)


def test_layer_decay_and_the_optimiser_reach_the_parameters(recipe, fold, monkeypatch):
    make, seen = recipe.schedules.optimiser, []
    monkeypatch.setattr(recipe.schedules, "optimiser", lambda *a, **k: seen.append(make(*a, **k)) or seen[-1])
    config = recipe.Config(
        model="test_resnet", pretrained=False, size=32, epochs=1, batch_size=20, optimiser="sgd", layer_decay=0.5, lr=0.1
    )
    recipe.train_fold(config, fold)
    assert isinstance(seen[0], torch.optim.SGD)
    rates = {group["initial_lr"] for group in seen[0].param_groups}
    assert max(rates) == pytest.approx(0.1)
    assert min(rates) <= 0.025
