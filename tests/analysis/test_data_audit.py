"""Leaks and wrong labels that were planted are named, clean data raise no alarm, and corrections touch training alone."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.conftest import CLASSES
from toolkit.analysis import data_audit, label_doubts, picture_pairs
from toolkit.analysis.audit_findings import AuditFinding
from toolkit.analysis.pages import audit as page
from toolkit.cli import cli
from toolkit.core.prediction_files import write_table
from toolkit.core.predictions import Predictions
from toolkit.core.targets import Target
from toolkit.errors import CompetitionError
from toolkit.training import label_fixes
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split


def by_hand(p, truth):
    """The confident joint's off-diagonals as the paper counts them, row by row."""
    classes = range(p.shape[1])
    bar = {j: np.mean([p[i, j] for i in range(len(p)) if truth[i] == j]) for j in classes if (truth == j).any()}
    found = {}
    for i in range(len(p)):
        over = [j for j in bar if p[i, j] >= bar[j] - 1e-9]
        if over and (best := max(over, key=lambda j: p[i, j])) != truth[i]:
            found[i] = best
    return found


def noisy(rng, rows=600, classes=4, flips=40):
    """True labels, labels with some flipped, and sharp predictions of the truth."""
    true = rng.integers(0, classes, rows)
    p = rng.dirichlet(np.ones(classes), rows) * 0.5
    p[np.arange(rows), true] += 0.5
    given = true.copy()
    wrong = rng.choice(rows, flips, replace=False)
    given[wrong] = (given[wrong] + rng.integers(1, classes, flips)) % classes
    return true, given, p, wrong


@pytest.mark.parametrize("seed", range(5))
def test_confident_learning_is_the_papers(seed):
    _, given, p, _ = noisy(np.random.default_rng(seed), rows=200)
    likely = label_doubts.confident(p, given)
    assert {int(i): int(likely[i]) for i in np.flatnonzero(likely != given)} == by_hand(p, given)
    fewer = np.where(given == 3, 0, given)  # a class without rows is never suggested
    assert 3 not in label_doubts.confident(p, fewer)


def test_planted_label_noise_is_found():
    true, given, p, wrong = noisy(np.random.default_rng(0))
    likely = label_doubts.confident(p, given)
    found = np.flatnonzero(likely != given)
    hits = set(found.tolist()) & set(wrong.tolist())
    assert len(hits) >= 0.6 * len(wrong)
    assert len(hits) >= 0.8 * len(found)
    assert np.mean(likely[list(hits)] == true[list(hits)]) > 0.95


def oof(workspace, change=()):
    """An out-of-fold table that is sure of the truth, and of something else where it should be changed."""
    truth = Competition.find().truth()["label"]
    labels = truth.decided.copy()
    for one, name in change:
        labels[truth.ids.index(one)] = CLASSES.index(name)
    sure = np.random.default_rng(0).uniform(0.7, 0.9, len(labels))[:, None]
    values = np.where(np.eye(3)[labels] == 1, sure, (1 - sure) / 2)
    write_table(
        workspace / "oof" / "m.parquet", {"label": Predictions("label", "probabilities", truth.ids, CLASSES, values)}, {}
    )


def codes(found):
    return {finding.code: finding.severity for finding in found.findings}


def shuffle_labels(workspace):
    """Labels that do not follow the ids, with pictures and split as they are."""
    rows = [(f"{i:04d}", CLASSES[k]) for i, k in enumerate(np.random.default_rng(1).permutation(np.arange(24) % 3))]
    (workspace / "train.csv").write_text("id,label\n" + "".join(f"{a},{b}\n" for a, b in rows))


def unlike(workspace):
    """Pictures that have nothing in common."""
    rng = np.random.default_rng(0)
    for path in sorted(workspace.glob("t*/*.png")):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        small.resize((40, 40), Image.Resampling.BICUBIC).save(path)


def test_clean_data_raise_no_alarm(workspace):
    unlike(workspace)
    shuffle_labels(workspace)
    oof(workspace)
    assert data_audit.audit(Competition.find()).findings == ()


def test_planted_duplicates_are_named_where_they_lie(workspace):
    unlike(workspace)
    shuffle_labels(workspace)
    oof(workspace)
    split = Split.read(workspace / "split.csv")
    zero, one = split.held_out(0), split.held_out(1)
    train = workspace / "train"
    shutil.copy(train / f"{zero[0]}.png", train / f"{one[0]}.png")
    Image.open(train / f"{zero[1]}.png").rotate(90, expand=True).resize((50, 50)).save(train / f"{zero[2]}.png")
    Image.open(train / f"{one[3]}.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(workspace / "test" / "9003.png")
    found = data_audit.audit(Competition.find())
    assert {(frozenset(p.ids), p.kind, p.exact) for p in found.pairs} == {
        (frozenset({zero[0], one[0]}), "two folds", True),
        (frozenset({zero[1], zero[2]}), "one place", False),
        (frozenset({one[3], "9003"}), "train and test", False),
    }
    said = codes(found)
    assert (said["two_folds"], said["turned"]) == ("leak", "warning")
    rows = Competition.find().rows
    labels = dict(zip(rows["id"], rows["label"], strict=True))
    clash = [p for p in ((zero[0], one[0]), (zero[1], zero[2])) if labels[p[0]] != labels[p[1]]]
    assert ("contradiction" in said) == bool(clash)
    assert {p.ids for p in data_audit.audit(Competition.find(), test=False).pairs if p.kind == "train and test"} == set()


def test_people_in_several_folds_are_named(workspace):
    """A split by picture tears people apart; one by person does not."""
    people = [f"p{i // 4:03d}" for i in range(100)]
    rows = "".join(f"{i:04d},{CLASSES[i % 3]},{people[i]},{i % 2}\n" for i in range(100))
    (workspace / "train.csv").write_text("id,label,person,sex\n" + rows)
    by_picture = Split(
        tuple(f"{i:04d}" for i in range(100)), tuple(CLASSES[i % 3] for i in range(100)), ("",) * 100, np.arange(100) % 5
    )
    competition = Competition.find()
    (found,) = data_audit.groups(competition, by_picture)
    assert (found.severity, found.count) == ("warning", 25)
    assert "column 'person': 25 of 25 values have rows in several folds" in found.what
    (found,) = data_audit.groups(replace(competition, group="person"), by_picture)
    assert found.severity == "leak"
    assert "100% of rows" in found.what
    by_person = replace(by_picture, folds=np.arange(100) // 4 % 5)
    assert list(data_audit.groups(competition, by_person)) == []


def test_folders_may_name_people_too(workspace):
    for i in range(100):
        (workspace / "train" / f"person{i // 4}").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (i, i, i)).save(workspace / "train" / f"person{i // 4}" / f"{i:04d}.png")
    rows = "".join(f"{i:04d},{CLASSES[i % 3]},person{i // 4}/{i:04d}.png\n" for i in range(100))
    (workspace / "train.csv").write_text("id,label,path\n" + rows)
    competition = Competition.find()
    competition = replace(competition, train=replace(competition.train, pattern="{path}"))
    split = Split(tuple(f"{i:04d}" for i in range(100)), ("ant",) * 100, ("",) * 100, np.arange(100) % 5)
    (found,) = data_audit.groups(competition, split)
    assert "the folder of the picture: 25 of 25" in found.what


def test_ids_that_tell_the_label(workspace):
    rows = "".join(f"{i:04d},{CLASSES[i // 20]}\n" for i in range(60))
    (workspace / "train.csv").write_text("id,label\n" + rows)
    (found,) = data_audit.ordered_ids(Competition.find())
    assert "neighbours in their order share the class 97% of the time, by chance 33%" in found.what
    shuffle_labels(workspace)
    assert list(data_audit.ordered_ids(Competition.find())) == []


def test_names_that_people_take_for_one_are_named(workspace):
    """From the table on: classes and groups that differ in case, outer spaces or normal form; a group torn so is a leak."""
    from toolkit.analysis import data_survey

    names = ["caf\u00e9", "cafe\u0301", "bee", "bee "]
    people = ["Ann", "ann", "Bo", "Cy"]
    rows = "".join(f"{i:04d},{names[i % 4]},{people[i // 6]}\n" for i in range(24))
    (workspace / "train.csv").write_text("id,label,person\n" + rows)
    sample = (workspace / "sample_submission.csv").read_text()
    (workspace / "sample_submission.csv").write_text(sample.replace("ant", "bee"))
    (workspace / "split.csv").unlink()
    done = CliRunner().invoke(cli, ["init", "--metric", "accuracy", "--group", "person", "--force"])
    assert done.exit_code == 0, done.output
    competition = Competition.find()
    ids, labels = tuple(f"{i:04d}" for i in range(24)), tuple(names[i % 4] for i in range(24))
    people_of = tuple(people[i // 6] for i in range(24))
    torn = Split(ids, labels, people_of, np.arange(24) // 6 % 2)
    of_classes, of_groups = data_audit.twin_names(competition, torn)
    assert (of_classes.severity, of_groups.severity) == ("warning", "leak")
    assert "'bee' and 'bee '" in of_classes.what
    assert "'caf\u00e9' and 'cafe\u0301'" in of_classes.what or "'cafe\u0301' and 'caf\u00e9'" in of_classes.what
    assert "'Ann' and 'ann': 1 of 1 stand in several folds" in of_groups.what
    kept = Split(ids, labels, people_of, np.arange(24) // 12)
    assert [finding.severity for finding in data_audit.twin_names(competition, kept)] == ["warning", "warning"]
    advice = " ".join(data_survey.survey(competition).advice)
    assert "'bee' and 'bee '" in advice
    assert "'Ann' and 'ann'" in advice
    assert {"twins"} <= {finding.code for finding in data_audit.audit(competition, test=False).findings}


def test_a_torn_split_is_a_finding_and_no_crash(workspace):
    text = (workspace / "split.csv").read_text().splitlines()
    rows = [line.split(",") for line in text]
    place = rows[0].index("group")
    for row in rows[1:]:
        row[place] = "everyone"
    (workspace / "split.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")
    (found,) = [f for f in data_audit.audit(Competition.find()).findings if f.code == "split"]
    assert (found.severity, "everyone" in found.what) == ("leak", True)


def test_multilabel_doubts_are_one_row_each():
    rng = np.random.default_rng(0)
    true = rng.random((300, 3)) < 0.4
    p = np.clip(np.where(true, 0.8, 0.2) + rng.normal(0, 0.05, true.shape), 0, 1)
    p[[5, 9]] = np.where(true[[5, 9]], 0.95, 0.05)
    given = true.copy()
    given[5, 1] ^= True
    given[9] ^= np.array([True, False, True])
    truth = Predictions("tags", "labels", tuple(map(str, range(300))), CLASSES, labels=given, multilabel=True)
    found = {issue.id: issue for issue in label_doubts.doubts(Target("tags", "multilabel", CLASSES), truth, p, {})}
    assert {"5", "9"} <= set(found)
    assert len(found) < 10
    wanted = " ".join(name for name, yes in zip(CLASSES, true[9], strict=True) if yes)
    assert found["9"].suggested == wanted


def pair(turn="id", labels=("ant", "ant"), homes=("train 0", "train 1"), relation="one picture", name="a"):
    return picture_pairs.Pair(
        (name, f"{name}2"), (Path("a"), Path("b")), homes, labels, turn, 1.0, exact=False, relation=relation
    )


def test_a_mirrored_b_is_a_d_and_a_mirrored_shoe_is_a_shoe():
    shoes = [pair("hflip", name=f"shoe{i}") for i in range(9)]
    assert picture_pairs.turns([pair(), *shoes, pair("hflip", ("ant", "bee"))]) == {"hflip": "same class"}
    letters = [pair("hflip", ("b", "d")), pair("hflip", ("b", "")), pair("rot180", ("b", ""))]
    assert picture_pairs.turns(letters) == {"hflip": "other class", "rot180": "unknown"}
    turned = [replace(one, relation="turned") for one in letters]
    (other, unknown) = picture_pairs.findings_of(turned)
    assert (other.code, other.severity, other.count) == ("turned", "note", 2)
    assert "their labels differ" in other.what
    assert (unknown.severity, unknown.count) == ("warning", 1)
    assert "1 of them lie in two folds or in train and test" in unknown.what


def test_what_is_alike_is_a_note_that_says_why_it_is_not_proved():
    pairs = [replace(pair(relation="alike"), differs="colour"), replace(pair(relation="alike", name="b"), differs="too small")]
    (finding,) = picture_pairs.findings_of(pairs)
    assert (finding.code, finding.severity, finding.count) == ("alike", "note", 2)
    assert "(1 apart in colour, 1 too small to tell): 'a ~ a2', 'b ~ b2'" in finding.what
    (template,) = picture_pairs.of_templates(["a", "b"])
    assert (template.code, template.count) == ("template", 2)


def test_mirrored_letters_are_no_leak_and_no_contradiction(workspace):
    """Letters that are each other's mirror, in two folds and in the test set: labels tell that this makes another class."""
    unlike(workspace)
    shuffle_labels(workspace)
    competition, split = Competition.find(), Split.read(workspace / "split.csv")
    truth = competition.truth()["label"]
    labels = {row: CLASSES[label] for row, label in zip(truth.ids, truth.decided.tolist(), strict=True)}
    first = split.held_out(0)[0]
    other = next(row for row in split.held_out(1) if labels[row] != labels[first])
    train, test = workspace / "train", workspace / "test"
    mirrored = Image.open(train / f"{first}.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(train / f"{other}.png")
    Image.open(train / f"{split.held_out(0)[1]}.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(test / "9003.png")
    found = data_audit.audit(competition)
    said = codes(found)
    assert said["turned"] == "note"
    assert not {"two_folds", "train_and_test", "contradiction"} & set(said)
    assert {p.relation for p in found.pairs if p.turn != "id"} == {"turned"}


def test_a_weak_judge_names_no_label_and_says_how_weak_it_is(workspace):
    unlike(workspace)
    shuffle_labels(workspace)
    oof(workspace)
    competition = Competition.find()
    issues, (judge,), findings = label_doubts.judged(competition, {})
    assert (issues, findings, judge.weak, judge.score) == ([], [], "", 1.0)
    assert judge.log_loss < 0.4 < judge.shares == pytest.approx(np.log(3))
    truth = competition.truth()["label"]
    rng = np.random.default_rng(0)
    values = rng.dirichlet(np.ones(3) * 5, len(truth)) * 0.6 + np.eye(3)[truth.decided] * 0.4
    values[:4] = np.roll(np.eye(3)[truth.decided[:4]], 1, axis=1) * 0.5 + 1 / 6
    weak = {"label": Predictions("label", "probabilities", truth.ids, CLASSES, values)}
    write_table(workspace / "oof" / "m.parquet", weak, {})
    issues, (judge,), (finding,) = label_doubts.judged(competition, {})
    assert judge.doubted > 0
    assert (issues, finding.severity) == ([], "note")
    assert f"log-loss {judge.log_loss:.3f} (class shares alone: 1.099) is too weak for it" in finding.what


def test_a_judge_against_very_many_labels_names_none():
    judge = label_doubts.LabelJudge("label", 1, "accuracy", 0.8, 0.2, 1.1, doubted=20, rows=100)
    assert "20 of 100 labels, which cannot all be slips" in judge.weak
    assert not replace(judge, doubted=15).weak


def corrected(workspace, rows, name="labels_fix.csv"):
    (workspace / name).write_text("id,given,suggested\n" + "".join(",".join(row) + "\n" for row in rows))
    competition = replace(Competition.find(), labels_fix=name)
    (workspace / "competition.toml").write_text(competition.to_toml())
    return Competition.find()


def test_corrections_change_what_is_trained_on_and_nothing_else(workspace):
    plain = Competition.find()
    assert label_fixes.digest(plain) == ""
    assert np.array_equal(label_fixes.training_truth(plain)["label"].decided, plain.truth()["label"].decided)
    competition = corrected(workspace, [("0001", "bee", "cat"), ("0003", "ant", "bee")])
    assert competition.labels_fix == "labels_fix.csv"
    given, used = competition.truth()["label"], label_fixes.training_truth(competition)["label"]
    assert [i for i, a, b in zip(given.ids, given.decided, used.decided, strict=True) if a != b] == ["0001", "0003"]
    assert [CLASSES[used.decided[used.ids.index(one)]] for one in ("0001", "0003")] == ["cat", "bee"]
    before = label_fixes.digest(competition)
    assert len(before) == 16
    corrected(workspace, [("0001", "bee", "cat")])
    assert label_fixes.digest(competition) != before


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("7777", "bee", "cat"), "7777"),
        (("0001", "cat", "bee"), "gives 1 label otherwise"),
        (("0001", "bee", "dog"), "dog"),
    ],
)
def test_corrections_that_do_not_fit_are_refused(workspace, row, words):
    with pytest.raises(CompetitionError, match=words):
        label_fixes.training_truth(corrected(workspace, [row]))


def test_training_sees_the_corrections_and_scores_do_not(workspace):
    from toolkit.core.cards import Preprocess
    from toolkit.training import decode

    competition = corrected(workspace, [("0001", "bee", "cat")])
    samples = decode(competition, Preprocess((8, 8)), "label")
    assert samples.labels[samples.ids.index("0001")] == CLASSES.index("cat")
    truth = competition.truth()["label"]
    assert CLASSES[truth.decided[truth.ids.index("0001")]] == "bee"


def test_the_command_its_page_and_its_table(workspace):
    unlike(workspace)
    shuffle_labels(workspace)
    truth = Competition.find().truth()["label"]
    one = truth.ids[4]
    given = CLASSES[truth.decided[4]]
    other = next(name for name in CLASSES if name != given)
    oof(workspace, [(one, other)])
    done = CliRunner().invoke(cli, ["audit"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"{one}: {given} → {other}" in done.output
    assert "one table out of fold, " in done.output
    assert "(class shares alone: 1.099)" in done.output
    with (workspace / "reports" / "labels_fix.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"id": one, "given": given, "suggested": other}]
    html = (workspace / "reports" / "audit.html").read_text()
    assert "data:image/jpeg;base64," in html
    assert f"suggested {other}" in html
    said = json.loads(CliRunner().invoke(cli, ["audit", "--json", "--no-test"]).output)
    assert (said["issues"][0]["id"], said["images"]) == (one, 24)
    shutil.copy(workspace / "reports" / "labels_fix.csv", workspace / "mine.csv")
    (workspace / "competition.toml").write_text(replace(Competition.find(), labels_fix="reports/labels_fix.csv").to_toml())
    (workspace / "reports" / "labels_fix.csv").write_text("id,given,suggested\n")
    again = CliRunner().invoke(cli, ["audit"], catch_exceptions=False)
    assert "is in use and was left as it is" in again.output
    assert (workspace / "reports" / "labels_fix.csv").read_text() == "id,given,suggested\n"


def test_hostile_names_are_text_on_the_page(workspace):
    name = "<script>alert(1)</script>&\"'"
    issue = label_doubts.Issue(name, "label", "<b>ant", "bee", 0.1, 0.9, workspace / "train" / "0001.png")
    finding = AuditFinding("x", "leak", name, 1, "<img src=x onerror=alert(1)>")
    html = page.page(Competition.find(), data_audit.Audit((finding,), (), (issue,), 1, 5, {name: name})).html()
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert "<b>ant" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_a_run_on_corrected_labels_says_so_and_is_scored_on_those_given(workspace):
    """Half of the rows are corrected to the same class: a model that only says that class scores as the given labels have it."""
    import contextlib
    from dataclasses import dataclass

    from torch import nn

    from toolkit.core.cards import Preprocess
    from toolkit.errors import TrainingError
    from toolkit.runtime.graphs import onnx_file
    from toolkit.training import Plan, train

    @dataclass(frozen=True)
    class Config:
        member: str = "tiny"
        seed: int = 0

    seen = {}

    def always_ant(_config, fold):
        seen.update(
            zip(
                [fold.training.samples.ids[i] for i in fold.training.places],
                fold.training.__getitems__(range(len(fold.training)))[1].tolist(),
                strict=True,
            )
        )
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        nn.init.zeros_(model[1].weight)
        model[1].bias.data.copy_(model[1].bias.new_tensor([5.0, 0.0, 0.0]))
        (fold.folder / "metrics.csv").parent.mkdir(parents=True, exist_ok=True)
        (fold.folder / "metrics.csv").write_text("epoch\n1\n")
        return model

    def run():
        plan = Plan(
            "test", Config(), {"model_name": "none"}, Preprocess((8, 8)), (0.5,) * 3, (0.5,) * 3,
            Competition.find(), Split.read(workspace / "split.csv"), workspace,
        )  # fmt: skip
        done = list(train(plan, always_ant, bar=lambda _: contextlib.nullcontext(lambda _done, _total: None), folds=[0]))
        return done[0], onnx_file.read(plan.export(0)).card

    truth = Competition.find().truth()["label"]
    bees = [one for one, label in zip(truth.ids, truth.decided, strict=True) if CLASSES[label] == "bee"]
    competition = corrected(workspace, [(one, "bee", "ant") for one in bees])
    done, card = run()
    assert {seen[one] for one in bees if one in seen} == {CLASSES.index("ant")}
    held = truth.align(Split.read(workspace / "split.csv").held_out(0)).decided
    assert done.score == pytest.approx(float(np.mean(held == 0)))
    assert card.labels_fix == label_fixes.digest(competition) != ""
    corrected(workspace, [(bees[0], "bee", "ant")])
    with pytest.raises(TrainingError, match="labels_fix"):
        run()


def test_a_split_by_picture_of_people_is_named(tmp_path):
    """The mask competition's layout, where seven pictures of a person make any model know who is held out."""
    from toolkit.setup import mask_data

    raw = mask_data.draw(tmp_path / "raw", people=24, test_people=2, identity=True)
    competition = mask_data.make_workspace(tmp_path / "by-picture", raw, by_person=False)
    mask_data.make_split(competition, count=4)
    said = [f.what for f in data_audit.audit(competition).findings if f.code == "group"]
    assert any(what.startswith("column 'person': 24 of 24 values have rows in several folds") for what in said)
    grouped = mask_data.make_workspace(tmp_path / "by-person", raw)
    mask_data.make_split(grouped, count=4)
    assert {f.code for f in data_audit.audit(grouped).findings} & {"group", "two_folds"} == set()
