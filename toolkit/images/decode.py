"""From image files to RGB pixels: found, read, checked by their headers, decoded by Pillow, turned upright."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import re
import stat
import struct
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import ImageError
from toolkit.images import budget, complete
from toolkit.images.budget import APP1
from toolkit.images.treatments import PLAIN, CutShortError, Treatment, blended, narrowed, of_16_bits

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

Pixels = NDArray[np.uint8]

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif"),
)
LIMIT_BYTES = 1 << 30
DAMAGED = "The file is damaged or was cut short: copy or download it again."

# Only these are tried: Pillow's further formats start other programs (EPS) or carry no pixels of their own.
_PLUGINS = {
    "JPEG": "Jpeg",
    "PNG": "Png",
    "WEBP": "WebP",
    "GIF": "Gif",
    "BMP": "Bmp",
    "TIFF": "Tiff",
    "PPM": "Ppm",
    "AVIF": "Avif",
    "JPEG2000": "Jpeg2K",
}
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}  # looked for because decoders fill what is missing with grey
_APP15 = 0xEF  # EXIF is in APP1, and APP15 is passed over
_STARVED = (
    "out of memory",
    "can't allocate",
    "cannot allocate",
    "not enough memory",
    "decoder error -9",
    "insufficient memory",
)
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")  # brands of HEVC pictures
_DEPTH, _PHOTOMETRIC, _ORIENTATION, _PLANES = 258, 262, 274, 284  # tags of TIFF and EXIF
_ROOM = 64 << 20  # bytes that a decoder may want beside the pixels
_INVERSE = {6: 8, 8: 6}
_WIDE = re.compile(r"(?:RGB|RGBA|RGBX);16[LBN]|LA;16B")
_LFS = b"version https://git-lfs.github.com/spec/"
_OTHER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


def find(folder: Path) -> list[Path]:
    """The image files below `folder`, by suffix in any case, sorted; hidden files and folders are left out.

    Raises:
        ImageError: the folder does not exist or cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise ImageError(f"{error.filename} cannot be listed: {error.strerror}", hint="Check the path.") from error

    files: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, n) for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    return sorted(files)


def read(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        ImageError: missing, a folder or device, not permitted, empty, above LIMIT_BYTES, or a Git-LFS pointer.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ImageError(f"{path} is {kind}, not an image", hint="Check the image folder and the file pattern.")
        if status.st_size > LIMIT_BYTES:
            too_large = f"{path} has {status.st_size:,} bytes, above the limit of {LIMIT_BYTES:,}"
            raise ImageError(too_large, hint="Shrink it, or leave it out.")
        data = path.read_bytes() if status.st_size else b""  # files of /proc have no size, and some never end
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist", hint="Check the image folder and the file pattern.") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{path} cannot be read: {reason}", hint="Check the path and its permissions.") from error
    if not data:
        raise ImageError(f"{path} is empty", hint=DAMAGED)
    if data.startswith(_LFS):
        raise ImageError(f"{path} is a Git LFS pointer, not the image", hint="Run `git lfs pull` in its repository.")
    return data


def digest(data: bytes) -> bytes:
    """The 16 bytes that name an image by its content, whatever its file is called."""
    return hashlib.blake2b(data, digest_size=16).digest()


Decoder = Callable[[bytearray, Any], "Pixels | None"]  # (the file, its PIL.ImageFile) → RGB, None to leave it to Pillow


def decode(data: bytes, where: str, *, exif: bool = True, treatment: Treatment = PLAIN, first: Decoder | None = None) -> Pixels:
    """Decode the bytes of an image file to RGB, by `first` where it can, else by Pillow; both give the same pixels.

    Returns uint8 (height, width, 3), C-contiguous, owned by the caller. `exif=False` keeps the stored orientation.

    =========================  ==========================================================================
    grey, 1 bit                repeated in three channels; 1, 2 and 4 bits stretched to 0..255
    palette                    its colours
    alpha, transparent colours as `treatment` says: "drop" leaves colours as stored, "white" and "black" are blended in
    16 bits per channel        round(value / 257), or the treatment's window
    12, 32 bits, floats        refused
    CMYK, YCCK                 Pillow's plain conversion (Adobe's inverted values are turned round first)
    colour profiles, gamma     ignored
    EXIF orientation 1 to 8    applied; anything else counts as 1; TIFF's own orientation tag likewise
    animations, many pages     the first frame or page
    =========================  ==========================================================================

    Raises:
        ImageError: not an image, cut short, damaged, above LIMIT_PIXELS, a colour depth without a settled meaning, or a file
            made to take long (see `budget`).
        MemoryError: there is not enough memory for it now, which says nothing of the file.
        ImportError: what decodes it is not installed whole.
    """
    if treatment.partial:
        return _what_is_there(data, where, treatment, exif=exif)
    size = (0, 0)
    try:
        own = bytearray(data)  # from a bytes object TorchCodec would read under changed warning filters of the process
        block, scan = _conceal_exif(own, where) if own.startswith(b"\xff\xd8") else (b"", 0)
        header = _header(own, where)
        size = header.size
        if own.rfind(_ENDS.get(header.format or "", b""), scan) < 0:  # from the end, where it usually is: 26 µs less
            own = _ended(own, header, where, scan)
            header = _header(own, where)
        if header.format == "JPEG":
            budget.check_scans(own, scan, size, where)
        upright = _upright(header)
        pixels = first(own, header) if first and not _treated(own, header, treatment) else None
        if pixels is None:
            pixels = _by_pillow(own, header, where, treatment)
        if complete.lacks_rows(own, header, pixels, partial(_header, where=where), scan):
            raise CutShortError(f"{where} is cut short: its last rows are missing", hint=DAMAGED)
        if exif:
            turn = 1 if upright else _orientation(block or header.info.get("exif", b""))
        else:
            turn = _INVERSE.get(upright, upright)
        return np.ascontiguousarray(_turned(pixels, turn))
    except (ImageError, MemoryError, ImportError):
        raise
    except Exception as error:  # decoders raise nearly anything on damaged files, SyntaxError and RuntimeError included
        _judge(error, where, size)
        raise CutShortError(f"{where} cannot be decoded: {_reason(error)}", hint=DAMAGED) from error


def _what_is_there(data: bytes, where: str, treatment: Treatment, *, exif: bool) -> Pixels:
    """A picture cut short: its pixels as far as they go, upright where `exif` says so; both implementations decode it this way.

    Raises:
        ImageError: as `decode`, or not one pixel is there.
    """
    from toolkit.images import deadline

    own = bytearray(data)
    block, scan = _conceal_exif(own, where) if own.startswith(b"\xff\xd8") else (b"", 0)
    header = _header(own, where)
    if header.format == "JPEG":
        budget.check_scans(own, scan, header.size, where)
    try:
        pixels = deadline.decode(bytes(own), where, treatment)
    except RuntimeError as error:
        raise ImageError(f"{where} is cut short, and nothing of it can be decoded: {_reason(error)}", hint=DAMAGED) from error
    if (pixels == pixels[0, 0]).all():
        raise ImageError(f"{where} is cut short: not one of its rows is there", hint=DAMAGED)
    upright = _upright(header)
    turn = 1 if exif and upright else _orientation(block or header.info.get("exif", b"")) if exif else 0
    return np.ascontiguousarray(_turned(pixels, turn if exif else _INVERSE.get(upright, upright)))


def describe(data: bytes, where: str) -> tuple[str, str, tuple[int, int]]:
    """Format, Pillow's mode, and (width, height) as stored, from the header alone; pixels only of a JPEG without an end marker.

    Raises:
        ImageError: not an image of a known kind, a damaged header, above LIMIT_PIXELS, or cut short.
    """
    header = _header(bytearray(data), where)
    if data.rfind(_ENDS.get(header.format or "", b"")) < 0:
        own = bytearray(data)
        scan = _conceal_exif(own, where)[1] if header.format == "JPEG" else 0
        _ended(own, header, where, scan)
    return header.format or "", header.mode, header.size


def deep_values(data: bytes, where: str) -> NDArray[np.uint16] | None:
    """The colours of a file of 16 bits per channel as stored, uint16 (height, width, 1 or 3); None: it has 8 or fewer.

    Raises:
        ImageError: as `decode`.
    """
    header = _header(own := bytearray(data), where)
    try:
        wide = _wide(own, header, where)
    except OSError as error:
        raise ImageError(f"{where} cannot be decoded: {_reason(error)}", hint=DAMAGED) from error
    if wide is None:
        return None
    wide = wide[:, :, None] if wide.ndim == 2 else wide
    return wide[:, :, : 1 if wide.shape[2] < 3 else 3]


def frames(data: bytes, where: str) -> int:
    """How many pictures a file has: frames of an animation, pages of a TIFF.

    Raises:
        ImageError: as `describe`.
    """
    try:
        return int(getattr(_header(bytearray(data), where), "n_frames", 1))
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{where} has a damaged list of frames: {_reason(error)}", hint=DAMAGED) from error


@cache
def _openers() -> dict[str, tuple[Any, Any]]:
    """Per format: what opens it and what recognises its first bytes."""
    from PIL import Image

    for plugin in _PLUGINS.values():
        importlib.import_module(f"PIL.{plugin}ImagePlugin")
    openers = {name: Image.OPEN[name] for name in _PLUGINS if name in Image.OPEN}
    with contextlib.suppress(ImportError):  # an extra
        openers["HEIF"] = (importlib.import_module("pillow_heif.as_plugin").HeifImageFile, _heic)
    # The registered opener of JPEG also explores multi-picture files, and warns: the first picture is all we want.
    return openers | {"JPEG": (sys.modules["PIL.JpegImagePlugin"].JpegImageFile, openers["JPEG"][1])}


def _header(data: bytearray, where: str) -> ImageFile:
    """Open with Pillow, which reads no pixels yet; `Image.open` itself would warn, process-wide, above its limit."""
    budget.check_bytes(data, where)
    start = bytes(data[:64])
    known = _openers()
    if _heic(start):  # which Pillow may take for AVIF, by a brand that both have
        known = {name: opener for name, opener in known.items() if name == "HEIF"}
    for opener, recognises in known.values():
        if recognises(start) is True:
            try:
                header: ImageFile = opener(io.BytesIO(data), "")
            except (MemoryError, ImportError):
                raise
            except Exception as error:
                _judge(error, where, (0, 0))
                raise ImageError(
                    f"{where} has a damaged header or no pixels at all ({_reason(error)})", hint=DAMAGED
                ) from error
            budget.check_header(header, where)
            return header
    raise _unrecognised(data, where)


def _heic(start: bytes) -> bool:
    """Whether a file's first bytes say that it is HEIC: by its own brand, or one that it is compatible with."""
    brands = start[8 : min(int.from_bytes(start[:4]), 64)]
    return start[4:8] == b"ftyp" and any(brands[at : at + 4] in _HEIC for at in range(0, len(brands), 4))


def _unrecognised(data: bytearray, where: str) -> ImageError:
    """Say what the file is instead of an image, as far as its first bytes tell."""
    start = data[:512].lstrip().lower()
    if _heic(bytes(data[:64])):
        return ImageError(
            f"{where} is a HEIC image, which the extra `heif` (pillow-heif) reads, and it is not installed",
            hint="Install it, or convert the image to JPEG or PNG.",
            code="heif",
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg", b"{")):
        return ImageError(f"{where} is text (a web page?), not an image", hint="Download the image again.")
    return ImageError(f"{where} is not an image of a known kind ({', '.join(_PLUGINS)})", hint=DAMAGED)


def _conceal_exif(jpeg: bytearray, where: str) -> tuple[bytes, int]:
    """Rename a JPEG's EXIF segments, so that no decoder obeys or warns about them; the first one, and where the scan starts.

    The header is walked because thumbnails inside it hold whole JPEGs with scans and end markers of their own.
    """
    block = b""
    for at, marker, length in budget.segments(jpeg, where):
        if marker == budget.SCAN:
            return block, at
        if marker == APP1:
            body = bytes(jpeg[at + 4 : at + 2 + length])
            block = block or (body if body.startswith(b"Exif\0\0") else b"")
            jpeg[at + 1] = _APP15
    return block, len(jpeg)


def _ended(data: bytearray, header: ImageFile, where: str, scan: int) -> bytearray:
    """A file with its end marker: added to a JPEG that lacks nothing else.

    Raises:
        ImageError: more than the marker is missing.
    """
    if header.format == "JPEG":
        budget.check_scans(data, scan, header.size, where)
        ended = complete.ended(data, scan, partial(_header, where=where))
        if ended is not None:
            return ended
    raise CutShortError(f"{where} is cut short: its end marker is missing", hint=DAMAGED)


def lacks_end(data: bytes) -> bool:
    """Whether a JPEG lacks its end marker; whether anything else is missing, decoding says."""
    if not data.startswith(b"\xff\xd8") or _ENDS["JPEG"] in data[-64:]:
        return False
    try:
        scan = _conceal_exif(bytearray(data), "the image")[1]
    except ImageError:
        return False
    return data.rfind(_ENDS["JPEG"], scan) < 0


def _see_through(header: ImageFile) -> bool:
    """Whether a picture may have transparent pixels, by its header."""
    return header.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in header.info


def _treated(data: bytearray, header: ImageFile, treatment: Treatment) -> bool:
    """Whether a treatment changes what any decoder gives for this file."""
    deep = header.format == "PNG" and data[24] == 16
    return (treatment.alpha != "drop" and _see_through(header)) or (treatment.window is not None and deep)


def _by_pillow(data: bytearray, header: ImageFile, where: str, treatment: Treatment) -> Pixels:
    """Decode with Pillow: here, or in a process with a deadline where it may take long."""
    if not budget.needs_deadline(header, len(data)):
        return _pillow(data, header, where, treatment)
    from toolkit.images import deadline

    return deadline.decode(bytes(data), where, treatment)


def stored(data: bytearray, treatment: Treatment = PLAIN) -> Pixels:
    """RGB pixels in their stored orientation, uint8 (height, width, 3), by Pillow, whatever it takes.

    What is there of a picture cut short is taken if `treatment` is partial: for a process of its own, whose Pillow is told so.

    Raises:
        ImageError: a colour depth without a settled meaning.
    """
    if treatment.partial:
        from PIL import ImageFile

        ImageFile.LOAD_TRUNCATED_IMAGES = True
    return _pillow(data, _header(data, "the image"), "the image", treatment)


def _judge(error: Exception, where: str, size: tuple[int, int]) -> None:
    """Tell a want of memory from damage: decoders in C call both a broken stream.

    Raises:
        MemoryError: the error says so, or there is no room now for what such an image takes.
    """
    if any(words in str(error).lower() for words in _STARVED):
        raise MemoryError(f"not enough memory to decode {where}") from error
    try:
        np.empty(_ROOM + 8 * size[0] * size[1], dtype=np.uint8)
    except MemoryError:
        raise MemoryError(f"not enough memory to decode {where}") from error


def _pillow(data: bytearray, header: ImageFile, where: str, treatment: Treatment) -> Pixels:
    """Decode with Pillow; values of 16 bits are scaled, where Pillow itself would cut or clip them."""
    wide = _wide(data, header, where)
    key = header.info.get("transparency")
    if wide is None:
        header.load()
        if treatment.alpha != "drop" and _see_through(header):
            wide = np.array(header.convert("RGBA")).astype(np.uint16) * np.uint16(257)
            return narrowed(blended(wide, treatment.alpha))
        header.info.pop("transparency", None)  # alpha is dropped whatever it says, and Pillow warns about some kinds
        return np.array(header if header.mode == "RGB" else header.convert("RGB"))
    wide = wide[:, :, None] if wide.ndim == 2 else wide
    bands = wide.shape[2]
    if bands in (1, 3) and key is not None and not isinstance(key, bytes):
        clear = (wide == np.array(key, dtype=np.uint16)).all(axis=2, keepdims=True)
        wide = np.concatenate([wide, np.where(clear, 0, 65535).astype(np.uint16)], axis=2)
    return of_16_bits(wide, 1 if bands < 3 else 3, treatment)


def _wide(data: bytearray, header: ImageFile, where: str) -> NDArray[np.uint16] | None:
    """The values of an image with more than 8 bits per channel, None if it has fewer."""
    rawmodes = [_rawmode(tile.args) for tile in header.tile]
    tags: dict[int, Any] = getattr(header, "tag_v2", {})
    grey = header.mode.startswith("I;16") or (header.mode == "I" and header.format == "PPM")  # PPM: stretched to 65535
    if grey and "I;12" not in rawmodes:
        wide = np.asarray(header).astype(np.uint16)
        return np.subtract(65535, wide) if tags.get(_PHOTOMETRIC) == 0 else wide  # 0: white is zero
    depth = max(tags.get(_DEPTH, (8,)))
    if header.mode not in ("I", "F") and depth <= 8 and not any(raw.endswith((";16L", ";16B")) for raw in rawmodes):
        return None
    if rawmodes and all(_WIDE.fullmatch(raw) for raw in rawmodes) and tags.get(_PLANES, 1) == 1:
        return _both_bytes(header, _header(data, where))
    raise ImageError(
        f"{where} stores its colours as {rawmodes[0] if rawmodes else header.mode}, which has no settled black and white",
        hint="Convert it to 8 or 16 bits per channel, with the same scaling for training and test images.",
    )


def _both_bytes(high: ImageFile, low: ImageFile) -> NDArray[np.uint16]:
    """All 16 bits of a colour image, with its alpha: Pillow keeps one byte of each value, so read once with each byte order."""
    raw = _rawmode(low.tile[0].args)
    # Grey with alpha has four bytes per pixel, as RGBA has: grey high, grey low, alpha high, alpha low.
    other = "RGBA" if raw == "LA;16B" else raw[:-1] + _OTHER_BYTE[raw[-1]]
    low.tile = [tile._replace(args=_with_rawmode(tile.args, other)) for tile in low.tile]
    second = np.asarray(low)
    if raw == "LA;16B":
        both: NDArray[np.uint16] = second[:, :, ::2] * np.uint16(256) + second[:, :, 1::2]
        return both
    wide: NDArray[np.uint16] = np.asarray(high) * np.uint16(256) + second
    return wide if high.mode == "RGBA" else wide[:, :, :3]


def _rawmode(args: Any) -> str:
    """The layout of the stored bytes in the arguments of a Pillow tile; empty when it is not said."""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _with_rawmode(args: Any, rawmode: str) -> Any:
    return (rawmode, *args[1:]) if isinstance(args, tuple) else rawmode


def _upright(header: ImageFile) -> int:
    """TIFF's own orientation, which Pillow applies and then forgets; 0 for other formats, whose EXIF it leaves alone."""
    if header.format != "TIFF":
        return 0
    return int(getattr(header, "tag_v2", {}).get(_ORIENTATION, 1))


def _orientation(exif: bytes) -> int:
    """Orientation in an EXIF block, 1 if absent or damaged; Pillow's own reader warns about what it cannot read."""
    block = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 1
    try:
        start = struct.unpack_from(order + "I", block, 4)[0]
        for entry in range(struct.unpack_from(order + "H", block, start)[0]):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", block, start + 2 + 12 * entry)
            if tag == _ORIENTATION:
                return value if kind == 3 and count == 1 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """A view of the pixels as EXIF orientation 1 to 8 wants them shown."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    rows, columns = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(orientation, (1, 1))
    return pixels[::rows, ::columns]


def _reason(error: Exception) -> str:
    """The first line of a decoder's complaint; TorchCodec appends its source location."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
