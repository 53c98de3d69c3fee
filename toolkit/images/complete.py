"""Whether a decoded picture has all its rows: decoders leave black or grey what a file does not hold, without a word."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

Pixels = NDArray[np.uint8]
Open = Callable[[bytearray], "ImageFile"]

_PNG_START = 8
_BANDS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # x, y, steps
_PIECE = 1 << 20
_AHEAD = 8  # bytes that libjpeg looks ahead; they may stand for a few blocks, never for a row
_END = b"\xff\xd9"
_MORE = 64  # bytes: more than any block of 64 values can be short of in its first codes
_BITS = (b"", b"\0", b"\xff\0", b"\x55", b"\xaa")  # usual tables end a block at zeros, and at ones, which are no code
_LENGTH = 257  # TIFF's tag of the rows as stored


def lacks_rows(data: bytearray, header: ImageFile, pixels: Pixels, opened: Open, scan: int) -> bool:
    """Whether the end of a picture was never in its file; `pixels` are as stored, before any turn.

    Only a picture whose last rows look as if nothing had been written there is looked into. `opened` gives a fresh header,
    `scan` is where a JPEG's first scan begins.
    """
    if header.format == "JPEG":
        corner = pixels[-1, -8:].astype(np.int16)  # of the last block; libjpeg makes the middle level of what is not there
        middle = corner[0] if header.mode == "CMYK" else 128
        return bool((np.abs(corner - middle) <= 1).all()) and _short_scan(data, opened, scan)
    if header.format == "TIFF":
        again = opened(data)
        bottoms = [tile.extents[3] for tile in again.tile if tile.extents]
        return 0 < max(bottoms, default=0) < int(getattr(again, "tag_v2", {}).get(_LENGTH, 0))
    last = pixels[-2:]  # two, since interlaced rows alternate
    if not (last == last[:, :1]).all(axis=(1, 2)).any():
        return False
    if header.format == "PNG":
        return _short_png(data)
    return header.format == "GIF" and _short_gif(data)


def ended(data: bytearray, scan: int, opened: Open) -> bytearray | None:
    """A JPEG that lacks its end marker, with one: None if it lacks anything else; `scan` is where its first scan begins.

    Bits that are missing are read from what follows: where whatever follows gives the same pixels, none was.
    """
    body = bytes(data)
    kept = body.rstrip(b"\0")
    if len(body) - len(kept) > _AHEAD:  # room on a disk that was never written
        body = kept + b"\0"
    body = body.removesuffix(b"\xff")  # the first half of the marker
    if not _all_scans(body, scan):
        return None
    pictures = [np.asarray(opened(bytearray(body + bits * _MORE + _END))) for bits in _BITS]
    same = all(np.array_equal(pictures[0], other) for other in pictures[1:])
    return bytearray(body + _END) if same else None


def _all_scans(data: bytes, scan: int) -> bool:
    """Whether the scans of a JPEG bring every bit of every coefficient of every component."""
    frame = max(data.rfind(marker, 0, scan) for marker in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2"))
    if frame < 0 or len(data) < frame + 10:
        return False
    lacking = {data[frame + 10 + 3 * place]: set(range(64)) for place in range(data[frame + 9])}
    at = scan
    while at >= 0:
        count = data[at + 4] if at + 4 < len(data) else 0
        if not count or at + 8 + 2 * count > len(data):
            return False
        first, last, exact = data[at + 5 + 2 * count], data[at + 6 + 2 * count], data[at + 7 + 2 * count] & 15
        for place in range(count):
            if exact == 0:
                lacking.get(data[at + 5 + 2 * place], set()).difference_update(range(first, last + 1))
        at = data.find(b"\xff\xda", at + 2)
    return not any(lacking.values())


def _short_scan(data: bytearray, opened: Open, scan: int) -> bool:
    """Whether a JPEG of one scan has fewer rows than it says: without its end marker the decoder stops where the data does."""
    from PIL import Image

    end = data.find(b"\xff\xd9", scan)
    header = opened(data[:end] + bytes(_AHEAD))
    if header.info.get("progressive") or data.count(b"\xff\xda", scan, end) > 1:
        return _coarse(data, scan, end)
    header.im = Image.new(header.mode, header.size, (1, 2, 3, 4)[: len(header.getbands())] if header.mode != "L" else 1).im
    marks = header.im.getpixel((header.size[0] - 1, header.size[1] - 1))
    try:
        header.load()
    except OSError:  # the end marker is gone
        return bool(header.im.getpixel((header.size[0] - 1, header.size[1] - 1)) == marks)
    return False


def _coarse(data: bytearray, scan: int, end: int) -> bool:
    """Whether a JPEG of several scans ends before its first bits of every component's mean have come."""
    seen: set[int] = set()
    wanted: set[int] = set()
    at = scan
    while 0 <= at < end:
        count = data[at + 4]
        seen |= {data[at + 5 + 2 * place] for place in range(count) if data[at + 5 + 2 * count] == 0}
        at = data.find(b"\xff\xda", at + 2, end)
    frame = max(data.rfind(marker, 0, scan) for marker in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2"))
    if frame >= 0:
        wanted = {data[frame + 10 + 3 * place] for place in range(data[frame + 9])}
    return not wanted <= seen


def _short_png(data: bytearray) -> bool:
    """Whether the pixels' stream holds fewer bytes than the header asks for."""
    width, height, depth, colour = (
        *(int.from_bytes(data[place : place + 4]) for place in (16, 20)),
        data[24],
        data[25],
    )
    passes = _ADAM7 if data[28] else ((0, 0, 1, 1),)
    missing = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            missing += rows * (1 + (columns * depth * _BANDS.get(colour, 1) + 7) // 8)
    stream, at = zlib.decompressobj(), _PNG_START
    while missing > 0 and at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        left_over = bytes(data[at + 8 : at + 8 + size]) if kind == b"IDAT" else b""
        while left_over and not stream.eof:
            missing -= len(stream.decompress(left_over, _PIECE))
            left_over = stream.unconsumed_tail
        at += 12 + size
    while missing > 0 and (rest := stream.decompress(stream.unconsumed_tail, _PIECE)):
        missing -= len(rest)
    return missing > 0


def _short_gif(data: bytearray) -> bool:
    """Whether the first picture's codes stand for fewer pixels than it has."""
    at = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    while data[at] == 0x21:  # extensions
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    width, height = (int.from_bytes(data[place : place + 2], "little") for place in (at + 5, at + 7))
    flags = data[at + 9]
    at += 10 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    bits = data[at]
    codes = bytearray()
    at += 1
    while at < len(data) and data[at]:
        codes += data[at + 1 : at + 1 + data[at]]
        at += 1 + data[at]
    return _pixels(bytes(codes), bits, width * height) < width * height


def _pixels(codes: bytes, bits: int, enough: int) -> int:
    """How many pixels GIF's LZW codes stand for, counted no further than `enough`."""
    clear, end = 1 << bits, (1 << bits) + 1
    lengths = [1] * clear + [0, 0]
    size, total, before = bits + 1, 0, 0
    held = have = 0
    for byte in codes:
        held |= byte << have
        have += 8
        while have >= size:
            code = held & ((1 << size) - 1)
            held >>= size
            have -= size
            if code == clear:
                del lengths[clear + 2 :]
                size, before = bits + 1, 0
                continue
            if code == end or code > len(lengths) or total >= enough:
                return total
            length = lengths[code] if code < len(lengths) else before + 1
            total += length
            if before and len(lengths) < 4096:
                lengths.append(before + 1)
                if len(lengths) == 1 << size and size < 12:
                    size += 1
            before = length
    return total
