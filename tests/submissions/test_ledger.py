"""The ledger: what is kept, found, scored, compared; and what it says of the leaderboard."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from tests.cli.test_submit import predict, zoo  # noqa: F401 - a fixture
from toolkit.base import files
from toolkit.cli import cli
from toolkit.errors import DataError, SubmissionError
from toolkit.submissions import ledger, submission
from toolkit.submissions import manifest as manifests
from toolkit.workspace.competition import Competition


def run(*words):
    return CliRunner().invoke(cli, ["submissions", *map(str, words)])


@pytest.fixture
def two(zoo):  # noqa: F811
    """Two submissions: 001, 007, 010 answered dog cat dog, then dog dog dog."""
    competition = Competition.read(zoo)
    predict(zoo)
    first = submission.submit(competition)
    predict(zoo, first=(0.1, 0.2, 0.4))
    second = submission.submit(competition)
    return competition, first, second


def test_each_submission_is_kept_once_under_the_name_of_its_content(two):
    competition, first, second = two
    kept = competition.path("submissions")
    for done in two[1:]:
        assert files.sha256(kept / f"{done.id}.csv").startswith(done.id)
        assert manifests.read(kept / f"{done.id}.json")["output"]["sha256"] == files.sha256(kept / f"{done.id}.csv")
    assert len(first.id) == 8
    assert [entry.id for entry in ledger.entries(competition)] == [first.id, second.id]
    assert first.changed is None
    assert second.changed == pytest.approx(1 / 3)
    written = manifests.read(kept / f"{second.id}.json")
    bytes_then = (kept / f"{second.id}.csv").stat().st_ino
    again = submission.submit(competition)
    assert again.id == second.id
    assert [problem.code for problem in again.warnings] == ["SUB075"]
    assert again.changed == 0
    assert len(ledger.entries(competition)) == 2
    dated = manifests.read(kept / f"{second.id}.json")
    assert dated == written | {"created": dated["created"]}  # made again: `last` is what was made last
    assert dated["created"] > written["created"]
    assert (kept / f"{second.id}.csv").stat().st_ino == bytes_then


def test_a_copy_of_our_own_from_a_teammate_changes_nothing(two, tmp_path):
    competition, first, _ = two
    theirs = shutil.copy(competition.path("submissions", f"{first.id}.csv"), tmp_path / "theirs.csv")
    before = {entry.id: entry.manifest for entry in ledger.entries(competition)}
    assert submission.adopt(competition, Path(theirs), "Mina")[0] == first.id
    assert {entry.id: entry.manifest for entry in ledger.entries(competition)} == before


def test_uploads_are_remembered(two):
    competition, first, _ = two
    ledger.sent(competition, first.id, "kaggle:titanic", "Successfully submitted")
    ledger.sent(competition, first.id, "kaggle:titanic", "again")
    one, other = ledger.entries(competition)
    assert [(upload["to"], upload["reply"]) for upload in one.uploads] == [
        ("kaggle:titanic", "Successfully submitted"),
        ("kaggle:titanic", "again"),
    ]
    assert not other.uploads
    competition.path("submissions", "uploads.json").write_text('{"x": 1}')
    with pytest.raises(DataError, match=r"uploads.json cannot be read"):
        ledger.entries(competition)


def test_names_that_begin_alike_are_made_longer(two, monkeypatch):
    competition, first, _ = two
    other = "0" * 64
    shutil.copy(competition.path("submissions", f"{first.id}.csv"), competition.path("submissions", "00000000.csv"))
    manifest = dict(ledger.entries(competition)[0].manifest)
    files.write_text(
        competition.path("submissions", "00000000.json"),
        manifests.text(manifest | {"output": manifest["output"] | {"sha256": other}}),
    )
    kept = ledger.keep(competition, first.path, manifest | {"output": manifest["output"] | {"sha256": "0" * 8 + "1" * 56}})
    assert kept == "000000001"


def test_list_score_and_json(two):
    _, first, second = two
    assert run("score", first.id[:4], 0.912).exit_code == 0
    assert run("score", "last", "0.95").exit_code == 0
    assert run("score", second.id, "0.94", "--private").exit_code == 0
    listed = run()
    assert listed.exit_code == 0, listed.output
    rows = [line.split() for line in listed.output.splitlines()[1:]]
    assert [row[0] for row in rows] == [first.id, second.id]
    assert rows[0][3:] == ["ensemble", "none", "soft", "unknown:", "made", "by", "an", "earlier", "version", "0.91200"]
    assert rows[1][-2:] == ["0.95000", "0.94000"]
    record = json.loads(run("--json").output)
    assert [(e["public"], e["private"]) for e in record["submissions"]] == [(0.912, None), (0.95, 0.94)]
    assert record["correlation"] is None
    assert json.loads(run("score", "zz", "1", "--json").output)["ok"] is False
    for words in (("score", "zz", "1"), ("score", first.id, "nan"), ("diff", first.id, "zz")):
        assert run(*words).exit_code == 1
    assert run("score", first.id, "high").exit_code == 2


def test_a_name_that_fits_several_or_none(two):
    competition, _, _ = two
    with pytest.raises(SubmissionError, match=r"no submission is named ''"):
        ledger.find(competition, "")
    shutil.rmtree(competition.path("submissions"))
    with pytest.raises(SubmissionError, match="none was written yet"):
        ledger.find(competition, "last")
    assert "No submission was written yet" in run().output


def test_damaged_notes_are_said(two):
    competition, _, _ = two
    competition.path("submissions", "scores.json").write_text("{")
    with pytest.raises(DataError, match=r"scores\.json cannot be read"):
        ledger.entries(competition)


def test_diff_counts_by_class(two):
    _, first, second = two
    record = json.loads(run("diff", first.id, second.id, "--json").output)
    assert (record["rows"], record["changed"], record["ids"]) == (3, 1, ["007"])
    assert record["moves"] == [{"question": "animal", "before": "cat", "after": "dog", "count": 1}]
    text = run("diff", second.id, first.id).output
    assert "1 of 3 rows differ (33.3%)" in text
    assert "animal: dog → cat" in text


def test_a_teammates_file_is_checked_and_kept(two, tmp_path):
    competition, first, _ = two
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text("image,animal\n001,cat\n007,dog\n010,cat\n")
    bad.write_text("image,animal\n001,cow\n007,dog\n")
    done = run("add", good, "--from", "Mina")
    assert done.exit_code == 0, done.output
    (name,) = {entry.id for entry in ledger.entries(competition) if entry.source == "Mina"}
    assert f"Kept as {name}" in done.output
    assert "SUB074" in done.output  # every answer differs from the last submission's
    failed = run("add", bad, "--from", "Mina")
    assert failed.exit_code == 1
    assert "SUB020" in failed.output
    assert "SUB040" in failed.output
    assert len(ledger.entries(competition)) == 3
    assert json.loads(run("diff", first.id, name, "--json").output)["changed"] == 3


def entry(name, fold, public, noise=0.01):
    scores = {"out_of_fold": fold, "interval": [fold - noise, fold + noise]} if fold is not None else {}
    return ledger.Entry(name, None, {"created": "2026-11-23T10:00:00+00:00", "scores": scores}, public)


def test_the_correlation_is_scipys():
    rng = np.random.default_rng(0)
    fold, public = rng.normal(size=9).round(1), rng.normal(size=9).round(1)
    every = [entry(str(i), *pair) for i, pair in enumerate(zip(fold, public, strict=True))]
    assert ledger.correlation(every) == pytest.approx(stats.spearmanr(fold, public).statistic)
    assert ledger.correlation([*every, entry("x", None, 1.0), entry("y", 1.0, None)]) == ledger.correlation(every)
    assert ledger.correlation(every[:2]) is None
    assert ledger.correlation([entry(str(i), 0.5, i) for i in range(4)]) is None


def test_picking_by_the_public_board_is_warned_of_beyond_noise(two):
    competition, _, _ = two
    near = [entry("aa", 0.90, 0.80), entry("bb", 0.895, 0.82)]
    far = [entry("aa", 0.90, 0.80), entry("bb", 0.85, 0.82)]
    assert ledger.warning(competition, near) == ""
    assert "bb is best on the public board, but out of fold it is 0.05 behind aa" in ledger.warning(competition, far)
    assert ledger.warning(competition, [entry("aa", 0.9, None), entry("bb", None, 0.7)]) == ""
    lower = Competition.read(competition.root)
    object.__setattr__(lower, "metric", "log_loss")
    assert "aa is best on the public board" in ledger.warning(lower, [entry("aa", 0.9, 0.80), entry("bb", 0.85, 0.82)])
