"""Recipes as 0.1.0 shipped them, copied by others since: their import paths lead on, and they train as they did."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.conftest import few_digits, few_people, few_pictures
from toolkit.moved import MOVED

OLD = sorted((Path(__file__).parents[1] / "data" / "recipes-0.1.0").glob("*.py"))
QUICK = ["--device", "cpu", "--epochs", "1", "--batch-size", "16", "--fold", "0"]
FLAGS = {"timm_kfold": ["--model", "resnet10t", "--no-pretrained", "--size", "32", "--no-flip"]}  # there is no hub
WORKSPACES = {"mask_profile": few_people, "multilabel": few_pictures}

every_old_recipe = pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)


def imports(tree):
    """The statements that import something of ours, in order, also behind a notebook's cells."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "toolkit":
            yield node


def uses(tree, modules):
    """(module, attribute) wherever a recipe reads something of a module of ours that it imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield node.value.id, node.attr


def fresh(code):
    """What a new interpreter says that runs this: warnings are said once per process."""
    done = subprocess.run([sys.executable, "-W", "always::DeprecationWarning", "-c", code], capture_output=True, text=True)  # noqa: PLW1510
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_all_seven_are_kept():
    assert [path.stem for path in OLD] == ["digits", "mask_profile", "multilabel", "plain_torch", "timm_kfold", "tour", "tune"]


@every_old_recipe
def test_what_an_old_recipe_imports_and_uses_is_there_and_is_the_same_object(path):
    tree, names = ast.parse(path.read_text(encoding="utf-8")), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for node in imports(tree):
            exec(compile(ast.Module([node], []), str(path), "exec"), names)
        modules = {name: value for name, value in names.items() if isinstance(value, type(ast)) and name != "__builtins__"}
        for name, attribute in uses(tree, modules):
            assert getattr(modules[name], attribute) is not None
    for old in {node.module for node in imports(tree)} & set(MOVED):
        assert importlib.import_module(old) is importlib.import_module(MOVED[old])


@pytest.mark.parametrize("old", [name for name in MOVED if name != "toolkit.reports"])
def test_the_new_path_is_there(old):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert importlib.import_module(old) is importlib.import_module(MOVED[old])


def test_an_old_path_warns_once_and_names_the_new_one():
    code = """
from toolkit import digits, submissions
from toolkit.training import augment, heads
import toolkit.cards
from toolkit.cards import Preprocess
from toolkit.cards import Card
submissions.submit
"""
    warned = re.findall(r"DeprecationWarning: (\S+) is now (\S+):", fresh(code))
    assert warned == [
        ("toolkit.digits", "toolkit.setup.digits_data"),
        ("toolkit.training.heads", "toolkit.training.parts.factor_losses"),
        ("toolkit.cards", "toolkit.core.cards"),
        ("toolkit.submissions.submit", "toolkit.submissions.submission.submit"),
    ]
    assert "<string>:2: DeprecationWarning: toolkit.digits" in fresh(code)  # the line of the recipe, not one of ours


def test_a_folder_hands_on_no_other_name():
    from toolkit import submissions

    with pytest.raises(AttributeError, match="no attribute"):
        _ = submissions.nothing
    assert not hasattr(submissions, "wings")


@pytest.mark.slow
@every_old_recipe
def test_an_old_recipe_runs_unchanged_in_a_workspace_of_its_own(path, tmp_path):
    if path.stem == "tour":
        command = [sys.executable, str(path)]
        root = tmp_path
    else:
        root = WORKSPACES.get(path.stem, lambda folder: few_digits(folder, 6))(tmp_path / "work")
        (root / "recipes").mkdir()
        copy = shutil.copyfile(path, root / "recipes" / path.name)
        command = [sys.executable, str(copy), "--workspace", str(root), *QUICK, *FLAGS.get(path.stem, [])]
    if path.stem == "tune":
        shutil.copyfile(path.with_name("digits.py"), root / "recipes" / "digits.py")
        space = root / "space.toml"
        space.write_text(
            'recipe = "digits"\nfolds = [0]\n[search]\nlr = { low = 1e-4, high = 1e-2, log = true }\n[fixed]\nepochs = 1\n'
        )
        command = [sys.executable, str(copy), str(space), "--workspace", str(root), "--trials", "1", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if path.stem not in ("tour", "tune"):
        assert list((root / "folds").glob("*.fold0.onnx"))
        assert "fold 0  " in done.stdout
