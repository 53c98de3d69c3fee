"""From image files to the uint8 batches that models take: the one place where evaluation pixels are made, in two ways."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolkit.core.cards import Preprocess
from toolkit.images import decode as decoding
from toolkit.images import geometry, torch_pixels
from toolkit.images.boxes import Box
from toolkit.images.budget import LIMIT_PIXELS
from toolkit.images.decode import LIMIT_BYTES, SUFFIXES, Pixels, digest, find, read
from toolkit.images.treatments import PLAIN, Treatment
from toolkit.images.views import Cut

__all__ = [
    "IMPLEMENTATIONS",
    "LIMIT_BYTES",
    "LIMIT_PIXELS",
    "SUFFIXES",
    "Pixels",
    "cut_all",
    "cuts",
    "decode",
    "digest",
    "find",
    "implementation_tag",
    "load",
    "read",
    "render",
]

# what makes the pixels: how images are decoded before Pillow is asked, how they are resized, whose versions count
_WAYS = {
    "fast": (torch_pixels.decode, torch_pixels.resize, ("torchcodec", "torchvision", "torch", "pillow")),
    "pillow": (None, geometry.resize_by_pillow, ("pillow",)),
}
IMPLEMENTATIONS = tuple(_WAYS)


def known(implementation: str) -> None:
    """Refuse the name of an implementation that does not exist.

    Raises:
        ValueError: lists those that do.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, not {implementation!r}")


def implementation_tag(implementation: str = "fast") -> str:
    """The implementation with the versions of the libraries that make its pixels: part of the store's key."""
    known(implementation)
    versions = (f"{name}{importlib.metadata.version(name).split('+')[0]}" for name in _WAYS[implementation][2])
    return f"{implementation}:{'+'.join(versions)}"


def decode(data: bytes, where: str, *, implementation: str = "fast", exif: bool = True, treatment: Treatment = PLAIN) -> Pixels:
    """Decode the bytes of an image file to RGB; both implementations give the same pixels.

    Returns uint8 (height, width, 3), C-contiguous, owned by the caller; see `toolkit.images.decode` for what becomes of depths,
    palettes and profiles. "fast" decodes JPEG, PNG and WebP with TorchCodec; what that refuses, and everything else, is
    Pillow's, so that "fast" reads whatever "pillow" reads (and a few damaged WebP more).

    Raises:
        ImageError: not an image, cut short, damaged, above LIMIT_PIXELS, or a colour depth without a settled meaning.
    """
    known(implementation)
    return decoding.decode(data, where, exif=exif, treatment=treatment, first=_WAYS[implementation][0])


def load(path: Path, preprocess: Preprocess, *, box: Box | None = None, implementation: str = "fast") -> Pixels:
    """Read, decode and render one file; `box` is its own of the name that `preprocess` says.

    Returns uint8 (3, height, width), C-contiguous. Safe in any number of threads; the work is done without the GIL.

    Raises:
        ImageError: names the file and what is wrong with it.
    """
    exif = preprocess.orientation == "exif"
    pixels = decode(read(path), str(path), implementation=implementation, exif=exif, treatment=Treatment.of(preprocess))
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
        ImageError: so long and thin that resizing would need more than LIMIT_PIXELS, or a box outside of the image.
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
    return geometry.cuts(image, preprocess, wanted, box=box, where=where, resize=_WAYS[implementation][1])


def cut_all(
    data: bytes,
    where: str,
    wanted: Mapping[Preprocess, Sequence[Cut]],
    boxes: Mapping[str, Box | None],
    *,
    implementation: str = "fast",
    partial: bool = False,
) -> dict[tuple[Preprocess, Cut], Pixels]:
    """One image file's bytes as every model wants them under every view, decoded once per orientation and treatment.

    With `partial` it is a picture cut short, taken as far as it is there.

    Raises:
        ImageError: see `decode` and `render`.
    """
    known(implementation)
    decoder = functools.partial(decode, implementation=implementation)
    resize = _WAYS[implementation][1]
    return geometry.cut_all(data, where, wanted, boxes, decoder=decoder, resize=resize, partial=partial)
