"""What becomes of alpha and of JPEGs without an end marker: the same pixels by both decoders, against values worked out by hand."""

from __future__ import annotations

import io
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from toolkit.core.cards import Preprocess
from toolkit.errors import CardError, ImageError
from toolkit.images import decode, render

BEHIND = {"white": 255, "black": 0}
SHADE = np.linspace(0, 255, 12).astype(np.uint8).reshape(3, 4)


def stored(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def both(data: bytes, **options: object) -> np.ndarray:
    fast, small = (render.decode(data, "x", implementation=name, **options) for name in render.IMPLEMENTATIONS)
    assert np.array_equal(fast, small)
    return small


@pytest.mark.parametrize("alpha", BEHIND)
@pytest.mark.parametrize(("mode", "kind"), [("LA", "PNG"), ("RGBA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF")])
def test_alpha_is_blended_with_what_is_behind(alpha, mode, kind) -> None:
    bands = [np.full((3, 4), level, np.uint8) for level in ((40,) if mode == "LA" else (40, 90, 200))]
    picture = Image.fromarray(np.dstack([*bands, SHADE]), mode)
    pixels = both(stored(picture, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})), alpha=alpha)
    share = SHADE / 255
    for channel in range(3):
        expected = bands[min(channel, len(bands) - 1)] * share + BEHIND[alpha] * (1 - share)
        assert np.abs(pixels[:, :, channel] - expected).max() <= 0.5 + 1e-2


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_colour_is_the_background(kind) -> None:
    picture = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    picture.putpalette([10, 20, 30, 200, 100, 50])
    pixels = both(stored(picture, kind, transparency=0), alpha="white")
    assert pixels.tolist() == [[[255] * 3, [200, 100, 50]], [[200, 100, 50], [255] * 3]]


def test_a_glyph_in_alpha_alone_is_seen() -> None:
    data = stored(Image.fromarray(np.dstack([np.zeros_like(SHADE), SHADE]), "LA"), "PNG")
    assert both(data).max() == 0
    assert np.array_equal(both(data, alpha="white")[:, :, 0], 255 - SHADE)


def test_digests_and_cards_of_before_stay() -> None:
    plain = Preprocess((8, 8))
    assert plain.digest == "e3fc7b9ebb15270d"
    assert "alpha" not in plain.fields
    assert asdict(plain)["alpha"] == "drop"
    assert len({plain.digest, *(Preprocess((8, 8), alpha=alpha).digest for alpha in BEHIND)}) == 3
    with pytest.raises(CardError, match="alpha"):
        Preprocess((8, 8), alpha="grey")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_only_its_end_marker_is_whole(progressive) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 56, 3)).astype(np.uint8)
    data = stored(Image.fromarray(noise), "JPEG", quality=90, progressive=progressive)
    whole = both(data)
    for short in (data[:-2], data[:-1], data[:-2] + bytes(500)):
        assert np.array_equal(both(short), whole)
        decode.describe(short, "x")
    for missing in (5, 12, 60, len(data) // 3):
        with pytest.raises(ImageError, match="cut short"):
            render.decode(data[:-missing], "x")
