"""The class prior against shares counted by hand: of rows whose image says nothing, and of a bundle's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.conftest import CLASSES
from toolkit.workspace.competition import Competition, Target


def labelled(root, labels):
    lines = (root / "train.csv").read_text().splitlines()
    rows = [f"{line.split(',')[0]},{label}" for line, label in zip(lines[1:], labels, strict=False)]
    (root / "train.csv").write_text("\n".join(["id,label", *rows]) + "\n")
    return Competition.read(root)


def test_shares_of_the_classes_in_the_order_of_the_target(workspace):
    competition = labelled(workspace, ["cat"] * 6 + ["ant"] * 3 + ["bee"])
    assert competition.prior(competition.targets[0]).tolist() == [0.3, 0.1, 0.6]
    turned = replace(competition.targets[0], classes=CLASSES[::-1])
    assert competition.prior(turned).tolist() == [0.6, 0.1, 0.3]


def test_of_classes_that_go_together_each_counts_for_itself(workspace):
    competition = labelled(workspace, ["cat ant", "cat", "ant cat bee", "cat"])
    target = Target("label", "multilabel", CLASSES)
    prior = replace(competition, targets=(target,)).prior(target)
    np.testing.assert_array_equal(prior, [0.5, 0.25, 1.0])
