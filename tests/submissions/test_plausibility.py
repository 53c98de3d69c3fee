"""Doubts about valid submissions: each is raised where it should be and nowhere else."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.submissions.cases import ANIMAL, ANIMALS, SICK, competition, table
from tests.submissions.test_verify import out_of_fold, predicted
from toolkit.core import prediction_files
from toolkit.core.metrics import METRICS
from toolkit.core.predictions import Predictions
from toolkit.ensemble import evidence
from toolkit.submissions import plausibility, submission
from toolkit.submissions.answers import Answers, of_grid
from toolkit.submissions.form.layout import fit
from toolkit.submissions.sample import as_format, check, check_file, render
from toolkit.workspace.competition import Competition, Images

IDS = tuple(f"{i:03d}" for i in range(200))


def labelled(shares, ids=IDS, seed=0):
    rng = np.random.default_rng(seed)
    return Answers("animal", ANIMALS, ids, rng.choice(3, len(ids), p=shares))


def frame(words, ids=IDS):
    return pd.DataFrame({"id": ids, "animal": list(words)}, dtype="str")


def codes(found):
    return [problem.code for problem in found]


def words(answers):
    return [ANIMALS[i] for i in answers.labels]


def test_the_sample_itself_is_an_error_where_it_says_something():
    random = frame(words(labelled((0.3, 0.3, 0.4))))
    constant = frame(["cat"] * 200)
    assert codes(plausibility.same_as_sample(random, random.copy(), "id")) == ["SUB070"]
    assert codes(plausibility.same_as_sample(random, constant, "id")) == []
    changed = random.assign(animal=["eel", *random["animal"][1:-1], "cat"])
    assert codes(plausibility.same_as_sample(changed, random, "id")) == []
    (problem,) = plausibility.same_as_sample(constant, constant.copy(), "id")
    assert (problem.code, problem.count) == ("SUB071", 200)
    assert "'cat', as in the sample" in problem.seen
    (problem,) = plausibility.same_as_sample(constant, random, "id")
    assert "sample" not in problem.seen
    assert codes(plausibility.same_as_sample(constant[:9], constant[:9].copy(), "id")) == []  # nine rows prove nothing


def test_check_only_finds_the_sample(tmp_path):
    random = frame(words(labelled((0.3, 0.3, 0.4))))
    path = tmp_path / "s.csv"
    random.to_csv(path, index=False)
    problems = check_file(path, as_format(random, competition(ANIMAL), "labels"), competition(ANIMAL))
    assert codes(problems) == ["SUB070"]


@pytest.mark.parametrize("seed", range(5))
def test_shares_like_those_out_of_fold_are_no_finding(seed):
    shares = (0.6, 0.3, 0.1)
    assert codes(plausibility.shifted(labelled(shares, seed=seed), labelled(shares, seed=seed + 100))) == []


def test_permuted_classes_are_found_and_named():
    (problem,) = plausibility.shifted(labelled((0.1, 0.3, 0.6)), labelled((0.6, 0.3, 0.1), seed=1))
    assert problem.code == "SUB072"
    assert problem.column == "animal"
    ours, theirs = labelled((0.1, 0.3, 0.6)).counts / 200, labelled((0.6, 0.3, 0.1), seed=1).counts / 200
    for name, place in (("cat", 0), ("eel", 2)):
        assert f"'{name}' {ours[place]:.1%} instead of {theirs[place]:.1%}" in problem.seen
    assert "p = " in problem.seen
    few = IDS[:10]
    assert codes(plausibility.shifted(labelled((0, 0, 1), ids=few), labelled((1, 0, 0)))) == []


def test_a_small_shift_among_very_many_rows_is_no_finding():
    """A p-value alone would cry at any difference."""
    ids = tuple(map(str, range(100_000)))
    ours, theirs = labelled((0.36, 0.34, 0.3), ids), labelled((0.33, 0.34, 0.33), ids, seed=1)
    assert plausibility.homogeneity(np.stack([ours.counts, theirs.counts]).astype(float)) < 1e-6
    assert codes(plausibility.shifted(ours, theirs)) == []


@pytest.mark.parametrize("seed", range(6))
def test_the_p_value_is_scipys(seed):
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(600, rng.dirichlet(np.full(6, 8.0)), 2).astype(float) + rng.integers(5, 60, (2, 6))
    exact = stats.chi2_contingency(counts, correction=False).pvalue
    assert np.log(plausibility.homogeneity(counts)) == pytest.approx(np.log(exact), rel=0.05, abs=0.02)


def test_rare_classes_are_pooled():
    assert plausibility.homogeneity(np.array([[100.0, 100, 1, 0, 0], [100, 100, 0, 1, 1]])) > 0.05
    assert plausibility.homogeneity(np.array([[1.0, 0], [0, 1]])) == 1.0


def test_confidence_far_from_that_out_of_fold():
    rng = np.random.default_rng(0)
    sure, unsure = (rng.dirichlet(np.full(3, a), 200) for a in (0.05, 5.0))
    ours, theirs = (of_grid("animal", ANIMALS, IDS, grid, several=False) for grid in (unsure, sure))
    (problem,) = plausibility.unsure(ours, theirs)
    assert problem.code == "SUB073"
    assert f"mean {unsure.max(axis=1).mean():.3f}" in problem.seen
    assert codes(plausibility.unsure(theirs, replace(theirs, numbers=theirs.numbers[::-1]))) == []
    assert codes(plausibility.unsure(replace(ours, numbers=None), theirs)) == []


def test_ties_matter_only_where_ranks_do():
    assert {name for name, metric in METRICS.items() if metric.by_rank} == {"roc_auc"}
    rng = np.random.default_rng(0)
    p = rng.random(200)
    rules = competition(SICK, metric="roc_auc")
    fine, coarse = (pd.DataFrame({"id": IDS, "sick": [f"{x:.{n}f}" for x in p]}, dtype="str") for n in (9, 2))
    fitted = fit("probability", fine, rules)
    assert codes(plausibility.ties(fine, fitted, METRICS["roc_auc"])) == []
    (problem,) = plausibility.ties(coarse, fitted, METRICS["roc_auc"])
    assert (problem.code, problem.count, problem.column) == ("SUB036", 200 - len(set(coarse["sick"])), "sick")
    assert codes(plausibility.ties(coarse, fitted, METRICS["log_loss"])) == []


def test_saturated_probabilities_are_ties_once_written():
    """Distinct as float64, equal as float32: the order is lost on the way into the file."""
    p = 1 - np.linspace(1e-12, 1e-9, 200)
    known = Predictions("sick", "probabilities", IDS, ("0", "1"), np.stack([1 - p, p], axis=1))
    sample = pd.DataFrame({"id": IDS, "sick": "0"}, dtype="str")
    rules = competition(SICK, metric="roc_auc")
    written = render({"sick": known}, as_format(sample, rules, "probability"))
    assert "SUB036" in codes(check(written, as_format(sample, rules, "probability"), rules))


def test_classes_that_are_never_answered_out_of_fold_either_are_no_news():
    never, both = labelled((0.5, 0.5, 0.0)), labelled((0.4, 0.3, 0.3))
    assert codes(plausibility.absent(never, never)) == []
    (problem,) = plausibility.absent(never, both)
    assert (problem.code, problem.seen) == ("SUB043", repr(ANIMALS[2]))
    assert codes(plausibility.absent(both, never)) == []


def test_a_rank_vote_under_a_rank_metric_is_judged_by_order_alone(workspace):
    """Ranks are no probabilities: no threshold of a half, no confidence, and the vote's own ties are no rounding."""
    rules = Competition.read(workspace)
    rules = replace(rules, targets=(SICK,), metric="roc_auc", format="probability")
    rng = np.random.default_rng(0)
    (workspace / "test").rename(workspace / "away")
    ids = tuple(f"{i:03d}" for i in range(200))
    pd.DataFrame({"id": ids, "sick": "0.5"}).to_csv(workspace / "sample_submission.csv", index=False)
    truth = rng.integers(0, 2, 200)
    pd.DataFrame({"id": ids, "sick": truth}).to_csv(workspace / "train.csv", index=False)
    p = np.clip(0.2 * truth + 0.3 + rng.normal(0, 0.05, 200), 0, 1)
    held_out = Predictions("sick", "probabilities", ids, ("0", "1"), np.stack([1 - p, p], axis=1))
    prediction_files.write_table(workspace / "oof" / "a.parquet", {"sick": held_out}, {"member": "a"})
    ranks = np.round(stats.rankdata(p) / 200, 2)  # ties of its own; a half of the rows above a half
    (workspace / "predictions").mkdir(exist_ok=True)

    def submitted(values, name, created):
        table = Predictions("sick", "probabilities", ids, ("0", "1"), np.stack([1 - values, values], axis=1))
        meta = {"name": name, "created": created, "models": [{"member": "a", "weight": 1.0}], "vote": "rank"}
        prediction_files.write_table(workspace / "predictions" / f"{name}.parquet", {"sick": table}, meta)
        done = submission.submit(rules, name=name)
        return {problem.code for problem in done.warnings} & {"SUB036", "SUB043", "SUB072", "SUB073", "SUB074"}, done.changed

    assert submitted(ranks, "rank", "2026-01-01T00:00:00+00:00") == (set(), None)
    assert submitted(p * 0.1, "small", "2026-01-02T00:00:00+00:00") == (set(), 0.0)  # the same order below the half
    codes_of, changed = submitted(1 - ranks, "turned", "2026-01-03T00:00:00+00:00")
    assert codes_of == {"SUB074"}
    assert changed > 0.8
    assert "SUB036" in {p.code for p in check(*_rounded(workspace, rules))}


def _rounded(root, rules):
    sample = as_format(table((root / "sample_submission.csv").read_text()), rules, "probability")
    frame = sample.frame.copy()
    frame["sick"] = [f"{i / 200:.1f}" for i in range(len(frame))]
    return frame, sample, rules


def test_a_stale_sample_is_seen_on_disk(workspace):
    rules = Competition.read(workspace)
    sample = table((workspace / "sample_submission.csv").read_text())
    assert codes(plausibility.on_disk(rules, sample)) == []
    (problem,) = plausibility.on_disk(rules, sample[:-2])
    assert (problem.code, problem.count, problem.ids) == ("SUB076", 2, ("9009.png", "9010.png"))
    more = pd.concat([sample, table("id,label\n9999,ant\n")])
    (problem,) = plausibility.on_disk(rules, more)
    assert (problem.code, problem.ids) == ("SUB077", ("9999",))
    (workspace / "test" / "9000.png").rename(workspace / "test" / "9000.PNG")  # images that rows find are there
    assert codes(plausibility.on_disk(rules, sample)) == []
    any_suffix = replace(rules, test=Images("test", "{id}.*"))
    assert codes(plausibility.on_disk(any_suffix, sample)) == []
    assert [p.ids for p in plausibility.on_disk(any_suffix, sample[:-2])] == [("9009.png", "9010.png")]
    assert [p.code for p in plausibility.on_disk(any_suffix, more)] == ["SUB077"]
    (workspace / "test" / "readme.txt").write_text("")
    assert codes(plausibility.on_disk(rules, sample)) == []
    shared = replace(rules, test=Images("train", "{id}.png"))  # one folder for both parts: train images are no surplus
    assert codes(plausibility.on_disk(shared, table("id,label\n0001,ant\n"))) == []


def test_out_of_fold_doubts_reach_the_receipt(workspace, folds):
    """A member whose held-out rows do not give its card's score; and a table that cannot be read."""
    rules = Competition.read(workspace)
    predicted(rules)
    submission.submit(rules)
    path = out_of_fold(rules)  # the cards say 0.5 and 0.6
    done = submission.submit(rules)
    assert {"SUB065", "SUB075"} <= {problem.code for problem in done.warnings}
    (problem,) = [problem for problem in done.warnings if problem.code == "SUB065"]
    assert "folds/tiny.fold0.onnx says 0.5000, its rows give" in problem.seen
    path.write_bytes(b"damaged")
    assert "SUB066" in {problem.code for problem in submission.submit(rules).warnings}


def test_answers_to_compare_with_are_the_weighted_vote_of_the_members(workspace):
    rules = Competition.read(workspace)
    paths = [out_of_fold(rules, "a", 1), out_of_fold(rules, "b", 2)]
    meta = {
        "models": [
            {"member": "a", "fold": 0, "weight": 0.1},
            {"member": "a", "fold": 1, "weight": 0.1},
            {"member": "b", "weight": 0.8},
        ]
    }
    found = evidence.gather(rules, meta)
    a, b = (prediction_files.read_table(path).predictions["label"] for path in paths)
    np.testing.assert_allclose(found.predictions["label"].values, 0.2 * a.values + 0.8 * b.align(a.ids).values, atol=1e-12)
    assert found.scores == {"unknown": "made by an earlier version"}
    unknown = {"unknown": "it was not measured"}
    assert evidence.gather(rules, meta | {"evidence": unknown}).scores == unknown
    assert not evidence.gather(rules, {"models": [{"member": "c"}]}).predictions


def test_a_check_of_a_foreign_file_compares_with_every_table(workspace):
    rules = Competition.read(workspace)
    sample = pd.DataFrame({"id": [f"{i}" for i in range(9000, 9200)], "label": "ant"}, dtype="str")
    sample.to_csv(workspace / "sample_submission.csv", index=False)
    truth = rules.truth()["label"]
    values = np.full((24, 3), 0.05)
    values[np.arange(24), truth.labels] = 0.9
    known = Predictions("label", "probabilities", truth.ids, truth.classes, values)
    prediction_files.write_table(workspace / "oof" / "m.parquet", {"label": known}, {"member": "m"})
    path = workspace / "theirs.csv"
    sample.assign(label=["cat"] * 190 + ["bee"] * 10).to_csv(path, index=False)
    _, problems = submission.examine(rules, path)
    assert "SUB072" in codes(problems)
    path.write_text(io.StringIO(sample.assign(label=["ant", "bee", "cat", "bee"] * 50).to_csv(index=False)).getvalue())
    _, problems = submission.examine(rules, path)
    assert "SUB072" not in codes(problems)
