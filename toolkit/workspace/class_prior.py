"""The class prior: what is said of a row when nothing is known of its image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from toolkit.workspace.competition import Competition, Target


def class_prior(competition: Competition, target: Target) -> NDArray[np.float64]:
    """The share of each class in the training labels, float64 (C,) in the order of the target's classes.

    Multilabel: of the rows, how many have the class; these need not sum to 1.

    Raises:
        CompetitionError: the training table cannot be read.
    """
    truth = competition.truth()[target.name].with_classes(target.classes).decided
    counts = truth.sum(axis=0) if target.multilabel else np.bincount(truth, minlength=len(target.classes))
    return np.asarray(counts / len(truth), dtype=np.float64)
