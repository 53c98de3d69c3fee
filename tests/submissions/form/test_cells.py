"""What stands in cells, and the two texts that are made of it."""

import numpy as np

from toolkit.core.predictions import Predictions
from toolkit.core.targets import Target
from toolkit.submissions.form import cells
from toolkit.submissions.form.cells import Column
from toolkit.submissions.form.layout import as_text


def test_a_multilabel_row_without_a_class_is_an_empty_cell_and_shifts_nothing():
    """Arrow's join leaves rows of nulls out."""
    target = Target("tags", "multilabel", ("cat", "dog", "fox"), separator=", ")
    labels = np.array([[1, 0, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]], dtype=bool)
    table = Predictions("tags", "labels", tuple("abcd"), target.classes, labels=labels, multilabel=True)
    column = Column("tags", target)
    content = cells.labels(column, table)
    assert as_text(content).to_pylist() == content.texts() == ["cat", "", "cat, fox", ""]
