"""Paths as manifests and commands say them: never somebody's folders, always the way there."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.base.provenance import from_inside, portable

ROOT = Path("/data/somebody/work")


@pytest.mark.parametrize(
    ("path", "carried", "typed"),
    [
        ("/data/somebody/work/folds/a.onnx", "folds/a.onnx", "folds/a.onnx"),
        ("/data/somebody/work", ".", "."),
        ("/data/somebody/other/a.onnx", "a.onnx", "/data/somebody/other/a.onnx"),
        ("/data/somebody/worker/a.onnx", "a.onnx", "/data/somebody/worker/a.onnx"),  # begins alike, lies elsewhere
    ],
)
def test_a_path_inside_is_relative_and_one_outside_says_its_name_or_all(path, carried, typed):
    assert portable(Path(path), ROOT) == carried
    assert from_inside(Path(path), ROOT) == typed
    assert ROOT / typed == Path(path)
