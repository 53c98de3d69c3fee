"""Files are whole or not there, refusals are sentences."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toolkit.base import files
from toolkit.errors import DataError, StoreError


def test_write_and_digest(tmp_path):
    path = files.write_text(tmp_path / "a/b/c.txt", "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    assert files.sha256(path) == hashlib.sha256(b"\xc3\xa9\n").hexdigest()
    assert [p.name for p in path.parent.iterdir()] == ["c.txt"]


@pytest.mark.parametrize("error", [ValueError("stop"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = files.write_text(tmp_path / "f", "old")

    def fill(file):
        file.write(b"half")
        raise error

    with pytest.raises((type(error), StoreError)):
        files.write(path, fill)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_has_a_cure(tmp_path):
    def fill(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError) as caught:
        files.write(tmp_path / "f", fill)
    assert str(tmp_path / "f") in caught.value.message
    assert "free some space" in caught.value.hint


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device(tmp_path):
    def fill(file):
        with Path("/dev/full").open("wb") as full:
            full.write(b"x" * 100_000)

    with pytest.raises(StoreError, match="No space left"):
        files.write(tmp_path / "f", fill)


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        files.write_text(tmp_path / "f" / "g", "x")
    (tmp_path / "d").mkdir()
    with pytest.raises(StoreError):
        files.write_text(tmp_path / "d", "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "f"]


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = files.write_text(tmp_path / "f", "old")
    script = f"""
import time; from pathlib import Path; from toolkit.base import files
def fill(file):
    file.write(b"half"); file.flush(); print("now", flush=True); time.sleep(60)
files.write(Path({str(path)!r}), fill)
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"now\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert path.read_text() == "old"
    orphans = [p for p in tmp_path.iterdir() if files.PART in p.name]
    assert len(orphans) == 1
    assert files.sweep(tmp_path) == 0  # young: its writer may be alive
    old = time.time() - 7200
    os.utime(orphans[0], (old, old))
    assert files.sweep(tmp_path) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_sweep_takes_only_its_own(tmp_path):
    old = time.time() - 7200
    for name in ("a.part", "b.parts-1", "c.txt"):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (old, old))
    (tmp_path / f"d{files.PART}folder").mkdir()
    assert files.sweep(tmp_path) == 0
    assert len(list(tmp_path.iterdir())) == 4


def test_sha256_of_what_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        files.sha256(tmp_path / "no")


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a file's size is the system's")
def test_what_the_system_cuts_short_is_not_taken_for_whole(tmp_path):
    """numpy writes past Python into a file of the system, and what C keeps back to the end is lost without a word."""
    import resource

    import numpy as np

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            files.write(tmp_path / "a.npy", lambda file: np.save(file, np.zeros(400)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_says_less_than_it_was_given_is_refused(tmp_path):
    def fill(file):
        file.write(b"x" * 1000)
        file.flush()
        os.ftruncate(file.fileno(), 400)  # what a file system may do that is full

    with pytest.raises(StoreError, match="cut short"):
        files.write(tmp_path / "f", fill)
    assert list(tmp_path.iterdir()) == []
    data = b"".join(bytes([i]) * 50 for i in range(20))

    def back_and_forth(file):
        file.write(data)
        file.seek(100)
        file.write(data[100:150])

    assert files.write(tmp_path / "f", back_and_forth).read_bytes() == data


def test_orphans_of_the_dead_go_with_the_next_write_and_those_of_the_living_stay(tmp_path, monkeypatch):
    script = f"""
import sys, time; from pathlib import Path; from toolkit.base import files
def fill(file):
    file.write(b"half"); file.flush(); print("now", flush=True); time.sleep(60)
files.write(Path({str(tmp_path)!r}, sys.argv[1]), fill)
"""
    children = [subprocess.Popen([sys.executable, "-c", script, name], stdout=subprocess.PIPE) for name in ("dead", "alive")]
    assert [child.stdout.readline() for child in children] == [b"now\n"] * 2
    children[0].kill()
    children[0].wait()
    time.sleep(files.YOUNG)
    foreign = tmp_path / f"other{files.PART}0000"  # of a version that took no lock
    foreign.write_bytes(b"half")
    monkeypatch.setattr(files, "_cleared", set())
    files.write_text(tmp_path / "f", "whole")
    parts = sorted(path.name.partition(files.PART)[0] for path in tmp_path.iterdir() if files.PART in path.name)
    children[1].kill()
    for child in children:
        child.wait()
        child.stdout.close()
    assert parts == ["alive", "other"]


def test_every_cell_of_a_table_comes_back(tmp_path):
    from toolkit.base.text import csv_text

    cells = ["a\rb", "a\nb", "a\r\nb", 'a"b', '"a', "a,b", " a ", "", "a;b", "\u2028", "\x0b"]
    path = csv_text.write(tmp_path / "t.csv", ["id", "c"], list(enumerate(cells)))
    assert csv_text.read(path)["c"].tolist() == cells


def test_tables_with_a_nul_are_neither_written_nor_read(tmp_path):
    from toolkit.base.text import csv_text
    from toolkit.errors import CompetitionError

    path = tmp_path / "t.csv"
    with pytest.raises(DataError, match="NUL"):
        files.write_rows(path, [["id"], ["a\0b"]])
    assert not path.exists()
    path.write_bytes(b"id,c\n" + b"1,a\n" * 2000 + b"2,\0\n")  # beyond what is looked at to tell the encoding
    with pytest.raises(CompetitionError, match=r"t\.csv is not a text file"):
        csv_text.read(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no plain file"):
        files.read(tmp_path / "pipe")


def test_a_seal_that_lost_its_name_is_no_document_of_before():
    from toolkit.base import sealed

    stamped = sealed.stamp({"a": 1})
    assert sealed.unstamped(stamped) == sealed.unstamped({"a": 1}) == {"a": 1}
    for damaged in ({"a": 1, "sdal": stamped["seal"]}, stamped | {"a": 2}):
        with pytest.raises(sealed.DamagedError, match="its digest"):
            sealed.unstamped(damaged)
