"""The public face: docs/api.md says what can be imported, and shipped recipes import nothing else of ours."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "api.md"
FACES = ("toolkit", "toolkit.training", "toolkit.cli.recipes")
RECIPES = sorted((ROOT / "recipes").glob("*.py"))


def tables() -> dict[str, list[list[str]]]:
    """The rows of docs/api.md by the package in the heading above them."""
    parts = re.split(r"^## `([\w.]+)`$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    rows = {}
    for package, text in zip(parts[1::2], parts[2::2], strict=True):
        lines = re.findall(r"^\| `(\w+)` \| (.+) \| (\S+) \|$", text, flags=re.MULTILINE)
        rows[package] = [list(line) for line in lines]
    return rows


def test_the_page_names_the_public_face():
    assert tuple(tables()) == FACES


@pytest.mark.parametrize("package", FACES)
def test_the_page_says_what_the_package_says_and_nothing_more(package):
    names = [name for name, _, _ in tables()[package]]
    assert names == sorted(names)
    assert set(names) == set(importlib.import_module(package).__all__)
    versions = {since for _, _, since in tables()[package]}
    assert versions <= {"0.1.0", "0.2.0"}


@pytest.mark.parametrize("package", FACES)
def test_every_name_can_be_had(package):
    module = importlib.import_module(package)
    assert len(module.__all__) == len(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in dir(module)


def test_a_name_that_there_is_not_is_an_attribute_error():
    import toolkit.training

    with pytest.raises(AttributeError, match=r"'toolkit\.training' has no attribute 'wings'"):
        _ = toolkit.training.wings


@pytest.mark.parametrize("package", ["toolkit", "toolkit.training"])
def test_what_type_checkers_see_is_what_is_loaded(package):
    """The names under TYPE_CHECKING are those of the table; a name that only one of them knows helps nobody."""
    path = Path(importlib.import_module(package).__file__)
    seen = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                if isinstance(line, ast.ImportFrom):
                    seen |= {alias.asname for alias in line.names if alias.asname}
                elif isinstance(line, ast.Assign):
                    seen |= {target.id for target in line.targets}
    assert seen == set(importlib.import_module(package).__all__) - {"__version__"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_import_the_public_face_alone(path):
    faces = {package: set(importlib.import_module(package).__all__) for package in FACES}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            ours = {alias.name for alias in node.names if alias.name.split(".")[0] == "toolkit"}
            assert ours <= {"toolkit"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "toolkit":
            assert node.module in faces, f"{path.name} imports {node.module}"
            assert {alias.name for alias in node.names} <= faces[node.module], ast.unparse(node)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "toolkit":
            assert node.attr in faces["toolkit"], ast.unparse(node)


def test_the_training_face_costs_nothing_to_import():
    code = "import toolkit.training, sys; dir(toolkit.training); print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & {"torch", "numpy", "pandas", "timm", "onnx", "pytorch_lightning", "PIL"}
