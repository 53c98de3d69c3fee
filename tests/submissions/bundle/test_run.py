"""A bundle runs alone, in time, and says what the ensemble says."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.submissions.bundle.helpers import ALONE, expected, hidden, run, written
from toolkit.submissions.bundle import run as offline
from toolkit.submissions.bundle.contents import Recipe


def test_a_bundle_says_what_the_ensemble_says(packed, workspace, tmp_path):
    images, sample = hidden(tmp_path / "hidden")
    moved = packed.path.rename(packed.path.with_name("elsewhere"))
    code, said = run(moved, "--test", images, "--sample", sample, "--out", tmp_path / "out.csv")
    assert code == 0, said
    assert packed.agreement in said
    assert "150 rows from 2 of 2 models" in said
    found = written(tmp_path / "out.csv")
    assert list(found) == [line.split(",")[0] for line in sample.read_text().splitlines()[1:]]
    np.testing.assert_allclose(list(found.values()), expected(workspace, images, found), rtol=0, atol=1e-6)
    frame = pd.read_csv(tmp_path / "out.csv", dtype={"id": str})
    assert list(frame.id) == list(found)
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("bundle-*/0/job.json"))


def test_a_target_without_onnxruntime_is_told(packed, tmp_path):
    images, sample = hidden(tmp_path / "hidden", 5)
    (packed.path.parent / "alone" / "sitecustomize.py").write_text(ALONE.replace('"torch",', '"torch", "onnxruntime",', 1))
    code, said = run(packed.path, "--test", images, "--sample", sample, "--out", tmp_path / "out.csv")
    assert code == 1
    assert "onnxruntime is not installed" in said


def test_images_that_cannot_be_used_get_the_prior(packed, workspace, tmp_path):
    images, sample = hidden(tmp_path / "hidden", 20)
    broken, missing = "00003", "00007"
    (images / f"{broken}.png").write_bytes(b"no image")
    (images / f"{missing}.png").unlink()
    code, said = run(packed.path, "--test", images, "--sample", sample, "--out", tmp_path / "out.csv")
    assert code == 0, said
    assert "2 images cannot be used" in said
    assert f"{broken}.png is not an image" in said
    assert "2 rows have the class prior" in said
    found = written(tmp_path / "out.csv")
    counts = pd.read_csv(workspace / "train.csv").label.value_counts(normalize=True)
    np.testing.assert_allclose(found.pop(broken), counts[["ant", "bee", "cat"]], atol=1e-6)
    np.testing.assert_allclose(found.pop(missing), counts[["ant", "bee", "cat"]], atol=1e-6)
    np.testing.assert_allclose(list(found.values()), expected(workspace, images, found), rtol=0, atol=1e-6)


HANGS = """
import os, time
_open = os.open
def hanging(path, *rest, **more):
    if str(path).endswith({names!r}):
        time.sleep(3600)
    return _open(path, *rest, **more)
os.open = hanging
"""


def hang(*models: Path) -> None:
    """Opening them never ends, as on a file system that is gone."""
    alone = models[0].parents[2] / "alone" / "sitecustomize.py"
    alone.write_text(ALONE + HANGS.format(names=tuple(model.name for model in models)))


def test_the_deadline_leaves_what_is_finished(packed, workspace, tmp_path):
    images, sample = hidden(tmp_path / "hidden", 40)
    first, second = sorted((packed.path / "models").iterdir())
    assert first.name == "00-tiny.fold1.onnx", "the model of most weight comes first"
    hang(second)
    started = time.monotonic()
    code, said = run(packed.path, "--test", images, "--sample", sample, "--out", tmp_path / "out.csv", "--deadline", "12s")
    assert time.monotonic() - started < 18
    assert code == 0, said
    assert "40 rows from 1 of 2 models" in said
    assert "Not finished before the deadline: tiny.fold0" in said
    found = written(tmp_path / "out.csv")
    np.testing.assert_allclose(list(found.values()), expected(workspace, images, found, models=slice(1, 2)), atol=1e-6)


def test_the_prior_stands_where_nothing_is_finished(packed, workspace, tmp_path):
    images, sample = hidden(tmp_path / "hidden", 10)
    hang(*(packed.path / "models").iterdir())
    raw = json.loads((packed.path / "bundle.json").read_text())
    (packed.path / "bundle.json").write_text(
        json.dumps({key: value for key, value in raw.items() if key != "seal"} | {"deadline": 4.0})
    )
    code, said = run(packed.path, "--test", images, "--sample", sample, "--out", tmp_path / "out.csv")
    assert code == 1
    assert "10 rows have the class prior" in said
    np.testing.assert_allclose(list(written(tmp_path / "out.csv").values()), [[1 / 3] * 3] * 10, atol=1e-6)


def test_a_damaged_model_is_named_and_left_out(packed, workspace, tmp_path):
    images, sample = hidden(tmp_path / "hidden", 10)
    damaged = packed.path / "models" / "01-tiny.fold0.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    code, said = run(packed.path, "--test", images, "--sample", sample, "--out", tmp_path / "out.csv")
    assert code == 1
    assert "tiny.fold0 cannot be used: models/01-tiny.fold0.onnx is not the file that was bundled" in said
    found = written(tmp_path / "out.csv")
    np.testing.assert_allclose(list(found.values()), expected(workspace, images, found, models=slice(1, 2)), atol=1e-6)


def _lines(text, change):
    return ("\n".join(map(change, text.splitlines())) + "\n").encode()


CHANGED = {
    "another column": (lambda text: _lines(text, lambda line: line + ",Usage"), "further columns"),
    "ids only": (lambda text: _lines(text, lambda line: line.split(",")[0]), "has no column"),
    "CP949": (lambda text: text.replace("0.5", "고양이").encode("cp949"), "CP949"),
    "semicolons": (lambda text: text.replace(",", ";").encode(), "semicolons"),
    "an index column": (lambda text: _lines(text, lambda line: "," + line), "further columns"),
    "ids under another name": (lambda text: text.replace("id,ant", "ImageId,ant").encode(), "'ImageId' for 'id'"),
    "a class under another name": (lambda text: text.replace("id,ant", "id,ants").encode(), "has no column"),
    "a row twice": (lambda text: (text + text.splitlines()[1] + "\n").encode(), "repeats 1 row"),
    "a row cut short": (lambda text: text.replace(",0.5,0.5,0\n", ",0.5\n", 1).encode(), "another number of cells"),
    "nothing": (lambda _: b"", "is empty"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_sample_still_gets_a_submission(packed, tmp_path, name):
    images, sample = hidden(tmp_path / "hidden", 3)
    ids = [line.split(",")[0] for line in sample.read_text().splitlines()[1:]]
    change, match = CHANGED[name]
    sample.write_bytes(change(sample.read_text()))
    said: list[str] = []
    words = ["--test", str(images), "--sample", str(sample), "--out", str(tmp_path / "out.csv"), "--deadline", "1h"]
    code = offline.main(packed.path, words, said.append, time.monotonic())
    assert code == (1 if name == "nothing" else 0), said
    assert any(match in line for line in said), said
    rows = list(csv.reader((tmp_path / "out.csv").read_text().splitlines()))
    assert rows[0] == ["id", "ant", "bee", "cat"]
    expected_ids = sorted(ids) if name == "nothing" else [*ids, ids[0]] if name == "a row twice" else ids
    assert [row[0] for row in rows[1:]] == expected_ids
    assert all(abs(sum(map(float, row[1:])) - 1) < 1e-5 for row in rows[1:])


def test_a_column_order_of_its_own_is_kept(packed, tmp_path):
    images, sample = hidden(tmp_path / "hidden", 3)
    sample.write_bytes(_lines(sample.read_text(), lambda line: ",".join(reversed(line.split(",")))))
    words = ["--test", str(images), "--sample", str(sample), "--out", str(tmp_path / "out.csv")]
    assert offline.main(packed.path, words, [].append, time.monotonic()) == 0
    assert (tmp_path / "out.csv").read_text().startswith("cat,bee,ant,id\n")


def test_every_gpu_has_a_worker_and_a_dead_one_goes_on_on_the_cpu(packed, workspace, tmp_path, monkeypatch):
    """Without a GPU here, onnxruntime refuses CUDA, which is what a machine with a broken CUDA does."""
    images, sample = hidden(tmp_path / "hidden", 30)
    seen, start = [], subprocess.Popen
    monkeypatch.setattr(offline, "gpu_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr(
        offline.subprocess, "Popen", lambda words, env: seen.append(env["CUDA_VISIBLE_DEVICES"]) or start(words, env=env)
    )
    recipe = replace(Recipe.read(packed.path), cuda="13")
    recipe.write(packed.path)
    said: list[str] = []
    words = ["--test", str(images), "--sample", str(sample), "--out", str(tmp_path / "out.csv")]
    assert offline.main(packed.path, words, said.append, time.monotonic()) == 0, said
    assert seen[:2] == ["4", "6"]
    assert "2 × cuda" in "".join(said)
    assert sum("goes on, on the CPU" in line for line in said) == 2
    found = written(tmp_path / "out.csv")
    np.testing.assert_allclose(list(found.values()), expected(workspace, images, found), rtol=0, atol=1e-6)


def test_without_a_sample_the_folder_says_the_ids(packed, tmp_path):
    images, sample = hidden(tmp_path / "hidden", 12)
    code, said = run(packed.path, "--test", images, "--out", tmp_path / "out.csv")
    assert code == 0, said
    assert list(written(tmp_path / "out.csv")) == sorted(line.split(",")[0] for line in sample.read_text().splitlines()[1:])


def test_a_table_can_name_the_files(packed, tmp_path):
    images, sample = hidden(tmp_path / "hidden", 6)
    text = (packed.path / "competition.toml").read_text()
    (packed.path / "competition.toml").write_text(text.replace('pattern = "{id}.png"', 'pattern = "{folder}/{id}.png"'))
    ids = [line.split(",")[0] for line in sample.read_text().splitlines()[1:]]
    (tmp_path / "test.csv").write_text("folder,id\n" + "".join(f"images,{name}\n" for name in ids))
    asked = ["--test", images.parent, "--sample", sample, "--out", tmp_path / "out.csv"]
    code, said = run(packed.path, *asked)
    assert code == 1
    assert "--table" in said
    code, said = run(packed.path, *asked, "--table", tmp_path / "test.csv")
    assert (code, "prior" in said) == (0, False), said
