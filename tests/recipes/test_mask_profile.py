"""recipes/mask_profile.py: heads, crops and losses of factors; what a split by picture hides; the audit that names it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.nn import functional as F  # noqa: N812

from tests.recipes.test_recipes import load
from toolkit.analysis import data_audit
from toolkit.errors import ModelError, TrainingError
from toolkit.models import networks
from toolkit.setup import mask_data
from toolkit.training.parts import factor_losses
from toolkit.workspace.competition import Competition

MASK = Path(__file__).parents[2] / "recipes" / "mask_profile.py"
SIZES = (3, 2, 3)


def network(kind):
    recipe = load(MASK)
    torch.manual_seed(0)
    return networks.create(recipe.architecture(replace(recipe.Config(), heads=kind))).eval()


@pytest.mark.parametrize("kind", ["joint", "factored", "parts"])
def test_every_kind_of_heads_gives_a_logit_per_class(kind):
    with torch.inference_mode():
        logits = network(kind)(torch.randn(2, 3, 64, 48))
    assert logits.shape == (2, 18)
    parts = [part.softmax(1) for part in networks.apart(logits, SIZES)]
    product = torch.einsum("ni,nj,nk->nijk", *parts).flatten(1)
    independent = torch.allclose(product, logits.softmax(1), atol=1e-6)
    assert independent == (kind != "joint")


def test_a_network_per_factor_sees_its_own_crop_only():
    recipe, model = load(MASK), network("parts")
    images, seen = torch.rand(1, 3, 64, 48), 0
    with torch.inference_mode():
        before = networks.apart(model(images), SIZES)
        for place, (top, left, bottom, right) in enumerate(recipe.CROPS):
            other = torch.rand(1, 3, 64, 48)
            rows, columns = slice(round(top * 64), round(bottom * 64)), slice(round(left * 48), round(right * 48))
            other[:, :, rows, columns] = images[:, :, rows, columns]
            after = networks.apart(model(other), SIZES)
            shift = [(a - a.mean() - b + b.mean()).abs().max() for a, b in zip(after, before, strict=True)]
            assert shift[place] < 1e-5  # up to a constant, which no softmax sees
            outside = [
                i for i, box in enumerate(recipe.CROPS) if box[0] < top or box[1] < left or box[2] > bottom or box[3] > right
            ]
            assert all(shift[factor] > 1e-5 for factor in outside)
            seen += len(outside)
        assert seen >= 3
    with pytest.raises(ModelError, match="1 crop for 3 factors"):
        networks.create({**recipe.SMALL, "num_classes": 18, "factors": SIZES, "crops": [(0, 0, 1, 1)]})


def test_the_loss_of_factors_is_the_sum_of_each_ones():
    torch.manual_seed(0)
    own = [torch.randn(7, size) for size in SIZES]
    joint = networks.combined(torch.cat(own, 1), SIZES)
    labels = torch.randint(18, (7,))
    places = np.unravel_index(labels.numpy(), SIZES)
    expected = sum(F.cross_entropy(part, torch.from_numpy(place)) for part, place in zip(own, places, strict=True))
    torch.testing.assert_close(factor_losses.loss("cross_entropy", SIZES, labels.numpy())(joint, labels), expected)
    torch.testing.assert_close(F.cross_entropy(joint, labels), expected)  # likelihoods multiply
    expected = 0
    for part, place in zip(own, places, strict=True):
        p = part.softmax(1)[torch.arange(7), torch.from_numpy(place)]
        expected += ((1 - p) ** 2 * -p.log()).mean()
    focal = factor_losses.loss("focal", SIZES, labels.numpy())(joint, labels)
    torch.testing.assert_close(focal, expected)
    whole = factor_losses.loss("focal", (18,), labels.numpy())(joint, labels)
    p = joint.softmax(1)[torch.arange(7), labels]
    torch.testing.assert_close(whole, ((1 - p) ** 2 * -p.log()).mean())
    assert abs(whole - focal) > 0.01


def test_soft_targets_and_class_weights_go_to_each_factor():
    torch.manual_seed(0)
    joint, shares = torch.randn(5, 18), torch.rand(5, 18).softmax(1)
    by_hand = sum(
        F.cross_entropy(part, share)
        for part, share in zip(networks.apart(joint, SIZES), factor_losses.marginals(shares, SIZES), strict=True)
    )
    torch.testing.assert_close(factor_losses.loss("cross_entropy", SIZES, shares.numpy())(joint, shares), by_hand)
    assert [share.sum(1).allclose(torch.ones(5)) for share in factor_losses.marginals(shares, SIZES)] == [True] * 3
    grid = shares.reshape(5, 3, 2, 3)
    torch.testing.assert_close(factor_losses.marginals(shares, SIZES)[1], grid.sum((1, 3)))
    labels = np.array([0] * 9 + [17])
    weighted = factor_losses.loss("class_weighted", SIZES, labels)(torch.zeros(10, 18), torch.from_numpy(labels))
    even = sum(np.log(size) for size in SIZES)  # of a model that knows nothing, however classes weigh
    assert float(weighted) == pytest.approx(even, abs=1e-5)
    with pytest.raises(TrainingError, match="18 combinations, the targets 5"):
        factor_losses.loss("cross_entropy", SIZES, np.zeros((4, 5), np.float32))


def test_faces_are_mirrored_shifted_and_brightened_one_by_one():
    recipe = load(MASK)
    torch.manual_seed(0)
    still = replace(recipe.Config(), shift=0.0)
    image = torch.zeros(1, 3, 8, 8)
    image[:, :, :, :2] = 200
    moved = recipe.augment(image.repeat(64, 1, 1, 1), still)
    left, right = moved[:, 0, 0, 0] > 100, moved[:, 0, 0, -1] > 100
    assert (left ^ right).all()
    assert 10 < int(left.sum()) < 54
    bright = moved.amax((1, 2, 3))
    assert bright.min() >= 159
    assert bright.max() <= 241
    assert len(bright.unique()) > 60
    mark = torch.zeros(64, 3, 32, 32)
    mark[:, :, 12:20, 12:20] = 200
    places = {tuple(one.nonzero()[0].tolist()) for one in recipe.augment(mark, recipe.Config())[:, 0] > 50}
    assert len(places) > 10


def thumbnails(competition, ids):
    files = dict(competition.images("train"))
    return np.stack([np.asarray(Image.open(files[name]).convert("RGB").resize((6, 8)), float).ravel() for name in ids])


def out_of_fold(competition, split):
    """Accuracy of the nearest picture's gender and age class: whoever knows the person knows both."""
    from sklearn.neighbors import KNeighborsClassifier

    pixels = thumbnails(competition, split.ids)
    labels = np.array([label.split("_", 1)[1] for label in split.labels])
    right = []
    for fold in range(split.count):
        held_out = split.folds == fold
        model = KNeighborsClassifier(1).fit(pixels[~held_out], labels[~held_out])
        right.append(model.predict(pixels[held_out]) == labels[held_out])
    return float(np.concatenate(right).mean())


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Drawn people that can be recognised, split by person and by picture."""
    root = tmp_path_factory.mktemp("identity")
    raw = mask_data.draw(root / "raw", people=24, test_people=1, identity=True)
    found = {}
    for by_person in (True, False):
        competition = mask_data.make_workspace(root / f"by{by_person}", raw, by_person=by_person)
        found[by_person] = competition, mask_data.make_split(competition, count=3)
    return found


def test_a_split_by_picture_shows_a_score_that_a_split_by_person_does_not(both):
    by_person, by_picture = (out_of_fold(*both[key]) for key in (True, False))
    assert by_picture > 0.95
    assert by_person < 0.5  # one in six by chance


def test_the_audit_names_the_people_that_are_in_two_folds(both):
    honest, leaking = (list(data_audit.groups(*both[key])) for key in (True, False))
    assert not honest
    (named,) = [finding for finding in leaking if "'person'" in finding.what]
    assert named.count == 24
    assert "24 of 24 values have rows in several folds" in named.what
    assert "group" in named.hint


@pytest.mark.slow
def test_the_leak_shows_in_the_recipes_own_score(tmp_path):
    scores = {}
    for by in ("person", "picture"):
        words = ["--workspace", str(tmp_path / by), "--draw", "60", "--identity", "--by", by, "--device", "cpu"]
        ran = CliRunner().invoke(load(MASK).main, words)
        assert ran.exit_code == 0, ran.output
        scores[by] = float(ran.output.split("out of fold  macro_f1 ")[1].split()[0])
    assert scores["picture"] > 0.85
    assert scores["person"] < 0.5


def test_the_recipe_draws_where_nothing_is_and_asks_where_it_may_not(tmp_path):
    def run(*words):
        return CliRunner().invoke(load(MASK).main, ["--device", "cpu", "--smoke", *words])

    empty = run("--workspace", str(tmp_path / "work"))
    assert empty.exit_code == 1
    assert "--draw 60" in empty.output
    data = tmp_path / "data"
    ran = run("--workspace", str(tmp_path / "work"), "--data", str(data), "--draw", "12", "--heads", "parts", "--loss", "focal")
    assert ran.exit_code == 1
    assert "1 group cannot make 5 folds" in ran.output or "fewer than 5 members" in ran.output
    ran = run("--workspace", str(tmp_path / "more"), "--data", str(tmp_path / "other"), "--draw", "30", "--loss", "focal")
    assert ran.exit_code == 0, ran.output
    competition = Competition.read(tmp_path / "more")
    assert (competition.group, len(competition.images("train"))) == ("person", 210)
    assert not (tmp_path / "more" / "train").exists()  # the data stay where they are
    again = run("--workspace", str(tmp_path / "more"), "--data", str(tmp_path / "other"), "--draw", "30", "--identity")
    assert f"{tmp_path / 'other' / 'train'} is there: nothing is drawn" in again.output
