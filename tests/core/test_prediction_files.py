"""Tables on disk: what is written is read back to the last bit, anything else is refused with its name."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from tests.core.test_predictions import tables
from toolkit.core.prediction_files import read_meta, read_table, write_table
from toolkit.core.predictions import Predictions
from toolkit.errors import DataError


def probabilities(target="t", classes=("a", "b"), ids=("1", "2")):
    return Predictions(target, "probabilities", ids, classes, np.full((len(ids), len(classes)), 1 / len(classes)))


@settings(max_examples=60, deadline=None)
@given(tables())
def test_round_trip(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("law") / "t.parquet"
    meta = {"member": "b4", "scores": [0.1, None], "가": "나"}
    again = read_table(write_table(path, {"t": table}, meta))
    read = again.predictions["t"]
    assert (read.ids, read.classes, read.kind, read.multilabel) == (table.ids, table.classes, table.kind, table.multilabel)
    for ours, theirs in ((read.values, table.values), (read.labels, table.labels)):
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours.dtype == theirs.dtype and np.array_equal(ours, theirs))
    assert again.meta == read_meta(path) == meta


def test_pandas_reads_it(tmp_path):
    frame = pd.read_parquet(write_table(tmp_path / "t.parquet", {"t": probabilities(ids=("007", "NA"))}, {}))
    assert frame.columns.tolist() == ["id", "t/a", "t/b"]
    assert frame["id"].tolist() == ["007", "NA"]


def test_several_targets(tmp_path):
    labels = Predictions("kind", "labels", ("1", "2"), ("x", "y"), labels=np.array([1, 0]))
    read = read_table(write_table(tmp_path / "t.parquet", {"t": probabilities(), "kind": labels}, {})).predictions
    assert list(read) == ["t", "kind"]
    assert read["kind"].labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([], "no predictions"),
        ([probabilities(), probabilities("u", ids=("2", "1"))], "same ids in the same order"),
        ([probabilities("a", ("b/c", "d")), probabilities("a/b", ("c", "e"))], "two columns would be called 'a/b/c'"),
        ([Predictions("id", "labels", ("1",), ("x",), labels=np.array([0]))], "called 'id'"),
    ],
)
def test_what_cannot_be_written(tmp_path, predictions, message):
    with pytest.raises(DataError, match=message):
        write_table(tmp_path / "t.parquet", {p.target: p for p in predictions}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"id,label\n1,a\n", b"PAR1" + b"\0" * 40 + b"PAR1"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    for read in (read_table, read_meta):
        with pytest.raises(DataError, match=r"t\.parquet"):
            read(path)
    with pytest.raises(DataError, match="does not exist"):
        read_table(tmp_path / "no.parquet")
    with pytest.raises(DataError):
        read_table(tmp_path)


def test_foreign_and_newer_tables_are_refused(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": ["1"]}), path)
    with pytest.raises(DataError, match="was not written by toolkit"):
        read_table(path)
    for header, message in (
        (b'{"schema": 99}', "has schema 99"),
        (b"{", "not a predictions table"),
        (b"[]", "not a predictions table"),
    ):
        pq.write_table(pa.table({"id": ["1"]}).replace_schema_metadata({b"toolkit": header}), path)
        for read in (read_table, read_meta):
            with pytest.raises(DataError, match=message):
                read(path)


def test_a_column_that_is_missing_or_wrong(tmp_path):
    path = write_table(tmp_path / "t.parquet", {"t": probabilities()}, {})
    table = pq.read_table(path)
    for broken in (
        table.drop_columns("t/a"),
        table.set_column(1, "t/a", pa.array([0.9, 0.9])),
        table.set_column(1, "t/a", pa.array(["x", "y"])),
    ):
        pq.write_table(broken, path)
        with pytest.raises(DataError, match=r"t\.parquet"):
            read_table(path)


def test_damage_is_an_error_and_never_a_crash(tmp_path):
    """Every truncation, and bytes flipped anywhere, give the same table or an error with the file's name."""
    ids = tuple(map(str, range(50)))
    table = Predictions("t", "scores", ids, ("a", "b"), np.random.default_rng(1).random((50, 2)))
    path = write_table(tmp_path / "t.parquet", {"t": table}, {"a": 1})
    good, whole = path.read_bytes(), read_table(path)

    def said(table):
        return table.meta, {name: (p.ids, p.classes, p.kind, p.values.tolist()) for name, p in table.predictions.items()}

    rng = np.random.default_rng(0)
    damaged = [good[:size] for size in range(0, len(good), 97)]
    for _ in range(120):
        data = bytearray(good)
        data[rng.integers(len(good))] ^= 1 << rng.integers(8)
        damaged.append(bytes(data))
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            read = read_table(path)
        except DataError as error:
            refused += "t.parquet" in error.message
        else:
            assert said(read) == said(whole)
    assert refused > len(good) // 97


def test_a_table_that_parquet_reads_but_nobody_wrote_is_refused(tmp_path):
    """What page checksums do not cover: cells, ids and names changed by whoever writes the file again, and the header."""
    grid = np.array([[0.1, 0.9], [0.7, 0.3]])
    path = write_table(tmp_path / "t.parquet", {"t": Predictions("t", "scores", ("1", "2"), ("a", "b"), grid)}, {"score": 0.5})
    table = pq.read_table(path)
    text = table.schema.metadata[b"toolkit"]
    swapped = table.column("t/a").take([1, 0])
    for forged in (
        table.set_column(1, "t/a", table.column("t/b")).set_column(2, "t/b", table.column("t/a")),
        table.set_column(0, "id", pa.array(["2", "1"])),
        table.set_column(1, "t/a", swapped).set_column(2, "t/b", table.column("t/b").take([1, 0])),
        *(
            table.replace_schema_metadata({b"toolkit": text.replace(old, new)})
            for old, new in ((b"0.5", b"0.9"), (b'"a"', b'"c"'), (b'"seal"', b'"sead"'), (b'"rows"', b'"rowt"'))
        ),
    ):
        pq.write_table(forged, path)
        with pytest.raises(DataError, match=r"t\.parquet"):
            read_table(path)
    pq.write_table(table, path, compression="snappy")  # the same table however it is kept
    assert read_table(path).meta == {"score": 0.5}


@pytest.mark.parametrize("name", ["a\0b", "a\ud800"])
@pytest.mark.parametrize("what", ["target", "classes", "ids", "meta"])
@pytest.mark.parametrize("kind", ["probabilities", "labels"])
def test_what_could_not_be_read_again_is_not_written(tmp_path, name, what, kind):
    said = {"target": "t", "classes": ("a", "b"), "ids": ("1", "2")} | (
        {what: (name, "z")} if what in ("classes", "ids") else {}
    )
    said |= {"target": name} if what == "target" else {}
    filled = {"labels": np.array([0, 1])} if kind == "labels" else {"values": np.full((2, 2), 0.5)}
    with pytest.raises(DataError, match="NUL or half a character"):
        write_table(
            tmp_path / "t.parquet",
            {said["target"]: Predictions(kind=kind, **said, **filled)},
            {"k": name} if what == "meta" else {},
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["a\nb", "a\rb", "\u202eab", "\ufeffa", "", 'a"b', "x" * 100_000, "a\u2028b", "\x1b[31m", "e\u0301"]
)
def test_odd_names_come_back(tmp_path, name):
    table = Predictions(name or "t", "labels", (name, "z"), (name, "k"), labels=np.array([0, 1]))
    again = read_table(write_table(tmp_path / "t.parquet", {table.target: table}, {"k": name}))
    read = again.predictions[table.target]
    assert (read.ids, read.classes, again.meta["k"]) == (table.ids, table.classes, name)
