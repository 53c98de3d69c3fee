"""A batch turned by indexing is what ttach makes of it; one image in every cut is what single calls give."""

import numpy as np
import pytest
import torch

from toolkit.errors import DataError
from toolkit.images import geometry, tensor_views, views


@pytest.mark.parametrize("view", sorted(views.VIEW_SETS["d4"]))
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 6, 9)])
def test_views_by_indexing_are_ttachs(view, shape):

    if views.needs_square(view) and shape[2] != shape[3]:
        return
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = geometry.turned(pixels, view)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, tensor_views.apply(torch.from_numpy(pixels), view).numpy())


def test_an_unknown_view_is_refused():
    with pytest.raises(DataError, match="unknown view"):
        geometry.turned(np.zeros((1, 3, 2, 2), np.uint8), "hflip+spin")
