import os
import subprocess
import sys

import pytest

from tests.submissions.cases import ANIMAL, VALID, competition, table
from toolkit.errors import StoreError, SubmissionError
from toolkit.submissions import submission
from toolkit.submissions.sample import as_format, check


def test_errors_leave_the_old_submission_untouched(tmp_path):
    old = tmp_path / "submission.csv"
    old.write_text("old")
    frame = table("id,animal\n003,emu\n")
    problems = check(frame, as_format(table(VALID["labels"][1]), competition(ANIMAL), "labels"), competition(ANIMAL))
    with pytest.raises(SubmissionError) as caught:
        submission.write(old, frame, problems, {}, tmp_path)
    assert {p.code for p in caught.value.problems} == {"SUB020", "SUB040"}
    assert [p.name for p in tmp_path.iterdir()] == ["submission.csv"]
    assert old.read_text() == "old"


@pytest.mark.parametrize("step", ["csv", "manifest"])
def test_a_folder_that_cannot_be_written_is_said(tmp_path, step):
    target = tmp_path / "submission.csv"
    if step == "csv":
        (tmp_path / "file").write_text("")
        target = tmp_path / "file" / "submission.csv"
    else:
        (tmp_path / "submission.json").mkdir()
    with pytest.raises(StoreError, match=r"submission\.\w+ cannot be written"):
        submission.write(target, table(VALID["labels"][2]), (), {}, tmp_path)
    assert not list(tmp_path.rglob("*.part-*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_permission_is_said(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="No permission") as caught:
        submission.write(tmp_path / "submission.csv", table(VALID["labels"][2]), (), {}, tmp_path)
    assert "No permission" in caught.value.hint


def test_no_torch_is_loaded():
    code = "import sys, toolkit.submissions; import toolkit.cli.commands.submit; sys.exit(bool({'torch', 'pandas', 'onnx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
