"""Twelve ways in which files are called otherwise than rows name them: the right picture, or a refusal that names both."""

from __future__ import annotations

import unicodedata

import pytest

from toolkit.errors import CompetitionError
from toolkit.submissions.bundle import request
from toolkit.submissions.bundle.sheet import Rows
from toolkit.workspace import row_files
from toolkit.workspace.competition import find_files

NFD = unicodedata.normalize("NFD", "한글")
# way: (pattern, ids, files on disk, the file of each id; "" for none, None where the row is in doubt)
WAYS = {
    "as named": ("{id}.png", ["a", "b"], ["a.png", "b.png"], ["a.png", "b.png"]),
    "case of the suffix": ("{id}.png", ["a", "b"], ["a.PNG", "b.png"], ["a.PNG", "b.png"]),
    "case of the name": ("{id}.png", ["img_a", "b"], ["IMG_A.png", "b.png"], ["IMG_A.png", "b.png"]),
    "normal form": ("{id}.png", ["한글", "b"], [f"{NFD}.png", "b.png"], [f"{NFD}.png", "b.png"]),
    "another image suffix": ("{id}.png", ["a", "b"], ["a.jpeg", "b.png"], ["a.jpeg", "b.png"]),
    "no suffix in the pattern": ("{id}", ["a", "b"], ["a.jpg", "b.png"], ["a.jpg", "b.png"]),
    "a folder more": ("{id}.png", ["a", "b"], ["test/a.png", "test/b.png"], ["test/a.png", "test/b.png"]),
    "a folder less": ("{id}", ["test/a.png", "test/b.png"], ["a.png", "b.png"], ["a.png", "b.png"]),
    "backslashes": ("{id}", ["test\\a.png"], ["test/a.png"], ["test/a.png"]),
    "dotted ids": ("{id}.*", ["a", "a.1"], ["a.png", "a.1.png"], ["a.png", "a.1.png"]),
    "side cars": ("{id}.*", ["a"], ["a.png", "a.txt", "a.json", "a.xml", "a.mask.png"], ["a.png"]),
    "masks": ("{id}*", ["a"], ["a.png", "a_mask.png", "a.txt"], ["a.png"]),
    "another folder's": ("{id}", ["p1/a.png", "p2/b.png"], ["p3/a.png", "p2/b.png"], ["", "p2/b.png"]),
    "another row's": ("{id}.png", ["a", "A"], ["a.png"], ["a.png", ""]),
    "two suffixes": ("{id}.png", ["a", "b"], ["a.jpg", "a.webp", "b.png"], [None, "b.png"]),
    "two cases": ("{id}.png", ["ab", "b"], ["AB.png", "Ab.png", "b.png"], [None, "b.png"]),
    "two folders": ("{id}.png", ["a", "b"], ["x/a.png", "y/a.png", "b.png"], [None, "b.png"]),
    "two rows": ("{id}.png", ["a", "A", "b"], ["a.jpg", "b.png"], [None, None, "b.png"]),
}


@pytest.mark.parametrize("where", ["workspace", "bundle"])
@pytest.mark.parametrize("way", WAYS)
def test_names_that_differ(way, where, tmp_path):
    pattern, ids, files, expected = WAYS[way]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"a picture")
    if where == "bundle":
        table = Rows(("id",), [[name] for name in ids])
        images, located = request._images(table, ids, ids, pattern, tmp_path)
        got = {row: path for row, _, path in images}
        for number, name in enumerate(expected):
            if name:
                assert got[number] == str(tmp_path / name)
            else:
                assert not (tmp_path / got[number]).exists()
        assert bool(located.doubt) == (None in expected)
    elif None in expected:
        with pytest.raises(CompetitionError, match=r"could each be meant|could be meant by each") as caught:
            find_files({"id": ids}, "id", tmp_path, pattern, "[test]")
        doubtful = [file for file in files if file != "b.png"]
        assert all(file in caught.value.message for file in doubtful)
    else:
        pairs, located = find_files({"id": ids}, "id", tmp_path, pattern, "[test]")
        assert [file for _, file in pairs if "b.png" in file or (tmp_path / file).exists()] == [
            str(tmp_path / name) for name in expected if name
        ]
        literal = all(name == pattern.replace("{id}", row) for name, row in zip(expected, ids, strict=True) if name)
        assert bool(located.note) == (not literal and "*" not in pattern)


def test_what_is_taken_and_what_is_left_over_is_said_once(tmp_path):
    for name in ("a.JPG", "b.JPG", "c.png"):
        (tmp_path / name).write_bytes(b"")
    located = row_files.locate(tmp_path, "{id}.png", [("a.png",), ("b.png",)])
    assert located.note == "2 files differ in image suffix from what rows name: a.png is a.JPG"
    assert located.unused_note == "1 image belongs to no row: 'c.png'"
    assert located.found == 2
