"""Tables of test rows made elsewhere: combined as blend.json says or by vote of labels, into predictions that `submit` takes."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from toolkit.blending.blend import Blend
from toolkit.blending.mix_tables import agreement, majority
from toolkit.cli import cli
from toolkit.core.activations import softmax
from toolkit.core.prediction_files import read_meta, read_table, write_table
from toolkit.core.predictions import Predictions
from toolkit.workspace.competition import Competition

CLASSES = ("ant", "bee", "cat")
IDS = [str(9000 + i) for i in range(11)]


def run(*arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)


def probabilities(seed, rows=11):
    return softmax(np.random.default_rng(seed).normal(0, 2, (rows, 3)))


@pytest.fixture
def tables(workspace):
    for seed, name in enumerate("abc"):
        frame = pd.DataFrame(probabilities(seed), columns=list(CLASSES)).assign(id=IDS)
        frame.sample(frac=1, random_state=seed).to_csv(workspace / f"{name}_test.csv", index=False)
        labels = [CLASSES[i] for i in probabilities(seed).argmax(axis=1)]
        pd.DataFrame({"id": IDS, "label": labels}).to_csv(workspace / f"sub_{name}.csv", index=False)
    return workspace


def blend_json(root, **changes):
    said = Blend(("a", "b", "c"), np.array([0.7, 0.3, 0.0]), "geometric", np.array([2.0, 1.0, 1.0])).record(CLASSES)
    (root / "blend.json").write_text(json.dumps({"schema": 2, "metric": "accuracy", "targets": {"label": said | changes}}))


def test_test_tables_are_combined_as_blend_json_says_and_submitted(tables):
    blend_json(tables)
    result = run("blend", "--apply", "a_test.csv", "b_test.csv", "--name", "mine")
    assert result.exit_code == 0, result.output
    made = read_table(tables / "predictions/mine.parquet")
    table = made.predictions["label"].align(IDS)
    a, b = (np.log(probabilities(seed)) for seed in (0, 1))
    a = a / 2 - np.log(np.exp(a / 2).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(table.values, softmax(0.7 * a + 0.3 * b), atol=1e-12)
    assert [one["member"] for one in made.meta["sources"]] == ["a", "b"]
    assert made.meta["sources"][0]["path"] == "a_test.csv"
    result = run("submit", "--name", "mine")
    assert result.exit_code == 0, result.output
    assert "2 tables made elsewhere" in result.output
    rows = pd.read_csv(tables / "submission.csv", dtype=str).set_index("id")["label"]
    assert [rows[name] for name in IDS] == [CLASSES[i] for i in table.values.argmax(axis=1)]
    assert "the same bytes" in run("verify", "--rebuild").output


def test_weights_can_be_given_instead(tables):
    result = run("blend", "--apply", "a_test.csv", "b_test.csv", "c_test.csv", "--weights", "3,1,0", "-o", "out.csv")
    assert result.exit_code == 0, result.output
    out = pd.read_csv(tables / "out.csv", dtype={"id": str}).set_index("id").loc[IDS, list(CLASSES)].to_numpy()
    np.testing.assert_allclose(out, 0.75 * probabilities(0) + 0.25 * probabilities(1), atol=1e-15)


REFUSED = {
    "no table for a member": (["--apply", "a_test.csv"], "gives weight to 'b', and no table"),
    "a table of no member": (["--apply", "a_test.csv", "b_test.csv", "x=c_test.csv"], "'x' is no member"),
    "labels": (["--apply", "a=sub_a.csv", "b=sub_b.csv"], "holds labels"),
    "weights for who is not there": (["--labels", "sub_a.csv", "--weights", "q=1"], "names 'q'"),
    "weights that are too few": (["--labels", "sub_a.csv", "sub_b.csv", "--weights", "1"], "does not fit 2 tables"),
    "weights that are no numbers": (["--labels", "sub_a.csv", "--weights", "x"], "does not fit 1 table"),
    "negative weights": (["--labels", "sub_a.csv", "--weights", "-1"], "negative"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_with_exit_code_1(tables, name):
    blend_json(tables)
    arguments, message = REFUSED[name]
    result = run("blend", *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert not (tables / "predictions").exists()


def test_usage_errors_have_exit_code_2(tables):
    for arguments in (["--apply"], ["--labels", "--apply", "sub_a.csv"], ["--weights", "1"], ["--vote", "loud"]):
        assert run("blend", *arguments).exit_code == 2


def test_earlier_submissions_vote(tables):
    result = run("blend", "--labels", "sub_a.csv", "sub_b.csv", "sub_c.csv", "--weights", "2,1,1.5", "--name", "last-day")
    assert result.exit_code == 0, result.output
    labels = [probabilities(seed).argmax(axis=1) for seed in range(3)]
    expected = []
    for votes in zip(*labels, strict=True):
        weight = Counter()
        for label, share in zip(votes, (2, 1, 1.5), strict=True):
            weight[label] += share
        top = max(weight.values())
        expected.append(next(label for label in votes if weight[label] == top))
    made = read_table(tables / "predictions/last-day.parquet").predictions["label"].align(IDS)
    assert made.labels.tolist() == expected
    alike = json.loads(run("blend", "--labels", "sub_a.csv", "sub_b.csv", "--json").output)["agreement"]
    assert alike[0][1] == alike[1][0] == pytest.approx(np.mean(labels[0] == labels[1]))
    assert read_meta(tables / "predictions/last-day.parquet")["vote"] == "hard"
    assert run("submit", "--name", "last-day").exit_code == 0


def test_an_even_vote_goes_to_who_was_named_first(tables):
    labels = [probabilities(seed).argmax(axis=1) for seed in range(2)]
    for order in ((0, 1), (1, 0)):
        run("blend", "--labels", *(f"sub_{'ab'[i]}.csv" for i in order))
        made = read_table(tables / "predictions/blend.parquet").predictions["label"].align(IDS)
        assert made.labels.tolist() == labels[order[0]].tolist()


def test_submissions_of_other_rows_are_refused(tables):
    frame = pd.read_csv(tables / "sub_b.csv", dtype=str)
    frame[2:].to_csv(tables / "sub_b.csv", index=False)
    result = run("blend", "--labels", "sub_a.csv", "sub_b.csv")
    assert result.exit_code == 1
    assert "2 ids are in one of them only" in result.output
    assert run("blend", "--labels", "sub_a.csv", "sub_b.csv", "--fit-on", "common").exit_code == 0


@given(
    ballots=st.integers(1, 6).flatmap(
        lambda m: st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=m, max_size=m)
    ),
    data=st.data(),
)
def test_the_majority_is_that_of_counting(ballots, data):
    weights = data.draw(st.lists(st.sampled_from([0.1, 0.2, 0.3, 1.0]), min_size=len(ballots), max_size=len(ballots)))
    labels, ties = majority(np.array(ballots), np.array(weights), 4)
    for row in range(5):
        tally = [sum(w for b, w in zip(ballots, weights, strict=True) if b[row] == c) for c in range(4)]
        leaders = {c for c in range(4) if abs(tally[c] - max(tally)) < 1e-9}
        assert ties[row] == (len(leaders) > 1)
        assert labels[row] == next(b[row] for b in ballots if b[row] in leaders)


def test_a_multilabel_majority_is_one_per_class():
    ballots = np.array([[[True, False, True]], [[True, False, False]], [[False, False, True]]])
    assert majority(ballots, np.ones(3), 3)[0].tolist() == [[True, False, True]]
    labels, ties = majority(ballots[:2], np.ones(2), 3)
    assert labels.tolist() == [[True, False, True]]  # even on the last: the first named says yes
    assert ties.tolist() == [True]


def test_agreement_is_over_all_targets_at_once():
    a, b = np.array([0, 1, 2, 3]), np.array([0, 1, 0, 0])
    c, d = np.eye(4, dtype=bool), np.eye(4, dtype=bool)
    d[1, 2] = True
    assert agreement([[a, b], [c, d]]).tolist() == [[1, 0.25], [0.25, 1]]


def test_a_mix_has_the_score_that_blend_json_knows_of_it(workspace):
    """The nested one of a fitted blend, that of the plain mean where nothing was fitted; none of tables weighed by hand."""
    truth = Competition.read(workspace).truth()["label"]
    for seed, name in enumerate("ab"):
        said = probabilities(seed, len(truth)) + (1 + seed) / 3 * np.eye(3)[truth.decided]
        rows = Predictions("label", "probabilities", truth.ids, truth.classes, said / said.sum(axis=1, keepdims=True))
        write_table(workspace / "oof" / f"{name}.parquet", {"label": rows}, {"selected": "best" if name == "b" else "last"})
        pd.DataFrame(probabilities(seed), columns=list(CLASSES)).assign(id=IDS).to_csv(f"{name}_test.csv", index=False)

    def mixed(*words):
        assert run("blend", "--apply", "a_test.csv", "b_test.csv", *words).exit_code == 0
        return read_table(workspace / "predictions" / "blend.parquet").meta["evidence"]

    for weigher, kind, estimate in (("best_single", "nested", "nested"), ("uniform", "plain", "uniform")):
        assert run("blend", "--weigher", weigher, "--vote", "soft", "--calibrate", "none", "--always").exit_code == 0
        known = json.loads((workspace / "blend.json").read_text())["targets"]["label"]["estimates"][estimate]
        record = mixed()
        assert (record["kind"], record["out_of_fold"], record["interval"]) == (
            kind,
            known["score"],
            [known["low"], known["high"]],
        )
        assert record["optimistic"].startswith("b is optimistic: ")
    assert "weights were given" in mixed("--weights", "2,1")["unknown"]
    text = (workspace / "blend.json").read_text()
    (workspace / "blend.json").write_text(text.replace('"a": 0.5', '"a": 0.4').replace('"b": 0.5', '"b": 0.6'))
    assert mixed() == {"unknown": "blend.json was edited, or written by an earlier version"}
