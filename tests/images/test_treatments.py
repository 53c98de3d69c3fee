"""What becomes of alpha and of JPEGs without an end marker: the same pixels by both decoders, against values worked out by hand."""

from __future__ import annotations

import io
import sys
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from tests.conftest import card
from tests.images.test_render import png
from toolkit.cli import advice
from toolkit.core.cards import Card, Preprocess
from toolkit.errors import CardError, ImageError
from toolkit.images import decode, render
from toolkit.images.treatments import CutShortError, Treatment

BEHIND = {"white": 255, "black": 0}
SHADE = np.linspace(0, 255, 12).astype(np.uint8).reshape(3, 4)


def stored(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def both(data: bytes, **options: object) -> np.ndarray:
    treatment = Treatment(**options)
    fast, small = (render.decode(data, "x", implementation=name, treatment=treatment) for name in render.IMPLEMENTATIONS)
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


def deep_png(values: np.ndarray, colour: int) -> bytes:
    """A PNG of 16 bits per channel, rows of big-endian values: PNG's colour type 0, 2, 4 or 6."""
    height, width = values.shape[:2]
    return png(width, height, 16, colour, [row.astype(">u2").tobytes() for row in values])


@pytest.mark.parametrize(("colour", "bands"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_a_window_stretches_values_of_12_bits(colour, bands) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (6, 9, bands)).astype(np.uint16)
    values[0, :2] = [[100] * bands, [4000] * bands]
    colours = values[:, :, : 1 if bands < 3 else 3].astype(float)
    assert both(deep_png(values, colour)).max() <= 16  # near black, as 16 bits have it
    for low, high in ((0, 4095), (100, 4000)):
        expected = (colours.clip(low, high) - low) / (high - low) * 255
        assert np.abs(both(deep_png(values, colour), window=(low, high)) - expected).max() <= 0.503
    if bands in (2, 4):
        values[:, :, -1] = 65535
        over = both(deep_png(values, colour), window=(0, 4095), alpha="white")
        assert np.abs(over - colours / 4095 * 255).max() <= 0.503


def test_a_window_is_of_16_bit_files_alone(tmp_path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (6, 9)).astype(np.uint16)
    tiff = stored(Image.fromarray(values), "TIFF")
    assert np.abs(both(tiff, window=(0, 4095))[:, :, 0] - values / 4095 * 255).max() <= 0.503
    eight = Image.fromarray((values // 16).astype(np.uint8))
    for kind in ("PNG", "TIFF", "JPEG"):
        assert np.array_equal(both(stored(eight, kind), window=(0, 4095)), both(stored(eight, kind)))
    (tmp_path / "a.tiff").write_bytes(tiff)
    shown = [
        render.load(tmp_path / "a.tiff", Preprocess((6, 9), window=(0, 4095)), implementation=name)
        for name in render.IMPLEMENTATIONS
    ]
    assert all(np.abs(pixels[0] - values / 4095 * 255).max() <= 0.503 for pixels in shown)


def test_windows_keep_digests_and_cards_of_before() -> None:
    plain, twelve = Preprocess((8, 8)), Preprocess((8, 8), window=(0, 4095))
    assert "window" not in plain.fields
    assert plain.digest == "e3fc7b9ebb15270d" != twelve.digest
    for wrong in ((5, 5), (0, 65536), (-1, 5), (0.5, 3), (1,), "ab"):
        with pytest.raises(CardError, match="window"):
            Preprocess((8, 8), window=wrong)
    for preprocess in (plain, twelve):
        said = card(preprocess=preprocess)
        assert Card.from_json(said.to_json(), where="x").preprocess == preprocess
    assert "window" not in card().to_json()
    assert "alpha" not in card().to_json()


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("TIFF", {})])
def test_what_is_there_of_a_picture_cut_short(kind, options) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 48, 3)).astype(np.uint8)
    data = stored(Image.fromarray(noise), kind, **options)
    cut = data[: len(data) * 2 // 3]
    with pytest.raises(CutShortError):
        both(cut)
    rescued = both(cut, partial=True)
    assert rescued.shape == (64, 48, 3)
    if not options:
        assert np.array_equal(rescued[:31], both(data)[:31])  # the 32nd looks at colours of the next
        assert (rescued[-4:] == rescued[-1, -1]).all()
    for nothing in (data[:60], b"no picture at all", *([data[: data.find(b"IDAT") + 6]] if kind == "PNG" else [])):
        with pytest.raises(ImageError):
            both(nothing, partial=True)


def test_what_is_there_is_upright() -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = stored(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 48, 3)).astype(np.uint8)), "JPEG", exif=exif)
    half = both(data[: len(data) * 2 // 3], partial=True)
    assert half.shape == (48, 64, 3)
    assert np.array_equal(half[:, -31:], both(data)[:, -31:])  # the first rows of the file are on the right


def test_a_missing_end_marker_is_seen_without_decoding() -> None:
    whole = stored(Image.fromarray(np.zeros((16, 16, 3), np.uint8)), "JPEG")
    thumbnail = b"\xff\xd8\xff\xe1\x00\x0aExif\0\0\xff\xd9" + whole[2:]
    assert not decode.lacks_end(whole)
    assert not decode.lacks_end(whole + bytes(500))
    assert decode.lacks_end(whole[:-2] + bytes(500))
    assert decode.lacks_end(whole[:-2])
    assert decode.lacks_end(thumbnail[:-2] + bytes(100))
    assert not decode.lacks_end(b"no JPEG")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_colour_profile_changes_nothing(kind) -> None:
    """Stored values count, whatever a file says of how they are to be shown: here with red and blue exchanged."""
    from PIL import ImageCms

    usual = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = usual.replace(b"rXYZ", b"....").replace(b"bXYZ", b"rXYZ").replace(b"....", b"bXYZ")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 24, 3)).astype(np.uint8))
    shown = ImageCms.profileToProfile(noise, io.BytesIO(profile), io.BytesIO(usual))
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(noise)).mean() > 30
    options = {"lossless": True} if kind == "WEBP" else {}
    profiled = stored(noise, kind, icc_profile=profile, **options)
    assert Image.open(io.BytesIO(profiled)).info["icc_profile"] == profile
    assert np.array_equal(both(profiled), both(stored(noise, kind, **options)))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_of_several_frames_or_pages_counts(kind) -> None:
    colours = [(200, 30, 40), (10, 20, 220), (30, 230, 20)]
    first, *others = (Image.new("RGB", (16, 16), colour) for colour in colours)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = stored(first, kind, save_all=True, append_images=others, **options)
    assert decode.frames(data, "x") == 3
    assert np.abs(both(data).astype(int) - colours[0]).max() <= 4


def test_heic_is_read_by_its_extra() -> None:
    """What libheif itself gives for the primary picture, turned as the container says; EXIF turns it no second time."""
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[274] = 6
    picture = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    file = io.BytesIO()
    pillow_heif.from_pillow(picture).save(file, quality=95, exif=exif.tobytes())
    expected = np.asarray(pillow_heif.read_heif(file.getvalue()).to_pillow().convert("RGB"))
    pixels = both(file.getvalue())
    assert np.array_equal(pixels, expected)
    turned = np.asarray(picture.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert pixels.shape == turned.shape
    assert np.abs(pixels - turned).mean() < 3
    with pytest.raises(ImageError):
        both(file.getvalue()[: len(file.getvalue()) // 2])


@pytest.mark.parametrize("brands", [b"heic\0\0\0\0mif1", b"mif1\0\0\0\0heic"])
def test_heic_without_the_extra_is_named(monkeypatch, brands) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    decode._openers.cache_clear()
    try:
        with pytest.raises(ImageError, match=r"x is a HEIC image, which the extra `heif` \(pillow-heif\) reads") as caught:
            both(b"\0\0\0\x14ftyp" + brands + bytes(64))
        assert "--extra heif" in advice.hint(caught.value)
    finally:
        decode._openers.cache_clear()
