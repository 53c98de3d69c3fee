"""CSV files are read as text, and every oddity is a sentence with the file's name."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.base.text import csv_text
from toolkit.base.text.text_forms import TextForm
from toolkit.errors import CompetitionError


def put(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


BAD = {
    "empty": (b"", "is empty"),
    "blank": (b" \n\n", "is empty"),
    "binary": (b"\x89PNG\r\n\0\0\0", "not a text file"),
    "short row": ("id,label\n1,a\n2\n3,b\n", "line 3 has 1 cell where the header has 2"),
    "long row": ("id,label\n1,a\n2,b,c\n", "line 3 has 3 cells where the header has 2"),
    "every row long": ("id,label\n1,a,x\n2,b,y\n", "line 2 has 3 cells where the header has 2"),
    "trailing comma": ("id,label\n1,a,\n2,b,\n", "line 2 has 3"),
    "twice": ("id,id\n1,2\n", "columns appear twice: 'id'"),
    "open quote": ('id,label\n1,"a\n2,b\n', "never closed"),
    "no id": ("name,label\n1,a\n", "has no column 'id'; it has 'name', 'label'"),
    "empty id": ("id,label\n1,a\n,b\n", "line 3: the id column 'id' is empty"),
    "repeats": ("id,label\n1,a\n1,b\n2,c\n", "column 'id' has 1 id more than once: '1'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables(tmp_path, name):
    content, message = BAD[name]
    path = put(tmp_path, content)
    with pytest.raises(CompetitionError) as caught:
        csv_text.read(path, columns=["id"], unique="id")
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def test_the_hint_knows_other_separators_and_spellings(tmp_path):
    for content, hint in [("id;label\n1;2;3\n", "commas"), ("ID,label\n1,2\n", "'ID'"), (" id,label\n1,2\n", "' id'")]:
        with pytest.raises(CompetitionError) as caught:
            csv_text.read(put(tmp_path, content), columns=["id"])
        assert hint in caught.value.hint


def test_missing_and_unreadable(tmp_path):
    with pytest.raises(CompetitionError, match="does not exist"):
        csv_text.read(tmp_path / "no.csv")
    with pytest.raises(CompetitionError, match="cannot be read"):
        csv_text.read(tmp_path)


def test_text_stays_text(tmp_path):
    frame = csv_text.read(put(tmp_path, 'id,label,"a,b"\r\n000123,NA,\r\n1e5,None,nan\r\n\r\n 7,"x ""y""\nz",true\r\n'))
    assert frame.columns.tolist() == ["id", "label", "a,b"]
    assert frame.values.tolist() == [["000123", "NA", ""], ["1e5", "None", "nan"], [" 7", 'x "y"\nz', "true"]]


def test_an_index_column_without_a_name(tmp_path):
    assert csv_text.read(put(tmp_path, ",id\n0,a\n"), columns=["id"]).columns.tolist() == ["", "id"]


def test_a_header_alone(tmp_path):
    frame = csv_text.read(put(tmp_path, "id,label\n"), columns=["id"], unique="id")
    assert (len(frame), frame.columns.tolist()) == (0, ["id", "label"])
    assert list(frame["id"]) == []


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=8)


@given(st.lists(st.lists(CELL, min_size=2, max_size=2), max_size=6))
def test_whatever_the_csv_module_writes_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("law") / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([["id", "label"], *rows])
    if b"\0" not in path.read_bytes():
        assert csv_text.read(path).values.tolist() == rows


def test_newlines_in_cells_wherever_a_large_file_is_cut(tmp_path):
    path = tmp_path / "t.csv"
    cell = ("line\n" * 200)[:-1]
    path.write_text("id,text\n" + "".join(f'{i},"{cell}"\n' for i in range(20_000)))
    frame = csv_text.read(path, unique="id")
    assert len(frame) == 20_000
    assert set(frame["text"]) == {cell}


FORMS = {
    "utf-8 bom": (lambda text: b"\xef\xbb\xbf" + text.encode(), "byte-order mark"),
    "utf-16": (lambda text: text.encode("utf-16"), "UTF-16"),
    "utf-16 without its mark": (lambda text: text.encode("utf-16-le"), "UTF-16"),
    "cp949": (lambda text: text.encode("cp949"), "CP949"),
    "cp949 far down": (lambda text: (text + "1,a\n" * 50_000 + "2,고양이\n").encode("cp949"), "CP949"),
    "semicolons": (lambda text: text.replace(",", ";").encode(), "semicolons"),
    "tabs": (lambda text: text.replace(",", "\t").encode(), "tabs"),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_are_certain_are_read_and_said(name, tmp_path):
    change, said = FORMS[name]
    (tmp_path / "t.csv").write_bytes(change("id,label\n001,고양이\n002,개\n"))
    frame = csv_text.read(tmp_path / "t.csv")
    assert list(frame["label"])[:2] == ["고양이", "개"]
    assert said in csv_text.note(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("id,name\n1,caf\xe9\n".encode("latin-1"), "encoding"),
        ("id,a\n1,ねこ\n".encode("cp932"), "encoding"),
        (b"a;b|c\n1;2|3\n", "delimiter"),
    ],
)
def test_forms_in_doubt_are_asked_about(data, code, tmp_path):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(CompetitionError) as caught:
        csv_text.read(tmp_path / "t.csv")
    assert caught.value.code == code
    form = TextForm("latin-1" if code == "encoding" else "", ";" if code == "delimiter" else "")
    assert len(csv_text.read(tmp_path / "t.csv", form=form)) == 1
