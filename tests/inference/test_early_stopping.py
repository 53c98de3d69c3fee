"""Labels only, and until a deadline: the labels of the full vote with fewer passes; what was finished in time, and the rest named."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from tests.conftest import CLASSES, card, draw, make_workspace, network
from tests.requested import ensemble
from toolkit.cli import cli
from toolkit.core import prediction_files
from toolkit.core.cards import Output
from toolkit.core.voting import VOTES, vote
from toolkit.errors import DataError, ModelError
from toolkit.inference import passes, predict
from toolkit.inference.early_stopping import STOPPING, Race, ballots, decided
from toolkit.inference.exports import find_exports
from toolkit.inference.store import retention
from toolkit.inference.store.prediction_store import halved
from toolkit.inference.store.retention import Keeping
from toolkit.models.export import export
from toolkit.models.export_checkpoint import samples
from toolkit.runtime.graphs import onnx_file
from toolkit.runtime.session import open_session
from toolkit.workspace.competition import Competition, Images, Target

FOLDS = 5


def folds_of(base, cards, *, last=False):
    """Copies of an export that mostly agree, as folds do: every weight shaken a little, or the classifier's only."""
    for number, (path, said) in enumerate(cards):
        rng, model = np.random.default_rng(100 + number), onnx.load(base)
        tensors = [tensor for tensor in model.graph.initializer if tensor.data_type == 1 and len(tensor.dims) > 1]
        heads = {node.input[1] for node in model.graph.node if node.op_type == "Gemm"}
        for tensor in [tensor for tensor in tensors if tensor.name in heads] if last else tensors:
            values = numpy_helper.to_array(tensor)
            shaken = values + 0.4 * values.std() * rng.normal(0, 1, values.shape)
            tensor.CopyFrom(numpy_helper.from_array(shaken.astype(np.float32), tensor.name))
        onnx_file.embed(model, said)
        path.parent.mkdir(exist_ok=True)
        onnx.save(model, path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workspace of 45 test images and five fold models."""
    root = make_workspace(tmp_path_factory.mktemp("five") / "work", test=45)
    pixels = samples(Competition.read(root), card().preprocess)
    export(network(0, sharp=3), card("m", 0), root / "base.onnx", samples=pixels)
    folds_of(root / "base.onnx", [(root / "folds" / f"m.fold{fold}.onnx", card("m", fold)) for fold in range(FOLDS)])
    return root


@pytest.fixture
def root(made, tmp_path, monkeypatch):
    copy = shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(copy)
    return copy


def run(root, patterns=("folds",), **choices):
    return ensemble(Competition.read(root), find_exports(patterns, base=root), device="cpu", **choices)


def labels(made, target="label"):
    return made.predictions[target].decided


@pytest.mark.parametrize(
    ("vote", "tta", "weights"),
    [
        ("soft", "none", ""),
        ("soft", "hflip", "5,1,0,1,1"),
        ("hard", "none", "0.2,0.3,0.1,0.15,0.25"),
        ("hard", "hflip", ""),
    ],
)
def test_the_labels_are_the_full_votes_and_passes_are_left_out(root, vote, tta, weights):
    early = run(root, vote=vote, tta=tta, weights=weights, labels_only=True)
    assert early.predictions["label"].kind == "labels"
    asked = early.outcome.passes
    assert asked < 45 * FOLDS * (1 + (tta == "hflip"))
    full = run(root, vote=vote, tta=tta, weights=weights)
    assert np.array_equal(labels(early), labels(full))
    assert full.outcome.passes == 45 * FOLDS * (1 + (tta == "hflip")) - asked  # what was computed counts, the rest is new
    assert early.meta["stopping"]["mean"] == pytest.approx(asked / 45)
    again = run(root, vote=vote, tta=tta, weights=weights, labels_only=True)
    assert again.outcome.passes == 0
    assert again.predictions["label"].kind == "labels"
    assert np.array_equal(labels(again), labels(full))


def test_ties_are_settled_as_in_the_full_vote(root):
    ties, not_the_first = 0, 0
    for first, second in itertools.combinations(range(FOLDS), 2):
        shutil.rmtree(root / "store", ignore_errors=True)
        pair = [f"folds/m.fold{first}.onnx", f"folds/m.fold{second}.onnx"]
        early = run(root, pair, vote="hard", labels_only=True)
        full = run(root, pair, vote="hard")
        singles = [labels(run(root, [path])) for path in pair]
        assert np.array_equal(labels(early), labels(full))
        assert early.meta["ties"] == full.meta["ties"]
        ties += early.meta["ties"]["label"]
        not_the_first += int((labels(early) > np.minimum(*singles)).sum())
    assert ties > 0
    assert not_the_first > 0  # by the higher mean, which is not always the lower index


def test_what_is_stored_counts_first_though_its_turn_would_come_last(root):
    run(root, ["folds/m.fold3.onnx", "folds/m.fold4.onnx"])
    light = run(root, weights="0.22,0.21,0.2,0.19,0.18", labels_only=True)
    shutil.rmtree(root / "store")
    fresh = run(root, weights="0.22,0.21,0.2,0.19,0.18", labels_only=True)
    assert np.array_equal(labels(light), labels(fresh))
    assert light.outcome.passes < fresh.outcome.passes


def test_the_full_store_after_an_early_run_is_that_of_a_full_run_byte_for_byte(root):
    run(root, tta="hflip", labels_only=True)
    after = run(root, tta="hflip").predictions["label"].values
    shutil.rmtree(root / "store")
    assert np.array_equal(run(root, tta="hflip").predictions["label"].values, after)


@pytest.mark.parametrize("per_id", ["mean", "max"])
def test_several_images_per_row_and_images_that_cannot_be_used(root, per_id):
    competition = replace(Competition.read(root), test=Images("test", "{image}.png", "test.csv"), per_id=per_id, sample="s.csv")
    (root / "competition.toml").write_text(competition.to_toml())
    (root / "s.csv").write_text("id,label\n" + "".join(f"r{i},ant\n" for i in range(16)))
    (root / "test.csv").write_text("id,image\n" + "".join(f"r{i % 15},{9000 + i}\n" for i in range(45)) + "r15,gone\n")
    (root / "test" / "9003.png").write_bytes(b"not an image")
    early = run(root, tta="hflip", labels_only=True, on_bad_image="prior")
    full = run(root, tta="hflip", on_bad_image="prior")
    assert early.outcome.passes + full.outcome.passes == 44 * FOLDS * 2
    assert full.outcome.passes > 0
    assert np.array_equal(labels(early), labels(full))
    assert [bad["id"] for bad in early.meta["bad_images"]] == ["r3", "r15"]


def test_several_targets_and_yes_or_no_per_class(root):
    competition = Competition.read(root)
    outputs = (Output("label", CLASSES), Output("tags", ("x", "y"), "sigmoid", 3, 5))
    targets = (*competition.targets, Target("tags", "multilabel", ("x", "y"), column="tags"))
    (root / "competition.toml").write_text(replace(competition, targets=targets).to_toml())
    said = card("two", 0, outputs=outputs)
    export(network(0, 5, sharp=3), said, root / "base2.onnx", samples=samples(competition, said.preprocess))
    folds_of(root / "base2.onnx", [(root / "two" / f"two.fold{k}.onnx", replace(said, fold=k)) for k in range(FOLDS)])
    for how in STOPPING:
        shutil.rmtree(root / "store", ignore_errors=True)
        early = run(root, ["two"], vote=how, labels_only=True)
        full = run(root, ["two"], vote=how)
        assert 0 < full.outcome.passes < 45 * 4
        for target in ("label", "tags"):
            assert np.array_equal(labels(early, target), labels(full, target))
        assert early.predictions["tags"].labels.shape == (45, 2)


def test_small_windows_and_another_order_of_files_change_nothing(root, monkeypatch):
    whole = labels(run(root, labels_only=True))
    monkeypatch.setattr("toolkit.inference.early_stopping.WINDOW", 4)
    monkeypatch.setattr(passes, "BLOCK", 4)
    monkeypatch.setattr(predict, "FLUSH_ROWS", 7)
    shutil.rmtree(root / "store")
    assert np.array_equal(labels(run(root, labels_only=True)), whole)


@pytest.mark.parametrize("vote", [name for name in VOTES if name not in STOPPING])
def test_votes_without_a_bound_say_so(root, vote):
    with pytest.raises(DataError, match=f"{vote!r} has no such bound") as caught:
        run(root, vote=vote, labels_only=True)
    assert "soft or hard" in caught.value.hint
    done = CliRunner().invoke(cli, ["ensemble", "folds", "--labels-only", "--vote", vote])
    assert "--labels-only" in done.stderr
    assert "--vote" in done.stderr


def test_folds_that_share_a_backbone_all_run(root):
    folds_of(root / "base.onnx", [(root / "heads" / f"h{k}.onnx", card("head", k)) for k in range(3)], last=True)
    found = run(root, ["heads"], labels_only=True)
    assert found.outcome.passes == 45 * 3
    assert "backbone" in found.meta["stopping"]["off"]
    assert found.predictions["label"].kind == "labels"


def test_labels_only_from_the_command_line(root):
    done = CliRunner().invoke(cli, ["ensemble", "folds", "--labels-only"])
    assert done.exit_code == 0, done.output
    assert "labels were certain after" in done.stdout
    assert "of 5 per image" in done.stdout
    assert CliRunner().invoke(cli, ["submit"]).exit_code == 0
    for more in (["--deadline", "1h"], ["--keep", "folds"]):
        both = CliRunner().invoke(cli, ["ensemble", "folds", "--labels-only", *more])
        assert both.exit_code == 1
        assert "--labels-only" in both.stderr


# --- until a deadline -------------------------------------------------------------------------------------------------


class Slow:
    """An opener whose sessions take a while, so that time is up in the middle."""

    def __init__(self, seconds):
        self.seconds, self.order = seconds, []

    def __call__(self, models, **how):
        import time

        session = open_session(models, **how)
        true = session.run

        def slow(batch, view, wanted=None):
            time.sleep(self.seconds)
            self.order += list(wanted or models)
            return true(batch, view, wanted)

        session.run = slow
        return session


def test_models_that_are_through_in_time_are_combined_and_the_others_named(root, monkeypatch):
    monkeypatch.setattr(passes, "BLOCK", 10)
    opener = Slow(0.15)
    found = run(root, weights="1,2,3,4,5", deadline=2.0, opener=opener)
    late = found.meta["late"]
    assert 0 < len(late) < FOLDS
    heaviest = [onnx_file.read(root / "folds" / f"m.fold{k}.onnx").digest for k in (4, 3, 2, 1, 0)]
    assert list(dict.fromkeys(opener.order)) == heaviest[: len(dict.fromkeys(opener.order))]
    finished = [model["path"] for model in found.meta["models"]]
    assert sorted([*late, *finished]) == [f"folds/m.fold{k}.onnx" for k in range(FOLDS)]
    weights = [model["weight"] for model in found.meta["models"]]
    assert sum(weights) == pytest.approx(1)
    same = run(root, finished, weights=",".join(str(w) for w in weights))
    assert same.outcome.passes == 0
    assert np.array_equal(found.predictions["label"].values, same.predictions["label"].values)
    whole = run(root, weights="1,2,3,4,5", deadline=60)
    assert whole.meta["late"] == []
    assert found.outcome.passes + whole.outcome.passes == 45 * FOLDS  # the model that was cut short goes on where it stood
    assert np.array_equal(whole.predictions["label"].values, run(root, weights="1,2,3,4,5").predictions["label"].values)


def test_no_model_in_time_is_an_error_that_says_what_is_kept(root, monkeypatch):
    monkeypatch.setattr(passes, "BLOCK", 10)
    with pytest.raises(ModelError, match=r"before one model was through \(\d+ of 45 images\)"):
        run(root, deadline=0.2, opener=Slow(0.3))
    assert not (root / "predictions").exists()
    assert run(root).outcome.passes < 45 * FOLDS


def test_what_is_stored_is_in_time_and_the_warning_is_printed(root, monkeypatch):
    run(root, ["folds/m.fold1.onnx"])
    done = CliRunner().invoke(cli, ["ensemble", "folds", "--deadline", "0s"])
    assert done.exit_code == 0, done.output
    assert "Warning   time was up: 4 of 5 models are not in it: 'folds/m.fold0.onnx'" in done.stdout
    assert prediction_files.read_table(root / "predictions" / "ensemble.parquet").meta["models"][0]["weight"] == 1
    wrong = CliRunner().invoke(cli, ["ensemble", "folds", "--deadline", "soon"])
    assert wrong.exit_code == 1
    assert "8h30m" in wrong.stderr


# --- what is kept -----------------------------------------------------------------------------------------------------


def tables_of(root):
    return sorted((path.parent.parent.name, path.parent.name) for path in (root / "store").rglob("*.seg"))


def test_merged_rows_take_the_views_place(root):
    views = run(root, tta="flip").predictions["label"].values
    shutil.rmtree(root / "store")
    keeping = Keeping("folds")
    folds = run(root, tta="flip", keeping=keeping)
    np.testing.assert_allclose(folds.predictions["label"].values, views, atol=1e-6)
    assert len(tables_of(root)) == FOLDS
    again = run(root, tta="flip", keeping=keeping)
    assert again.outcome.passes == 0
    assert np.array_equal(again.predictions["label"].values, folds.predictions["label"].values)
    assert run(root, tta="none").outcome.passes == 45 * FOLDS  # single views are not there any more


def test_merged_rows_go_on_from_single_views_and_after_new_images(root):
    run(root, tta="hflip", limit=20)
    run(root, tta="none")
    found = run(root, tta="hflip", keeping=Keeping("folds"))
    assert found.outcome.passes == 25 * FOLDS
    draw(np.random.default_rng(5), 1).save(root / "test" / "9001.png")
    assert run(root, tta="hflip", keeping=Keeping("folds")).outcome.passes == 2 * FOLDS


def test_none_keeps_nothing_but_goes_on_until_predictions_are_written(root):
    kept = run(root, tta="hflip", limit=10)
    before = tables_of(root)
    (root / "test" / "9030.png").rename(root / "away.png")
    with pytest.raises(DataError) as failed:  # kept, and its frames with it: the store is closed all the same
        run(root, tta="hflip", keeping=Keeping("none"))
    assert len(tables_of(root)) == 2 * len(before)
    assert failed.tb
    (root / "away.png").rename(root / "test" / "9030.png")
    found = run(root, tta="hflip", keeping=Keeping("none"))
    assert found.outcome.passes == 2 * FOLDS
    assert tables_of(root) == before
    assert np.array_equal(found.predictions["label"].values[:10], kept.predictions["label"].values)


@pytest.mark.parametrize("what", ["views", "folds"])
def test_float16_halves_the_rows_and_is_never_taken_for_float32(root, what):
    exact = run(root, tta="hflip").predictions["label"].values
    found = run(root, tta="hflip", keeping=Keeping(what, "float16"))
    assert found.outcome.passes == 45 * FOLDS * 2
    gap = np.abs(found.predictions["label"].values - exact).max()
    assert 0 < gap <= 2.5e-4
    again = run(root, tta="hflip", keeping=Keeping(what, "float16"))
    assert again.outcome.passes == 0
    assert np.array_equal(again.predictions["label"].values, found.predictions["label"].values)
    assert np.array_equal(run(root, tta="hflip").predictions["label"].values, exact)
    early = run(root, tta="hflip", keeping=Keeping("none", "float16"), labels_only=True)
    assert np.array_equal(labels(early), found.predictions["label"].values.argmax(axis=1))


def test_float16_rounds_probabilities_by_no_more_than_is_said():
    from toolkit.core.activations import probabilities

    rng = np.random.default_rng(0)
    worst = 0.0
    for classes, activation in ((2, "softmax"), (18, "softmax"), (1000, "softmax"), (5, "sigmoid")):
        output = Output("t", tuple(map(str, range(classes))), activation)
        for scale in (0.1, 1, 3, 10, 100):
            logits = (scale * rng.normal(0, 1, (500, classes)) + rng.normal(0, 50 if activation == "softmax" else 0)).astype(
                np.float32
            )
            kept = halved(retention.shifted(logits, [output])).astype(np.float32)
            worst = max(worst, float(np.abs(probabilities(kept, output) - probabilities(logits, output)).max()))
    assert 1e-5 < worst <= 2.5e-4


def test_growth_is_announced_and_a_disk_too_small_is_said_before_the_work(root, monkeypatch):
    monkeypatch.setattr("toolkit.inference.schedule.ANNOUNCED", 1)
    said = []
    run(root, tta="hflip", announce=said.append)
    assert f"{said[0].size / 1e9:,.1f} GB (as float16: " in str(said[0])
    assert said[0].smaller["merged over views",] * 2 == said[0].size
    shutil.rmtree(root / "store")
    assert "--keep folds: " in CliRunner().invoke(cli, ["ensemble", "folds", "--tta", "hflip", "--no-tta-check"]).stderr
    shutil.rmtree(root / "store")
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    done = CliRunner().invoke(cli, ["ensemble", "folds"])
    assert done.exit_code == 1
    assert "--keep-as float16" in done.stderr
    assert not list(root.rglob("*.seg"))


# --- the bound itself: never another label than the full vote's, over hundreds of thousands of rows made to tie ---------

KINDS = ("smooth", "sharp", "grid", "one-hot", "close")


def tables(rng, kind, members, rows, classes, *, multilabel):
    """Probabilities [M, N, C] of one kind: certain ones, ones on a coarse grid (many exact ties), ones that nearly tie."""
    if multilabel:
        p = rng.random((members, rows, classes))
        return {
            "smooth": p,
            "sharp": (p > 0.5).astype(float),
            "grid": np.round(4 * p) / 4,
            "one-hot": np.round(p),
            "close": 0.5 + (p - 0.5) * 1e-12,
        }[kind]
    if kind == "grid":
        return rng.multinomial(4, np.full(classes, 1 / classes), (members, rows)) / 4
    if kind == "one-hot":
        return np.eye(classes)[rng.integers(0, classes, (members, rows))]
    scale = {"smooth": 1.0, "sharp": 60.0, "close": 1e-12}[kind]
    logits = scale * (rng.normal(0, 1, (members, rows, classes)) + rng.normal(0, 1, (rows, classes)))
    e = np.exp(logits - logits.max(axis=2, keepdims=True))
    return e / e.sum(axis=2, keepdims=True)


def stopped(stack, weights, how, *, multilabel):
    """Labels by stopping: the heaviest first, the vote itself for what never settles; and the ballots that each row took."""
    share = np.asarray(weights, float) / np.sum(weights)
    race = Race(stack.shape[1], stack.shape[2], multilabel=multilabel)
    took = np.zeros(stack.shape[1])
    for m in np.argsort(-share, kind="stable"):
        if share[m] > 0:
            rows = np.flatnonzero(~race.settled)
            race.add(rows, ballots(stack[m, rows], how, multilabel=multilabel), share[m])
            took[rows] += 1
    labels, rest = race.leaders, ~race.settled
    labels[rest] = decided(vote(stack[:, rest], how=how, weights=weights, multilabel=multilabel), multilabel=multilabel)
    return labels, took


WEIGHTS = {
    "equal": lambda rng, m: np.ones(m),
    "some zero": lambda rng, m: np.r_[1.0, rng.integers(0, 2, m - 1)],
    "small integers": lambda rng, m: rng.integers(1, 4, m).astype(float),
    "any": lambda rng, m: rng.random(m) + 1e-9,
    "far apart": lambda rng, m: 10.0 ** -rng.integers(0, 12, m),
}


@pytest.mark.parametrize("how", STOPPING)
@pytest.mark.parametrize("multilabel", [False, True], ids=["multiclass", "multilabel"])
def test_no_label_changes_over_two_hundred_thousand_rows(how, multilabel):
    rng = np.random.default_rng(0)
    cases = changed = stops = 0
    for kind in KINDS:
        for weigh in WEIGHTS.values():
            for members, classes in ((1, 3), (2, 2), (3, 3), (4, 3), (5, 2), (5, 18), (7, 4), (10, 5)):
                stack = tables(rng, kind, members, 260, classes, multilabel=multilabel)
                weights = weigh(rng, members)
                labels, took = stopped(stack, weights, how, multilabel=multilabel)
                full = decided(vote(stack, how=how, weights=weights, multilabel=multilabel), multilabel=multilabel)
                changed += int((labels != full).reshape(len(labels), -1).any(axis=1).sum())
                stops += int((took < (weights > 0).sum()).sum())
                cases += len(labels)
    assert cases == 52_000  # times four parametrisations
    assert changed == 0
    assert stops > cases / 10  # it does stop


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_no_label_changes_whatever_the_numbers(data):
    members, rows, classes = (data.draw(st.integers(1, top)) for top in (6, 4, 4))
    classes += 1
    counts = st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, 1e-9, 1e-12, 1e6]), min_size=classes, max_size=classes)
    raw = np.array([[data.draw(counts) for _ in range(rows)] for _ in range(members)], dtype=float)
    raw[..., 0] += raw.sum(axis=2) == 0
    stack = raw / raw.sum(axis=2, keepdims=True)
    weights = np.array(
        data.draw(st.lists(st.sampled_from([0, 1, 1, 2, 1e-6, 0.1, 0.2, 0.3]), min_size=members, max_size=members))
    )
    weights[0] += weights.sum() == 0
    for how in STOPPING:
        labels, _ = stopped(stack, weights, how, multilabel=False)
        assert np.array_equal(labels, decided(vote(stack, how=how, weights=weights), multilabel=False))


def test_five_that_agree_need_three_and_a_tie_needs_all():
    sure = np.tile(np.eye(3)[[0]], (5, 1, 1))
    for how in STOPPING:
        assert stopped(sure, np.ones(5), how, multilabel=False)[1].tolist() == [3]
    split = np.eye(3)[[[0], [1], [0], [1]]]
    labels, took = stopped(split, np.ones(4), "hard", multilabel=False)
    assert (labels.tolist(), took.tolist()) == ([0], [4])
    assert stopped(split, [3, 1, 1, 0.5], "hard", multilabel=False)[1].tolist() == [1]  # one with more than half decides


def test_a_settled_row_stays_settled_when_further_ballots_are_counted():
    race = Race(1, 2)
    race.add(np.array([0]), np.array([[1.0, 0.0]]), 0.6)
    assert race.settled.all()
    for _ in range(4):
        race.add(np.array([0]), np.array([[0.0, 1.0]]), 0.1)
    assert race.settled.all()
    assert race.leaders.tolist() == [0]
