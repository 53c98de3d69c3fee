"""recipes/plain_torch.py: its loop against one written again here, and what makes it easy to debug."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.recipes.test_recipes import load
from toolkit.errors import TrainingError
from toolkit.training import Fold, Samples

PLAIN = Path(__file__).parents[2] / "recipes" / "plain_torch.py"


@pytest.fixture
def fold(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 3, 8, 8), dtype=np.uint8)
    samples = Samples(tuple(f"{i:03d}" for i in range(48)), pixels, rng.integers(0, 3, 48))
    return Fold(0, samples.rows(samples.ids), ("a", "b", "c"), "cpu", tmp_path / "fold0")


def small():
    """Without BatchNorm, so that sixteen images are twice eight."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


@pytest.fixture
def recipe(monkeypatch):
    module = load(PLAIN)
    monkeypatch.setattr(module.transfer, "start", lambda *_, **__: small())
    return module


def run(recipe, fold, **changes):
    config = replace(recipe.Config(), epochs=3, batch_size=8, accumulate=2, shift=0, lr=0.01, **changes)
    return recipe.train_fold(config, fold)


def by_hand(fold, *, clip=1.0):
    """Sixteen images a step, no accumulation; the order is what torch's own sampler draws."""
    model = small().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, total_steps=9)
    images = (torch.from_numpy(fold.training.samples.pixels).float() / 255 - 0.5) / 0.5
    labels = torch.from_numpy(fold.training.samples.labels)
    for _ in range(3):
        order = [place for batch in torch.utils.data.DataLoader(range(48), 8, shuffle=True) for place in batch.tolist()]
        for start in range(0, 48, 16):
            optimiser.zero_grad()
            rows = order[start : start + 16]
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimiser.step()
            schedule.step()
        torch.utils.data.DataLoader(range(1)).__iter__()  # the recipe looks at its accuracy, whose loader draws a seed too
    return model


@pytest.mark.parametrize("clip", [0.05, 1.0])
def test_the_loop_is_the_textbooks(recipe, fold, clip):
    trained, expected = run(recipe, fold, clip=clip), by_hand(fold, clip=clip)
    assert not trained.training
    for (name, a), b in zip(trained.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_every_epoch_is_written_and_watched(recipe, fold):
    seen, done = [], []
    watched = replace(
        fold, watch=lambda row, model: seen.append((row, model.training)), progress=lambda *counts: done.append(counts)
    )
    run(recipe, watched)
    rows = list(csv.DictReader((fold.folder / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert [(row["epoch"], training) for row, training in seen] == [(1, False), (2, False), (3, False)]  # judged in eval mode
    assert done[-1] == (144, 144)
    model = run(recipe, fold)
    with torch.no_grad():
        images = (torch.from_numpy(fold.training.samples.pixels).float() / 255 - 0.5) / 0.5
        right = (model(images).argmax(1).numpy() == fold.training.samples.labels).mean()
    assert float(rows[-1]["training accuracy"]) == pytest.approx(right)


def test_every_batch_is_shown_as_it_is_fed(recipe, fold):
    shown = []
    run(recipe, replace(fold, look=shown.append))
    assert len(shown) == 18
    assert all(images.shape == (8, 3, 8, 8) and images.min() >= -1 and images.max() <= 1 for images in shown)


def test_a_loss_that_is_no_number_stops_with_a_hint(recipe, fold, monkeypatch):
    broken = small()
    nn.init.constant_(broken[0].weight, float("nan"))
    monkeypatch.setattr(recipe.transfer, "start", lambda *_, **__: broken)
    with pytest.raises(TrainingError, match="fold 0: the loss is nan in epoch 1") as caught:
        run(recipe, fold)
    assert "--lr" in caught.value.hint


def test_images_are_shifted_with_black_and_normalised(recipe, fold):
    images = recipe.Images(fold.training, 3)
    still = recipe.Images(fold.training)
    pixels, label = fold.training[5]
    plain, same = still[5]
    assert same == label
    np.testing.assert_allclose(plain.numpy(), (pixels / 255 - 0.5) / 0.5, atol=1e-6)
    torch.manual_seed(0)
    moved = [images[5][0] for _ in range(40)]
    assert all(image.shape == (3, 8, 8) for image in moved)
    assert len({image.numpy().tobytes() for image in moved}) > 20
    padded = F.pad(plain, [3] * 4, value=-1.0)
    places = [padded[:, top : top + 8, left : left + 8] for top in range(7) for left in range(7)]
    assert all(any(torch.equal(image, place) for place in places) for image in moved)


def test_a_smoke_run_stays_in_this_process(recipe, fold, monkeypatch):
    loaders = []
    feed = recipe.feed
    monkeypatch.setattr(recipe, "feed", lambda *given: loaders.append(feed(*given)) or loaders[-1])
    run(recipe, fold, batches=2)
    assert [loader.num_workers for loader in loaders] == [0]


def test_its_loop_shares_no_batches(recipe):
    ran = CliRunner().invoke(recipe.main, ["--processes", "2", "--spread", "batches"])
    assert ran.exit_code == 2
    assert "'batches' is not" in ran.output
