"""The library names no option of the command line where it refuses; what has a remedy there has a code and a sentence for it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from toolkit.cli.advice import ADVICE, hint
from toolkit.errors import DataError

PACKAGE = Path(__file__).parents[2] / "toolkit"
FOLDERS = ("analysis", "base", "blending", "core", "setup", "workspace")
OPTION = re.compile(r"(?<![\w-])(--[a-z][\w-]*|-o\b)")


def raised(path: Path):
    """The calls that make an error anywhere in a file: raised at once, or handed to a helper that raises."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2].endswith("Error"):
            yield node


def library():
    return sorted(path for path in PACKAGE.rglob("*.py") if not {"cli", "_recipes"} & set(path.relative_to(PACKAGE).parts))


@pytest.mark.parametrize("folder", FOLDERS)
def test_errors_name_no_option(folder):
    said = [
        f"{path.relative_to(PACKAGE)}:{part.lineno}: {part.value}"
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for call in raised(path)
        for part in ast.walk(call)
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and OPTION.search(part.value)
    ]
    assert not said, "\n".join(said)


def test_every_code_has_advice_and_every_advice_a_code():
    codes = {
        word.value.value: f"{path.relative_to(PACKAGE)}:{call.lineno}"
        for path in library()
        for call in raised(path)
        for word in call.keywords
        if word.arg == "code" and isinstance(word.value, ast.Constant) and word.value.value
    }
    assert not {code: place for code, place in codes.items() if code not in ADVICE}
    texts = "\n".join(path.read_text(encoding="utf-8") for path in library())
    assert not [code for code in ADVICE if f'"{code}"' not in texts]


def test_advice_follows_the_librarys_own_hint():
    assert hint(DataError("no", hint="Try again.", code="test-prior")) == f"Try again. {ADVICE['test-prior']}"
    assert hint(DataError("no", hint="Try again.")) == "Try again."
