"""What becomes of pixels that do not say themselves how they are shown: transparent ones, and values of 16 bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.core.cards import Alpha, Preprocess, Window
from toolkit.errors import ImageError

Pixels = NDArray[np.uint8]


class CutShortError(ImageError):
    """A picture whose pixels are not all there; what is there can be decoded (see `Treatment.partial`)."""


@dataclass(frozen=True)
class Treatment:
    """How a file is decoded beyond what it says.

    `alpha` lies behind transparent pixels; "drop" leaves colours as stored. `window` has the values of 16-bit files that become
    black and white; None: 0 and 65535. With `partial` what is there of a picture cut short is taken, and the rest is what the
    decoder leaves there (grey of JPEG, black of PNG).
    """

    alpha: Alpha = "drop"
    window: Window | None = None
    partial: bool = False

    @classmethod
    def of(cls, preprocess: Preprocess, *, partial: bool = False) -> Treatment:
        """That of a model."""
        return cls(preprocess.alpha, preprocess.window, partial)


PLAIN = Treatment()


def blended(wide: NDArray[np.uint16], alpha: Alpha) -> NDArray[np.uint16]:
    """Colours over white or black, uint16 (height, width, 1 or 3), of those with alpha as their last channel; rounded."""
    share = wide[:, :, -1:].astype(np.uint64)
    behind = np.uint64(65535 if alpha == "white" else 0)
    over = wide[:, :, :-1] * share + behind * (65535 - share)
    return ((over + 32767) // 65535).astype(np.uint16)


def narrowed(wide: NDArray[np.uint16]) -> Pixels:
    """Values of 16 bits as 8 bits: round(value / 257)."""
    return ((wide.astype(np.uint32) + 128) // 257).astype(np.uint8)


def of_16_bits(wide: NDArray[np.uint16], colours: int, treatment: Treatment) -> Pixels:
    """RGB, uint8 (height, width, 3), of values uint16 (height, width, bands), of which the first `colours` are no alpha."""
    if treatment.window is not None:
        low, high = treatment.window
        inside = np.clip(wide[:, :, :colours], low, high).astype(np.uint64) - np.uint64(low)
        scaled = (inside * np.uint64(65535) + np.uint64((high - low) // 2)) // np.uint64(high - low)
        wide = np.concatenate([scaled.astype(np.uint16), wide[:, :, colours:]], axis=2)
    see_through = treatment.alpha != "drop" and wide.shape[2] > colours
    narrow = narrowed(blended(wide, treatment.alpha) if see_through else wide[:, :, :colours])
    return np.repeat(narrow, 3, axis=2) if colours == 1 else narrow
