"""What a bundle holds, and when none is made."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from tests.requested import ensemble
from tests.submissions.bundle.helpers import HERE, TTA, expected, hidden, probabilistic, written
from toolkit import cli
from toolkit.cli.commands.bundle import CUDA
from toolkit.errors import DataError, SubmissionError
from toolkit.images import geometry, views
from toolkit.inference.exports import find_exports, read_exports
from toolkit.submissions.bundle import pack, wheels
from toolkit.submissions.bundle.contents import Recipe
from toolkit.workspace.competition import Competition


def test_what_a_bundle_holds(packed, workspace):
    names = {path.relative_to(packed.path).as_posix() for path in packed.path.rglob("*")}
    assert {
        "run.py",
        "bundle.json",
        "competition.toml",
        "README.txt",
        "toolkit/submissions/bundle/run.py",
        "toolkit/core/voting.py",
    } <= names
    assert not {"toolkit/submissions/formats.py", "toolkit/ensemble/run.py", "toolkit/training", "wheels"} & names
    text = (packed.path / "bundle.json").read_text() + (packed.path / "README.txt").read_text()
    assert str(workspace) not in text
    recipe = packed.recipe
    assert [(m.title, m.weight) for m in recipe.models] == [("tiny.fold1", 0.7), ("tiny.fold0", 0.3)]
    assert all(m.views == views.views(TTA) for m in recipe.models)
    assert Recipe.read(packed.path) == recipe
    assert recipe.agreement["rows"] == 24
    assert recipe.agreement["what"] == "out-of-fold images"
    assert 0 < recipe.agreement["gap"] < 0.05


def test_the_agreement_would_tell_if_the_pixels_differed(packed, workspace, monkeypatch):
    competition = Competition.read(workspace)
    chosen = [(export, 1.0, ("id",)) for export in read_exports(find_exports(["folds/*.onnx"]), competition)]
    assert pack.agreement(competition, chosen)["same"] == 24
    plain = geometry.cuts
    by_pillow = geometry.resize_by_pillow
    monkeypatch.setattr(
        geometry, "cuts", lambda image, *wanted, resize, **more: plain(image // (1 + 7 * (resize is by_pillow)), *wanted)
    )
    shutil.rmtree(workspace / "store")
    (workspace / "split.csv").unlink()
    found = pack.agreement(competition, chosen)
    assert found["same"] < found["rows"] == 48
    assert "seen by the models" in found["what"]
    shutil.rmtree(workspace / "train")
    assert pack.agreement(competition, chosen) == {}


def test_a_bundle_that_cannot_be_made_leaves_nothing(workspace, folds, tmp_path):
    competition = probabilistic(workspace)
    with pytest.raises(SubmissionError, match="no predictions"):
        pack.make(competition, tmp_path / "b", python=HERE, cuda="cpu")
    ensemble(competition, find_exports(["folds/*.onnx"]), vote="hard", device="cpu")
    with pytest.raises(DataError, match="hard vote leaves labels"):
        pack.make(competition, tmp_path / "b", python=HERE, cuda="cpu", wheels=False)
    ensemble(competition, find_exports(["folds/*.onnx"]), device="cpu")
    for python, cuda in (("3.10", "cpu"), ("3", "cpu"), ("3.12", "11")):
        with pytest.raises(DataError, match=r"no Python that bundles run on|CUDA '11' is unknown"):
            pack.make(competition, tmp_path / "b", python=python, cuda=cuda)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(DataError, match="exists"):
        pack.make(competition, tmp_path / "full", python=HERE, cuda="cpu")
    first = folds / "tiny.fold0.onnx"
    shutil.copyfile(folds / "tiny.fold1.onnx", first)
    with pytest.raises(SubmissionError) as caught:
        pack.make(competition, tmp_path / "b", python=HERE, cuda="cpu", wheels=False)
    assert [problem.code for problem in caught.value.problems] == ["SUB060"]
    assert sorted(path.name for path in tmp_path.iterdir() if path != workspace) == ["full"]


def test_the_command(workspace, folds, tmp_path):
    ensemble(Competition.read(workspace), find_exports(["folds/*.onnx"]), device="cpu")
    words = ["bundle", "-o", str(tmp_path / "b"), "--python", HERE, "--cuda", "cpu", "--no-wheels", "--deadline", "1h30m"]
    done = CliRunner().invoke(cli.cli, words)
    assert done.exit_code == 0, done.output
    assert "2 models, 0 wheels" in done.output
    assert Recipe.read(tmp_path / "b").deadline == 5400
    again = CliRunner().invoke(cli.cli, words)
    assert again.exit_code == 1
    assert "exists" in again.output
    assert CliRunner().invoke(cli.cli, [*words[:-1], "soon"]).exit_code == 1
    assert set(CUDA) == set(wheels.ENGINES)


@pytest.mark.slow
def test_an_empty_environment_with_the_network_closed(workspace, folds, tmp_path):
    """The real wheels in a virtual environment that has nothing, not even pip, and (where we may) in a network of its own."""
    competition = probabilistic(workspace)
    ensemble(competition, find_exports(["folds/*.onnx"]), tta=TTA, weights="0.3,0.7", device="cpu")
    made = pack.make(competition, tmp_path / "bundle", python=HERE, cuda="cpu")
    assert {name.split("-")[0] for name in made.wheels} >= {"onnxruntime", "numpy", "pillow"}
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "empty")], check=True)
    images, sample = hidden(tmp_path / "hidden", 30)
    closed = ["unshare", "-n"] if subprocess.run(["unshare", "-n", "true"], check=False).returncode == 0 else []
    words = [*closed, str(tmp_path / "empty" / "bin" / "python"), str(made.path / "run.py"), "--test", str(images)]
    words += ["--sample", str(sample), "--out", str(tmp_path / "out.csv")]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    found = written(tmp_path / "out.csv")
    np.testing.assert_allclose(list(found.values()), expected(workspace, images, found), rtol=0, atol=1e-6)
