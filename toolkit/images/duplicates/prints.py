"""What is kept of every picture to find its doubles: a digest of its bytes, its sides, a small grey copy."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.base.runners.threads import spread
from toolkit.core.cards import Preprocess
from toolkit.errors import ImageError
from toolkit.images import render

SIDE = 32  # pixels of the grey thumbnail that is hashed and compared
FLAT = 2.0  # grey levels of standard deviation below which a picture has nothing to compare

_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)[:, None, None]

Report = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Prints:
    """What is kept of N pictures, in the order of `paths`.

    `digests` are those of their bytes (None where unreadable: see `bad`), `sides` int32 [N, 2] height and width in pixels,
    `thumbs` grey uint8 [N, 32, 32].
    """

    paths: tuple[Path, ...]
    digests: tuple[bytes | None, ...]
    sides: NDArray[np.int32]
    thumbs: NDArray[np.uint8]
    bad: dict[int, str]


def prints(paths: Sequence[Path], *, progress: Report | None = None) -> Prints:
    """Read every picture once; what cannot be read is noted and left out."""
    thumbs, sides = np.zeros((len(paths), SIDE, SIDE), dtype=np.uint8), np.zeros((len(paths), 2), dtype=np.int32)

    def print_of(path: Path) -> tuple[bytes, tuple[int, int], NDArray[np.uint8]] | str:
        try:
            data = render.read(path)
            decoded = render.decode(data, str(path), implementation="pillow")
            return render.digest(data), decoded.shape[:2], thumb(decoded, str(path))
        except ImageError as error:
            return error.message

    digests: list[bytes | None] = []
    bad: dict[int, str] = {}
    for place, printed in enumerate(spread(print_of, paths, os.cpu_count() or 1)):
        if isinstance(printed, str):
            bad[place] = printed
            digests.append(None)
        else:
            digests.append(printed[0])
            sides[place], thumbs[place] = printed[1:]
        if progress and (place % 64 == 63 or place + 1 == len(paths)):
            progress(place + 1, len(paths))
    return Prints(tuple(paths), tuple(digests), sides, thumbs, bad)


def thumb(decoded: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
    """The grey thumbnail uint8 [32, 32] of RGB pixels [H, W, 3] that is hashed and compared."""
    small = render.render(decoded, Preprocess((SIDE, SIDE)), implementation="pillow", where=where)
    return np.asarray(np.rint((small * _GREY).sum(axis=0)), dtype=np.uint8)
