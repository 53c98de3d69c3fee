"""How two submissions differ."""

from tests.submissions.cases import VALID, table
from toolkit.submissions.answers import of_frame
from toolkit.submissions.difference import Move, differing, moves
from toolkit.submissions.form.layout import fit


def test_the_long_form_is_compared_by_id():
    """A row per id and class: answers are per id."""
    rules, sample, good = VALID["long"]
    fitted = fit("long", table(sample), rules)
    (answers,) = of_frame(table(good), fitted)
    assert answers.ids == ("003", "010")
    assert answers.labels.tolist() == [0, 0]
    assert answers.confidence.tolist() == [0.5, 1.0]
    swapped = of_frame(table(good.replace("003,cat,.5\n003,dog,0.25", "003,cat,.2\n003,dog,0.55")), fitted)
    change = differing([answers], swapped)
    assert (change.share, change.differs.tolist(), change.ids) == (0.5, [True, False], ("003", "010"))
    assert moves([answers], swapped) == [Move("animal", "cat", "dog", 1)]
