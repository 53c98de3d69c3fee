"""Runners: the same results wherever jobs run; a prediction spread over processes leaves the store as one process would."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.conftest import make_workspace
from toolkit.base.runners.jobs import RUNNERS, Job
from toolkit.errors import DataError, ModelError, ToolkitError
from toolkit.inference import multi_process
from toolkit.inference.execution import Execution
from toolkit.inference.predict import predict
from toolkit.inference.store.prediction_store import Store
from toolkit.runtime.graphs import onnx_file
from toolkit.workspace.competition import Competition
from toolkit.workspace.image_rows import Item

HERE = __name__  # as other processes import it


def square(number):
    return number, number**2, os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


def slowly(number):
    time.sleep(0.2)
    return square(number)


def refuse(number):
    if number == 3:
        raise DataError(f"no {number}", hint="Leave it out.")
    return number


def die():
    os._exit(9)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))


@pytest.mark.parametrize("name", RUNNERS)
def test_every_runner_gives_every_result_once(name):
    found = sorted(RUNNERS[name]((Job(f"{HERE}:square", (i,)) for i in range(9)), workers=2))
    assert [(i, s) for i, s, *_ in found] == [(i, i * i) for i in range(9)]
    assert all((pid == os.getpid()) == (name == "here") for _, _, pid, _ in found)


@pytest.mark.parametrize("name", RUNNERS)
def test_what_a_job_raises_arrives_with_its_hint(name):
    with pytest.raises(DataError, match="no 3") as caught:
        list(RUNNERS[name]([Job(f"{HERE}:refuse", (i,)) for i in range(6)], workers=2))
    assert caught.value.hint == "Leave it out."


def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    found = list(RUNNERS["processes"]([Job(f"{HERE}:slowly", (i,)) for i in range(8)], workers=2, gpus=2))
    assert len({(pid, gpu) for _, _, pid, gpu in found}) == 2
    assert len({pid for _, _, pid, _ in found}) == 2
    assert {gpu for *_, gpu in found} == {"4", "7"}


def test_a_process_that_dies_is_named_and_others_are_not_waited_for():
    with pytest.raises(ToolkitError, match="ended from outside"):
        list(RUNNERS["processes"]([Job(f"{HERE}:die")], workers=1))


@pytest.fixture(scope="module")
def job(tmp_path_factory, exported):
    root = make_workspace(tmp_path_factory.mktemp("spread") / "work", test=40)
    items = [Item(name, path) for name, path in Competition.read(root).images("test")]
    exports = [onnx_file.read(path) for path in sorted(exported.glob("*.onnx"))]
    return exports, {export.digest: ("id", "hflip") for export in exports}, items


def test_two_processes_leave_the_tables_that_one_does_to_the_bit(job, tmp_path, monkeypatch):
    monkeypatch.setattr(multi_process, "SHARD", 7)
    exports, views, items = job
    alone = predict(exports, views, items, Store(tmp_path / "one"), Execution("cpu"))
    seen = []
    execution = Execution("cpu", workers=2, progress=lambda *now: seen.append(now))
    passes = multi_process.fill(exports, views, items, tmp_path / "two", execution)
    assert passes == alone.passes == 40 * 2 * 2
    assert seen[-1] == (40, 40)
    assert len(seen) == 6
    read = predict(exports, views, items, Store(tmp_path / "two"), Execution("cpu", opener=None))  # nothing is left to open
    assert read.passes == 0
    for export in exports:
        for view in views[export.digest]:
            found = [outcome.logits(export, view, outcome.digests).tobytes() for outcome in (alone, read)]
            assert found[0] == found[1]


def test_a_model_that_cannot_be_opened_is_the_callers_error(job, tmp_path):
    exports, views, items = job
    (tmp_path / "no.onnx").write_bytes(b"no")
    files = {exports[0].digest: tmp_path / "no.onnx"}
    with pytest.raises(ModelError, match=r"no\.onnx"):
        multi_process.fill(exports, views, items, tmp_path / "store", Execution("cpu", files=files, workers=1))
