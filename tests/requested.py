"""Requests made of keywords, as tests write them: `ensemble(competition, paths, tta="flip", device="cpu")`."""

from __future__ import annotations

from dataclasses import fields

from toolkit.blending.combination import Combination
from toolkit.ensemble.predict_images import ImageSource, predict_images
from toolkit.ensemble.run import run_ensemble
from toolkit.inference.execution import Execution


def parted(choices, *kinds):
    """Keywords as one request of each kind, taken out of `choices`; what no kind has is left there."""
    return [kind(**{f.name: choices.pop(f.name) for f in fields(kind) if f.name in choices}) for kind in kinds]


def ensemble(competition, paths, **choices):
    """`run_ensemble`."""
    requests = parted(choices, Combination, Execution)
    return run_ensemble(competition, paths, *requests, **choices)


def predicted(competition, paths, on, output, **choices):
    """`predict_images`."""
    source, *requests = parted({"on": on} | choices, ImageSource, Combination, Execution)
    return predict_images(competition, paths, source, output, *requests, each=choices.get("each", False))
