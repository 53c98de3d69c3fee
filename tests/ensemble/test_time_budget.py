"""Plans against brute force: what is kept, what fits, and the command that runs it; timings are noted while predicting."""

from __future__ import annotations

import itertools
import json
import shlex

import numpy as np
import pytest
from click.testing import CliRunner

from tests.blending.test_weighers import make, scored
from toolkit.blending.oof import MemberRows
from toolkit.cli import cli
from toolkit.core.metrics import METRICS
from toolkit.core.predictions import Predictions
from toolkit.ensemble import time_budget
from toolkit.ensemble.time_budget import Option, combinations, pareto, seconds
from toolkit.errors import DataError
from toolkit.inference.store import timings
from toolkit.inference.store.prediction_store import Store
from toolkit.inference.store.timings import Timing

LOSS = METRICS["log_loss"]


def options(members=3, sets=2, seed=0):
    stack, truth = make(rows=120, members=members * sets, seed=seed)
    ids = tuple(map(str, range(120)))
    said = Predictions("t", "labels", ids, tuple("abcd"), labels=truth)
    cost = np.random.default_rng(seed).uniform(1, 5, members)
    made = [
        Option(f"m{m}", f"v{s}", "fp32", float(cost[m] * (s + 1)), stack[m * sets + s])
        for m in range(members)
        for s in range(sets)
    ]
    return made, MemberRows(("m0",), ids, stack[:1], said, np.arange(120) % 4, None, {})


def test_every_combination_has_each_member_at_most_once():
    made, rows = options()
    found = combinations(made, rows, LOSS)
    assert len(found) == 3**3 - 1
    assert len({frozenset(map(id, combo)) for combo in found}) == len(found)
    assert all(len({one.member for one in combo}) == len(combo) for combo in found)


def test_of_many_the_best_are_among_those_that_are_grown(monkeypatch):
    made, rows = options(members=5, sets=3, seed=1)
    every = combinations(made, rows, LOSS)
    monkeypatch.setattr(time_budget, "EVERY", 10)
    monkeypatch.setattr(time_budget, "WIDTH", 8)
    grown = combinations(made, rows, LOSS)
    assert len(grown) < len(every)

    def best(combos):
        return min(scored(LOSS, rows.truth.decided, np.mean([o.table for o in combo], axis=0)) for combo in combos)

    assert best(grown) == pytest.approx(best(every), abs=2e-3)
    for combo in grown:
        assert len({one.member for one in combo}) == len(combo)


def test_nothing_at_most_as_slow_beats_what_is_kept():
    rng = np.random.default_rng(0)
    costs, gains = rng.integers(1, 30, 60).astype(float), rng.integers(0, 30, 60).astype(float)
    kept = pareto(costs, gains)
    for place in range(60):
        beaten = any(
            (costs[other] <= costs[place] and gains[other] > gains[place])
            or (costs[other] < costs[place] and gains[other] >= gains[place])
            for other in range(60)
        )
        twin = any(costs[k] == costs[place] and gains[k] == gains[place] for k in kept)
        assert (place in kept or twin) == (not beaten)
    assert np.all(np.diff(costs[kept]) > 0)


def test_time_is_that_of_all_passes_and_of_the_images():
    made, _ = options()
    assert seconds(made[:2], None, 10) == made[0].seconds + made[1].seconds
    assert seconds(made[:2], Timing(100, 5.0), 10) == pytest.approx(made[0].seconds + made[1].seconds + 0.5)


def run(*arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture
def timed(workspace, folds):
    """A workspace whose exports predicted once, with hflip, on test and held-out images."""
    assert run("ensemble", "folds", "--tta", "hflip", "--no-tta-check").exit_code == 0
    assert run("tta", "folds", "--sets", "hflip").exit_code in (0, 2)
    return workspace


def test_predicting_notes_how_long_each_model_took(timed):
    known = timings.read(timed / "store")
    models = {name.split()[0]: one for name, one in known.items()}
    digests = {model["digest"] for model in _meta(timed)["models"]}
    assert digests <= set(models)
    assert all(models[digest].passes >= 22 and models[digest].seconds > 0 for digest in digests)
    before = known
    assert run("ensemble", "folds", "--tta", "hflip", "--no-tta-check").exit_code == 0  # all of it is stored
    assert timings.read(timed / "store") == before


def _meta(root):
    from toolkit.core.prediction_files import read_meta

    return read_meta(root / "predictions" / "ensemble.parquet")


def held_out(root, monkeypatch, seed=0):
    """Out-of-fold tables of the exports, with and without hflip, as the store would have them."""
    from toolkit.workspace.competition import Competition

    truth = Competition.read(root).truth()["label"]
    tables = {}
    for name, skill in (("none", 1.0), ("hflip", 4.0)):
        logits = np.random.default_rng(seed).normal(0, 1, (len(truth), 3)) + skill * np.eye(3)[truth.decided]
        values = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        tables[name] = Predictions("label", "probabilities", truth.ids, truth.classes, values)
    monkeypatch.setattr(
        time_budget,
        "_held_out",
        lambda _c, _own, name, _device, precision: tables.get(name) if precision == "fp32" else None,
    )
    return tables


def test_the_plan_takes_the_best_that_fits_and_says_how_to_run_it(timed, monkeypatch):
    held_out(timed, monkeypatch)
    said = json.loads(run("plan", "--budget", "1h", "--json").output)
    assert said["chosen"]["members"] == {"tiny": "hflip"}
    assert [line["members"]["tiny"] for line in said["lines"]] == ["none", "hflip"]
    slow, quick = said["lines"][1]["seconds"], said["lines"][0]["seconds"]
    assert quick < slow
    words = shlex.split(said["command"])
    assert words[:3] == ["toolkit", "ensemble", "folds"]
    assert run(*words[1:], "--no-tta-check").exit_code == 0
    assert _meta(timed)["views"] == {"tiny": ["id", "hflip"]}
    images = 10_000_000
    each = {name: line["seconds"] / 11 for name, line in zip(("none", "hflip"), said["lines"], strict=True)}
    between = f"{int((each['none'] + each['hflip']) / 2 * images)}s"
    text = run("plan", "--budget", between, "--images", images).output
    assert "best that fits" in text.split("hflip")[0]
    assert "(too slow)" in text


def test_a_time_that_nothing_fits_is_refused(timed, monkeypatch):
    held_out(timed, monkeypatch)
    result = run("plan", "--budget", "1s", "--images", 10**9)
    assert result.exit_code == 1
    assert "nothing predicts 1,000,000,000 images in 1 s" in result.output


def test_what_was_never_timed_or_never_scored_is_named(workspace, folds, monkeypatch):
    result = run("plan", "--budget", "1h")
    assert result.exit_code == 1
    assert "tiny was never timed on cpu" in result.output
    assert "toolkit ensemble" in result.output
    assert run("ensemble", "folds", "--evidence", "none").exit_code == 0
    result = run("plan", "--budget", "1h")
    assert result.exit_code == 1
    assert "tiny has no held-out rows" in result.output


def test_held_out_rows_come_from_the_store_and_nothing_is_computed(timed):
    from toolkit.ensemble.unseen import out_of_fold
    from toolkit.inference.execution import Execution
    from toolkit.runtime.graphs.onnx_file import read
    from toolkit.workspace.competition import Competition
    from toolkit.workspace.split import Split

    competition = Competition.read(timed)
    exports = [read(path) for path in sorted((timed / "folds").glob("*.onnx"))]
    split = Split.read(timed / "split.csv")
    assert time_budget._held_out(competition, exports, "flip", "cpu", "fp32") is None
    before = timings.read(timed / "store")
    expected = out_of_fold(competition, exports, split, "flip", Execution("cpu"))["label"]
    assert timings.read(timed / "store") != before
    found = time_budget._held_out(competition, exports, "flip", "cpu", "fp32")
    assert np.array_equal(found.values, expected.values)


def test_timings_add_up_and_damage_is_forgotten(tmp_path):
    store = Store(tmp_path / "store")
    timings.note(store.root, {"a": Timing(10, 1.0)})
    timings.note(store.root, {"a": Timing(30, 1.0), "b": Timing(1, 0.5)})
    assert timings.read(store.root) == {"a": Timing(40, 2.0), "b": Timing(1, 0.5)}
    assert timings.read(store.root)["a"].each == 0.05
    for text in ("{", "[]", '{"a": 3}', '{"a": [0, 0]}'):
        (store.root / timings.FILE).write_text(text)
        assert timings.read(store.root) == {}


def test_the_nested_choice_is_made_without_the_fold(monkeypatch):
    made, rows = options(members=3, sets=2, seed=2)
    found = [combo for n in (1, 2) for combo in itertools.combinations(made, n)]
    for metric in (LOSS, METRICS["macro_f1"]):
        whole, without = time_budget._gains(found, rows, metric, rows.folds)
        for place, combo in enumerate(found):
            table, truth = np.mean([one.table for one in combo], axis=0), rows.truth.decided
            assert whole[place] == pytest.approx(metric.gain(scored(metric, truth, table)))
            for fold in range(4):
                kept = rows.folds != fold
                assert without[place, fold] == pytest.approx(metric.gain(scored(metric, truth[kept], table[kept])))


def test_several_targets_are_refused(timed, monkeypatch):
    from dataclasses import replace

    from toolkit.workspace.competition import Competition

    competition = Competition.read(timed)
    two = replace(competition, targets=(competition.targets[0], replace(competition.targets[0], name="other")))
    with pytest.raises(DataError, match="one target, and there are 2"):
        time_budget.plan(two, [], 1.0)
