"""The page of one image: the picture, where the answer comes from, and what every model and view says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from toolkit.analysis.pages import figures
from toolkit.analysis.pages.page import Gallery, Page, PageTable, Section, thumbnail
from toolkit.errors import counted

if TYPE_CHECKING:
    from toolkit.analysis.explanation import Explanation
    from toolkit.workspace.competition import Competition

SIDE = 360  # pixels of the pictures' longer side
MOST = 12  # classes that are shown per answer


def page(explanation: Explanation) -> Page:
    """The page; every figure on it comes from `found`."""
    best = np.argsort(-explanation.combined, kind="stable")[:MOST]
    names = [explanation.classes[c] for c in best]
    rows = [
        (
            answer.model,
            answer.view,
            answer.weight,
            explanation.classes[int(answer.probabilities.argmax())],
            *answer.probabilities[best].round(4),
        )
        for answer in explanation.answers
    ]
    strength = float(np.abs(explanation.saliency).max())
    pictures = [
        thumbnail(
            _enlarged(explanation.pixels),
            f"image {explanation.id} as the first model sees it",
            "as the model sees it",
            side=SIDE,
        ),
        thumbnail(
            _enlarged(overlay(explanation.pixels, explanation.saliency)),
            f"saliency of {explanation.predicted} on image {explanation.id}: red parts speak for it, blue ones against it",
            f"red speaks for {explanation.predicted}, blue against; strongest place {strength:.3f}",
            side=SIDE,
        ),
    ]
    return Page(
        f"{explanation.id}: {explanation.predicted} ({explanation.combined.max():.1%})",
        f"target {explanation.target}, vote {explanation.vote}, {counted(len(explanation.answers), 'answers')}",
        [
            Section(
                "Picture",
                [Gallery(pictures, side=SIDE)],
                "Occlusion: how far the probability falls where a patch covers it.",
            ),
            Section(
                "The vote", [figures.bars("Combined probability", names, {"p": [float(explanation.combined[c]) for c in best]})]
            ),
            Section("Each model and view", [PageTable(("model", "view", "weight", "says", *names), rows)]),
        ],
    )


def write(competition: Competition, explanation: Explanation) -> Path:
    """Write reports/explain-<id>.html.

    Raises:
        StoreError: it cannot be written.
    """
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in explanation.id)
    return page(explanation).write(competition.path("reports", f"explain-{safe}.html"))


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
