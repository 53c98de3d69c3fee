"""`toolkit init` at the terminal: what it prints, writes and refuses."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from toolkit.cli import cli
from toolkit.setup import recipe_files
from toolkit.workspace.competition import Competition


@pytest.fixture
def tree(tmp_path):
    """Twelve cats, dogs and foxes and five test images."""
    kinds = ["cat", "dog", "fox"] * 4
    (tmp_path / "train.csv").write_text("id,label\n" + "".join(f"{i:03d},{k}\n" for i, k in enumerate(kinds)))
    (tmp_path / "sample_submission.csv").write_text("id,label\n" + "".join(f"t{i},cat\n" for i in range(5)))
    for part, names in (("train", [f"{i:03d}" for i in range(12)]), ("test", [f"t{i}" for i in range(5)])):
        (tmp_path / part).mkdir()
        for name in names:
            Image.new("RGB", (2, 2)).save(tmp_path / part / f"{name}.png")
    return tmp_path


def run(*args):
    result = CliRunner().invoke(cli, list(map(str, args)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_it_writes_and_says_what_it_found_and_what_comes_next(tree):
    result = run("init", tree, "--metric", "accuracy")
    assert result.exit_code == 0
    assert Competition.read(tree).targets[0].classes == ("cat", "dog", "fox")
    for part in ("id column: id", "3 classes: cat, dog, fox; task multiclass", "use --group", "competition.toml",
                 "toolkit split", "--recipe timm_kfold", "toolkit ensemble folds/*.onnx --tta auto", "toolkit submit"):  # fmt: skip
        assert part in result.stdout


def test_the_current_folder_and_the_workspace_option(tree, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tree)
    assert run("init", "--metric", "accuracy").exit_code == 0
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert run("-C", tree, "init", "--metric", "accuracy").exit_code == 1
    assert run("-C", tree, "init", "--metric", "accuracy", "--force").exit_code == 0


def test_paths_of_flags_start_where_one_types(tree, monkeypatch):
    (tree / "other.csv").write_text((tree / "train.csv").read_text())
    (tree / "work").mkdir()
    monkeypatch.chdir(tree)
    result = run("init", "work", "--data", ".", "--train", "other.csv", "--metric", "accuracy")
    assert result.exit_code == 0, result.output
    assert Competition.read(tree / "work").train.table == str(tree / "other.csv")


def test_questions_are_one_error_on_stderr(tree):
    (tree / "train_old.csv").write_text("id,label\n")
    result = run("init", tree)
    assert result.exit_code == 1
    assert not (tree / "competition.toml").exists()
    assert "--train: " in result.stderr
    assert "--metric: " in result.stderr
    assert "accuracy" in result.stderr
    assert "Traceback" not in result.output
    assert not result.stdout


def test_it_refuses_to_overwrite(tree):
    (tree / "competition.toml").write_text("mine")
    result = run("init", tree, "--metric", "accuracy")
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert (tree / "competition.toml").read_text() == "mine"


def test_an_unknown_metric_is_a_usage_error_that_lists_them(tree):
    result = run("init", tree, "--metric", "accurracy")
    assert result.exit_code == 2
    assert "macro_f1" in result.stderr


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbfid,label\nx,a\n", b"id,label\n1\n", "id,label\nx,고양이\n".encode("cp949"),
                                     b"id,id\n1,2\n", b"\0\0"])  # fmt: skip
def test_tables_that_cannot_be_read(tree, content):
    (tree / "train.csv").write_bytes(content)
    result = run("init", tree, "--metric", "accuracy")
    assert result.exit_code == 1
    assert "train.csv" in result.stderr
    assert "Traceback" not in result.output
    assert not (tree / "competition.toml").exists()


def test_a_joint_target(tree):
    rows = [("male", "old"), ("female", "young"), ("male", "young")] * 4
    (tree / "train.csv").write_text("id,gender,age\n" + "".join(f"{i:03d},{g},{a}\n" for i, (g, a) in enumerate(rows)))
    (tree / "sample_submission.csv").write_text("id,ans\n" + "".join(f"t{i},0\n" for i in range(5)))
    flags = ["--metric", "accuracy", "--factor", "gender=male,female", "--factor", "age=young,old", "--format", "indices"]
    assert run("init", tree, *flags).exit_code == 0
    assert Competition.read(tree).targets[0].classes == ("male_young", "male_old", "female_young", "female_old")
    assert run("init", tree, *flags[:2], "--factor", "gender", "--force").exit_code == 1


def test_what_is_called_in_odd_bytes_is_named(tree, tmp_path):
    for odd, words in ((tree / "train.csv", ["--train"]), (tree / "sample_submission.csv", ["--sample"])):
        renamed = odd.rename(odd.with_name(os.fsdecode(b"t\xff.csv")))
        result = run("init", tree, "--metric", "accuracy", *words, renamed)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "t\\udcff.csv" in result.stderr
        renamed.rename(odd)
    tree = tree.rename(tmp_path.parent / os.fsdecode(b"work\xff"))
    result = run("init", tree, "--metric", "accuracy")
    assert result.exit_code == 1
    assert "work\\udcff is not UTF-8" in result.stderr


def test_recipes_are_copied_once(tmp_path, monkeypatch):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "tiny.py").write_text("print('hi')\n")
    (shelf / "_hidden.py").write_text("")
    monkeypatch.setattr(recipe_files, "_folder", lambda: shelf)
    assert recipe_files.recipe_names() == ("tiny",)
    assert run("init", tmp_path, "--recipe", "tiny").exit_code == 0
    assert (tmp_path / "recipes/tiny.py").read_text() == "print('hi')\n"
    assert not (tmp_path / "competition.toml").exists()
    (tmp_path / "recipes/tiny.py").write_text("mine")
    assert run("init", tmp_path, "--recipe", "tiny").exit_code == 1
    assert (tmp_path / "recipes/tiny.py").read_text() == "mine"
    assert run("init", tmp_path, "--recipe", "tiny", "--force").exit_code == 0
    result = run("init", tmp_path, "--recipe", "huge")
    assert result.exit_code == 1
    assert "tiny" in result.stderr


def test_recipes_of_the_checkout_are_found():
    folder = Path(recipe_files.__file__).parents[2] / "recipes"
    assert recipe_files.recipe_names() == tuple(sorted(path.stem for path in folder.glob("*.py")))


def test_a_folder_that_is_not_there(tmp_path):
    assert run("init", tmp_path / "no", "--metric", "accuracy").exit_code == 1
