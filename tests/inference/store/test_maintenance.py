"""Looking after the store: what is there and whose, compacted without losing a row, pruned only where nobody needs it."""

from __future__ import annotations

import json
import os
import shutil
import time

import numpy as np
import pytest
from click.testing import CliRunner

from tests.requested import ensemble
from toolkit.base import files
from toolkit.cli import cli
from toolkit.errors import StoreError
from toolkit.inference.exports import find_exports
from toolkit.inference.store import file_index, maintenance, timings
from toolkit.inference.store.file_index import ExportIndex, as_digests
from toolkit.inference.store.prediction_store import Store, TableKey, exclusive
from toolkit.workspace.competition import Competition


def keys(count, start=0):
    return as_digests((1000 * i + 7).to_bytes(8, "big") * 2 for i in range(start, start + count))


def rows(count, start=0):
    return np.arange(start, start + count, dtype=np.float32)[:, None] * np.ones(3, np.float32)


def filled(root, key, parts=12):
    table = Store(root).table(key)
    for part in range(parts):
        table.add(keys(10, 10 * part), rows(10, 10 * part))
    return table


@pytest.mark.parametrize("kept_as", ["float32", "float16"])
def test_compacting_keeps_every_row_once_and_sweeps(tmp_path, kept_as):
    key = TableKey("m", "p", "id", "e", kept_as=kept_as)
    filled(tmp_path, key)
    again = Store(tmp_path).table(key)
    shutil.copy(again.segments[0].path, again.folder / "99999999999999999999-twice.seg")  # what two runs at once may leave
    orphan = again.folder / f"x.seg{files.PART}0000"
    orphan.write_bytes(b"half")
    before = again.gather(keys(120))
    del again
    done = maintenance.compact(tmp_path)
    assert (done.before, done.after) == (13, 1)
    assert done.freed > 0
    assert not orphan.exists()
    table = Store(tmp_path).table(key)
    assert len(table) == 120
    assert np.array_equal(table.gather(keys(120)), before)
    assert maintenance.compact(tmp_path).after == 1


def test_compacting_that_dies_in_between_loses_nothing(tmp_path, monkeypatch):
    key = TableKey("m", "p", "id", "e")
    filled(tmp_path, key)
    monkeypatch.setattr(maintenance, "MERGED_ROWS", 50)

    class DeadError(Exception):
        pass

    for deaths in range(1, 14):
        calls, true = [], maintenance.Path.unlink

        def unlink(path, *more, calls=calls, true=true, deaths=deaths, **and_more):
            if path.suffix == ".seg":
                calls.append(path)
                if len(calls) == deaths:
                    raise DeadError
            return true(path, *more, **and_more)

        with monkeypatch.context() as patched:
            patched.setattr(maintenance.Path, "unlink", unlink)
            try:
                maintenance.compact(tmp_path)
            except DeadError:
                assert np.array_equal(Store(tmp_path).table(key).gather(keys(120)), rows(120))
    assert np.array_equal(Store(tmp_path).table(key).gather(keys(120)), rows(120))


def test_nobody_removes_what_a_run_is_using(tmp_path):
    filled(tmp_path, TableKey("m", "p", "id", "e"))
    running = Store(tmp_path)
    tables = maintenance.survey(tmp_path, tmp_path / "folds")
    for act in (lambda: maintenance.compact(tmp_path), lambda: maintenance.prune(tmp_path, tables)):
        with pytest.raises(StoreError, match="in use by another run"):
            act()
    Store(tmp_path).close()  # a second run is welcome
    running.close()
    with exclusive(tmp_path):
        pass
    assert maintenance.prune(tmp_path, tables) > 0
    assert maintenance.survey(tmp_path, tmp_path / "folds") == []


def test_none_leaves_its_rows_to_the_next_run_while_another_is_at_work(tmp_path):
    mine, other = Store(tmp_path, passing=True), Store(tmp_path)
    mine.table(TableKey("m", "p", "id", "e")).add(keys(3), rows(3))
    assert mine.forget() is False
    other.close()
    again = Store(tmp_path, passing=True)
    assert len(again.table(TableKey("m", "p", "id", "e"))) == 3
    assert again.forget() is True
    assert not (tmp_path / "passing").exists()


@pytest.fixture
def predicted(workspace, folds):
    for path in [*folds.glob("*.onnx"), *(workspace / "test").iterdir()]:
        os.utime(path, (time.time() - 100,) * 2)
    ensemble(Competition.read(workspace), find_exports(["folds"]), tta="hflip", device="cpu")
    return workspace


def invoke(*arguments):
    done = CliRunner().invoke(cli, ["store", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_shows_compacts_and_prunes(predicted):
    shown = invoke()
    assert "tiny.fold0" in shown
    assert "stale" not in shown
    (predicted / "folds" / "tiny.fold1.onnx").unlink()
    assert invoke().count("stale: its file is gone") == 2
    said = json.loads(invoke("--json"))
    assert [table["rows"] for table in said["tables"]] == [11] * 4
    assert sum(table["size"] for table in said["tables"]) == said["bytes"]
    assert "2 of 4 tables would be removed" in invoke("prune", "--dry-run")
    assert "0 of 4 tables would be removed" in invoke("prune", "--older", "1", "--dry-run")
    assert len(json.loads(invoke("--json"))["tables"]) == 4
    assert "2 of 4 tables removed" in invoke("prune", "--stale")
    assert "4 segments" not in invoke("compact")
    kept = ensemble(Competition.read(predicted), find_exports(["folds"]), tta="hflip", device="cpu")
    assert kept.outcome.passes == 0


def test_a_model_that_moved_or_changed_its_card_is_not_stale(predicted):
    from tests.conftest import card
    from toolkit.runtime.graphs import onnx_file

    path = predicted / "folds" / "tiny.fold0.onnx"
    path.rename(predicted / "folds" / "other.onnx")
    model = onnx_file.load(predicted / "folds" / "tiny.fold1.onnx")
    onnx_file.embed(model, card("renamed", 1))
    (predicted / "folds" / "tiny.fold1.onnx").write_bytes(model.SerializeToString())
    titles = {kept.title: kept.stale for kept in maintenance.survey(predicted / "store", predicted / "folds")}
    assert titles == {"tiny.fold0": False, "renamed.fold1": False}


def test_exports_are_read_again_only_when_their_files_change(predicted, monkeypatch):
    read = []
    true = file_index.onnx_file.read
    monkeypatch.setattr(file_index.onnx_file, "read", lambda path: read.append(path) or true(path))
    path = predicted / "folds" / "tiny.fold0.onnx"
    index = ExportIndex(predicted / "store" / "exports.json")
    (remembered,) = index.read([path])
    assert read == []
    assert vars(remembered) == vars(true(path))
    data, stat = path.read_bytes(), path.stat()
    path.with_name("new").write_bytes(data)
    os.utime(path.with_name("new"), ns=(stat.st_atime_ns, stat.st_mtime_ns))
    path.with_name("new").replace(path)  # same size, same time, another file
    index.read([path])
    assert len(read) == 1
    path.write_bytes(data)  # written a moment ago: it may change again within one tick of the clock
    ExportIndex(index.path).read([path])
    ExportIndex(index.path).read([path])
    assert len(read) == 3
    index.path.write_text("{")
    assert vars(ExportIndex(index.path).read([path])[0]) == vars(true(path))


def test_segments_of_before_get_a_digest_and_what_is_damaged_is_in_nobodys_way(tmp_path, caplog):
    key = TableKey("m", "p", "id", "e")
    table = filled(tmp_path, key, parts=3)
    for segment in table.segments:  # as 0.1.0 wrote them
        segment.path.write_bytes(segment.path.read_bytes()[:-24])
    (alone,) = filled(tmp_path, TableKey("n", "p", "id", "e"), parts=1).segments
    alone.path.write_bytes(alone.path.read_bytes()[:-24])
    damaged = table.folder / "00000000000000000000-ffffffff.seg"
    damaged.write_bytes(b"\x93NUMPY\x01\x00" + b"x" * 300)
    (tmp_path / "tables" / ("0" * 32)).mkdir()  # killed before its key was there
    assert [kept.rows for kept in maintenance.survey(tmp_path, tmp_path / "folds")] == [30, 10]
    assert not damaged.exists()
    assert [message.partition(" is damaged")[0] for message in caplog.messages] == [str(damaged)]
    done = maintenance.compact(tmp_path)
    assert (done.before, done.after) == (4, 2)
    assert not list(tmp_path.rglob("*.damaged"))
    again = Store(tmp_path).table(key)
    assert [segment.sealed for segment in again.segments] == [True]
    assert np.array_equal(again.gather(keys(30)), rows(30))
    assert maintenance.compact(tmp_path).freed == 0


@pytest.mark.parametrize("name", ["exports.json", "images.npz", "timings.json", "key.json"])
def test_a_damaged_index_is_made_again_with_one_line(predicted, caplog, name):
    path = next((predicted / "store").rglob(name))
    good, rng, count = path.read_bytes(), np.random.default_rng(0), 4
    before = ensemble(Competition.read(predicted), find_exports(["folds"]), tta="hflip", device="cpu")
    damaged = [b"", good[: len(good) // 2], b"[" * 100_000, b"\xff\xfe", b"{}", b"[]", b"null", good + good]
    for _ in range(40 if name != "key.json" else 10):
        data = bytearray(good)
        data[rng.integers(len(good))] ^= 1 << rng.integers(8)
        damaged.append(bytes(data))
    for data in damaged:
        path.write_bytes(data)
        caplog.clear()
        store = Store(predicted / "store")
        for table in maintenance.survey(predicted / "store", predicted / "folds"):
            store.table(table.key)
        timings.read(predicted / "store")
        assert len(caplog.messages) <= 1
        assert all(message.startswith(f"{path} is damaged") for message in caplog.messages)
        count -= bool(caplog.messages)
        exports = ExportIndex(predicted / "store" / "exports.json").read(find_exports(["folds"]))
        assert [export.title for export in exports] == ["tiny.fold0", "tiny.fold1"]
        store.close()
    assert count < 0
    after = ensemble(Competition.read(predicted), find_exports(["folds"]), tta="hflip", device="cpu")
    assert after.outcome.passes == 0
    assert np.array_equal(after.predictions["label"].values, before.predictions["label"].values)
