"""Views on held-out images: measured through the store as torch measures them, chosen per member, named sets checked."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tests.conftest import card, make_workspace, network
from tests.requested import ensemble
from toolkit.blending.combination import Combination
from toolkit.cli import cli
from toolkit.core import prediction_files
from toolkit.ensemble import tta
from toolkit.errors import DataError, ToolkitError
from toolkit.images import render
from toolkit.images.views import VIEW_SETS, parse, views
from toolkit.inference.execution import Execution
from toolkit.inference.exports import find_exports, read_exports
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.runtime.session import FakeSession
from toolkit.submissions import submission
from toolkit.submissions.verify import verify
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split

ROWS = 240
UPRIGHT = 255  # the first pixel of the first row, until somebody mirrors it


def invoke(*arguments):
    return CliRunner().invoke(cli, list(arguments))


# --- a planted workspace: one member that mirrors help, one that they mislead ---------------------------------------------


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Images whose first channel tells the class, with noise of its own in the left and the right half, and a mark of what is up."""
    root = make_workspace(tmp_path_factory.mktemp("planted") / "work", train=ROWS, test=4)
    rng = np.random.default_rng(0)
    for i in range(ROWS):
        picture = np.zeros((32, 32, 3), dtype=np.uint8)
        picture[..., 0] = 40 + 60 * (i % 3)
        picture[:, :16, 1], picture[:, 16:, 1] = rng.integers(0, 256, 2)
        picture[0, 0, 2] = UPRIGHT
        Image.fromarray(picture).save(root / "train" / f"{i:04d}.png")
    return root


def helped(pixels):
    """Sure of the class but for the noise at its left, which a mirrored view exchanges for other noise."""
    level = pixels[:, 0, 0, 5].astype(float)
    noise = (pixels[:, 1, 16, 4] / 255.0 - 0.5) * 1.6
    x = (level - 40) / 60 + noise
    return (-((x[:, None] - np.arange(3)) ** 2)).astype(np.float32)


def misled(pixels):
    """Certain, and more so and wrong about ants as soon as they are mirrored."""
    truth = np.rint((pixels[:, 0, 0, 5].astype(float) - 40) / 60).astype(int)
    mirrored = pixels[:, 2, 0, 0] < UPRIGHT
    seen = np.where(mirrored & (truth == 0), 1, truth)
    return (np.where(mirrored, 16, 8)[:, None] * np.eye(3)[seen]).astype(np.float32)


class Opened:
    """An opener of fake sessions, which counts what goes through them."""

    def __init__(self):
        self.sessions = []

    def __call__(self, models, **_):
        self.sessions.append(FakeSession({name: misled if name.startswith("misled") else helped for name in models}))
        return self.sessions[-1]

    @property
    def passes(self):
        return sum(session.passes for session in self.sessions)


def members(root, *names, folds=(0, 1), **changes):
    split = Split.read(root / "split.csv").digest
    said = {"split": split} | changes
    return [
        Export(path=root / f"{name}.fold{k}.onnx", card=card(name, k, **said), digest=f"{name}{k}", sha256="")
        for name in names
        for k in folds
    ]


@pytest.fixture
def copied(planted, tmp_path):
    """The planted workspace, its store empty."""
    root = tmp_path / "work"
    shutil.copytree(planted, root)
    return Competition.read(root)


def test_each_member_has_its_own_choice_and_repeating_it_costs_nothing(copied, monkeypatch):
    exports, opened = members(copied.root, "helped", "misled"), Opened()
    decoded = []
    true = render.decode
    monkeypatch.setattr(render, "decode", lambda *a, **k: decoded.append(1) or true(*a, **k))
    found, notes = tta.find(copied, exports, ["hflip", "scale"], Execution("cpu", opener=opened))
    assert notes == ()
    assert {name: finding.chosen for name, finding in found.items()} == {"helped": "hflip", "misled": "none"}
    assert len(decoded) == ROWS  # once for both members and all views
    assert opened.passes == ROWS * 2 * 4
    line = found["misled"].sets[1]
    truth = copied.truth()["label"].decided
    assert (line.won, line.lost) == (0, (truth == 0).sum())
    assert [(one.name, one.became, one.lost) for one in line.suffering] == [("ant", "bee", (truth == 0).sum())]
    again = Opened()
    repeated, _ = tta.find(copied, exports, ["hflip", "scale"], Execution("cpu", opener=again))
    assert again.passes == 0
    assert repeated["helped"].nested == found["helped"].nested


def test_without_sets_every_set_that_fits_is_judged(copied):
    square, _ = tta.find(copied, members(copied.root, "misled"), execution=Execution("cpu", opener=Opened()), limit=40)
    assert [line.name for line in square["misled"].sets] == list(VIEW_SETS)
    assert square["misled"].rows == 40
    wide = members(copied.root, "misled", size=(32, 48))
    oblong, _ = tta.find(copied, wide, execution=Execution("cpu", opener=Opened()), limit=40)
    assert [line.name for line in oblong["misled"].sets] == [name for name in VIEW_SETS if name not in ("rot90", "d4")]
    with pytest.raises(DataError, match="turns images by 90°"):
        tta.find(copied, wide, ["d4"], Execution("cpu", opener=Opened()))


def test_seeds_of_a_fold_are_averaged_and_full_models_left_out(copied):
    first = members(copied.root, "helped")
    twin = [replace(export, digest=f"misled{export.digest}") for export in first]
    full = replace(first[0], card=replace(first[0].card, fold=None), digest="full")
    alone = members(copied.root, "other", folds=(None,))
    found, notes = tta.find(copied, [*first, *twin, full, *alone], ["hflip"], Execution("cpu", opener=Opened()))
    assert list(found) == ["helped"]
    assert notes == ("other has no fold of split.csv that it did not see",)
    rows = tta.measure(copied, [*first, *twin], {"helped": ("id",)}, Execution("cpu", opener=Opened()))["helped"]
    single = [
        tta.measure(copied, part, {"helped": ("id",)}, Execution("cpu", opener=Opened()))["helped"].probabilities["label"]
        for part in (first, twin)
    ]
    np.testing.assert_allclose(rows.probabilities["label"], np.mean(single, axis=0), atol=1e-12)


def test_images_that_cannot_be_used_are_left_out(copied):
    (copied.root / "train" / "0007.png").write_bytes(b"no image")
    found, _ = tta.find(copied, members(copied.root, "helped"), ["hflip"], Execution("cpu", opener=Opened()))
    assert found["helped"].rows == ROWS - 1
    for path in (copied.root / "train").glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of its held-out images"):
        tta.find(copied, members(copied.root, "helped"), ["hflip"], Execution("cpu", opener=Opened()))


# --- what the ensemble is told ----------------------------------------------------------------------------------------


def settle(competition, asked, monkeypatch, exports=None, **more):
    exports = exports or members(competition.root, "helped", "misled")
    monkeypatch.setattr(tta, "read_exports", lambda *_, **__: exports)
    execution = Execution("cpu", opener=more.pop("opener", None) or Opened())
    return tta.resolve(competition, [], Combination(asked), execution, **more)


def test_auto_is_replaced_by_each_members_choice(copied, monkeypatch):
    monkeypatch.setattr(tta, "VIEW_SETS", {"none": ("id",), "hflip": views("hflip")})
    choice = settle(copied, "auto", monkeypatch)
    assert choice.tta == "helped=hflip,misled=none"
    assert choice.warnings == ()
    assert choice.record["asked"] == "auto"
    said = choice.record["members"]["helped"]
    assert (said["used"], said["metric"], said["rows"]) == ("hflip", "accuracy", ROWS)
    assert 0 < said["nested_gain"][1] <= said["nested_gain"][0]
    assert any(note.startswith("helped: hflip: choosing views gains") for note in choice.record["notes"])
    json.dumps(choice.record)
    mixed = settle(copied, "helped=auto,misled=flip", monkeypatch, check=False)
    assert mixed.tta == "helped=hflip,misled=flip"


def test_a_set_that_costs_score_is_obeyed_with_a_warning_that_has_the_numbers(copied, monkeypatch):
    choice = settle(copied, "hflip", monkeypatch)
    assert choice.tta == "hflip"
    (warning,) = choice.warnings
    ants = int((copied.truth()["label"].decided == 0).sum())
    for part in ("views hflip cost misled accuracy 0.3333", f"{ROWS} held-out rows", f"{ants} right→wrong", "class 'ant'"):
        assert part in warning
    assert choice.record["members"]["misled"]["lost"] == ants
    assert warning in choice.record["notes"]


def test_the_check_is_bounded_and_can_be_left_out(copied, monkeypatch):
    monkeypatch.setattr(tta, "CHECKED", 30)
    opened = Opened()
    choice = settle(copied, "hflip", monkeypatch, opener=opened)
    assert opened.passes == 30 * 2 * 2
    assert choice.record["members"]["misled"]["rows"] == 30
    for asked, check in (("hflip", False), ("none", True), ("helped=none", True)):
        opened = Opened()
        silent = settle(copied, asked, monkeypatch, opener=opened, check=check)
        assert (opened.passes, silent.warnings, silent.record.get("members", {})) == (0, (), {})


def test_what_cannot_be_checked_is_said_and_what_cannot_be_chosen_refused(copied, monkeypatch):
    other = members(copied.root, "helped", split="another")
    choice = settle(copied, "hflip", monkeypatch, exports=other)
    assert choice.tta == "hflip"
    assert "views were not checked" in choice.record["notes"][0]
    with pytest.raises(DataError, match=r"no model has a fold of split\.csv"):
        settle(copied, "auto", monkeypatch, exports=other)
    (copied.root / "split.csv").unlink()
    unsplit = settle(copied, "hflip", monkeypatch, exports=other)
    assert "split.csv" in unsplit.record["notes"][0]
    with pytest.raises(ToolkitError, match=r"split\.csv"):
        settle(copied, "auto", monkeypatch, exports=other)


# --- real exports, from the command line ------------------------------------------------------------------------------


def test_views_of_held_out_images_are_what_torch_says(workspace, folds):
    competition = Competition.read(workspace)
    exports = read_exports(find_exports(["folds"]), competition)
    wanted = ("id", "hflip", "scale:1.1", "crop:lt+hflip", "multiply:0.9")
    rows = tta.measure(competition, exports, {"tiny": wanted}, Execution("cpu"))["tiny"]
    split, said = Split.read(workspace / "split.csv"), card()
    mean, std = (torch.tensor(x).reshape(1, 3, 1, 1) for x in (said.mean, said.std))
    start = 0
    for fold in range(2):
        ids = split.held_out(fold)
        for place, view in enumerate(wanted):
            cut, turn = parse(view)
            files = [render.decode(render.read(workspace / "train" / f"{name}.png"), name) for name in ids]
            pixels = np.stack([render.cuts(image, said.preprocess, [cut])[0] for image in files])
            pixels = pixels[..., ::-1].copy() if turn == "hflip" else pixels
            with torch.inference_mode():
                expected = network(fold)((torch.from_numpy(pixels) / 255 - mean) / std).softmax(1).numpy()
            np.testing.assert_allclose(rows.probabilities["label"][place, start : start + len(ids)], expected, atol=1e-5)
        assert (rows.folds[start : start + len(ids)] == fold).all()
        start += len(ids)


def test_the_command_prints_the_table_or_json(workspace, folds):
    assert "scale:0.9+hflip" not in invoke("tta", "--set", "hflip+scale:0.9").stdout  # single views are asked for
    done = invoke("tta", "--set", "hflip", "--set", "hflip+scale:0.9", "--views")
    assert done.exit_code == 0, done.output
    for word in ("tiny: accuracy on 24 held-out rows", "hflip+scale:0.9", "scale:0.9+hflip", "right → wrong", "← chosen"):
        assert word in done.stdout
    said = json.loads(invoke("tta", "folds", "--set", "hflip", "--json").stdout)["tiny"]
    assert [line["name"] for line in said["sets"]] == ["none", "hflip"]
    assert said["rows"] == 24
    assert invoke("tta", "--set", "spin").exit_code == 2
    assert invoke("tta", "--set", "b4=flip").exit_code == 2
    (workspace / "split.csv").unlink()
    missing = invoke("tta", "--json")
    assert missing.exit_code == 1
    assert "split.csv" in json.loads(missing.stdout)["error"]


def test_ensembles_take_auto_products_and_sets_per_member(workspace, folds):
    done = invoke("ensemble", "folds", "--tta", "auto")
    assert done.exit_code == 0, done.output
    meta = prediction_files.read_table(workspace / "predictions" / "ensemble.parquet").meta
    assert meta["tta"]["asked"] == "auto"
    assert meta["view_set"] == meta["tta"]["members"]["tiny"]["used"]
    assert meta["views"] == {"tiny": list(views(meta["view_set"]))}
    assert meta["tta"]["notes"][0] in done.stdout
    made = invoke("ensemble", "folds", "--tta", "tiny=hflip+scale:0.9,1.0", "--no-tta-check")
    assert made.exit_code == 0, made.output
    meta = prediction_files.read_table(workspace / "predictions" / "ensemble.parquet").meta
    assert meta["views"] == {"tiny": ["id", "scale:0.9", "hflip", "scale:0.9+hflip"]}
    assert meta["tta"] == {"asked": "tiny=hflip+scale:0.9,1.0", "members": {}, "notes": [], "warnings": []}
    gone = invoke("ensemble", "folds", "--tta", "vit=flip")
    assert gone.exit_code == 1
    assert "'vit'" in gone.stderr


def test_an_ensemble_of_cut_and_turned_views_is_the_mean_of_them_and_can_be_made_again(workspace, folds):
    assert invoke("ensemble", "folds", "--tta", "hflip+scale:0.9").exit_code == 0
    competition = Competition.read(workspace)
    made = prediction_files.read_table(workspace / "predictions" / "ensemble.parquet").predictions["label"]
    said = card()
    mean, std = (torch.tensor(x).reshape(1, 3, 1, 1) for x in (said.mean, said.std))
    expected = []
    for cut in (parse("id")[0], parse("scale:0.9")[0]):
        files = [render.decode(render.read(path), name) for name, path in competition.images("test")]
        pixels = np.stack([render.cuts(image, said.preprocess, [cut])[0] for image in files])
        for turned in (pixels, pixels[..., ::-1].copy()):
            with torch.inference_mode():
                normal = (torch.from_numpy(turned) / 255 - mean) / std
                expected += [network(fold)(normal).softmax(1).numpy() for fold in range(2)]
    np.testing.assert_allclose(made.values, np.mean(expected, axis=0), atol=1e-5)
    submission.submit(competition)
    assert verify(competition, workspace / "submission.csv", rebuild=True).rebuilt


def test_another_spelling_of_a_view_is_the_same_row_of_the_store(workspace, folds):
    competition = Competition.read(workspace)
    paths = find_exports(["folds"])
    assert ensemble(competition, paths, tta="flip", device="cpu").outcome.passes == 11 * 2 * 4
    for same in ("hflip+vflip", "vflip+hflip", "vflip+rot180", "hflip+scale:1.0", "flip+multiply:1.0+add:0"):
        assert ensemble(competition, paths, tta=same, device="cpu").outcome.passes == 0
    assert ensemble(competition, paths, tta="scale", device="cpu").outcome.passes == 11 * 2 * 2
