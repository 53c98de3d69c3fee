"""A packed bundle, and the results of a worker of it."""

from __future__ import annotations

import pytest

from tests.requested import ensemble
from tests.submissions.bundle.helpers import ALONE, HERE, TTA, probabilistic
from toolkit.inference.exports import find_exports
from toolkit.submissions.bundle import pack, worker
from toolkit.workspace.competition import Competition


@pytest.fixture
def packed(workspace, folds):
    """A bundle of two fold models of unequal weight with four views, without wheels, beside the workspace."""
    competition = probabilistic(workspace)
    ensemble(competition, find_exports(["folds/*.onnx"]), tta=TTA, weights="0.3,0.7", device="cpu")
    made = pack.make(competition, workspace.parent / "bundle", python=HERE, cuda="cpu", wheels=False)
    (workspace.parent / "alone").mkdir()
    (workspace.parent / "alone" / "sitecustomize.py").write_text(ALONE)
    return made


@pytest.fixture
def done(packed, workspace):
    """The recipe with the finished tables of a worker over 11 test images, made in this process."""
    competition, recipe = Competition.read(workspace), packed.recipe
    names = [name for name, _ in competition.images("test")]
    paths = tuple(str(path) for _, path in competition.images("test"))
    out = workspace.parent / "part"
    out.mkdir()
    worker.work(worker.Job(str(packed.path), str(out), "cpu", recipe.models, paths))
    return competition, recipe, names, out
