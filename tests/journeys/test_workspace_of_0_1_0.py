"""A workspace that 0.1.0 left: what it predicted is not predicted again, and its submission is made again to the byte.

The archive holds `conftest.make_workspace`, two folds of `conftest.network` exported by 0.1.0, its store after
`toolkit ensemble folds/*.onnx --tta flip --device cpu`, and the submission that `toolkit submit` wrote.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from toolkit.cli import cli
from toolkit.images.render import implementation_tag
from toolkit.runtime.devices import engine_tag

ARCHIVE = Path(__file__).parents[1] / "data" / "workspace-0.1.0.tar.xz"
PASSES = 2 * 4 * 11  # models × views × images


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """The workspace unpacked, and the current folder."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path / "workspace")
    return tmp_path / "workspace"


def run(*words: str):
    result = CliRunner().invoke(cli, list(words))
    assert result.exit_code == 0, result.output
    return result


def test_no_row_is_predicted_again(old):
    keys = [json.loads(path.read_text()) for path in old.glob("store/tables/*/key.json")]
    made_by = {(key["engine"], key["pixels"].partition("/")[0]) for key in keys}
    # values of another onnxruntime, or of pixels that another torch made, are not the same to the bit
    wanted = 0 if made_by == {(engine_tag("cpu"), implementation_tag())} else PASSES
    before = (old / "submission.csv").read_bytes()
    output = run("ensemble", *map(str, sorted(old.glob("folds/*.onnx"))), "--tta", "flip", "--device", "cpu").output
    assert f"{wanted} computed, {PASSES - wanted} from the store" in output
    run("submit")
    assert (old / "submission.csv").read_bytes() == before


def test_its_submission_is_made_again_to_the_byte(old):
    assert "submission.csv made again: the same bytes" in run("verify", "--rebuild").output


def test_an_export_that_changed_is_predicted_again(old):
    """The other half: the counts above come from the store and not from a path that never looks."""
    for path in old.glob("store/tables/*/*.seg"):
        path.unlink()
    output = run("ensemble", "folds", "--tta", "flip", "--device", "cpu").output
    assert f"{PASSES} computed, 0 from the store" in output
