"""What predictions would score as they were made, on planted members: views, votes, blends and samples against NumPy by hand."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from tests.ensemble.test_tta import ROWS, Opened, copied, members, planted  # noqa: F401 - fixtures
from toolkit.blending import oof
from toolkit.blending.blend import Blend, OuterBlends
from toolkit.blending.combination import Combination
from toolkit.core import prediction_files
from toolkit.core.predictions import Predictions
from toolkit.ensemble import evidence, tta
from toolkit.ensemble.as_made import measure
from toolkit.ensemble.held_out_rows import Making
from toolkit.images.views import views
from toolkit.inference.execution import Execution
from toolkit.workspace.split import Split

HFLIP = views("hflip")


def making(exports, tta_set="none", combination=None, chosen=None):
    """How predictions of these exports are made with one set of views and a weight for each member alike."""
    names = list(dict.fromkeys(export.card.member for export in exports))
    weights = {"label": dict.fromkeys(names, 1 / len(names))}
    shares = {export.digest: 1 / len(exports) for export in exports}
    combination = combination or Combination(tta_set)
    return Making(weights, dict.fromkeys(names, views(tta_set)), combination, exports, shares, chosen or {})


def on(opened, **more):
    return Execution("cpu", opener=opened, **more)


def table(competition, name, right, **meta):
    """oof/NAME.parquet of probabilities that are right in these rows (bool [N]) and sure of the next class in the others."""
    truth = competition.truth()["label"]
    said = np.where(right, truth.decided, (truth.decided + 1) % 3)
    values = 0.85 * np.eye(3)[said] + 0.05
    predictions = Predictions("label", "probabilities", truth.ids, truth.classes, values)
    split = Split.read(competition.path("split.csv")).digest
    path = competition.path("oof", f"{name}.parquet")
    return prediction_files.write_table(path, {"label": predictions}, {"member": name, "split": split, **meta})


def test_views_that_mislead_are_in_the_score_and_the_plain_table_is_not_taken_for_it(copied):  # noqa: F811
    table(copied, "misled", np.ones(ROWS, dtype=bool))  # what training left: without views all is right
    exports = members(copied.root, "misled")
    plain = measure(copied, making(exports), on(Opened()), rows=0)
    assert (plain["out_of_fold"], plain["rows"], plain["kind"], plain["optimistic"]) == (1.0, ROWS, "plain", "")
    opened, lines = Opened(), []
    flipped = measure(copied, making(exports, "hflip"), on(opened), rows=None, seconds=0.5, say=lines.append)
    truth = copied.truth()["label"].decided
    assert flipped["out_of_fold"] == pytest.approx((truth != 0).mean())  # mirrored ants are bees, more surely so
    low, high = flipped["interval"]
    error = np.sqrt(2 / 9 / ROWS)
    assert (high - low) / 2 / 1.96 == pytest.approx(error, rel=0.15)
    assert opened.passes == ROWS * 2  # each row by the model of its own fold alone
    assert lines == ["Scoring out of fold with these views: 240 of 240 held-out rows, 480 passes, about 240 s"]


def test_a_sample_has_every_class_its_share_and_stored_rows_cost_nothing(copied):  # noqa: F811
    exports, opened, lines = members(copied.root, "misled"), Opened(), []
    for path in copied.path("train").glob("*.png"):
        os.utime(path, (0, 0))  # a file that was made a moment ago may change again, and is read again
    few = measure(copied, making(exports, "hflip"), on(opened), rows=60, say=lines.append)
    assert (few["rows"], few["of"], opened.passes) == (60, ROWS, 120)
    assert few["out_of_fold"] == pytest.approx(2 / 3, abs=1 / 60 + 1e-9)
    assert len(lines) == 1
    none = measure(copied, making(exports, "hflip"), on(Opened()), rows=0)
    assert none == {"unknown": "held-out rows with these views were not computed"}
    more = Opened()
    measure(copied, making(exports, "hflip"), on(more), rows=None)
    assert more.passes == 2 * (ROWS - 60)  # those of the sample are there
    again = measure(copied, making(exports, "hflip"), on(more), rows=0, say=lines.append)
    assert (again["rows"], more.passes, len(lines)) == (ROWS, 2 * (ROWS - 60), 1)


def test_a_table_of_other_checkpoints_is_not_taken_for_these_models(copied):  # noqa: F811
    right = np.arange(ROWS) % 4 > 0
    table(copied, "misled", right)
    truth, split = copied.truth()["label"], Split.read(copied.path("split.csv"))
    place = {name: i for i, name in enumerate(truth.ids)}
    scores = [right[[place[name] for name in split.held_out(fold)]].mean() for fold in range(2)]
    own = [replace(e, card=replace(e.card, score=float(scores[e.card.fold]))) for e in members(copied.root, "misled")]
    opened = Opened()
    assert measure(copied, making(own), on(opened))["out_of_fold"] == pytest.approx(right.mean())
    assert opened.passes == 0
    others = [replace(export, card=replace(export.card, score=1.0)) for export in own]
    assert measure(copied, making(others), on(opened), rows=None)["out_of_fold"] == 1.0
    assert opened.passes == ROWS


@pytest.mark.parametrize("fold", [0, 1])
def test_of_some_folds_only_their_rows_count(copied, fold):  # noqa: F811
    split, truth = Split.read(copied.path("split.csv")), copied.truth()["label"]
    table(copied, "misled", split.folds == 1)
    assert split.ids == truth.ids
    (export,) = members(copied.root, "misled", folds=(fold,))
    record = measure(copied, making([export]), on(Opened()), rows=0)
    assert (record["out_of_fold"], record["rows"]) == (float(fold), ROWS // 2)


def test_views_that_were_chosen_are_scored_by_the_choice_of_the_other_folds(copied):  # noqa: F811
    exports = members(copied.root, "misled")
    nested = measure(copied, making(exports, "hflip", chosen={"misled": {0: "hflip", 1: "none"}}), on(Opened()), rows=None)
    split, truth = Split.read(copied.path("split.csv")), copied.truth()["label"]
    right = np.where(split.folds == 0, truth.align(split.ids).decided != 0, True)
    assert nested["out_of_fold"] == pytest.approx(right.mean())
    assert (nested["kind"], nested["optimistic"]) == ("nested", "")
    lost = measure(copied, making(exports, "hflip", chosen={"misled": {}}), on(Opened()), rows=None)
    assert lost["optimistic"] == "views of 'misled' were chosen on the rows that score them"


def test_what_auto_chose_is_remembered_by_outer_fold(copied, monkeypatch):  # noqa: F811
    exports = members(copied.root, "helped", "misled")
    monkeypatch.setattr(tta, "read_exports", lambda *_, **__: exports)
    monkeypatch.setattr(tta, "VIEW_SETS", {"none": ("id",), "hflip": HFLIP})
    settled = tta.resolve(copied, [], Combination("auto"), on(Opened()))
    found = settled.record["members"]
    assert found["helped"]["chosen"] is True
    assert found["helped"]["outer"] == {"0": "hflip", "1": "hflip"}
    assert found["misled"]["chosen"] is False


def noisy(competition, seed, share):
    """Which rows are right by chance."""
    return np.random.default_rng(seed).random(len(competition.truth()["label"])) < share


@pytest.mark.parametrize("edit", [None, ("greedy", "weights"), ("outer", "forgotten"), ("split", "another")])
def test_a_fitted_blend_has_its_nested_score_or_says_optimistic(copied, edit):  # noqa: F811
    """Members of pure noise: the best of them in these rows is no better than the others anywhere else."""
    for seed in range(8):
        table(copied, f"m{seed}", noisy(copied, seed, 1 / 3))
    path, verdicts = oof.fit(copied, oof.find_tables(copied), weighers=["best_single"], votes=["soft"], always=True)
    estimates = verdicts["label"].estimates
    assert estimates["in_sample"].score > estimates["nested"].score + 0.02  # what must not be shown unmarked
    if edit == ("greedy", "weights"):
        weights = verdicts["label"].blend.record(copied.targets[0].classes)["members"]
        best = max(weights, key=weights.get)
        other = next(name for name in weights if name != best)
        path.write_text(
            path.read_text().replace(f'"{best}": 1.0', f'"{best}": 0.9', 1).replace(f'"{other}": 0.0', f'"{other}": 0.1', 1)
        )
    if edit == ("outer", "forgotten"):
        path.write_text(path.read_text().replace('"outer"', '"before"'))
    if edit == ("split", "another"):
        lines = copied.path("split.csv").read_text().splitlines()
        copied.path("split.csv").write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    blends = oof.read_blends(copied)
    weights = dict(zip(blends["label"].members, blends["label"].weights.tolist(), strict=True))
    record = measure(copied, Making({"label": weights}, {}, Combination(blend=blends)), rows=0)
    if edit is None:
        assert (record["kind"], record["optimistic"]) == ("nested", "")
        assert record["out_of_fold"] == pytest.approx(estimates["nested"].score)
        assert record["interval"] == pytest.approx([estimates["nested"].low, estimates["nested"].high])
    else:
        assert record["optimistic"] == "the blend of label was fitted to the rows that score it"
        assert record["kind"] == "plain"


def test_outer_folds_may_vote_otherwise(copied):  # noqa: F811
    """One fold's rows by a hard vote, the other's by the mean: each row as its own fold's blend has it."""
    right = [noisy(copied, seed, 0.6) for seed in range(3)]
    for seed, rows in enumerate(right):
        table(copied, f"m{seed}", rows)
    names, split = ("m0", "m1", "m2"), Split.read(copied.path("split.csv"))
    blends = {0: Blend(names, np.ones(3) / 3, "hard"), 1: Blend(names, np.array([1.0, 0.0, 0.0]))}
    outer = OuterBlends(blends, dict(zip(split.ids, split.folds.tolist(), strict=True)))
    blend = Blend(names, np.ones(3) / 3, fitted=True, outer=outer)
    how = Making({"label": dict.fromkeys(names, 1 / 3)}, {}, Combination(blend={"label": blend}))
    hits = np.where(split.folds == 0, np.sum(right, axis=0) >= 2, right[0])
    assert measure(copied, how, rows=0)["out_of_fold"] == pytest.approx(hits.mean())


def test_marks_of_lineage_reach_the_record_once(copied):  # noqa: F811
    table(copied, "misled", noisy(copied, 0, 0.5), selected="seen", unknown=["old.safetensors"])
    exports = [replace(e, card=replace(e.card, selected="best", lineage=None)) for e in members(copied.root, "misled")]
    record = measure(copied, making(exports), on(Opened()), rows=0)
    assert record["optimistic"].count("'misled': ") == 2
    assert "(best)" in record["optimistic"]
    assert "(seen)" in record["optimistic"]
    assert any("old.safetensors" in note and "misled.fold0" in note for note in record["notes"])


@pytest.mark.parametrize("error", [RuntimeError("no such kernel"), MemoryError("too much"), KeyError("x")])
def test_whatever_goes_wrong_is_said_and_nothing_is_lost(copied, error):  # noqa: F811
    def broken(*_, **__):
        raise error

    record = measure(copied, making(members(copied.root, "misled"), "hflip"), on(broken), rows=None)
    assert record == {"unknown": f"{type(error).__name__}: {error}"}


def test_ranks_and_hard_votes_are_taken_as_they_are(copied):  # noqa: F811
    """Two sure members against one: the label most say; a metric that needs numbers has none of it."""
    right = [noisy(copied, seed, 0.6) for seed in range(3)]
    for seed, rows in enumerate(right):
        table(copied, f"m{seed}", rows)
    how = Making({"label": {f"m{seed}": 1 / 3 for seed in range(3)}}, {}, Combination(vote="hard"))
    record = measure(copied, how, rows=0)
    assert record["out_of_fold"] == pytest.approx((np.sum(right, axis=0) >= 2).mean())
    assert record["members"]["m1"] == pytest.approx(right[1].mean())
    numbers = measure(replace(copied, metric="log_loss"), how, rows=0)
    assert numbers == {"unknown": "log_loss needs probabilities, this table has labels"}


def test_a_pooled_area_beside_those_of_the_folds_until_ranks_are_asked_for(copied):  # noqa: F811
    """One fold's model is surer of a class than the other: the note says so, and a rank vote takes each fold for itself."""
    truth, split = copied.truth()["label"], Split.read(copied.path("split.csv"))
    rng, labels = np.random.default_rng(0), copied.truth()["label"].decided
    logits = 1.5 * np.eye(3)[labels] + rng.normal(0, 1, (ROWS, 3)) + np.outer(split.folds, [4.0, 0.0, -4.0])
    values = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    predictions = Predictions("label", "probabilities", truth.ids, truth.classes, values)
    prediction_files.write_table(copied.path("oof", "m.parquet"), {"label": predictions}, {"member": "m"})
    area = replace(copied, metric="roc_auc")
    soft = measure(area, Making({"label": {"m": 1.0}}), rows=0)
    ranks = measure(area, Making({"label": {"m": 1.0}}, {}, Combination(vote="rank")), rows=0)
    (note,) = soft["notes"]
    assert "on different scales" in note
    assert ranks["notes"] == []
    assert ranks["out_of_fold"] > soft["out_of_fold"] + 0.03


GOOD = {
    "metric": "accuracy", "out_of_fold": 0.9, "interval": [0.8, 1.0], "rows": 500, "of": 900, "kind": "nested",
    "optimistic": "they had a say", "notes": ["n"],
}  # fmt: skip
ODD = {
    "no kind": {"kind": None}, "text": {"out_of_fold": "0.9"}, "nan": {"out_of_fold": float("nan")}, "rows": {"rows": None},
    "interval": {"interval": 0.5}, "ends": {"interval": [0.1]}, "notes": {"notes": 3}, "marks": {"optimistic": None},
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_a_record_that_does_not_say_what_it_is_shows_no_number(odd):
    """Of an earlier version, or written by others: every place that shows it goes through these two."""
    assert evidence.kind(GOOD) == "optimistic, nested, 500 rows"
    first, *rest = evidence.lines(GOOD)
    assert first.startswith("Out of fold accuracy 0.90000 (optimistic) (95 % 0.80000 to 1.00000), 500 of 900 held-out rows")
    assert rest == ["Optimistic: they had a say", "n"]
    assert evidence.kind(GOOD | ODD[odd]) == "unknown: made by an earlier version"
    assert evidence.lines(GOOD | ODD[odd]) == ["Evidence unknown: made by an earlier version"]
    assert (evidence.kind({}), evidence.lines({})) == ("", [])
