"""Duplicates that were planted are found under every turn, and hashes are those of pictures that were really turned."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from tests.conftest import draw
from toolkit.images import duplicates, tensor_views
from toolkit.images.duplicates import TURNS
from toolkit.images.views import VIEW_SETS


def scene(seed):
    """A picture with no symmetry: blurred noise under a gradient."""
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(4))
    wide = np.asarray(noise, dtype=float)
    wide = (wide - wide.mean()) * 4 + 128 + rng.normal(0, 25, 3)
    return Image.fromarray(wide.clip(0, 255).astype(np.uint8))


def turned(image, turn):
    batch = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
    return Image.fromarray(tensor_views.apply(batch, turn)[0].permute(1, 2, 0).contiguous().numpy())


def jpeg(image, quality):
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return data.getvalue()


def test_turns_are_those_of_views():
    assert set(TURNS) == set(VIEW_SETS["d4"])
    thumbs = np.random.default_rng(0).integers(0, 256, (1, 32, 32), dtype=np.uint8)
    for turn in TURNS:
        other = tensor_views.apply(torch.from_numpy(thumbs)[None], turn)[0].numpy()
        found = duplicates._correlations(np.concatenate([thumbs, other]), np.array([0]), np.array([1]), turn)
        assert found[0] == pytest.approx(1, abs=1e-5)


def test_one_transform_gives_the_hashes_of_all_turns():
    thumbs = np.random.default_rng(0).integers(0, 256, (50, 32, 32), dtype=np.uint8)
    every = duplicates.hashes(thumbs)
    for number, turn in enumerate(TURNS):
        really = tensor_views.apply(torch.from_numpy(thumbs)[None], turn)[0].contiguous().numpy()
        np.testing.assert_array_equal(every[number], duplicates.hashes(really)[0])


def test_a_hash_is_the_signs_of_low_frequencies_about_their_median():
    from scipy.fftpack import dct

    thumb = np.random.default_rng(1).integers(0, 256, (32, 32), dtype=np.uint8)
    low = dct(dct(thumb.astype(float), axis=0, norm="ortho"), axis=1, norm="ortho")[:8, :8].ravel()
    expected = sum(1 << i for i in range(1, 64) if low[i] > np.median(low[1:]))
    assert int(duplicates.hashes(thumb[None])[0, 0]) == expected


@pytest.mark.parametrize("bits", [0, 1, 3, 5])
def test_bands_find_every_pair_within_the_distance_once(bits):
    rng = np.random.default_rng(bits)
    plain = rng.integers(0, 2**63, 300, dtype=np.uint64) << np.uint64(1)
    for place in range(1, 300, 2):  # neighbours differ in up to seven bits
        flips = rng.choice(np.arange(1, 64), rng.integers(0, 8), replace=False)
        plain[place] = plain[place - 1] ^ np.bitwise_or.reduce(np.uint64(1) << flips.astype(np.uint64), initial=np.uint64(0))
    found = [pair for left, right in duplicates._candidates(plain, plain, bits) for pair in zip(left, right, strict=True)]
    distance = np.bitwise_count(plain[:, None] ^ plain[None, :])
    expected = {(i, j) for i in range(300) for j in range(i + 1, 300) if distance[i, j] <= bits}
    assert len(found) == len(set(found))
    assert {(int(i), int(j)) for i, j in found} == expected


@pytest.mark.parametrize("turn", TURNS)
def test_copies_are_found_resized_recompressed_and_turned(tmp_path, turn):
    for seed in range(30):
        scene(seed).save(tmp_path / f"{seed:02d}.png")
    for seed in (3, 7):
        copy = turned(scene(seed), turn).resize((70, 70), Image.Resampling.BICUBIC)
        (tmp_path / f"x{seed}.jpg").write_bytes(jpeg(copy, 40))
    paths = sorted(tmp_path.iterdir())
    found, bits = duplicates.find(duplicates.prints(paths))
    assert {(paths[t.first].name, paths[t.second].name, t.turn) for t in found} == {
        ("03.png", "x3.jpg", turn),
        ("07.png", "x7.jpg", turn),
    }
    assert bits == duplicates.BITS
    assert not any(t.exact for t in found)


def test_the_same_bytes_are_one_star_and_flat_pictures_are_not_alike(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abc":
        draw(np.random.default_rng(5), 1).save(tmp_path / f"{name}.png")
    for level in (0, 255):
        Image.new("RGB", (20, 20), (level, level, level)).save(tmp_path / f"flat{level}.png")
    draw(rng, 2).save(tmp_path / "z.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    seen = []
    paths = sorted(tmp_path.iterdir())
    given = duplicates.prints(paths, progress=lambda done, total: seen.append((done, total)))
    found, _ = duplicates.find(given)
    assert [(paths[t.first].name, paths[t.second].name, t.exact) for t in found] == [
        ("a.png", "b.png", True),
        ("a.png", "c.png", True),
    ]
    assert (len(given.bad), seen[-1]) == (1, (7, 7))


def test_where_too_much_is_alike_fewer_bits_may_differ(monkeypatch):
    thumbs = np.random.default_rng(0).integers(0, 256, (40, 32, 32), dtype=np.uint8)
    thumbs[1] = thumbs[0]
    digests = tuple(bytes([i]) for i in range(40))
    monkeypatch.setattr(duplicates, "CANDIDATES", 200)
    found, bits = duplicates.find(duplicates.Prints(digests, thumbs, {}))
    assert bits < duplicates.BITS
    assert [(t.first, t.second) for t in found] == [(0, 1)]
