"""Workspaces of real images that ship with scikit-learn: 1,797 handwritten digits, one or several to a picture."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base import files
from toolkit.base.text import csv_text
from toolkit.errors import CompetitionError
from toolkit.workspace import toml_update
from toolkit.workspace.competition import FILE, Competition, Images, Target
from toolkit.workspace.make_split import load_or_make
from toolkit.workspace.split import Split

TARGET = "label"
TRUTH = "truth.csv"  # the test labels that a real competition keeps; nothing but the demo's last table reads them
HELD_OUT = 0.2


def make_workspace(root: Path) -> Competition:
    """The digits competition in `root`: 1,437 training and 360 test images (grey PNG, 8 × 8), tables, split and toml.

    An existing workspace is read and left as it is. A new one is made aside and moved in, competition.toml last.

    Raises:
        CompetitionError: the folder holds other things.
        StoreError: the folder cannot be written.
    """
    return _make(root, _fill)


def make_multilabel(root: Path) -> Competition:
    """A multilabel competition in `root`: which digits, one to three, are in a picture (grey PNG, 24 × 24).

    Every digit is in one picture only, so that no fold has seen what it is scored on: 724 training pictures, and 179 test
    pictures of the digits that `make_workspace` holds out. An existing workspace is read and left as it is.

    Raises:
        CompetitionError: the folder holds other things.
        StoreError: the folder cannot be written.
    """
    return _make(root, _fill_multilabel)


def _make(root: Path, fill: Callable[[Path], None]) -> Competition:
    if (root / FILE).exists():
        return Competition.read(root)
    with files.explained(root):
        root.mkdir(parents=True, exist_ok=True)
        strangers = [path.name for path in root.iterdir() if not path.name.startswith(files.ASIDE)]
    if strangers:
        raise CompetitionError(
            f"{root} has no {FILE} but other files ({min(strangers)!r}), so the digits are not put there",
            hint="Choose a new or empty folder; for a competition of your own: toolkit init.",
        )
    with files.aside(root, ["data", "sample_submission.csv", TRUTH, FILE]) as folder:
        fill(folder)
    return Competition.read(root)


def make_split(competition: Competition) -> Split:
    """The split of the workspace: read from split.csv, or five stratified folds made and written there."""
    return load_or_make(competition)


def _fill(root: Path) -> None:
    pixels, labels, train, test = _load()
    for part, rows in (("train", train), ("test", test)):
        for row in rows:
            _write_png(root / "data" / part / f"{row:04d}.png", pixels[row])
    names = [f"{row:04d}" for row in range(len(labels))]
    csv_text.write(root / "data" / "train.csv", ["id", TARGET], ((names[row], labels[row]) for row in train))
    csv_text.write(root / TRUTH, ["id", TARGET], ((names[row], labels[row]) for row in test))
    csv_text.write(root / "sample_submission.csv", ["id", TARGET], ((names[row], "0") for row in test))
    _describe(root, "digits", "accuracy", Target(TARGET, "multiclass", tuple("0123456789")))


def _fill_multilabel(root: Path) -> None:
    pixels, labels, *parts = _load()
    rng = np.random.default_rng(0)
    tables: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for (part, table), rows in zip(tables.items(), parts, strict=True):
        ends = np.cumsum(rng.integers(1, 4, len(rows)))
        for taken in np.split(rng.permutation(rows), ends[ends < len(rows)]):
            name = f"{len(tables['train']) + len(tables['test']):04d}"
            table.append((name, " ".join(sorted({labels[row] for row in taken}))))
            _write_png(root / "data" / part / f"{name}.png", _picture(rng, pixels[taken]))
    csv_text.write(root / "data" / "train.csv", ["id", "digits"], tables["train"])
    csv_text.write(root / TRUTH, ["id", "digits"], tables["test"])
    csv_text.write(root / "sample_submission.csv", ["id", "digits"], ((name, "0") for name, _ in tables["test"]))
    _describe(root, "several digits", "macro_f1", Target("digits", "multilabel", tuple("0123456789")))


def _picture(rng: np.random.Generator, digits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Up to four digits (N, 8, 8) in quarters of a picture (24, 24) chosen at random, each moved by up to four pixels."""
    canvas = np.zeros((24, 24), dtype=np.uint8)
    for quarter, digit in zip(rng.permutation(4), digits, strict=False):
        top, left = 12 * np.array(divmod(quarter, 2)) + rng.integers(0, 5, 2)
        canvas[top : top + 8, left : left + 8] = digit
    return canvas


def _load() -> tuple[NDArray[np.uint8], list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Pixels, uint8 (1797, 8, 8), and labels of all digits; the rows that train and those that are held out, sorted."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = [str(digit) for digit in bunch.target]
    train, test = train_test_split(np.arange(len(labels)), test_size=HELD_OUT, stratify=labels, random_state=0)
    return pixels, labels, np.sort(train), np.sort(test)


def _describe(root: Path, name: str, metric: str, target: Target) -> None:
    competition = Competition(
        root=root,
        name=name,
        metric=metric,
        targets=(target,),
        train=Images("data/train", "{id}.png", "data/train.csv"),
        test=Images("data/test", "{id}.png"),
    )
    toml_update.write(competition)


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    from PIL import Image

    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    files.write(path, lambda file: file.write(encoded.getvalue()))
