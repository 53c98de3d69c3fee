"""`toolkit.ensembling` as recipes of 0.1.0 call it: `run` with every choice as a keyword."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

from toolkit.blending.combination import Combination
from toolkit.ensemble.run import run_ensemble
from toolkit.inference.execution import Execution
from toolkit.inference.exports import find_exports
from toolkit.workspace.competition import Competition


@pytest.fixture
def ensembling():
    sys.modules.pop("toolkit.ensembling", None)
    with pytest.warns(DeprecationWarning, match=r"toolkit\.ensembling is now"):
        return importlib.import_module("toolkit.ensembling")


def test_keywords_become_the_two_requests(workspace, folds, ensembling):
    competition, paths = Competition.read(workspace), find_exports(["folds"])
    old = ensembling.run(competition, paths, tta="hflip", weights="1,3", device="cpu", name="old", limit=5)
    assert old.path.name == "old.parquet"
    new = run_ensemble(competition, paths, Combination("hflip", weights="1,3"), Execution("cpu"), limit=5)
    assert new.outcome.passes == 0
    assert np.array_equal(old.predictions["label"].values, new.predictions["label"].values)
    assert old.meta["models"] == new.meta["models"]


def test_a_choice_that_nobody_knows_is_named(workspace, folds, ensembling):
    with pytest.raises(TypeError, match="colour"):
        ensembling.run(Competition.read(workspace), find_exports(["folds"]), colour="blue")
