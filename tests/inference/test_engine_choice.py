"""Engines: reduced precision is compared on images no model was trained on, and refused; trials are made once."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from tests.conftest import draw
from tests.requested import ensemble, parted
from toolkit.cli import advice, cli
from toolkit.core import prediction_files
from toolkit.core.activations import probabilities
from toolkit.errors import DeviceError, ModelError
from toolkit.images import boxes, render
from toolkit.inference import engine_choice, multi_process, precision_check, schedule
from toolkit.inference.execution import Execution
from toolkit.inference.exports import WeightedModels, find_exports, read_exports
from toolkit.inference.store.prediction_store import Store
from toolkit.runtime import speed_trials
from toolkit.runtime.devices import PROVIDERS, engine_tag
from toolkit.runtime.session import FakeSession, open_session
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split


class Opened:
    """Sessions whose reduced precision answers otherwise for images that `wrong` says."""

    def __init__(self, wrong=lambda pixels: np.zeros(len(pixels), bool)):
        self.wrong, self.count = wrong, 0

    def __call__(self, models, *, device, batch, precision="fp32", cache=None):
        self.count += 1
        real = open_session(models, device="cpu")

        def answer(digest, pixels):
            logits = real.run(pixels, "id")[digest]
            return np.where(self.wrong(pixels)[:, None], np.roll(logits, 1, axis=1), logits) if precision != "fp32" else logits

        made = FakeSession({digest: lambda pixels, digest=digest: answer(digest, pixels) for digest in models})
        made.device = device
        return made


def one_in(n):
    """A share of 1 / n of images, by their content."""
    return lambda pixels: np.array([int(image.sum()) % n == 0 for image in pixels.astype(np.int64)])


@pytest.fixture
def competition(workspace, folds):
    return Competition.read(workspace)


def settle(competition, **more):
    (execution,) = parted(more, Execution)
    return engine_choice.settle(competition, find_exports(["folds"], base=competition.root), execution, **more)


def held_out(competition):
    """(export, ids) of each fold's own held-out rows, without those of the calibration."""
    split = Split.read(competition.path("split.csv"))
    calibration = {path.stem for _, path in precision_check.calibration_images(competition)}
    for export in read_exports(find_exports(["folds"], base=competition.root), competition):
        yield export, [name for name in split.held_out(export.card.fold) if name not in calibration]


def pixels_of(competition, export, ids):
    where = dict(competition.images("train"))
    return np.stack([render.load(where[name], export.card.preprocess) for name in ids])


def test_what_a_precision_changes_is_measured_out_of_fold(competition):
    opener = Opened(one_in(3))
    engine = settle(competition, precision="bf16", device="openvino", min_agreement=0, opener=opener)
    same, gaps, right = [], [], {"fp32": [], "reduced": []}
    truth = dict(zip(competition.truth()["label"].ids, competition.truth()["label"].decided, strict=True))
    for export, ids in held_out(competition):
        pixels = pixels_of(competition, export, ids)
        plain = ort.InferenceSession(export.path, providers=["CPUExecutionProvider"]).run(None, {"images": pixels})[0]
        other = np.where(one_in(3)(pixels)[:, None], np.roll(plain, 1, axis=1), plain)
        p, q = (probabilities(x, export.card.outputs[0]) for x in (plain, other))
        same += (p.argmax(axis=1) == q.argmax(axis=1)).tolist()
        gaps.append(np.abs(p - q).ravel())
        for name, table in (("fp32", p), ("reduced", q)):
            right[name] += (table.argmax(axis=1) == [truth[i] for i in ids]).tolist()
    found = engine.compared["tiny"]
    assert found.what == "held-out images"
    assert found.rows == len(same) == 12
    assert 0 < found.agreement < 1
    assert found.agreement == np.mean(same)
    np.testing.assert_allclose(
        [found.largest, found.mean], [np.concatenate(gaps).max(), np.concatenate(gaps).mean()], atol=1e-6
    )
    score = found.scores["label"]
    assert [score["fp32"], score["reduced"]] == [np.mean(right["fp32"]), np.mean(right["reduced"])]
    assert score["low"] <= score["gain"] <= score["high"]
    assert json.dumps(engine.record)


def test_too_many_changed_labels_are_refused_with_numbers(competition):
    with pytest.raises(
        ModelError, match=r"bf16 on openvino changes too many labels of 'tiny', 99\.00% must stay: \d"
    ) as caught:
        settle(competition, precision="bf16", device="openvino", opener=Opened(one_in(3)))
    assert caught.value.code == "min-agreement"
    assert "--min-agreement" in advice.hint(caught.value)


def test_the_comparison_is_computed_once(competition):
    settle(competition, precision="bf16", device="openvino", opener=Opened())
    again = Opened()
    settle(competition, precision="bf16", device="openvino", opener=again)
    assert again.count == 0


def test_without_a_split_training_images_stand_in_and_no_score_is_given(competition):
    competition.path("split.csv").unlink()
    found = settle(competition, precision="bf16", device="openvino", opener=Opened()).compared["tiny"]
    assert found.what == "training images (seen by the models)"
    assert (found.rows, found.scores) == (24, {})


def test_calibration_stays_when_images_are_added(competition):
    before = {path.name for _, path in precision_check.calibration_images(competition)}
    assert len(before) == 12
    draw(np.random.default_rng(0), 0).save(competition.root / "train" / "0099.png")
    with competition.path("train.csv").open("a") as file:
        file.write("0099,ant\n")
    after = {path.name for _, path in precision_check.calibration_images(Competition.read(competition.root))}
    assert len(before - after) <= 1


@pytest.fixture
def timed(monkeypatch):
    """Rates as they are said, instead of a trial."""
    said = {}
    monkeypatch.setattr(speed_trials, "rates", lambda path, export, ways: {name: said[name] for name in ways})
    monkeypatch.setattr(engine_choice, "available", lambda: ["cpu", "openvino"])
    monkeypatch.setattr(engine_choice, "choose_device", lambda device: "cpu" if device == "auto" else device)
    return said


def test_auto_precision_is_the_fastest_that_passes(competition, timed, monkeypatch):
    monkeypatch.setattr(engine_choice._Bench, "_quantised", lambda self, folder, exports: ({}, "int8-0"))
    timed |= {"fp32 on cpu": 10, "int8 on cpu": 30, "fp32 on openvino": 11, "bf16 on openvino": 20}
    chosen = settle(competition, precision="auto", opener=Opened())
    assert (chosen.device, chosen.key) == ("cpu", "int8-0")
    assert "2.73× the speed of fp32 on openvino" in chosen.why
    assert set(chosen.compared) == {"tiny"}
    timed["int8 on cpu"] = 19
    assert settle(competition, precision="auto", opener=Opened()).key == "bf16"


def test_auto_precision_falls_back_to_fp32_and_says_why(competition, timed, monkeypatch):
    monkeypatch.setattr(engine_choice._Bench, "_quantised", lambda self, folder, exports: ({}, "int8-0"))
    timed |= {"fp32 on cpu": 10, "int8 on cpu": 30, "fp32 on openvino": 9, "bf16 on openvino": 20}
    chosen = settle(competition, precision="auto", opener=Opened(one_in(2)))
    assert (chosen.device, chosen.key, chosen.compared) == ("cpu", "fp32", {})
    assert "int8 on cpu changes too many labels" in chosen.why
    assert "bf16 on openvino changes too many labels" in chosen.why
    timed |= {"int8 on cpu": 9, "bf16 on openvino": 10.2}
    assert "nothing else is faster" in settle(competition, precision="auto", opener=Opened()).why


def test_auto_device_takes_what_is_stored_then_what_is_faster(competition, timed, monkeypatch):
    timed |= {"fp32 on cpu": 10, "fp32 on openvino": 15}
    assert settle(competition, opener=Opened()).device == "cpu"  # 22 passes are not worth a trial
    monkeypatch.setattr(engine_choice, "WORTH", 10)
    chosen = settle(competition, opener=Opened())
    assert chosen.device == "openvino"
    assert "fp32 on openvino 15, fp32 on cpu 10" in chosen.why
    timed["fp32 on openvino"] = 10.3  # within the noise of a trial
    assert settle(competition, opener=Opened()).device == "cpu"
    timed["fp32 on openvino"] = 5
    ensemble(competition, find_exports(["folds"], base=competition.root), device="openvino")
    chosen = settle(competition, opener=Opened())
    assert (chosen.device, chosen.why) == ("openvino", "auto: the store has rows that it computed")


def test_a_precision_nothing_here_computes_in_is_refused(competition):
    with pytest.raises(DeviceError, match="fp16 takes cuda or tensorrt"):
        settle(competition, precision="fp16")
    with pytest.raises(DeviceError, match="cpu does not compute in bf16"):
        settle(competition, precision="bf16", device="cpu")


def test_a_trial_is_made_once_per_machine_model_and_engine(competition, monkeypatch):
    monkeypatch.setattr(speed_trials, "SECONDS", 0.01)
    exports = read_exports(find_exports(["folds"], base=competition.root), competition)
    opener = Opened()

    def rates(engine="one"):
        ways = {"a": (engine, lambda: opener({exports[0].digest: exports[0].path}, device="cpu", batch=None))}
        return speed_trials.rates(competition.path("cache", "trials.json"), exports[0], ways)

    first = rates()
    assert first["a"] > 0
    assert rates() == first
    assert opener.count == 1
    rates("two")
    assert opener.count == 2
    monkeypatch.setattr(speed_trials, "_machine", lambda: "another")
    rates()
    assert opener.count == 3
    competition.path("cache", "trials.json").write_text("no JSON")
    assert rates()["a"] > 0


def test_a_slower_engine_is_measured_as_slower(competition, monkeypatch):
    monkeypatch.setattr(speed_trials, "SECONDS", 0.05)
    export = read_exports(find_exports(["folds"], base=competition.root), competition)[0]

    def opener(seconds):
        def answer(pixels):
            time.sleep(seconds)
            return pixels[:, :, 0, 0].astype(np.float32)

        return lambda: FakeSession({export.digest: answer})

    found = speed_trials.rates(competition.path("x.json"), export, {"fast": ("1", opener(0.004)), "slow": ("8", opener(0.02))})
    assert 2 < found["fast"] / found["slow"] < 10


def invoke(*arguments):
    return CliRunner().invoke(cli, list(arguments))


def test_int8_from_the_command_line_is_kept_apart_and_recorded(competition):
    arguments = ["ensemble", "folds/*.onnx", "--precision", "int8", "--device", "cpu", "--min-agreement", "0.5"]
    first = invoke(*arguments)
    assert first.exit_code == 0, first.output
    assert "Device    cpu, int8" in first.output
    assert "22 computed" in first.output
    assert "held-out images keep their label" in first.output
    assert "0 computed" in invoke(*arguments).output
    meta = prediction_files.read_table(competition.path("predictions", "ensemble.parquet")).meta
    assert meta["engine"]["precision"].startswith("int8-")
    assert meta["engine"]["compared"]["tiny"]["rows"] == 12
    reduced = prediction_files.read_table(competition.path("predictions", "ensemble.parquet")).predictions["label"].values
    plain = invoke("ensemble", "folds/*.onnx", "--device", "cpu")
    assert "22 computed" in plain.output  # nothing that int8 computed is served as fp32
    exact = prediction_files.read_table(competition.path("predictions", "ensemble.parquet")).predictions["label"].values
    assert 0 < np.abs(reduced - exact).max() < 0.2
    keys = [json.loads(path.read_text()) for path in competition.path("store").glob("tables/*/key.json")]
    assert {key["precision"] for key in keys} == {"fp32", meta["engine"]["precision"]}


def test_openvino_from_the_command_line_agrees_with_onnxruntime(competition):
    made = {}
    for device in ("cpu", "openvino"):
        assert invoke("ensemble", "folds/*.onnx", "--device", device, "--tta", "hflip").exit_code == 0
        made[device] = (
            prediction_files.read_table(competition.path("predictions", "ensemble.parquet")).predictions["label"].values
        )
    assert 0 <= np.abs(made["cpu"] - made["openvino"]).max() < 1e-5
    keys = [json.loads(path.read_text()) for path in competition.path("store").glob("tables/*/key.json")]
    assert {key["engine"] for key in keys} == {engine_tag("cpu"), engine_tag("openvino")}


def test_rows_that_other_processes_made_are_counted_and_read(competition, monkeypatch):
    monkeypatch.setattr(multi_process, "SHARD", 6)
    paths = find_exports(["folds"], base=competition.root)
    made = ensemble(competition, paths, device="cpu", tta="hflip", runner="here", workers=1)
    assert made.outcome.passes == 11 * 2 * 2
    competition.path("store").rename(competition.path("other"))
    alone = ensemble(competition, paths, device="cpu", tta="hflip")
    assert made.predictions["label"].values.tobytes() == alone.predictions["label"].values.tobytes()


def test_several_gpus_have_a_process_each(competition, monkeypatch):
    asked = []
    monkeypatch.setattr(multi_process, "fill", lambda *given, **_: asked.append(given[4]) or 7)
    models, store = WeightedModels([], {}), Store(competition.path("store"))
    execution = engine_choice.Engine("cuda", "fp16", "fp16").applied(Execution(batch=4, runner="processes"))
    monkeypatch.setattr(schedule, "gpu_count", lambda: 1)
    assert schedule._filled(models, [], store, execution, boxes.NO_BOXES) == 0
    monkeypatch.setattr(schedule, "gpu_count", lambda: 2)
    assert schedule._filled(models, [], store, replace(execution, runner=""), boxes.NO_BOXES) == 0
    assert schedule._filled(models, [], store, execution, boxes.NO_BOXES) == 7
    assert [(e.device, e.precision, e.batch) for e in asked] == [("cuda", "fp16", 4)]
    assert schedule._filled(models, [], store, replace(execution, device="openvino"), boxes.NO_BOXES) == 0
    assert len(PROVIDERS) == 4


def test_what_a_reduced_precision_made_is_made_again_in_it(competition):
    arguments = ["--precision", "int8", "--device", "cpu", "--min-agreement", "0.5", "--tta", "hflip"]
    assert invoke("ensemble", "folds/*.onnx", *arguments).exit_code == 0
    meta = prediction_files.read_table(competition.path("predictions", "ensemble.parquet")).meta
    exports = sorted(competition.path("folds").glob("*.onnx"))
    again = engine_choice.recorded(competition, exports, meta["engine"])
    assert (again.device, again.key) == ("cpu", meta["engine"]["precision"])
    assert {path.parent.name for path in again.files.values()} == {"int8"}
    assert invoke("submit").exit_code == 0
    verified = invoke("verify", "--rebuild")
    assert verified.exit_code == 0, verified.output
    with pytest.raises(DeviceError):
        engine_choice.recorded(competition, exports, {"device": "cuda", "precision": "fp16"})


def test_predict_takes_a_precision_where_there_is_a_workspace_to_compare_it_in(competition, monkeypatch, tmp_path):
    arguments = ["predict", "folds/*.onnx", "--on", "test", "-o", "said.parquet", "--precision", "int8", "--device", "cpu"]
    assert invoke(*arguments, "--min-agreement", "0.5").exit_code == 0
    meta = prediction_files.read_table(competition.root / "said.parquet").meta
    assert meta["engine"]["precision"].startswith("int8-")
    (competition.root / "test").rename(tmp_path / "images")
    (competition.root / "folds").rename(tmp_path / "folds")
    monkeypatch.chdir(tmp_path)
    done = invoke("predict", "folds", "--on", "images", "-o", "said.csv", "--precision", "int8")
    assert done.exit_code == 1
    assert "none" in done.output
    assert invoke("predict", "folds", "--on", "images", "-o", "said.csv", "--device", "openvino").exit_code == 0
