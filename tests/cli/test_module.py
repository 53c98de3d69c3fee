"""`python -m toolkit`: a workspace's own files are not imported, whatever they are called."""

from __future__ import annotations

import subprocess
import sys


def test_modules_of_the_current_folder_are_not_imported(tmp_path):
    for name in ("json", "click", "numpy", "tomllib"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\n")
    done = subprocess.run([sys.executable, "-m", "toolkit", "score"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Error:" in done.stderr
    assert not (tmp_path / "ran").exists()
