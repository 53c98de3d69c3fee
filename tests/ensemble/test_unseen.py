"""Every training row by the fold models that did not see it, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import card, network
from tests.ensemble.torch_reference import normalised
from toolkit.ensemble.unseen import out_of_fold
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
