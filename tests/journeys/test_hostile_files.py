"""A few seeds of the suite of hostile workspaces: a sentence or a result, nothing run, no traceback."""

from __future__ import annotations

import importlib.util
import shutil
import time
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "attack_hostile.py"
SPEC = importlib.util.spec_from_file_location("attack_hostile_of_tests", FILE)
suite = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(suite)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile") / "work"
    suite.workspace(root)
    return root


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", suite.HOSTILE)
def test_a_hostile_workspace(good, tmp_path, monkeypatch, name, seed):
    root = tmp_path / "work"
    shutil.copytree(good, root)
    for path in root.glob("*.py"):
        path.write_text(path.read_text().replace(str(good), str(root)))
    monkeypatch.chdir(root)
    started = time.process_time()
    assert suite.trial(name, seed, root) in ("same", "refused")
    assert time.process_time() - started < suite.SECONDS
    assert not (root / "marker").exists()
