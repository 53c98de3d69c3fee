"""Workspace files that nobody meant well with: a sentence each, at once, and no traceback."""

from __future__ import annotations

import os
import time

import pytest
from click.testing import CliRunner

from toolkit.cli import cli
from toolkit.core.targets import Target
from toolkit.errors import CompetitionError
from toolkit.workspace import path_patterns

TOML = {
    "deep": "x = " + "[" * 20_000,
    "deep tables": "a" + ".a" * 4000 + " = 1",
    "huge number": "schema = " + "9" * 5000,
    "NUL in a folder": ('images = "train"', 'images = "tr\\u0000ain"'),
    "NUL in a table": ('table = "train.csv"', 'table = "tr\\u0000ain.csv"'),
    "NUL in the sample": ('sample = "sample_submission.csv"', 'sample = "\\u0000"'),
    "targets of a list": ("[targets.", "[[targets."),
    "classes inside classes": ('classes = ["ant", "bee", "cat"]', 'classes = [["ant"], ["bee"]]'),
    "classes of tables": ('classes = ["ant", "bee", "cat"]', "classes = [{a = 1}, {a = 2}]"),
    "factors without end": (
        'classes = ["ant", "bee", "cat"]',
        "classes = []\nfactors = { "
        + ", ".join(f'f{i} = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]' for i in range(30))
        + " }",
    ),
    "schema of another type": ("schema = 1", "schema = true"),
    "infinite size": ('sample = "sample_submission.csv"', 'sample = "sample_submission.csv"\nmax_mb = inf'),
    "size that is no number": ('sample = "sample_submission.csv"', 'sample = "sample_submission.csv"\nmax_mb = nan'),
    "long name": ('name = "insects"', f'name = "{"n" * 1_000_000}"\nnmae = 1'),
    "folder of any length": ('images = "train"', f'images = "{"t" * 5000}"'),
    "pattern of stars": ('pattern = "{id}.png"', f'pattern = "{"*a" * 40}{{id}}*b"'),
}


LATER = ("folder of any length", "pattern of stars")  # a split looks at no image


@pytest.mark.parametrize("what", TOML)
def test_competition_toml(workspace, what):
    path, change = workspace / "competition.toml", TOML[what]
    text = path.read_text()
    path.write_text(change + "\n" + text if isinstance(change, str) else text.replace(*change))
    for words in (["split", "--folds", "2", "--force"], ["eda"], ["submit", "--check-only"]):
        started = time.process_time()
        done = CliRunner().invoke(cli, words)
        assert done.exception is None or isinstance(done.exception, SystemExit), (words, done.exception)
        assert time.process_time() - started < 10
        if words[0] == "split" and what not in LATER:
            assert done.exit_code != 0
            assert len(done.output) < 2000


@pytest.mark.parametrize("name", ["train.csv", "sample_submission.csv", "competition.toml", "split.csv"])
def test_pipes_in_place_of_files(workspace, name):
    (workspace / name).unlink()
    os.mkfifo(workspace / name)
    for words in (["eda"], ["submit", "--check-only"]):
        done = CliRunner().invoke(cli, words)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception


def test_names_that_are_not_utf8(workspace):
    name = os.fsdecode(b"caf\xe9")
    (workspace / "train").rename(workspace / name)
    done = CliRunner().invoke(cli, ["predict", "x.onnx", "--on", name, "--output", f"{name}.csv"])
    assert isinstance(done.exception, SystemExit), done.exception
    workspace.rename(workspace.parent / name)
    os.chdir(workspace.parent / name)
    done = CliRunner().invoke(cli, ["eda"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception


def test_stars_take_no_time_and_match_as_globs_do(tmp_path):
    import fnmatch
    import random

    started = time.process_time()
    assert not path_patterns.matches("a" * 200, ("a", "a", "a", "a", "a", "a", "b"))
    assert time.process_time() - started < 0.1
    rng = random.Random(5)
    for _ in range(3000):
        pieces = tuple("".join(rng.choices("ab", k=rng.randrange(3))) for _ in range(rng.randrange(2, 6)))
        name = "".join(rng.choices("ab", k=rng.randrange(9)))
        assert path_patterns.matches(name, pieces) == fnmatch.fnmatchcase(name, "*".join(pieces)), (name, pieces)


def test_patterns_through_folders_match_as_pathlib_does(tmp_path):
    for name in ("a/x/1.png", "a/y/1.png", "a/y/z/1.png", "b/x/1.png", "a/1.png", "a/x/2.png", "a/xy/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    find = path_patterns.finder(tmp_path)
    for pattern in ("*/x/1.png", "a/*/1.png", "*/*/*.png", "**/1.png", "a/**/1.png", "a/x*/*", "*/x*y/1.*", "nothing/*/1.png"):
        expected = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob(pattern))
        assert find(tuple(pattern.split("*"))) == expected, pattern


def test_a_product_of_factors_is_counted_before_it_is_made():
    factors = {f"f{i}": tuple("abcdefghij") for i in range(30)}
    with pytest.raises(CompetitionError, match="at most 100,000"):
        Target("x", "multiclass", (), factors=factors)
