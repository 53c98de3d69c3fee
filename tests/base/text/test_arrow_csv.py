"""Tables of text as CSV: the bytes of Python's own writer, whole files whatever happens."""

import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from toolkit.base import files
from toolkit.base.text import arrow_csv
from toolkit.errors import StoreError

pytestmark = pytest.mark.usefixtures("quick_processes")


def test_the_file_is_byte_for_byte_what_pythons_csv_module_writes(tmp_path):
    import csv

    rows = [["id", "a,b", 'q"q'], ["1", "plain", ""], ["2", 'x"y', "a\nb"], ["é", " spaced ", "0.5"]]
    frame = pd.DataFrame(rows[1:], columns=rows[0], dtype="str")
    expected = io.StringIO()
    csv.writer(expected, lineterminator="\n").writerows(rows)
    raw = io.BytesIO()
    arrow_csv.write(raw, frame)
    assert raw.getvalue().decode() == expected.getvalue()
    assert files.write_rows(tmp_path / "plain.csv", rows).read_bytes() == raw.getvalue()


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import pandas as pd
from toolkit.base import files
from toolkit.base.text import arrow_csv
path, rng = Path(sys.argv[1]), random.Random(0)
frames = [pd.DataFrame({"id": [str(i) for i in range(40_000)], "x": [word] * 40_000}, dtype="str") for word in ("a", "b")]
whole = [("id,x\\n" + "".join(f"{i},{word}\\n" for i in range(40_000))).encode() for word in ("a", "b")]
seen = set()
for _ in range(60):
    frames.reverse()
    writer = os.fork()
    if not writer:
        while True:
            for frame in frames:
                files.write(path, lambda file: arrow_csv.write(file, frame))
    while not path.exists():
        time.sleep(0.001)
    time.sleep(rng.random() / 10)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    seen.add(whole.index(path.read_bytes()))
print(len(seen))
"""


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path):
    """Sixty kills at random moments of a process that writes one file over and over."""
    path = tmp_path / "submission.csv"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "2", done.stderr
    assert list(tmp_path.glob(f"*{files.PART}*"))  # some were killed in the middle of a write, or this proves nothing


FULL = """
import resource, signal, sys
sys.dont_write_bytecode = True
from pathlib import Path
import pandas as pd
from toolkit.base import files
from toolkit.base.text import arrow_csv
from toolkit.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
frame = pd.DataFrame({"id": [str(i) for i in range(2_000)], "x": "new"}, dtype="str")
refused = 0
for limit in range(0, 16_500, 275):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        files.write(Path(sys.argv[1]), lambda file: arrow_csv.write(file, frame))
    except StoreError:
        refused += 1
    assert Path(sys.argv[1]).read_text() == "old", limit
print(refused)
"""


def test_no_room_left_leaves_the_old_file(tmp_path):
    """The kernel refuses to let the file grow, at sixty different sizes; a real full disk follows below."""
    path = tmp_path / "submission.csv"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "60", done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["submission.csv"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A file system of 64 kB, where this machine lets one be mounted."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        path = tmp_path / "submission.csv"
        path.write_text("old")
        frame = pd.DataFrame({"id": np.arange(20_000).astype(str), "x": "new"}, dtype="str")
        with pytest.raises(StoreError, match="No space left") as caught:
            files.write(path, lambda file: arrow_csv.write(file, frame))
        assert "The disk is full" in caught.value.hint
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["submission.csv"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("rows", [0, 1, 99_999, 100_000, 100_001])
def test_parts_written_by_several_threads_stay_in_order(rows):
    frame = pd.DataFrame({"id": np.arange(rows).astype(str), "x": "é"}, dtype="str")
    raw = io.BytesIO()
    arrow_csv.write(raw, frame)
    assert raw.getvalue().decode() == frame.to_csv(index=False)
    assert arrow_csv.size(frame) == len(raw.getvalue())
