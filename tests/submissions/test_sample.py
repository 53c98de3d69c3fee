"""The gate: files compared with the sample, no alarm on files of other writers, other graders' rules, predictions rendered."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.submissions.cases import (
    ANIMAL,
    DEFECTS,
    IDS,
    JOINT,
    NAMED,
    SICK,
    TAGS,
    VALID,
    L,
    competition,
    found,
    hard,
    soft,
    table,
)
from toolkit.base import files
from toolkit.base.text import arrow_csv
from toolkit.core.predictions import Predictions
from toolkit.core.targets import Target
from toolkit.errors import AlignmentError, SubmissionError
from toolkit.submissions import checks
from toolkit.submissions.form.formats import FORMATS
from toolkit.submissions.form.layout import infer_format
from toolkit.submissions.sample import as_format, check, check_file, render

DATA = Path(__file__).parents[1] / "data" / "valid"  # written by R's write.csv and by polars: see make.R and make_polars.py
WRITTEN = sorted(DATA.glob("*.csv"))


@pytest.mark.parametrize("case", VALID)
def test_a_valid_file_has_no_problem_and_its_format_is_inferred(case, tmp_path):
    rules, sample, good = VALID[case]
    assert infer_format(table(sample), rules) == NAMED.get(case, case)
    assert found(case, good, tmp_path) == ()


WRITERS = {
    "pandas": lambda f: f.to_csv(index=False).encode(),
    "all quoted, as R's write.csv(row.names = FALSE)": lambda f: f.to_csv(index=False, quoting=1).encode(),
    "Excel-style": lambda f: f.to_csv(index=False, lineterminator="\r\n").encode(),
    "no newline at the end": lambda f: f.to_csv(index=False).encode().rstrip(b"\n"),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("case", VALID)
def test_no_writer_of_valid_files_raises_an_alarm(case, writer, tmp_path):
    assert not checks.errors(found(case, WRITERS[writer](table(VALID[case][2])), tmp_path))


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_files_of_r_and_polars_raise_no_alarm(path):
    case = path.name.split(".")[0].replace("-", " ")
    rules, sample, _ = VALID[case]
    form = NAMED.get(case, case)
    problems = check_file(path, as_format(table(sample), rules, rules.format or form), rules)
    assert problems == ()


def test_every_format_was_written_by_both():
    for writer in ("r", "polars"):
        cases = {path.name.split(".")[0].replace("-", " ") for path in WRITTEN if path.name.split(".")[1] == writer}
        assert {NAMED.get(case, case) for case in cases} == set(FORMATS)
    assert len(WRITTEN) >= 30


EXCEL = {
    "CSV UTF-8": (lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(), {"SUB002", "SUB006"}),
    "CSV (MS-DOS)": (lambda text: text.replace("\n", "\r\n").encode(), {"SUB006"}),
    "German": (lambda text: text.replace(",", ";").replace("\n", "\r\n").encode(), {"SUB004", "SUB006"}),
    "Unicode text": (
        lambda text: text.replace(",", "\t").replace("\n", "\r\n").encode("utf-16"),
        {"SUB003", "SUB004", "SUB006"},
    ),
}


@pytest.mark.parametrize("kind", EXCEL)
def test_what_excel_saves_is_told_apart(kind, tmp_path):
    write, codes = EXCEL[kind]
    assert {problem.code for problem in found("labels", write(VALID["labels"][2]), tmp_path)} == codes


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_found_with_its_code_and_no_other(defect, tmp_path):
    case, raw, codes = DEFECTS[defect]
    problems = found(case, raw, tmp_path)
    assert {problem.code for problem in problems} == codes
    assert all("\n" not in str(p) and str(p).startswith(f"{p.code} {p.severity}: ") for p in problems)


def test_there_are_enough_defects():
    assert len(DEFECTS) >= 40
    planted = set().union(*(codes for _, _, codes in DEFECTS.values()))
    form = {code for code in checks.CODES if code < "SUB060"} - {"SUB036", "SUB043"}  # these two have tests of their own
    assert form <= planted


def test_cp949_files_are_checked_in_spite_of_their_encoding(tmp_path):
    rules = competition(Target("kind", "multiclass", ("고양이", "개")))
    path = tmp_path / "theirs.csv"
    path.write_bytes("id,kind\n1,고양이\n2,닭\n".encode("cp949"))
    problems = check_file(path, as_format(table("id,kind\n1,개\n2,개\n"), rules, "labels"), rules)
    assert [p.code for p in problems] == ["SUB003", "SUB040"]
    assert "닭" in str(problems[1])


def test_several_defects_are_reported_together(tmp_path):
    raw = (
        b"\xef\xbb\xbf"
        + b",id;eel;cat;Dog;note\n".replace(b",", b"")
        + (b"3;nan;0.5;0.5;x\n010;2;0;0;x\n010;1;;0;x\n77;0.2;0.2;0.2;x\n")
    )
    problems = found("probabilities", raw, tmp_path)
    expected = {
        "SUB002",
        "SUB004",
        "SUB011",
        "SUB015",
        "SUB020",
        "SUB021",
        "SUB022",
        "SUB024",
        "SUB030",
        "SUB031",
        "SUB034",
        "SUB035",
    }
    assert {p.code for p in problems} == expected
    assert [p.code for p in problems] == sorted(p.code for p in problems)


def test_a_problem_says_where(tmp_path):
    (problem,) = found("labels", L.replace("eel", "emu"), tmp_path)
    text = str(problem)
    assert "column 'animal'" in text
    assert "line 3" in text
    assert "'010'" in text
    assert "'emu'" in text
    extra = found("labels", L + "".join(f"{i},cat\n" for i in range(900, 905)), tmp_path)
    assert "ids '900', '901', '902' and 2 more" in str(extra[0])
    assert "5" in str(extra[0])


def test_lines_are_those_of_the_file_even_after_a_broken_one(tmp_path):
    raw = "id,animal\n003,cat,9\n010,emu\n001,dog\n"
    problems = {p.code: p for p in found("labels", raw, tmp_path)}
    assert problems["SUB007"].line == 2
    assert problems["SUB040"].line == 3


def test_a_class_never_predicted_is_a_warning():
    ids = [str(i) for i in range(60)]
    frame = pd.DataFrame({"id": ids, "animal": ["cat", "dog"] * 30}, dtype="str")
    (problem,) = check(frame, as_format(frame.assign(animal="cat"), competition(ANIMAL), "labels"), competition(ANIMAL))
    assert (problem.code, problem.severity) == ("SUB043", "warning")
    assert "'eel'" in str(problem)


def test_a_flag_that_no_row_has_is_not_worth_a_warning():
    frame = pd.DataFrame({"id": [str(i) for i in range(60)], **dict.fromkeys(TAGS.classes, "0")}, dtype="str")
    frame.loc[3, "red"] = "1"
    assert check(frame, as_format(frame.assign(red="0"), competition(TAGS), "flags"), competition(TAGS)) == ()


# MLE-bench's graders of image classification (their rule → a file that breaks it → the code that says so before it is sent)
DOGS = competition(Target("breed", "multiclass", ("beagle", "boxer", "pug")), metric="log_loss")
HEALTH = competition(Target("diagnosis", "multiclass", tuple("01234")))
CANCER = competition(Target("label", "binary", ("0", "1"), positive="1"), metric="roc_auc")
LEAVES = competition(Target("labels", "multilabel", ("healthy", "rust", "scab")))
HOTELS = competition(Target("hotel_id", "multiclass", ("11", "22", "33")), form="topk:2")
D, H, C = "id,beagle,boxer,pug\n1,1,0,0\n2,0,1,0\n", "id,diagnosis\na,0\nb,0\n", "id,label\na,0\nb,0\n"
LE, HO = "id,labels\na,healthy\nb,rust scab\n", "id,hotel_id\na,11 22\nb,11 22\n"
RULES = {
    "dog-breed: a column for every breed": (DOGS, D, "id,beagle,boxer\n1,.5,.5\n2,.5,.5\n", "SUB010"),
    "dog-breed: an id column": (DOGS, D, "beagle,boxer,pug\n1,0,0\n0,1,0\n", "SUB010"),
    "dog-breed: as many rows": (DOGS, D, "id,beagle,boxer,pug\n1,1,0,0\n", "SUB020"),
    "dog-breed: rows sum to 1": (DOGS, D, "id,beagle,boxer,pug\n1,1,1,0\n2,0,1,0\n", "SUB035"),
    "dog-breed: sums exact to 1e-5": (DOGS, D, "id,beagle,boxer,pug\n1,.9999,0,0\n2,0,1,0\n", "SUB037"),
    "dog-breed: between 0 and 1": (DOGS, D, "id,beagle,boxer,pug\n1,2,-1,0\n2,0,1,0\n", "SUB034"),
    "leaf: no other columns": (DOGS, D, "id,beagle,boxer,pug,x\n1,1,0,0,5\n2,0,1,0,5\n", "SUB011"),
    "aptos2019: the target's column": (HEALTH, H, "id,label\na,0\nb,1\n", "SUB010"),
    "aptos2019: not empty": (HEALTH, H, "id,diagnosis\n", "SUB020"),
    "aptos2019: the same ids": (HEALTH, H, "id,diagnosis\na,0\nc,1\n", "SUB021"),
    "aptos2019: whole numbers": (HEALTH, H, "id,diagnosis\na,0.0\nb,1.0\n", "SUB041"),
    "histopathologic: no NaN": (CANCER, C, "id,label\na,0.1\nb,nan\n", "SUB031"),
    "histopathologic: numbers": (CANCER, C, "id,label\na,0.1\nb,yes\n", "SUB033"),
    "histopathologic: each id once": (CANCER, C, "id,label\na,0.1\na,0.2\n", "SUB022"),
    "plant-pathology-2020: the same columns": (DOGS, D, "id,Beagle,boxer,pug\n1,1,0,0\n2,0,1,0\n", "SUB015"),
    "plant-pathology-2021: known labels": (LEAVES, LE, "id,labels\na,mildew\nb,rust\n", "SUB040"),
    "plant-pathology-2021: matching ids": (LEAVES, LE, "id,labels\na.jpg,rust\nb.jpg,rust\n", "SUB027"),
    "hotel-id: at most k labels count": (HOTELS, HO, "id,hotel_id\na,11 22 33\nb,11 22\n", "SUB050"),
    "hotel-id: as many rows as answers": (HOTELS, HO, "id,hotel_id\na,11 22\nb,22 11\nb,22 33\n", "SUB022"),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_rules_of_other_graders_have_a_code(rule, tmp_path):
    rules, sample, raw, code = RULES[rule]
    path = tmp_path / "theirs.csv"
    path.write_text(raw)
    form = infer_format(table(sample), rules)
    assert code in {problem.code for problem in check_file(path, as_format(table(sample), rules, form), rules)}
    path.write_text(sample)
    assert not checks.errors(check_file(path, as_format(table(sample), rules, form), rules))


def rendered(rules, sample, *tables):
    sample = table(sample)
    form = infer_format(sample, rules)
    frame = render({t.target: t for t in tables}, as_format(sample, rules, form))
    assert checks.errors(check(frame, as_format(sample, rules, form), rules)) == []
    return frame


def test_rows_are_joined_by_id_and_classes_by_name():
    shuffled = soft(ANIMAL, classes=("eel", "dog", "cat"))
    frame = rendered(VALID["probabilities"][0], "id,dog,eel,cat\n001,0,0,1\n003,0,0,1\n", shuffled)
    assert list(frame.columns) == ["id", "dog", "eel", "cat"]
    assert list(frame["id"]) == ["001", "003"]
    expected = shuffled.values[[2, 0]][:, [1, 0, 2]].astype(np.float32)
    assert (frame[["dog", "eel", "cat"]].astype("float64").to_numpy().astype(np.float32) == expected).all()


def test_labels_of_a_joint_target_are_taken_apart():
    p = soft(JOINT)
    frame = rendered(competition(JOINT), "id,age,mask\n" + "".join(f"{i},old,on\n" for i in IDS), p)
    whole = rendered(competition(JOINT), "id,answer\n" + "".join(f"{i},on_old\n" for i in IDS), p)
    assert list(frame["mask"] + "_" + frame["age"]) == list(whole["answer"])
    assert list(whole["answer"]) == [JOINT.classes[i] for i in p.values.argmax(axis=1)]


def test_topk_of_a_factor_ranks_its_marginal():
    ids = tuple(map(str, range(100)))
    p = soft(JOINT, ids=ids)
    sample = table("id,age\n" + "".join(f"{i},old mid\n" for i in ids))
    frame = render({"kind": p}, as_format(sample, competition(JOINT), "topk"))
    marginal = p.values.reshape(-1, 2, 3).sum(axis=1)
    assert list(frame["age"]) == [" ".join(np.array(JOINT.factors["age"])[np.argsort(-row)[:2]]) for row in marginal]


def test_the_positive_class_is_the_one_submitted():
    pet = Target("pet", "binary", ("cat", "dog"), positive="cat")
    p = soft(pet)
    frame = rendered(competition(pet, metric="roc_auc"), "id,pet\n" + "".join(f"{i},0.5\n" for i in IDS), p)
    assert (frame["pet"].astype("float64").to_numpy().astype(np.float32) == p.values[:, 0].astype(np.float32)).all()


def test_multilabel_names_and_flags():
    p = soft(TAGS)
    names = rendered(competition(TAGS), "id,tags\n" + "".join(f"{i},red\n" for i in IDS), p)
    flags = rendered(competition(TAGS), "id,wet,red,big\n" + "".join(f"{i},0,0,0\n" for i in IDS), p)
    for row, i in enumerate(IDS):
        expected = {name for name, value in zip(TAGS.classes, p.values[row], strict=True) if value >= 0.5}
        assert set(names["tags"][row].split()) == expected, i
        assert {name for name in TAGS.classes if flags[name][row] == "1"} == expected


def test_hard_votes_give_labels_but_no_numbers():
    frame = rendered(competition(ANIMAL), "id,animal\n" + "".join(f"{i},cat\n" for i in IDS), hard(ANIMAL, [0, 1, 2, 1, 0]))
    assert list(frame["animal"]) == ["cat", "dog", "eel", "dog", "cat"]
    for form, sample in (("probabilities", "id,eel,cat,dog\n003,0,0,1\n"), ("topk:2", "id,animal\n003,cat\n")):
        with pytest.raises(SubmissionError) as caught:
            render({"animal": hard(ANIMAL, [0, 1, 2, 1, 0])}, as_format(table(sample), competition(ANIMAL), form))
        assert caught.value.code == "vote-soft"


def test_missing_targets_and_other_classes_are_refused():
    sample = table(VALID["labels"][1])
    with pytest.raises(SubmissionError, match="no target 'animal'"):
        render({"sick": soft(SICK)}, as_format(sample, competition(ANIMAL), "labels"))
    with pytest.raises(AlignmentError, match="emu"):
        render({"animal": soft(ANIMAL, classes=("cat", "dog", "emu"))}, as_format(sample, competition(ANIMAL), "labels"))


def test_ids_without_predictions_are_left_for_the_check():
    sample = table("id,animal\n003,cat\n7,cat\n010,cat\n")
    frame = render({"animal": soft(ANIMAL)}, as_format(sample, competition(ANIMAL), "labels"))
    assert list(frame["id"]) == ["003", "010"]
    (problem,) = check(frame, as_format(sample, competition(ANIMAL), "labels"), competition(ANIMAL))
    assert (problem.code, problem.ids) == ("SUB020", ("7",))


def test_float32_text_reads_back_to_the_same_bits_and_is_shortest():
    rng = np.random.default_rng(1)
    bits = rng.integers(0, np.float32(1).view(np.uint32), 20_000, dtype=np.uint32, endpoint=True)
    numbers = np.concatenate(
        [bits.view(np.float32), np.float32([0, 1, 1 / 3, 1e-45, 0.1]), rng.random(20_000, dtype=np.float32)]
    )
    ids = tuple(map(str, range(len(numbers))))
    wide = numbers.astype(np.float64)
    p = Predictions("sick", "probabilities", ids, ("0", "1"), np.stack([1 - wide, wide], axis=1))
    sample = pd.DataFrame({"id": ids, "sick": "0"}, dtype="str")
    frame = render({"sick": p}, as_format(sample, competition(SICK, metric="roc_auc"), "probability"))
    back = np.array([float(cell) for cell in frame["sick"]])
    assert (back.astype(np.float32).view(np.uint32) == numbers.view(np.uint32)).all()
    digits = frame["sick"].str.replace(r"e.*|\.|-", "", regex=True).str.strip("0").str.len()
    shortest = [len(np.format_float_scientific(x, trim="-").split("e")[0].replace(".", "")) for x in numbers]
    assert (digits.to_numpy() <= np.array(shortest)).all()


@pytest.mark.parametrize("form", ["probabilities", "long", "joined"])
@pytest.mark.parametrize("count", [2, 18, 700])
def test_written_rows_sum_to_one_whatever_the_tables_rounding(form, count):
    """Read as float64, as graders do: of softmax, of others' tables rounded to four digits, of values far below float32."""
    rng = np.random.default_rng(count)
    target = Target("kind", "multiclass", tuple(f"k{i:03d}" for i in range(count)))
    values = rng.dirichlet(np.full(count, 0.2), 40)
    values[10:20] = values[10:20].astype(np.float32)
    values[20:30] *= 1 + rng.uniform(-9e-5, 9e-5, (10, 1))
    values[30] = np.eye(count)[1]
    values[31] = np.where(np.arange(count) == 1, 1, 1e-25)
    values[32, :2] = values[32, :2].mean()
    ids = tuple(map(str, range(40)))
    p = Predictions("kind", "probabilities", ids, target.classes, values)
    rows = {
        "probabilities": pd.DataFrame({"id": ids} | dict.fromkeys(target.classes, "0"), dtype="str"),
        "long": pd.DataFrame([(i, k, "0") for i in ids for k in target.classes], columns=["id", "class", "p"], dtype="str"),
        "joined": pd.DataFrame([(f"{i}_{k}", "0") for i in ids for k in target.classes], columns=["id", "p"], dtype="str"),
    }
    sample = as_format(rows[form], competition(target, metric="log_loss"), form)
    names = list(target.classes) if form == "probabilities" else ["p"]
    read, before = (
        render({"kind": p}, sample.written_by(writer))[names].astype("float64").to_numpy().reshape(40, count)
        for writer in (2, 1)
    )
    assert np.abs(read.sum(axis=1) - 1).max() < 1e-9 < np.abs(before.sum(axis=1) - 1).max()
    exact = values / values.sum(axis=1, keepdims=True)
    assert np.abs(read / np.maximum(exact, 1e-300) - 1)[exact > 0].max() < 6e-10
    assert (read.argmax(axis=1) == values.argmax(axis=1)).all()
    assert read[32, 0] == read[32, 1]
    for row in range(40):  # nothing that float32 tells apart becomes equal, and no order is turned
        single = np.unique(exact[row].astype(np.float32))
        assert len(np.unique(read[row])) >= len(single)
        assert (np.diff(read[row][np.argsort(exact[row], kind="stable")]) >= 0).all()


def test_minus_zero_is_written_as_zero():
    p = Predictions("sick", "probabilities", ("1",), ("0", "1"), np.array([[1.0, -0.0]]))
    frame = render({"sick": p}, as_format(table("id,sick\n1,0\n"), competition(SICK, metric="roc_auc"), "probability"))
    assert frame["sick"][0] == "0"


names = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r", exclude_categories=("Cs", "Cc")), min_size=1, max_size=6
)
worlds = st.fixed_dictionaries({
    "ids": st.lists(names.filter(str.strip), min_size=1, max_size=8, unique=True),
    "classes": st.lists(names, min_size=2, max_size=4, unique_by=lambda n: n.strip().casefold()),
    "seed": st.integers(0, 99),
    "form": st.sampled_from(["labels", "probabilities", "long", "joined", "topk:2"]),
})  # fmt: skip


def asked(form, ids, classes):
    """A sample that asks for a form, classes in reverse."""
    if form == "long":
        pairs = [(name, kind) for name in ids for kind in classes[::-1]]
        return pd.DataFrame({"id": [p[0] for p in pairs], "kind": [p[1] for p in pairs], "y": "0"}, dtype="str")
    if form == "joined":
        return pd.DataFrame({"id": [f"{name}_{kind}" for name in ids for kind in classes[::-1]], "y": "0"}, dtype="str")
    return pd.DataFrame({"id": ids, **dict.fromkeys(classes[::-1] if form == "probabilities" else ["y"], "")}, dtype="str")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=worlds)
def test_any_predictions_and_sample_survive_the_trip(world, tmp_path):
    form, ids = world["form"], tuple(world["ids"])
    classes = tuple(name for name in world["classes"] if name not in ("id", "y", "y_id"))
    assume(len(classes) >= 2)
    assume(form != "topk:2" or not any(" " in name for name in classes))
    ends = [f"_{name}" for name in classes]
    assume(form != "joined" or not any(a != b and a.endswith(b) for a in ends for b in (*ends, *classes)))
    target = Target("y", "multiclass", classes)
    rules = competition(target, metric="accuracy" if form == "labels" else "log_loss", form=form)
    p = soft(target, ids=(*ids[::-1], "~beyond~"), seed=world["seed"])
    sample = asked(form, ids, classes)
    assert infer_format(sample, rules) == form
    frame = render({"y": p}, as_format(sample, rules, form))
    path = files.write(tmp_path / "s.csv", lambda file: arrow_csv.write(file, frame))
    assert checks.errors(check_file(path, as_format(sample, rules, form), rules)) == []
    words = form in ("labels", "topk:2")
    back = pd.read_csv(path, dtype=str if words else {"id": str, "kind": str}, keep_default_na=False)
    assert list(back.columns) == list(sample.columns)
    assert list(back["id"]) == list(sample["id"])
    ours = p.align(ids).values
    if form == "labels":
        assert list(back["y"]) == [classes[i] for i in ours.argmax(axis=1)]
    elif words:
        assert list(back["y"]) == [" ".join(classes[i] for i in np.argsort(-row)[:2]) for row in ours]
    else:
        numbers = (
            back[list(classes[::-1])].to_numpy() if form == "probabilities" else back["y"].to_numpy().reshape(len(ids), -1)
        )
        assert (numbers.astype(np.float32) == ours[:, ::-1].astype(np.float32)).all()
