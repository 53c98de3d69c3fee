"""The examples in core's and blending's docstrings are true, and whoever looks a function up there finds one."""

from __future__ import annotations

import doctest
import importlib
import io
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "toolkit"
FOLDERS = ("core", "blending", "workspace")
MODULES = sorted(f"toolkit.{folder}.{path.stem}" for folder in FOLDERS for path in (PACKAGE / folder).glob("[a-z]*.py"))
NEEDS_FILES = {"cards", "prediction_files", "oof"}  # what they do cannot be shown in two lines


def examples(name: str) -> list[doctest.DocTest]:
    module = importlib.import_module(name)
    return [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name):
    runner, report = doctest.DocTestRunner(verbose=False), io.StringIO()
    for test in examples(name):
        runner.run(test, out=report.write)
    assert not runner.failures, report.getvalue()


@pytest.mark.parametrize("name", [n for n in MODULES if ".workspace." not in n and n.rpartition(".")[2] not in NEEDS_FILES])
def test_a_module_shows_how_it_is_used(name):
    assert examples(name), f"{name}: no example in any docstring"


def test_a_false_example_is_noticed():
    """The runner that the examples go through counts what is not so."""
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(wrong, out=io.StringIO().write)
    assert runner.failures == 1
