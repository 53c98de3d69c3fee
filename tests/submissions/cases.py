"""Competitions, samples, valid submissions and damaged ones, shared by the tests of this folder."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from toolkit.core.predictions import Predictions
from toolkit.submissions.form.layout import infer_format
from toolkit.submissions.sample import as_format, check_file
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


# competitions in which something can be wrong that cannot be in those above
OTHER = {
    "labels2": (competition(ANIMAL), "id,animal\nab1,cat\n", ""),
    "limited": (replace(competition(ANIMAL), max_mb=1e-5), "id,animal\n003,cat\n010,cat\n", ""),
}


def found(case, raw, tmp_path):
    rules, sample, _ = (VALID | OTHER)[case]
    path = tmp_path / "theirs.csv"
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return check_file(path, as_format(table(sample), rules, infer_format(table(sample), rules)), rules)


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


def soft(target, ids=IDS, seed=0, classes=None):
    classes = classes or target.classes
    values = np.random.default_rng(seed).dirichlet(np.ones(len(classes)), len(ids))
    if target.multilabel:
        values = np.random.default_rng(seed).random((len(ids), len(classes)))
    return Predictions(target.name, "probabilities", ids, classes, values, multilabel=target.multilabel)


def hard(target, indices):
    return Predictions(target.name, "labels", IDS, target.classes, labels=np.array(indices))
