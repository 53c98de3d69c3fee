"""The program of a bundle is what its imports lead to, and they lead to nothing heavy."""

import ast

import grimp
import pytest

from toolkit.submissions.bundle import program

HEAVY = {"torch", "torchvision", "torchcodec", "ttach", "pandas", "pyarrow", "click", "rich", "sklearn", "scipy", "onnx"}


@pytest.fixture(scope="module")
def reached():
    """What import-linter's own graph says that a bundle's program leads to, imports inside functions included."""
    graph = grimp.build_graph("toolkit", include_external_packages=True, exclude_type_checking_imports=True)
    return {program.START} | graph.find_upstream_modules(program.START)


def test_what_is_packed_is_what_the_contract_looks_at(reached):
    assert set(program.modules()) == {name for name in reached if name.startswith("toolkit.")}


def test_nothing_heavy_is_reached(reached):
    assert not HEAVY & {name.partition(".")[0] for name in reached}
    assert {"numpy", "PIL", "onnxruntime"} <= reached


def test_it_is_small():
    assert len(program.modules()) <= 35  # pixels and how they are treated, documents, votes, blends, cells: the library's own


def test_packages_keep_their_sentence_and_nothing_else(tmp_path):
    program.copy(tmp_path)
    for name in program.packages():
        (sentence,) = ast.parse((tmp_path.joinpath(*name.split(".")) / "__init__.py").read_text()).body
        assert isinstance(sentence.value.value, str)
    assert len(list(tmp_path.rglob("*.py"))) == len(program.modules()) + len(program.packages()) + 1
