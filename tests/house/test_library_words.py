"""Library words: an error raised in the library names no option of the command line, but a code that leads to one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from toolkit.cli.advice import ADVICE, hint
from toolkit.errors import ToolkitError

ROOT = Path(__file__).parents[2] / "toolkit"
ROOMS = ("models", "training")
FLAG = re.compile(r"(?<![\w-])(--[a-z]|-o\b)")


def errors(path):
    """Every call that makes an error of ours, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error"):
            yield node


def texts(node):
    return [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant) and isinstance(inner.value, str)]


@pytest.mark.parametrize("room", ROOMS)
def test_errors_name_no_option(room):
    calls = [(path, call) for path in sorted((ROOT / room).rglob("*.py")) for call in errors(path)]
    assert len(calls) > 20
    for path, call in calls:
        assert not [text for text in texts(call) if FLAG.search(text)], f"{path}:{call.lineno}"


def test_every_code_leads_to_an_option_and_every_advice_is_given():
    codes = {
        word.value.value
        for path in ROOT.rglob("*.py")
        for call in errors(path)
        for word in call.keywords
        if word.arg == "code" and isinstance(word.value, ast.Constant)
    }
    assert codes - {""} == set(ADVICE)
    for code, advice in ADVICE.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code)
        assert FLAG.search(advice), code
        assert advice.endswith("."), code


def test_the_person_at_the_terminal_reads_both():
    error = ToolkitError("no", hint="Use smaller batches.", code="smaller-batches")
    assert hint(error) == "Use smaller batches. Use a smaller --batch-size."
    assert hint(ToolkitError("no", hint="Wait.", code="nothing-known")) == "Wait."
