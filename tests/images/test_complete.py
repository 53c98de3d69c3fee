"""Pictures whose last rows are not in their file are cut short, in both implementations; whole ones that look so are read."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.images.test_budget import strips
from tests.images.test_render import both, chunk, encode, png
from toolkit.errors import ImageError
from toolkit.images import render


def noise(height: int = 64, width: int = 48) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (height, width, 3), dtype=np.uint8)


def short_png(kept: float, *, interlaced: bool = False, colour: int = 2, depth: int = 8) -> bytes:
    """A PNG whose stream ends early, every checksum right."""
    image = Image.fromarray(noise()).convert({0: "L", 2: "RGB", 3: "P", 6: "RGBA"}[colour])
    data = encode(image, "PNG")
    at = data.index(b"IDAT")
    raw, place = b"", at - 4
    while data[place + 4 : place + 8] != b"IEND":
        size = int.from_bytes(data[place : place + 4])
        raw += data[place + 8 : place + 8 + size] if data[place + 4 : place + 8] == b"IDAT" else b""
        place += 12 + size
    rows = zlib.decompress(raw)
    head = bytearray(data[: at - 4])
    if interlaced:
        head[28] = 1
        head[29:33] = struct.pack(">I", zlib.crc32(head[12:29]))
        plain = np.asarray(image).reshape(64, -1)
        bands = plain.shape[1] // 48
        passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
        pixels = plain.reshape(64, 48, bands)
        rows = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in pixels[y::dy, x::dx])
    stream = zlib.compress(rows[: int(len(rows) * kept)])
    return bytes(head) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def short_jpeg(**options) -> bytes:
    image = Image.fromarray(noise(200, 160)[:, :, : options.pop("bands", 3)].squeeze())
    data = encode(image.convert(options.pop("mode", image.mode)), "JPEG", quality=90, **options)
    return data[: len(data) * 2 // 3] + b"\xff\xd9"


def short_gif() -> bytes:
    """The end code comes after half of the pixels."""
    data = encode(Image.fromarray(noise()[:32]).quantize(64), "GIF")
    at = data.index(b"\x2c\0\0\0\0\x30\0\x20\0")
    return data[:6] + struct.pack("<HH", 48, 64) + data[10 : at + 7] + struct.pack("<H", 64) + data[at + 9 :]


def cases() -> dict[str, bytes]:
    tall = strips(500)
    at = tall.index(struct.pack("<HHII", 257, 4, 1, 500))
    return {
        "PNG, half": short_png(0.5),
        "PNG, all but a byte": short_png(1 - 1e-4),
        "PNG, nothing": short_png(0.0),
        "PNG, grey": short_png(0.6, colour=0),
        "PNG, palette": short_png(0.6, colour=3),
        "PNG, alpha": short_png(0.6, colour=6),
        "PNG, interlaced": short_png(0.9, interlaced=True),
        "JPEG": short_jpeg(),
        "JPEG 4:4:4": short_jpeg(subsampling=0),
        "JPEG, grey": short_jpeg(bands=1),
        "JPEG, CMYK": short_jpeg(mode="CMYK"),
        "JPEG with restarts": short_jpeg(restart_marker_rows=1),
        "GIF": short_gif(),
        "TIFF with too few strips": tall[:at] + struct.pack("<HHII", 257, 4, 1, 900) + tall[at + 12 :],
    }


@both
@pytest.mark.parametrize("name", cases())
def test_missing_rows_are_cut_short(name: str, implementation: str) -> None:
    with pytest.raises(ImageError, match=r"^short\.bin (is cut short|cannot be decoded)"):
        render.decode(cases()[name], "short.bin", implementation=implementation)


@both
def test_whole_pictures_that_end_in_one_colour_are_read(implementation: str) -> None:
    for level in (0, 127, 128, 129, 255):
        pixels = noise(80, 64)
        pixels[40:] = level
        image = Image.fromarray(pixels)
        for kind, options in (
            ("PNG", {}),
            ("JPEG", {}),
            ("JPEG", {"progressive": True}),
            ("JPEG", {"subsampling": 0, "quality": 100}),
            ("JPEG", {"restart_marker_blocks": 3}),
            ("GIF", {"interlace": 1}),
            ("GIF", {"interlace": 0}),
            ("TIFF", {"compression": "tiff_lzw"}),
            ("BMP", {}),
            ("PPM", {}),
            ("WEBP", {"lossless": True}),
        ):
            data = encode(image.quantize(128) if kind == "GIF" else image, kind, **options)
            assert render.decode(data, f"{kind} {level}", implementation=implementation).shape == (80, 64, 3)
        for mode in ("L", "1", "P", "LA", "RGBA", "I;16"):
            changed = Image.fromarray(np.full((40, 30), level, np.uint16)) if mode == "I;16" else image.convert(mode)
            render.decode(encode(changed, "PNG"), f"{mode} {level}", implementation=implementation)
        for mode in ("L", "CMYK"):
            render.decode(encode(image.convert(mode), "JPEG"), f"{mode} {level}", implementation=implementation)
    whole = short_png(1.0, interlaced=True)
    np.testing.assert_array_equal(render.decode(whole, "whole", implementation=implementation), noise())
    pieces = encode(Image.fromarray(np.zeros((300, 300, 3), np.uint8)), "PNG")
    assert render.decode(pieces, "black.png", implementation=implementation).max() == 0
    assert render.decode(png(9, 1, 1, 0, [bytes(2)]), "line.png", implementation=implementation).shape == (1, 9, 3)
    animated = io.BytesIO()
    Image.new("P", (20, 20)).save(animated, "GIF", save_all=True, append_images=[Image.new("P", (20, 20), 1)])
    assert render.decode(animated.getvalue(), "moving.gif", implementation=implementation).shape == (20, 20, 3)
