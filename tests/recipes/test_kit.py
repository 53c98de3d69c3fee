"""The training kit through a recipe's flags: each flag reaches what it names, and what it names does what it says."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from tests.conftest import few_digits, few_people, few_pictures, linked
from tests.recipes.test_recipes import load
from toolkit.base import user_functions
from toolkit.cli import cli
from toolkit.core import prediction_files
from toolkit.errors import ModelError, TrainingError
from toolkit.models import networks
from toolkit.runtime.graphs import onnx_file
from toolkit.training import Fold, Samples, dry_run, loader
from toolkit.training.fold import decoded_cache
from toolkit.training.parts import augment, losses, schedules, transfer
from toolkit.training.parts.by_name import described
from toolkit.workspace.competition import Competition

RECIPE = Path(__file__).parents[2] / "recipes" / "timm_kfold.py"
TINY = ["--model", "test_resnet", "--no-pretrained", "--size", "32", "--device", "cpu", "--logger", "none"]

OWN = """
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2

def plain(num_classes):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(256, num_classes))

def narrow(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))

def wrong_size(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, num_classes))

def nothing(num_classes):
    pass

def rows(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")

def mistyped(logits, labels):
    return logits.crossentropy(labels)

def floats():
    return v2.Compose([v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)])

def sizes():
    return lambda image: image[:, : int(torch.randint(8, 30, (1,)))]

def divides():
    return lambda image: image // 0 if image.float().std() < 0 else 1 / 0

def mirrors():
    return v2.Compose([v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()])

def soft(num_classes):
    return nn.Sequential(*plain(num_classes), nn.Softmax(dim=1))

class Everything(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.model = plain(num_classes)

    def forward(self, images):
        return (self.model(images), images) if self.training else self.model(images)
"""


@pytest.fixture(scope="module")
def recipe():
    return load(RECIPE)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return few_digits(tmp_path_factory.mktemp("kit") / "digits", 6)


@pytest.fixture
def root(tiny, tmp_path):
    return Path(shutil.copytree(tiny, tmp_path / "work", copy_function=linked))


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


@pytest.fixture
def fold(tmp_path):
    rng = np.random.default_rng(0)
    samples = Samples(tuple(map(str, range(40))), rng.integers(0, 256, (40, 3, 32, 32), dtype=np.uint8), np.arange(40) % 2)
    return Fold(0, samples.rows(samples.ids), ("a", "b"), "cpu", tmp_path / "fold0")


def run(recipe, root, *flags, **said):
    return CliRunner().invoke(recipe.main, ["--workspace", str(root), *TINY, *flags], **said)


def oof(root, member="timm", fold=0):
    return prediction_files.read_table(root / "runs" / member / f"fold{fold}" / "oof.parquet").predictions["label"].values


# --- flags reach what they name ---------------------------------------------------------------------------------------


def test_options_of_losses_and_schedules_can_stand_in_the_flag():
    logits, labels = torch.randn(9, 4), torch.arange(9) % 4
    for said, name, options in (
        ("focal:gamma=1.5", "focal", {"gamma": 1.5}),
        ("class_weighted:power=0.5,smoothing=0.1", "class_weighted", {"power": 0.5, "smoothing": 0.1}),
    ):
        found, expected = (
            losses.make(one, classes=4, counts=(3, 2, 2, 2), **more)(logits, labels)
            for one, more in ((said, {}), (name, options))
        )
        assert torch.equal(found, expected)
        assert not torch.equal(found, losses.make(name, classes=4, counts=(3, 2, 2, 2))(logits, labels))
    for said, words in (
        ("focal:gama=1", "no option gama"),
        ("focal:gamma=x", "no loss with options"),
        ("focl:gamma=1", "unknown loss 'focl'"),
        ("focal:gamma", "no loss with options"),
    ):
        with pytest.raises(TrainingError, match=words):
            losses.make(said, classes=4)
    optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    made, *_ = schedules.make("step:every=2,gamma=0.5", optimiser, epochs=6, steps_per_epoch=3, lr=1.0)
    assert (made.step_size, made.gamma) == (6, 0.5)
    assert described(losses.LOSSES).startswith(
        "cross_entropy:smoothing, label_smoothing:smoothing, class_weighted:power,smoothing"
    )


@pytest.mark.parametrize(("name", "restarts"), [("step", False), ("cosine_restarts", True)])
def test_steps_and_restarts_fall_inside_a_training_of_any_length(name, restarts):
    for epochs in (3, 10):
        optimiser = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
        schedule, *_ = schedules.make(name, optimiser, epochs=epochs, steps_per_epoch=4, lr=1.0)
        rates = []
        for _ in range(4 * epochs):
            rates.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            schedule.step()
        if restarts:
            assert rates.count(1.0) == 3
        else:
            assert sorted({round(rate, 6) for rate in rates}) == [0.01, 0.1, 1.0]


@pytest.mark.parametrize(
    ("flags", "known"),
    [
        (["--ema", "0.9"], {"ema": 0.9}),
        (["--clip", "0.5"], {"clip": 0.5}),
        (["--precision", "bf16"], {"arithmetic": "bf16"}),
        (["--select", "soup"], {"select": "soup"}),
        (["--patience", "2"], {"patience": 2}),
        (["--schedule", "plateau"], {"plateau": True, "interval": "epoch"}),
        (["--schedule", "onecycle"], {"plateau": False, "interval": "step"}),
        (["--batch-size", "8", "--accumulate", "2"], {"micro": 8}),
        (["--batch-size", "8", "--effective-batch", "24"], {"micro": 8}),
        (["--batch-size", "auto", "--effective-batch", "16"], {"micro": "auto"}),
        (["--compile"], {"compiled": True}),
        (["--epochs", "5"], {"epochs": 5}),
    ],
    ids=lambda said: " ".join(said) if isinstance(said, list) else "",
)
def test_a_flag_reaches_the_loop(recipe, tiny, monkeypatch, flags, known):
    seen = {}

    class Enough(Exception):  # noqa: N818
        pass

    def spy(model, feed, fold, **said):
        seen.update(said, feed=feed)
        raise Enough

    monkeypatch.setattr(recipe, "fit", spy)
    ran = run(recipe, tiny, "--member", "spied", *flags)
    assert isinstance(ran.exception, Enough), ran.output
    assert {name: seen[name] for name in known} == known
    if "--batch-size" in flags:
        assert len(next(iter(seen["feed"]))[1]) == {"2": 16, "24": 24, "16": 16}[flags[-1]]


@pytest.mark.parametrize(
    "flags",
    [
        ["--ema", "1.5"],
        ["--layer-decay", "2"],
        ["--erase", "1.2"],
        ["--smoothing", "2"],
        ["--batch-size", "1"],
        ["--seeds", "0"],
        ["--floor", "1.1"],
        ["--soft-weight", "3"],
    ],
    ids=" ".join,
)
def test_numbers_out_of_range_are_refused_and_not_ignored(recipe, tiny, flags):
    ran = run(recipe, tiny, "--smoke", *flags)
    assert ran.exit_code == 2
    assert "is not in the range" in ran.output


def test_batches_that_are_accumulated_are_a_larger_batch(recipe, root, own):
    for member, flags in (("whole", ["--batch-size", "16"]), ("parts", ["--batch-size", "4", "--accumulate", "4"])):
        ran = run(recipe, root, "--model", f"{own}:plain", "--member", member, "--epochs", "2", "--fold", "0", *flags)
        assert ran.exit_code == 0, ran.output
    np.testing.assert_allclose(oof(root, "whole"), oof(root, "parts"), atol=1e-5)
    assert np.ptp(oof(root, "whole")) > 0.01


def test_training_runs_in_channels_last(recipe, fold, monkeypatch):
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 2)

        def forward(self, images):
            if self.training:
                layout = {"memory_format": torch.channels_last}
                seen.append((images.is_contiguous(**layout), self.conv.weight.is_contiguous(**layout), images.is_contiguous()))
            return self.head(self.conv(images).mean((2, 3)))

    monkeypatch.setattr(networks, "create", lambda *_, **__: Spy())
    recipe.train_fold(recipe.Config(model="own.py:spy", pretrained=False, size=32, epochs=1, batch_size=20), fold)
    assert seen[-2:] == [(True, True, False)] * 2  # before, the network was looked at


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a compiler")
def test_compiled_training_gives_what_plain_training_gives(recipe, root, own):
    for member, flags in (("plain", []), ("compiled", ["--compile"])):
        ran = run(recipe, root, "--model", f"{own}:plain", "--member", member, "--epochs", "2", "--fold", "0", *flags)
        assert ran.exit_code == 0, ran.output
    np.testing.assert_allclose(oof(root, "plain"), oof(root, "compiled"), atol=1e-4)


@pytest.mark.parametrize("make", [few_people, few_pictures], ids=["people in groups", "several labels"])
def test_the_whole_kit_works_on_other_tasks(recipe, tmp_path, make):
    root = make(tmp_path / "work")
    flags = ["--augment", "medium", "--erase", "0.5", "--mixup", "0.2", "--cutmix", "1", "--layer-decay", "0.8", "--ema", "0.9"]
    ran = run(recipe, root, "--smoke", "--loss", "auto", *flags)
    assert ran.exit_code == 0, ran.output


def test_a_run_that_was_killed_goes_on_through_all_that_draws_and_all_that_moves(recipe, tiny, tmp_path):
    flags = [
        "--tune",
        "gradual",
        "--mixup",
        "0.2",
        "--cutmix",
        "1",
        "--augment",
        "trivialaugment",
        "--erase",
        "0.3",
        "--ema",
        "0.9",
    ]
    flags += ["--schedule", "onecycle", "--sampler", "weighted", "--layer-decay", "0.7", "--epochs", "4", "--batch-size", "10"]
    flags += ["--select", "best", "--fold", "1", "--clip", "1"]
    whole, killed = (Path(shutil.copytree(tiny, tmp_path / name, copy_function=linked)) for name in ("whole", "killed"))
    assert run(recipe, whole, *flags).exit_code == 0

    def kill(_fold, row, _model):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    assert run(recipe, killed, *flags, obj=kill).exit_code == 130
    epochs = []
    ran = run(recipe, killed, *flags, obj=lambda _fold, row, _model: epochs.append(row["epoch"]))
    assert ran.exit_code == 0, ran.output
    assert epochs == [3, 4]
    np.testing.assert_array_equal(oof(killed, fold=1), oof(whole, fold=1))


def test_a_run_says_what_made_it(recipe, root):
    import subprocess

    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", str(root), *who, *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", "competition.toml")
    git("commit", "-qm", "a")
    ran = run(recipe, root, "--epochs", "1", "--fold", "0", "--seed", "3", "--seeds", "2", "--loss", "focal:gamma=1")
    assert ran.exit_code == 0, ran.output
    about = json.loads((root / "runs" / "timm" / "fold0" / "config.json").read_text())
    assert about["commit"] == git("rev-parse", "HEAD")
    assert about["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert about["seeds"] == [3000, 4000]
    assert {f"config.{name}" for name in recipe.Config.__dataclass_fields__} - set(about["settings"]) == {
        "config.workers",
        "config.cache",
    }
    assert about["settings"]["config.loss"] == "focal:gamma=1"


# --- several models of one member -------------------------------------------------------------------------------------


def test_epochs_seeds_and_the_model_of_all_rows_carry_one_members_weight(recipe, root, monkeypatch):
    """Two seeds per fold with all rows as well, and the best three epochs of one fold: two members in one ensemble."""
    base = ["--model", "test_resnet", "--batch-size", "15"]
    assert run(recipe, root, *base, "--epochs", "1", "--member", "seeds", "--seeds", "2").exit_code == 0
    assert run(recipe, root, *base, "--epochs", "1", "--member", "seeds", "--seeds", "2", "--fold", "all").exit_code == 0
    best = ("--epochs", "3", "--member", "best", "--select", "top3", "--fold", "0", "--seed", "7")
    assert run(recipe, root, *base, *best).exit_code == 0
    monkeypatch.chdir(root)
    ran = CliRunner().invoke(cli, ["ensemble", "folds", "--device", "cpu"])
    assert ran.exit_code == 0, ran.output
    competition = Competition.read(root)
    (made,) = (root / "predictions").glob("*.parquet")
    found = prediction_files.read_table(made).predictions["label"]
    each = {"seeds": [], "best": []}
    for path in sorted((root / "folds").glob("*.onnx")):
        export = onnx_file.read(path)
        each[export.card.member].append(probabilities(export, competition))
    assert {name: len(one) for name, one in each.items()} == {"seeds": 6, "best": 3}
    expected = np.mean([np.mean(one, axis=0) for one in each.values()], axis=0)
    np.testing.assert_allclose(found.align([name for name, _ in competition.images("test")]).values, expected, atol=1e-5)


def probabilities(export, competition):
    import onnxruntime as ort

    from toolkit.images import render

    pixels = np.stack([render.load(path, export.card.preprocess) for _, path in competition.images("test")])
    session = ort.InferenceSession(str(export.path), providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: pixels})[0]
    return torch.from_numpy(logits).softmax(1).numpy()


# --- networks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "squeezenet1_1", "googlenet"])
def test_each_stage_of_a_torchvision_network_has_its_rate(name):
    model = networks.create({"model_name": f"torchvision/{name}", "num_classes": 4})
    assert model.train()(torch.zeros(2, 3, 64, 64)).shape == (2, 4)
    made = schedules.optimiser("sgd", model, 0.1, 0.05, layer_decay=0.5)
    stages = networks.stages(model)
    assert len(stages) >= 9
    rate = {id(p): group["lr"] for group in made.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in made.param_groups for p in group["params"]}
    for parameter, value in model.named_parameters():
        depth = len(stages) - 1 - next(i for i, stage in enumerate(stages) if parameter.startswith(f"{stage}."))
        assert rate[id(value)] == pytest.approx(0.1 * 0.5**depth), parameter
        assert decay[id(value)] == (0.05 if value.ndim > 1 else 0), parameter
    assert max(rate.values()) == 0.1


def test_stages_are_blocks_and_neither_single_layers_nor_halves_of_the_network():
    for name, count in (("mobilenet_v3_small", 14), ("vit_b_32", 14), ("efficientnet_b0", 18), ("regnet_y_400mf", 17)):
        model = networks.create({"model_name": f"torchvision/{name}", "num_classes": 4})
        found = networks.stages(model)
        assert count <= len(found) <= count + 2, (name, found)
        assert all(any(True for _ in model.get_submodule(one).parameters()) for one in found)
    factored = networks.create({"model_name": "test_resnet", "num_classes": 18, "factors": [3, 2, 3]})
    rates = {group["lr"] for group in schedules.optimiser("sgd", factored, 0.1, layer_decay=0.5).param_groups}
    assert len(rates) > 3  # a network with several heads wraps one that timm knows


def test_layers_of_one_layer_have_no_rates():
    with pytest.raises(TrainingError, match="is one layer") as caught:
        schedules.optimiser("sgd", nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), 0.1, layer_decay=0.5)
    assert caught.value.code == "layer-decay"


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "googlenet", "inception_v3", "vit_b_32"])
def test_pretrained_torchvision_networks_get_a_head_for_these_classes_and_are_rebuilt(name, monkeypatch):
    from torchvision import models as theirs

    class Weights:
        """Stands for the hub: weights of 1,000 classes that were drawn here."""

    real, made = theirs.get_model, []

    def get_model(wanted, *, weights, **said):
        if weights is None:
            return real(wanted, weights=None, **said)
        more = {"init_weights": True} if wanted in ("googlenet", "inception_v3") else {}
        made.append(real(wanted, weights=None, num_classes=1000, **said, **more))
        return made[-1]

    monkeypatch.setattr(theirs, "get_model", get_model)
    size = {"inception_v3": 96, "vit_b_32": 224}.get(name, 64)
    model = transfer.start({"model_name": f"torchvision/{name}", "num_classes": 4}, pretrained=True, size=size)
    assert made
    again = networks.create({"model_name": f"torchvision/{name}", "num_classes": 4})
    again.load_state_dict(model.state_dict())
    images = torch.rand(2, 3, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(images), again.eval()(images))
    assert model.train()(images).shape == (2, 4)


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_that_does_not_answer_is_asked_once_and_quietly(no_hub, caplog, capfd, monkeypatch):
    from huggingface_hub import constants

    slept = []
    monkeypatch.setattr("time.sleep", slept.append)  # between one attempt and the next
    with caplog.at_level(logging.WARNING), pytest.raises(ModelError, match="weights of test_resnet cannot be had") as caught:
        transfer.start({"model_name": "test_resnet", "num_classes": 3}, pretrained=True)
    assert caught.value.code == "weights"
    assert not [record for record in caplog.records if "huggingface" in record.name]
    assert capfd.readouterr() == ("", "")
    assert slept == []
    assert constants.HF_HUB_OFFLINE is False  # the next one may find it


def test_weights_that_were_fetched_before_are_found_without_the_hub(no_hub):
    from safetensors.torch import save_file

    torch.manual_seed(5)
    source = networks.create({"model_name": "test_resnet", "num_classes": 1000})
    repository = no_hub / "models--timm--test_resnet.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    save_file(source.state_dict(), repository / "snapshots" / "abc" / "model.safetensors")
    found = transfer.start({"model_name": "test_resnet", "num_classes": 3}, pretrained=True)
    for name, value in found.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]) == (not name.startswith("fc.")), name


# --- mistakes are sentences -------------------------------------------------------------------------------------------


MISTAKES = {
    "--model narrow": "gives 2 numbers per image (5 × 2 in all) for 10 classes",
    "--model soft": "gives probabilities, as a softmax does",
    "--model Everything": "in training mode gives several outputs, a tuple",
    "--model wrong_size": "cannot take images of 32 × 32 pixels",
    "--model nothing": "gives NoneType, which is no torch.nn.Module",
    "--model nobody": "has no function 'nobody'",
    "--loss rows": "gives shape (30,), not one number",
    "--loss mistyped": "own.py:mistyped, line 24, failed: AttributeError",
    "--augment floats": "gives float32 (3, 32, 32), not uint8 (3, H, W)",
    "--augment sizes": "gives images of ",
    "--augment divides": "own.py:divides, line 33, failed: ZeroDivisionError",
}


@pytest.mark.parametrize(
    ("said", "workers"), [*((one, 0) for one in MISTAKES), ("--augment floats", 1), ("--augment divides", 1)]
)
def test_mistakes_in_own_code_are_sentences(recipe, root, own, said, workers):
    flag, function = said.split()
    ran = run(recipe, root, flag, f"{own}:{function}", "--epochs", "1", "--fold", "0", "--workers", str(workers))
    assert ran.exit_code == 1
    assert MISTAKES[said] in ran.output
    assert "Traceback" not in ran.output
    assert "Caught" not in ran.output


def test_a_network_that_ends_in_softmax_is_trained_as_one_of_logits_where_that_is_said(recipe, root, own, monkeypatch):
    flags = ("--epochs", "2", "--fold", "0", "--lr", "0.01")
    plain = run(recipe, root, "--model", f"{own}:plain", *flags, "--member", "plain")
    soft = run(recipe, root, "--model", f"{own}:soft", "--outputs", "probabilities", *flags, "--member", "soft")
    assert (plain.exit_code, soft.exit_code) == (0, 0), soft.output
    tables = [root / "runs" / member / "fold0" / "oof.parquet" for member in ("plain", "soft")]
    logits, undone = (prediction_files.read_table(path).predictions["label"].values for path in tables)
    np.testing.assert_allclose(undone, logits, atol=1e-4)
    checkpoint = root / "runs" / "soft" / "fold0" / "model.safetensors"
    again = root / "again.onnx"
    monkeypatch.chdir(root)
    done = CliRunner().invoke(cli, ["export", str(checkpoint), "--model", f"{own}:soft", "--output", str(again)])
    assert done.exit_code == 0, done.output
    assert onnx_file.read(again).digest == onnx_file.read(root / "folds" / "soft.fold0.onnx").digest


def test_own_transforms_are_timed_one_by_one_and_go_to_other_processes(own, fold):
    import pickle

    from toolkit.training.fold import throughput

    transform = augment.make(f"{own}:mirrors", (32, 32))
    assert [type(step).__name__ for step in throughput._steps(transform)] == ["RandomHorizontalFlip", "RandomVerticalFlip"]
    again = pickle.loads(pickle.dumps(transform))
    one, two = (torch.cat([x for x, _ in loader(fold.training, 20, seed=1, augment=each)]) for each in (transform, again))
    assert torch.equal(one, two)


def test_want_of_memory_in_own_code_is_left_to_the_loop(own):
    def hungry():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        user_functions.explained(hungry, f"{own}:hungry")()


def test_a_mistyped_flag_costs_no_decoding(recipe, root, own, monkeypatch):
    decoded = []
    monkeypatch.setattr(dry_run, "WORTH", 0)
    monkeypatch.setattr(decoded_cache, "decoded", lambda *a, **k: decoded.append(a))
    monkeypatch.setattr("toolkit.training.fold.samples.decoded", lambda *a, **k: decoded.append(a))
    for flags, words in (
        (["--loss", "focl"], "unknown loss"),
        (["--loss", f"{own}:mistyped"], "line 24"),
        (["--schedule", "poly"], "unknown schedule"),
        (["--augment", "hvy"], "unknown augmentation"),
        (["--augment", f"{own}:floats"], "float32"),
        (["--optimiser", "adamx"], "no optimiser"),
        (["--weights", "no.pth"], "does not exist"),
        (["--warmup", "50"], "leaves nothing"),
        (["--soft-labels", "nobody"], "no exports of 'nobody'"),
    ):
        ran = run(recipe, root, "--fold", "0", *flags)
        assert ran.exit_code == 1, (flags, ran.output)
        assert words in ran.output, ran.output
    assert decoded == []
    assert not (root / "runs").exists()


@pytest.mark.parametrize("flags", [["--tune", "head", "--fold", "all"], ["--select", "best"]], ids=" ".join)
def test_a_rehearsal_leaves_no_trace(recipe, tiny, tmp_path, monkeypatch, flags):
    with_it, without = (Path(shutil.copytree(tiny, tmp_path / name, copy_function=linked)) for name in ("with", "without"))
    flags = [*(flags if "--fold" in flags else [*flags, "--fold", "0"]), "--epochs", "2", "--batch-size", "10"]
    assert run(recipe, without, *flags).exit_code == 0
    made = []
    real = dry_run.rehearse
    monkeypatch.setattr(dry_run, "WORTH", 0)
    monkeypatch.setattr(dry_run, "rehearse", lambda *given: made.append(real(*given)))
    ran = run(recipe, with_it, *flags)
    assert ran.exit_code == 0, ran.output
    assert made == [None]
    name = "timm.all.onnx" if "all" in flags else "timm.fold0.onnx"
    assert onnx_file.read(with_it / "folds" / name).digest == onnx_file.read(without / "folds" / name).digest


def test_a_rehearsal_ends_loops_that_nobody_watches(tiny):
    from toolkit.core.cards import Preprocess
    from toolkit.training import Plan
    from toolkit.workspace.split import Split

    steps = []

    def train_fold(_config, fold):
        while True:
            steps.append(len(fold.training))
            fold.progress(len(steps), 10_000)

    config = load(RECIPE).Config()
    competition = Competition.read(tiny)
    pixels = (Preprocess((8, 8)), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    plan = Plan("t", config, {}, *pixels, competition, Split.read(tiny / "split.csv"), tiny)
    dry_run.rehearse(plan, train_fold, 0, "cpu")
    assert steps == [16] * dry_run.STEPS


def test_a_batch_as_large_as_the_fold_is_said(recipe, root):
    ran = run(recipe, root, "--fold", "0", "--epochs", "1", "--batch-size", "5000")
    assert "an epoch is a single step: try a smaller --batch-size" in ran.output


def test_the_model_of_all_rows_is_named_where_it_cannot_be(recipe, root):
    ran = run(recipe, root, "--fold", "all", "--select", "best")
    assert ran.exit_code == 1
    assert "the model of all rows holds out no rows to choose an epoch by" in ran.output
