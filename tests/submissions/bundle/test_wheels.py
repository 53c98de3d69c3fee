"""Wheels are asked of pip for the target."""

from __future__ import annotations

import stat
import sys

import pytest

from toolkit.errors import ToolkitError
from toolkit.submissions.bundle import wheels


@pytest.mark.parametrize("cuda", list(wheels.ENGINES))
def test_wheels_are_asked_for_the_target(cuda, tmp_path, monkeypatch):
    seen = tmp_path / "seen"
    fake = tmp_path / "pip"
    fake.write_text(f"#!{sys.executable}\nimport sys\nopen({str(seen)!r}, 'w').write('\\n'.join(sys.argv[1:]))\n")
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(wheels, "_pip", lambda: [str(fake)])
    wheels.fetch(tmp_path / "wheels", "3.12", cuda)
    words = seen.read_text().splitlines()
    assert words[words.index("--python-version") + 1] == "3.12"
    assert "cp312" in words
    assert "--only-binary=:all:" in words
    assert wheels.ENGINES[cuda] in words
    assert wheels.ENGINES[cuda].startswith("onnxruntime-gpu") == (cuda != "cpu")
    fake.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('ERROR: No matching distribution')\n")
    with pytest.raises(ToolkitError, match=rf"Python 3.12, CUDA {cuda}: ERROR: No matching"):
        wheels.fetch(tmp_path / "wheels", "3.12", cuda)


def test_wheels_need_a_pip(monkeypatch, tmp_path):
    import importlib.util

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ToolkitError, match="pip is not installed"):
        wheels.fetch(tmp_path / "wheels", "3.12", "cpu")
