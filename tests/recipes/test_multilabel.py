"""recipes/multilabel.py and its pictures of several digits."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tests.conftest import few_digits
from tests.recipes.test_recipes import load
from toolkit.setup import digits_data
from toolkit.workspace.competition import Competition

MULTILABEL = Path(__file__).parents[2] / "recipes" / "multilabel.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("several") / "digits"
    digits_data.make_multilabel(root)
    return root


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def quarters(path):
    with Image.open(path) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (24, 24)
    for top in (0, 12):
        for left in (0, 12):
            part = pixels[top : top + 12, left : left + 12]
            if part.any():
                yield part


def test_every_digit_is_in_one_picture_and_the_labels_are_theirs(made):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    known = {}
    for image, label in zip(np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target, strict=True):
        known.setdefault(cut(image), []).append(str(label))
    competition = Competition.read(made)
    truth = {row["id"]: set(row["digits"].split()) for row in rows(made / "data/train.csv") + rows(made / "truth.csv")}
    used = []
    for name, path in competition.images("train") + competition.images("test"):
        found = [cut(part) for part in quarters(path)]
        assert 1 <= len(found) <= 3
        assert {known[key][0] for key in found} == truth[name]
        used += found
    assert sorted(used) == sorted(key for key, labels in known.items() for _ in labels)
    train = {path.name for _, path in competition.images("train")}
    assert not train & {path.name for _, path in competition.images("test")}
    assert (len(train), len(rows(made / "sample_submission.csv"))) == (702, 181)
    assert competition.targets[0].multilabel


def cut(part):
    """A digit without the black around it."""
    there = np.argwhere(part)
    (top, left), (bottom, right) = there.min(0), there.max(0) + 1
    return part[top:bottom, left:right].tobytes() + bytes([bottom - top])


def test_every_class_is_in_every_fold(made):
    split = digits_data.make_split(Competition.read(made))
    assert split.count == 5
    assert not split.missing_classes()
    for row in split.balance():
        assert max(row["classes"].values()) <= 1.2 * min(row["classes"].values())


def test_pictures_are_turned_and_shifted_but_never_mirrored():
    recipe = load(MULTILABEL)
    torch.manual_seed(0)
    mark = torch.zeros(64, 3, 48, 48)
    mark[:, :, 10:14, 10:14] = 255
    moved = recipe.augment(mark, recipe.Config())
    assert (moved[:, :, :24, :24].sum((1, 2, 3)) > 0.9 * moved.sum((1, 2, 3))).all()
    assert len({tuple(one.flatten().tolist()) for one in moved}) > 60
    still = recipe.augment(mark, recipe.Config(turn=0.0, shift=0.0))
    torch.testing.assert_close(still, mark, rtol=0, atol=1e-2)


def test_a_workspace_of_one_class_to_a_picture_is_refused(tmp_path):
    root = few_digits(tmp_path / "digits", 4)
    ran = CliRunner().invoke(load(MULTILABEL).main, ["--workspace", str(root), "--device", "cpu", "--smoke"])
    assert ran.exit_code == 1
    assert "has one class to a picture" in ran.output
    assert "timm_kfold" in ran.output
