import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from toolkit.base import files, provenance
from toolkit.errors import DataError
from toolkit.runtime.graphs import onnx_file
from toolkit.submissions import manifest


def export(path, weight=1.0, note=""):
    """A real, tiny ONNX file with one weight and a note in its metadata."""
    w = numpy_helper.from_array(np.array([weight], dtype=np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "g", [x], [y], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"note": note})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def meta(root, path):
    return {
        "models": [
            {
                "path": "folds/a.fold0.onnx",
                "member": "a",
                "fold": 0,
                "sha256": files.sha256(path),
                "digest": onnx_file.digest(path),
            }
        ]
    }


def codes(root, found):
    return [problem.code for problem in manifest.stale(root, found)]


def test_only_a_changed_graph_makes_predictions_stale(tmp_path):
    path = tmp_path / "folds/a.fold0.onnx"
    known = meta(tmp_path, export(path))
    assert codes(tmp_path, known) == []
    export(path, note="the card was rewritten")
    assert files.sha256(path) != known["models"][0]["sha256"]
    assert codes(tmp_path, known) == []
    export(path, weight=2.0)
    assert codes(tmp_path, known) == ["SUB060"]
    path.write_text("not a model")
    assert codes(tmp_path, known) == ["SUB060"]
    path.unlink()
    assert codes(tmp_path, known) == ["SUB061"]


def test_tables_made_elsewhere_have_no_export_to_go_stale(tmp_path):
    assert codes(tmp_path, {"models": [{"member": "theirs"}]}) == codes(tmp_path, {}) == []


def test_an_export_outside_the_workspace_is_a_warning(tmp_path):
    (problem,) = manifest.stale(tmp_path, {"models": [{"path": "far.onnx", "sha256": "1", "digest": "2"}]})
    assert (problem.code, problem.severity) == ("SUB064", "warning")


def described(root, command=("toolkit", "submit")):
    for name in ("competition.toml", "sample.csv", "predictions/a.parquet"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(name)
    return manifest.describe(
        root, sample=root / "sample.csv", predictions=root / "predictions/a.parquet", meta={"name": "a", "split": ["12"]},
        form="labels", rows=3, command=command,
    )  # fmt: skip


def test_a_manifest_names_its_inputs_by_digest_and_reads_back(tmp_path):
    output = tmp_path / "submission.csv"
    output.write_text("id,label\n")
    written = manifest.write(output, described(tmp_path), (), tmp_path)
    path = manifest.path_of(output)
    found = manifest.read(path)
    assert found == written
    assert path == tmp_path / "submission.json"
    for key, name in (("competition", "competition.toml"), ("sample", "sample.csv"), ("predictions", "predictions/a.parquet"),
                      ("output", "submission.csv")):  # fmt: skip
        assert found[key]["path"] == name
        assert found[key]["sha256"] == files.sha256(tmp_path / name)
    assert found["predictions"]["meta"] == {"name": "a", "split": ["12"]}
    assert {"toolkit", "python", "numpy", "torch"} <= set(found["versions"])
    assert found["created"].endswith("+00:00")


def test_no_absolute_path_gets_into_a_manifest(tmp_path):
    outside = tmp_path.parent / "elsewhere.csv"
    command = ("toolkit", "-C", str(tmp_path), f"--output={tmp_path}/a/b.csv", "--sample", str(outside), "--name", "x=y")
    description = described(tmp_path, command)
    assert description["command"] == ["toolkit", "-C", ".", "--output=a/b.csv", "--sample", "elsewhere.csv", "--name", "x=y"]
    assert str(tmp_path.parent) not in json.dumps(description)


def test_secrets_and_folders_inside_a_word_are_left_out(tmp_path):
    words = ("toolkit", "submit", "--upload", "command:/opt/mina/bin/send --token=abc123 {file}", "-m", "key: abc123 seed 4")
    said = described(tmp_path, words)["command"]
    assert said[2:] == ["--upload", "command:send --token=*** {file}", "-m", "key: *** seed 4"]


def test_the_commit_is_gits_own(tmp_path):
    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    assert provenance.git_commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "a")
    assert provenance.git_commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "a").write_text("2")
    assert provenance.git_commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"


@pytest.mark.parametrize(("text", "word"), [("{", "readable"), ("[]", "readable"), ('{"schema": 99}', "schema 99")])
def test_what_is_no_manifest_is_refused(tmp_path, text, word):
    path = tmp_path / "submission.json"
    path.write_text(text)
    with pytest.raises(DataError, match=word):
        manifest.read(path)
    with pytest.raises(DataError, match="readable"):
        manifest.read(Path("nowhere.json"))


def test_the_summary_names_members_folds_views_vote_and_time():
    models = [{"member": "b4", "fold": 0}, {"member": "b4", "fold": 1}, {"member": "vit", "fold": None}]
    text = "\n".join(manifest.summary({
        "name": "best", "created": "2026-11-23T15:46:01+00:00", "vote": "soft", "view_set": "hflip", "models": models,
        "views": {"b4": ["id", "hflip"]},
    }))  # fmt: skip
    for word in (
        "'best'",
        "2026-11-23 15:46",
        "3 models",
        "soft",
        "b4: folds 0 1; views id, hflip",
        "vit: folds all; views id",
    ):
        assert word in text
