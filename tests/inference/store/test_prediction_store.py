"""The store: what is present is valid, what is damaged is named, what changed is computed again."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.base import files
from toolkit.errors import StoreError
from toolkit.inference.store.file_index import as_digests
from toolkit.inference.store.prediction_store import SEGMENT_ROWS, Store, TableKey

KEY = TableKey("model", "pixels", "id", "engine")


def digests(count, start=0):
    return as_digests((1000 * i + 7).to_bytes(8, "big") * 2 for i in range(start, start + count))


def rows(count, start=0):
    return np.arange(start, start + count, dtype=np.float32)[:, None] * np.ones(3, np.float32)


def test_rows_come_back_by_digest_in_any_order_and_survive_reopening(tmp_path):
    table = Store(tmp_path).table(KEY)
    table.add(digests(10), rows(10))
    table.add(digests(10, 10), rows(10, 10))
    order = np.random.default_rng(0).permutation(20)
    for opened in (table, Store(tmp_path).table(KEY)):
        assert np.array_equal(opened.gather(digests(20)[order]), rows(20)[order])
    reopened = Store(tmp_path).table(KEY)
    assert reopened.present(digests(25)).tolist() == [True] * 20 + [False] * 5


def test_a_row_that_is_there_is_never_replaced(tmp_path):
    table = Store(tmp_path).table(KEY)
    table.add(digests(3), rows(3))
    again = Store(tmp_path).table(KEY)
    again.add(digests(4), rows(4) + 100)
    assert again.gather(digests(4))[:, 0].tolist() == [0, 1, 2, 103]


def test_any_part_of_the_key_makes_another_table(tmp_path):
    store = Store(tmp_path)
    store.table(KEY).add(digests(1), rows(1))
    for name in ("model", "pixels", "view", "engine", "precision"):
        other = TableKey(**{**KEY.__dict__, name: "other"})
        assert not store.table(other).present(digests(1)).any()


def test_large_additions_are_cut_into_segments(tmp_path):
    store = Store(tmp_path)
    store.table(KEY).add(digests(SEGMENT_ROWS + 5), rows(SEGMENT_ROWS + 5))
    assert len(list(tmp_path.rglob("*.seg"))) == 2
    table = store.table(KEY)
    assert np.array_equal(table.gather(digests(3, SEGMENT_ROWS)), rows(3, SEGMENT_ROWS))


@given(st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=30))
@settings(max_examples=50)
def test_any_sixteen_bytes_are_a_key(tmp_path_factory, keys):
    keys = list(dict.fromkeys(keys))
    table = Store(tmp_path_factory.mktemp("s")).table(KEY)
    table.add(as_digests(keys), rows(len(keys)))
    assert np.array_equal(table.gather(as_digests(keys)), rows(len(keys)))


def test_absent_rows_and_bad_values_are_refused(tmp_path):
    table = Store(tmp_path).table(KEY)
    with pytest.raises(StoreError, match="not in the store"):
        table.gather(digests(1))
    for values in (rows(1) * np.nan, rows(1).astype(np.float64), rows(2)):
        with pytest.raises(StoreError, match="finite float32"):
            table.add(digests(1), values)


def wrecked(data: bytes, seed: int, *, sealed: bool = True) -> bytes:
    """A segment of 5 rows × 3 with one of seven kinds of damage."""
    rng = np.random.default_rng(seed)
    if seed % 14 == 6:
        return data[: rng.integers(len(data))]
    values = len(data) - (24 if sealed else 0) - 60  # where they begin, 12 bytes a row
    changed = np.frombuffer(data, np.uint8).copy()
    row, other = rng.choice(5, 2, replace=False)
    match seed % 7:
        case 0:
            changed[rng.integers(len(data))] ^= 1 << rng.integers(8)
        case 1:
            changed[values + 12 * row : values + 12 * row + 12] = 7 if row == 0 else 0
        case 2:
            keys = changed[128 : 128 + 80].reshape(5, 16)
            keys[[row, other]] = keys[[other, row]]
        case 3 | 4:  # one of the two headers
            start = int(rng.choice([0, values - 128]))
            changed[start + rng.integers(128)] = rng.integers(256)
        case 5:
            changed[rng.integers(len(data), size=20)] = rng.integers(256, size=20)
        case 6:
            return data + rng.bytes(int(rng.integers(1, 40)))
    return changed.tobytes()


def test_a_damaged_segment_is_set_aside_and_its_rows_are_made_again(tmp_path, caplog):
    folder = tmp_path / "tables" / KEY.digest
    Store(tmp_path).table(KEY).add(digests(5), rows(5))
    (segment,) = folder.glob("*.seg")
    whole, tried = segment.read_bytes(), 0
    for seed in range(350):
        damaged = wrecked(whole, seed)
        if damaged == whole:
            continue
        tried += 1
        segment.write_bytes(damaged)
        table = Store(tmp_path).table(KEY)
        if table.present(digests(5)).any():  # no more than the digest was lost
            assert damaged == whole[:-24], seed
            assert np.array_equal(table.gather(digests(5)), rows(5))
            continue
        assert not segment.exists()
        assert segment.with_name(segment.name + ".damaged").read_bytes() == damaged
        assert caplog.messages[-1].startswith(f"{segment} is damaged (")
        table.add(digests(5), rows(5))
        (again,) = folder.glob("*.seg")
        assert again.read_bytes() == whole
        again.unlink()
    assert tried > 300


def test_a_damaged_segment_without_digest_is_refused_or_read_and_never_a_traceback(tmp_path):
    folder = tmp_path / "tables" / KEY.digest
    Store(tmp_path).table(KEY).add(digests(5), rows(5))
    (segment,) = folder.glob("*.seg")
    old = segment.read_bytes()[:-24]  # as 0.1.0 wrote them
    for seed in range(350):
        segment.write_bytes(wrecked(old, seed, sealed=False))
        assert len(Store(tmp_path).table(KEY)) in (0, 5)
    segment.write_bytes(old)
    assert np.array_equal(Store(tmp_path).table(KEY).gather(digests(5)), rows(5))


def test_a_segment_of_another_table_is_not_served(tmp_path):
    other = TableKey("other model", "pixels", "id", "engine")
    store = Store(tmp_path)
    store.table(KEY).add(digests(5), rows(5))
    store.table(other).add(digests(5), rows(5) + 1)
    (segment,), (theirs,) = ((tmp_path / "tables" / key.digest).glob("*.seg") for key in (KEY, other))
    segment.write_bytes(theirs.read_bytes())
    assert not Store(tmp_path).table(KEY).present(digests(5)).any()


def test_temporary_files_are_never_read_and_old_ones_are_swept(tmp_path):
    store = Store(tmp_path)
    store.table(KEY).add(digests(1), rows(1))
    (segment,) = tmp_path.rglob("*.seg")
    old = segment.with_name(segment.name + files.PART + "0000")
    young = segment.with_name(segment.name + files.PART + "1111")
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    assert len(Store(tmp_path).table(KEY).gather(digests(1))) == 1
    assert (old.exists(), young.exists()) == (False, True)


def one(index, path):
    """What the index knows of one file; numpy drops the trailing zeros of an S16."""
    (digest,), (sure,) = index.known([path])
    return bytes(digest).ljust(16, b"\0") if sure else None


def test_the_index_knows_unchanged_files_and_no_others(tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(b"one")
    past = time.time() - 100
    os.utime(image, (past, past))
    store = Store(tmp_path / "store")
    digest = b"0123456789abcde\0"
    store.images.learn(image, image.stat(), digest)
    store.images.save()
    index = Store(tmp_path / "store").images
    assert one(index, image) == digest
    image.write_bytes(b"two")
    assert one(index, image) is None
    image.write_bytes(b"three")
    os.utime(image, (past, past))
    assert one(index, image) is None
    image.unlink()
    assert one(index, image) is None


def test_a_file_modified_just_now_is_read_again_next_time(tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(b"one")
    store = Store(tmp_path / "store")
    store.images.learn(image, image.stat(), b"0" * 16)
    assert one(store.images, image) is None


def test_a_damaged_index_only_costs_time(tmp_path):
    (tmp_path / "images.npz").write_bytes(b"garbage")
    assert one(Store(tmp_path).images, tmp_path) is None


def test_kill_while_adding_leaves_whole_segments(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(__import__("pathlib").Path(__file__).parents[3])!r})
from tests.inference.store.test_prediction_store import *
table = Store(__import__("pathlib").Path({str(tmp_path)!r})).table(KEY)
for i in range(10_000):
    table.add(digests(50, 50 * i), rows(50, 50 * i))
"""
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code])
        deadline = time.monotonic() + 30
        while not list(tmp_path.rglob("*.seg")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.15)
        process.kill()
        process.wait()
        table = Store(tmp_path).table(KEY)
        held = len(table)
        assert held >= 50
        assert held % 50 == 0
        assert np.array_equal(table.gather(digests(held)), rows(held))


def test_a_pipe_in_place_of_a_segment_is_not_waited_for(tmp_path):
    Store(tmp_path).table(KEY).add(digests(5), rows(5))
    (segment,) = tmp_path.glob("tables/*/*.seg")
    segment.unlink()
    os.mkfifo(segment)
    assert not Store(tmp_path).table(KEY).present(digests(5)).any()
    assert not segment.exists()
