"""Seven raw competitions: `init` in at most two rounds, then the right truth, pictures and a submission in the sample's form."""

from __future__ import annotations

import csv
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.journeys.raw_competitions import RAW
from toolkit.cli import cli
from toolkit.core import prediction_files
from toolkit.core.predictions import Predictions
from toolkit.submissions import manifest, submission
from toolkit.workspace.competition import Competition


def init(root, *words):
    result = CliRunner().invoke(cli, ["init", str(root), *words])
    assert "Traceback" not in result.output
    return result


@pytest.fixture(params=RAW)
def walked(request, tmp_path):
    """What was kept aside of a tree, and the competition that `init` made of it in its second round."""
    raw = RAW[request.param](tmp_path)
    first = init(tmp_path)
    asked = [line.split()[0] for line in first.output.splitlines() if line.startswith("  --")]
    assert (first.exit_code, asked) == (1, ["--metric:"])  # it stands in no file
    second = init(tmp_path, "--metric", raw.metric)
    assert second.exit_code == 0, second.output
    assert f"toolkit init --recipe {raw.recipe} " in second.output
    assert "--tta auto" in second.output
    return raw, Competition.read(tmp_path)


def test_what_it_says_is_what_was_kept_aside(walked):
    raw, competition = walked
    (target,) = competition.targets
    assert (target.task, target.classes) == (raw.task, raw.classes)
    assert (competition.format, competition.metric) == (raw.format, raw.metric)
    truth = competition.truth()[target.name]
    labels = [np.flatnonzero(row) for row in truth.decided] if truth.multilabel else truth.decided[:, None]
    cells = {name: " ".join(truth.classes[place] for place in row) for name, row in zip(truth.ids, labels, strict=True)}
    assert cells == {name: " ".join(sorted(cell.split())) if truth.multilabel else cell for name, cell in raw.truth.items()}
    for part, names in (("train", tuple(raw.truth)), ("test", raw.tests)):
        pictures = competition.images(part)
        assert sorted(name for name, _ in pictures) == sorted(names)
        assert all(path.is_file() and Path(name).stem == path.stem for name, path in pictures)


def test_its_submission_has_the_samples_rows_and_columns(walked):
    raw, competition = walked
    target = competition.targets[0]
    values = np.random.default_rng(0).dirichlet(np.ones(len(target.classes)), len(raw.tests))
    if target.multilabel:
        values = 1 - values
    table = Predictions(
        target.name, "probabilities", raw.tests[::-1], target.classes, values[::-1], multilabel=target.multilabel
    )
    path = competition.path("predictions", "mine.parquet")
    prediction_files.write_table(path, {target.name: table}, {"name": "mine", "created": manifest.now()})
    done = submission.submit(competition)
    written = list(csv.reader(done.path.read_text(encoding="utf-8").splitlines()))
    sample = competition.path(competition.sample).read_bytes()
    encoding = "cp949" if "아이디".encode("cp949") in sample else "utf-8-sig"
    wanted = list(csv.reader(sample.decode(encoding).splitlines()))
    assert written[0] == wanted[0]
    assert [row[0] for row in written] == [row[0] for row in wanted]
    decided = [target.classes[place] for place in values.argmax(axis=1)]
    cells = {
        "labels": lambda row: (
            [" ".join(k for k, v in zip(target.classes, values[row], strict=True) if v >= 0.5)]
            if target.multilabel
            else [decided[row]]
        ),
        "probabilities": lambda row: pytest.approx(values[row], abs=1e-9),
        "probability": lambda row: pytest.approx([values[row, 1]], abs=1e-7),
    }[raw.format]
    for row, (_, *ours) in enumerate(written[1:]):
        assert (ours if raw.format == "labels" else list(map(float, ours))) == cells(row)
    if raw.format == "probabilities":
        assert all(abs(sum(map(float, row[1:])) - 1) < 1e-9 for row in written[1:])


def test_folders_named_in_another_normal_form_are_the_samples_classes(tmp_path):
    """Archives packed on a Mac: the folders' names are taken apart, those of the sample are not."""
    raw = RAW["seedlings"](tmp_path)
    for name, korean in zip(raw.classes, ("가구수정", "곰팡이", "오염"), strict=True):
        (tmp_path / "train" / name).rename(tmp_path / "train" / unicodedata.normalize("NFD", korean))
    sample = tmp_path / "sample_submission.csv"
    sample.write_text(sample.read_text().replace("Sugar beet", "오염"), encoding="utf-8")
    assert init(tmp_path, "--metric", "accuracy").exit_code == 0
    competition = Competition.read(tmp_path)
    assert competition.targets[0].classes == ("가구수정", "곰팡이", "오염")
    assert all(path.is_file() for _, path in competition.images("train"))


def test_a_sample_whose_words_are_no_classes_says_which(tmp_path):
    RAW["seedlings"](tmp_path)
    sample = tmp_path / "sample_submission.csv"
    for word, near in (("sugar Beet ", "'sugar Beet ' is 'Sugar beet'"), ("0", "")):
        sample.write_text(sample.read_text().replace("Sugar beet", word).replace("sugar Beet ", word))
        result = init(tmp_path, "--metric", "accuracy")
        assert result.exit_code == 1
        assert f"its cells hold {word!r}, which is no class" in result.output
        assert near in result.output
        assert "--format" in result.output


@pytest.mark.parametrize("single", [False, True])
def test_lists_of_words_are_told_from_names_with_spaces(tmp_path, single):
    """Where the sample shows no list, lists of few words in many combinations are asked about; names of two words are names."""
    raw = RAW["planet"](tmp_path)
    table = tmp_path / "train_v2.csv"
    names = [f"{a} {b}" for a in ("red", "green", "blue", "dark") for b in ("kite", "swan", "duck")]
    if single:
        names = ["Loose Silky-bent", "Fat Hen", "Sugar beet", "Common wheat"]
    rows = [f"{name},{names[i % len(names)]}\n" for i, name in enumerate(raw.truth)]
    table.write_text("image_name,tags\n" + "".join(rows))
    sample = tmp_path / "sample_submission_v2.csv"
    sample.write_text("image_name,tags\n" + "".join(f"{name},{names[0]}\n" for name in raw.tests))
    result = init(tmp_path, "--metric", "accuracy")
    assert result.exit_code == (0 if single else 1)
    assert ("may list several classes" in result.output) is not single
    assert init(tmp_path, "--metric", "accuracy", "--task", "multiclass", "--force").exit_code == 0
    assert set(Competition.read(tmp_path).targets[0].classes) == set(names)
