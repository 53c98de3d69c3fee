"""Every training row by the fold models that did not see it, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import card, network
from tests.ensemble.torch_reference import normalised
from toolkit.ensemble.unseen import _spread, out_of_fold
from toolkit.errors import ModelError
from toolkit.images.render import load
from toolkit.inference.execution import Execution
from toolkit.inference.exports import find_exports, read_exports
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split


def test_out_of_fold_is_each_models_own_held_out_rows(workspace, folds):
    competition, split = Competition.read(workspace), Split.read(workspace / "split.csv")
    exports = read_exports(find_exports(["folds"]), competition)
    found = out_of_fold(competition, exports, split, execution=Execution("cpu"))["label"]
    assert sorted(found.ids) == sorted(split.ids)
    for fold in range(2):
        ids = split.held_out(fold)
        said = card()
        pixels = np.stack([load(workspace / "train" / f"{name}.png", said.preprocess) for name in ids])
        with torch.inference_mode():
            expected = network(fold)(normalised(pixels, said)).softmax(1).numpy()
        np.testing.assert_allclose(found.align(ids).values, expected, atol=1e-5)


def test_out_of_fold_refuses_another_split(workspace, folds):
    competition = Competition.read(workspace)
    exports = read_exports(find_exports(["folds"]), competition)
    split = Split.read(workspace / "split.csv")
    other = Split(split.ids, split.labels, split.groups, 1 - split.folds)
    with pytest.raises(ModelError, match="was trained on split"):
        out_of_fold(competition, exports, other)


def test_a_sample_has_every_class_its_share_and_smaller_ones_are_in_larger_ones():
    """Sorted by class, as files often are: 300, 90 and 10 rows of one fold, none of the other's."""
    labels = ("ant",) * 300 + ("bee",) * 90 + ("cat",) * 10
    ids = tuple(f"{row:03d}" for row in range(800))
    split = Split(ids, labels * 2, ("",) * 800, np.repeat([0, 1], 400))
    label = dict(zip(ids, labels * 2, strict=True))
    samples = [_spread(split, 1, limit) for limit in (20, 120, 399)]
    for sample in samples:
        counts = [sum(label[name] == kind for name in sample) for kind in ("ant", "bee", "cat")]
        assert np.abs(np.array(counts) - len(sample) * np.array([0.75, 0.225, 0.025])).max() <= 1.5
        assert set(sample) <= set(split.held_out(1))
    assert [len(sample) for sample in samples] == [20, 120, 399]
    assert set(samples[0]) < set(samples[1]) < set(samples[2])
    assert list(samples[1]) == sorted(samples[1])
    assert _spread(split, 1, None) == _spread(split, 1, 400) == split.held_out(1)
