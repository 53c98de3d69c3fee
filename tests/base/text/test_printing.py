"""What is printed for people: nothing in a name steers a terminal, columns line up, nothing is lost at any width."""

from __future__ import annotations

import json
from collections import Counter
from io import StringIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from toolkit.base.text.printing import Mark, Table, Verbatim, facts, interval, lines, safe, to_json, width
from toolkit.cli import terminal

HOSTILE = [
    "\x1b[31mred",
    "[red]red[/red]",
    "[link=x]y[/link]",
    "a\nb",
    "a\tb",
    "\x9b2J",
    "\u202eevil",
    "\udcff.png",
    "\x7f",
    "a\u2028b",
]


class Screen(StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def drawn(parts, cells, monkeypatch, **environment):
    """What a terminal of so many cells is sent."""
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", "COLUMNS": str(cells), **environment}.items():
        monkeypatch.setenv(name, value)
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    terminal.show(*parts)
    return screen.getvalue()


def columns(text, line):
    """At which cells of a line the words of a text begin."""
    return cell_len(line[: line.index(text)])


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_written_out(name):
    said = safe(name)
    assert said.isprintable()
    assert len(said.splitlines()) == 1
    assert said.encode()
    assert safe(said) == said
    if name.startswith("["):
        assert said == name


def test_what_others_write_with_stays():
    for name in ("고양이", "שלום", "سلام\u200cها", "👩\u200d🔬", "❤\ufe0f", "naïve", "a b"):
        assert safe(name) == name


def test_plain_lines_are_aligned_in_cells():
    rows = [("고양이", "1", "x"), ("cat", "1,000", ""), ("🙂\x1b", "10", "y")]
    head, *body = lines(Table(("class", "rows", ""), rows, "lrp"))
    assert (head, body[1]) == ("class    rows", "cat     1,000")
    assert body[0] == "고양이      1  x"
    assert body[2] == "🙂\\x1b     10  y"
    assert columns("x", body[0]) == columns("y", body[2])


def test_facts_stand_in_one_column_and_captions_above():
    assert str(facts([("Wrote", "a.csv"), ("", "b.csv")])) == "Wrote     a.csv\n          b.csv"
    assert str(Table(("a",), [("1",)], "r", caption="Title")) == "Title\na\n1"
    assert interval(0.1, 0.25, 2) == "0.10 – 0.25"
    assert interval(-0.1, 0.25, 2, sign="+") == "-0.10 to +0.25"


def test_a_table_checks_itself():
    for head, rows, kinds in ((("a",), [("1", "2")], "l"), (("a", "b"), [], "l"), (("a",), [], "x")):
        with pytest.raises(ValueError, match="do not fit"):
            Table(head, rows, kinds)


def test_json_is_strict_and_harmless():
    text = to_json({"names": HOSTILE, "nan": float("nan"), "in": {"inf": (float("inf"), 1.5, True, None)}, "한": 1})
    assert text.isprintable()
    assert "한" in text
    said = json.loads(text, parse_constant=pytest.fail)
    assert said["names"] == HOSTILE
    assert (said["nan"], said["in"]["inf"]) == (None, [None, 1.5, True, None])


WORDS = st.text(st.sampled_from("abc [red]/고양🙂\x1b\n0.5"), max_size=24)
NUMBERS = st.integers(-(10**7), 10**7).map("{:,}".format)


@st.composite
def tables(draw):
    kinds = draw(st.lists(st.sampled_from("lrp"), min_size=2, max_size=7))
    row = st.tuples(*(NUMBERS if kind == "r" else WORDS for kind in kinds))
    heads = ["", *(draw(st.sampled_from(["score", "95 % interval", "right → wrong", "클래스"])) for _ in kinds[1:])]
    return Table(heads, draw(st.lists(row, min_size=1, max_size=5)), "".join(kinds))


@settings(max_examples=40, deadline=None)
@given(table=tables(), cells=st.integers(24, 120))
def test_nothing_is_lost_and_nothing_is_too_wide(table, cells):
    with pytest.MonkeyPatch.context() as monkeypatch:
        text = drawn([table], cells, monkeypatch, NO_COLOR="1")
    shown = text.splitlines()
    assert all(cell_len(line) <= cells for line in shown)
    assert all(line.isprintable() for line in shown)
    whole = Counter(text)
    for kind, column in zip(table.kinds, zip(*table.rows, strict=True), strict=True):
        for cell in map(safe, column):
            assert not Counter(cell.replace(" ", "")) - whole
            if kind != "p" and width(cell) <= cells // 3:  # whole, in the table or in its block
                assert any(cell.strip() in line for line in shown), (cell, text)


@pytest.mark.parametrize("cells", [30, 45, 60, 80, 120])
def test_numbers_and_ids_are_never_folded(cells, monkeypatch):
    rows = [(f"digits.fold{i}", "hflip+scale:0.9", f"{i}0,000.{i}", interval(0.1234, 0.2345)) for i in range(4)]
    text = drawn([Table(("model", "view", "rows", "95 % interval"), rows, "llrr")], cells, monkeypatch, NO_COLOR="1")
    for cell in {cell for row in rows for cell in row}:
        assert cell in text


def test_a_wide_terminal_shows_what_a_pipe_gets(monkeypatch):
    rows = [("고양이", "1", "a [b] c"), ("🙂", "1,000", "\x1b")]
    table = Table(("class", "rows", "words"), rows, "lrp")
    head, rule, *body = drawn([table], 100, monkeypatch, NO_COLOR="1").splitlines()
    assert [head, *body] == lines(table)
    assert set(rule) == {"─"}
    styled = drawn([table], 100, monkeypatch)
    assert "\x1b[1m" in styled  # the head is bold
    assert Text.from_ansi(styled).plain.splitlines() == [head, rule, *body]


def test_what_is_the_same_in_every_row_is_said_once_where_room_is_short(monkeypatch):
    rows = [(f"model{i}", "onnxruntime1.31.1-cpu", f"{i}", "fp32") for i in range(3)]
    text = drawn([Table(("model", "engine", "rows", "precision"), rows, "llrl")], 40, monkeypatch, NO_COLOR="1")
    assert text.count("onnxruntime1.31.1-cpu") == 1
    assert [line.split() for line in text.splitlines()[-3:]] == [["model0", "0"], ["model1", "1"], ["model2", "2"]]


def test_lines_are_folded_between_words_and_commands_are_not(monkeypatch):
    command = "toolkit ensemble folds/*.onnx --tta hflip+scale:0.9,1.1 --vote hard"
    parts = ["  A sentence that does not fit into a narrow terminal", facts([("Run", Verbatim(command))]), Verbatim(command)]
    text = drawn(parts, 30, monkeypatch, NO_COLOR="1").splitlines()
    assert text[:3] == ["  A sentence that does not fit", "  into a narrow terminal", f"Run       {command}"]
    assert text[3:] == [command]


@pytest.mark.parametrize(
    ("environment", "colours"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True),
        ({"CLICOLOR": "0"}, False),
        ({"CLICOLOR": "0", "CLICOLOR_FORCE": "1"}, True),
    ],
    ids=str,
)
def test_colours_follow_the_conventions(environment, colours, monkeypatch):
    parts = [Table(("a", "b"), [("1", Mark("fits", "good"))], "ll"), facts([("Key", "text")])]
    text = drawn(parts, 60, monkeypatch, **environment)
    assert ("\x1b[" in text) == colours
    assert ("\x1b[32m" in text) == colours  # and the mark is there in words as well
    assert "fits" in text


def test_a_pipe_gets_plain_lines_and_colours_only_by_force(monkeypatch):
    table = Table(("a", "b"), [("1", Mark("fits", "good")), ("x" * 300, "")], "lp")
    piped = StringIO()
    for name in ("NO_COLOR", "CLICOLOR_FORCE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stdout", piped)
    terminal.show(table, "line")
    assert piped.getvalue().splitlines() == [*lines(table), "line"]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("sys.stdout", forced := StringIO())
    terminal.show(table, "line")
    assert "\x1b[32m" in forced.getvalue()
    assert Text.from_ansi(forced.getvalue()).plain.splitlines() == piped.getvalue().splitlines()


def test_a_table_without_rows_and_one_of_thousands(monkeypatch):
    assert str(Table(("a", "b"), [], "lr")) == "a  b"
    assert drawn([Table(("a", "b"), [], "lr")], 20, monkeypatch, NO_COLOR="1").split() == ["a", "b", "────"]
    many = Table(("a", "b"), [(f"name {i}", str(i)) for i in range(20_000)], "lr")
    calls = []
    monkeypatch.setattr("toolkit.base.text.printing.safe", lambda text: calls.append(text) or text)
    assert len(lines(many)) == 20_001
    assert len(calls) < 10 * 20_000  # in proportion to the cells
