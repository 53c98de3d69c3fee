"""The page of one image: the picture, where the answer comes from, and what every model and view says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from toolkit.analysis.pages import figures
from toolkit.analysis.pages.page import Gallery, Page, Section, Table, thumbnail

if TYPE_CHECKING:
    from toolkit.analysis.explanation import Explanation
    from toolkit.workspace.competition import Competition

SIDE = 360  # pixels of the pictures' longer side
MOST = 12  # classes that are shown per answer


def page(found: Explanation) -> Page:
    """The page; every figure on it comes from `found`."""
    best = np.argsort(-found.combined, kind="stable")[:MOST]
    names = [found.classes[c] for c in best]
    rows = [
        (one.model, one.view, one.weight, found.classes[int(one.probabilities.argmax())], *one.probabilities[best].round(4))
        for one in found.answers
    ]
    strength = float(np.abs(found.saliency).max())
    pictures = [
        thumbnail(_enlarged(found.pixels), f"image {found.id} as the first model sees it", "as the model sees it", side=SIDE),
        thumbnail(
            _enlarged(overlay(found.pixels, found.saliency)),
            f"saliency of {found.predicted} on image {found.id}: red parts speak for it, blue ones against it",
            f"red speaks for {found.predicted}, blue against; strongest place {strength:.3f}",
            side=SIDE,
        ),
    ]
    return Page(
        f"{found.id}: {found.predicted} ({found.combined.max():.1%})",
        f"target {found.target}, vote {found.vote}, {len(found.answers)} answers",
        [
            Section(
                "Picture",
                [Gallery(pictures, side=SIDE)],
                "Occlusion: how far the probability falls where a patch covers it.",
            ),
            Section("The vote", [figures.bars("Combined probability", names, {"p": [float(found.combined[c]) for c in best]})]),
            Section("Each model and view", [Table(("model", "view", "weight", "says", *names), rows)]),
        ],
    )


def write(competition: Competition, found: Explanation) -> Path:
    """Write reports/explain-<id>.html.

    Raises:
        StoreError: it cannot be written.
    """
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in found.id)
    return page(found).write(competition.path("reports", f"explain-{safe}.html"))


def overlay(pixels: NDArray[np.uint8], saliency: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The picture in grey under red (for) and blue (against), each as strong as its share of the largest value."""
    grey = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    share = saliency / max(float(np.abs(saliency).max()), 1e-9)
    colour = np.where(share[:, :, None] > 0, (215.0, 50.0, 40.0), (45.0, 95.0, 210.0))
    strength = 0.75 * np.abs(share)[:, :, None]
    return np.asarray(np.rint(grey * (1 - strength) + colour * strength), dtype=np.uint8)


def _enlarged(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Small inputs grow by whole pixels, so that one sees what the model sees."""
    factor = max(1, SIDE // max(pixels.shape[:2]))
    return np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1)
