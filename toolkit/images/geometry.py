"""Which part of a decoded image a model sees under each view, at which size; resizing is Pillow's unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from toolkit.core.cards import WHOLE, Preprocess
from toolkit.errors import DataError, ImageError
from toolkit.images import decode
from toolkit.images.boxes import Box
from toolkit.images.budget import LIMIT_PIXELS, LIMIT_SIDE
from toolkit.images.decode import Pixels
from toolkit.images.treatments import Treatment
from toolkit.images.views import Cut, needs_square, turn_of

Resize = Callable[[Pixels, tuple[int, int], Preprocess], Pixels]  # (image, (height, width), its filter and antialias) → image

_QUARTERS = {"rot90": 1, "rot180": 2, "rot270": 3}
_AXES = {"hflip": -1, "vflip": -2}  # width, height


def resize_by_pillow(image: Pixels, size: tuple[int, int], preprocess: Preprocess) -> Pixels:
    """Resize with Pillow, or by hand where Pillow cannot: without antialias."""
    return _pillow(image, size, preprocess) if preprocess.antialias else _pointwise(image, size, preprocess)


def cut_all(
    data: bytes,
    where: str,
    wanted: Mapping[Preprocess, Sequence[Cut]],
    boxes: Mapping[str, Box | None],
    *,
    decoder: Callable[..., Pixels] = decode.decode,
    resize: Resize = resize_by_pillow,
    partial: bool = False,
) -> dict[tuple[Preprocess, Cut], Pixels]:
    """One image file's bytes as every model wants them under every view, decoded once per orientation and treatment.

    `boxes` has the image's own, by the names that the models say.
    With `partial` it is taken as far as it is there. Each value is uint8 (3, height, width).

    Raises:
        ImageError: names the file and what is wrong with it.
    """
    ways = {(preprocess.orientation, Treatment.of(preprocess, partial=partial)) for preprocess in wanted}
    decoded = {way: decoder(data, where, exif=way[0] == "exif", treatment=way[1]) for way in ways}
    pixels = {}
    for preprocess, views in wanted.items():
        box = boxes[preprocess.box] if preprocess.box else None
        image = decoded[preprocess.orientation, Treatment.of(preprocess, partial=partial)]
        parts = cuts(image, preprocess, views, box=box, where=where, resize=resize)
        pixels.update({(preprocess, cut): part for cut, part in zip(views, parts, strict=True)})
    return pixels


def cuts(
    image: Pixels,
    preprocess: Preprocess,
    wanted: Sequence[Cut],
    *,
    box: Box | None = None,
    where: str = "the image",
    resize: Resize = resize_by_pillow,
) -> list[Pixels]:
    """Decoded RGB (height, width, 3) at the size that a model takes, once for every cut that views ask for.

    Each is uint8 (3, height, width), C-contiguous, and shares no memory with `image`. Cuts that need the same resized image
    share it.

    Raises:
        ImageError: so long and thin that resizing would need more than LIMIT_PIXELS, or a box outside of the image.
    """
    image = _framed(image, preprocess, box, where)
    resized: dict[tuple[int, int], Pixels] = {}
    parts = []
    for cut in wanted:
        size = _resized(image.shape[0], image.shape[1], preprocess, cut)
        _check(image, size, where)
        if size not in resized:
            resized[size] = _resize(image, size, preprocess, resize)
        pixels = _window(resized[size], preprocess.size, cut.corner)
        if (cut.multiply, cut.add) != (1, 0):
            pixels = _levels(cut)[pixels]
        parts.append(np.array(pixels.transpose(2, 0, 1), order="C"))
    return parts


def _check(image: Pixels, size: tuple[int, int], where: str) -> None:
    """Refuse what resizing would need too much memory for: its result, or the step between width and height."""
    height, width = image.shape[:2]
    if size[0] * size[1] > LIMIT_PIXELS or max(size) > LIMIT_SIDE:
        raise ImageError(
            f"{where} is too long and thin ({width:,} × {height:,}): with a shorter side of "
            f"{min(size)} it would have {size[0] * size[1]:,} pixels",
            hint="Crop the file, or use resize = 'squash'.",
        )
    if size != (height, width) and height * size[1] > LIMIT_PIXELS:
        raise ImageError(
            f"{where} is too long and thin ({width:,} × {height:,}): resizing its width to {size[1]:,} makes "
            f"{height * size[1]:,} pixels",
            hint="Crop the file, or leave it out.",
        )


def turned(pixels: Pixels, turn: str) -> Pixels:
    """A batch (N, C, H, W) turned, by indexing alone: the same pixels that `tensor_views.apply` gives through ttach.

    Raises:
        DataError: an unknown step, a view that is cut from the decoded image, or a quarter turn of images that are not square.
    """
    if needs_square(turn) and pixels.shape[-1] != pixels.shape[-2]:
        raise DataError(f"view {turn!r} needs square images, these are {pixels.shape[-2]}×{pixels.shape[-1]}")
    for step in turn_of(turn).split("+"):
        if step in _QUARTERS:
            pixels = np.rot90(pixels, _QUARTERS[step], axes=(-2, -1))
        elif step in _AXES:
            pixels = np.flip(pixels, _AXES[step])
    return np.ascontiguousarray(pixels)


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


def _resize(image: Pixels, size: tuple[int, int], preprocess: Preprocess, resize: Resize) -> Pixels:
    if size == image.shape[:2]:
        return image
    return _nearest(image, size) if preprocess.interpolation == "nearest" else resize(image, size, preprocess)


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
