"""What the user is told for everything that the real kaggle client has been seen to say."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.kaggle_server import serving
from toolkit.cli import cli
from toolkit.core.prediction_files import write_table
from toolkit.core.predictions import Predictions
from toolkit.errors import UploadError
from toolkit.submissions import ledger, upload
from toolkit.workspace.competition import Competition

# what the real client (2.2.4) printed and how it ended, against tests/kaggle_server.py and without network or credentials
RECORDED = json.loads((Path(__file__).parents[1] / "data" / "kaggle_client.json").read_text(encoding="utf-8"))

MEANT = {
    "upload_403": ("did not reach Kaggle's storage", "twice"),
    "upload_503": ("did not reach Kaggle's storage", "twice"),
    "busy": ("not working right now", "Wait"),
    "quota": (r"used up.*try again tomorrow UTC \(7.4 hours", "midnight UTC"),
    "bare_400": ("refused without a reason", "competitions/titanic/submissions"),
    "rules": ("not accepted its rules", "competitions/titanic/rules"),
    "not_joined": ("not joined", "competitions/titanic/rules"),
    "wrong_competition": ("no competition 'titanic'", "address"),
    "bad_token": ("does not know who you are", "kaggle auth login"),
    "refused": ("did not confirm.*unexpected state", "on the site"),
    "no_credentials": ("does not know who you are", "kaggle auth login"),
    "no_network": ("cannot be reached", "network"),
    "no_dns": ("cannot be reached", "network"),
}


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


@pytest.fixture
def client(tmp_path, monkeypatch):
    """A `kaggle` on the PATH that says what it is told to, and keeps its arguments."""

    def say(stdout: str = "", stderr: str = "", code: int = 0) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        words = tmp_path / "words.json"
        program(
            folder / "kaggle",
            "import json, sys\n"
            f"open({str(words)!r}, 'w').write(json.dumps(sys.argv[1:]))\n"
            f"sys.stdout.write({stdout!r}); sys.stderr.write({stderr!r}); sys.exit({code})\n",
        )
        monkeypatch.setenv("PATH", str(folder))
        return words

    return say


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "submission.csv"
    path.write_text("id,label\n1,a\n")
    return path


def test_every_recorded_reply_has_a_meaning():
    assert set(MEANT) == set(RECORDED) - {"success"}


@pytest.mark.parametrize("name", MEANT)
def test_a_failure_is_told_whatever_the_exit_code(name, client, csv):
    said = RECORDED[name]
    client(said["stdout"], said["stderr"], said["code"])
    message, hint = MEANT[name]
    with pytest.raises(UploadError, match=f"{csv.name} was not uploaded: .*{message}") as caught:
        upload.send("kaggle:titanic", csv, "five folds")
    assert hint in caught.value.hint
    assert "B/s" not in caught.value.message
    assert "\n" not in caught.value.message


def test_exit_code_zero_is_no_success():
    assert [name for name in MEANT if RECORDED[name]["code"] == 0] == ["upload_403", "upload_503", "refused"]


def test_success_is_what_the_client_says(client, csv):
    said = RECORDED["success"]
    words = client(said["stdout"], said["stderr"], said["code"])
    reply = upload.send("kaggle:titanic", csv, "-5 fold, 밥")
    assert reply.splitlines() == ["4 submissions remaining today.", "Successfully submitted to Titanic"]
    assert json.loads(words.read_text()) == ["competitions", "submit", "titanic", "-f", str(csv), "--message=-5 fold, 밥"]


def test_success_needs_the_exit_code_as_well(client, csv):
    client(RECORDED["success"]["stdout"], "", 1)
    with pytest.raises(UploadError, match="did not confirm"):
        upload.send("kaggle:titanic", csv, "")


def test_no_client(csv, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UploadError, match="not installed") as caught:
        upload.send("kaggle:titanic", csv, "")
    assert "pip install" in caught.value.hint


def test_a_client_that_hangs(client, csv, tmp_path, monkeypatch):
    client()
    program(tmp_path / "bin" / "kaggle", "import time\ntime.sleep(60)\n")
    monkeypatch.setattr(upload, "TIMEOUT", 0.5)
    with pytest.raises(UploadError, match="no answer") as caught:
        upload.send("kaggle:titanic", csv, "")
    assert "may have arrived" in caught.value.hint


def test_a_client_that_cannot_be_imported(client, csv):
    client("", "Traceback (most recent call last):\n  File x\nModuleNotFoundError: No module named 'six'\n", 1)
    with pytest.raises(UploadError, match=r"broken.*No module named 'six'"):
        upload.send("kaggle:titanic", csv, "")


@pytest.mark.parametrize("slug", ["-h", "--version", "a b", "../x", "https://kaggle.com/c/titanic"])
def test_a_name_cannot_become_an_option(slug, client, csv):
    words = client()
    with pytest.raises(UploadError, match="no name of a Kaggle competition"):
        upload.send(f"kaggle:{slug}", csv, "")
    assert not words.exists()


@pytest.mark.parametrize(
    ("asked", "configured", "found"),
    [
        ("kaggle", "kaggle:titanic", "kaggle:titanic"),
        ("kaggle:spaceship", "kaggle:titanic", "kaggle:spaceship"),
        ("command:send {file}", "", "command:send {file}"),
    ],
)
def test_the_address_is_completed_from_competition_toml(asked, configured, found):
    assert upload.address(asked, configured) == found


@pytest.mark.parametrize(
    ("asked", "configured"),
    [("kaggle", ""), ("kaggle", "command:x {file}"), ("command", "command:x {file}"), ("dacon:x", ""), ("", "")],
)
def test_an_address_without_a_target_is_refused(asked, configured):
    with pytest.raises(UploadError, match=r"does not say where|unknown platform|names a command"):
        upload.address(asked, configured)


def test_a_command_of_the_users_gets_words_and_no_shell(tmp_path, csv):
    seen = tmp_path / "seen"
    tool = program(
        tmp_path / "send", f"import json, sys\nopen({str(seen)!r}, 'w').write(json.dumps(sys.argv[1:]))\nprint('ok')"
    )
    reply = upload.send(f"command:{tool} 'to={{file}}' -m {{message}}", csv, "$(rm x); {file} `y`")
    assert reply == "ok"
    assert json.loads(seen.read_text()) == [f"to={csv}", "-m", "$(rm x); {file} `y`"]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("false {file}", "exit code 1"),
        ("no-such-program-here {file}", "cannot be run"),
        ("send it", "does not say {file}"),
        ("{file}", "does not say {file}"),
        ("send '{file}", "cannot be split"),
    ],
)
def test_a_command_that_fails(line, match, csv):
    with pytest.raises(UploadError, match=match):
        upload.send(f"command:{line}", csv, "")


@pytest.fixture
def ready(workspace):
    """A workspace with predictions, so that nothing but the upload can fail."""
    ids = tuple(line.split(",")[0] for line in (workspace / "sample_submission.csv").read_text().splitlines()[1:])
    values = np.eye(3)[np.arange(len(ids)) % 3] * 0.7 + 0.1
    table = Predictions("label", "probabilities", ids, ("ant", "bee", "cat"), values)
    meta = {"name": "mine", "created": "2026-11-23T10:00:00+00:00", "models": [], "view_set": "none"}
    write_table(workspace / "predictions" / "mine.parquet", {"label": table}, meta)
    return workspace


def submit(*words: str):
    return CliRunner().invoke(cli, ["submit", *words])


def test_submit_uploads_what_it_wrote(ready, client):
    text = (ready / "competition.toml").read_text()
    (ready / "competition.toml").write_text(text.replace("[submission]", '[submission]\nupload = "kaggle:titanic"'))
    competition = Competition.read(ready)
    assert competition.upload == "kaggle:titanic"
    assert 'upload = "kaggle:titanic"' in competition.to_toml()
    said = RECORDED["success"]
    words = client(said["stdout"], said["stderr"], said["code"])
    done = submit("--upload", "kaggle")
    assert done.exit_code == 0, done.output
    assert done.output.endswith("Uploaded:\n4 submissions remaining today.\nSuccessfully submitted to Titanic\n")
    written = ready / "submission.csv"
    assert json.loads(words.read_text()) == ["competitions", "submit", "titanic", "-f", str(written), "--message=mine"]
    done = submit("--upload", "kaggle:other", "-m", "five folds", "--json")
    assert json.loads(done.output)["upload"].endswith("Successfully submitted to Titanic")
    assert json.loads(words.read_text())[2:] == ["other", "-f", str(written), "--message=five folds"]
    (kept,) = ledger.entries(competition)
    assert [upload["to"] for upload in kept.uploads] == ["kaggle:titanic", "kaggle:other"]
    assert kept.uploads[0]["reply"].endswith("Successfully submitted to Titanic")
    assert "kaggle:other 20" in CliRunner().invoke(cli, ["submissions"]).output


@pytest.mark.parametrize("name", MEANT)
def test_submit_ends_with_1_where_nothing_was_uploaded(name, ready, client):
    said = RECORDED[name]
    client(said["stdout"], said["stderr"], said["code"])
    done = submit("--upload", "kaggle:titanic")
    assert done.exit_code == 1
    assert re.search(f"^Error: .*submission.csv was not uploaded: .*{MEANT[name][0]}", done.output, re.MULTILINE)
    assert "Hint: " in done.output
    assert (ready / "submission.csv").is_file()
    (kept,) = ledger.entries(Competition.read(ready))
    assert not kept.uploads
    assert f"{kept.id}" in done.output  # what was written is said, although the upload failed
    done = json.loads(submit("--upload", "kaggle:titanic", "--json").output)
    assert (done["ok"], done["id"]) == (False, kept.id)
    assert [problem["code"] for problem in done["problems"]] == ["SUB075"]
    assert "was not uploaded" in done["error"]


def test_submit_says_before_it_writes_that_nobody_told_it_where_to(ready, client):
    words = client()
    for asked in ("kaggle", "dacon:x"):
        done = submit("--upload", asked)
        assert done.exit_code == 1
    assert not (ready / "submission.csv").exists()
    assert not words.exists()
    assert submit("--upload", "kaggle:x", "--check-only", "a.csv").exit_code == 2


def test_nothing_is_uploaded_unless_asked(ready, client):
    words = client()
    text = (ready / "competition.toml").read_text()
    (ready / "competition.toml").write_text(text.replace("[submission]", '[submission]\nupload = "kaggle:titanic"'))
    assert submit().exit_code == 0
    assert not words.exists()


def test_a_token_in_the_upload_command_is_not_kept():
    words = ["toolkit", "submit", "--upload", "command:send --token 123 {file}", "--upload=command:x\n123", "-m", "kaggle:a"]
    assert upload.recorded(words) == ["toolkit", "submit", "--upload", "command", "--upload=command", "-m", "kaggle:a"]


def test_a_token_does_not_reach_the_manifest(ready, monkeypatch):
    words = ["submit", "--upload", "command:true {file} --token hush"]
    monkeypatch.setattr(sys, "argv", ["toolkit", *words])
    assert CliRunner().invoke(cli, words).exit_code == 0
    kept = [path.read_text() for path in ready.rglob("*.json")]
    assert any('"--upload"' in text for text in kept)
    assert not any("hush" in text for text in kept)


@pytest.mark.slow
def test_the_real_client_against_a_local_server(csv, tmp_path, monkeypatch):
    """Needs the `kaggle` extra and port 80, which the client's LOCALHOST environment is fixed to."""
    if shutil.which("kaggle") is None and shutil.which("kaggle", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("the kaggle client is not installed")
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 80))
        except OSError:
            pytest.skip("port 80 cannot be used here")
    for name in [name for name in os.environ if "proxy" in name.lower() or name.startswith("KAGGLE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    with serving() as server:
        with pytest.raises(UploadError, match="does not know who you are"):
            upload.send("kaggle:titanic", csv, "")
        monkeypatch.setenv("KAGGLE_USERNAME", "somebody")
        monkeypatch.setenv("KAGGLE_KEY", "0")
        assert "Successfully submitted" in upload.send("kaggle:titanic", csv, "-m five folds")
        assert (server.files, server.messages) == ([csv.read_bytes()], ["-m five folds"])
        for name in MEANT:
            if name not in ("no_credentials", "no_network", "no_dns"):
                server.scenario = name
                with pytest.raises(UploadError, match=MEANT[name][0]):
                    upload.send("kaggle:titanic", csv, "")
    with pytest.raises(UploadError, match="cannot be reached"):
        upload.send("kaggle:titanic", csv, "")
