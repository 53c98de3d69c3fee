"""Tables made elsewhere: every layout that says what it means is read alike, every other is refused with what was seen."""

from __future__ import annotations

import json
import os

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from toolkit.blending import outside_tables
from toolkit.blending.outside_tables import Reading, read
from toolkit.cli import cli
from toolkit.core.activations import sigmoid, softmax
from toolkit.core.targets import Target
from toolkit.errors import AlignmentError, CompetitionError, DataError
from toolkit.workspace.competition import Competition

CLASSES = ("ant", "bee", "cat")
TARGET = Target("label", "multiclass", CLASSES)
IDS = ("007", "10", "x 1", "9")
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (4, 3))
P = softmax(LOGITS)


def frame(columns=CLASSES, values=P, ids=IDS, key="id"):
    return pd.DataFrame(values, columns=list(columns)).assign(**{key: list(ids)})[[key, *columns]]


def csv(path, table):
    table.to_csv(path, index=False)
    return path


def parquet(path, table):
    table.to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", outside_tables.SUFFIXES)
def test_a_file_may_be_called_in_any_bytes(tmp_path, suffix):
    plain = tmp_path / f"theirs{suffix}"
    if suffix == ".npz":
        np.savez(plain, id=np.array(IDS), values=P, classes=np.array(CLASSES))
    else:
        {".csv": csv, ".parquet": parquet}[suffix](plain, frame())
    odd = plain.rename(tmp_path / os.fsdecode(b"theirs\xff" + suffix.encode()))
    np.testing.assert_allclose(read(odd, TARGET).align(IDS).values, P)


def npz(path, table, **more):
    names = [name for name in table.columns if name != "id"]
    np.savez(path, ids=np.array(table["id"]).astype(str), classes=np.array(names), oof=table[names].to_numpy(), **more)
    return path


LAYOUTS = {
    "classes as columns": frame(),
    "in another order": frame(("cat", "ant", "bee"), P[:, [2, 0, 1]]),
    "a prefix": frame(("prob_ant", "prob_bee", "prob_cat")),
    "a prefix and a suffix": frame(("p(ant)", "p(bee)", "p(cat)")),
    "the target before": frame(("label/ant", "label/bee", "label/cat")),
    "other columns beside": frame().assign(fold=[0, 1, 0, 1], label="ant"),
}


@pytest.mark.parametrize("save", [csv, parquet, npz], ids=["csv", "parquet", "npz"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_clear_layout_is_the_same_table(tmp_path, name, save):
    table = LAYOUTS[name]
    if save is npz:
        table = table.drop(columns=["fold", "label"], errors="ignore")
    found = read(save(tmp_path / f"t.{save.__name__}", table), TARGET)
    assert found.ids == IDS
    assert found.kind == "probabilities"
    np.testing.assert_allclose(found.values, P, atol=1e-15)


def test_the_id_column_is_the_competitions_or_one_called_so_or_the_one_named(tmp_path):
    for key, asked in (("image", "image"), ("ImageID", "id"), ("what", "id")):
        path = csv(tmp_path / "t.csv", frame(key=key))
        assert read(path, TARGET, key=asked).ids == IDS
    table = frame().assign(image_id="z")
    path = csv(tmp_path / "t.csv", table[["ant", "bee", "cat", "id", "image_id"]])
    assert read(path, TARGET, reading=Reading(id="id")).ids == IDS
    with pytest.raises(DataError, match="which column is the id") as caught:
        read(path, TARGET, key="nothing")
    assert caught.value.code == "id-column"
    frame().to_csv(path)  # with pandas' index in front
    assert read(path, TARGET).ids == IDS


def test_names_are_mapped_as_one_says(tmp_path):
    path = csv(tmp_path / "t.csv", frame(("p0", "p1", "p2")))
    with pytest.raises(AlignmentError, match="no column for class 'ant', 'bee', 'cat'") as caught:
        read(path, TARGET)
    assert caught.value.code == "class-columns"
    names = {"p0": "bee", "p1": "ant", "p2": "cat"}
    np.testing.assert_allclose(read(path, TARGET, reading=Reading(names)).values, P[:, [1, 0, 2]])
    with pytest.raises(DataError, match="several columns stand for 'ant'"):
        read(path, TARGET, reading=Reading({"p0": "ant", "p1": "ant"}))


def test_labels_are_labels_whatever_they_are_called(tmp_path):
    wanted = [2, 0, 1, 0]
    table = pd.DataFrame({"id": IDS, "label": [CLASSES[i] for i in wanted]})
    for save, suffix in ((csv, "csv"), (parquet, "parquet")):
        found = read(save(tmp_path / f"t.{suffix}", table), TARGET)
        assert found.kind == "labels"
        assert found.labels.tolist() == wanted
    numbers = csv(tmp_path / "n.csv", pd.DataFrame({"id": IDS, "answer": wanted}))
    with pytest.raises(AlignmentError, match="no class"):
        read(numbers, TARGET)
    assert read(numbers, TARGET, reading=Reading({"0": "ant", "1": "bee", "2": "cat"})).labels.tolist() == wanted
    np.savez(tmp_path / "l.npz", ids=np.array(IDS), labels=np.array([CLASSES[i] for i in wanted]))
    assert read(tmp_path / "l.npz", TARGET).labels.tolist() == wanted


def test_one_column_of_two_classes_is_the_positive_ones(tmp_path):
    target = Target("ill", "binary", ("no", "yes"), positive="yes")
    p = np.array([0.1, 0.9, 0.5, 1.0])
    for name in ("ill", "yes", "probability"):
        found = read(csv(tmp_path / "t.csv", pd.DataFrame({"id": IDS, name: p})), target)
        np.testing.assert_allclose(found.values, np.stack([1 - p, p], axis=1))
    other = Target("ill", "binary", ("no", "yes"), positive="no")
    found = read(csv(tmp_path / "t.csv", pd.DataFrame({"id": IDS, "ill": p})), other)
    np.testing.assert_allclose(found.values[:, 0], p)
    raw = csv(tmp_path / "t.csv", pd.DataFrame({"id": IDS, "ill": [-800.0, 0.0, 2.0, 800.0]}))
    with pytest.raises(DataError, match="does not hold probabilities"):
        read(raw, target)
    found = read(raw, target, reading=Reading(logits=True))
    np.testing.assert_allclose(found.values[:, 1], [0, 0.5, 1 / (1 + np.exp(-2)), 1])


def test_multilabel_values_and_logits(tmp_path):
    target = Target("label", "multilabel", CLASSES)
    np.testing.assert_allclose(read(csv(tmp_path / "t.csv", frame(values=sigmoid(LOGITS))), target).values, sigmoid(LOGITS))
    with pytest.raises(DataError, match="values lie between"):
        read(csv(tmp_path / "t.csv", frame(values=LOGITS)), target)
    found = read(tmp_path / "t.csv", target, reading=Reading(logits=True))
    np.testing.assert_allclose(found.values, sigmoid(LOGITS))


def test_logits_are_refused_with_their_row_sums_until_they_are_called_so(tmp_path):
    path = csv(tmp_path / "t.csv", frame(values=LOGITS))
    with pytest.raises(DataError) as caught:
        read(path, TARGET)
    sums = LOGITS.sum(axis=1)
    assert f"rows sum to {sums.min():.4g} to {sums.max():.4g}" in caught.value.message
    assert caught.value.code == "logits"
    np.testing.assert_allclose(read(path, TARGET, reading=Reading(logits=True)).values, P, atol=1e-12)
    # a table beside it that holds probabilities stays what it is
    np.testing.assert_allclose(read(csv(tmp_path / "p.csv", frame()), TARGET, reading=Reading(logits=True)).values, P)


def test_percent_is_taken_as_what_it_is_and_never_for_logits(tmp_path):
    for decimals in (8, 2):
        path = csv(tmp_path / "t.csv", frame(values=(100 * P).round(decimals)))
        np.testing.assert_allclose(read(path, TARGET).values, P, atol=2 * 10.0 ** -(decimals + 2))
        with pytest.raises(DataError, match="does not hold logits but percent"):
            read(path, TARGET, reading=Reading(logits=True))
    with pytest.raises(DataError, match="rows sum to 255 to 255"):
        read(csv(tmp_path / "t.csv", frame(values=255 * P)), TARGET)
    ids = [*IDS, *"abcd"]
    each = csv(tmp_path / "t.csv", frame(values=sigmoid(np.concatenate([LOGITS, -LOGITS])), ids=ids))
    with pytest.raises(DataError, match="does not hold logits but probabilities of each class by itself"):
        read(each, TARGET, reading=Reading(logits=True))
    logs = csv(tmp_path / "t.csv", frame(values=np.log(P)))
    np.testing.assert_allclose(read(logs, TARGET, reading=Reading(logits=True)).values, P, atol=1e-12)


def test_rounded_probabilities_are_normalised_and_others_refused(tmp_path):
    found = read(csv(tmp_path / "t.csv", frame(values=P.round(2))), TARGET).values
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-15)
    np.testing.assert_allclose(found, P, atol=0.02)
    with pytest.raises(DataError, match=r"rows sum to 0\.5"):
        read(csv(tmp_path / "t.csv", frame(values=P / 2)), TARGET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(bee=[0.1, np.nan, 0.2, 0.3]), "1 of 4 rows have NaN or infinite values .ids '10'"),
        (lambda t: t.assign(bee=["0.1", "many", "0.2", "0.3"]), "column 'bee' has 1 cell that are no numbers: 'many'"),
        (lambda t: t.drop(columns="cat"), "no column for class 'cat'"),
        (lambda t: t.rename(columns=lambda n: n if n == "id" else f"p_{n}").assign(p_dog=0.0), "not known: 'p_dog'"),
        (
            lambda t: t.rename(columns={n: f"a_{n}" for n in CLASSES}).join(t[list(CLASSES)].add_prefix("b_")),
            "may be class 'ant'",
        ),
        (lambda t: t.assign(id=["1", "1", "2", "3"]), "repeat: '1'"),
    ],
)
def test_what_is_unclear_is_refused_with_the_file_and_the_place(tmp_path, change, message):
    with pytest.raises(DataError, match=message) as caught:
        read(csv(tmp_path / "theirs.csv", change(frame())), TARGET)
    assert "theirs.csv" in caught.value.message


def test_arrays_must_say_ids_and_classes(tmp_path):
    path = tmp_path / "t.npz"
    np.savez(path, oof=P)
    with pytest.raises(DataError, match="does not say the ids"):
        read(path, TARGET)
    np.savez(path, ids=np.array(IDS), oof=P)
    with pytest.raises(DataError, match="no `classes` name them"):
        read(path, TARGET)
    np.savez(path, ids=np.array(IDS[:2]), classes=np.array(CLASSES), oof=P)
    with pytest.raises(DataError, match="2 ids and 4 rows"):
        read(path, TARGET)
    np.savez(path, ids=np.array(IDS, dtype=object), classes=np.array(CLASSES), oof=P)
    with pytest.raises(DataError, match="cannot be read"):
        read(path, TARGET)
    for name in ("t.npy", "t.parquet", "gone.csv"):
        (tmp_path / "t.npy").write_bytes(b"?")
        (tmp_path / "t.parquet").write_bytes(b"?")
        with pytest.raises(DataError, match=name):
            read(tmp_path / name, TARGET)


def test_members_are_called_as_their_files_or_as_one_says(tmp_path):
    found = outside_tables.named(["a_oof.csv", "dir/test_b.npz", "c_test.parquet", "vit=x/y_oof.csv"])
    assert list(found) == ["a", "b", "c_test", "vit"]
    assert str(found["vit"]) == "x/y_oof.csv"
    with pytest.raises(DataError, match="two tables are called 'a'"):
        outside_tables.named(["a_oof.csv", "a_test.csv"])
    odd = tmp_path / "a=b.csv"
    odd.write_text("")
    assert outside_tables.named([str(odd)]) == {"a=b": odd}


def test_a_table_of_labels_makes_a_competition(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.csv"
    path.write_text("image,label,who\n1,10,a\n2,9,a\n3,2,b\n")
    found = outside_tables.competition_of(None, truth=path, metric="log_loss", group="who")
    assert (found.id, found.metric, found.group, found.root) == ("image", "log_loss", "who", tmp_path)
    assert found.targets[0].classes == ("2", "9", "10")
    assert found.truth()["label"].decided.tolist() == [2, 1, 0]
    path.write_text("id,cat,dog\n1,0,1\n2,1,1\n")
    found = outside_tables.competition_of(None, truth=path, metric="log_loss", label="cat,dog")
    assert found.targets[0].multilabel
    with pytest.raises(CompetitionError, match="which column is the label"):
        outside_tables.competition_of(None, truth=path, metric="log_loss")
    with pytest.raises(CompetitionError, match="how predictions are scored"):
        outside_tables.competition_of(None, truth=path, label="cat")
    with pytest.raises(CompetitionError, match="no table of true labels that has it"):
        outside_tables.competition_of(None, label="cat")


def run(*arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.fixture
def two(workspace):
    """Two tables made elsewhere that fit the workspace's training rows."""
    truth = Competition.read(workspace).truth()["label"]
    for seed, save, name in ((1, csv, "a_oof.csv"), (2, npz, "b.npz")):
        logits = np.random.default_rng(seed).normal(0, 1, (len(truth), 3)) + 3 * np.eye(3)[truth.decided]
        save(workspace / name, frame(values=softmax(logits), ids=truth.ids).sample(frac=1, random_state=seed))
    return workspace


def spoiled(root, change, name="bad.csv"):
    return csv(root / name, change(pd.read_csv(root / "a_oof.csv", dtype={"id": str})))


BAD = {
    "other ids": (lambda t: t.assign(id="x" + t["id"]), [], "cover different rows"),
    "some ids": (lambda t: t[4:], [], "4 ids are in one of them only"),
    "no shared ids": (lambda t: t.assign(id="x" + t["id"]), ["--fit-on", "common"], "share no ids"),
    "other classes": (lambda t: t.rename(columns={"cat": "dog"}), [], "no column for class 'cat'"),
    "NaN rows": (lambda t: t.assign(ant=np.nan), [], "24 of 24 rows have NaN"),
    "logits": (lambda t: t.assign(ant=t["ant"] * 9 - 4), [], "rows sum to"),
    "labels": (lambda t: t.assign(label="ant")[["id", "label"]], [], "holds labels"),
}


@pytest.mark.parametrize("name", BAD)
def test_blend_refuses_with_a_sentence_and_exit_code_1(two, name):
    change, more, message = BAD[name]
    result = run("blend", two / "b.npz", spoiled(two, change), *more)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (two / "blend.json").exists()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda name: str(int(name)), "zeros in front"),
        (lambda name: f"{int(name)}.0", "decimal point"),
        (lambda name: f"{name}.jpg", "an image suffix"),
    ],
)
def test_ids_in_another_spelling_are_named_and_no_rows_are_to_be_dropped(two, other, words):
    bad = spoiled(two, lambda table: table.assign(id=table["id"].map(other)))
    result = run("blend", two / "b.npz", bad)
    assert result.exit_code == 1
    assert words in result.output
    assert "--fit-on" not in result.output
    result = run("blend", two / "b.npz", spoiled(two, lambda table: table.assign(id="x" + table["id"])))
    assert "--fit-on common" in result.output  # where rows really differ


@pytest.mark.parametrize("command", ["blend", "score", "diagnose"])
def test_an_encoding_that_bytes_do_not_say_is_asked_for_and_named(two, command):
    """Of tables and of the truth beside them; a mark between cells likewise."""
    plain = two / "a_oof.csv"
    text = plain.read_text().replace("id,", "größe,id,", 1).replace("\n", "\nétagère,", len(plain.read_text().splitlines()) - 1)
    plain.write_bytes(text.encode("cp1252"))
    truth = two / "truth.csv"
    truth.write_bytes((two / "train.csv").read_text().replace("ant", "fourmi-é").replace("id,", "id,", 1).encode("cp1252"))
    result = run(command, plain)
    assert result.exit_code == 1
    assert "a_oof.csv is not UTF-8" in result.output
    assert "--encoding cp949" in result.output
    assert run(command, plain, "--encoding", "cp1252").exit_code == 0
    plain.write_bytes(text.replace("ant", "fourmi-é", 1).encode("cp1252"))
    words = [command, plain, "--truth", truth, "--metric", "accuracy"]
    assert run(*words).exit_code == 1
    result = run(*words, "--encoding", "cp1252")
    assert result.exit_code == 0, result.output
    plain.write_text(text.replace(",", "^", 10**6), encoding="utf-8")
    assert run(command, plain).exit_code == 1
    assert run(command, plain, "--delimiter", "^").exit_code == 0


def test_blend_takes_them_in_a_workspace_and_outside(two, tmp_path, monkeypatch):
    result = run("blend", two / "a_oof.csv", two / "b.npz", "--json")
    assert result.exit_code == 0, result.output
    inside = json.loads(result.output)
    assert list(inside["targets"]["label"]["members"]) == ["a", "b"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (two / "split.csv").unlink()
    result = run("blend", two / "a_oof.csv", two / "b.npz", "--truth", two / "train.csv", "--metric", "accuracy", "--json")
    assert result.exit_code == 0, result.output
    outside = json.loads((elsewhere / "blend.json").read_text())["targets"]["label"]
    assert outside["estimates"]["uniform"]["score"] == inside["targets"]["label"]["estimates"]["uniform"]["score"]


def test_a_damaged_npz_is_read_as_it_was_or_refused_by_name(tmp_path):
    path = tmp_path / "t.npz"
    p = np.random.default_rng(0).dirichlet(np.ones(len(CLASSES)), len(IDS))
    np.savez(path, ids=np.array(IDS), classes=np.array(CLASSES), probabilities=p)
    good, rng, refused = path.read_bytes(), np.random.default_rng(1), 0
    damaged = [b"", good[:40], good[: len(good) // 2], b"\x93NUMPY" + good]
    for _ in range(300):
        data = bytearray(good)
        for place in rng.integers(len(good), size=int(rng.choice([1, 1, 8]))):
            data[place] = rng.integers(256)
        damaged.append(bytes(data))
    for data in damaged:
        path.write_bytes(data)
        try:
            table = read(path, TARGET)
        except DataError as error:
            refused += str(path) in error.message
        else:  # zip has sums of what it holds; names and dates of members are what is left
            assert np.allclose(table.values, p, atol=1e-12)
    assert refused > 200
    bomb = np.zeros((2**20, 3))
    np.savez(path, ids=np.array(IDS), probabilities=bomb, classes=np.zeros((2, 2, 2)))
    with pytest.raises(DataError, match="no columns"):
        read(path, TARGET)
