"""Splits: folds partition the rows, groups stay whole, the digest does not depend on row order."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit

from toolkit.core.targets import Target
from toolkit.errors import CompetitionError, SplitError
from toolkit.workspace.competition import Competition, Images
from toolkit.workspace.make_split import load_or_make
from toolkit.workspace.split import EXTRA, SPLIT_FILE, Split, join_names, make, split_names

NAMES = ("a", "b", "c")


def ids(count):
    return [f"{i:04d}" for i in range(count)]


@st.composite
def problems(draw):
    """Labels with at least five of each class, groups, extra rows."""
    count = draw(st.integers(15, 60))
    labels = np.array([i % 3 if i < 15 else draw(st.integers(0, 2)) for i in range(count)])
    extra = np.array([i >= 15 and draw(st.booleans()) for i in range(count)])
    return labels, extra, draw(st.integers(2, 5)), draw(st.integers(0, 99))


@settings(max_examples=40, deadline=None)
@given(problems())
def test_folds_partition_the_rows(problem):
    labels, extra, folds, seed = problem
    split = make(ids(len(labels)), labels, NAMES, folds=folds, seed=seed, extra=extra)
    held = [name for fold in range(folds) for name in split.held_out(fold)]
    assert sorted(held) == [name for name, e in zip(split.ids, extra, strict=True) if not e]
    for fold in range(folds):
        assert sorted([*split.held_out(fold), *split.training(fold)]) == sorted(split.ids)
    assert split.training(None) == split.ids
    table = split.balance()
    assert sum(row["rows"] for row in table) == len(labels)
    for c, name in enumerate(NAMES):
        counts = [row["classes"][name] for row in table if row["fold"] != EXTRA]
        assert sum(row["classes"][name] for row in table) == (labels == c).sum()
        assert max(counts) - min(counts) <= 1


@settings(max_examples=40, deadline=None)
@given(problems(), st.randoms())
def test_the_digest_knows_the_rows_not_their_order(problem, random):
    labels, extra, folds, seed = problem
    split = make(ids(len(labels)), labels, NAMES, folds=folds, seed=seed, extra=extra)
    order = list(range(len(labels)))
    random.shuffle(order)

    def taken(rows, folds=split.folds):
        return Split(*(tuple(part[i] for i in rows) for part in (split.ids, split.labels, split.groups)), folds[rows])

    assert taken(order).digest == split.digest
    other = split.folds.copy()
    swap = [np.flatnonzero(other == 0)[0], np.flatnonzero(other == 1)[0]]
    other[swap] = other[swap[::-1]]
    assert taken(list(range(len(labels))), other).digest != split.digest


def test_the_digest_is_stable():
    """A constant: changing how it is made would orphan every export."""
    split = Split(("1", "2"), ("a", "b"), ("", "g"), np.array([0, 1]))
    assert split.digest == "19d6ae6f7fd97871"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 50), st.integers(2, 5))
def test_groups_are_never_torn(seed, folds):
    rng = np.random.default_rng(seed)
    groups = [f"g{g}" for g in rng.integers(0, 30, 200)]
    labels = rng.integers(0, 3, 200)
    split = make(ids(200), labels, NAMES, folds=folds, seed=seed, groups=groups)
    homes = Counter(group for group, _ in set(zip(split.groups, split.folds.tolist(), strict=True)))
    assert set(homes.values()) == {1}
    reference = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(reference.split(labels, labels, groups)):
        assert split.held_out(fold) == tuple(f"{i:04d}" for i in test)


def test_multilabel_groups_are_never_torn_and_every_fold_has_every_class():
    rng = np.random.default_rng(0)
    labels = rng.random((300, 3)) < [0.5, 0.2, 0.1]
    groups = [f"g{g}" for g in rng.integers(0, 100, 300)]
    split = make(ids(300), labels, NAMES, groups=groups)
    assert len(set(zip(split.groups, split.folds.tolist(), strict=True))) == len(set(groups))
    assert not split.missing_classes()
    assert min(row["classes"]["c"] for row in split.balance()) >= 2


def test_the_holdout_is_scikit_learns():
    labels = np.random.default_rng(0).integers(0, 3, 100)
    split = make(ids(100), labels, NAMES, holdout=0.3, seed=4)
    _, test = next(StratifiedShuffleSplit(1, test_size=0.3, random_state=4).split(labels, labels))
    assert set(split.held_out(0)) == {f"{i:04d}" for i in test}
    assert set(split.folds.tolist()) == {0, EXTRA}


@pytest.mark.parametrize("share", [0, 1, -0.1, 2])
def test_a_holdout_is_a_share(share):
    with pytest.raises(SplitError, match="between 0 and 1"):
        make(ids(10), np.zeros(10, dtype=int), ("a",), holdout=share)


def test_a_multilabel_holdout():
    labels = np.random.default_rng(0).random((200, 3)) < 0.3
    split = make(ids(200), labels, NAMES, holdout=0.2)
    assert len(split.held_out(0)) == pytest.approx(40, abs=4)


REFUSED = {
    "one fold": ({"folds": 1}, "at least 2"),
    "too few rows": ({"folds": 21}, "20 rows cannot make 21 folds"),
    "a rare class": ({"folds": 6}, r"fewer than 6 members: 'c \(5\)'"),
    "few groups": ({"folds": 5, "groups": ["x", "y"] * 10}, "2 groups cannot make 5 folds"),
    "empty group": ({"folds": 5, "groups": ["", "y"] * 10}, "10 rows have an empty group"),
    "extra tears a group": ({"folds": 2, "groups": [f"g{i // 2}" for i in range(20)], "extra": np.arange(20) == 0}, "more than one fold: 'g0'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_split_is_named(name):
    options, message = REFUSED[name]
    labels = np.array([0] * 8 + [1] * 7 + [2] * 5)
    with pytest.raises(SplitError, match=message):
        make(ids(20), labels, NAMES, **options)


def test_a_split_checks_itself():
    good = (("1", "2"), ("a", "a"), ("", ""))
    for broken, message in [
        ((*good, np.array([0, 2])), "hold out no row"),
        ((*good, np.array([0, -2])), "numbered from 0"),
        ((*good, np.array([-1, -1])), "at least one fold"),
        ((*good, np.array([0])), "one label, group and fold per id"),
        ((("1", "1"), *good[1:], np.array([0, 1])), "ids repeat: '1'"),
        ((*good[:2], ("g", "g"), np.array([0, 1])), "more than one fold: 'g'"),
    ]:
        with pytest.raises(SplitError, match=message):
            Split(*broken)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=6)


@settings(deadline=None)
@given(st.dictionaries(TEXT, st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_a_split_is_read_back(tmp_path_factory, rows):
    """Whatever is in the names: quotes, commas, newlines, NA."""
    groups = [f"{i}{group}" for i, (_, group) in enumerate(rows.values())]
    split = Split(tuple(rows), tuple(label for label, _ in rows.values()), tuple(groups), np.arange(len(rows)))
    again = Split.read(split.write(tmp_path_factory.mktemp("law") / "split.csv"))
    assert (again.ids, again.labels, again.groups, again.digest) == (split.ids, split.labels, split.groups, split.digest)


@given(st.lists(TEXT, max_size=4))
def test_class_names_are_joined_and_split_again(names):
    assert split_names(join_names(names)) == names


def test_class_names_with_a_bar_are_one_class():
    split = make(ids(4), np.array([0, 1, 0, 1]), ("a|b", "c"), folds=2)
    assert split.balance()[0]["classes"] == {"a|b": 1, "c": 1}


def test_classes_are_counted_in_class_order():
    split = make(ids(22), np.arange(22) % 11, [str(i) for i in range(11)], folds=2)
    assert list(split.balance()[0]["classes"]) == [str(i) for i in range(11)]


def test_absent_classes_are_listed():
    split = Split(("1", "2", "3"), ("a", "b", "a"), ("", "", ""), np.array([0, 1, 1]))
    assert split.missing_classes() == [(0, "b")]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("id,label,group,fold\n1,a,,x\n", SplitError, "whole numbers"),
        ("id,label,group,fold\n1,a,,1\n", SplitError, "hold out no row"),
        ("id,label,fold\n1,a,0\n", CompetitionError, "no column 'group'"),
        ("id,label,group,fold\n1,a,,0\n1,a,,0\n", CompetitionError, "more than once"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, error, message):
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(error, match=message) as caught:
        Split.read(tmp_path / "split.csv")
    assert "split.csv" in caught.value.message


def test_a_table_of_folds_only_is_told_what_a_split_is(tmp_path):
    (tmp_path / "split.csv").write_text("id,fold\n1,0\n")
    with pytest.raises(CompetitionError) as caught:
        Split.read(tmp_path / "split.csv")
    assert "toolkit split" in caught.value.hint


def test_no_file(tmp_path):
    with pytest.raises(SplitError, match="does not exist"):
        Split.read(tmp_path / "split.csv")


@pytest.fixture
def cats(tmp_path):
    """A competition of twelve rows without a split."""
    (tmp_path / "train.csv").write_text("id,label\n" + "".join(f"{i},{'cat' if i % 2 else 'dog'}\n" for i in range(12)))
    images = Images("train", "{id}.png", "train.csv")
    return Competition(tmp_path, "cats", "accuracy", (Target("label", "multiclass", ("cat", "dog")),), images, images)


def test_a_workspaces_split_is_there_once_it_is_made(cats):
    assert Split.if_made(cats) is None
    with pytest.raises(SplitError, match="does not exist"):
        Split.of(cats)
    made = load_or_make(cats, count=3)
    assert made.count == 3
    assert Split.of(cats).digest == Split.if_made(cats).digest == made.digest
    assert load_or_make(cats, count=2).digest == made.digest  # what is there stays


def test_a_damaged_split_is_not_taken_for_none(cats):
    (cats.root / SPLIT_FILE).write_text("id,label,group,fold\n0,cat,,x\n")
    with pytest.raises(SplitError, match="whole numbers"):
        Split.if_made(cats)
    with pytest.raises(SplitError, match="whole numbers"):
        load_or_make(cats)
