"""The same ensemble by torch: pixels as the card says, normalised, through the network that was exported."""

from __future__ import annotations

import numpy as np
import torch

from tests.requested import ensemble
from toolkit.images.render import load
from toolkit.inference.exports import find_exports
from toolkit.workspace.competition import Competition


def run(root, patterns=("folds/*.onnx",), **choices):
    return ensemble(Competition.read(root), find_exports(patterns, base=root), device="cpu", **choices)


def normalised(pixels, said):
    mean, std = (torch.tensor(x).reshape(1, 3, 1, 1) for x in (said.mean, said.std))
    return (torch.from_numpy(pixels) / 255 - mean) / std


def pixels_of(root, said):
    return np.stack([load(path, said.preprocess) for _, path in Competition.read(root).images("test")])
