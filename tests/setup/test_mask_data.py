"""The mask competition: its layout as drawn, and the workspace that its folders become."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import few_people
from toolkit.errors import CompetitionError, SplitError
from toolkit.setup import mask_data
from toolkit.setup.discover import discover
from toolkit.setup.infer_targets import OpenQuestionsError, Wishes
from toolkit.workspace.competition import Competition

NAMES = {"mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return mask_data.draw(tmp_path_factory.mktemp("portraits") / "raw", people=24, test_people=2, seed=5)


def people(root):
    return sorted((root / "train" / "images").iterdir())


def pictures(folder):
    return {path.stem: path for path in folder.iterdir() if not path.name.startswith(".")}


def test_the_drawn_set_has_the_competitions_layout(drawn):
    table = pd.read_csv(drawn / "train/train.csv", dtype=str)
    assert list(table.columns) == ["id", "gender", "race", "age", "path"]
    assert [path.name for path in people(drawn)] == sorted(table["path"])
    for row in table.itertuples():
        assert re.fullmatch(r"\d{6}_(male|female)_Asian_\d\d", row.path)
        assert row.path == f"{row.id}_{row.gender}_{row.race}_{row.age}"
        assert set(pictures(drawn / "train/images" / row.path)) == NAMES
    suffixes = {path.suffix for folder in people(drawn) for path in pictures(folder).values()}
    assert suffixes == {".jpg", ".jpeg", ".png"}
    assert list((drawn / "train/images").glob("*/._*"))  # left by macOS, no picture
    info = pd.read_csv(drawn / "eval/info.csv", dtype=str)
    assert list(info.columns) == ["ImageID", "ans"]
    assert info["ImageID"].str.fullmatch(r"[0-9a-f]{40}\.jpg").all()
    assert sorted(info["ImageID"]) == sorted(path.name for path in (drawn / "eval/images").iterdir())
    assert len(info) == 14
    with Image.open(next(iter(pictures(people(drawn)[0]).values()))) as image:
        assert (image.size, image.mode) == ((96, 128), "RGB")


def test_the_same_seed_draws_the_same_and_another_does_not(drawn, tmp_path):
    for seed in (5, 6):
        mask_data.draw(tmp_path / str(seed), people=24, test_people=2, seed=seed)
    first = {p.relative_to(drawn): p.read_bytes() for p in drawn.rglob("*") if p.is_file()}
    again = {p.relative_to(tmp_path / "5"): p.read_bytes() for p in (tmp_path / "5").rglob("*") if p.is_file()}
    assert first == again
    assert (tmp_path / "6/train/train.csv").read_bytes() != (drawn / "train/train.csv").read_bytes()


def test_the_class_number_is_that_of_the_competitions_rules(drawn, tmp_path):
    """mask × 6 + gender × 3 + age, with wear, incorrect, normal; male, female; below 30, below 60, from 60."""
    competition = mask_data.make_workspace(tmp_path / "work", drawn)
    truth = competition.truth()[mask_data.TARGET]
    files = dict(competition.images("train"))
    assert len(truth) == len(files) == 24 * 7
    for name, label in zip(truth.ids, truth.labels, strict=True):
        _, gender, _, age = files[name].parent.name.split("_")
        mask = {"mas": 0, "inc": 1, "nor": 2}[files[name].name[:3]]
        years = int(age)
        expected = 6 * mask + 3 * (gender == "female") + (0 if years < 30 else 1 if years < 60 else 2)
        assert label == expected, name
    assert len({path for path in files.values() if path.exists()}) == 24 * 7
    assert len(competition.images("test")) == 14
    assert [mask_data.age_class(years) for years in (18, 29, 30, 59, 60, 90)] == ["young"] * 2 + ["middle"] * 2 + ["old"] * 2


def test_every_person_stays_in_one_fold(tmp_path):
    root = few_people(tmp_path)
    competition = Competition.read(root)
    split = mask_data.make_split(competition)
    assert split.count == 2
    homes = {}
    for name, fold in zip(split.ids, split.folds, strict=True):
        homes.setdefault(name.split("_")[0], set()).add(int(fold))
    assert len(homes) == 12
    assert all(len(found) == 1 for found in homes.values())
    assert not split.missing_classes()
    by_picture = mask_data.make_workspace(tmp_path / "other", root, by_person=False)
    assert by_picture.group == ""
    assert mask_data.make_split(by_picture, count=2).digest != split.digest


def test_a_person_photographed_again_is_the_same_person(tmp_path):
    raw = mask_data.draw(tmp_path / "raw", people=6, test_people=1)
    table = pd.read_csv(raw / "train/train.csv", dtype=str)
    again = table.loc[1, "path"]
    (raw / "train/images" / again).rename(raw / "train/images" / f"000001-1{again[6:]}")
    table.loc[1, ["id", "path"]] = ["000001-1", f"000001-1{again[6:]}"]
    table.to_csv(raw / "train/train.csv", index=False)
    rows = mask_data.make_workspace(tmp_path / "work", raw).rows
    assert rows.groupby("person").size()["000001"] == 14
    assert rows["id"].is_unique


def wall(path):
    """The upper corners, where neither hair nor shirt is."""
    with Image.open(path) as image:
        pixels = np.asarray(image, dtype=float)
    return np.concatenate([pixels[:14, :14].mean((0, 1)), pixels[:14, -14:].mean((0, 1))])


@pytest.mark.parametrize("identity", [True, False])
def test_identity_keeps_the_wall_of_a_person(tmp_path, identity):
    raw = mask_data.draw(tmp_path, people=6, test_people=1, identity=identity)
    apart = [np.ptp([wall(path) for path in pictures(folder).values()], axis=0).max() for folder in people(raw)]
    assert max(apart) < 12 if identity else min(apart) > 60
    between = np.ptp([wall(folder / pictures(folder)["normal"].name) for folder in people(raw)], axis=0)
    assert between.max() > 60


def test_labels_can_be_seen_in_the_pictures(drawn):
    """Grey hair tells the age class better than chance, for those who draw and for those who learn."""
    found = {"young": [], "old": []}
    for folder in people(drawn):
        age = mask_data.age_class(int(folder.name.split("_")[3]))
        with Image.open(pictures(folder)["normal"]) as image:
            pixels = np.asarray(image, dtype=float)
        if age in found:
            found[age].append(pixels[22:28, 44:52].mean())
    assert np.mean(found["old"]) > np.mean(found["young"]) + 60


def test_what_is_not_there_is_said(tmp_path, drawn):
    with pytest.raises(CompetitionError, match=r"no train/train\.csv") as caught:
        mask_data.make_workspace(tmp_path / "empty")
    assert caught.value.code == "masks-missing"
    with pytest.raises(CompetitionError, match="exists, so nothing is drawn"):
        mask_data.draw(drawn)
    with pytest.raises(CompetitionError, match="5 people cannot show"):
        mask_data.draw(tmp_path / "few", people=5)
    raw = mask_data.draw(tmp_path / "raw", people=6, test_people=1)
    table = (raw / "train/train.csv").read_text()
    for file in people(raw)[0].iterdir():
        file.unlink()
    with pytest.raises(CompetitionError, match=f"lacks the pictures of 1 person: '{people(raw)[0].name}'"):
        mask_data.make_workspace(tmp_path / "w", raw)
    assert not (tmp_path / "w" / "competition.toml").exists()
    (raw / "train/train.csv").write_text(re.sub(r"Asian,\d+", "Asian,old", table, count=1))
    with pytest.raises(CompetitionError, match="whole numbers, not 'old'"):
        mask_data.make_workspace(tmp_path / "w", raw)


def test_a_workspace_that_is_there_is_read_and_a_stale_split_refused(tmp_path):
    root = few_people(tmp_path)
    before = (root / "competition.toml").read_bytes()
    assert mask_data.make_workspace(root).group == "person"
    assert (root / "competition.toml").read_bytes() == before
    text = (root / "split.csv").read_text().replace("000001,", "000002,", 1)
    (root / "split.csv").write_text(text)
    with pytest.raises(SplitError):
        mask_data.make_split(Competition.read(root))


def test_a_kill_while_drawing_leaves_a_folder_that_can_be_drawn_in(tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mask_data, "_draw_test", fail)  # the last step: what was drawn before it lies there when the kill comes
        with pytest.raises(KeyboardInterrupt):
            mask_data.draw(tmp_path, people=6)
    assert list(tmp_path.iterdir()) == []
    assert mask_data.draw(tmp_path, people=6, test_people=1) == tmp_path


def test_init_sets_the_competitions_own_layout_up_as_the_recipe_does(drawn, tmp_path):
    """In one round, with no question, from the folder itself, from its `data`, or with --data; a word of one's own is kept."""
    wanted = mask_data.make_workspace(tmp_path / "by-recipe", drawn)
    found = discover(tmp_path / "by-init", Wishes(data=str(drawn)))
    found.write()
    assert (tmp_path / "by-init/pictures.csv").read_bytes() == (tmp_path / "by-recipe/pictures.csv").read_bytes()
    assert replace(Competition.read(tmp_path / "by-init"), root=wanted.root) == wanted
    assert found.recipe == "mask_profile"
    assert "mask_profile.py --data" in found.lines[0]
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/data").symlink_to(drawn)
    inside = discover(tmp_path / "inside", Wishes(metric="accuracy", name="mine")).competition
    assert (inside.train.folder, inside.sample) == ("data/train/images", "data/eval/info.csv")
    assert (inside.metric, inside.name, inside.group) == ("accuracy", "mine", "person")


def test_test_pictures_that_are_not_there_are_named(drawn, tmp_path):
    raw = shutil.copytree(drawn, tmp_path / "raw")
    lost = min((raw / "eval/images").iterdir())
    lost.unlink()
    with pytest.raises(CompetitionError, match=f"lacks 1 image of eval/info.csv: '{lost.name}'"):
        discover(raw, Wishes())


@pytest.mark.parametrize("what", ["a picture of each person", "no folder per person", "another target"])
def test_what_only_resembles_that_layout_is_asked_about(drawn, tmp_path, what):
    raw = shutil.copytree(drawn, tmp_path / "raw")
    if what == "a picture of each person":
        for folder in people(raw):
            for name, path in pictures(folder).items():
                if name != "normal":
                    path.unlink()
    if what == "no folder per person":
        shutil.rmtree(people(raw)[0])
    wishes = Wishes(target=("gender",)) if what == "another target" else Wishes()
    with pytest.raises(OpenQuestionsError, match="metric"):
        discover(raw, wishes)
