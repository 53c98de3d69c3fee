"""A packed bundle, and the results of a worker of it."""

from __future__ import annotations

import compileall
import shutil
from dataclasses import replace

import pytest

from tests.conftest import make_workspace
from tests.requested import ensemble
from tests.submissions.bundle.helpers import ALONE, HERE, TTA, probabilistic
from toolkit.inference.exports import find_exports
from toolkit.submissions.bundle import pack, worker
from toolkit.workspace.competition import Competition


@pytest.fixture(scope="session")
def packed_once(tmp_path_factory, exported):
    """work/, bundle/ and alone/, made once; the bundle's modules are compiled, as its processes would do anew for each test."""
    root = tmp_path_factory.mktemp("packed") / "work"
    shutil.copytree(exported, make_workspace(root) / "folds")
    competition = probabilistic(root)
    ensemble(competition, find_exports(["folds/*.onnx"], base=root), tta=TTA, weights="0.3,0.7", device="cpu")
    made = pack.make(competition, root.parent / "bundle", python=HERE, cuda="cpu", wheels=False)
    compileall.compile_dir(made.path, quiet=2)
    (root.parent / "alone").mkdir()
    (root.parent / "alone" / "sitecustomize.py").write_text(ALONE)
    return made


@pytest.fixture
def packed(packed_once, workspace, monkeypatch):
    """A bundle of two fold models of unequal weight with four views, without wheels, beside the workspace it was made in."""
    shutil.rmtree(workspace)
    for folder in (workspace, workspace.parent / "bundle", workspace.parent / "alone"):
        shutil.copytree(packed_once.path.parent / folder.name, folder)
    monkeypatch.chdir(workspace)
    return replace(packed_once, path=workspace.parent / packed_once.path.name)


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
