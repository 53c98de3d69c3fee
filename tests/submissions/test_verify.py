"""A submission made of real exports is proved again, and what changed is named."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.conftest import draw
from tests.requested import ensemble
from toolkit.base import files
from toolkit.base.text import arrow_csv
from toolkit.cli import cli
from toolkit.core import prediction_files
from toolkit.core.predictions import Predictions
from toolkit.ensemble.run import with_evidence
from toolkit.errors import DataError, SubmissionError
from toolkit.inference.execution import Execution
from toolkit.inference.exports import find_exports
from toolkit.submissions import ledger, submission, verify
from toolkit.submissions import manifest as manifests
from toolkit.submissions.sample import read_sample, render
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split


@pytest.fixture
def competition(workspace, folds):
    return Competition.read(workspace)


def out_of_fold(competition, member="tiny", seed=0, sharp=1.0):
    """A member's out-of-fold table that is right more often than not, and its meta as the recipes write it."""
    truth = competition.truth()["label"]
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(truth), len(truth.classes)))
    logits[np.arange(len(truth)), truth.labels] += sharp
    values = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    table = Predictions("label", "probabilities", truth.ids, truth.classes, values)
    meta = {"member": member, "metric": "accuracy", "split": Split.read(competition.path("split.csv")).digest}
    return prediction_files.write_table(competition.path("oof", f"{member}.parquet"), {"label": table}, meta)


def predicted(competition, **choices):
    made = ensemble(competition, find_exports(["folds/*.onnx"], base=competition.root), device="cpu", **choices)
    return with_evidence(competition, made, Execution("cpu"))


def run(*words):
    return CliRunner().invoke(cli, ["verify", *map(str, words)])


@pytest.mark.parametrize(
    "choices",
    [
        {"tta": "flip"},
        {"vote": "hard"},
        {"weights": "0.1,0.2"},
        {"weights": "score", "tta": "hflip"},
        {"weights": "tiny.fold1=1"},
    ],
)
def test_the_file_made_again_has_the_same_bytes(competition, choices):
    predicted(competition, **choices)
    done = submission.submit(competition)
    shutil.rmtree(competition.path("predictions"))  # made again from the exports, not copied
    before = sorted(path for path in competition.root.rglob("*") if "store" not in path.parts)
    verdict = verify.verify(competition, done.path, rebuild=True)
    assert verdict.rebuilt is True
    assert [found.what for found in verdict.changed] == ["predictions"]
    assert sorted(path for path in competition.root.rglob("*") if "store" not in path.parts) == before


def test_without_the_store_as_well(competition):
    predicted(competition)
    done = submission.submit(competition)
    shutil.rmtree(competition.path("store"))
    assert verify.verify(competition, done.path, rebuild=True).rebuilt


def test_nothing_changed(competition):
    out_of_fold(competition)
    predicted(competition)
    assert submission.submit(competition).scores["rows"] == 24
    done = run()
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines()]
    assert {tuple(line[1:3]) for line in lines if line[0] == "same"} == {
        ("competition", "competition.toml"), ("sample", "sample_submission.csv"), ("predictions", "predictions/ensemble.parquet"),
        ("train", "train.csv"), ("split", "split.csv"), ("oof/tiny", "oof/tiny.parquet"),
        ("export", "folds/tiny.fold0.onnx"), ("export", "folds/tiny.fold1.onnx"),
    }  # fmt: skip
    record = json.loads(run("--rebuild", "--json").output)
    assert record["rebuilt"] is True
    assert {found["state"] for found in record["inputs"]} == {"same"}


CHANGES = {
    "competition.toml": lambda path: path.write_text(path.read_text() + "\n# note\n"),
    "sample_submission.csv": lambda path: path.write_text(path.read_text().replace("ant", "bee")),
    "train.csv": lambda path: path.write_text(path.read_text() + "9,ant\n"),
    "split.csv": lambda path: path.unlink(),
    "predictions/ensemble.parquet": lambda path: path.write_bytes(b"other"),
    "folds/tiny.fold1.onnx": lambda path: shutil.copy(path.with_name("tiny.fold0.onnx"), path),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_input_is_named(competition, name):
    predicted(competition)
    submission.submit(competition)
    CHANGES[name](competition.path(name))
    done = run()
    assert done.exit_code == 1
    assert f"of what submission.csv was made of, this changed: {name!r}" in done.output
    record = json.loads(run("--json").output)
    assert record["ok"] is False
    assert name in record["error"]


def test_a_rewritten_card_is_no_change(competition):
    import onnx

    predicted(competition)
    submission.submit(competition)
    path = competition.path("folds/tiny.fold0.onnx")
    model = onnx.load(path)
    entry = model.metadata_props.add()
    entry.key, entry.value = "note", "seen"
    onnx.save(model, path)
    done = run("--rebuild")
    assert done.exit_code == 0, done.output
    assert ["rewritten", "export", "folds/tiny.fold0.onnx"] in [line.split() for line in done.output.splitlines()]
    assert "the same bytes" in done.output


def test_what_differs_when_made_again_is_said_with_its_cause(competition):
    """Another model in the place of a fold; other pixels, which the manifest does not hold."""
    predicted(competition, weights="1,0")
    done = submission.submit(competition)
    answers = dict(line.split(",") for line in done.path.read_text().splitlines()[1:])
    (competition.root / "test" / "9003.png").write_bytes((competition.root / "train" / "0001.png").read_bytes())
    rng = np.random.default_rng(0)
    for name in answers:
        Image.fromarray(rng.integers(0, 256, (40, 52, 3), dtype=np.uint8)).save(competition.root / "test" / f"{name}.png")
        draw(rng, int(name) + 1).save(competition.root / "test" / f"{name}.png")
    with pytest.raises(SubmissionError, match=r"rows \('9.*no recorded input did: test images"):
        verify.verify(competition, done.path, rebuild=True)
    exchange = competition.path("sample_submission.csv")
    exchange.write_text("\n".join(exchange.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(SubmissionError, match=r"what changed: 'sample_submission.csv \(changed\)'"):
        verify.verify(competition, done.path, rebuild=True)


def test_an_edited_file_is_not_its_manifests(competition):
    predicted(competition)
    done = submission.submit(competition)
    done.path.write_text(done.path.read_text().replace("ant", "bee").replace("cat", "bee"))
    with pytest.raises(SubmissionError, match="is not the file of its manifest") as caught:
        verify.verify(competition, done.path)
    assert f"submissions/{done.id}.csv" in caught.value.hint
    kept = verify.verify(competition, competition.path("submissions", f"{done.id}.csv"), rebuild=True)
    assert kept.rebuilt


def test_what_cannot_be_made_again_is_said(competition, tmp_path):
    predicted(competition)
    done = submission.submit(competition)
    shutil.copy(done.path, tmp_path / "theirs.csv")
    text = (tmp_path / "theirs.csv").read_text().splitlines()
    (tmp_path / "theirs.csv").write_text("\n".join([*text[:-1], text[-1].split(",")[0] + ",cat"]) + "\n")
    name, _ = submission.adopt(competition, tmp_path / "theirs.csv", "Mina")
    assert ledger.find(competition, name).source == "Mina"
    path = competition.path("submissions", f"{name}.csv")
    assert verify.verify(competition, path).inputs == ()
    with pytest.raises(SubmissionError, match="made by Mina"):
        verify.verify(competition, path, rebuild=True)
    competition.path("folds/tiny.fold0.onnx").unlink()
    with pytest.raises(SubmissionError, match=r"1 export is not there: 'folds/tiny.fold0.onnx'"):
        verify.verify(competition, done.path, rebuild=True)
    with pytest.raises(DataError, match="readable manifest"):
        verify.verify(competition, tmp_path / "theirs.csv")


def test_predictions_made_elsewhere_are_rendered_again(competition):
    truth = Predictions(
        "label", "labels", tuple(f"{9000 + i}" for i in range(11)), ("ant", "bee", "cat"), labels=np.arange(11) % 3
    )
    prediction_files.write_table(
        competition.path("predictions/theirs.parquet"), {"label": truth}, {"name": "theirs", "created": manifests.now()}
    )
    done = submission.submit(competition)
    assert verify.verify(competition, done.path, rebuild=True).rebuilt
    assert files.sha256(done.path) == verify.verify(competition, done.path).id


def test_what_was_written_before_rows_summed_to_one_is_made_again_as_it_was(competition):
    """A manifest without a writer is of the first, whose numbers were float32; one of a later writer is refused by name."""
    root = competition.root
    (root / "sample_submission.csv").write_text("id,ant,bee,cat\n" + "".join(f"{9000 + i},0,0,1\n" for i in range(11)))
    toml = (root / "competition.toml").read_text()
    toml = toml.replace('format = "labels"', 'format = "probabilities"').replace('"accuracy"', '"log_loss"')
    (root / "competition.toml").write_text(toml)
    competition = Competition.read(root)
    predicted(competition)
    done = submission.submit(competition)
    now, document = done.path.read_bytes(), manifests.read(done.manifest)
    assert verify.verify(competition, done.path, rebuild=True).rebuilt
    table = prediction_files.read_table(competition.path("predictions/ensemble.parquet")).predictions
    frame = render(table, read_sample(competition).written_by(1))
    files.write(done.path, lambda file: arrow_csv.write(file, frame))
    assert done.path.read_bytes() != now
    assert document.pop("writer") == 2
    manifests.write(done.path, document, [], root)
    assert verify.verify(competition, done.path, rebuild=True).rebuilt
    manifests.write(done.path, document | {"writer": 2}, [], root)
    with pytest.raises(SubmissionError, match="made again differs"):
        verify.verify(competition, done.path, rebuild=True)
    manifests.write(done.path, document | {"writer": 3}, [], root)
    with pytest.raises(DataError, match="writer 3"):
        verify.verify(competition, done.path)


def test_a_manifest_holds_no_machine_path_and_no_secret(competition, monkeypatch):
    monkeypatch.setenv("KAGGLE_KEY", "s3cret-key")
    out_of_fold(competition)
    predicted(competition)
    done = submission.submit(competition, command=["toolkit", "submit", "--output", str(competition.root / "submission.csv")])
    text = done.manifest.read_text()
    assert str(competition.root) not in text
    assert str(competition.root.parent) not in text
    assert "s3cret" not in text
    manifest = json.loads(text)
    assert manifest["scores"]["metric"] == "accuracy"
    low, high = manifest["scores"]["interval"]
    assert low < manifest["scores"]["out_of_fold"] < high
    assert manifest["scores"]["members"] == {"tiny": manifest["scores"]["out_of_fold"]}
    assert manifest["command"] == ["toolkit", "submit", "--output", "submission.csv"]


def test_a_manifest_edited_with_its_file_is_no_proof(competition):
    predicted(competition)
    done = submission.submit(competition)
    text = done.path.read_text()
    done.path.write_text(text.replace("ant", "bee").replace("cat", "bee"))
    document = json.loads(done.manifest.read_text())
    document["output"]["sha256"] = files.sha256(done.path)
    done.manifest.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"submission\.json is not a readable manifest: its digest"):
        verify.verify(competition, done.path)
    done.manifest.write_text(manifests.text(document))  # by whoever knows how: plain verify does not claim to see it
    assert "--rebuild proves" in run().output
    with pytest.raises(SubmissionError, match="made again differs"):
        verify.verify(competition, done.path, rebuild=True)


def test_an_image_changed_in_place_is_found_when_all_are_read(competition):
    """With its size and time as they were it is trusted: submit says of how many that is true, --verify-images reads them."""
    import os
    import time

    images = [path for _, path in competition.images("test")]
    for path in images:
        os.utime(path, (time.time() - 100,) * 2)
    predicted(competition)
    predicted(competition)
    done = CliRunner().invoke(cli, ["submit"])
    assert f"{len(images)} images, {len(images)} of them trusted by their size and time" in done.output
    assert f"{len(images)} of {len(images)} are known, all were read" in run("--verify-images").output
    stat, data = images[3].stat(), bytearray(images[3].read_bytes())
    data[-1] ^= 1  # in the last checksum: other content of the same size
    images[3].write_bytes(data)
    os.utime(images[3], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert run().exit_code == 0
    said = run("--verify-images")
    assert said.exit_code == 1
    assert images[3].name in said.output
    done = CliRunner().invoke(cli, ["ensemble", "folds", "--device", "cpu", "--verify-images", "--on-bad-image", "prior"])
    assert done.exit_code == 0, done.output
    assert "0 of them trusted" in CliRunner().invoke(cli, ["submit"]).output


def test_a_damaged_manifest_in_the_ledger_is_in_nobodys_way(competition):
    predicted(competition)
    done = submission.submit(competition)
    kept = competition.path("submissions", f"{done.id}.json")
    data = kept.read_bytes()
    for damaged in (
        data.replace(b'"rows": 1', b'"rows": 9'),
        data[:100],
        b"",
        b"[" * 100_000,
        data.replace(b"created", b"creates"),
    ):
        kept.write_bytes(damaged)
        assert ledger.entries(competition) == []
        assert kept.with_name(kept.name + ".damaged").read_bytes() == damaged
        assert submission.submit(competition).id == done.id
        assert len(ledger.entries(competition)) == 1
