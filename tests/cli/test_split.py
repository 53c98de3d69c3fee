"""`toolkit split` and what it composes: groups, extra rows, rare classes, several targets."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.model_selection import StratifiedKFold

from toolkit.cli import cli
from toolkit.core.predictions import Predictions
from toolkit.core.targets import Target
from toolkit.errors import CompetitionError, SplitError
from toolkit.workspace.competition import Competition, Images
from toolkit.workspace.make_split import create, for_competition, stratify_on
from toolkit.workspace.split import EXTRA, Split

KINDS = ("cat", "dog", "fox")


LABEL = Target("label", "multiclass", KINDS)


def workspace(root, header, rows, targets=(LABEL,), **fields):
    root.mkdir(parents=True, exist_ok=True)
    (root / "train.csv").write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    images = Images("images", "{id}.png", "train.csv")
    competition = Competition(root, "c", "accuracy", tuple(targets), images, images, **fields)
    (root / "competition.toml").write_text(competition.to_toml())
    return competition


def plain(root, rows=60, **fields):
    return workspace(root, "id,label", [(f"{i:03d}", KINDS[i % 3]) for i in range(rows)], **fields)


def run(*args):
    result = CliRunner().invoke(cli, list(map(str, args)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_it_writes_the_split_and_prints_what_was_made(tmp_path):
    plain(tmp_path)
    result = run("-C", tmp_path, "split", "--seed", 3)
    assert result.exit_code == 0, result.output
    split = Split.read(tmp_path / "split.csv")
    assert split.count == 5
    assert all(row["classes"] == {"cat": 4, "dog": 4, "fox": 4} for row in split.balance())
    assert split.digest in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["fold", "rows", "cat", "dog", "fox"] in lines
    assert ["2", "12", "4", "4", "4"] in lines
    assert "\x1b" not in result.stdout


def test_rows_of_several_images_split_and_recipes_are_said_not_to_take_them(tmp_path):
    competition = plain(tmp_path, rows=30, per_id="mean")
    competition = replace(competition, train=replace(competition.train, pattern="{id}/*"))
    (tmp_path / "competition.toml").write_text(competition.to_toml())
    assert "several images" not in run("-C", tmp_path, "split").stdout  # no files are there to tell
    for i in range(30):
        (tmp_path / "images" / f"{i:03d}").mkdir(parents=True)
        for name in "ab":
            (tmp_path / "images" / f"{i:03d}" / f"{name}.png").write_bytes(b"")
    result = run("-C", tmp_path, "split", "--force")
    assert result.exit_code == 0
    assert "Warning: rows have several images" in result.stdout
    assert "recipes train on one image per row" in result.stdout


def test_an_existing_split_stays_unless_forced(tmp_path):
    plain(tmp_path)
    assert run("-C", tmp_path, "split").exit_code == 0
    before = (tmp_path / "split.csv").read_bytes()
    result = run("-C", tmp_path, "split", "--seed", 1)
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert (tmp_path / "split.csv").read_bytes() == before
    assert run("-C", tmp_path, "split", "--seed", 1, "--force").exit_code == 0
    assert (tmp_path / "split.csv").read_bytes() != before


def test_the_same_seed_is_the_same_split(tmp_path):
    competition = plain(tmp_path)
    assert for_competition(competition).digest == for_competition(competition).digest
    assert for_competition(competition).digest != for_competition(competition, seed=1).digest


@pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.3, 0.5])
def test_holdout_is_one_part_of_that_share(tmp_path, share):
    split = for_competition(plain(tmp_path, 300), holdout=share)
    assert split.count == 1
    assert len(split.held_out(0)) == pytest.approx(300 * share, abs=1)
    assert len(split.training(0)) + len(split.held_out(0)) == 300
    counts = split.balance()[0]["classes"].values()
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("share", ["0", "1", "1.5", "-0.2"])
def test_holdout_is_a_share(tmp_path, share):
    plain(tmp_path)
    assert run("-C", tmp_path, "split", "--holdout", share).exit_code == 2
    assert run("-C", tmp_path, "split", "--folds", "1").exit_code == 2


def test_holdout_keeps_groups_whole(tmp_path):
    rows = [(f"{i:03d}", KINDS[i % 3], f"g{i // 6}") for i in range(300)]
    split = for_competition(workspace(tmp_path, "id,label,who", rows, group="who"), holdout=0.3)
    assert len(split.held_out(0)) == pytest.approx(90, abs=12)
    assert not {split.groups[i] for i in np.flatnonzero(split.folds == 0)} & {
        split.groups[i] for i in np.flatnonzero(split.folds)
    }


def test_groups_are_kept_and_counted(tmp_path):
    rows = [(f"{i:03d}", KINDS[i % 3], f"g{i // 4}") for i in range(120)]
    workspace(tmp_path, "id,label,who", rows, group="who")
    result = run("-C", tmp_path, "split")
    assert result.exit_code == 0
    assert "groups" in result.stdout
    split = Split.read(tmp_path / "split.csv")
    homes = {(group, fold) for group, fold in zip(split.groups, split.folds.tolist(), strict=True)}
    assert len(homes) == 30
    assert sum(row["groups"] for row in split.balance()) == 30


def test_a_group_column_that_is_not_there_or_empty(tmp_path):
    rows = [(f"{i:03d}", KINDS[i % 3], "") for i in range(30)]
    with pytest.raises(SplitError, match="30 rows have an empty group"):
        for_competition(workspace(tmp_path, "id,label,who", rows, group="who"))
    with pytest.raises(SplitError, match="no column 'whom'"):
        for_competition(workspace(tmp_path, "id,label,who", rows, group="whom"))


def test_extra_rows_are_never_held_out(tmp_path):
    rows = [(f"{i:03d}", KINDS[i % 3], ["", "0", "false", "no", "1", "True", "yes"][i % 7]) for i in range(105)]
    split = for_competition(workspace(tmp_path, "id,label,old", rows, extra="old"))
    assert {split.ids[i] for i in np.flatnonzero(split.folds == EXTRA)} == {f"{i:03d}" for i in range(105) if i % 7 > 3}
    assert all("004" in split.training(fold) for fold in range(5))
    with pytest.raises(SplitError, match="not 'maybe'"):
        for_competition(workspace(tmp_path, "id,label,old", [("1", "cat", "maybe")], extra="old"))


def test_rare_classes_are_named_or_made_extra(tmp_path):
    rows = [(f"{i:03d}", KINDS[i % 2]) for i in range(40)] + [("x", "fox"), ("y", "fox")]
    workspace(tmp_path, "id,label", rows)
    result = run("-C", tmp_path, "split")
    assert result.exit_code == 1
    assert "fox (2)" in result.stderr
    assert "--rare extra" in result.stderr
    assert not (tmp_path / "split.csv").exists()
    assert run("-C", tmp_path, "split", "--rare", "extra").exit_code == 0
    split = Split.read(tmp_path / "split.csv")
    assert [split.ids[i] for i in np.flatnonzero(split.folds == EXTRA)] == ["x", "y"]


def test_rare_takes_whole_groups_and_what_becomes_rare_through_them(tmp_path):
    """The lone fox shares a group with a dog; without that dog there are too few dogs as well."""
    rows = [(f"{i:03d}", "cat", f"c{i}") for i in range(20)] + [(f"d{i}", "dog", f"d{i}") for i in range(5)]
    rows += [("fox", "fox", "d0")]
    split = for_competition(workspace(tmp_path, "id,label,who", rows, group="who"), rare="extra")
    assert {split.ids[i] for i in np.flatnonzero(split.folds == EXTRA)} == {"fox", *(f"d{i}" for i in range(5))}


def test_several_targets_are_balanced_together(tmp_path):
    rng = np.random.default_rng(0)
    rows = [(f"{i:03d}", rng.choice(["a", "b"], p=[0.8, 0.2]), rng.choice(["x", "y"])) for i in range(400)]
    targets = [Target("one", "multiclass", ("a", "b")), Target("two", "multiclass", ("x", "y"))]
    split = for_competition(workspace(tmp_path, "id,one,two", rows, targets))
    for name in ("a_x", "a_y", "b_x", "b_y"):
        counts = [row["classes"][name] for row in split.balance()]
        assert max(counts) - min(counts) <= 1


def test_names_of_combinations_stay_apart():
    """ "a_b" with "c" and "a" with "b_c" are two combinations."""
    one = Predictions("one", "labels", ("1", "2"), ("a", "a_b"), labels=np.array([1, 0]))
    two = Predictions("two", "labels", ("1", "2"), ("b_c", "c"), labels=np.array([1, 0]))
    labels, names = stratify_on([one, two])
    assert len(set(names)) == len(set(labels.tolist())) == 2


def test_multilabel_is_stratified_on_every_class(tmp_path):
    rng = np.random.default_rng(0)
    grid = rng.random((500, 4)) < [0.5, 0.2, 0.1, 0.06]
    rows = [(f"{i:03d}", "+".join(f"c{c}" for c in np.flatnonzero(row))) for i, row in enumerate(grid)]
    target = Target("label", "multilabel", ("c0", "c1", "c2", "c3"), separator="+")
    split = for_competition(workspace(tmp_path, "id,label", rows, [target]))
    for c in range(4):
        counts = [row["classes"][f"c{c}"] for row in split.balance()]
        assert max(counts) - min(counts) <= 2, (c, counts)


def test_multilabel_with_groups(tmp_path):
    rng = np.random.default_rng(0)
    rows = [(f"{i:03d}", *(rng.random(3) < 0.3).astype(int), f"p{i // 3}") for i in range(300)]
    target = Target("label", "multilabel", ("a", "b", "c"))
    competition = workspace(tmp_path, "id,a,b,c,who", rows, [target], group="who")
    for split in (for_competition(competition), for_competition(competition, holdout=0.25)):
        assert len(set(zip(split.groups, split.folds.tolist(), strict=True))) == 100
        assert min(len(split.held_out(fold)) for fold in range(split.count)) > 30


def test_a_multilabel_target_among_several(tmp_path):
    rows = [(f"{i:03d}", KINDS[i % 3], i % 2, int(i % 5 == 0)) for i in range(150)]
    targets = [Target("label", "multiclass", KINDS), Target("marks", "multilabel", ("a", "b"))]
    split = for_competition(workspace(tmp_path, "id,label,a,b", rows, targets))
    counts = [row["classes"] for row in split.balance()]
    assert set(counts[0]) == {"label=cat", "label=dog", "label=fox", "marks=a", "marks=b"}
    assert all(5 <= row["marks=b"] <= 7 for row in counts)


def test_several_rows_per_id_are_one_row_of_the_split(tmp_path):
    rows = [(f"{i:03d}", KINDS[i % 3], f"g{i // 2}", v) for i in range(30) for v in "ab"]
    competition = workspace(tmp_path, "id,label,who,view", rows, group="who", per_id="mean")
    split = for_competition(competition, count=3)
    assert split.ids == tuple(f"{i:03d}" for i in range(30))
    rows[1] = ("000", "cat", "other", "b")
    with pytest.raises(SplitError, match="different values of 'who': '000'"):
        for_competition(workspace(tmp_path, "id,label,who,view", rows, group="who", per_id="mean"))
    rows[1] = ("000", "dog", "g0", "b")
    with pytest.raises(CompetitionError, match="disagree"):
        for_competition(workspace(tmp_path, "id,label,who,view", rows, group="who", per_id="mean"))


def test_many_classes_are_shown_by_their_extremes_and_absent_ones_warned_of(tmp_path):
    names = [f"c{i:02d}" for i in range(39)]
    rows = [(f"{i:04d}", names[i % 39], f"g{i % 39 if i % 39 < 2 else i}") for i in range(390)]
    target = Target("label", "multiclass", tuple(names))
    workspace(tmp_path, "id,label,who", rows, [target], group="who")
    result = run("-C", tmp_path, "split")
    assert result.exit_code == 0, result.output
    assert "smallest class" in result.stdout
    assert "Largest spread: class c0" in result.stdout
    assert "Warning: class c00 is absent from fold" in result.stdout
    assert max(map(len, result.stdout.splitlines())) < 200


def test_class_names_are_printed_as_they_are(tmp_path):
    rows = [(f"{i:03d}", ["[bold]a", "b|c"][i % 2]) for i in range(20)]
    workspace(tmp_path, "id,label", rows, [Target("label", "multiclass", ("[bold]a", "b|c"))])
    result = run("-C", tmp_path, "split")
    assert "[bold]a" in result.stdout
    assert "b|c" in result.stdout


def test_spread_is_no_worse_than_scikit_learns(tmp_path):
    rng = np.random.default_rng(1)
    labels = rng.choice(3, 500, p=[0.7, 0.25, 0.05])
    split = for_competition(workspace(tmp_path, "id,label", [(i, KINDS[c]) for i, c in enumerate(labels)]))
    reference = [Counter(labels[test]) for _, test in StratifiedKFold(5, shuffle=True, random_state=0).split(labels, labels)]
    for c, name in enumerate(KINDS):
        ours = sorted(row["classes"][name] for row in split.balance())
        assert ours == sorted(fold[c] for fold in reference)


def test_create_needs_labels_that_are_known(tmp_path):
    with pytest.raises(CompetitionError, match="'wolf'"):
        create(workspace(tmp_path, "id,label", [("1", "wolf"), ("2", "cat")]))


def test_without_a_workspace(tmp_path):
    result = run("-C", tmp_path, "split")
    assert result.exit_code == 1
    assert "toolkit init" in result.stderr
