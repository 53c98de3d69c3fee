"""Nothing that is printed says "1 rows": numbers before what they count go through one function."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

from toolkit.errors import counted

ROOT = Path(__file__).parents[2]
NOUNS = (
    "answers|batches|blocks|boxes|cells|checkpoints|checks|chunks|classes|columns|cores|crops|dimensions|elements|"
    "entries|epochs|errors|exports|factors|files|findings|folds|frames|GPUs|groups|ids|images|inputs|issues|JPEGs|"
    "labels|leaks|logits|members|models|names|nodes|numbers|outputs|pages|pairs|parameters|passes|people|picks|"
    "pictures|plans|points|predictions|processes|questions|rows|runs|segments|settings|steps|tables|tags|targets|"
    "tensors|things|ties|trials|values|views|votes|warnings|weights|wheels|workers"
)
COUNTED = re.compile(rf" (?:(?:more|other|further|held-out|training|test|different|unusable) )*(?:{NOUNS})\b")
# what stands before such a word and is no number, or a number that is never 1
TEXTS = re.compile(
    r"counted\(.*|per|part(\.capitalize\(\))?|what|where|path|source\.on|taken\.element|few\(.*|list\(sizes\)|given\.dtype|.*\.shape.*"
)
LARGE = re.compile(r"(\d+ \* )?[A-Z_]+")


def uncounted(tree: ast.AST):
    """Places in f-strings where a bare number stands before its noun."""
    for string in (node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)):
        parts = string.values
        named = [place for place, part in enumerate(parts[1:-2], 1) if isinstance(part, ast.Constant) and part.value == " "]
        for value, after in [*pairwise(parts), *((parts[place - 1], parts[place + 2]) for place in named)]:
            if not isinstance(value, ast.FormattedValue) or not isinstance(after, ast.Constant):
                continue
            spec, said = value.format_spec and ast.unparse(value.format_spec), ast.unparse(value.value)
            if value.conversion != -1 or spec not in (None, "f','") or TEXTS.fullmatch(said) or LARGE.fullmatch(said):
                continue
            if COUNTED.match(after.value):
                yield string.lineno, f"{{{said}}}{after.value}"


def test_every_number_before_its_noun_is_counted():
    files = [path for folder in ("toolkit", "recipes") for path in sorted((ROOT / folder).rglob("*.py"))]
    places = [f"{p.relative_to(ROOT)}:{line}: {text}" for p in files for line, text in uncounted(ast.parse(p.read_text()))]
    assert len(files) > 200
    assert places == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("f'{n} rows'", 1),
        ("f'{n} {part} images'", 1),
        ("f'{len(x):,} held-out rows are'", 1),
        ("f'{MANY} rows'", 0),
        ("f'{n:.1f} images'", 0),
        ("f'{part} images'", 0),
    ],
)
def test_the_search_finds_them(text, number):
    assert len(list(uncounted(ast.parse(text)))) == number


@pytest.mark.parametrize(
    ("words", "one"),
    [
        ("rows", "1 row"),
        ("rows have", "1 row has"),
        ("more classes are", "1 more class is"),
        ("pairs of one picture lie", "1 pair of one picture lies"),
        ("people", "1 person"),
        ("boxes", "1 box"),
        ("batches", "1 batch"),
        ("ties", "1 tie"),
        ("entries", "1 entry"),
        ("passes", "1 pass"),
        ("images", "1 image"),
        ("files differ", "1 file differs"),
        ("held-out rows", "1 held-out row"),
    ],
)
def test_one_and_many(words, one):
    assert counted(1, words) == one
    assert counted(1200, words) == f"1,200 {words}"
    assert counted(0, words) == f"0 {words}"
