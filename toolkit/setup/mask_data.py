"""AI Stages' mask competition: its folders of people as a workspace with a row per picture, and small drawn sets of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from toolkit.base import files, provenance
from toolkit.base.text import csv_text
from toolkit.errors import CompetitionError, counted, few
from toolkit.workspace import toml_update
from toolkit.workspace.competition import FILE, Competition, Images, Target
from toolkit.workspace.make_split import load_or_make
from toolkit.workspace.split import Split

if TYPE_CHECKING:
    from PIL import Image

TARGET = "ans"
TABLE = "pictures.csv"
TRUTH = "truth.csv"  # the answers to a drawn test set; nothing reads them but who wants to know
SHOTS = {**{f"mask{i}": "wear" for i in range(1, 6)}, "incorrect_mask": "incorrect", "normal": "normal"}
FACTORS = {
    "mask": ("wear", "incorrect", "normal"),
    "gender": ("male", "female"),
    "age": ("young", "middle", "old"),  # below 30, 30 to 59, from 60
}
WIDTH, HEIGHT = 96, 128  # a quarter of the competition's 384 × 512
Colour = tuple[int, int, int]


def age_class(years: int) -> str:
    """The class of an age in years: young below 30, middle below 60, else old."""
    return FACTORS["age"][(years >= 30) + (years >= 60)]


def make_workspace(root: Path, data: Path | None = None, *, by_person: bool = True) -> Competition:
    """The workspace of the competition whose `train` and `eval` folders lie in `data` (default: in `root`).

    Writes `pictures.csv`, a row per picture with its person, mask, gender and age class, and competition.toml: 18 classes,
    mask × gender × age, scored by macro-F1, grouped by person unless `by_person` is off. A workspace that is there is read.

    Raises:
        CompetitionError: the folders hold something else: no such table, a folder that is missing, an age that is no number.
        StoreError: the workspace cannot be written.
    """
    if (root / FILE).exists():
        return Competition.read(root)
    competition, table = describe(root, data or root, by_person=by_person)
    files.write_text(root / TABLE, table)
    toml_update.write(competition)
    return Competition.read(root)


def is_there(home: Path) -> bool:
    """Whether a folder has the competition's `train` and `eval`, with a folder of the seven pictures for each person."""
    table, listing, folder = home / "train" / "train.csv", home / "eval" / "info.csv", home / "train" / "images"
    if not (table.is_file() and listing.is_file() and folder.is_dir() and (home / "eval" / "images").is_dir()):
        return False
    try:
        known = {"id", "gender", "age", "path"} <= set(csv_text.header(table)) and "ImageID" in csv_text.header(listing)
        first = csv_text.cells(table, ["path"])["path"][:1] if known else []
    except CompetitionError:
        return False
    return any(SHOTS.keys() <= {file.stem for file in folder.joinpath(path).glob("*")} for path in first)


def describe(root: Path, home: Path, *, by_person: bool = True) -> tuple[Competition, str]:
    """The competition whose folders lie in `home` as a workspace in `root`, and the text of its `pictures.csv`.

    Raises:
        CompetitionError: see `make_workspace`.
    """
    rows = _pictures(home)
    where = "" if home == root else f"{provenance.from_inside(home.absolute(), root.absolute())}/"
    competition = Competition(
        root=root,
        name="mask",
        metric="macro_f1",
        targets=(Target(TARGET, "multiclass", (), factors=FACTORS),),
        train=Images(f"{where}train/images", "{path}", TABLE),
        test=Images(f"{where}eval/images", "{ImageID}"),
        group="person" if by_person else "",
        sample=f"{where}eval/info.csv",
        sample_id="ImageID",
        format="indices",
    )
    return competition, files.as_csv([["id", "person", *FACTORS, "path"], *rows])


def make_split(competition: Competition, *, count: int = 5) -> Split:
    """The workspace's split: read from split.csv, or stratified folds that keep each group whole, written there."""
    return load_or_make(competition, count=count)


def _pictures(home: Path) -> list[tuple[str, ...]]:
    """Every picture: id, person, mask, gender, age class, path below train/images."""
    table, folder = home / "train" / "train.csv", home / "train" / "images"
    if not table.is_file() or not folder.is_dir():
        raise CompetitionError(
            f"{home} has no train/train.csv with train/images beside it",
            hint="Say where the competition's train and eval folders lie, or draw a small set.",
            code="masks-missing",
        )
    frame = csv_text.read(table, columns=["id", "gender", "age", "path"], unique="path")
    if strange := [cell for cell in frame["age"] if not cell.isdecimal()]:
        raise CompetitionError(f"{table}: ages must be whole numbers, not {few(strange)}")
    rows: list[tuple[str, ...]] = []
    missing: list[str] = []
    for name, gender, age, path in zip(frame["id"], frame["gender"], frame["age"], frame["path"], strict=True):
        shots = [file for file in sorted(folder.joinpath(path).glob("*")) if file.stem in SHOTS]  # not macOS's ._mask1.jpg
        missing += [] if shots else [path]
        person = re.split(r"[-_]", name)[0]  # 001498-1 is 001498 photographed again
        rows += [(f"{path}/{f.stem}", person, SHOTS[f.stem], gender, age_class(int(age)), f"{path}/{f.name}") for f in shots]
    if missing:
        raise CompetitionError(f"{folder} lacks the pictures of {counted(len(missing), 'people')}: {few(missing)}")
    return rows


@dataclass(frozen=True)
class Person:
    """Someone who is drawn: what the labels say, what shows it (not for everyone as for most), and what is theirs alone."""

    name: str
    gender: str
    age: int
    hair: int  # pixels below the ears
    grey: float  # 0 for black hair, 1 for white
    skin: Colour
    shirt: Colour
    wall: tuple[Colour, ...]  # 3 × 4 patches


def draw(root: Path, *, people: int = 60, test_people: int = 12, seed: int = 0, identity: bool = False) -> Path:
    """Draw a small set in the competition's own layout, seven pictures of each of `people`, other people in `eval`.

    `train/images/<id>_<gender>_<race>_<age>/{mask1..5,incorrect_mask,normal}.{jpg,jpeg,png}`, `train/train.csv` (id, gender,
    race, age, path), `eval/images/<40 hex digits>.jpg` and `eval/info.csv` (ImageID, ans). Hair says gender and age, wrongly
    now and then. With `identity` a person wears the same shirt before the same wall in all seven pictures, so that whoever
    was seen can be recognised; without, both change from picture to picture. The answers to `eval` are in `truth.csv`.

    Raises:
        CompetitionError: `root` has such folders, or fewer than six people are asked for (one per gender and age class).
        StoreError: `root` cannot be written.
    """
    if people < 6 or test_people < 1:
        raise CompetitionError(f"{counted(people, 'people')} cannot show every gender and age", hint="Draw at least 6.")
    if taken := [name for name in ("train", "eval") if (root / name).exists()]:
        raise CompetitionError(f"{root / taken[0]} exists, so nothing is drawn there", hint="Choose another folder.")
    with files.aside(root, [TRUTH, "eval", "train"]) as folder:
        _draw_all(folder, np.random.default_rng(seed), people, test_people, identity=identity)
    return root


def _draw_all(root: Path, rng: np.random.Generator, people: int, test_people: int, *, identity: bool) -> None:
    rows = [_draw_folder(root / "train" / "images", rng, _person(rng, i), identity=identity) for i in range(people)]
    others = [_person(rng, people + i) for i in range(test_people)]
    answers = [_draw_test(root / "eval" / "images", rng, p, shot, identity=identity) for p in others for shot in SHOTS]
    answers = [answers[i] for i in rng.permutation(len(answers))]
    csv_text.write(root / TRUTH, ["ImageID", *FACTORS], answers)
    csv_text.write(root / "eval" / "info.csv", ["ImageID", "ans"], [(name, 0) for name, *_ in answers])
    csv_text.write(root / "train" / "train.csv", ["id", "gender", "race", "age", "path"], rows)


def _draw_folder(folder: Path, rng: np.random.Generator, person: Person, *, identity: bool) -> tuple[object, ...]:
    """A person's folder; returns their row of train.csv."""
    path = f"{person.name}_{person.gender}_Asian_{person.age}"
    folder.joinpath(path).mkdir(parents=True)
    for shot, mask in SHOTS.items():
        suffix = rng.choice(["jpg", "jpeg", "png"], p=[0.8, 0.1, 0.1])
        _picture(rng, person if identity else _elsewhere(rng, person), mask).save(folder / path / f"{shot}.{suffix}")
    if rng.random() < 0.1:
        (folder / path / "._mask1.jpg").write_bytes(b"\0\5\x16\7")  # what macOS's archiver leaves
    return person.name, person.gender, "Asian", person.age, path


def _draw_test(folder: Path, rng: np.random.Generator, person: Person, shot: str, *, identity: bool) -> tuple[str, ...]:
    name = hashlib.sha1(f"{person.name}/{shot}".encode(), usedforsecurity=False).hexdigest() + ".jpg"
    folder.mkdir(parents=True, exist_ok=True)
    _picture(rng, person if identity else _elsewhere(rng, person), SHOTS[shot]).save(folder / name)
    return name, SHOTS[shot], person.gender, age_class(person.age)


def _person(rng: np.random.Generator, number: int) -> Person:
    """Genders and age classes in turn, so that few people show all; their looks at random around what is usual."""
    gender, group = FACTORS["gender"][number % 2], number // 2 % 3
    age = int(rng.integers((18, 30, 60)[group], (30, 60, 61)[group]))  # the competition's oldest are 60
    return Person(
        name=f"{number + 1:06d}",
        gender=gender,
        age=age,
        hair=int(np.clip(rng.normal(24 if gender == "female" else 6, 9), 0, 40)),
        grey=float(np.clip(rng.normal((0.1, 0.45, 0.8)[group], 0.2), 0, 1)),
        skin=_colour(rng, (215, 175, 145), 18),
        shirt=_any_colour(rng),
        wall=tuple(_any_colour(rng) for _ in range(12)),
    )


def _elsewhere(rng: np.random.Generator, person: Person) -> Person:
    """The same person in another shirt before another wall."""
    return replace(person, shirt=_any_colour(rng), wall=tuple(_any_colour(rng) for _ in range(12)))


def _picture(rng: np.random.Generator, person: Person, mask: str) -> Image.Image:
    """A portrait, RGB 96 × 128, the face moved a little, with grain."""
    from PIL import Image, ImageDraw

    patches = np.array(person.wall, dtype=np.uint8).reshape(4, 3, 3)
    image = Image.fromarray(patches).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    x, y = WIDTH // 2 + int(rng.integers(-5, 6)), 58 + int(rng.integers(-5, 6))
    hair = _colour(rng, tuple(int(25 + 190 * person.grey) for _ in range(3)), 4)
    pen.ellipse((x - 40, y + 38, x + 40, y + 120), fill=person.shirt)
    pen.rounded_rectangle((x - 28, y - 38, x + 28, y + 6 + person.hair), 18, fill=hair)
    pen.ellipse((x - 22, y - 30, x + 22, y + 32), fill=person.skin)
    for side in (-9, 9):
        pen.ellipse((x + side - 3, y - 8, x + side + 3, y - 4), fill=(30, 25, 25))
    pen.line((x, y - 2, x - 2, y + 6, x + 2, y + 7), fill=(120, 85, 70))
    pen.arc((x - 9, y + 9, x + 9, y + 19), 20, 160, fill=(160, 60, 60), width=2)
    cloth = ((235, 240, 245), (120, 165, 205), (35, 35, 40))[int(rng.integers(3))]
    if mask == "wear":
        pen.polygon([(x - 21, y), (x, y - 3), (x + 21, y), (x + 17, y + 24), (x, y + 32), (x - 17, y + 24)], fill=cloth)
    elif mask == "incorrect":  # below the nose or below the mouth
        top = y + int(rng.choice([9, 20]))
        pen.polygon([(x - 20, top), (x + 20, top), (x + 15, y + 28), (x, y + 36), (x - 15, y + 28)], fill=cloth)
    grain = rng.normal(0, 6, (HEIGHT, WIDTH, 3))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def _colour(rng: np.random.Generator, around: Sequence[int], spread: int) -> Colour:
    red, green, blue = (int(np.clip(rng.normal(value, spread), 0, 255)) for value in around)
    return red, green, blue


def _any_colour(rng: np.random.Generator) -> Colour:
    red, green, blue = rng.integers(20, 236, 3).tolist()
    return red, green, blue
