"""What one image may cost: sizes, segments and scans that are counted before anything is decoded: each can take minutes."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from toolkit.errors import ImageError, counted

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

LIMIT_PIXELS = 100_000_000  # a header that claims more is refused before a pixel is allocated
LIMIT_SIDE = 65_535  # what JPEG can hold; resizing a longer one makes gigabytes on its way
LIMIT_SEGMENTS = 20_000  # parts of a header, each read by a step of Python
LIMIT_FILL = 100_000  # bytes FF between them
LIMIT_SCANS = 200  # of a progressive JPEG; encoders write about ten
LIMIT_WORK = 1_500_000_000  # pixels × scans
LIMIT_STRIPS = 100_000  # of a TIFF
LIMIT_SLOW = 8_000_000  # values that Pillow decodes one by one in Python
LIMIT_TEXT = 16_000_000  # bytes of a picture written in digits
HEAD = 1 << 16  # bytes in which the header of a PPM has to end

SCAN, APP1 = 0xDA, 0xE1
_PNG = b"\x89PNG\r\n\x1a\n"
_NO_FILL = re.compile(rb"[^\xff]")
_COMMENT = re.compile(rb"#[^\r\n]*(?:[\r\n]|$)")
_BYTES = (1, 2, 6, 7)  # TIFF's types of one byte each
_BY_PYTHON = ("bmp_rle", "ppm", "ppm_plain")
_SLOW = {
    "JPEG2000": 5_000_000,
    "AVIF": 15_000_000,
    "HEIF": 15_000_000,
}  # pixels from which a format is decoded under a deadline
_LARGE = 50_000_000
_HEAVY = 64_000_000  # bytes from which any is


def segments(jpeg: bytes | bytearray, where: str) -> Iterator[tuple[int, int, int]]:
    """(place, marker, length) of the segments of a JPEG's header, its first scan the last; lengths count their own two bytes.

    Raises:
        ImageError: more segments or fill bytes than a camera writes in a lifetime.
    """
    at, steps, fill = 2, 0, 0
    while 0 <= (at := jpeg.find(b"\xff", at)) < len(jpeg) - 3:
        match = _NO_FILL.search(jpeg, at)
        after = match.start() if match else len(jpeg)
        fill, steps = fill + after - at - 1, steps + 1
        if steps > LIMIT_SEGMENTS or fill > LIMIT_FILL:
            raise _costly(where, f"its header has more than {LIMIT_SEGMENTS:,} segments or {LIMIT_FILL:,} fill bytes")
        at = after - 1
        if at >= len(jpeg) - 3:
            return
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4])
        yield at, marker, length
        if marker == SCAN:
            return
        alone = marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8
        at += 2 if alone else 2 + length


def check_bytes(data: bytes | bytearray, where: str) -> None:
    """Refuse what would take long to open.

    Raises:
        ImageError: names what there is too much of.
    """
    start = bytes(data[:8])
    if start.startswith(b"\xff\xd8"):
        _jpeg(data, where)
    elif start == _PNG:
        _png(data, where)
    elif start[:4] == b"GIF8":
        _gif(data, where)
    elif start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        _tiff(data, where)
    elif start[:1] == b"P" and len(data) > HEAD:
        tokens = _COMMENT.sub(b" ", bytes(data[:HEAD])).split(None, 4)
        if len(tokens) < 4:
            raise _costly(where, f"its header is longer than {HEAD:,} bytes")
        if start[1:2] in b"123" and len(data) > LIMIT_TEXT:
            raise _costly(where, f"it is written in digits, {len(data):,} bytes of them: above {LIMIT_TEXT:,}")


def check_header(header: ImageFile, where: str) -> None:
    """Refuse what would take long to decode or to resize.

    Raises:
        ImageError: names what there is too much of.
    """
    width, height = header.size
    if width * height > LIMIT_PIXELS:
        raise ImageError(
            f"{where} is {width:,} × {height:,} pixels, above the limit of {LIMIT_PIXELS:,}",
            hint="Shrink it first, or leave it out: a file that claims this much is often broken or hostile.",
        )
    if max(width, height) > LIMIT_SIDE:
        raise ImageError(
            f"{where} is {width:,} × {height:,} pixels: a side is above the limit of {LIMIT_SIDE:,}",
            hint="Cut it into pieces first, or leave it out.",
        )
    tiles: list[Any] = header.tile
    if len(tiles) > LIMIT_STRIPS:
        raise _costly(where, f"it is stored in {counted(len(tiles), 'strips')}: above {LIMIT_STRIPS:,}")
    values = width * height * len(header.getbands())
    if any(tile[0] in _BY_PYTHON for tile in tiles) and values > LIMIT_SLOW:
        raise _costly(
            where, f"its {counted(values, 'values are')} packed in a way that is decoded one by one: above {LIMIT_SLOW:,}"
        )


def check_scans(data: bytes | bytearray, first: int, size: tuple[int, int], where: str) -> None:
    """Refuse a JPEG that goes over its pixels too often; `first` is where its first scan begins.

    Raises:
        ImageError: says how many scans there are.
    """
    scans = data.count(b"\xff\xda", first)
    if scans > LIMIT_SCANS or (scans > 12 and scans * size[0] * size[1] > LIMIT_WORK):
        raise _costly(where, f"it has {counted(scans, 'scans')} over {size[0]:,} × {size[1]:,} pixels")


def needs_deadline(header: ImageFile, count: int) -> bool:
    """Whether an image of `count` bytes may take Pillow longer than a moment."""
    width, height = header.size
    if header.format == "JPEG":
        return False  # its scans are counted
    return width * height > _SLOW.get(header.format or "", _LARGE) or count > _HEAVY


def _costly(where: str, what: str) -> ImageError:
    return ImageError(f"{where} would take too long: {what}", hint="Save it again with any image program, or leave it out.")


def _jpeg(data: bytes | bytearray, where: str) -> None:
    for _ in segments(data, where):
        pass


def _png(data: bytes | bytearray, where: str) -> None:
    at, every, notes = len(_PNG), 0, 0
    while at + 8 <= len(data):
        every += 1
        notes += data[at + 4 : at + 8] not in (b"IDAT", b"fdAT", b"fcTL")
        if every > 4 * LIMIT_SEGMENTS or notes > 1_000:
            raise _costly(where, f"it is cut into more than {4 * LIMIT_SEGMENTS:,} chunks, or 1,000 that hold no pixels")
        at += 12 + int.from_bytes(data[at : at + 4])


def _gif(data: bytes | bytearray, where: str) -> None:
    """Count the blocks before the first picture."""
    flags = data[10] if len(data) > 10 else 0
    at, steps = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0), 0
    while at < len(data) and data[at] not in b",;":
        at += 2 if data[at] == 0x21 else 1
        while at < len(data) and data[at - 1] != 0 and data[at]:
            at, steps = at + 1 + data[at], steps + 1
            if steps > 5 * LIMIT_SEGMENTS:
                raise _costly(where, f"more than {5 * LIMIT_SEGMENTS:,} blocks stand before its picture")
        at, steps = at + 1, steps + 1
        if steps > 5 * LIMIT_SEGMENTS:
            raise _costly(where, f"more than {5 * LIMIT_SEGMENTS:,} blocks stand before its picture")


def _tiff(data: bytes | bytearray, where: str) -> None:
    """Look at how many values the tags of the first page have."""
    order = "<" if data[:1] == b"I" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    try:
        start = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
        entries = struct.unpack_from(order + ("Q" if big else "H"), data, start)[0]
        if entries > 4_096:
            raise _costly(where, f"its first page has {counted(entries, 'tags')}")
        for entry in range(entries):
            place = start + (8 + 20 * entry if big else 2 + 12 * entry)
            _, kind, count = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, place)
            if kind not in _BYTES and count > LIMIT_STRIPS:
                raise _costly(where, f"a tag has {counted(count, 'values')}: above {LIMIT_STRIPS:,}")
    except struct.error:
        return  # Pillow says what is wrong with it
