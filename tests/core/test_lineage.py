"""Lineage: what digests tell of rows that were seen, and what a sketch of their ids does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import card
from toolkit.core.cards import Card
from toolkit.core.lineage import SKETCH, Lineage, Seen, SeenIds, optimistic


def test_a_fold_is_exposed_to_all_that_trained_on_its_rows():
    lineage = Lineage((Seen("s", 0),))
    assert lineage.exposed("s", 0) == ()
    assert lineage.exposed("s", 1) == (Seen("s", 0),)
    assert lineage.exposed("s", None) == ()  # holds out nothing
    assert Lineage((Seen("s"),)).exposed("s", 0) == (Seen("s"),)  # a model of all rows
    assert lineage.exposed("t", 1) == ()
    assert lineage.elsewhere("t") == (Seen("s", 0),)
    both = lineage | Lineage((Seen("s", 1), Seen("s", 0)), ("file",))
    assert both == Lineage((Seen("s", 0), Seen("s", 1)), ("file",))


def ids(start, stop):
    return [f"row {i}" for i in range(start, stop)]


@pytest.mark.parametrize(
    ("first", "second", "asked"),
    [
        ((0, 50), (50, 80), (40, 90)),
        ((0, 3000), (2500, 6000), (5000, 7000)),  # the union is a sample
        ((0, 20_000), (0, 10), (0, 40_000)),
        ((0, 9000), (9000, 30_000), (0, 60_000)),
    ],
)
def test_a_sketch_tells_what_the_sets_share(first, second, asked):
    sketch = SeenIds.of(ids(*first)) | SeenIds.of(ids(*second))
    seen = set(ids(*first)) | set(ids(*second))
    truth = len(seen & set(ids(*asked)))
    shared, known = sketch.shared(ids(*asked))
    assert len(sketch.hashes) <= SKETCH
    assert sketch.whole == (len(seen) <= SKETCH)
    if sketch.whole:
        assert (shared, known) == (truth, asked[1] - asked[0])
    else:
        assert known > 0
        share = truth / (asked[1] - asked[0])
        assert shared / known == pytest.approx(share, abs=4 * np.sqrt(0.25 / known))
    assert sketch.shared([f"other {i}" for i in range(30_000)])[0] == 0
    same = SeenIds.of(sorted(seen))
    np.testing.assert_array_equal(sketch.hashes[: len(same.hashes)], same.hashes[: len(sketch.hashes)])


def test_a_sketch_goes_through_text_and_what_is_damaged_says_nothing():
    for count in (0, 7, 9000):
        sketch = SeenIds.of(ids(0, count))
        back = SeenIds.from_text(sketch.to_text())
        np.testing.assert_array_equal(back.hashes, sketch.hashes)
        assert back.whole == sketch.whole
    text = SeenIds.of(ids(0, 7)).to_text()
    for damaged in ("", "whole", text[:-3], "other:" + text.partition(":")[2], "sample:", "whole:" + "!" * 16):
        assert SeenIds.from_text(damaged) is None


def test_cards_of_before_say_what_their_split_and_fold_do():
    old = card(fold=1, split="s")
    assert old.lineage is None
    assert old.known_lineage == Lineage((Seen("s", 1),), ("tiny.fold1",))
    assert (old.chosen, old.selected_on_heldout) == ("last", False)
    assert card(fold=0).known_lineage == Lineage((), ("tiny.fold0",))
    text = old.to_json().replace('"lineage": null, ', "")
    assert "lineage" not in text
    assert Card.from_json(text, where="old") == old


def test_a_card_knows_by_its_lineage_that_its_score_is_optimistic():
    honest = card(fold=1, split="s", lineage=Lineage((Seen("s", 1), Seen("t", 0))))
    assert (honest.chosen, honest.exposed) == ("last", False)
    told = replace(honest, lineage=honest.lineage | Lineage((Seen("s", 0),)))
    assert (told.selected, told.chosen, told.exposed, told.selected_on_heldout) == ("last", "seen", True, True)
    assert Card.from_json(told.to_json(), where="x") == told
    best = replace(honest, selected="best")
    assert (best.chosen, best.exposed) == ("best", False)


def test_ways_of_being_optimistic_are_said_together():
    assert optimistic("last") == optimistic("last+last") == ""
    assert "seen" in optimistic("last+seen")
    assert optimistic("best+seen").count(";") == 1
    assert "new" in optimistic("new")  # of a later version
