"""docs/pictures.md: every row of the table of treatments names a test that exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows() -> list[str]:
    lines = (ROOT / "docs" / "pictures.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    return table[2:]


def test_every_treatment_names_a_test_that_is_there() -> None:
    assert len(rows()) >= 10
    for row in rows():
        named = NAMED.findall(row.split("|")[3])
        assert named, row
        for file, function in named:
            tree = ast.parse((ROOT / file).read_text())
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, row
