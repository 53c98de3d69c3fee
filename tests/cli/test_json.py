"""`--json`: every command has it, and prints one strict JSON object and nothing else, also for an error."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.analysis.test_run_comparison import run as trained
from tests.conftest import make_workspace
from toolkit.cli import STAGES, cli

WITHOUT = {"demo": "a tour for people, which trains by a recipe that prints as it goes"}
# what they make takes minutes or networks, and is tested beside it; here only how they fail
MAKERS = {("adopt",), ("export",), ("soup",)}

GOOD = {  # in an order in which each finds what it needs
    ("init",): "fresh --metric accuracy",
    ("split",): "-C fresh split --folds 3",
    ("predict",): "predict folds --on train --held-out -o oof/tiny.parquet",
    ("ensemble",): "ensemble folds --tta hflip --no-tta-check",
    ("submit",): "submit",
    ("submissions",): "submissions",
    ("submissions", "score"): "submissions score last 0.9",
    ("submissions", "diff"): "submissions diff last last",
    ("submissions", "add"): "submissions add submission.csv --from Mina",
    ("verify",): "verify",
    ("score",): "score --classes --calibration",
    ("diagnose",): "diagnose",
    ("blend",): "blend --weigher uniform --vote soft --calibrate none",
    ("tta",): "tta folds --set hflip",
    ("plan",): "plan --budget 1h",
    ("compare",): "compare base good",
    ("inspect",): "inspect folds",
    ("store",): "store",
    ("store", "compact"): "store compact",
    ("store", "prune"): "store prune --dry-run --older 0",
    ("eda",): "eda",
    ("report",): "report",
    ("explain",): "explain 9000",
    ("audit",): "audit",
    ("doctor",): "doctor",
    ("fuse",): "fuse folds --tta hflip -o one.onnx",
    ("bundle",): "bundle -o bundle --cuda cpu --no-wheels",
}

BAD = {
    ("init",): "init nowhere",
    ("split",): "split --folds 2",
    ("predict",): "predict nowhere.onnx --on train -o x.csv",
    ("ensemble",): "ensemble nowhere.onnx",
    ("submit",): "submit --name nothing",
    ("submissions",): "-C nowhere submissions",
    ("submissions", "score"): "submissions score zz 1",
    ("submissions", "diff"): "submissions diff zz last",
    ("submissions", "add"): "submissions add nowhere.csv --from Mina",
    ("verify",): "verify nowhere.csv",
    ("score",): "score nowhere.csv",
    ("diagnose",): "diagnose nowhere.csv",
    ("blend",): "blend nowhere.csv",
    ("tta",): "tta nowhere.onnx",
    ("plan",): "plan --budget soon",
    ("compare",): "compare base worse",
    ("inspect",): "inspect nowhere.onnx",
    ("store",): "-C nowhere store",
    ("store", "compact"): "-C nowhere store compact",
    ("store", "prune"): "-C nowhere store prune",
    ("eda",): "-C nowhere eda",
    ("report",): "-C nowhere report",
    ("explain",): "explain nobody",
    ("audit",): "-C nowhere audit",
    ("fuse",): "fuse nowhere.onnx",
    ("bundle",): "bundle --name nothing -o bundle2 --python 3.11 --cuda cpu",
    ("adopt",): "adopt nowhere.onnx --classes a,b",
    ("export",): "export nowhere.pth",
    ("soup",): "-C nowhere soup one.safetensors two.safetensors",
}


def commands():
    for name in (name for found in STAGES.values() for name in found):
        command = importlib.import_module(f"toolkit.cli.commands.{name}").command
        yield (name,), command
        for inner, one in getattr(command, "commands", {}).items():
            yield (name, inner), one


def has_json(command: click.Command) -> bool:
    return any("--json" in parameter.opts for parameter in command.params)


def test_every_command_has_it_or_says_why_not():
    there = dict(commands())
    assert {name for name, command in there.items() if not has_json(command)} == {(name,) for name in WITHOUT}
    assert set(GOOD) | MAKERS == {name for name in there if name[0] not in WITHOUT}
    assert set(BAD) | {("doctor",)} == set(GOOD) | MAKERS  # doctor finds faults, and has none


@pytest.fixture(scope="module")
def place(tmp_path_factory, exported):
    """A workspace in which every command has something to read."""
    root = make_workspace(tmp_path_factory.mktemp("json") / "work")
    shutil.copytree(exported, root / "folds")
    trained(root, "base", ["0001", "0002"])
    trained(root, "good", loss="focal")
    make_workspace(root / "fresh")
    for name in ("competition.toml", "split.csv"):
        (root / "fresh" / name).unlink()
    for name in ("one.safetensors", "two.safetensors"):
        (root / name).write_bytes(b"")
    return root


def spoken(words: str, code: int) -> dict:
    """What a command line with --json says, which must be one strict JSON object on one line and all there is on stdout."""
    done = CliRunner().invoke(cli, [*words.split(), "--json"])
    assert done.exit_code == code, (words, done.output, done.exception)
    assert done.stdout.count("\n") == 1, done.stdout
    said = json.loads(done.stdout, parse_constant=lambda constant: pytest.fail(f"{words}: {constant} is no JSON"))
    assert isinstance(said, dict)
    return said


@pytest.fixture(scope="module")
def said(place):
    """Everything once, in the order above; the words of those that were run."""
    here = Path.cwd()
    os.chdir(place)
    try:
        yield {name: spoken(("init " if name == ("init",) else "") + words, 0) for name, words in GOOD.items()}
    finally:
        os.chdir(here)


def test_every_command_prints_one_object(said, place):
    assert all("error" not in one for one in said.values())
    assert all(one["ok"] is True for one in said.values())
    assert said["ensemble",]["path"] == str(place / "predictions" / "ensemble.parquet")
    assert said["ensemble",]["passes"] == 11 * 2 * 2
    assert [one["card"]["fold"] for one in said["inspect",]["models"]] == [0, 1]
    assert (said["split",]["folds"], len(said["split",]["balance"])) == (3, 3)
    assert said["doctor",]["ok"] is True
    assert {"machine", "packages"} <= {one["what"] for one in said["doctor",]["findings"]}
    assert list(said["score",]["label"]) == ["tiny"]


def test_a_bundle_is_for_this_machine_unless_told(said, monkeypatch):
    from toolkit.cli.commands.bundle import _target
    from toolkit.setup import doctor

    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert (said["bundle",]["python"], said["bundle",]["cuda"]) == (own, "cpu")
    assert doctor.own_target()[0] == own
    for here, wanted in (("13", "CUDA 13"), ("cpu", "no GPU"), ("11", "no GPU")):  # wheels for CUDA 11 there are none
        monkeypatch.setattr(doctor, "own_target", lambda here=here: ("3.12", here))
        assert _target("", None)[2] == [
            f"For Python 3.12, {wanted}: as on this machine; --python and --cuda name another target"
        ]
    assert _target("3.13", None)[:2] == ("3.13", "cpu")
    assert _target("3.13", "12") == ("3.13", "12", [])


@pytest.mark.parametrize(
    "words",
    [
        "score --nonsense",
        "plan",
        "tta --limit no",
        "nonsense",
        "store prune --older x",
        "--nonsense score",
        "--workspace",
        "demo",
    ],
)
def test_words_that_cannot_be_read_are_one_object_too(words, place, monkeypatch):
    monkeypatch.chdir(place)
    found = spoken(words, 2)
    assert found["ok"] is False
    assert found["error"]


def test_an_errors_hint_names_the_option_here_too(place, monkeypatch):
    monkeypatch.chdir(place)
    assert "--force" in spoken("split --folds 2", 1)["hint"]


@pytest.mark.parametrize("name", BAD, ids=" ".join)
def test_an_error_is_one_object_too(name, said, place, monkeypatch):
    monkeypatch.chdir(place)
    found = spoken(BAD[name], 1)
    assert found["ok"] is False
    assert found["error"]
    assert {"hint", "problems"} <= set(found)


def test_what_the_system_refuses_is_an_object(place, monkeypatch):
    """Not a ToolkitError: a folder where a file is to be written."""
    from toolkit.cli.commands import inspect

    def refuse(*_arguments):
        raise PermissionError(13, "Permission denied", "folds/secret.onnx")

    monkeypatch.setattr("toolkit.inference.exports.find_exports", refuse)
    done = CliRunner().invoke(inspect.command, ["folds", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["error"] == "folds/secret.onnx: Permission denied"
    done = CliRunner().invoke(inspect.command, ["folds"])
    assert isinstance(done.exception, PermissionError)  # the group says it in a sentence
    done = CliRunner().invoke(cli, ["inspect", "folds"])
    assert done.stderr == "Error: folds/secret.onnx: Permission denied\n"


def test_a_json_before_the_subcommand_counts(place, said, monkeypatch):
    monkeypatch.chdir(place)
    for words in (
        "--json store",
        "--json store compact",
        "--json score",
        "store --json compact",
        "submissions --json diff last last",
        "store --json prune --dry-run",
    ):
        done = CliRunner().invoke(cli, words.split())
        assert json.loads(done.stdout)["ok"] is True, words


def test_doctor_says_that_something_is_broken(monkeypatch):
    from toolkit.setup import doctor
    from toolkit.setup.doctor import HealthCheck

    monkeypatch.setattr(doctor, "examine", lambda: [HealthCheck("numpy", "broken", "1.0", "pip install numpy")])
    found = spoken("doctor", 1)
    assert (found["ok"], found["findings"][0]["cure"]) == (False, "pip install numpy")
    done = CliRunner().invoke(cli, ["doctor"])
    assert done.exit_code == 1
    assert done.stdout == "✗  numpy  1.0\n          cure: pip install numpy\n"
