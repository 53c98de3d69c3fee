"""Paths as manifests and commands say them: never somebody's folders, always the way there."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.base.provenance import from_inside, portable

ROOT = Path("/home/somebody/work")


@pytest.mark.parametrize(
    ("path", "carried", "typed"),
    [
        ("/home/somebody/work/folds/a.onnx", "folds/a.onnx", "folds/a.onnx"),
        ("/home/somebody/work", ".", "."),
        ("/home/somebody/other/a.onnx", "a.onnx", "/home/somebody/other/a.onnx"),
        ("/home/somebody/worker/a.onnx", "a.onnx", "/home/somebody/worker/a.onnx"),  # begins alike, lies elsewhere
    ],
)
def test_a_path_inside_is_relative_and_one_outside_says_its_name_or_all(path, carried, typed):
    assert portable(Path(path), ROOT) == carried
    assert from_inside(Path(path), ROOT) == typed
    assert ROOT / typed == Path(path)
