"""Kinds of tables and documents that people write: what is read equals a parser of others, or the truth of what was written."""

from __future__ import annotations

import csv
import io
import json
import random
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from attack import Kind, damage, register
from attack_hostile import mutated, odd, workspace_in

IDS = tuple(f"{number:03d}" for number in range(24))
CLASSES = ("a", "b", "c")
Cells = list[list[str]]
ENCODINGS = (*["utf-8"] * 9, "utf-8-sig", "utf-16", "utf-16-le", "cp949", "latin-1", "utf-32")
ODD = (
    "",
    " ",
    "NA",
    "nan",
    "None",
    "1e999",
    "-1",
    "0x1",
    "1_0",
    "a\nb",
    "a\rb",
    'a"b',
    '"',
    "a,b",
    "x" * 5000,
    "\0",
    "\ufeff",
    "é",
    "한",
    "＝",
    "٣",
)


# --- tables ----------------------------------------------------------------------------------------------------------


def written_table(path: Path, seed: int) -> Cells | None:
    """Write the table at `path` anew with a few cells, rows, columns, its encoding or its marks changed; the cells, if told."""
    rng = random.Random(seed)
    rows = [list(row) for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        row, place = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
        what = rng.randrange(8)
        if what < 3:
            rows[row][place % len(rows[row])] = rng.choice(ODD)
        elif what == 3:
            rows.insert(row, list(rows[rng.randrange(len(rows))]))
        elif what == 4 and len(rows) > 2:
            del rows[row]
        elif what == 5:
            rows[row] = [*rows[row][: rng.randrange(4)], rng.choice(ODD)]
        elif what == 6:
            rows = [[*cells, rng.choice(ODD)] for cells in rows]
        else:
            rng.shuffle(rows)
    end, mark = rng.choice(("\n", "\n", "\r\n", "\r")), rng.choice(",,,,;\t|")
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n", delimiter=mark, quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))).writerows(
        rows
    )
    whole = text.getvalue() if end == "\r\n" else text.getvalue().replace("\r\n", end)
    path.write_bytes(whole.encode(rng.choice(ENCODINGS), "replace"))
    return None


def reference_cells(path: Path) -> list[Cells]:
    """The readings of others of a table, header first: of pandas and of Python's csv, in the encodings that hold it."""
    import pandas as pd

    data = path.read_bytes()
    readings: list[Cells] = []
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp949"):
        try:
            text = data.decode(encoding).removeprefix("\ufeff")
        except UnicodeDecodeError:
            continue
        for mark in ",;\t|":
            with suppress(csv.Error):
                readings.append([row for row in csv.reader(io.StringIO(text, newline=""), delimiter=mark) if row])
            try:
                frame = pd.read_csv(io.StringIO(text, newline=""), sep=mark, dtype=str, keep_default_na=False, header=None)
                readings.append([list(map(str, row)) for row in frame.to_numpy().tolist()])
            except (ValueError, pd.errors.ParserError):
                pass
    return readings


def table_kind(name: str, file: str, make: Callable[[Path], Any], read: Callable[[Path], Cells], **more: Any) -> None:
    """A kind of table: `read` gives the cells it was understood as, header first; some columns of the reference at least."""

    def trial(folder: Path, seed: int) -> str:
        path = folder / file
        good = path.read_bytes()
        if seed % 2:
            damage(path, seed // 2)
        else:
            written_table(path, seed)
        ours = read(folder)
        if not path.is_file():
            return "silently wrong"
        return (
            "same"
            if path.read_bytes() == good or any(_within(ours, cells) for cells in reference_cells(path))
            else "silently wrong"
        )

    def prepare(folder: Path) -> None:
        make(folder)
        if not any(_within(read(folder), cells) for cells in reference_cells(folder / file)):
            raise RuntimeError(f"{name}: the good file is not read as it should be")

    register(Kind(name, prepare, trial, ours=False, **more))


def _within(ours: Cells, cells: Cells) -> bool:
    """Whether the columns that were read are those of that name in the reference, row by row."""
    if not cells or not set(ours[0]) <= set(cells[0]) or len(cells) != len(ours):
        return False
    places = [cells[0].index(name) for name in ours[0]]
    return all(
        len(row) > max(places) and [row[p] for p in places] == mine for row, mine in zip(cells[1:], ours[1:], strict=True)
    )


def _columns(**columns: Any) -> Cells:
    return [list(columns), *map(list, zip(*columns.values(), strict=True))]


def _competition(folder: Path) -> Any:
    from toolkit.workspace.competition import Competition

    return Competition.read(folder)


def _train(folder: Path) -> Cells:
    truth = _competition(folder).truth()["label"]
    return _columns(id=truth.ids, label=[truth.classes[i] for i in truth.labels])


def _sample(folder: Path) -> Cells:
    from toolkit.submissions.sample import read_sample

    frame = read_sample(_competition(folder)).frame
    return [list(frame.columns), *frame.to_numpy().tolist()]


def _checked(folder: Path) -> Cells:
    """A submission made elsewhere that has no problem, or is refused with its problems."""
    from toolkit.errors import SubmissionError
    from toolkit.submissions import csv_problems
    from toolkit.submissions.sample import check_file, read_sample

    competition = _competition(folder)
    problems = [p for p in check_file(folder / "mine.csv", read_sample(competition), competition) if p.severity == "error"]
    if problems:
        raise SubmissionError("mine.csv has problems", problems=problems)
    frame, _ = csv_problems.read(folder / "mine.csv")
    return [list(frame.columns), *frame.to_numpy().tolist()]


def _mine(folder: Path) -> None:
    workspace_in(folder)
    (folder / "mine.csv").write_text("id,label\ntest0,a\ntest1,b\ntest2,c\n")


def _split(folder: Path) -> None:
    from toolkit.workspace.split import Split

    folds = np.arange(len(IDS)) % 4
    Split(IDS, tuple(CLASSES[i % 3] for i in range(len(IDS))), ("",) * len(IDS), folds).write(folder / "split.csv")


def _read_split(folder: Path) -> Cells:
    from toolkit.workspace.split import Split

    split = Split.read(folder / "split.csv")
    return _columns(id=split.ids, label=split.labels, group=split.groups, fold=[str(fold) for fold in split.folds])


def _boxed(folder: Path) -> None:
    workspace_in(folder)
    rows = "".join(f"train{i},{i % 3},1,{8 - i % 2},9\n" for i in range(12))
    (folder / "boxes.csv").write_text("id,l,t,r,b\n" + rows)
    text = (folder / "competition.toml").read_text()
    (folder / "competition.toml").write_text(text + '[boxes.face]\ncolumns = ["l", "t", "r", "b"]\ntrain = "boxes.csv"\n')


def _boxes(folder: Path) -> Cells:
    """The boxes as the cells that say them; an empty one where the table has empty cells."""
    competition = _competition(folder)
    cells = competition._boxes_in("face", "train")
    told = {key: box for (key, _), box in cells.items()}
    rows = []
    for row in _reading(folder / "boxes.csv", ["id", "l", "t", "r", "b"]):
        box = told.get(row[0])
        same = box is not None and [float(cell) for cell in row[1:]] == [box.left, box.top, box.right, box.bottom]
        if same or row[0] not in told or not any(row[1:]):
            rows.append(row)
    return [["id", "l", "t", "r", "b"], *rows]


def _reading(path: Path, names: list[str]) -> Cells:
    """The rows of these columns, as the first parser of others has them that sees the columns; none if there is no such."""
    for cells in reference_cells(path):
        if cells and set(names) <= set(cells[0]):
            places = [cells[0].index(name) for name in names]
            return [[row[place] for place in places] for row in cells[1:] if len(row) > max(places)]
    return []


def _fixes(folder: Path) -> None:
    workspace_in(folder)
    (folder / "fixes.csv").write_text("id,given,suggested\ntrain0,a,b\ntrain1,b,c\n")
    text = (folder / "competition.toml").read_text()
    (folder / "competition.toml").write_text(text.replace("[test]", 'labels_fix = "fixes.csv"\n[test]', 1))


def _fixed(folder: Path) -> Cells:
    from toolkit.training.label_fixes import training_truth

    competition = _competition(folder)
    before, after = competition.truth()["label"], training_truth(competition)["label"]
    rows = _reading(folder / "fixes.csv", ["id", "given", "suggested"])
    wanted = {row[0]: row[2] for row in rows}
    labels = zip(before.ids, before.labels, after.labels, strict=True)
    right = all(after.classes[new] == wanted.get(name, before.classes[old]) for name, old, new in labels)
    return [["id", "given", "suggested"], *rows] if right else [["nothing"]]


def _mapped(folder: Path) -> None:
    (folder / "map.csv").write_text("from,to\ntabby,a\ntiger,a\ncollie,b\n*,\n")


def _class_map(folder: Path) -> Cells:
    from toolkit.models import class_map

    mapping = class_map.read(folder / "map.csv")
    return [["from", "to"], *map(list, mapping.items())]


def _outside(folder: Path) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(3), len(IDS)).round(6)
    p[:, 2] = 1 - p[:, 0] - p[:, 1]
    with (folder / "theirs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["id", *CLASSES], *([name, *map(repr, map(float, row))] for name, row in zip(IDS, p, strict=True))]
        )


def _read_outside(folder: Path) -> Cells:
    """The rows of the file whose numbers are those that were understood (rows are normalised, which is not looked at here)."""
    from toolkit.blending import outside_tables
    from toolkit.core.targets import Target

    table = outside_tables.read(folder / "theirs.csv", Target("label", "multiclass", CLASSES))
    for cells in reference_cells(folder / "theirs.csv"):
        if not cells or len(cells) != len(table) + 1:
            continue
        key = next((name for name in cells[0] if name.casefold() == "id"), cells[0][0])
        places = [cells[0].index(name) for name in (key, *CLASSES) if name in cells[0]]
        if len(places) < 4:
            continue
        try:
            numbers = np.array([[float(row[p]) for p in places[1:]] for row in cells[1:]])
        except (ValueError, IndexError):
            continue
        if tuple(row[places[0]] for row in cells[1:]) == table.ids and np.allclose(numbers, table.values, atol=2e-2):
            return cells
    return [["nothing"]]


table_kind("train.csv", "train.csv", workspace_in, _train)
table_kind("sample_submission.csv", "sample_submission.csv", workspace_in, _sample)
table_kind("submission of others", "mine.csv", _mine, _checked)
table_kind("split.csv", "split.csv", _split, _read_split)
table_kind("boxes", "boxes.csv", _boxed, _boxes)
table_kind("corrected labels", "fixes.csv", _fixes, _fixed)
table_kind("class map", "map.csv", _mapped, _class_map)
table_kind("CSV of others", "theirs.csv", _outside, _read_outside)


# --- documents -------------------------------------------------------------------------------------------------------


def document_kind(name: str, file: str, make: Callable[[Path], Any], same: Callable[[Path, Any], bool], **more: Any) -> None:
    """A kind of JSON or TOML: `same` reads it and compares what was understood with what another parser says."""

    def trial(folder: Path, seed: int) -> str:
        import tomlkit

        path, rng = folder / file, random.Random(f"{name}{seed}")
        toml = path.suffix == ".toml"
        if seed % 2:
            damage(path, seed // 2)
        else:
            raw = tomllib.loads(path.read_text()) if toml else json.loads(path.read_text())
            tree = mutated(rng, raw)
            try:
                text = tomlkit.dumps(tree) if toml else json.dumps(tree)  # type: ignore[arg-type]
                path.write_bytes(text.encode(rng.choice(ENCODINGS)))
            except Exception:  # noqa: BLE001 - what cannot be said is said in another way
                path.write_bytes(
                    rng.choice((b"[" * 100_000, b"x = " + b"[" * 60_000, b'{"a":' * 9999, b"9" * 10_000, b"\xff\xfe\0"))
                )

        def reference() -> Any:
            text = path.read_bytes().decode()
            return tomllib.loads(text) if toml else json.loads(text)

        return "same" if same(folder, reference) else "silently wrong"

    def prepare(folder: Path) -> None:
        make(folder)
        text = (folder / file).read_text()
        if not same(folder, lambda: tomllib.loads(text) if file.endswith("toml") else json.loads(text)):
            raise RuntimeError(f"{name}: the good file is not read as it should be")

    register(Kind(name, prepare, trial, ours=False, **more))


def _same_competition(folder: Path, reference: Any) -> bool:
    competition = _competition(folder)
    raw = reference()
    target = competition.targets[0]
    theirs = raw["targets"][target.name]
    return bool(
        competition.name == raw["name"]
        and competition.metric == raw["metric"]
        and len(competition.targets) == len(raw["targets"])
        and target.task == theirs["task"]
        and list(target.classes) == [str(name) for name in theirs.get("classes", [])]
        and target.column == (theirs.get("column") or target.name)
        and [competition.train.folder, competition.train.pattern] == [raw["train"]["images"], raw["train"]["pattern"]]
        and [competition.test.folder, competition.test.pattern] == [raw["test"]["images"], raw["test"]["pattern"]]
        and competition.id == raw.get("columns", {}).get("id", "id")
        and competition.sample == raw.get("submission", {}).get("sample", "sample_submission.csv")
        and competition.format == raw.get("submission", {}).get("format", "")
    )


def _blended(folder: Path) -> None:
    workspace_in(folder)
    record = {"members": {"m": 0.75, "n": 0.25}, "vote": "soft", "views": {}, "temperatures": {"m": 1.5, "n": 1.0},
              "adjustment": None}  # fmt: skip
    (folder / "blend.json").write_text(json.dumps({"schema": 2, "targets": {"label": record}}))


def _same_blend(folder: Path, reference: Any) -> bool:
    from toolkit.blending.oof import read_blends

    blend = read_blends(_competition(folder))["label"]
    record = reference()["targets"]["label"]
    warm = record.get("temperatures") or {}
    return (
        dict(zip(blend.members, blend.weights.tolist(), strict=True)) == {k: float(v) for k, v in record["members"].items()}
        and blend.vote == record.get("vote", "soft")
        and blend.warm.tolist() == [float(warm.get(name, 1.0)) for name in blend.members]
    )


def _space(folder: Path) -> None:
    (folder / "space.toml").write_text(
        'recipe = "timm_kfold"\nfolds = [0, 1]\n[search.lr]\nlow = 1e-4\nhigh = 1e-2\nlog = true\n'
        "[search.size]\nchoices = [32, 48]\n[fixed]\nepochs = 2\n"
    )


def _same_space(folder: Path, reference: Any) -> bool:
    from toolkit.training.search import Space

    space = Space.read(folder / "space.toml")
    raw = reference()
    return repr([space.recipe, dict(space.search), dict(space.fixed), list(space.folds)]) == repr(
        [raw["recipe"], raw["search"], raw.get("fixed", {}), raw.get("folds", [])]
    )


def _names(folder: Path) -> None:
    (folder / "names.json").write_text(json.dumps({"0": "cat", "1": "dog", "2": "owl"}))


def _same_names(folder: Path, reference: Any) -> bool:
    from toolkit.models import adopt

    names = adopt.class_names(str(folder / "names.json"), None)
    raw = reference()
    listed = [raw[key] for key in sorted(raw, key=int)] if isinstance(raw, dict) else raw
    return list(names) == [str(name).strip() for name in listed]


def _json_map(folder: Path) -> None:
    (folder / "map.json").write_text(json.dumps({"tabby": "a", "tiger": "a", "*": ""}))


def _same_map(folder: Path, reference: Any) -> bool:
    from toolkit.models import class_map

    return class_map.read(folder / "map.json") == reference()


document_kind("competition.toml", "competition.toml", workspace_in, _same_competition)
document_kind("blend.json", "blend.json", _blended, _same_blend)
document_kind("search space", "space.toml", _space, _same_space)
document_kind("class names", "names.json", _names, _same_names)
document_kind("class map as JSON", "map.json", _json_map, _same_map)


# --- arrays and Parquet ----------------------------------------------------------------------------------------------


def _arrays(folder: Path) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(3), len(IDS))
    np.savez(folder / "theirs.npz", ids=np.array(IDS), classes=np.array(CLASSES), probabilities=p)


def _parquet(folder: Path) -> None:
    import pandas as pd

    p = np.random.default_rng(0).dirichlet(np.ones(3), len(IDS))
    pd.DataFrame({"id": IDS} | {name: p[:, i] for i, name in enumerate(CLASSES)}).to_parquet(folder / "theirs.parquet")


def _npy(folder: Path) -> None:
    np.save(folder / "theirs.npy", np.random.default_rng(0).dirichlet(np.ones(3), len(IDS)))


def _read_as_others(file: str) -> Callable[[Path, int], str]:
    """Damage, or other arrays, under the file's name; then our reading against numpy's or pandas' own."""

    def trial(folder: Path, seed: int) -> str:
        from toolkit.blending import outside_tables
        from toolkit.core.targets import Target

        path, rng = folder / file, random.Random(seed)
        if seed % 3 or path.suffix != ".npz":
            damage(path, seed)
        else:
            arrays: dict[str, Any] = {
                "ids": np.array(IDS), "classes": np.array(CLASSES), "probabilities": np.full((24, 3), 1 / 3)
            }  # fmt: skip
            other = [np.array([odd(rng)], dtype=object), np.full((24, 3), np.nan), np.zeros((24, 4)), np.zeros(()),
                     np.zeros((0, 3)),
                     np.array(["a", "a", "b"]), np.full((24, 3), "x"), np.ones((24, 3), bool), np.zeros((24, 3), complex),
                     np.zeros((2, 2, 2)), np.arange(24), np.array([b"a", b"b", b"c"])]  # fmt: skip
            arrays[rng.choice(list(arrays))] = rng.choice(other)
            np.savez(path, **arrays)
        table = outside_tables.read(path, Target("label", "multiclass", CLASSES))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as saved:
                grid, ids = saved["probabilities"], saved["ids"]
        else:
            import pyarrow.parquet as pq

            frame = pq.read_table(path).replace_schema_metadata(None).to_pandas()  # pandas' own notes may be damaged too
            grid, ids = frame[list(CLASSES)].to_numpy(), frame["id"].to_numpy()
        shares = np.asarray(grid, np.float64) / np.asarray(grid, np.float64).sum(axis=1, keepdims=True)  # rows are normalised
        right = [str(name) for name in ids] == list(table.ids) and np.allclose(shares, table.values, atol=1e-9)
        return "same" if right else "silently wrong"

    return trial


register(Kind("npz of others", _arrays, _read_as_others("theirs.npz"), ours=False))
register(Kind("Parquet of others", _parquet, _read_as_others("theirs.parquet"), ours=False))
register(Kind("npy of others", _npy, _read_as_others("theirs.npy"), ours=False))
