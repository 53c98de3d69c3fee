"""Commands at a real terminal of several widths, their progress and errors, and what the Tab key offers."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from functools import cache

import pytest
from rich.cells import cell_len

from tests.cli.test_blend import table
from tests.conftest import make_workspace

CLASSES = ("[red]ant[/red]", "고양이 🙂", "bee\x1b[31m")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def at_a_terminal(command, cells, *, cwd, **environment):
    """Everything that a command sends to a pseudo-terminal of so many cells, and its exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, cells, 0, 0))
    known = {
        k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS")
    }
    known |= {"TERM": "xterm", "PYTHONUTF8": "1", **environment}
    process = subprocess.Popen([sys.executable, *command], stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=known)
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so that the other side is closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    return said.decode().replace("\r\n", "\n"), process.wait(60)


def toolkit(*words):
    return ["-m", "toolkit", *words]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A workspace whose class names are hostile, and two members."""
    root = make_workspace(tmp_path_factory.mktemp("terminal") / "zoo", classes=CLASSES)
    table(root, "good", skill=2, seed=1)
    table(root, "[bold]weak", skill=0.5, seed=2)
    return root


WORDS = {
    "score": ["good", "[bold]weak", "accuracy", "precision", "[red]ant[/red]", "bee\\x1b[31m", "고양이", "🙂", "log-loss"],
    "diagnose": ["Target label, 24 rows", "good", "[bold]weak", "plain mean", "95 % interval"],
}
LINES = {"score": toolkit("score", "--classes", "--calibration"), "diagnose": toolkit("diagnose")}


@cache
def piped(zoo, name):
    """What the command says in a pipe."""
    return subprocess.run([sys.executable, *LINES[name]], cwd=zoo, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("name", "cells"), [("score", 120), ("score", 80), ("score", 40), ("diagnose", 40)])
def test_hostile_names_at_any_width(zoo, name, cells):
    text, code = at_a_terminal(LINES[name], cells, cwd=zoo, NO_COLOR="1")
    assert code == 0, text
    assert "\x1b" not in text
    for line in text.splitlines():
        assert cell_len(line) <= cells, line
    flat = "".join(text.split())
    for words in WORDS[name]:
        assert "".join(words.split()) in flat, words
    assert all(number in text for number in re.findall(r"\d\.\d{4,5}\b", piped(zoo, name)))


def test_wide_names_line_up_on_the_terminal(zoo):
    text, _ = at_a_terminal(LINES["score"], 100, cwd=zoo)
    assert "\x1b[1m" in text
    assert not re.search(r"\x1b(?!\[[\d;]*m)", text)  # our bold and colours, and nothing that a name brought
    body = ESCAPES.sub("", text).splitlines()
    start = next(i for i, line in enumerate(body) if line.startswith("class"))
    ends = {cell_len(line) for line in (body[start], *body[start + 2 : start + 5])}
    assert len(ends) == 1, body[start : start + 5]


def test_an_error_is_red_only_where_that_is_wanted(zoo):
    words = toolkit("score", "no\x1b[2Jwhere.csv")
    text, code = at_a_terminal(words, 60, cwd=zoo)
    assert code == 1
    assert text.startswith("\x1b[31mError: ")
    assert "no\\x1b[2Jwhere.csv" in "".join(text.split("\n"))
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        text, _ = at_a_terminal(words, 60, cwd=zoo, **environment)
        assert text.startswith("Error: ")
        assert "\x1b" not in text
        assert max(map(cell_len, text.splitlines())) <= 60
    piped = subprocess.run([sys.executable, *words], cwd=zoo, capture_output=True, text=True, check=False)
    assert piped.stderr.startswith("Error: ")
    assert "\x1b" not in piped.stderr


def test_an_encoding_without_hangul_and_names_without_one_stop_nothing(zoo):
    """Class names that latin-1 does not have, and a file name that is no UTF-8."""
    for encoding, words in (
        ("latin-1", ["split", "--force"]),
        ("utf-8", ["inspect", b"\xff.onnx"]),
        ("utf-8", ["inspect", b"\xff.onnx", "--json"]),
    ):
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run(
            [sys.executable, "-m", "toolkit", *words], cwd=zoo, capture_output=True, env=environment, check=False
        )
        assert b"Traceback" not in done.stderr, done.stderr
        assert done.returncode == ("inspect" in words)
        assert (b"\\uace0\\uc591" if encoding == "latin-1" else b"\\udcff.onnx") in done.stdout + done.stderr


BAR = """
import time
from toolkit.cli.progress import bar
with bar("[red]Reading[/red]") as report:
    for done in range(0, 1001, 100):
        report(done, 1000)
        time.sleep(0.03)
print("done")
"""


@pytest.mark.parametrize("cells", [100, 60, 40])
def test_progress_fits_and_cuts_no_number(tmp_path, cells):
    text, code = at_a_terminal(["-c", BAR], cells, cwd=tmp_path, NO_COLOR="1")
    assert code == 0
    assert "[red]Reading[/red]" in text
    assert "1000/1000" in text
    assert "…" not in text
    assert not re.search(r"\x1b\[[\d;]*m", text)  # the cursor moves, without colours
    for frame in re.split(r"[\r\n]", ESCAPES.sub("", text)):
        assert cell_len(frame) <= cells


def test_progress_is_silent_where_it_would_be_noise(tmp_path):
    text, _ = at_a_terminal(["-c", BAR], 80, cwd=tmp_path, TERM="dumb")
    assert text == "done\n"
    assert subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True, check=True).stderr == ""


def offered(line):
    """What completion offers for a line: (kind, word)."""
    from click.shell_completion import BashComplete

    from toolkit.cli import cli

    *words, last = line.split(" ")
    found = BashComplete(cli, {}, "toolkit", "_TOOLKIT_COMPLETE").get_completions(words[1:], last)
    return [(one.type, one.value) for one in found]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_an_answer(zoo, shell):
    words = ["toolkit", "inspect", "fo"]
    asked = {
        "_TOOLKIT_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": "fo" if shell == "fish" else "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from toolkit.cli import main; main()"],
        cwd=zoo,
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.replace(",", "\n").split("\n")[:2] == ["file", "fo"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("toolkit su", [("plain", "submit"), ("plain", "submissions")]),
        ("toolkit store p", [("plain", "prune")]),
        ("toolkit store --j", [("plain", "--json")]),
        ("toolkit score --metr", [("plain", "--metric")]),
        ("toolkit score --metric log", [("plain", "log_loss")]),
        ("toolkit -C fo", [("file", "fo")]),
        ("toolkit ensemble --tta hf", [("plain", "hflip")]),
        ("toolkit ensemble --tta au", [("plain", "auto")]),
        ("toolkit tta --set au", []),
        ("toolkit blend --weigher greedy,conv", [("plain", "greedy,convex")]),
        ("toolkit tta --members go", [("plain", "good")]),
        ("toolkit submissions score ", [("plain", "3f0a91bc")]),
        ("toolkit compare bas", [("plain", "base"), ("file", "bas")]),
        ("toolkit init --recipe dig", [("plain", "digits")]),
        ("toolkit predict x.onnx --on te", [("plain", "test"), ("file", "te")]),
        ("toolkit explain 9", [("file", "9")]),
        ("toolkit score --truth tr", [("file", "tr")]),
    ],
)
def test_commands_options_choices_files_and_names_are_offered(zoo, monkeypatch, line, found):
    for name in ("base", "evil\x1b[31m"):
        (zoo / "runs" / name).mkdir(parents=True, exist_ok=True)
    (zoo / "submissions").mkdir(exist_ok=True)
    for name in ("3f0a91bc.csv", "new\nline.csv"):
        (zoo / "submissions" / name).touch()
    monkeypatch.chdir(zoo)
    assert offered(line) == found


def test_every_argument_that_may_be_a_file_offers_files(monkeypatch, tmp_path):
    """A path that is typed without the help of Tab is a path that is typed wrongly."""
    import click

    from tests.cli.test_json import commands

    monkeypatch.chdir(tmp_path)
    words = {("submissions", "score"), ("submissions", "diff")}
    for name, command in commands():
        for one in command.params:
            if isinstance(one, click.Argument) and name not in words:
                assert any(item.type in ("file", "dir") for item in one.shell_complete(click.Context(command), "x")), (
                    name,
                    one.name,
                )


def test_another_workspace_is_looked_into(zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert offered(f"toolkit -C {zoo} tta --members go") == [("plain", "good")]
    assert offered("toolkit tta --members go") == []


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_the_line_of_the_readme_works_in_bash(zoo, tmp_path):
    tool = tmp_path / "bin" / "toolkit"
    tool.parent.mkdir()
    tool.write_text(f"#!{sys.executable}\nfrom toolkit.cli import main\nmain()\n")
    tool.chmod(0o755)
    script = """eval "$(_TOOLKIT_COMPLETE=bash_source toolkit)"
    COMP_WORDS=(toolkit score --metric log); COMP_CWORD=3; _toolkit_completion toolkit; echo "${COMPREPLY[@]}" """
    path = f"{tool.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=zoo, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "log_loss\n", done.stderr


def test_a_card_shows_the_gaps_that_it_has():
    from tests.conftest import card
    from toolkit.cli import summaries

    shown = [dict(summaries.card(card(parity=gaps))).get("Gap") for gaps in ({"logit": 1e-7}, {"x": 1.0}, {})]
    assert shown == ["1.0e-07 in logits", "-", None]
