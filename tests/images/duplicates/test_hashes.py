"""Hashes are those of pictures that were really turned, and bands bring together every pair within the distance, once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from toolkit.images import tensor_views
from toolkit.images.duplicates import hashes
from toolkit.images.duplicates.hashes import TURNS, neighbours, ranks
from toolkit.images.views import VIEW_SETS


def test_turns_are_those_of_views():
    assert set(TURNS) == set(VIEW_SETS["d4"])
    thumbs = np.random.default_rng(0).integers(0, 256, (1, 32, 32), dtype=np.uint8)
    for turn in TURNS:
        other = tensor_views.apply(torch.from_numpy(thumbs)[None], turn)[0].numpy()
        found = hashes._correlations(np.concatenate([thumbs, other]), np.array([0]), np.array([1]), turn)
        assert found[0] == pytest.approx(1, abs=1e-5)


def test_one_transform_gives_the_hashes_of_all_turns():
    thumbs = np.random.default_rng(0).integers(0, 256, (50, 32, 32), dtype=np.uint8)
    every = hashes.hashes(thumbs)
    for number, turn in enumerate(TURNS):
        really = tensor_views.apply(torch.from_numpy(thumbs)[None], turn)[0].contiguous().numpy()
        np.testing.assert_array_equal(every[number], hashes.hashes(really)[0])


def test_a_hash_is_the_signs_of_low_frequencies_about_their_median():
    from scipy.fftpack import dct

    thumb = np.random.default_rng(1).integers(0, 256, (32, 32), dtype=np.uint8)
    low = dct(dct(thumb.astype(float), axis=0, norm="ortho"), axis=1, norm="ortho")[:8, :8].ravel()
    expected = sum(1 << i for i in range(1, 64) if low[i] > np.median(low[1:]) + hashes.MARGIN)
    assert int(hashes.hashes(thumb[None])[0, 0]) == expected


@pytest.mark.parametrize("bits", [0, 1, 3, 5])
def test_bands_find_every_pair_within_the_distance_once(bits):
    rng = np.random.default_rng(bits)
    plain = rng.integers(0, 2**63, 300, dtype=np.uint64) << np.uint64(1)
    for place in range(1, 300, 2):  # neighbours differ in up to seven bits
        flips = rng.choice(np.arange(1, 64), rng.integers(0, 8), replace=False)
        plain[place] = plain[place - 1] ^ np.bitwise_or.reduce(np.uint64(1) << flips.astype(np.uint64), initial=np.uint64(0))
    found = [pair for left, right in hashes._candidates(plain, plain, bits) for pair in zip(left, right, strict=True)]
    distance = np.bitwise_count(plain[:, None] ^ plain[None, :])
    expected = {(i, j) for i in range(300) for j in range(i + 1, 300) if distance[i, j] <= bits}
    assert len(found) == len(set(found))
    assert {(int(i), int(j)) for i, j in found} == expected


def test_where_too_much_is_alike_fewer_bits_may_differ(monkeypatch):
    thumbs = np.random.default_rng(0).integers(0, 256, (40, 32, 32), dtype=np.uint8)
    thumbs[1] = thumbs[0]
    sides = np.full((40, 2), 32, dtype=np.int32)
    assert neighbours(thumbs, sides).bits == hashes.MOST_BITS
    monkeypatch.setattr(hashes, "CHEAP", 200)
    assert neighbours(thumbs, sides).bits == hashes.BITS
    monkeypatch.setattr(hashes, "CANDIDATES", 200)
    near = neighbours(thumbs, sides)
    assert near.bits < hashes.BITS
    assert list(zip(near.first, near.second, strict=True)) == [(0, 1)]


def test_of_very_many_that_are_alike_the_best_are_kept_and_all_are_counted(monkeypatch):
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(40, 200, (8, 8)), np.ones((4, 4)))
    noise = rng.normal(0, 1, (60, 32, 32)) * np.linspace(0.5, 4, 60)[:, None, None]
    thumbs, sides = np.rint(scene + noise).astype(np.uint8), np.full((60, 2), 99, dtype=np.int32)
    whole = neighbours(thumbs, sides)
    monkeypatch.setattr(hashes, "ROOM", 100)
    parts = neighbours(thumbs, sides)
    assert whole.partners.tolist() == parts.partners.tolist() == [59] * 60
    assert len(whole.first) < 60 * hashes.PARTNERS
    assert (whole.first.tolist(), whole.second.tolist()) == (parts.first.tolist(), parts.second.tolist())
    assert (np.diff(whole.similarity) <= 0).all()


def test_ranks_count_the_better_pairs_of_the_picture_that_has_fewer():
    first, second = np.array([0, 0, 0, 1]), np.array([1, 2, 3, 2])
    assert ranks(first, second).tolist() == [0, 0, 0, 1]
    assert ranks(first[:0], second[:0]).tolist() == []
