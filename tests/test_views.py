"""Views: identity first, all different, exact permutations, and ttach's own order and pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import ttach

from toolkit.errors import DataError
from toolkit.views import VIEW_SETS, apply, needs_square, views

SQUARE = torch.from_numpy(np.random.default_rng(0).permutation(2 * 3 * 6 * 6).astype(np.int64).reshape(2, 3, 6, 6))
ALIASES = {"flip": ttach.aliases.flip_transform, "d4": ttach.aliases.d4_transform, "hflip": ttach.aliases.hflip_transform}


@pytest.mark.parametrize("name", VIEW_SETS)
def test_a_set_starts_with_identity_and_repeats_nothing(name):
    made = [apply(SQUARE, view) for view in views(name)]
    assert views(name)[0] == "id"
    assert torch.equal(made[0], SQUARE)
    assert len({tuple(view.flatten().tolist()) for view in made}) == len(made)


@pytest.mark.parametrize("name", VIEW_SETS)
def test_views_are_permutations_within_each_channel(name):
    for view in views(name):
        made = apply(SQUARE, view)
        assert made.shape == SQUARE.shape
        assert torch.equal(made.flatten(2).sort(-1).values, SQUARE.flatten(2).sort(-1).values)


@pytest.mark.parametrize("name", ALIASES)
def test_the_sets_are_ttachs(name):
    theirs = [transformer.augment_image(SQUARE) for transformer in ALIASES[name]()]
    ours = [apply(SQUARE, view) for view in views(name)]
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_quarter_turns_need_squares_and_flips_do_not():
    wide = torch.zeros(1, 3, 4, 6, dtype=torch.uint8)
    assert apply(wide, "hflip+vflip").shape == wide.shape
    for view in {view for name in VIEW_SETS for view in views(name) if needs_square(view)}:
        with pytest.raises(DataError, match="square"):
            apply(wide, view)


@pytest.mark.parametrize("call", [lambda: views("spiral"), lambda: apply(SQUARE, "spiral")])
def test_unknown_names_list_the_known_ones(call):
    with pytest.raises(DataError, match="spiral") as caught:
        call()
    assert "hflip" in caught.value.hint
