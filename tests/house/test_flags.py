"""The library speaks no command line: strings outside `toolkit/cli` name no option, and codes are explained where options are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from toolkit.cli.advice import ADVICE

PACKAGE = Path(__file__).parents[2] / "toolkit"
ROOMS = ("ensemble", "images", "inference", "runtime")
FLAG = re.compile(r"(?<![\w-])--[a-z]|(?<![\w-])-[oC]\b")


def files(room):
    return sorted((PACKAGE / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_no_string_names_an_option(room):
    named = [
        f"{path.name}:{node.lineno}: {node.value}"
        for path in files(room)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and FLAG.search(node.value)
    ]
    assert not named, "\n".join(named)


@pytest.mark.parametrize("room", ROOMS)
def test_every_code_has_its_advice(room):
    codes = {
        (path.name, node.value.value)
        for path in files(room)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant) and node.value.value
    }
    assert codes
    assert not [code for code in codes if code[1] not in ADVICE]
