"""Files made to take minutes: refused by name before anything is decoded, or ended when their time is over."""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.images.test_render import both, chunk, encode, png, thumb
from toolkit.core.cards import Preprocess
from toolkit.errors import ImageError
from toolkit.images import budget, deadline, decode, render

SECONDS = 2.0  # of this process's own time for what used to take nine and more


def rle(width: int, height: int) -> bytes:
    """A BMP of 8-bit runs that says nothing but "end of line"."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    start = 14 + len(info) + 1024
    return b"BM" + struct.pack("<IHHI", start, 0, 0, start) + info + bytes(1024) + b"\1\1\0\0" * height + b"\0\1"


def many_scans(count: int) -> bytes:
    jpeg = encode(thumb(), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * count + b"\xff\xd9"


def segments(count: int, kind: bytes = b"\xff\xe5\0\2") -> bytes:
    jpeg = encode(thumb(), "JPEG")
    return jpeg[:2] + kind * count + jpeg[2:]


def notes(count: int) -> bytes:
    data = encode(thumb(), "PNG")
    return data[:33] + chunk(b"tEXt", b"a\0b") * count + data[33:]


def comments(count: int) -> bytes:
    data = encode(thumb().quantize(16), "GIF")
    colours = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    return data[:colours] + b"!\xfe" + b"\1x" * count + b"\0" + data[colours:]


def strips(count: int) -> bytes:
    """A TIFF of one-row strips."""
    tags = [(256, 1), (257, count), (258, 8), (259, 1), (262, 1), (277, 1), (278, 1)]
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags[:5])
    entries += struct.pack("<HHII", 273, 4, count, start)
    entries += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags[5:])
    entries += struct.pack("<HHII", 279, 4, count, start + 4 * count)
    offsets = np.full(count, start + 8 * count, "<u4").tobytes() + np.ones(count, "<u4").tobytes()
    return b"II*\0" + struct.pack("<IH", 8, len(tags) + 2) + entries + bytes(4) + offsets + b"\x55"


SLOW: dict[str, tuple[Callable[[], bytes], str]] = {
    "runs of FF": (lambda: segments(40_000_000, b"\xff"), "fill bytes"),
    "many segments": (lambda: segments(2_000_000), "segments"),
    "markers without end": (lambda: segments(5_000_000, b"\xff\x01"), "segments"),
    "20,000 scans": (lambda: many_scans(20_000), "scans"),
    "RLE": (lambda: rle(9_000, 9_000), "one by one"),
    "plain PPM": (lambda: b"P3 2600 2600 255\n" + b"255 0 127 " * (2600 * 2600), "digits"),
    "PPM of 1,000 levels": (lambda: b"P6 3000 3000 1000\n" + bytes(2 * 3 * 3000 * 3000), "one by one"),
    "PPM of one comment": (lambda: b"P6 #" + b"x" * 20_000_000 + b"\n1 1 255\n123", "header"),
    "PNG of notes": (lambda: notes(500_000), "chunks"),
    "GIF of comments": (lambda: comments(3_000_000), "blocks"),
    "TIFF of strips": (lambda: strips(3_000_000), "values"),
}


@pytest.mark.parametrize("name", SLOW)
def test_what_would_take_long_is_refused_by_name(name: str) -> None:
    make, why = SLOW[name]
    data = make()
    for implementation in render.IMPLEMENTATIONS:
        started = time.process_time()
        with pytest.raises(ImageError, match=rf"^slow\.bin .*{why}") as caught:
            render.decode(data, "slow.bin", implementation=implementation)
        assert caught.value.hint
        with pytest.raises(ImageError, match=why):
            decode.describe(data, "slow.bin") if "scans" not in name else render.decode(data, "slow.bin")
        assert time.process_time() - started < SECONDS


@both
def test_as_many_as_real_files_have_are_read(implementation: str) -> None:
    whole = np.asarray(thumb())
    for data in (segments(2_000), segments(1_000, b"\xff"), notes(200), comments(2_000), strips(500)):
        assert render.decode(data, "fine", implementation=implementation).ndim == 3
    np.testing.assert_array_equal(render.decode(notes(200), "fine", implementation=implementation), whole)
    progressive = encode(thumb(), "JPEG", progressive=True)
    assert progressive.count(b"\xff\xda") < 12
    assert render.decode(rle(100, 1), "runs.bmp", implementation=implementation).shape == (1, 100, 3)


def line(width: int, height: int) -> bytes:
    """A PNG of one colour, as small as deflate makes it, whatever it claims."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = zlib.compress(bytes((width + 1) * min(height, 1_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", start) + chunk(b"IEND", b"")


@both
def test_sides_are_limited(implementation: str) -> None:
    for size in ((1, 100_000_000), (100_000_000, 1), (70_000, 3)):
        with pytest.raises(ImageError, match=r"thin\.png is .*side is above the limit"):
            render.decode(line(*size) if size[1] > 9 else png(*size, 8, 0, []), "thin.png", implementation=implementation)


@both
@pytest.mark.parametrize("antialias", [True, False])
def test_what_a_resize_makes_on_its_way_is_limited(implementation: str, antialias: bool) -> None:
    tall = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (60_000, 1, 3))
    with pytest.raises(ImageError, match=r"t\.png is too long and thin .*120,000,000 pixels"):
        render.render(tall, Preprocess((16, 2_000), antialias=antialias), implementation=implementation, where="t.png")
    wide = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (1, 60_000, 3))
    with pytest.raises(ImageError, match="too long and thin"):
        render.render(wide, Preprocess((8, 8), resize="crop", shorter=8), implementation=implementation)
    assert render.render(tall, Preprocess((16, 16), antialias=antialias), implementation=implementation).shape == (3, 16, 16)


def test_links_to_devices_pipes_and_endless_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for name, target in (
        ("zero", "/dev/zero"),
        ("tty", "/dev/tty"),
        ("pipe-link", tmp_path / "pipe.png"),
        ("kernel", "/proc/kmsg"),
    ):
        (tmp_path / f"{name}.png").symlink_to(target)
    for name in ("pipe", "zero", "tty", "pipe-link", "kernel"):
        with pytest.raises(ImageError, match=rf"{name}\.png (is not a regular file|is empty|cannot be read)"):
            render.read(tmp_path / f"{name}.png")


def test_what_may_take_long_is_decoded_elsewhere_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(thumb(), "JPEG2000")
    here = render.decode(data, "a.jp2")
    asked = []
    monkeypatch.setattr(budget, "_SLOW", {"JPEG2000": 10})
    true = deadline.decode
    monkeypatch.setattr(deadline, "decode", lambda *said: asked.append(said[1]) or true(*said))
    np.testing.assert_array_equal(render.decode(data, "a.jp2"), here)
    assert asked == ["a.jp2"]
    with pytest.raises(ImageError, match=r"^cut\.jp2 cannot be decoded"):
        render.decode(data[: len(data) // 2], "cut.jp2")


def test_its_time_over_it_is_ended_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its decoder replaced by one that never ends, and by one that waits: processor time and the clock are both limits."""
    data = encode(thumb(), "JPEG2000")
    monkeypatch.setattr(budget, "_SLOW", {"JPEG2000": 10})
    whole = deadline._CODE
    for endless, seconds, wait in (("for _ in iter(int, 1): pass", 1.0, 60.0), ("import time; time.sleep(60)", 1.0, 3.0)):
        code = whole.replace(
            "deadline.serve(partial(decode.stored, treatment=deadline.read(sys.argv[3]))",
            f"def hang(_data):\n    {endless}\ndeadline.serve(hang",
        )
        assert code != whole
        monkeypatch.setattr(deadline, "_CODE", code)
        monkeypatch.setattr(deadline, "SECONDS", seconds)
        monkeypatch.setattr(deadline, "WAIT", wait)
        with pytest.raises(ImageError, match=r"^large\.jp2 takes longer than 1 s to decode") as caught:
            render.decode(data, "large.jp2")
        assert caught.value.hint
