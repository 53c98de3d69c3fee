"""Library words: an error raised in the library names no option of the command line, but a code that leads to one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from toolkit.cli.advice import ADVICE, hint
from toolkit.errors import ToolkitError
from toolkit.submissions.bundle import run

PACKAGE = Path(__file__).parents[2] / "toolkit"
FLAG = re.compile(r"(?<![\w-])(--[a-z]|-o\b)")
FOLDERS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py") if path.parent.name != "cli")
# a bundle is run by its own command line, which stands in this one file
EXCEPTIONS = {"submissions/bundle/run.py"}


def errors(path: Path):
    """Every call that makes an error of ours: raised at once, or handed to a helper that raises."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2].endswith("Error"):
            yield node


def library():
    return sorted(path for path in PACKAGE.rglob("*.py") if not {"cli", "_recipes"} & set(path.relative_to(PACKAGE).parts))


def texts(node):
    return [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant) and isinstance(inner.value, str)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_errors_name_no_option(folder):
    paths = [path for path in library() if path.relative_to(PACKAGE).parts[0] == folder]
    calls = [(path, call) for path in paths if str(path.relative_to(PACKAGE)) not in EXCEPTIONS for call in errors(path)]
    assert calls
    flagged = [f"{path}:{call.lineno}: {text}" for path, call in calls for text in texts(call) if FLAG.search(text)]
    assert not flagged, "\n".join(flagged)


@pytest.mark.parametrize("folder", ["ensemble", "images", "inference", "runtime"])
def test_no_string_of_these_folders_names_an_option(folder):
    """Notes and lines that are printed as well as errors; in the other folders some notes still do."""
    named = [
        f"{path}:{node.lineno}: {node.value}"
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and FLAG.search(node.value)
    ]
    assert not named, "\n".join(named)


def test_every_code_has_advice_and_every_advice_a_code():
    codes = {
        word.value.value: f"{path.relative_to(PACKAGE)}:{call.lineno}"
        for path in library()
        for call in errors(path)
        for word in call.keywords
        if word.arg == "code" and isinstance(word.value, ast.Constant) and word.value.value
    }
    advised = {**ADVICE, **run.ADVICE}  # a bundle has its own command line
    assert not {code: place for code, place in codes.items() if code not in advised}
    written = "\n".join(path.read_text(encoding="utf-8") for path in library())
    assert not [code for code in ADVICE if f'"{code}"' not in written]


@pytest.mark.parametrize("code", ADVICE)
def test_an_advice_is_a_line_with_a_name(code):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code)
    assert "\n" not in ADVICE[code]


def test_the_person_at_the_terminal_reads_both():
    error = ToolkitError("no", hint="Use smaller batches.", code="smaller-batches")
    assert hint(error) == "Use smaller batches. Use a smaller --batch-size."
    assert hint(ToolkitError("no", hint="Wait.", code="nothing-known")) == "Wait."
