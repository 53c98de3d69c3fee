"""One schema layer: it takes and refuses what msgspec's strict conversion does, and documents stay within limits."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.base import documents, files
from toolkit.base.schema import Range, Size, checked


@dataclass(frozen=True)
class Inner:
    name: str
    sides: tuple[int, int] = (1, 2)


@dataclass(frozen=True)
class Outer:
    inner: Inner
    many: tuple[Inner, ...] = ()
    share: float | None = None
    kind: Literal["a", "b"] = "a"
    notes: dict[str, float] | None = None
    flag: bool = False
    words: list[str] | None = None


class Table(TypedDict, total=False):
    count: int
    rest: Any


leaves = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.sampled_from(["a", "b", "x", ""])
inner = st.fixed_dictionaries({"name": leaves}, optional={"sides": st.lists(leaves, max_size=3), "odd": leaves})
outer = st.fixed_dictionaries(
    {"inner": inner | leaves},
    optional={
        "many": st.lists(inner, max_size=2) | leaves,
        "share": leaves,
        "kind": leaves,
        "notes": st.dictionaries(st.sampled_from("ab"), leaves) | leaves,
        "flag": leaves,
        "words": st.lists(leaves, max_size=2) | leaves,
    },
)
STRICT = {Inner: msgspec.defstruct("Inner", [("name", str), ("sides", tuple[int, int], (1, 2))], forbid_unknown_fields=True)}
STRICT[Outer] = msgspec.defstruct(
    "Outer",
    [
        ("inner", STRICT[Inner]),
        ("many", tuple[STRICT[Inner], ...], ()),
        ("share", float | None, None),
        ("kind", Literal["a", "b"], "a"),
        ("notes", dict[str, float] | None, None),
        ("flag", bool, False),
        ("words", list[str] | None, None),
    ],
    forbid_unknown_fields=True,
)


@given(outer | inner | leaves)
def test_it_agrees_with_msgspec(raw):
    try:
        theirs = msgspec.to_builtins(msgspec.convert(raw, STRICT[Outer], strict=True))
    except msgspec.ValidationError:
        with pytest.raises(ValueError, match=r".+"):
            checked(raw, Outer)
    else:
        assert msgspec.to_builtins(checked(raw, Outer)) == theirs


def test_limits_name_the_place():
    with pytest.raises(ValueError, match=r"a\.b: a number from 0 to 1"):
        checked(float("inf"), Annotated[float, Range(0, 1)], "a.b")
    with pytest.raises(ValueError, match="a number from"):
        checked(float("nan"), Annotated[float, Range(0, 1)])
    with pytest.raises(ValueError, match="at most 2"):
        checked([1, 2, 3], Annotated[list[int], Size(2)])
    assert checked({"count": 3, "rest": [None]}, Table) == {"count": 3, "rest": [None]}
    with pytest.raises(ValueError, match=r"many\[0\]\.name"):
        checked({"inner": {"name": "a"}, "many": [{"name": 3}]}, Outer)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "[" * 100 + "]" * 100,
        '{"a":' * 200_000,
        "1" * 5000,
        "9" * 30,
        '"\\u0000"',
        '"\\ud800"',
        '{"\\udfff": 1}',
        "{",
        "",
    ],
    ids=range(10),
)
def test_documents_have_limits(text):
    with pytest.raises(ValueError, match=r".+"):
        documents.parse_json(text)


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 50_000, "a = " + "9" * 30, 'a = "\\u0000"', "a" + ".a" * 5000 + " = 1"], ids=range(4)
)
def test_toml_has_limits(text):
    with pytest.raises(ValueError, match=r".+"):
        documents.parse_toml(text)


def test_what_we_write_is_within_them():
    value = {"a": [1.5, -(2**63), None, True, {"b": "é\U0001f600"}], "n": float("inf")}
    assert documents.parse_json(json.dumps(value)) == value


def test_pipes_devices_folders_and_large_files_are_no_documents(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero", tmp_path / "a\0b"):
        with pytest.raises(OSError, match=r".+"):
            files.opened(path)
    (tmp_path / "large").write_bytes(b" " * 2000)
    with pytest.raises(ValueError, match="larger"):
        documents.read_json(tmp_path / "large", limit=1000)
