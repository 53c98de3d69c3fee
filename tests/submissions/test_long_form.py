"""A row per id and class, in two columns or in one: taken apart, predicted once per id, written in the sample's rows."""

import numpy as np
import pandas as pd
import pytest

from tests.submissions.test_verify import predicted
from toolkit.core.targets import LONG_FORMS, split_pairs
from toolkit.errors import CompetitionError
from toolkit.submissions import submission, verify
from toolkit.workspace.competition import Competition


def test_the_longest_class_wins_and_what_has_none_stays_whole():
    ids, places = split_pairs(["7_y", "7_x_y", "a_b_y", "none", "_y"], ["y", "x_y"])
    assert ids == ["7", "7", "a_b", "none", "_y"]
    assert places.tolist() == [0, 1, 0, -1, -1]


def samples(form, ids, classes):
    pairs = [(name, kind) for name in ids for kind in classes]
    if form == "long":
        return pd.DataFrame({"id": [p[0] for p in pairs], "kind": [p[1] for p in pairs], "p": "0"})
    return pd.DataFrame({"id": ["_".join(pair) for pair in pairs], "p": "0"})


@pytest.mark.parametrize("form", LONG_FORMS)
def test_from_images_to_the_file_and_back(workspace, folds, form):
    classes = ("cat", "ant", "bee")
    ids = [f"{i}" for i in np.random.default_rng(0).permutation(np.arange(9000, 9011))]
    sample = samples(form, ids, classes)
    sample.to_csv(workspace / "sample_submission.csv", index=False)
    toml = (workspace / "competition.toml").read_text().replace('format = "labels"', f'format = "{form}"')
    (workspace / "competition.toml").write_text(toml)
    competition = Competition.read(workspace)
    assert [name for name, _ in competition.images("test")] == ids
    made = predicted(competition)
    done = submission.submit(competition)
    assert done.format == form
    written = pd.read_csv(done.path, dtype={"id": str})
    assert list(written["id"]) == list(sample["id"])
    table = made.predictions["label"].align(ids).with_classes(classes)
    assert (written["p"].to_numpy().astype(np.float32).reshape(-1, 3) == table.values.astype(np.float32)).all()
    assert verify.verify(competition, done.path, rebuild=True).rebuilt
    assert submission.submit(competition).changed == 0
    short = sample[:-1]
    short.to_csv(workspace / "sample_submission.csv", index=False)
    with pytest.raises(CompetitionError, match="not one row for each id and class"):
        submission.submit(competition)
