"""toolkit ensemble, inspect and export from the command line: results, and every bad input with its message and exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from tests.conftest import card, draw, network
from toolkit.cli import cli
from toolkit.models import checkpoints
from toolkit.runtime.graphs import onnx_file
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split


def invoke(*arguments):
    return CliRunner().invoke(cli, list(arguments))


def test_ensemble_then_submit_exactly_so(workspace, folds):
    made = invoke("ensemble", *[str(path.relative_to(workspace)) for path in sorted(folds.glob("*.onnx"))], "--tta", "flip")
    assert made.exit_code == 0, made.output
    assert "88 computed, 0 from the store" in made.stdout
    assert "predictions/ensemble.parquet (11 rows" in made.stdout
    assert made.stderr == ""
    sent = invoke("submit")
    assert sent.exit_code == 0, sent.output
    lines = (workspace / "submission.csv").read_text().splitlines()
    assert lines[0] == "id,label"
    assert [line.split(",")[0] for line in lines[1:]] == [str(9000 + i) for i in range(11)]
    again = invoke("ensemble", "folds/*.onnx", "--tta", "flip")
    assert "0 computed, 88 from the store" in again.stdout


def test_the_blends_weights_are_taken_when_asked(workspace, folds):
    (workspace / "blend.json").write_text('{"schema": 1, "targets": {"label": {"members": {"tiny": 1.0}}}}')
    assert invoke("ensemble", "folds", "--blend").exit_code == 0
    both = invoke("ensemble", "folds", "--blend", "--weights", "1,1")
    assert both.exit_code == 2
    (workspace / "blend.json").write_text('{"schema": 1, "targets": {"label": {"members": {"gone": 1.0}}}}')
    gone = invoke("ensemble", "folds", "--blend")
    assert gone.exit_code == 1
    assert "'gone'" in gone.stderr
    (workspace / "blend.json").unlink()
    missing = invoke("ensemble", "folds", "--blend")
    assert missing.exit_code == 1
    assert "toolkit blend" in missing.stderr


def test_it_works_from_inside_and_from_elsewhere(workspace, folds, monkeypatch, tmp_path):
    monkeypatch.chdir(folds)
    assert invoke("ensemble", "*.onnx").exit_code == 0
    monkeypatch.chdir(tmp_path)
    assert invoke("-C", str(workspace), "ensemble", str(folds)).exit_code == 0
    lost = invoke("ensemble", str(folds))
    assert lost.exit_code == 1
    assert "toolkit init" in lost.stderr


def test_inspect_says_what_the_card_says(workspace, folds):
    text = invoke("inspect", "folds")
    assert text.exit_code == 0
    for words in ("tiny.fold0", "ant, bee, cat", "opset 20, IR 10", "accuracy 0.5000", "Gap"):
        assert words in text.stdout
    (first, second) = json.loads(invoke("inspect", "folds", "--json").stdout)["models"]
    assert (first["card"]["fold"], second["card"]["fold"]) == (0, 1)


def test_export_of_a_recipes_checkpoint(workspace):
    import timm

    torch.manual_seed(0)
    architecture = {"model_name": "test_resnet", "num_classes": 3}
    model = timm.create_model(**architecture)
    path = checkpoints.save(workspace / "runs" / "m" / "fold1" / "model.safetensors", model, card("m", 1), architecture)
    done = invoke("export", str(path))
    assert done.exit_code == 0, done.output
    assert onnx_file.read(workspace / "folds" / "m.fold1.onnx").card.mean == card().mean


def test_export_of_a_timm_state_dict_takes_pixels_from_timm(workspace):
    import timm

    model = timm.create_model("test_resnet", num_classes=3)
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, workspace / "best.pth")
    done = invoke("export", "best.pth", "--model", "test_resnet", "--fold", "1", "--member", "m")
    assert done.exit_code == 0, done.output
    said = onnx_file.read(workspace / "folds" / "m.fold1.onnx").card
    config = timm.data.resolve_model_data_config(model)
    assert said.preprocess.size == config["input_size"][1:]
    assert said.preprocess.shorter == int(np.floor(said.preprocess.size[0] / config["crop_pct"]))
    assert (said.mean, said.std) == (config["mean"], config["std"])
    assert said.split == Split.read(workspace / "split.csv").digest


def test_export_keeps_what_is_there_and_takes_pixels_that_are_said(workspace):
    import timm

    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), workspace / "best.pth")
    one = ("export", "best.pth", "--model", "test_resnet", "--member", "m")
    assert invoke(*one, "--resize", "squash", "--size", "96", "--interpolation", "bicubic").exit_code == 0
    pixels = onnx_file.read(workspace / "folds" / "m.all.onnx").card.preprocess
    assert (pixels.size, pixels.resize, pixels.shorter, pixels.interpolation) == ((96, 96), "squash", None, "bicubic")
    again = invoke(*one)
    assert again.exit_code == 1
    assert "--force" in again.stderr
    assert invoke(*one, "--force").exit_code == 0
    absent = invoke(*one, "--fold", "7")
    assert absent.exit_code == 1
    assert "folds 0 to 1" in absent.stderr


def test_evaluation_pixels_of_such_an_export_are_timms(workspace):
    import timm
    from PIL import Image

    from toolkit.images.render import load
    from toolkit.models.export_checkpoint import _card

    model = timm.create_model("test_resnet", num_classes=3)
    said = _card(Competition.read(workspace), model, "m", 0)
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    path = workspace / "photo.png"
    draw(np.random.default_rng(0), 1, 300, 420).save(path)
    theirs = transform(Image.open(path)).numpy()
    mean, std = (np.array(x).reshape(3, 1, 1) for x in (said.mean, said.std))
    ours = (load(path, said.preprocess) / 255 - mean) / std
    assert np.abs(ours - theirs).max() <= 1.01 / 255 / min(said.std)


# --- bad input: each one line that names the file or column and says what to do, exit code 1, nothing half-written --------


def _corrupt(root):
    (root / "test" / "9002.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")


def _truncated(root):
    path = root / "test" / "9002.png"
    path.write_bytes(path.read_bytes()[:300])


def _empty(root):
    (root / "test" / "9002.png").write_bytes(b"")


def _missing(root):
    (root / "test" / "9002.png").unlink()


def _no_pixels(root):
    (root / "test" / "9002.png").write_bytes(b"P6\n0 0\n255\n")


def _bomb(root):
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    (root / "test" / "9002.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


def _not_onnx(root):
    (root / "folds" / "tiny.fold1.onnx").write_text("hello")


def _half_onnx(root):
    path = root / "folds" / "tiny.fold1.onnx"
    path.write_bytes(path.read_bytes()[:2000])


def _pointer(root):
    (root / "folds" / "tiny.fold1.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def _external(root):
    path = root / "folds" / "tiny.fold1.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=0, location="tiny.data")


def _newer_card(root):
    path = root / "folds" / "tiny.fold1.onnx"
    model = onnx.load(path)
    for entry in model.metadata_props:
        entry.value = entry.value.replace('"schema": 1', '"schema": 2')
    onnx.save(model, path)


def _no_exports(root):
    for path in (root / "folds").glob("*.onnx"):
        path.unlink()


def _no_id(root):
    path = root / "sample_submission.csv"
    path.write_text(path.read_text().replace("id,", "name,", 1))


def _twice(root):
    path = root / "sample_submission.csv"
    path.write_text(path.read_text() + "9003,ant\n")


def _read_only(root):
    (root / "store").write_text("a file where a folder is needed")


BAD = {
    "corrupt image": (_corrupt, ["9002.png"]),
    "truncated image": (_truncated, ["9002.png", "truncated"]),
    "empty image": (_empty, ["9002.png", "empty"]),
    "missing image": (_missing, ["9002.png", "does not exist"]),
    "image of 0 pixels": (_no_pixels, ["9002.png"]),
    "image of 400 megapixels": (_bomb, ["9002.png", "100"]),
    "not an ONNX file": (_not_onnx, ["tiny.fold1.onnx", "not a complete ONNX file"]),
    "truncated ONNX": (_half_onnx, ["tiny.fold1.onnx", "not a complete ONNX file"]),
    "Git LFS pointer": (_pointer, ["tiny.fold1.onnx", "git lfs pull"]),
    "external-data ONNX": (_external, ["tiny.fold1.onnx", "self-contained"]),
    "card of a newer schema": (_newer_card, ["tiny.fold1.onnx", "schema 2", "Upgrade"]),
    "empty glob": (_no_exports, ["folds/*.onnx", "matches no .onnx file"]),
    "CSV without the id column": (_no_id, ["sample_submission.csv", "no column 'id'"]),
    "CSV with duplicate ids": (_twice, ["sample_submission.csv", "'9003'", "more than once"]),
    "store that cannot be written": (_read_only, ["store"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(workspace, folds, name):
    spoil, words = BAD[name]
    spoil(workspace)
    done = invoke("ensemble", "folds/*.onnx")
    assert done.exit_code == 1
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert not list(workspace.rglob("*.part-*"))
    assert not (workspace / "predictions").exists()


def test_a_full_disk_is_said_and_leaves_the_old_predictions(workspace, folds, quick_processes):
    """A file size limit of 4 kB stands for the full disk: writing beyond it fails as writing to a full one does."""
    invoke("ensemble", "folds/*.onnx", "--name", "mine")
    before = (workspace / "predictions" / "mine.parquet").read_bytes()
    code = (
        "import resource, signal, sys\nsys.dont_write_bytecode = True\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from toolkit.cli import main\nresource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "sys.argv = ['toolkit', 'ensemble', 'folds/*.onnx', '--tta', 'flip', '--name', 'mine']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=workspace, check=False)
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert (workspace / "predictions" / "mine.parquet").read_bytes() == before
    assert not list(workspace.rglob("*.part-*"))


def test_cuda_that_is_not_there_is_an_error(workspace, folds):
    from toolkit.runtime.devices import gpu_count

    if gpu_count():
        assert invoke("ensemble", "folds/*.onnx", "--device", "cuda").exit_code == 0
        return
    done = invoke("ensemble", "folds/*.onnx", "--device", "cuda")
    assert done.exit_code == 1
    assert "toolkit doctor" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ensemble"], 2, "Missing argument"),
        (["ensemble", "folds", "--tta", "spin"], 2, "unknown view 'spin'"),
        (["ensemble", "folds", "--weights", "1,2,3"], 1, "3 numbers for 2 models"),
        (["ensemble", "folds", "--members", "huge"], 1, "'huge'"),
        (["ensemble", "folds", "--evidence", "0"], 2, "'0' is not all, none or a number of rows"),
        (["ensemble", "folds", "--evidence", "some"], 2, "'some' is not all, none or a number of rows"),
        (["ensmble"], 2, "Did you mean 'ensemble'"),
        (["ensemble", "folds", "--tat", "flip"], 2, "--tta"),
        (["inspect", "nothing.onnx"], 1, "nothing.onnx"),
        (["export", "nothing.pth"], 1, "nothing.pth"),
    ],
)
def test_wrong_words(workspace, folds, arguments, code, words):
    done = invoke(*arguments)
    assert done.exit_code == code
    assert words in done.stderr


def test_a_pickle_that_would_run_code_is_not_run(workspace):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {workspace}/pwned",)

    torch.save({"state_dict": Evil()}, workspace / "evil.pth")
    done = invoke("export", "evil.pth", "--model", "test_resnet")
    assert done.exit_code == 1
    assert "safetensors" in done.stderr
    assert not (workspace / "pwned").exists()


def test_a_checkpoint_of_another_network_is_refused_with_what_differs(workspace):
    torch.save(network(0).state_dict(), workspace / "other.pth")
    done = invoke("export", "other.pth", "--model", "test_resnet")
    assert done.exit_code == 1
    assert "parameters missing" in done.stderr
    assert invoke("export", "other.pth").exit_code == 1
    unknown = invoke("export", "other.pth", "--model", "resnett18")
    assert "resnet" in unknown.stderr


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(workspace, folds, quick_processes):
    rng = np.random.default_rng(0)
    ids = [str(9000 + i) for i in range(2000)]
    for name in ids[11:]:
        draw(rng, 0, 24, 24).save(workspace / "test" / f"{name}.png")
    (workspace / "sample_submission.csv").write_text("id,label\n" + "".join(f"{name},ant\n" for name in ids))
    command = [sys.executable, "-m", "toolkit", "ensemble", "folds/*.onnx", "--tta", "d4", "--no-tta-check"]
    process = subprocess.Popen(command, cwd=workspace, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 150
    while not list(workspace.rglob("*.seg")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=150)
    assert process.returncode == 130
    assert "run the same command again" in said
    assert "Traceback" not in said
    assert not (workspace / "predictions").exists()
    done = invoke(*command[3:])
    assert done.exit_code == 0, done.output
    computed, stored = (
        int(part.split()[0].replace(",", "")) for part in done.stdout.split("Passes    ")[1].split("(")[0].split(", ")
    )
    assert computed + stored == 2000 * 2 * 8
    assert stored > 0
    assert stored % (2 * 8) == 0  # whatever was finished is there for every model and view


def test_the_score_of_views_is_announced_measured_and_kept(workspace, folds):
    from toolkit.cli.commands import ensemble
    from toolkit.ensemble import as_made

    assert ensemble.ROWS == as_made.ROWS
    made = invoke("ensemble", "folds", "--tta", "vflip", "--no-tta-check", "--evidence", "10", "--device", "cpu")
    assert "Scoring out of fold with these views: 10 of 24 held-out rows, 20 passes, about" in made.stderr
    assert "10 of 24 held-out rows, as made" in made.stdout
    record = json.loads(invoke("ensemble", "folds", "--tta", "vflip", "--evidence", "all", "--json").stdout)
    assert (record["evidence"]["rows"], record["evidence"]["kind"]) == (24, "plain")
    assert json.loads(invoke("submit", "--json").stdout)["scores"] == record["evidence"]


def test_what_goes_wrong_while_scoring_leaves_the_predictions(workspace, folds, monkeypatch):
    from toolkit.ensemble import as_made

    def broken(*_, **__):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(as_made, "held_out_rows", broken)
    made = invoke("ensemble", "folds", "--device", "cpu")
    assert made.exit_code == 0, made.output
    assert "Evidence unknown: RuntimeError: no such kernel" in made.stdout
    sent = invoke("submit")
    assert sent.exit_code == 0, sent.output
    assert "Evidence unknown: RuntimeError: no such kernel" in sent.stdout


def test_ctrl_c_while_scoring_leaves_predictions_that_can_be_submitted(workspace, folds, monkeypatch):
    from toolkit.ensemble import as_made

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(as_made, "held_out_rows", interrupted)
    assert invoke("ensemble", "folds", "--device", "cpu").exit_code == 130
    sent = invoke("submit")
    assert "Evidence unknown: it was not measured after the predictions were made" in sent.stdout
