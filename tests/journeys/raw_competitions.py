"""Seven competitions as a newcomer downloads them: small trees in the layouts of public ones, with the truth kept aside."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

COUNT, TESTS = 30, 6


@dataclass(frozen=True)
class Raw:
    """What a tree must become: flags of the second round, and what competition.toml must then say."""

    metric: str
    task: str
    classes: tuple[str, ...]
    format: str
    truth: dict[str, str]  # id → the cell of its label
    tests: tuple[str, ...]  # ids
    flags: tuple[str, ...] = ()
    recipe: str = "timm_kfold"
    said: tuple[str, ...] = field(default=())


def picture(path: Path, seed: int) -> None:
    """A picture of its own, so that no two rows show the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def table(path: Path, rows: list[tuple[object, ...]], encoding: str = "utf-8") -> None:
    """A CSV file without quotes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(",".join(map(str, row)) + "\n" for row in rows).encode(encoding))


def hashes(count: int, length: int, seed: int) -> list[str]:
    """Names as such competitions have them."""
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("0123456789abcdef"), length)) for _ in range(count)]


def seedlings(root: Path) -> Raw:
    """A folder per class, a flat test, a sample that names files and classes."""
    classes = ("Black-grass", "Common wheat", "Sugar beet")
    names, tests = (hashes(n, 9, seed) for n, seed in ((COUNT, 1), (TESTS, 2)))
    truth = {name: classes[i % 3] for i, name in enumerate(names)}
    for i, (name, label) in enumerate(truth.items()):
        picture(root / "train" / label / f"{name}.png", i)
    for i, name in enumerate(tests):
        picture(root / "test" / f"{name}.png", 100 + i)
    table(root / "sample_submission.csv", [("file", "species"), *((f"{name}.png", "Sugar beet") for name in tests)])
    return Raw("micro_f1", "multiclass", classes, "labels", truth, tuple(f"{name}.png" for name in tests))


def dogs(root: Path) -> Raw:
    """labels.csv, and a sample with a column of probability for each class."""
    classes = tuple(sorted(("affenpinscher", "afghan_hound", "basenji", "beagle", "whippet")))
    names, tests = (hashes(n, 32, seed) for n, seed in ((COUNT, 3), (TESTS, 4)))
    truth = {name: classes[i % 5] for i, name in enumerate(names)}
    for part, every in (("train", names), ("test", tests)):
        for i, name in enumerate(every):
            picture(root / part / f"{name}.jpg", i + 1000 * len(part))
    table(root / "labels.csv", [("id", "breed"), *truth.items()])
    table(root / "sample_submission.csv", [("id", *classes), *((name, *[1 / 5] * 5) for name in tests)])
    return Raw("log_loss", "multiclass", classes, "probabilities", truth, tuple(tests))


def cassava(root: Path) -> Raw:
    """Numbers for labels, their names in a JSON file, a sample of one row for a hidden test."""
    names = [f"{n}.jpg" for n in np.random.default_rng(5).integers(10**8, 4 * 10**9, COUNT)]
    truth = {name: str(i % 5) for i, name in enumerate(names)}
    for i, name in enumerate(names):
        picture(root / "train_images" / name, i)
    picture(root / "test_images" / "2216849948.jpg", 999)
    table(root / "train.csv", [("image_id", "label"), *truth.items()])
    table(root / "sample_submission.csv", [("image_id", "label"), ("2216849948.jpg", 4)])
    names_of = {str(i): name for i, name in enumerate(("CBB", "CBSD", "CGM", "CMD", "Healthy"))}
    (root / "label_num_to_disease_map.json").write_text(json.dumps(names_of))
    return Raw("accuracy", "multiclass", tuple("01234"), "labels", truth, ("2216849948.jpg",))


def aptos(root: Path) -> Raw:
    """Grades from 0 to 4, ids without suffix, a test.csv beside the sample."""
    names, tests = (hashes(n, 12, seed) for n, seed in ((COUNT, 6), (TESTS, 7)))
    truth = {name: str(i % 5) for i, name in enumerate(names)}
    for part, every in (("train_images", names), ("test_images", tests)):
        for i, name in enumerate(every):
            picture(root / part / f"{name}.png", i + 1000 * len(part))
    table(root / "train.csv", [("id_code", "diagnosis"), *truth.items()])
    table(root / "test.csv", [("id_code",), *((name,) for name in tests)])
    table(root / "sample_submission.csv", [("id_code", "diagnosis"), *((name, 0) for name in tests)])
    return Raw("quadratic_kappa", "multiclass", tuple("01234"), "labels", truth, tuple(tests))


def planet(root: Path) -> Raw:
    """Several labels to a picture, separated by spaces."""
    tags = ("agriculture", "clear", "cloudy", "haze", "primary", "road", "water")
    lists = (
        "haze primary",
        "agriculture clear primary water",
        "cloudy",
        "clear primary",
        "agriculture clear road",
        "clear water",
    )
    truth = {f"train_{i}": lists[i % len(lists)] for i in range(COUNT)}
    tests = [f"test_{i}" for i in range(TESTS)]
    for part, every in (("train-jpg", truth), ("test-jpg", tests)):
        for i, name in enumerate(every):
            picture(root / part / f"{name}.jpg", i + 1000 * len(part))
    table(root / "train_v2.csv", [("image_name", "tags"), *truth.items()])
    table(root / "sample_submission_v2.csv", [("image_name", "tags"), *((name, " ".join(tags)) for name in tests)])
    return Raw("micro_f1", "multilabel", tags, "labels", truth, tuple(tests), recipe="multilabel")


def dacon(root: Path, *, encoding: str = "utf-8-sig", korean: bool = False) -> Raw:
    """Paths that begin with ./ , Korean labels, a byte-order mark or CP949, a test.csv of paths, dummy labels in the sample."""
    classes = ("가구수정", "곰팡이", "오염")
    key, path, label = ("아이디", "이미지경로", "라벨") if korean else ("id", "img_path", "label")
    names, tests = ([f"{part}_{i:05d}" for i in range(n)] for part, n in (("TRAIN", COUNT), ("TEST", TESTS)))
    truth = {name: classes[i % 3] for i, name in enumerate(names)}
    for i, name in enumerate(names):
        picture(root / "train" / f"{name}.png", i)
    for i, name in enumerate(tests):
        picture(root / "test" / f"{name}.png", 100 + i)
    rows = [(name, f"./train/{name}.png", label) for name, label in truth.items()]
    table(root / "train.csv", [(key, path, label), *rows], encoding)
    table(root / "test.csv", [(key, path), *((name, f"./test/{name}.png") for name in tests)], encoding)
    table(root / "sample_submission.csv", [(key, label), *((name, classes[0]) for name in tests)], encoding)
    return Raw("weighted_f1", "multiclass", classes, "labels", truth, tuple(tests))


def histopathology(root: Path) -> Raw:
    """Two classes, ids of TIFF files without suffix, one probability."""
    names, tests = (hashes(n, 40, seed) for n, seed in ((COUNT, 8), (TESTS, 9)))
    truth = {name: str(i % 2) for i, name in enumerate(names)}
    for part, every in (("train", names), ("test", tests)):
        for i, name in enumerate(every):
            picture(root / part / f"{name}.tif", i + 1000 * len(part))
    table(root / "train_labels.csv", [("id", "label"), *truth.items()])
    table(root / "sample_submission.csv", [("id", "label"), *((name, 0) for name in tests)])
    return Raw("roc_auc", "binary", ("0", "1"), "probability", truth, tuple(tests))


def dacon_in_korean(root: Path) -> Raw:
    """The same with Korean names of columns, in CP949."""
    return dacon(root, encoding="cp949", korean=True)


RAW = {make.__name__: make for make in (seedlings, dogs, cassava, aptos, planet, dacon, dacon_in_korean, histopathology)}
