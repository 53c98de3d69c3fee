"""The workspace file: read, written, refused; the truth and the images it leads to."""

import itertools
import tomllib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.core.targets import Target
from toolkit.errors import CompetitionError
from toolkit.workspace.competition import Competition, Images, class_order

KINDS = Target("label", "multiclass", ("cat", "dog", "fox"))


def competition(root, targets=(KINDS,), *, pattern="{id}.png", **fields):
    images = Images("images", pattern, "train.csv")
    return Competition(root, "c", "accuracy", tuple(targets), images, Images("images", pattern), **fields)


def put(root, text, name="train.csv"):
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    return root


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
CLASSES = st.lists(TEXT, min_size=2, max_size=4, unique=True)


@st.composite
def targets(draw, name):
    task = draw(st.sampled_from(["multiclass", "binary", "multilabel"]))
    classes = draw(CLASSES)
    if task == "binary":
        return Target(name, task, tuple(classes[:2]), positive=draw(st.sampled_from(classes[:2])))
    if task == "multilabel":
        return Target(name, task, tuple(classes), column=draw(TEXT), separator=draw(TEXT))
    if draw(st.booleans()):
        parts = draw(st.dictionaries(TEXT, CLASSES, min_size=1, max_size=2))
        count = int(np.prod([len(part) for part in parts.values()]))
        return Target(name, task, tuple(map(str, range(count))), factors={k: tuple(v) for k, v in parts.items()})
    return Target(name, task, tuple(classes))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_file_is_read_back(tmp_path_factory, data):
    """Quotes, newlines, DEL, emoji in any name survive; `tomllib` is the judge of the syntax."""
    root = tmp_path_factory.mktemp("law")
    names = data.draw(st.lists(TEXT, min_size=1, max_size=3, unique=True))
    text = st.one_of(st.just(""), TEXT)
    ours = Competition(
        root,
        data.draw(TEXT),
        "log_loss",
        tuple(data.draw(targets(name)) for name in names),
        Images(data.draw(TEXT), data.draw(TEXT), data.draw(text)),
        Images(data.draw(TEXT), data.draw(TEXT), data.draw(text)),
        id=data.draw(TEXT),
        group=data.draw(text),
        extra=data.draw(text),
        per_id=data.draw(st.sampled_from(["", "mean", "max"])),
        sample=data.draw(TEXT),
        format=data.draw(text),
        sample_id=data.draw(text),
        max_mb=data.draw(st.sampled_from([0.0, 20.0, 0.5])),
    )
    tomllib.loads(ours.to_toml())
    (root / "competition.toml").write_text(ours.to_toml(), encoding="utf-8", newline="")
    assert Competition.read(root) == ours


GOOD = """
name = "c"
metric = "accuracy"
[columns]
id = "id"
[train]
table = "train.csv"
images = "images"
pattern = "{id}.png"
[test]
images = "images"
pattern = "{id}.png"
[targets.label]
task = "multiclass"
classes = ["a", "b"]
"""

BAD = {
    "not toml": ("name = ", "cannot be read"),
    "unknown metric": (GOOD.replace("accuracy", "accurracy"), "unknown metric 'accurracy'"),
    "unknown key": (GOOD.replace("name =", "nmae ="), "unknown key 'nmae'"),
    "unknown key below": (GOOD.replace("pattern =", "patern =", 1), r"unknown key 'patern' in \[train\]"),
    "unknown key of a target": (GOOD + 'colunm = "x"\n', r"unknown key 'colunm' in \[targets.label\]"),
    "missing": (GOOD.replace('name = "c"\n', ""), "the key 'name' is missing"),
    "missing below": (GOOD.replace('pattern = "{id}.png"\n', "", 1), "the key 'pattern' is missing"),
    "no targets": (GOOD.partition("[targets")[0], "the key 'targets' is missing"),
    "number for text": (GOOD.replace('"c"', "3"), "name must be text in quotes, not 3"),
    "text for a table": (GOOD.replace('[columns]\nid = "id"', 'columns = "id"'), "table is needed"),
    "text for classes": (GOOD.replace('["a", "b"]', '"ab"'), "classes must be a list"),
    "one class": (GOOD.replace('"a", "b"', '"a"'), "classes must be several"),
    "class twice": (GOOD.replace('"a", "b"', '"a", "a"'), "classes must be several and different"),
    "task": (GOOD.replace("multiclass", "regression"), "not 'regression'"),
    "binary of three": (GOOD.replace("multiclass", "binary").replace('"b"]', '"b", "c"]'), "two classes"),
    "positive": (GOOD.replace("multiclass", "binary") + 'positive = "x"\n', "one of them positive"),
    "separator": (GOOD.replace("multiclass", "multilabel") + 'separator = ""\n', "separator"),
    "factors": (GOOD + 'factors = { x = ["1", "2"], y = ["1", "2"] }\n', "has 4 classes, 2 are named"),
    "factors as text": (GOOD + 'factors = { x = "ab" }\n', "classes are a list"),
    "per id": (GOOD + '[submission]\nper_id = "median"\n', '"mean" or "max"'),
    "newer": ("schema = 2\n" + GOOD, "schema 2"),
    "odd schema": ('schema = "1"\n' + GOOD, "schema '1'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_explained(tmp_path, name):
    text, message = BAD[name]
    with pytest.raises(CompetitionError, match=message) as caught:
        Competition.read(put(tmp_path, text, "competition.toml"))
    assert "competition.toml" in caught.value.message


def test_a_good_file_with_its_defaults(tmp_path):
    read = Competition.read(put(tmp_path, GOOD, "competition.toml"))
    assert (read.id, read.sample, read.group, read.per_id) == ("id", "sample_submission.csv", "", "")
    assert Competition.read(put(tmp_path, GOOD.replace('[columns]\nid = "id"\n', ""), "competition.toml")) == read
    with pytest.raises(CompetitionError, match="no target 'x'"):
        read.target("x")
    assert read.target("label").classes == ("a", "b")


def test_the_workspace_is_found_from_below(tmp_path):
    put(tmp_path, GOOD, "competition.toml")
    below = tmp_path / "runs/a"
    below.mkdir(parents=True)
    assert Competition.find(below).root == tmp_path
    with pytest.raises(CompetitionError, match=r"no competition\.toml"):
        Competition.find(tmp_path.parent)
    with pytest.raises(CompetitionError, match="does not exist"):
        Competition.read(below)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["10", "9", "1"], ("1", "9", "10")),
        (["-1", "+2", "1.5", "01", "1"], ("-1", "01", "1", "1.5", "+2")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["b", "B", "a", "b"], ("B", "a", "b")),
        (["²", "1"], ("1", "²")),
        (["٣", "10", "9"], ("10", "9", "٣")),
    ],
)
def test_class_order(names, order):
    for shuffled in itertools.permutations(names):
        assert class_order(shuffled) == order


def test_truth_of_every_kind_of_target(tmp_path):
    put(tmp_path, "id,label,size,mark,tags,x,y\n1,cat,s,1,a b,1,0\n2,fox,l,0,,0.0,1.0\n3,dog,s,0,b,1,1\n")
    found = competition(
        tmp_path,
        [
            KINDS,
            Target("mark", "binary", ("0", "1")),
            Target("joint", "multiclass", (), factors={"label": KINDS.classes, "size": ("s", "l")}),
            Target("tags", "multilabel", ("a", "b")),
            Target("grid", "multilabel", ("x", "y")),
        ],
    ).truth()
    assert found["label"].labels.tolist() == [0, 2, 1]
    assert found["mark"].labels.tolist() == [1, 0, 0]
    assert found["joint"].classes == ("cat_s", "cat_l", "dog_s", "dog_l", "fox_s", "fox_l")
    assert found["joint"].labels.tolist() == [0, 5, 2]
    assert found["tags"].labels.tolist() == [[True, True], [False, False], [False, True]]
    assert found["grid"].labels.tolist() == [[True, False], [False, True], [True, True]]
    assert all(table.ids == ("1", "2", "3") for table in found.values())


def test_a_joint_label_is_row_major(tmp_path):
    """The published formula of the mask competition: mask · 6 + gender · 3 + age."""
    parts = {"mask": ("wear", "incorrect", "normal"), "gender": ("male", "female"), "age": ("-30", "30-59", "60-")}
    rows = list(itertools.product(*(range(len(p)) for p in parts.values())))
    text = "id,mask,gender,age\n" + "".join(
        f"{i}," + ",".join(c[k] for c, k in zip(parts.values(), row, strict=True)) + "\n" for i, row in enumerate(rows)
    )
    joint = Target("ans", "multiclass", (), factors=parts)
    labels = competition(put(tmp_path, text), [joint]).truth()["ans"].labels
    assert labels.tolist() == [mask * 6 + gender * 3 + age for mask, gender, age in rows]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (KINDS, r"column 'label' has 2 labels that are no class of it: 'Cat', 'wolf' \(ids '2', '3'\)"),
        (Target("tags", "multilabel", ("a", "b")), r"column 'tags' has 1 label .* 'c' \(ids '3'\)"),
        (Target("grid", "multilabel", ("x", "label")), r"column 'x' has 1 label .* '2' \(ids '2'\)"),
        (Target("kind", "multiclass", ("a", "b")), "no column 'kind'"),
        (Target("j", "multiclass", (), factors={"size": ("s", "l")}), "no column 'size'"),
    ],
)
def test_unknown_labels_are_named(tmp_path, target, message):
    put(tmp_path, "id,label,tags,x\n1,cat,a,1\n2,Cat,b,2\n3,wolf,a c,0\n")
    with pytest.raises(CompetitionError, match=message):
        competition(tmp_path, [target]).truth()


def test_many_unknown_labels_are_named_in_no_time(tmp_path):
    import time

    put(tmp_path, "id,label\n" + "".join(f"{i},wolf\n" for i in range(50_000)))
    start = time.process_time()
    with pytest.raises(CompetitionError, match="50,000 labels"):
        competition(tmp_path).truth()
    assert time.process_time() - start < 3


def test_several_rows_per_id(tmp_path):
    put(tmp_path, "id,label\n1,cat\n2,dog\n1,cat\n")
    with pytest.raises(CompetitionError, match="more than once: '1'"):
        competition(tmp_path).truth()
    truth = competition(tmp_path, per_id="mean").truth()["label"]
    assert (truth.ids, truth.labels.tolist()) == (("1", "2"), [0, 1])
    put(tmp_path, "id,label\n1,cat\n2,dog\n1,dog\n")
    with pytest.raises(CompetitionError, match="images of one id disagree on 'label': '1'"):
        competition(tmp_path, per_id="mean").truth()


def test_images_by_every_kind_of_pattern(tmp_path):
    put(tmp_path, "id,patient,file.name,a: b\n1,p,./p/1.png,x\n2,q,q/2.png,y\n")
    for name in ("p/1.png", "q/2.png", "1.png", "2.png", "x.png", "y.png"):
        put((tmp_path / "images" / name).parent, "", name.rpartition("/")[2])
    images = tmp_path / "images"
    for pattern, expected in {
        "{id}.png": ["1.png", "2.png"],
        "{patient}/{id}.png": ["p/1.png", "q/2.png"],
        "{file.name}": ["p/1.png", "q/2.png"],
        "{a: b}.png": ["x.png", "y.png"],
    }.items():
        assert competition(tmp_path, pattern=pattern).images("train") == list(
            zip("12", [images / name for name in expected], strict=True)
        )


def test_patterns_with_a_star(tmp_path):
    put(tmp_path, "id\na\na[1]\nb*\n")
    for name in ("a_0.png", "a_1.png", "a[1]_0.png", "b*_0.png", "bb_0.png", ".a_2.png"):
        put(tmp_path / "images", "", name)
    found = competition(tmp_path, pattern="{id}_*.png", per_id="mean").images("train")
    assert [(name, path.name) for name, path in found] == [
        ("a", "a_0.png"), ("a", "a_1.png"), ("a[1]", "a[1]_0.png"), ("b*", "b*_0.png"),
    ]  # fmt: skip
    with pytest.raises(CompetitionError, match="several images for one id"):
        competition(tmp_path, pattern="{id}_*.png").images("train")


def test_a_star_in_the_folder(tmp_path):
    put(tmp_path, "id\na\nb[1]\nc\n")
    for name in ("part1/a.png", "part2/b[1].png", "part2/b1.png"):
        put((tmp_path / "images" / name).parent, "", name.rpartition("/")[2])
    found = competition(tmp_path, pattern="part*/{id}.png").images("train")
    assert [path.relative_to(tmp_path / "images").as_posix() for _, path in found] == [
        "part1/a.png", "part2/b[1].png", "part*/c.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("x.png", "names no column"), ("{}.png", "names no column"), ("{name}.png", "names 'name'; there are 'id'")],
)
def test_bad_patterns(tmp_path, pattern, message):
    put(tmp_path / "images", "", "1.png")
    with pytest.raises(CompetitionError, match=message):
        competition(put(tmp_path, "id\n1\n"), pattern=pattern).images("train")


def test_images_that_are_not_there(tmp_path):
    put(tmp_path, "id\n1\n2\n")
    with pytest.raises(CompetitionError, match=r"folder .* does not exist"):
        competition(tmp_path).images("train")
    put(tmp_path / "images", "", "3.png")
    with pytest.raises(CompetitionError, match=r"none of the 2 train images is there.*1\.png"):
        competition(tmp_path).images("train")
    put(tmp_path / "images", "", "2.png")
    assert len(competition(tmp_path).images("train")) == 2


def test_the_test_part_is_listed_by_its_table_or_the_sample(tmp_path):
    put(tmp_path, "id,label\n1,cat\n1,cat\n", "sample_submission.csv")
    put(tmp_path / "images", "", "1.png")
    with pytest.raises(CompetitionError, match="more than once"):  # a sample has one row per id whatever per_id says
        competition(tmp_path, per_id="mean").images("test")


def test_folders_elsewhere(tmp_path):
    data, root = tmp_path / "data", tmp_path / "work"
    put(data, "id,label\n1,cat\n")
    put(data / "images", "", "1.png")
    images = Images(str(data / "images"), "{id}.png", str(data / "train.csv"))
    found = Competition(root, "c", "accuracy", (KINDS,), images, images)
    assert found.images("train") == [("1", data / "images/1.png")]
