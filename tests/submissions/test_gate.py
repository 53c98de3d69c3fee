"""What the gate promises: no alarm on files of other writers, other graders' rules, and whole files whatever happens."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.submissions.test_submission import DEFECTS, NAMED, VALID, competition, found, table
from toolkit.base import arrow_csv, files
from toolkit.errors import StoreError
from toolkit.submissions import checks, submission
from toolkit.submissions.formats import FORMATS
from toolkit.workspace.competition import Target

DATA = Path(__file__).parents[1] / "data" / "valid"  # written by R's write.csv and by polars: see make.R and make_polars.py
WRITTEN = sorted(DATA.glob("*.csv"))


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_files_of_r_and_polars_raise_no_alarm(path):
    case = path.name.split(".")[0].replace("-", " ")
    rules, sample, _ = VALID[case]
    form = NAMED.get(case, case)
    problems = submission.check_file(path, table(sample), rules, rules.format or form)
    assert problems == ()


def test_every_format_was_written_by_both():
    for writer in ("r", "polars"):
        cases = {path.name.split(".")[0].replace("-", " ") for path in WRITTEN if path.name.split(".")[1] == writer}
        assert {NAMED.get(case, case) for case in cases} == set(FORMATS)
    assert len(WRITTEN) >= 30


EXCEL = {
    "CSV UTF-8": (lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(), {"SUB002", "SUB006"}),
    "CSV (MS-DOS)": (lambda text: text.replace("\n", "\r\n").encode(), {"SUB006"}),
    "German": (lambda text: text.replace(",", ";").replace("\n", "\r\n").encode(), {"SUB004", "SUB006"}),
    "Unicode text": (
        lambda text: text.replace(",", "\t").replace("\n", "\r\n").encode("utf-16"),
        {"SUB003", "SUB004", "SUB006"},
    ),
}


@pytest.mark.parametrize("kind", EXCEL)
def test_what_excel_saves_is_told_apart(kind, tmp_path):
    write, codes = EXCEL[kind]
    assert {problem.code for problem in found("labels", write(VALID["labels"][2]), tmp_path)} == codes


def test_there_are_enough_defects():
    assert len(DEFECTS) >= 40
    planted = set().union(*(codes for _, _, codes in DEFECTS.values()))
    form = {code for code in checks.CODES if code < "SUB060"} - {"SUB036", "SUB043"}  # these two have tests of their own
    assert form <= planted


# MLE-bench's graders of image classification (their rule → a file that breaks it → the code that says so before it is sent)
DOGS = competition(Target("breed", "multiclass", ("beagle", "boxer", "pug")), metric="log_loss")
HEALTH = competition(Target("diagnosis", "multiclass", tuple("01234")))
CANCER = competition(Target("label", "binary", ("0", "1"), positive="1"), metric="roc_auc")
LEAVES = competition(Target("labels", "multilabel", ("healthy", "rust", "scab")))
HOTELS = competition(Target("hotel_id", "multiclass", ("11", "22", "33")), form="topk:2")
D, H, C = "id,beagle,boxer,pug\n1,1,0,0\n2,0,1,0\n", "id,diagnosis\na,0\nb,0\n", "id,label\na,0\nb,0\n"
LE, HO = "id,labels\na,healthy\nb,rust scab\n", "id,hotel_id\na,11 22\nb,11 22\n"
RULES = {
    "dog-breed: a column for every breed": (DOGS, D, "id,beagle,boxer\n1,.5,.5\n2,.5,.5\n", "SUB010"),
    "dog-breed: an id column": (DOGS, D, "beagle,boxer,pug\n1,0,0\n0,1,0\n", "SUB010"),
    "dog-breed: as many rows": (DOGS, D, "id,beagle,boxer,pug\n1,1,0,0\n", "SUB020"),
    "dog-breed: rows sum to 1": (DOGS, D, "id,beagle,boxer,pug\n1,1,1,0\n2,0,1,0\n", "SUB035"),
    "dog-breed: sums exact to 1e-5": (DOGS, D, "id,beagle,boxer,pug\n1,.9999,0,0\n2,0,1,0\n", "SUB037"),
    "dog-breed: between 0 and 1": (DOGS, D, "id,beagle,boxer,pug\n1,2,-1,0\n2,0,1,0\n", "SUB034"),
    "leaf: no other columns": (DOGS, D, "id,beagle,boxer,pug,x\n1,1,0,0,5\n2,0,1,0,5\n", "SUB011"),
    "aptos2019: the target's column": (HEALTH, H, "id,label\na,0\nb,1\n", "SUB010"),
    "aptos2019: not empty": (HEALTH, H, "id,diagnosis\n", "SUB020"),
    "aptos2019: the same ids": (HEALTH, H, "id,diagnosis\na,0\nc,1\n", "SUB021"),
    "aptos2019: whole numbers": (HEALTH, H, "id,diagnosis\na,0.0\nb,1.0\n", "SUB041"),
    "histopathologic: no NaN": (CANCER, C, "id,label\na,0.1\nb,nan\n", "SUB031"),
    "histopathologic: numbers": (CANCER, C, "id,label\na,0.1\nb,yes\n", "SUB033"),
    "histopathologic: each id once": (CANCER, C, "id,label\na,0.1\na,0.2\n", "SUB022"),
    "plant-pathology-2020: the same columns": (DOGS, D, "id,Beagle,boxer,pug\n1,1,0,0\n2,0,1,0\n", "SUB015"),
    "plant-pathology-2021: known labels": (LEAVES, LE, "id,labels\na,mildew\nb,rust\n", "SUB040"),
    "plant-pathology-2021: matching ids": (LEAVES, LE, "id,labels\na.jpg,rust\nb.jpg,rust\n", "SUB027"),
    "hotel-id: at most k labels count": (HOTELS, HO, "id,hotel_id\na,11 22 33\nb,11 22\n", "SUB050"),
    "hotel-id: as many rows as answers": (HOTELS, HO, "id,hotel_id\na,11 22\nb,22 11\nb,22 33\n", "SUB022"),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_rules_of_other_graders_have_a_code(rule, tmp_path):
    rules, sample, raw, code = RULES[rule]
    path = tmp_path / "theirs.csv"
    path.write_text(raw)
    form = submission.infer_format(table(sample), rules)
    assert code in {problem.code for problem in submission.check_file(path, table(sample), rules, form)}
    path.write_text(sample)
    assert not checks.errors(submission.check_file(path, table(sample), rules, form))


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import pandas as pd
from toolkit.submissions import csv_problems
from toolkit.base import files
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
from pathlib import Path
import pandas as pd
from toolkit.submissions import csv_problems
from toolkit.base import files
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
