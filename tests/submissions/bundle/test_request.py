"""Rows are read and written without pandas as the library does it with pandas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from toolkit.base import files
from toolkit.base.text import arrow_csv, csv_text
from toolkit.core.predictions import Predictions
from toolkit.core.targets import LONG_FORMS
from toolkit.submissions.bundle import request
from toolkit.submissions.bundle import sheet as sheets
from toolkit.submissions.bundle.contents import Field
from toolkit.submissions.form import formats
from toolkit.submissions.form.cells import CELLS, Column
from toolkit.submissions.form.layout import fit
from toolkit.submissions.sample import as_format, render
from toolkit.workspace.competition import Competition, Images, Target

FIVE = ("a", "b", "c", "d", "e")
COMPETITIONS = {
    "multiclass": (Target("t", "multiclass", FIVE),),
    "binary": (Target("t", "binary", ("no", "yes"), positive="yes"),),
    "joint": (Target("t", "multiclass", (), factors={"mask": ("on", "off", "half"), "sex": ("f", "m")}),),
    "multilabel": (Target("t", "multilabel", FIVE, separator="|"),),
}
CASES = [
    ("multiclass", "labels", "id,t", "1,a", [Field("t", "t")]),
    ("multiclass", "indices", "id,t", "1,0", [Field("t", "t")]),
    ("multiclass", "flags", "id,a,b,c,d,e", "1,1,0,0,0,0", [Field(c, "t", c) for c in FIVE]),
    ("multiclass", "probabilities", "id,a,b,c,d,e", "1,1,0,0,0,0", [Field(c, "t", c) for c in FIVE]),
    ("multiclass", "topk:3", "id,t", "1,a b c", [Field("t", "t", k=3)]),
    ("multiclass", "long", "id,class,p", "1,a,0", [Field("p", "t", by="class")]),
    ("multiclass", "joined", "id,p", "1_a,0", [Field("p", "t")]),
    ("binary", "probability", "id,t", "1,0.5", [Field("t", "t", "yes")]),
    ("joint", "labels", "id,mask,sex", "1,on,f", [Field("mask", "t", "mask"), Field("sex", "t", "sex")]),
    ("joint", "indices", "id,mask,sex", "1,0,0", [Field("mask", "t", "mask"), Field("sex", "t", "sex")]),
    ("joint", "topk:2", "id,mask,sex", "1,on off,f m", [Field("mask", "t", "mask", 2), Field("sex", "t", "sex", 2)]),
    ("multilabel", "labels", "id,t", "1,a|b", [Field("t", "t")]),
    ("multilabel", "indices", "id,t", "1,0|1", [Field("t", "t")]),
    ("multilabel", "flags", "id,a,b,c,d,e", "1,1,0,0,0,0", [Field(c, "t", c) for c in FIVE]),
]


def test_every_format_has_a_case():
    forms = {form.partition(":")[0] for _, form, *_ in CASES}
    assert forms == set(formats.FORMATS) == set(CELLS) | set(LONG_FORMS)


@pytest.mark.parametrize(("task", "form", "header", "line", "fields"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_rows_are_written_as_the_library_writes_them(task, form, header, line, fields, tmp_path):
    targets = COMPETITIONS[task]
    where = Images("test", "{id}.png", "train.csv")
    competition = Competition(tmp_path, "x", "accuracy", targets, where, where, format=form)
    classes = targets[0].classes
    rng = np.random.default_rng(1)
    ids = tuple(f"{i:03d}" for i in rng.permutation(60))
    values = rng.dirichlet(np.full(len(classes), 0.3), len(ids))
    values[0] = np.eye(len(classes))[0]
    values[1] = values[1] * 1e-9 + (1 - 1e-9) * np.eye(len(classes))[1]
    if task == "multilabel":
        values = rng.random((len(ids), len(classes)))
        values[np.arange(len(ids)), rng.integers(0, len(classes), len(ids))] = 0.75
    table = {"t": Predictions("t", "probabilities", ids, classes, values, multilabel=task == "multilabel")}
    rest = line.split(",")[1:]
    order = sorted(ids)
    if form == "long":
        lines = [f"{name},{label},0" for name in order for label in classes]
    elif form == "joined":
        lines = [f"{name}_{label},0" for label in classes for name in order]
    else:
        lines = [",".join([name, *rest]) for name in order]
    path = tmp_path / "sample.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    plan = fit(form, frame, competition)
    assert [Field(c.name, c.target.name, c.part, c.k, c.by) for c in plan.columns] == fields
    wanted = render(table, as_format(frame, competition, form))
    sheet = sheets.read_sample(path, sheets.SheetForm("id", header.split(","), form, plan.columns))
    assert list(sheet.ids) == plan.rows(frame)[0].to_pylist()
    request.write_submission(tmp_path / "out.csv", sheet, form, plan.columns, table)
    if not plan.format.values or form.startswith("topk"):
        theirs = files.write(tmp_path / "theirs.csv", lambda file: arrow_csv.write(file, wanted))
        assert (tmp_path / "out.csv").read_bytes() == theirs.read_bytes()
    found = pd.read_csv(tmp_path / "out.csv", dtype=str, keep_default_na=False)
    assert list(found.columns) == list(wanted.columns)
    for name in wanted.columns:
        if plan.format.values and not form.startswith("topk") and name in {field.name for field in fields}:
            ours, theirs = found[name].astype("float64"), wanted[name].astype("float64")
            np.testing.assert_array_equal(ours.to_numpy().view(np.int64), theirs.to_numpy().view(np.int64))
        else:
            assert list(found[name]) == list(wanted[name])


def test_a_row_may_have_no_label():
    column, rows = Column("t", COMPETITIONS["multilabel"][0]), np.array([1, 0])
    table = Predictions("t", "labels", ("1", "2"), FIVE, labels=np.array([[1, 0, 1, 0, 0], [0] * 5]), multilabel=True)
    assert request.texts("labels", column, table, rows, rows) == ["", "a|c"]


def test_cells_with_commas_and_quotes_survive(tmp_path):
    target = Target("t", "multiclass", ('a,"b"', "c\nd"))
    table = {"t": Predictions("t", "labels", ("x,1", "2"), target.classes, labels=np.array([0, 1]))}
    sheet = sheets.of_ids(["2", "x,1"], sheets.SheetForm("id", ["id", "t"], "labels", [Column("t", target)]))
    request.write_submission(tmp_path / "out.csv", sheet, "labels", [Column("t", target)], table)
    assert list(pd.read_csv(tmp_path / "out.csv")["t"]) == ["c\nd", 'a,"b"']


@pytest.mark.parametrize("text", ["id,a\n007,NA\n7,\n", 'id,a\n"x,1","say ""yes"""\n2,"c\nd"\n', "id,a\r\n1, b \r\n2,é"])
def test_tables_are_read_as_the_library_reads_them(text, tmp_path):
    (tmp_path / "t.csv").write_bytes(text.encode())
    theirs = csv_text.read(tmp_path / "t.csv")
    ours = sheets.read_rows(tmp_path / "t.csv")
    assert list(ours.header) == list(theirs.columns)
    assert [list(row) for row in ours.rows] == theirs.to_numpy().tolist()
