"""A workspace of real images that ships with scikit-learn: 1,797 handwritten digits, a fifth held out for the demo."""

from __future__ import annotations

import io
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import files, splitting
from toolkit.competition import FILE, Competition, Images, Target
from toolkit.errors import CompetitionError
from toolkit.folds import Split

TARGET = "label"
SPLIT = "split.csv"
TRUTH = "truth.csv"  # the test labels that a real competition keeps; nothing but the demo's last table reads them
HELD_OUT = 0.2
_ASIDE = ".making-"


def make_workspace(root: Path) -> Competition:
    """The digits competition in `root`: 1,437 training and 360 test images (grey PNG, 8 × 8), tables, split and toml.

    An existing workspace is read and left as it is. A new one is made aside and moved in, competition.toml last.

    Raises:
        CompetitionError: the folder holds other things.
        StoreError: the folder cannot be written.
    """
    if (root / FILE).exists():
        return Competition.read(root)
    with files.explained(root):
        root.mkdir(parents=True, exist_ok=True)
        strangers = [path.name for path in root.iterdir() if not path.name.startswith(_ASIDE)]
    if strangers:
        raise CompetitionError(
            f"{root} has no {FILE} but other files ({min(strangers)!r}), so the digits are not put there",
            hint="Choose a new or empty folder; for a competition of your own: toolkit init.",
        )
    aside = root / f"{_ASIDE}{secrets.token_hex(4)}"
    try:
        _fill(aside)
        with files.explained(root):
            for name in ("data", "sample_submission.csv", TRUTH, FILE):
                (aside / name).replace(root / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Competition.read(root)


def make_split(competition: Competition) -> Split:
    """The split of the workspace: read from split.csv, or five stratified folds made and written there."""
    path = competition.path(SPLIT)
    if not path.exists():
        splitting.for_competition(competition).write(path)
    return splitting.load(competition)


def _fill(root: Path) -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = [str(digit) for digit in bunch.target]
    train, test = train_test_split(np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=0)
    train, test = np.sort(train), np.sort(test)
    for part, rows in (("train", train), ("test", test)):
        for row in rows:
            _write_png(root / "data" / part / f"{row:04d}.png", pixels[row])
    _write_labels(root / "data" / "train.csv", train, labels)
    _write_labels(root / TRUTH, test, labels)
    _write_labels(root / "sample_submission.csv", test, ["0"] * len(labels))
    competition = Competition(
        root=root,
        name="digits",
        metric="accuracy",
        targets=(Target(TARGET, "multiclass", tuple("0123456789")),),
        train=Images("data/train", "{id}.png", "data/train.csv"),
        test=Images("data/test", "{id}.png"),
    )
    files.write_text(root / FILE, competition.to_toml())


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    from PIL import Image

    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    files.write(path, lambda file: file.write(encoded.getvalue()))


def _write_labels(path: Path, rows: NDArray[np.int64], labels: Sequence[str]) -> None:
    lines = [f"{row:04d},{labels[row]}" for row in rows]
    files.write_text(path, "\n".join(["id,label", *lines]) + "\n")
