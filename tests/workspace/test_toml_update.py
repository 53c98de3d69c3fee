"""A competition.toml that is written again keeps what its owner wrote into it; its values are the new ones."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from toolkit.cli import cli
from toolkit.core.targets import Target
from toolkit.workspace import toml_update
from toolkit.workspace.competition import FILE, Competition, Images

COMPETITION = Competition(
    root=None,
    name="cats",
    metric="accuracy",
    targets=(Target("label", "multiclass", ("ant", "bee")),),
    train=Images("train", "{id}.png", "train.csv"),
    test=Images("test", "{id}.png"),
    group="person",
)
OWN = """# asked in the forum: ties count half
metric = "accuracy"  # the rules, section 3
name = "cats"
schema = 1

[targets.label]
# the organisers' order
classes = [
    "ant",  # 0
    "bee",  # 1
]
task = "multiclass"
column = "label"

[columns]
id = "id"
group = "person"  # one photographer

[train]
table = "train.csv"
images = "train"
pattern = "{id}.png"

[test]
images = "test"  # moved in May
pattern = "{id}.png"

[submission]
sample = "sample_submission.csv"
"""


@pytest.fixture
def workspace(tmp_path):
    return replace(COMPETITION, root=tmp_path)


def test_a_new_file_is_the_competitions_text(workspace):
    path = toml_update.write(workspace)
    assert path.read_text(encoding="utf-8") == workspace.to_toml()


def test_the_owners_file_is_not_touched_where_it_says_the_same(workspace):
    (workspace.root / FILE).write_text(OWN, encoding="utf-8")
    assert toml_update.write(Competition.read(workspace.root)).read_text(encoding="utf-8") == OWN


def test_comments_and_order_survive_other_values(workspace):
    (workspace.root / FILE).write_text(OWN, encoding="utf-8")
    changed = replace(workspace, metric="log_loss", group="", upload="kaggle:cats")
    text = toml_update.write(changed).read_text(encoding="utf-8")
    assert Competition.read(workspace.root) == changed
    kept = [line for line in OWN.splitlines() if "#" in line and "photographer" not in line]
    assert [line for line in text.splitlines() if "#" in line] == [line.replace('"accuracy"', '"log_loss"') for line in kept]
    assert text.index("[targets.label]") < text.index("[columns]") < text.index("[train]")


def test_what_is_no_toml_is_written_anew(workspace):
    (workspace.root / FILE).write_text("name = cats", encoding="utf-8")
    assert toml_update.write(workspace).read_text(encoding="utf-8") == workspace.to_toml()


def test_init_with_force_keeps_comments(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    for part, count in (("train", 6), ("test", 2)):
        for i in range(count):
            (tmp_path / part / f"{part}{i}.png").touch()
    rows = "".join(f"train{i},{'ant' if i % 2 else 'bee'}\n" for i in range(6))
    (tmp_path / "train.csv").write_text(f"id,label\n{rows}")
    (tmp_path / "sample_submission.csv").write_text("id,label\ntest0,ant\ntest1,ant\n")
    run = CliRunner().invoke
    assert run(cli, ["init", str(tmp_path), "--metric", "accuracy"]).exit_code == 0
    path = tmp_path / FILE
    path.write_text("# mine\n" + path.read_text().replace('metric = "accuracy"', 'metric = "accuracy"  # for now'))
    result = run(cli, ["init", str(tmp_path), "--metric", "macro_f1", "--force"])
    assert result.exit_code == 0, result.output
    assert path.read_text().startswith("# mine\n")
    assert 'metric = "macro_f1"  # for now' in path.read_text()


scalars = st.one_of(st.text(max_size=4), st.integers(-3, 3), st.lists(st.text(max_size=2), max_size=3))
keys = st.sampled_from(["a", "b", "c", "d e", ""])
tables = st.dictionaries(keys, st.one_of(scalars, st.dictionaries(keys, scalars, max_size=3)), max_size=4)


@given(before=tables, after=tables)
def test_whatever_was_there_the_values_are_the_new_ones(before, after):
    import tomlkit

    text = toml_update.rewritten(tomlkit.dumps(before), tomlkit.dumps(after))
    assert tomllib.loads(text) == after
