"""A worker does each thing once, and goes on where another died."""

from __future__ import annotations

import os

import numpy as np
import pytest

from tests.requested import ensemble
from tests.submissions.bundle.helpers import HERE, probabilistic
from toolkit.images import decode
from toolkit.inference.exports import find_exports
from toolkit.submissions.bundle import pack, worker


def test_a_model_alone_keeps_no_pixels_and_says_the_same(done, packed, workspace):
    competition, recipe, _, out = done
    paths = tuple(str(path) for _, path in competition.images("test"))
    alone = workspace.parent / "alone-part"
    alone.mkdir()
    worker.work(worker.Job(str(packed.path), str(alone), "cpu", recipe.models[:1], paths))
    assert list(out.glob("pixels.*"))
    assert not list(alone.glob("pixels.*"))
    key = recipe.models[0].key
    np.testing.assert_array_equal(np.load(alone / f"{key}.npy"), np.load(out / f"{key}.npy"))


def test_images_may_be_called_in_any_bytes(done, packed, workspace, tmp_path):
    """The job's file holds what the system calls them; a worker that could not read it would leave every row the prior."""
    _, recipe, _, out = done
    folder = (workspace / "test").rename(tmp_path / os.fsdecode(b"test\xfe"))
    paths = tuple(map(str, sorted(folder.iterdir())))
    (tmp_path / "results").mkdir()
    job = worker.Job(str(packed.path), str(tmp_path / "results"), "cpu", recipe.models[:1], paths)
    worker.work(worker.Job.read(job.write(tmp_path / "job.json")))
    key = recipe.models[0].key
    np.testing.assert_array_equal(np.load(tmp_path / "results" / f"{key}.npy"), np.load(out / f"{key}.npy"))


def test_a_worker_goes_on_where_another_died(done, packed, monkeypatch):
    competition, recipe, _names, out = done
    paths = tuple(str(path) for _, path in competition.images("test"))
    job = worker.Job(str(packed.path), str(out), "cpu", recipe.models, paths)
    key = recipe.models[0].key
    whole = np.load(out / f"{key}.npy")
    half = whole.copy()
    half[6:] = np.nan
    half[:6] = 0.25
    (out / f"{key}.npy").unlink()
    np.save(out / f"{key}.part.npy", half)
    before = (out / f"{recipe.models[1].key}.npy").stat().st_mtime_ns
    job.write(out / "job.json")
    assert worker.work_on(out / "job.json") == 0
    found = np.load(out / f"{key}.npy")
    np.testing.assert_array_equal(found[:6], 0.25)
    np.testing.assert_array_equal(found[6:], whole[6:])
    assert (out / f"{recipe.models[1].key}.npy").stat().st_mtime_ns == before


def test_pixels_are_made_once_or_again_where_there_is_no_room(done, packed, tmp_path, monkeypatch):
    competition, recipe, _names, out = done
    paths = tuple(str(path) for _, path in competition.images("test"))
    counts = {}
    read = decode.read
    for room in (True, False):
        made: list[str] = []
        monkeypatch.setattr(decode, "read", lambda path, made=made: made.append(path) or read(path))
        if not room:
            monkeypatch.setattr(worker, "SPARE", 1 << 60)
        again = tmp_path / str(room)
        again.mkdir()
        worker.work(worker.Job(str(packed.path), str(again), "cpu", recipe.models, paths))
        counts[room] = len(made)
        for model in recipe.models:
            np.testing.assert_array_equal(np.load(again / f"{model.key}.npy"), np.load(out / f"{model.key}.npy"))
    assert counts == {True: len(paths), False: 2 * len(paths)}


@pytest.mark.parametrize(("error", "why"), [(MemoryError(), "memory ran out"), (ImportError("no PIL"), "no PIL")])
def test_no_memory_and_no_package_are_no_bad_image(done, packed, tmp_path, monkeypatch, error, why):
    """The worker gives up with a sentence, and nothing says that an image cannot be used: the next one goes on."""
    competition, recipe, _names, out = done
    paths = tuple(str(path) for _, path in competition.images("test"))
    job = worker.Job(str(packed.path), str(tmp_path), "cpu", recipe.models[:1], paths)
    job.write(tmp_path / "job.json")
    true = decode._pillow

    def fail(data, header, where, *rest):
        if where == paths[3]:
            raise error
        return true(data, header, where, *rest)

    monkeypatch.setattr(decode, "_pillow", fail)
    assert worker.work_on(tmp_path / "job.json") == 1
    assert why in (tmp_path / "error").read_text()
    assert worker.bad_images(tmp_path) == {}
    monkeypatch.undo()
    assert worker.work_on(tmp_path / "job.json") == 0
    key = recipe.models[0].key
    np.testing.assert_array_equal(np.load(tmp_path / f"{key}.npy"), np.load(out / f"{key}.npy"))


def test_what_is_there_of_pictures_cut_short_where_the_ensemble_took_it(workspace, folds):
    """A bundle treats them as the predictions that it was packed from did, with the answers that these have."""
    cut = workspace / "test" / "9003.png"
    cut.write_bytes(cut.read_bytes()[:2500])
    competition = probabilistic(workspace)
    paths = find_exports(["folds/*.onnx"])
    made = ensemble(competition, paths, device="cpu", implementation="pillow", on_bad_image="decode")
    bundle = pack.make(competition, workspace.parent / "bundle", python=HERE, cuda="cpu", wheels=False)
    assert bundle.recipe.partial
    images = tuple(str(path) for _, path in competition.images("test"))
    tables = {}
    for partial in (True, False):
        out = workspace.parent / str(partial)
        out.mkdir()
        worker.work(worker.Job(str(bundle.path), str(out), "cpu", bundle.recipe.models, images, partial=partial))
        tables[partial] = np.mean([np.load(out / f"{model.key}.npy") for model in bundle.recipe.models], axis=0)
        assert list(worker.cut_short(out)) == ([3] if partial else [])
        assert list(worker.bad_images(out)) == ([] if partial else [3])
    np.testing.assert_allclose(tables[True], made.predictions["label"].values, atol=1e-6)
    assert np.isnan(tables[False][3]).all()
