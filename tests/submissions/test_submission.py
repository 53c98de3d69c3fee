import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from toolkit.base import arrow_csv, files
from toolkit.core.predictions import Predictions
from toolkit.errors import AlignmentError, CompetitionError, StoreError, SubmissionError
from toolkit.submissions import checks, formats, submission
from toolkit.submissions.formats import FORMATS, infer_format
from toolkit.workspace.competition import Competition, Images, Target

IDS = ("003", "010", "001", "020", "100")
ANIMALS = ("cat", "dog", "eel")
PARTS = Images("train", "{id}.png", "train.csv")


def competition(*targets, metric="accuracy", form="", root=Path()):
    return Competition(root, "zoo", metric, targets, PARTS, PARTS, format=form)


def table(text):
    return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)


ANIMAL = Target("animal", "multiclass", ANIMALS)
SICK = Target("sick", "binary", ("0", "1"), positive="1")
TAGS = Target("tags", "multilabel", ("red", "big", "wet"))
JOINT = Target("kind", "multiclass", (), factors={"mask": ("on", "off"), "age": ("young", "mid", "old")})

# format → (competition, sample, a valid submission)
VALID = {
    "labels": (competition(ANIMAL), "id,animal\n003,cat\n010,cat\n001,cat\n", "id,animal\n003,cat\n010,eel\n001,dog\n"),
    "indices": (competition(ANIMAL, form="indices"), "id,animal\n003,0\n010,0\n", "id,animal\n003,2\n010,1\n"),
    "flags": (competition(TAGS), "id,red,big,wet\n003,0,0,0\n010,0,0,0\n", "id,red,big,wet\n003,1,0,1\n010,0,0,0\n"),
    "probability": (competition(SICK, metric="roc_auc"), "id,sick\n003,0\n010,0\n", "id,sick\n003,1e-5\n010,0.75\n"),
    "probabilities": (
        competition(ANIMAL, metric="log_loss"),
        "id,eel,cat,dog\n003,0,0,1\n010,0,0,1\n001,0,0,1\n",
        "id,eel,cat,dog\n003,.2,0.3,5e-1\n010,1,0,0\n001,0.333,0.333,0.334\n",
    ),
    "topk": (competition(ANIMAL), "id,animal\n003,cat dog\n010,cat dog\n", "id,animal\n003,eel cat\n010,dog eel\n"),
    "multilabel names": (competition(TAGS), "id,tags\n003,red big\n010,wet\n", "id,tags\n003,wet\n010,big red wet\n"),
    "multilabel probabilities": (
        competition(TAGS, metric="roc_auc"),
        "id,red,big,wet\n003,0,0,0\n010,0,0,0\n",
        "id,red,big,wet\n003,1,0.9,0.5\n010,0,0,0\n",
    ),
    "factors": (competition(JOINT), "id,age,mask\n003,old,on\n010,old,on\n", "id,age,mask\n003,mid,off\n010,young,on\n"),
    "joint": (competition(JOINT), "id,ans\n003,on_old\n010,on_old\n", "id,ans\n003,off_mid\n010,on_young\n"),
    "two targets": (
        competition(ANIMAL, SICK),
        "id,sick,animal\n003,0,cat\n010,0,cat\n",
        "id,sick,animal\n003,1,dog\n010,0,eel\n",
    ),
    "multilabel indices": (
        competition(TAGS, form="indices"),
        "id,tags\n003,0 1\n010,0\n",
        "id,tags\n003,2\n010,0 1 2\n",
    ),
    "long": (
        competition(ANIMAL, metric="log_loss"),
        "id,kind,p\n003,cat,0\n003,dog,0\n003,eel,0\n010,cat,0\n010,eel,0\n010,dog,0\n",
        "id,kind,p\n003,cat,.5\n003,dog,0.25\n003,eel,0.25\n010,cat,1\n010,eel,0\n010,dog,0\n",
    ),
    "joined": (
        competition(ANIMAL, metric="log_loss"),
        "id,p\n003_cat,0\n003_dog,0\n003_eel,0\n010_cat,0\n010_eel,0\n010_dog,0\n",
        "id,p\n003_cat,.5\n003_dog,0.25\n003_eel,0.25\n010_cat,1\n010_eel,0\n010_dog,0\n",
    ),
    "multilabel long": (
        competition(TAGS, metric="roc_auc"),
        "tag,id,p\nred,003,0\nbig,003,0\nwet,003,0\n",
        "tag,id,p\nred,003,1\nbig,003,0.9\nwet,003,1e-9\n",
    ),
}
NAMED = {"multilabel names": "labels", "multilabel probabilities": "probabilities", "factors": "labels", "joint": "labels",
         "two targets": "labels", "multilabel indices": "indices", "multilabel long": "long"}  # fmt: skip


def found(case, raw, tmp_path):
    rules, sample, _ = (VALID | OTHER)[case]
    path = tmp_path / "theirs.csv"
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return submission.check_file(path, table(sample), rules, infer_format(table(sample), rules))


# competitions in which something can be wrong that cannot be in those above
OTHER = {
    "labels2": (competition(ANIMAL), "id,animal\nab1,cat\n", ""),
    "limited": (replace(competition(ANIMAL), max_mb=1e-5), "id,animal\n003,cat\n010,cat\n", ""),
}


@pytest.mark.parametrize("case", VALID)
def test_a_valid_file_has_no_problem_and_its_format_is_inferred(case, tmp_path):
    rules, sample, good = VALID[case]
    assert infer_format(table(sample), rules) == NAMED.get(case, case)
    assert found(case, good, tmp_path) == ()


def test_every_format_has_a_valid_case():
    assert {NAMED.get(case, case) for case in VALID} == set(FORMATS)


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


# (case, the damaged file, the codes it must be given: exactly these)
L, P, M = VALID["labels"][2], VALID["probabilities"][2], VALID["multilabel names"][2]
T, B, F = VALID["topk"][2], VALID["probability"][2], VALID["flags"][2]
G, J = VALID["long"][2], VALID["joined"][2]
DEFECTS = {
    "empty file": ("labels", "", {"SUB001"}),
    "binary file": ("labels", b"PK\3\4\0\0", {"SUB001"}),
    "open quote": ("labels", L.replace("010", '"010'), {"SUB007", "SUB020"}),
    "byte-order mark": ("labels", b"\xef\xbb\xbf" + L.encode(), {"SUB002"}),
    "UTF-16": ("labels", L.encode("utf-16"), {"SUB003"}),
    "semicolons": ("labels", L.replace(",", ";"), {"SUB004"}),
    "tabs": ("probabilities", P.replace(",", "\t"), {"SUB004"}),
    "bare carriage returns": ("labels", L.replace("\n", "\r"), {"SUB005"}),
    "windows line ends": ("labels", L.replace("\n", "\r\n"), {"SUB006"}),
    "a cell too many": ("labels", L.replace("010,eel", "010,eel,9"), {"SUB007", "SUB020"}),
    "missing column": ("probabilities", "id,eel,cat\n003,0,1\n010,0,1\n001,1,0\n", {"SUB010"}),
    "missing id column": ("labels", "animal\ncat\neel\ndog\n", {"SUB010"}),
    "extra column": ("labels", "id,animal,score\n003,cat,1\n010,eel,1\n001,dog,1\n", {"SUB011"}),
    "pandas index": ("labels", table(L).to_csv(), {"SUB012"}),
    "column order": ("probabilities", table(P)[["id", "cat", "dog", "eel"]].to_csv(index=False), {"SUB013"}),
    "column twice": ("labels", "id,animal,animal\n003,cat,emu\n010,eel,emu\n001,dog,emu\n", {"SUB014"}),
    "column in capitals": ("labels", L.replace("animal", "Animal"), {"SUB015"}),
    "missing id": ("labels", L.replace("010,eel\n", ""), {"SUB020"}),
    "extra id": ("labels", L + "999,cat\n", {"SUB021"}),
    "duplicate id": ("labels", L + "010,eel\n", {"SUB022"}),
    "empty id": ("labels", L.replace("010", ""), {"SUB020", "SUB023"}),
    "lost zeros": ("labels", L.replace("003", "3").replace("001", "1"), {"SUB024"}),
    "spaces": ("labels", L.replace("010", "010 "), {"SUB025"}),
    "float ids": ("labels", L.replace("010", "010.0"), {"SUB026"}),
    "file names for ids": ("labels", L.replace("010", "test/010.png"), {"SUB027"}),
    "row order": ("labels", "id,animal\n010,eel\n003,cat\n001,dog\n", {"SUB029"}),
    "empty label": ("labels", L.replace("eel", ""), {"SUB030"}),
    "empty number": ("probability", B.replace("0.75", ""), {"SUB030"}),
    "empty top-k": ("topk", T.replace("dog eel", ""), {"SUB030"}),
    "NaN label": ("labels", L.replace("eel", "nan"), {"SUB031"}),
    "NaN": ("probabilities", P.replace("5e-1", "nan"), {"SUB031"}),
    "NA": ("probability", B.replace("0.75", "NA"), {"SUB031"}),
    "inf": ("probability", B.replace("0.75", "-inf"), {"SUB032"}),
    "overflow": ("probability", B.replace("0.75", "1e999"), {"SUB032"}),
    "decimal comma": ("probability", B.replace("0.75", '"0,75"'), {"SUB033"}),
    "logit": ("probability", B.replace("0.75", "-2.5"), {"SUB034"}),
    "per cent": ("probability", B.replace("0.75", "75"), {"SUB034"}),
    "row sum": ("probabilities", P.replace("5e-1", "0.4"), {"SUB035"}),
    "row sum, roughly": ("probabilities", P.replace("5e-1", "0.4995"), {"SUB037"}),
    "unknown label": ("labels", L.replace("eel", "emu"), {"SUB040"}),
    "unknown label in a list": ("multilabel names", M.replace("big", "tiny"), {"SUB040"}),
    "float label": ("flags", F.replace("1,0,1", "1.0,0,1"), {"SUB041"}),
    "label in capitals": ("labels", L.replace("eel", "Eel"), {"SUB042"}),
    "label with a space": ("labels", L.replace("eel", " eel"), {"SUB042"}),
    "index for a name": ("labels", L.replace("eel", "2"), {"SUB044"}),
    "index out of range": ("indices", "id,animal\n003,3\n010,1\n", {"SUB040"}),
    "too many labels": ("topk", T.replace("eel cat", "eel cat dog"), {"SUB050"}),
    "label repeated": ("topk", T.replace("eel cat", "eel eel"), {"SUB051"}),
    "label repeated in a set": ("multilabel names", M.replace("big red", "red red"), {"SUB051"}),
    "too few labels": ("topk", T.replace("eel cat", "eel"), {"SUB052"}),
    "quotes as text": ("labels", L.replace("010", "'010'"), {"SUB008"}),
    "quoted label": ("labels", L.replace("eel", "‘eel’"), {"SUB008"}),
    "id in capitals": ("labels2", "id,animal\nAB1,cat\n", {"SUB028"}),
    "larger than allowed": ("limited", "id,animal\n003,cat\n010,eel\n", {"SUB009"}),
    "long: a class is missing": ("long", G.replace("010,eel,0\n", ""), {"SUB020"}),
    "long: a class twice": ("long", G + "010,eel,0\n", {"SUB022"}),
    "long: an unknown class": ("long", G.replace("010,eel", "010,emu"), {"SUB020", "SUB021", "SUB040"}),
    "long: lost zeros": ("long", G.replace("003", "3").replace("010", "10"), {"SUB024"}),
    "long: spaces": ("long", G.replace("003", "003 "), {"SUB025"}),
    "long: row sum": ("long", G.replace(".5", ".6"), {"SUB035"}),
    "long: out of range": ("multilabel long", VALID["multilabel long"][2].replace("0.9", "1.9"), {"SUB034"}),
    "long: row order": ("long", "id,kind,p\n003,dog,.5\n003,cat,.5\n003,eel,0\n010,cat,1\n010,eel,0\n010,dog,0\n", {"SUB029"}),
    "long: no class column": ("long", "id,p\n003,1\n010,1\n", {"SUB010"}),
    "joined: a class is missing": ("joined", J.replace("010_eel,0\n", ""), {"SUB020"}),
    "joined: an unknown class": ("joined", J.replace("010_eel", "010_emu"), {"SUB020", "SUB021"}),
    "joined: row sum": ("joined", J.replace(".5", ".6"), {"SUB035"}),
    "joined: NaN": ("joined", J.replace(".5", "nan"), {"SUB031"}),
    "no label": ("multilabel names", M.replace("003,wet", "003,"), {"SUB053"}),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_found_with_its_code_and_no_other(defect, tmp_path):
    case, raw, codes = DEFECTS[defect]
    problems = found(case, raw, tmp_path)
    assert {problem.code for problem in problems} == codes
    assert all("\n" not in str(p) and str(p).startswith(f"{p.code} {p.severity}: ") for p in problems)


def test_cp949_files_are_checked_in_spite_of_their_encoding(tmp_path):
    rules = competition(Target("kind", "multiclass", ("고양이", "개")))
    path = tmp_path / "theirs.csv"
    path.write_bytes("id,kind\n1,고양이\n2,닭\n".encode("cp949"))
    problems = submission.check_file(path, table("id,kind\n1,개\n2,개\n"), rules, "labels")
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
    (problem,) = submission.check(frame, frame.assign(animal="cat"), competition(ANIMAL), "labels")
    assert (problem.code, problem.severity) == ("SUB043", "warning")
    assert "'eel'" in str(problem)


def test_a_flag_that_no_row_has_is_not_worth_a_warning():
    frame = pd.DataFrame({"id": [str(i) for i in range(60)], **dict.fromkeys(TAGS.classes, "0")}, dtype="str")
    frame.loc[3, "red"] = "1"
    assert submission.check(frame, frame.assign(red="0"), competition(TAGS), "flags") == ()


def test_codes_are_well_formed():
    for code, rule in checks.CODES.items():
        assert code.startswith("SUB")
        assert len(code) == 6
        assert rule.what
        assert rule.hint.endswith(".")


# ── formats


def test_the_format_of_the_file_wins_over_inference():
    assert infer_format(table("id,animal\n1,cat\n"), competition(ANIMAL, form="topk:2")) == "topk:2"
    with pytest.raises(CompetitionError, match="unknown submission format 'top5'"):
        infer_format(table("id,animal\n1,cat\n"), competition(ANIMAL, form="top5"))
    with pytest.raises(CompetitionError, match="binary"):
        infer_format(table("id,animal\n1,cat\n"), competition(ANIMAL, form="probability"))


@pytest.mark.parametrize(
    ("rules", "sample"),
    [
        (competition(SICK), "id,sick\n1,0.5\n"),  # the metric wants labels, the cells are none
        (competition(Target("pet", "binary", ("cat", "dog")), metric="log_loss"), "id,pet\n1,cat\n"),  # the other way round
        (competition(ANIMAL), "id,animal\n1,0\n"),  # an index? a placeholder?
        (competition(TAGS), "id,red,big,wet\n1,0.5,0.5,0.5\n"),
        (competition(ANIMAL), "id,cat,dog\n1,0,0\n"),
        (competition(ANIMAL, SICK), "id,answer\n1,cat\n"),
    ],
)
def test_what_is_ambiguous_is_asked_for(rules, sample):
    with pytest.raises(CompetitionError) as caught:
        infer_format(table(sample), rules)
    assert "Set format under [submission] in competition.toml" in caught.value.hint


def test_k_is_the_samples_or_the_competitions():
    sample = table("id,animal\n1,cat\n2,cat dog\n")
    assert formats.plan("topk", sample, competition(ANIMAL)).columns[0].k == 2
    assert formats.plan("topk:3", sample, competition(ANIMAL)).columns[0].k == 3
    with pytest.raises(CompetitionError, match="how many"):
        formats.plan("topk", table("id,animal\n1,cat\n"), competition(ANIMAL))


def test_a_sample_without_the_id_column_is_refused():
    with pytest.raises(CompetitionError, match="needs column 'id'"):
        infer_format(table("image,animal\n1,cat\n"), competition(ANIMAL))


# ── render


def soft(target, ids=IDS, seed=0, classes=None):
    classes = classes or target.classes
    values = np.random.default_rng(seed).dirichlet(np.ones(len(classes)), len(ids))
    if target.multilabel:
        values = np.random.default_rng(seed).random((len(ids), len(classes)))
    return Predictions(target.name, "probabilities", ids, classes, values, multilabel=target.multilabel)


def rendered(rules, sample, *tables):
    sample = table(sample)
    form = infer_format(sample, rules)
    frame = submission.render({t.target: t for t in tables}, sample, rules, form)
    assert checks.errors(submission.check(frame, sample, rules, form)) == []
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
    frame = submission.render({"kind": p}, sample, competition(JOINT), "topk")
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


def hard(target, indices):
    return Predictions(target.name, "labels", IDS, target.classes, labels=np.array(indices))


def test_hard_votes_give_labels_but_no_numbers():
    frame = rendered(competition(ANIMAL), "id,animal\n" + "".join(f"{i},cat\n" for i in IDS), hard(ANIMAL, [0, 1, 2, 1, 0]))
    assert list(frame["animal"]) == ["cat", "dog", "eel", "dog", "cat"]
    for form, sample in (("probabilities", "id,eel,cat,dog\n003,0,0,1\n"), ("topk:2", "id,animal\n003,cat\n")):
        with pytest.raises(SubmissionError) as caught:
            submission.render({"animal": hard(ANIMAL, [0, 1, 2, 1, 0])}, table(sample), competition(ANIMAL), form)
        assert "--vote soft" in caught.value.hint


def test_missing_targets_and_other_classes_are_refused():
    sample = table(VALID["labels"][1])
    with pytest.raises(SubmissionError, match="no target 'animal'"):
        submission.render({"sick": soft(SICK)}, sample, competition(ANIMAL), "labels")
    with pytest.raises(AlignmentError, match="emu"):
        submission.render({"animal": soft(ANIMAL, classes=("cat", "dog", "emu"))}, sample, competition(ANIMAL), "labels")


def test_ids_without_predictions_are_left_for_the_check():
    sample = table("id,animal\n003,cat\n7,cat\n010,cat\n")
    frame = submission.render({"animal": soft(ANIMAL)}, sample, competition(ANIMAL), "labels")
    assert list(frame["id"]) == ["003", "010"]
    (problem,) = submission.check(frame, sample, competition(ANIMAL), "labels")
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
    frame = submission.render({"sick": p}, sample, competition(SICK, metric="roc_auc"), "probability")
    back = np.array([float(cell) for cell in frame["sick"]])
    assert (back.astype(np.float32).view(np.uint32) == numbers.view(np.uint32)).all()
    digits = frame["sick"].str.replace(r"e.*|\.|-", "", regex=True).str.strip("0").str.len()
    shortest = [len(np.format_float_scientific(x, trim="-").split("e")[0].replace(".", "")) for x in numbers]
    assert (digits.to_numpy() <= np.array(shortest)).all()


def test_minus_zero_is_written_as_zero():
    p = Predictions("sick", "probabilities", ("1",), ("0", "1"), np.array([[1.0, -0.0]]))
    frame = submission.render({"sick": p}, table("id,sick\n1,0\n"), competition(SICK, metric="roc_auc"), "probability")
    assert frame["sick"][0] == "0"


# ── files

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


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    frame = submission.render({"y": p}, sample, rules, form)
    path = files.write(tmp_path / "s.csv", lambda file: arrow_csv.write(file, frame))
    assert checks.errors(submission.check_file(path, sample, rules, form)) == []
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


def test_the_file_is_byte_for_byte_what_pythons_csv_module_writes(tmp_path):
    import csv

    rows = [["id", "a,b", 'q"q'], ["1", "plain", ""], ["2", 'x"y', "a\nb"], ["é", " spaced ", "0.5"]]
    frame = pd.DataFrame(rows[1:], columns=rows[0], dtype="str")
    expected = io.StringIO()
    csv.writer(expected, lineterminator="\n").writerows(rows)
    raw = io.BytesIO()
    arrow_csv.write(raw, frame)
    assert raw.getvalue().decode() == expected.getvalue()


def test_errors_leave_the_old_submission_untouched(tmp_path):
    old = tmp_path / "submission.csv"
    old.write_text("old")
    frame = table("id,animal\n003,emu\n")
    problems = submission.check(frame, table(VALID["labels"][1]), competition(ANIMAL), "labels")
    with pytest.raises(SubmissionError) as caught:
        submission.write(old, frame, problems, {}, tmp_path)
    assert {p.code for p in caught.value.problems} == {"SUB020", "SUB040"}
    assert [p.name for p in tmp_path.iterdir()] == ["submission.csv"]
    assert old.read_text() == "old"


@pytest.mark.parametrize("step", ["csv", "manifest"])
def test_a_folder_that_cannot_be_written_is_said(tmp_path, step):
    target = tmp_path / "submission.csv"
    if step == "csv":
        (tmp_path / "file").write_text("")
        target = tmp_path / "file" / "submission.csv"
    else:
        (tmp_path / "submission.json").mkdir()
    with pytest.raises(StoreError, match=r"submission\.\w+ cannot be written"):
        submission.write(target, table(L), (), {}, tmp_path)
    assert not list(tmp_path.rglob("*.part-*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_permission_is_said(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="No permission") as caught:
        submission.write(tmp_path / "submission.csv", table(L), (), {}, tmp_path)
    assert "No permission" in caught.value.hint


def test_no_torch_is_loaded():
    code = "import sys, toolkit.submissions; import toolkit.cli.commands.submit; sys.exit(bool({'torch', 'pandas', 'onnx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_multilabel_row_without_a_class_is_an_empty_cell_and_shifts_nothing():
    """Arrow's join leaves rows of nulls out."""
    from toolkit.core.predictions import Predictions
    from toolkit.core.targets import Target
    from toolkit.submissions import formats

    target = Target("tags", "multilabel", ("cat", "dog", "fox"), separator=", ")
    labels = np.array([[1, 0, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]], dtype=bool)
    table = Predictions("tags", "labels", tuple("abcd"), target.classes, labels=labels, multilabel=True)
    column = formats.Column("tags", target)
    assert formats._label_cells(column, table).to_pylist() == ["cat", "", "cat, fox", ""]
