"""From image files to the uint8 batches that models take: the one place where evaluation pixels are made."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.core.cards import WHOLE, Preprocess
from toolkit.errors import ImageError
from toolkit.images.boxes import Box
from toolkit.images.decode import DAMAGED, IMPLEMENTATIONS, LIMIT_PIXELS, Pixels, decode, known
from toolkit.images.views import Cut

__all__ = [
    "IMPLEMENTATIONS",
    "LIMIT_BYTES",
    "LIMIT_PIXELS",
    "SUFFIXES",
    "Pixels",
    "cuts",
    "decode",
    "digest",
    "find",
    "implementation_tag",
    "load",
    "read",
    "render",
]

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
LIMIT_BYTES = 1 << 30
_LFS = b"version https://git-lfs.github.com/spec/"


def find(folder: Path) -> list[Path]:
    """The image files below `folder`, by suffix in any case, sorted; hidden files and folders are left out.

    Raises:
        ImageError: the folder does not exist or cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise ImageError(f"{error.filename} cannot be listed: {error.strerror}", hint="Check the path.") from error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, n) for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    return sorted(found)


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
        data = path.read_bytes()
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


def implementation_tag(implementation: str = "fast") -> str:
    """The implementation with the versions of the libraries that make its pixels: part of the store's key."""
    known(implementation)
    packages = {"fast": ("torchcodec", "torchvision", "torch", "pillow"), "pillow": ("pillow",)}[implementation]
    versions = (f"{name}{importlib.metadata.version(name).split('+')[0]}" for name in packages)
    return f"{implementation}:{'+'.join(versions)}"


def load(path: Path, preprocess: Preprocess, *, box: Box | None = None, implementation: str = "fast") -> Pixels:
    """Read, decode and render one file; `box` is its own of the name that `preprocess` says.

    Returns uint8 (3, height, width), C-contiguous. Safe in any number of threads; the work is done without the GIL.

    Raises:
        ImageError: names the file and what is wrong with it.
    """
    exif = preprocess.orientation == "exif"
    pixels = decode(read(path), str(path), implementation=implementation, exif=exif)
    return render(pixels, preprocess, box=box, implementation=implementation, where=str(path))


def render(
    image: Pixels,
    preprocess: Preprocess,
    *,
    box: Box | None = None,
    implementation: str = "fast",
    where: str = "the image",
) -> Pixels:
    """Bring decoded RGB (height, width, 3) to the size that a model takes.

    Returns uint8 (3, height, width), C-contiguous, never sharing memory with `image`. The orientation was settled in
    `decode`. One thread does the work, even in torch, so that callers may run one `render` per core. The implementations
    differ by at most 1 level when shrinking with antialias and 2 otherwise; "nearest" is the same to the bit.

    Raises:
        ImageError: so long and thin that a centre crop would need more than LIMIT_PIXELS, or a box outside of the image.
    """
    return cuts(image, preprocess, [Cut()], box=box, implementation=implementation, where=where)[0]


def cuts(
    image: Pixels,
    preprocess: Preprocess,
    wanted: Sequence[Cut],
    *,
    box: Box | None = None,
    implementation: str = "fast",
    where: str = "the image",
) -> list[Pixels]:
    """As `render`, once for every cut that views ask for; cuts that need the same resized image share it.

    Raises:
        ImageError: see `render`.
    """
    known(implementation)
    image = _framed(image, preprocess, box, where)
    resized: dict[tuple[int, int], Pixels] = {}
    found = []
    for cut in wanted:
        size = _resized(image.shape[0], image.shape[1], preprocess, cut)
        if size[0] * size[1] > LIMIT_PIXELS:
            raise ImageError(
                f"{where} is too long and thin ({image.shape[1]:,} × {image.shape[0]:,}): with a shorter side of "
                f"{min(size)} it would have {size[0] * size[1]:,} pixels",
                hint="Crop the file, or use resize = 'squash'.",
            )
        if size not in resized:
            resized[size] = _resize(image, size, preprocess, implementation)
        pixels = _window(resized[size], preprocess.size, cut.corner)
        if (cut.multiply, cut.add) != (1, 0):
            pixels = _levels(cut)[pixels]
        found.append(np.array(pixels.transpose(2, 0, 1), order="C"))
    return found


def _framed(image: Pixels, preprocess: Preprocess, box: Box | None, where: str) -> Pixels:
    """The part of the image that counts, edges rounded to the nearest between two pixels; nothing is copied."""
    if box is None and preprocess.region == WHOLE:
        return image
    height, width = image.shape[:2]
    box = box or Box(0, 0, 1, 1, share=True)
    scale = (width, height) if box.share else (1, 1)
    edges = []
    for axis, side in enumerate((width, height)):
        start, stop = box[axis] * scale[axis], box[axis + 2] * scale[axis]
        shares = (preprocess.region[axis], preprocess.region[axis + 2])
        edges += [int(np.clip(np.floor(start + share * (stop - start) + 0.5), 0, side)) for share in shares]
    left, right, top, bottom = edges
    if left >= right or top >= bottom:
        raise ImageError(
            f"{where}: nothing of its {width:,} × {height:,} pixels lies in the box "
            f"{tuple(box[:4])}{f' of {preprocess.framed!r}' if preprocess.framed else ''}",
            hint="Boxes are those of the upright image: check the table's form and unit in competition.toml.",
        )
    return image[top:bottom, left:right]


def _resized(height: int, width: int, preprocess: Preprocess, cut: Cut) -> tuple[int, int]:
    """Height and width before the crop; the longer side is cut to an integer as torchvision's Resize does."""
    if preprocess.shorter is None:
        tall, wide = (_enlarged(side, side, cut) for side in preprocess.size)
        return tall, wide
    shorter = _enlarged(preprocess.shorter, max(preprocess.size), cut)
    if height <= width:
        return shorter, int(shorter * width / height)
    return int(shorter * height / width), shorter


def _enlarged(side: int, crop: int, cut: Cut) -> int:
    """The side that is resized to: at least 8/7 of the crop where corners are cut, then scaled and truncated as in ttach."""
    side = max(side, -(-crop * 8 // 7)) if cut.corner else side
    return max(int(side * cut.scale), 1)


def _resize(image: Pixels, size: tuple[int, int], preprocess: Preprocess, implementation: str) -> Pixels:
    if size == image.shape[:2]:
        return image
    if preprocess.interpolation == "nearest":
        return _nearest(image, size)
    if implementation == "fast":
        return _torchvision(image, size, preprocess)
    return _pillow(image, size, preprocess) if preprocess.antialias else _pointwise(image, size, preprocess)


def _window(image: Pixels, size: tuple[int, int], corner: str) -> Pixels:
    """Cut (height, width) at the centre or in a corner, from an image whose edge is repeated where it is too small."""
    short = [max(wanted - have, 0) for wanted, have in zip(size, image.shape[:2], strict=True)]
    if any(short):
        image = np.pad(image, [(n // 2, n - n // 2) for n in short] + [(0, 0)], mode="edge")
    spare = [have - wanted for have, wanted in zip(image.shape[:2], size, strict=True)]
    top, left = (round(n / 2) for n in spare)  # to even, as torchvision's CenterCrop
    if corner:
        top, left = spare[0] * ("b" in corner), spare[1] * ("r" in corner)
    return image[top : top + size[0], left : left + size[1]]


def _levels(cut: Cut) -> Pixels:
    """What becomes of each of the 256 levels."""
    levels: Pixels = np.clip(np.rint(np.arange(256) * cut.multiply + cut.add), 0, 255).astype(np.uint8)
    return levels


def _torchvision(image: Pixels, size: tuple[int, int], preprocess: Preprocess) -> Pixels:
    import torch
    from torchvision.transforms.v2 import InterpolationMode, functional

    if not image.flags.writeable or min(image.strides) < 0:  # torch warns about the first and refuses the second
        image = image.copy()
    resized = functional.resize(
        torch.from_numpy(image).permute(2, 0, 1),
        list(size),
        interpolation=InterpolationMode(preprocess.interpolation),
        antialias=preprocess.antialias,
    )
    # A view: torch's own copy to another layout would start a pool of threads inside each caller's thread.
    out: Pixels = resized.permute(1, 2, 0).numpy()
    return out


def _pillow(image: Pixels, size: tuple[int, int], preprocess: Preprocess) -> Pixels:
    """Width first, then height, as torch does: Pillow 13 sometimes turns this round, and overshoots clip differently."""
    from PIL import Image

    resample = Image.Resampling[preprocess.interpolation.upper()]
    wide = Image.fromarray(image).resize((size[1], image.shape[0]), resample)
    return np.asarray(wide.resize((size[1], size[0]), resample))


def _nearest(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Pixels under the centres of the new ones, in whole numbers: libraries differ where a centre meets an edge."""
    rows, columns = ((2 * np.arange(new) + 1) * image.shape[axis] // (2 * new) for axis, new in enumerate(size))
    out: Pixels = image[rows[:, None], columns]
    return out


def _pointwise(image: Pixels, size: tuple[int, int], preprocess: Preprocess) -> Pixels:
    """Interpolate without antialiasing, which Pillow's resize cannot; width first, rounded between, as torch does."""
    cubic = preprocess.interpolation == "bicubic"
    for axis in (1, 0):
        old, new = image.shape[axis], size[axis]
        if old == new:
            continue
        centre = (np.arange(new) + 0.5) * old / new - 0.5
        first = np.floor(centre).astype(np.int64)
        total = np.zeros(1, np.float32)
        for tap in (-1, 0, 1, 2) if cubic else (0, 1):
            weight = _kernel(np.abs(centre - first - tap), cubic=cubic).astype(np.float32)
            near = np.take(image, np.clip(first + tap, 0, old - 1), axis=axis)
            total = total + near * (weight[:, None] if axis == 1 else weight[:, None, None])
        image = np.clip(np.rint(total), 0, 255).astype(np.uint8)
    return image


def _kernel(x: NDArray[np.float64], *, cubic: bool) -> NDArray[np.float64]:
    """Weight of a pixel at distance x; cubic with torch's coefficient, -0.75."""
    if not cubic:
        return 1 - x
    a = -0.75
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, far)
