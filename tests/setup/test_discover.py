"""What `toolkit init` concludes from real small trees of many competitions' layouts."""

import csv
import itertools
import os
import random
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toolkit.errors import CompetitionError
from toolkit.images.boxes import BoxTable
from toolkit.setup.discover import discover, factors
from toolkit.setup.infer_targets import Wishes
from toolkit.workspace.competition import FILE, Competition

ACCURACY = Wishes(metric="accuracy")
LOG_LOSS = Wishes(metric="log_loss")


def table(path: Path, header: str, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header.split(","), *rows])
    return path


def pictures(folder: Path, names) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (len(name), 0, 0)).save(path)


def found(root: Path, wishes: Wishes) -> Competition:
    """Discover, write, read back, and use: every train and test image is there and the truth can be read."""
    discovery = discover(root, wishes)
    discovery.write()
    competition = Competition.read(root)
    assert competition == discovery.competition
    for part in ("train", "test"):
        assert all(path.is_file() for _, path in competition.images(part))
    competition.truth()
    return competition


def questions(root: Path, wishes: Wishes) -> str:
    with pytest.raises(CompetitionError) as caught:
        discover(root, wishes)
    assert not (root / FILE).exists()
    return caught.value.message


KINDS = ("cat", "dog", "fox")


def kaggle(root: Path, *, suffix=".png", sample="id,label", rows=12, data="") -> Path:
    """train.csv (id, label), train/, test/, a sample of labels."""
    base = root / data
    ids = [f"{i:05d}" for i in range(rows)]
    table(base / "train.csv", "id,label", [(n, KINDS[i % 3]) for i, n in enumerate(ids)])
    table(base / "sample_submission.csv", sample, [(f"9{n}", "cat") for n in ids[:6]])
    pictures(base / "train", [f"{n}{suffix}" for n in ids])
    pictures(base / "test", [f"9{n}{suffix}" for n in ids[:6]])
    return root


@pytest.mark.parametrize("data", ["", "data"])
def test_kaggle_labels(tmp_path, data):
    competition = found(kaggle(tmp_path, data=data), ACCURACY)
    (target,) = competition.targets
    assert (competition.id, target.column, target.task, target.classes) == ("id", "label", "multiclass", KINDS)
    assert (competition.train.folder, competition.train.pattern) == (str(Path(data, "train")), "{id}.png")
    assert (competition.test.folder, competition.test.table, competition.format) == (str(Path(data, "test")), "", "labels")
    assert competition.sample == str(Path(data, "sample_submission.csv"))
    assert [n for n, _ in competition.images("train")][:2] == ["00000", "00001"]


def test_it_says_what_it_concluded(tmp_path):
    text = "\n".join(discover(kaggle(tmp_path), ACCURACY).lines)
    assert "recipes train on one image" not in text
    for part in (
        "id column: id - in train.csv (12 rows) and sample_submission.csv (6 rows)",
        "3 classes: cat, dog, fox; task multiclass",
        "train images: train/{id}.png - 12 of 12 rows",
        "group column: none, use --group",
        "submission format: labels",
    ):
        assert part in text


def test_kaggle_probabilities_per_class(tmp_path):
    """The sample's columns are the values of one train column; ids carry their extension; ten sorts after nine."""
    names = [f"img_{i}.jpg" for i in range(22)]
    table(tmp_path / "train.csv", "img,subject,classname", [(n, f"p{i % 4}", f"c{i % 11}") for i, n in enumerate(names)])
    heads = [f"c{i}" for i in (3, 1, 2, 0, 4, 5, 6, 7, 8, 9, 10)]
    table(tmp_path / "sample_submission.csv", ",".join(["img", *heads]), [(f"t{n}", *["0.1"] * 11) for n in names[:5]])
    pictures(tmp_path / "imgs/train", names)
    pictures(tmp_path / "imgs/test", [f"t{n}" for n in names[:5]])
    competition = found(tmp_path, replace(LOG_LOSS, group="subject"))
    (target,) = competition.targets
    assert (target.column, target.classes) == ("classname", tuple(sorted(heads)))
    assert (competition.train.folder, competition.train.pattern) == ("imgs/train", "{img}")
    assert (competition.group, competition.format) == ("subject", "probabilities")


def test_folders_named_after_classes(tmp_path):
    """Without train.csv one is written; the same stem in two classes makes the path the id."""
    pictures(tmp_path / "train", [f"{kind}/{i}.png" for kind in ("10", "9") for i in range(4)])
    pictures(tmp_path / "test", [f"{i}.png" for i in range(4)])
    table(tmp_path / "sample_submission.csv", "image,label", [(i, "9") for i in range(4)])
    competition = found(tmp_path, replace(ACCURACY, task="multiclass"))
    assert competition.targets[0].classes == ("9", "10")
    assert (competition.train.table, competition.train.pattern) == ("train.csv", "{image}")
    assert next(iter(competition.rows["image"])) == "10/0.png"
    assert (tmp_path / "train.csv").read_text().splitlines()[:2] == ["image,label,path", "10/0.png,10,10/0.png"]
    assert competition.truth()["label"].labels.tolist() == [1] * 4 + [0] * 4


def test_folders_named_after_classes_with_stems_that_differ(tmp_path):
    pictures(tmp_path / "data/train", [f"{kind}/{kind}{i}.jpg" for kind in KINDS for i in range(3)])
    pictures(tmp_path / "data/test", [f"{i}.jpg" for i in range(4)])
    table(tmp_path / "data/sample_submission.csv", "id,label", [(i, "cat") for i in range(4)])
    competition = found(tmp_path, ACCURACY)
    assert list(competition.rows["id"])[:2] == ["cat0", "cat1"]
    assert (tmp_path / "train.csv").exists()
    assert not (tmp_path / "data/train.csv").exists()  # the data folder may be read-only


def mask(root: Path) -> Path:
    """A row per image; a path column; several label columns; a person who must not be torn; eval/info.csv."""
    rows = []
    states = itertools.cycle([("wear", "male", "young"), ("incorrect", "female", "old"), ("normal", "male", "middle")])
    for person, shot in itertools.product(range(6), range(3)):
        path = f"{person:06d}_Asian/{'abc'[shot]}.jpg"
        rows.append((f"{person}{shot}.jpg", f"{person:06d}", *next(states), path))
    table(root / "train/train.csv", "ImageID,person,mask,gender,age,path", rows)
    pictures(root / "train/images", [row[-1] for row in rows])
    names = [f"{i:040x}.jpg" for i in range(5)]
    pictures(root / "eval/images", names)
    table(root / "eval/info.csv", "ImageID,ans", [(n, "0") for n in names])
    return root


FACTORS = {"mask": ("wear", "incorrect", "normal"), "gender": ("male", "female"), "age": ("young", "middle", "old")}


def test_joint_target_of_factors_with_a_path_column(tmp_path):
    wishes = replace(ACCURACY, factor=FACTORS, group="person", format="indices")
    competition = found(mask(tmp_path), wishes)
    (target,) = competition.targets
    assert (len(target.classes), target.classes[0], target.classes[-1]) == (18, "wear_male_young", "normal_female_old")
    labels = competition.truth()["ans"].labels
    assert labels[:3].tolist() == [0, 1 * 6 + 1 * 3 + 2, 2 * 6 + 0 * 3 + 1]
    assert (competition.train.folder, competition.train.pattern) == ("train/images", "{path}")
    assert (competition.test.folder, competition.test.pattern) == ("eval/images", "{ImageID}")


def test_joint_target_asks_for_what_the_sample_leaves_open(tmp_path):
    assert "target" in questions(mask(tmp_path), ACCURACY)  # 'ans' is no column of train.csv, three columns could be it
    assert "format" in questions(tmp_path, replace(ACCURACY, factor=FACTORS))  # 0 is no class name
    short = FACTORS | {"age": ("young", "old")}
    assert "'middle'" in questions(tmp_path, replace(ACCURACY, factor=short))


def test_several_targets_in_the_sample(tmp_path):
    mask(tmp_path)
    (tmp_path / "eval/info.csv").unlink()
    names = [f"{i:040x}.jpg" for i in range(5)]
    table(tmp_path / "sample_submission.csv", "ImageID,mask,gender,age", [(n, "wear", "male", "old") for n in names])
    competition = found(tmp_path, ACCURACY)
    assert [(t.name, t.task) for t in competition.targets] == [
        ("mask", "multiclass"), ("gender", "multiclass"), ("age", "multiclass"),
    ]  # fmt: skip


def test_dacon_paths_that_start_with_a_dot(tmp_path):
    """train.csv and test.csv both hold `./train/0001.png`; the sample has no path."""
    ids = [f"TRAIN_{i:03d}" for i in range(9)]
    table(tmp_path / "train.csv", "id,img_path,label", [(n, f"./train/{n}.png", KINDS[i % 3]) for i, n in enumerate(ids)])
    tests = [f"TEST_{i:03d}" for i in range(5)]
    table(tmp_path / "test.csv", "id,img_path", [(n, f"./test/{n}.png") for n in tests])
    table(tmp_path / "sample_submission.csv", "id,label", [(n, "cat") for n in tests])
    pictures(tmp_path, [f"train/{n}.png" for n in ids] + [f"test/{n}.png" for n in tests])
    competition = found(tmp_path, ACCURACY)
    assert competition.test.table == "test.csv"
    assert competition.images("test")[0] == ("TEST_000", tmp_path / "test/TEST_000.png")


def test_dacon_paths_where_the_id_is_not_the_file(tmp_path):
    ids = [f"TRAIN_{i:03d}" for i in range(9)]
    table(tmp_path / "train.csv", "id,img_path,label", [(n, f"./train/{i}x.png", KINDS[i % 3]) for i, n in enumerate(ids)])
    table(tmp_path / "test.csv", "id,img_path", [(f"TEST_{i}", f"./test/{i}y.png") for i in range(5)])
    table(tmp_path / "sample_submission.csv", "id,label", [(f"TEST_{i}", "cat") for i in range(5)])
    pictures(tmp_path, [f"train/{i}x.png" for i in range(9)] + [f"test/{i}y.png" for i in range(5)])
    competition = found(tmp_path, ACCURACY)
    assert competition.train.pattern == competition.test.pattern == "{img_path}"
    assert competition.images("train")[3] == ("TRAIN_003", tmp_path / "train/3x.png")


def test_a_folder_per_patient(tmp_path):
    rows = [(f"{p}{i}", f"pat{p}", str(int(p % 2 == 0))) for p in range(6) for i in range(3)]
    table(tmp_path / "train.csv", "image_id,patient_id,cancer", rows)
    table(tmp_path / "test.csv", "image_id,patient_id", [(f"9{i}", "pat9") for i in range(5)])
    table(tmp_path / "sample_submission.csv", "image_id,cancer", [(f"9{i}", "0.5") for i in range(5)])
    pictures(tmp_path / "train_images", [f"{patient}/{image}.png" for image, patient, _ in rows])
    pictures(tmp_path / "test_images", [f"pat9/9{i}.png" for i in range(5)])
    competition = found(tmp_path, replace(Wishes(metric="roc_auc"), group="patient_id"))
    assert competition.train.pattern == competition.test.pattern == "{patient_id}/{image_id}.png"
    (target,) = competition.targets
    assert (target.task, target.positive, competition.format) == ("binary", "1", "probability")


def test_multilabel_columns_of_0_and_1(tmp_path):
    rows = [(f"i{i}", str(i % 2), str(int(i % 3 == 0)), "1") for i in range(8)]
    table(tmp_path / "train.csv", "image,scab,rust,blight", rows)
    table(tmp_path / "sample_submission.csv", "image,scab,rust,blight", [(f"t{i}", "0.5", "0.5", "0.5") for i in range(5)])
    pictures(tmp_path / "images", [f"{r[0]}.jpg" for r in rows] + [f"t{i}.jpg" for i in range(5)])
    competition = found(tmp_path, LOG_LOSS)
    (target,) = competition.targets
    assert (target.task, target.classes, competition.format) == ("multilabel", ("blight", "rust", "scab"), "probabilities")
    assert competition.train.folder == competition.test.folder == "images"  # one folder for both
    assert competition.truth()["label"].labels[0].tolist() == [True, True, False]


def test_one_hot_columns_are_asked_for_and_read_either_way(tmp_path):
    rows = [(f"i{i}", *(str(int(i % 3 == c)) for c in range(3))) for i in range(9)]
    table(tmp_path / "train.csv", "image,a,b,c", rows)
    table(tmp_path / "sample_submission.csv", "image,a,b,c", [(f"t{i}", "0.3", "0.3", "0.4") for i in range(5)])
    pictures(tmp_path / "images", [f"{r[0]}.jpg" for r in rows] + [f"t{i}.jpg" for i in range(5)])
    assert "task" in questions(tmp_path, LOG_LOSS)
    competition = found(tmp_path, replace(LOG_LOSS, task="multiclass"))
    assert competition.truth()["label"].labels.tolist() == [0, 1, 2] * 3
    with (tmp_path / "train.csv").open("a") as file:
        file.write("two,1,1,0\n")
    with pytest.raises(CompetitionError, match="1 row does not have a single 1"):
        Competition.read(tmp_path).truth()


def test_cells_that_list_classes_are_asked_for(tmp_path):
    cells = ["scab", "rust", "scab rust", "healthy"] * 3
    table(tmp_path / "train.csv", "image,labels", [(f"i{i}.jpg", c) for i, c in enumerate(cells)])
    table(tmp_path / "sample_submission.csv", "image,labels", [(f"t{i}.jpg", "healthy") for i in range(5)])
    pictures(tmp_path / "train_images", [f"i{i}.jpg" for i in range(12)])
    pictures(tmp_path / "test_images", [f"t{i}.jpg" for i in range(5)])
    assert "task: cells of 'labels' such as 'scab rust'" in questions(tmp_path, ACCURACY)
    assert discover(tmp_path, replace(ACCURACY, task="multiclass")).competition.targets[0].classes[-1] == "scab rust"
    competition = found(tmp_path, replace(ACCURACY, task="multilabel"))
    assert competition.targets[0].classes == ("healthy", "rust", "scab")
    assert competition.truth()["labels"].labels[2].tolist() == [False, True, True]


def test_class_names_with_spaces_are_no_lists(tmp_path):
    kaggle(tmp_path)
    text = (tmp_path / "train.csv").read_text().replace("cat", "golden retriever").replace("dog", "golden fish")
    (tmp_path / "train.csv").write_text(text)
    (tmp_path / "sample_submission.csv").write_text((tmp_path / "sample_submission.csv").read_text().replace("cat", "fox"))
    assert found(tmp_path, ACCURACY).targets[0].classes == ("fox", "golden fish", "golden retriever")


@pytest.mark.parametrize(
    ("values", "metric", "asked"),
    [
        ([0.5 + i / 7 for i in range(24)], "mse", True),
        ([i // 2 / 4 for i in range(24)], "log_loss", True),
        ([0.25 if i % 2 else 0.75 for i in range(24)], "mae", True),
        ([i // 2 * 10 for i in range(80)], "mse", True),
        ([i // 2 * 10 for i in range(80)], "accuracy", False),
        ([f"{i % 4}.0" for i in range(24)], "mae", False),
        ([i % 5 for i in range(24)], "mse", False),
        ([KINDS[i % 3] for i in range(24)], "mse", False),
    ],
)
def test_quantities_are_not_taken_for_classes(tmp_path, values, metric, asked):
    ids = [f"{i:03d}" for i in range(len(values))]
    table(tmp_path / "train.csv", "id,y", zip(ids, values, strict=True))
    table(tmp_path / "sample_submission.csv", "id,y", [(f"9{i}", values[0]) for i in range(5)])
    pictures(tmp_path / "train", [f"{n}.png" for n in ids])
    pictures(tmp_path / "test", [f"9{i}.png" for i in range(5)])
    if asked:
        text = questions(tmp_path, Wishes(metric=metric))
        assert "task or target: column 'y' holds quantities" in text
        assert "(regression) is not supported; cut it into classes" in text
    if len(set(values)) < len(values):
        (target,) = discover(tmp_path, Wishes(metric=metric, task="multiclass" if asked else None)).competition.targets
        assert len(target.classes) == len(set(values))


def test_several_rows_per_id(tmp_path):
    rows = [(f"p{p}", f"p{p}_{view}.png", str(p % 2)) for p in range(6) for view in "ab"]
    table(tmp_path / "train.csv", "patient,file,sick", rows)
    table(tmp_path / "test.csv", "patient,file", [(f"q{p}", f"q{p}_{view}.png") for p in range(4) for view in "ab"])
    table(tmp_path / "sample_submission.csv", "patient,sick", [(f"q{p}", "0.5") for p in range(4)])
    pictures(tmp_path / "train", [r[1] for r in rows])
    pictures(tmp_path / "test", [f"q{p}_{view}.png" for p in range(4) for view in "ab"])
    auc = Wishes(metric="roc_auc")
    assert "recipes train on one image per row" in "\n".join(discover(tmp_path, replace(auc, per_id="mean")).lines)
    assert "per_id: an id has several images (up to 2 rows" in questions(tmp_path, auc)
    competition = found(tmp_path, replace(auc, per_id="mean"))
    assert len(competition.images("test")) == 8
    assert competition.truth()["sick"].ids == tuple(f"p{p}" for p in range(6))


def test_a_folder_of_images_per_id(tmp_path):
    table(tmp_path / "train.csv", "case,grade", [(f"c{i}", ["low", "high", "mid"][i % 3]) for i in range(6)])
    table(tmp_path / "sample_submission.csv", "case,grade", [(f"d{i}", "low") for i in range(5)])
    pictures(tmp_path / "train", [f"c{i}/{k}.png" for i in range(6) for k in range(i + 1)])
    pictures(tmp_path / "test", [f"d{i}/{k}.png" for i in range(5) for k in range(2)])
    assert "per_id: a folder of images belongs to one id" in questions(tmp_path, ACCURACY)
    competition = found(tmp_path, replace(ACCURACY, per_id="max"))
    assert competition.train.pattern == "{case}/*"
    assert "recipes train on one image per row" in "\n".join(discover(tmp_path, replace(ACCURACY, per_id="max")).lines)
    assert len(competition.images("train")) == 21


def test_endings_that_differ_per_file(tmp_path):
    kaggle(tmp_path)
    for i, path in enumerate(sorted((tmp_path / "train").iterdir())):
        path.rename(path.with_suffix((".png", ".jpg", ".JPG")[i % 3]))
    competition = found(tmp_path, ACCURACY)
    assert (competition.train.pattern, competition.test.pattern) == ("{id}.*", "{id}.*")  # the same pattern where it fits
    assert len(competition.images("train")) == 12


def test_ids_with_a_folder_inside(tmp_path):
    ids = [f"site{i % 2}/{i:03d}" for i in range(10)]
    table(tmp_path / "train.csv", "id,label", [(n, KINDS[i % 3]) for i, n in enumerate(ids)])
    table(tmp_path / "sample_submission.csv", "id,label", [(f"site9/{i}", "cat") for i in range(5)])
    pictures(tmp_path / "train", [f"{n}.webp" for n in ids])
    pictures(tmp_path / "test", [f"site9/{i}.webp" for i in range(5)])
    competition = found(tmp_path, ACCURACY)
    assert competition.train.pattern == "{id}.webp"


def test_the_same_names_in_train_and_test_do_not_mix(tmp_path):
    ids = [f"{i:03d}" for i in range(9)]
    table(tmp_path / "train.csv", "id,label", [(n, KINDS[i % 3]) for i, n in enumerate(ids)])
    table(tmp_path / "sample_submission.csv", "id,label", [(n, "cat") for n in ids])
    pictures(tmp_path / "images/train", [f"{n}.png" for n in ids])
    pictures(tmp_path / "images/test", [f"{n}.png" for n in ids])
    competition = found(tmp_path, ACCURACY)
    assert (competition.train.folder, competition.test.folder) == ("images/train", "images/test")


def test_a_folder_that_is_named_train_is_preferred(tmp_path):
    kaggle(tmp_path)
    pictures(tmp_path / "thumbnails", [p.name for p in (tmp_path / "train").iterdir()])
    assert found(tmp_path, ACCURACY).train.folder == "train"


def test_training_images_are_never_taken_for_the_test_images(tmp_path):
    kaggle(tmp_path)
    table(tmp_path / "sample_submission.csv", "id,label", [(f"{i:05d}", "cat") for i in range(6)])
    assert "test_images or pattern: no image files" in questions(tmp_path, ACCURACY)
    assert found(tmp_path, replace(ACCURACY, test_images="train")).test.folder == "train"


def test_labels_that_happen_to_differ_are_no_ids(tmp_path):
    kaggle(tmp_path)
    table(tmp_path / "sample_submission.csv", "id,label", [(f"9{i:05d}", kind) for i, kind in enumerate(KINDS)])
    assert found(tmp_path, ACCURACY).id == "id"


def test_train_and_test_are_no_classes(tmp_path):
    kaggle(tmp_path)
    (tmp_path / "train.csv").unlink()
    assert "train: no table of labels" in questions(tmp_path, ACCURACY)


def test_the_workspace_name_says_nothing_of_the_parts(tmp_path):
    root = tmp_path / "test-drive" / "train"
    competition = found(kaggle(root), ACCURACY)
    assert (competition.name, competition.test.folder) == ("train", "test")


def test_several_folders_of_the_same_images_are_asked_for(tmp_path):
    kaggle(tmp_path)
    pictures(tmp_path / "train_small", [p.name for p in (tmp_path / "train").iterdir()])
    message = questions(tmp_path, ACCURACY)
    assert "train_images" in message
    assert "train_small with {id}.png" in message
    assert found(tmp_path, replace(ACCURACY, train_images="train_small")).train.folder == "train_small"


def test_data_elsewhere_and_read_only(tmp_path):
    """Paths outside the workspace are absolute, inside they are relative; nothing is written beside the data."""
    data, root = tmp_path / "place", tmp_path / "work"
    kaggle(data)
    root.mkdir()
    before = sorted(data.rglob("*"))
    competition = found(root, replace(ACCURACY, data=str(data)))
    assert competition.train.folder == str(data / "train")
    assert competition.sample == str(data / "sample_submission.csv")
    assert sorted(data.rglob("*")) == before
    inside = tmp_path / "place/sub"
    inside.mkdir()
    assert discover(inside, replace(ACCURACY, data="..")).competition.train.folder == str(data / "train")


def test_linked_folders_are_followed_and_keep_their_names(tmp_path):
    kaggle(tmp_path / "big")
    work = tmp_path / "work"
    work.mkdir()
    (work / "data").symlink_to(tmp_path / "big")
    (tmp_path / "big/train/loop").symlink_to(tmp_path / "big")
    assert found(work, ACCURACY).train.folder == "data/train"


def test_every_question_at_once(tmp_path):
    """Two labels tables, no metric, a format that two readings allow: one error names all flags."""
    kaggle(tmp_path)
    table(tmp_path / "train_v2.csv", "id,label", [("1", "cat")])
    table(tmp_path / "sample_old.csv", "id,label", [("1", "cat")])
    message = questions(tmp_path, Wishes())
    for flag in ("train: ", "sample: ", "metric: "):
        assert flag in message
    assert "'train.csv', 'train_v2.csv'" in message
    assert "accuracy" in message
    chosen = replace(ACCURACY, train="train.csv", sample="sample_submission.csv")
    assert found(tmp_path, chosen).train.table == "train.csv"


def test_questions_about_columns_and_images_come_together(tmp_path):
    kaggle(tmp_path, sample="name,label")
    (tmp_path / "test/900000.png").unlink()
    (tmp_path / "test/900001.png").unlink()
    message = questions(tmp_path, Wishes(group="who", id="img"))
    for flag in ("metric: ", "id: train.csv has no column 'img'", "group: ", "test_images or pattern: "):
        assert flag in message
    assert message.startswith("4 things must be said:")


def test_the_id_has_another_name_in_the_sample(tmp_path):
    """Nothing is shared but the label: each table's own id is concluded, written and used."""
    competition = found(kaggle(tmp_path, sample="ImageID,label"), ACCURACY)
    assert (competition.id, competition.sample_id) == ("id", "ImageID")
    assert '[submission]\nsample = "sample_submission.csv"\nid = "ImageID"\n' in competition.to_toml()
    assert competition.test.pattern == "{ImageID}.png"
    said = "\n".join(discover(tmp_path, ACCURACY).lines)
    assert "id column: id - in train.csv (12 rows) and ImageID in sample_submission.csv (6 rows)" in said


def test_two_columns_that_could_be_the_samples_id_are_asked_for(tmp_path):
    kaggle(tmp_path)
    rows = [(f"9{i:05d}", f"{i}", "cat") for i in range(6)]
    table(tmp_path / "sample_submission.csv", "file,serial,label", rows)
    assert "sample_id: several columns could name a row" in questions(tmp_path, ACCURACY)
    with pytest.raises(CompetitionError, match=r"sample_id: sample_submission\.csv has no column 'name'"):
        discover(tmp_path, replace(ACCURACY, sample_id="name"))
    table(tmp_path / "sample_submission.csv", "file,label", [row[::2] for row in rows])
    table(tmp_path / "train.csv", "id,code,label", [(f"{i:05d}", f"x{i}", KINDS[i % 3]) for i in range(12)])
    chosen = found(tmp_path, replace(ACCURACY, sample_id="file"))
    assert (chosen.id, chosen.sample_id) == ("id", "file")  # of two columns without repeats, the one that calls itself id


def test_a_few_missing_images_are_named_not_refused(tmp_path):
    kaggle(tmp_path, rows=30)
    (tmp_path / "train/00007.png").unlink()
    lines = "\n".join(discover(tmp_path, ACCURACY).lines)
    assert "29 of 30 rows of train.csv; 1 not there: '00007'" in lines


def test_a_probability_of_named_classes_asks_which_is_positive(tmp_path):
    kaggle(tmp_path)
    text = (tmp_path / "train.csv").read_text().replace("fox", "dog")
    (tmp_path / "train.csv").write_text(text)
    ids = [f"9{i:05d}" for i in range(6)]
    table(tmp_path / "sample_submission.csv", "id,label", [(n, "0.5") for n in ids])
    assert "positive: which class of 'label'" in questions(tmp_path, LOG_LOSS)
    competition = found(tmp_path, replace(LOG_LOSS, positive="cat"))
    assert (competition.targets[0].task, competition.targets[0].positive, competition.format) == (
        "binary",
        "cat",
        "probability",
    )


@pytest.mark.parametrize("name", ["Train.csv", "labels.csv", "train_labels.csv"])
@pytest.mark.parametrize("sample", ["sampleSubmission.csv", "my_sample.csv", "info.csv", "test.csv"])
def test_names_of_tables(tmp_path, name, sample):
    kaggle(tmp_path)
    (tmp_path / "train.csv").rename(tmp_path / name)
    (tmp_path / "sample_submission.csv").rename(tmp_path / sample)
    table(tmp_path / "split.csv", "id,fold", [("1", "0")])  # the toolkit's own tables are no candidates
    table(tmp_path / "runs/a/train_log.csv", "epoch", [("1",)])
    competition = found(tmp_path, ACCURACY)
    assert (competition.train.table, competition.sample) == (name, sample)


def test_a_pattern_that_is_given(tmp_path):
    kaggle(tmp_path)
    for part in ("train", "test"):
        for path in (tmp_path / part).iterdir():
            path.rename(path.with_name(f"img_{path.name}"))
    assert "train_images" in questions(tmp_path, ACCURACY)
    assert found(tmp_path, replace(ACCURACY, pattern="img_{id}.png")).train.pattern == "img_{id}.png"


def test_ids_that_only_look_like_numbers(tmp_path):
    """000123 stays text, NA and None are classes."""
    kaggle(tmp_path)
    (tmp_path / "train.csv").write_text((tmp_path / "train.csv").read_text().replace("cat", "NA").replace("dog", "None"))
    (tmp_path / "sample_submission.csv").write_text((tmp_path / "sample_submission.csv").read_text().replace("cat", "NA"))
    assert found(tmp_path, ACCURACY).targets[0].classes == ("NA", "None", "fox")


def test_nothing_there(tmp_path):
    message = questions(tmp_path, Wishes())
    assert all(flag in message for flag in ("train: ", "sample: ", "metric: "))
    with pytest.raises(CompetitionError, match="is not a folder"):
        discover(tmp_path / "no", ACCURACY)


def test_it_does_not_overwrite(tmp_path):
    discovery = discover(kaggle(tmp_path), ACCURACY)
    discovery.write()
    with pytest.raises(CompetitionError, match="exists"):
        discovery.write()
    discovery.write(force=True)


def test_empty_labels_and_columns_that_are_no_labels(tmp_path):
    kaggle(tmp_path)
    lines = (tmp_path / "train.csv").read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join([*lines[:-1], lines[-1].split(",")[0] + ","]) + "\n")
    assert "is empty in 1 of 12 rows" in questions(tmp_path, ACCURACY)
    table(tmp_path / "train.csv", "id,label", [(f"{i:05d}", f"x{i}") for i in range(12)])
    assert "12 different values in 12 rows" in questions(tmp_path, ACCURACY)


def test_ten_thousand_rows_are_quick(tmp_path):
    import time

    ids = [f"{i:06d}" for i in range(10_000)]
    random.Random(0).shuffle(ids)
    table(tmp_path / "train.csv", "id,label", [(n, KINDS[i % 3]) for i, n in enumerate(ids)])
    table(tmp_path / "sample_submission.csv", "id,label", [(f"t{i}", "cat") for i in range(5)])
    for part, names in (("train", ids), ("test", [f"t{i}" for i in range(5)])):
        (tmp_path / part).mkdir()
        for n in names:
            os.close(os.open(tmp_path / part / f"{n}.{'png' if n[-1] < '5' else 'jpg'}", os.O_CREAT))
    start = time.process_time()
    discover(tmp_path, ACCURACY)
    assert time.process_time() - start < 4


@pytest.mark.parametrize("bad", ["mask", "mask=a", "=a,b", ""])
def test_factors_of_another_form(bad):
    with pytest.raises(CompetitionError, match="form"):
        factors([bad])


def test_factors():
    assert factors(["mask=wear, incorrect,normal", "gender=male,female"]) == {
        "mask": ("wear", "incorrect", "normal"), "gender": ("male", "female"),
    }  # fmt: skip
    with pytest.raises(CompetitionError):
        factors(["a=1,2", "a=1,2"])


@pytest.mark.parametrize(
    ("columns", "form", "box"),
    [
        ("xmin,ymin,xmax,ymax", "corners", ["xmin", "ymin", "xmax", "ymax"]),
        ("bbox_y,bbox_x,bbox_h,bbox_w", "size", ["bbox_x", "bbox_y", "bbox_w", "bbox_h"]),
        ("X Center,Y Center,width,height", "centre", ["X Center", "Y Center", "width", "height"]),
        ("x1,x2,y1,age", "", []),
    ],
)
def test_columns_that_look_like_a_box_are_pointed_out(tmp_path, columns, form, box):
    kaggle(tmp_path)
    rows = [(f"{i:05d}", i, i + 1, i + 20, i + 30, KINDS[i % 3]) for i in range(12)]
    table(tmp_path / "train.csv", f"id,{columns},label", rows)
    discovery = discover(tmp_path, replace(ACCURACY, target=("label",)))
    said = [line for line in discovery.lines if "[boxes.NAME]" in line]
    assert len(said) == bool(box)
    if box:
        assert f'form = "{form}"' in said[0]
        text = said[0].split("columns = ")[1].split("]")[0] + "]"
        assert BoxTable(tomllib.loads(f"columns = {text}")["columns"], form).columns == tuple(box)


@pytest.mark.parametrize(("level", "alpha"), [(0, "white"), (255, "black")])
def test_glyphs_that_stand_in_alpha_alone_choose_what_is_behind(tmp_path, level, alpha):
    """Some of the pictures are of one colour with a drawing in their alpha: what shows it is chosen, in one line."""
    root = kaggle(tmp_path)
    drawing = Image.linear_gradient("L").resize((8, 8))
    for path in sorted((root / "train").iterdir())[:5]:
        Image.merge("LA", (Image.new("L", (8, 8), level), drawing)).save(path)
    for path in sorted((root / "test").iterdir())[:2]:  # blank is blank, and alpha beside colours is no reason
        Image.new("LA", (8, 8), (level, 90)).save(path)
    discovery = discover(root, ACCURACY)
    lines = [line for line in discovery.lines if "alpha" in line]
    assert lines == [
        f'pictures: alpha = "{alpha}": 5 of 18 pictures looked at are of one colour without their alpha, which alone has the drawing'
    ]
    assert found(root, ACCURACY).alpha == alpha
    assert f'alpha = "{alpha}"' in (root / FILE).read_text()


def test_colours_with_transparency_are_left_alone(tmp_path):
    root = kaggle(tmp_path)
    drawing = Image.linear_gradient("L").resize((8, 8))
    for path in (root / "train").iterdir():
        Image.merge("RGBA", (drawing, drawing, drawing, drawing)).save(path)
    assert found(root, ACCURACY).alpha == "drop"
    assert "alpha =" not in (root / FILE).read_text() + " ".join(discover(root, ACCURACY).lines)


@pytest.mark.parametrize(
    ("top", "window"), [(4095, "[0, 4095]"), (1000, "[0, 1023]"), (9000, "[0, 16383]"), (65535, ""), (200, "")]
)
def test_values_that_fill_fewer_than_16_bits_are_named(tmp_path, top, window):
    root = kaggle(tmp_path)
    for path in (root / "train").iterdir():
        Image.fromarray(np.linspace(0, top, 64).astype(np.uint16).reshape(8, 8)).save(path)
    lines = [line for line in discover(root, ACCURACY).lines if "16 bits" in line]
    assert len(lines) == bool(window)
    assert all(f"no value above {top:,}" in line and f"window = {window}" in line for line in lines)


def test_what_else_pictures_are(tmp_path):
    """JPEGs without an end marker, animations: each is said once, with its count."""
    root = kaggle(tmp_path, suffix=".jpg")
    for path in sorted((root / "train").iterdir())[:3]:
        path.write_bytes(path.read_bytes()[:-2])
    first, second = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    first.save(root / "test" / "900000.jpg", "GIF", save_all=True, append_images=[second])
    text = "\n".join(discover(root, ACCURACY).lines)
    assert "3 of 18 pictures looked at are JPEGs that lack nothing but the end marker" in text
    assert "1 of 18 pictures looked at have several frames or pages: the first is used" in text


@pytest.mark.parametrize(("name", "pattern"), [("{:05d}.png", "{id:05}.png"), ("{}.png", "{id}.png")])
def test_numbers_name_files_with_zeros_in_front_and_labels_name_none(tmp_path, name, pattern):
    """Ids 0 to 19 as numbers, files of five digits or of none, and a label that is also the name of a file."""
    rows = [(i, i % 3, i % 2) for i in range(20)]
    table(tmp_path / "train.csv", "id,label,fold", rows)
    table(tmp_path / "sample_submission.csv", "id,label", [(i, 0) for i in range(100, 105)])
    pictures(tmp_path / "train", [name.format(i) for i, *_ in rows])
    pictures(tmp_path / "test", [name.format(i) for i in range(100, 105)])
    competition = found(tmp_path, Wishes(metric="accuracy"))
    assert competition.train.pattern == pattern
    assert {name: int(path.stem) for name, path in competition.images("train")} == {str(i): i for i in range(20)}


def test_zeros_that_rows_have_and_files_lack_are_named(tmp_path):
    table(tmp_path / "train.csv", "id,label", [(f"{i:04d}", "ab"[i % 2]) for i in range(20)])
    table(tmp_path / "sample_submission.csv", "id,label", [(f"{i:04d}", "a") for i in range(5)])
    pictures(tmp_path / "train", [f"{i}.png" for i in range(20)])
    pictures(tmp_path / "test", [f"{i}.png" for i in range(5)])
    assert "rows and files differ in zeros in front (" in questions(tmp_path, ACCURACY)


def test_a_list_of_ids_is_no_sample_and_other_tables_are_offered(tmp_path):
    table(tmp_path / "answers.csv", "id,label", [(i, "ab"[i % 2]) for i in range(20)])
    table(tmp_path / "test.csv", "id", [(i,) for i in range(5)])
    pictures(tmp_path / "train", [f"{i}.png" for i in range(20)])
    asked = questions(tmp_path, ACCURACY)
    assert "sample: test.csv ('id') lists ids alone" in asked
    assert "train: no table of labels" in asked
    assert "candidates: 'answers.csv'" in asked
