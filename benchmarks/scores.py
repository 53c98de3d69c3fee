"""Whether the score beside a submission is what its models are worth on rows that nobody had: `python benchmarks/scores.py`.

    apt-get install dataset-fashion-mnist
    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/scores.py
    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/scores.py --seeds 1 --images 300 --epochs 2 --draws 50    in two minutes

Each training (a set and a seed) deals out rows of its own, makes another split and begins from other weights: two small
networks of three folds, by the recipe. Submissions are made by the commands that a competitor would type, and their scores read
off the receipts. The labels of the test images never enter the workspace. A score out of fold is of single fold models, so that
it is held against the mean of what each fold's models, with the submission's views and blend, score on the test images.

A miss: that mean lies outside the interval, widened by its own standard error. Submissions of one training miss together, so
that a training counts once for each kind of number, by the share of its submissions that miss: that sum varies less than if all
or none missed, which the binomial bound is of. The last way hides from the toolkit what the blend was fitted without: its score
has to be marked, and is counted apart.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import click
import fashion
import numpy as np
from click.testing import CliRunner
from PIL import Image
from scipy.stats import binom
from sklearn.datasets import load_digits

from recipes import timm_kfold
from tests import exporter
from toolkit.blending.combination import Combination
from toolkit.blending.oof import read_blends
from toolkit.cli import cli
from toolkit.core import prediction_files
from toolkit.core.metrics import METRICS
from toolkit.core.predictions import Predictions
from toolkit.ensemble.run import run_ensemble
from toolkit.submissions.submission import submit
from toolkit.workspace.competition import FILE, Competition, Images, Target

SOURCE = Path("/usr/share/datasets/fashion-mnist")
SIZE, FOLDS = 28, 3
SHIRT, TOPS = 6, (0, 2, 4)  # classes of Fashion-MNIST: a shirt; T-shirt, pullover and coat
GRADES = 5
NOMINAL = 0.05

NETS = """
from torch import nn

def conv(num_classes):
    widths, layers = (3, 16, 32, 64), []
    for before, after in zip(widths, widths[1:]):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))

def flat(num_classes):
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(588, 64), nn.ReLU(), nn.Linear(64, num_classes))
"""
MEMBERS = {"conv": "0.01", "flat": "0.003"}  # and their learning rates


# --- data ----------------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """Images, uint8 (N, H, W) or (N, H, W, 3), and their labels."""

    pixels: np.ndarray
    labels: np.ndarray


def drawn(rng: np.random.Generator, rows: np.ndarray, part: Part, count: int) -> Part:
    """So many of some rows of a part, drawn by chance."""
    taken = rng.choice(rows, min(count, len(rows)), replace=False)
    return Part(part.pixels[taken], part.labels[taken])


def digits(rng: np.random.Generator, count: int) -> tuple[Part, Part]:
    """Handwritten digits, a third of them held out."""
    bunch: Any = load_digits()
    every = Part(np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target)
    order = rng.permutation(len(every.labels))
    return drawn(rng, order[:1200], every, count), drawn(rng, order[1200:], every, count)


@cache
def fashion_mnist() -> tuple[Part, Part]:
    """Its two parts, as its authors made them."""
    return Part(*fashion.read(SOURCE, "train", 60_000)), Part(*fashion.read(SOURCE, "t10k", 10_000))


def dealt(rng: np.random.Generator, count: int, kinds: Sequence[int], *, as_parted: bool) -> tuple[Part, Part]:
    """Images of some classes of Fashion-MNIST; those to test on are of its own test part, or drawn as the others are.

    That part is harder than the other (a logistic regression of 3,000 training images is right about 0.802 of the other 57,000,
    and 0.796 of it), which no interval of training rows can know.
    """
    parts = fashion_mnist()
    if as_parted:
        train, test = (drawn(rng, np.flatnonzero(np.isin(part.labels, kinds)), part, count) for part in parts)
        return train, test
    every = Part(*(np.concatenate(pair) for pair in zip(*parts, strict=True)))
    order = rng.permutation(np.flatnonzero(np.isin(every.labels, kinds)))
    return drawn(rng, order[:count], every, count), drawn(rng, order[count : 2 * count], every, count)


def clothes(rng: np.random.Generator, count: int, *, as_parted: bool = False) -> tuple[Part, Part]:
    """Ten kinds of garments."""
    return dealt(rng, count, range(10), as_parted=as_parted)


def shirts(rng: np.random.Generator, count: int, *, as_parted: bool = False) -> tuple[Part, Part]:
    """Shirts (1) among other tops (0): one of four."""
    train, test = dealt(rng, count, (SHIRT, *TOPS), as_parted=as_parted)
    return Part(train.pixels, (train.labels == SHIRT).astype(int)), Part(test.pixels, (test.labels == SHIRT).astype(int))


def graded(rng: np.random.Generator, count: int) -> tuple[Part, Part]:
    """Discs with dark spots; the grade is how many, as somebody reads it who errs, and few have many."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    severity = rng.random(2 * count) ** 1.5
    pixels = np.where(np.hypot(x, y) < 12, 200.0, 20.0) + rng.normal(0, 25, (2 * count, SIZE, SIZE))
    for image, spots in zip(pixels, rng.poisson(16 * severity), strict=True):
        for angle, far in zip(rng.uniform(0, 2 * np.pi, spots), 10 * np.sqrt(rng.random(spots)), strict=True):
            image[np.hypot(x - far * np.cos(angle), y - far * np.sin(angle)) < 1.6] -= 90
    labels = np.floor(GRADES * (severity + rng.normal(0, 0.08, 2 * count))).clip(0, GRADES - 1).astype(int)
    every = Part(pixels.clip(0, 255).astype(np.uint8), labels)
    return Part(*(values[:count] for values in every)), Part(*(values[count:] for values in every))


class Data(NamedTuple):
    """A set: its metric, its number of classes, how rows are dealt out, what `blend` is told to fit, what is submitted."""

    metric: str
    classes: int
    deal: Callable[[np.random.Generator, int], tuple[Part, Part]]
    fitted: tuple[str, ...]
    format: str = "labels"


SETS = {
    "digits": Data("accuracy", 10, digits, ("--calibrate", "factors")),
    "garments": Data("macro_f1", 10, clothes, ("--calibrate", "factors")),
    "garments, probabilities": Data("log_loss", 10, clothes, ("--calibrate", "temperature"), "probabilities"),
    "shirts": Data("roc_auc", 2, shirts, ("--vote", "rank"), "probability"),
    "grades": Data("quadratic_kappa", GRADES, graded, ("--calibrate", "factors")),
}
USUAL = tuple(SETS)
for name in USUAL[1:4]:  # tested on a part that is harder: no claim is made of it
    deal = partial(SETS[name].deal, as_parted=True)
    SETS[f"{name}, as parted"] = SETS[name]._replace(deal=deal)


def make_workspace(root: Path, data: Data, train: Part, test: Part) -> Competition:
    """PNG files, tables and toml; no test label."""
    classes = tuple(map(str, range(data.classes)))
    for name, part in (("train", train), ("test", test)):
        (root / name).mkdir(parents=True)
        for i, image in enumerate(part.pixels):
            Image.fromarray(image).save(root / name / f"{name}{i:05d}.png")
    rows = [f"train{i:05d},{label}" for i, label in enumerate(train.labels)]
    (root / "train.csv").write_text("\n".join(["id,label", *rows]) + "\n")
    columns, cell = (classes, "0.1") if data.format == "probabilities" else (("label",), "0")
    lines = [",".join((f"test{i:05d}", *[cell] * len(columns))) for i in range(len(test.labels))]
    (root / "sample_submission.csv").write_text("\n".join([",".join(("id", *columns)), *lines]) + "\n")
    competition = Competition(
        root=root,
        name="scores",
        metric=data.metric,
        targets=(Target("label", "binary" if data.format == "probability" else "multiclass", classes),),
        train=Images("train", "{id}.png", "train.csv"),
        test=Images("test", "{id}.png"),
        format=data.format,
    )
    (root / FILE).write_text(competition.to_toml())
    (root / "nets.py").write_text(NETS)
    return competition


# --- submissions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A submission: the receipt's score with its interval and kind, and what was true of its fold models and of the file.

    `folds` is the mean of the fold models' own scores on the test images, `error` its standard error, `file` the submission's;
    `scales`: the receipt says that fold models answer on different scales, which keeps the score down.
    """

    data: str
    seed: int
    way: str
    kind: str
    score: float
    low: float
    high: float
    folds: float
    error: float
    file: float
    scales: bool

    @property
    def sign(self) -> int:
        """1 where a larger score is better, else -1."""
        return 1 if METRICS[SETS[self.data].metric].higher_is_better else -1

    @property
    def optimistic(self) -> bool:
        """Whether the fold models are worse than the interval has it."""
        return self._outside() * self.sign < 0

    @property
    def missed(self) -> bool:
        """Whether they are outside it on either side."""
        return self._outside() != 0

    def _outside(self) -> int:
        """-1 or 1 where the truth is below or above the interval, once this is wide enough for the truth's own error."""
        away, own = self.folds - self.score, 1.96 * self.error
        return int(away > np.hypot(self.high - self.score, own)) - int(-away > np.hypot(self.score - self.low, own))

    @property
    def verdict(self) -> str:
        """Where the truth is."""
        place = "too good" if self.optimistic else "too modest" if self.missed else "inside"
        return place + (", scales differ" if self.scales else "")

    @property
    def gain(self) -> float:
        """By how much the file is better than its fold models are alone."""
        return self.sign * (self.file - self.folds)


def run(command: click.Command, *words: str) -> str:
    """What a command prints."""
    result = CliRunner().invoke(command, list(words))
    if result.exit_code:
        raise click.ClickException(f"{' '.join(words)}\n{result.output}\n{result.exception!r}")
    return result.output


def train(seed: int, epochs: int) -> None:
    """Both members in the workspace here."""
    run(cli, "split", "--folds", str(FOLDS), "--seed", str(seed))
    for name, rate in MEMBERS.items():
        network = ["--model", f"nets.py:{name}", "--no-pretrained", "--size", str(SIZE), "--augment", "none"]
        words = [*network, "--member", name, "--lr", rate, "--epochs", str(epochs), "--seed", str(seed)]
        run(timm_kfold.main, *words, "--device", "cpu", "--logger", "none")


def ways(data: Data) -> Iterator[tuple[str, list[str]]]:
    """Submissions by name with the words for `ensemble`; what these need is made when it is their turn."""
    one, both = ["folds/conv.*.onnx"], ["folds/conv.*.onnx", "folds/flat.*.onnx"]
    yield "plain", one
    yield "flip", [*one, "--tta", "flip"]
    yield "auto", [*one, "--tta", "auto"]
    yield "mean of two", both
    run(cli, "blend", "--always")
    yield "blend", [*both, "--blend"]
    run(cli, "blend", *data.fitted)
    yield "fitted, if it pays", [*both, "--blend"]
    run(cli, "blend", "--always", "--weigher", "greedy", *data.fitted)
    yield "fitted", [*both, "--blend"]
    record = json.loads(Path("blend.json").read_text())
    record["targets"]["label"].pop("outer")  # as a version before wrote it: its nested score cannot be had
    Path("blend.json").write_text(json.dumps(record))
    yield "fitted, in sample", [*both, "--blend"]


def alone(competition: Competition, meta: Mapping[str, Any], fold: int) -> Predictions:
    """What a fold's models say of the test images with the views, the vote and the blend that predictions have."""
    paths = [competition.path(model["path"]) for model in meta["models"] if model["fold"] == fold]
    blend = read_blends(competition) if meta.get("blend") else None
    combination = Combination(meta["view_set"], "soft" if blend else meta["vote"], blend=blend)
    return run_ensemble(competition, paths, combination, name=f"fold{fold}").predictions["label"]


def sent(competition: Competition) -> Predictions:
    """The predictions that were submitted."""
    return prediction_files.read_table(competition.path("predictions", "sent.parquet")).predictions["label"]


def truths(competition: Competition, tables: Sequence[Predictions], truth: Predictions, draws: int) -> tuple[float, float]:
    """The mean of the tables' scores and its standard error, by as many resamples of rows."""
    rng = np.random.default_rng(0)
    tables = [table.align(truth.ids).with_classes(truth.classes) for table in tables]
    drawn = []
    for _ in range(draws):
        rows = rng.integers(0, len(truth), len(truth))
        drawn.append(np.mean([worth(competition, table, truth.decided, rows) for table in tables]))
    every = np.arange(len(truth))
    return float(np.mean([worth(competition, table, truth.decided, every) for table in tables])), float(np.std(drawn))


def worth(competition: Competition, table: Predictions, truth: np.ndarray, rows: np.ndarray) -> float:
    """The metric of some rows."""
    metric = competition.score
    return metric.score(truth[rows], table.decided[rows] if metric.accepts == "labels" else table.values[rows])


def submissions(name: str, seed: int, images: int, epochs: int, draws: int) -> Iterator[Line]:
    """Train in a workspace that is removed, and give each submission's line."""
    data = SETS[name]
    rng = np.random.default_rng([seed, list(SETS).index(name)])
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        own, test = data.deal(rng, images)
        competition = make_workspace(Path(folder), data, own, test)
        classes = competition.targets[0].classes
        ids = tuple(f"test{i:05d}" for i in range(len(test.labels)))
        truth = Predictions("label", "labels", ids, classes, None, test.labels.astype(np.int64))
        train(seed, epochs)
        for way, words in ways(data):
            run(cli, "ensemble", *words, "--device", "cpu", "--name", "sent", "--no-tta-check")
            receipt = submit(competition, name="sent")
            scores = receipt.scores
            if "unknown" in scores:
                raise click.ClickException(f"{name}, {way}: {scores['unknown']}")
            kind = "optimistic" if scores["optimistic"] else scores["kind"]
            folds, error = truths(competition, [alone(competition, receipt.meta, fold) for fold in range(FOLDS)], truth, draws)
            file, _ = truths(competition, [sent(competition)], truth, 1)
            scales = any("different scales" in note for note in scores["notes"])
            yield Line(name, seed, way, kind, scores["out_of_fold"], *scores["interval"], folds, error, file, scales)


# --- tables --------------------------------------------------------------------------------------------------------------


def bound(trainings: int, share: float) -> int:
    """How many of so many trainings may miss: more have a chance of one in a hundred or less."""
    return int(binom.ppf(0.99, trainings, share))


def clustered(lines: Sequence[Line], missed: Callable[[Line], bool]) -> float:
    """Trainings that miss, each by the share of its submissions that do."""
    trainings: dict[tuple[str, int], list[bool]] = {}
    for line in lines:
        trainings.setdefault((line.data, line.seed), []).append(missed(line))
    return float(sum(np.mean(own) for own in trainings.values()))


def coverage(lines: Sequence[Line]) -> Iterator[str]:
    """Misses of each kind of number, and whether they are within their bounds."""
    yield "| kind | submissions | trainings | miss | of trainings | bound | too good | of trainings | bound |"
    yield "|" + "---|" * 9
    for kind in ("plain", "nested", "optimistic"):
        own = [line for line in lines if line.kind == kind]
        count = len({(line.data, line.seed) for line in own})
        cells: list[object] = [kind, len(own), count]
        for share, missed in ((NOMINAL, lambda line: line.missed), (NOMINAL / 2, lambda line: line.optimistic)):
            sums = clustered(own, missed)
            cells += [sum(map(missed, own)), f"{sums:.2f}", bound(count, share)]
        yield "| " + " | ".join(map(str, cells)) + " |"


def by_set(lines: Sequence[Line]) -> Iterator[str]:
    """Means over the seeds of each set and way."""
    yield "| set | metric | submission | kind | out of fold | fold models | too modest | too good | file | gain | better |"
    yield "|" + "---|" * 11
    for name, way in dict.fromkeys((line.data, line.way) for line in lines):
        own = [line for line in lines if (line.data, line.way) == (name, way)]
        kinds = "/".join(dict.fromkeys(line.kind for line in own))
        score, folds, file, gain = np.mean([(line.score, line.folds, line.file, line.gain) for line in own], axis=0)
        good = sum(line.optimistic for line in own)
        low = sum(line.missed for line in own) - good
        won = f"{sum(line.gain > 0 for line in own)} of {len(own)}"
        yield (
            f"| {name} | {SETS[name].metric} | {way} | {kinds} | {score:.4f} | {folds:.4f} | {low} | {good} "
            f"| {file:.4f} | {gain:+.4f} | {won} |"
        )


def gains(lines: Sequence[Line]) -> Iterator[str]:
    """In how many trainings each submission's file was better than its fold models are alone."""
    won: dict[str, list[bool]] = {}
    for line in lines:
        won.setdefault(line.way, []).append(line.gain > 0)
    yield "The file is better than the mean of its fold models: " + ", ".join(
        f"{way} {sum(own)} of {len(own)}" for way, own in won.items()
    )


@click.command()
@click.option("--data", multiple=True, type=click.Choice(list(SETS)), default=USUAL, show_default=True)
@click.option("--seeds", default=4, show_default=True, help="Trainings of each set.")
@click.option("--first", default=0, show_default=True, help="The first seed.")
@click.option("--images", default=1500, show_default=True, help="For training, and as many to test on; at most.")
@click.option("--epochs", default=8, show_default=True)
@click.option("--draws", default=200, show_default=True, help="Resamples for the error of a truth.")
def main(data: tuple[str, ...], seeds: int, first: int, images: int, epochs: int, draws: int) -> None:
    """Print every submission's line, then the misses by kind of number, and what files gain over their fold models."""
    import torch

    torch.set_num_threads(1)
    if not SOURCE.is_dir():
        raise click.ClickException(f"{SOURCE} does not exist: apt-get install dataset-fashion-mnist")
    started, lines = time.monotonic(), []
    with tempfile.TemporaryDirectory() as kept, mock.patch("os.fsync"):  # nothing here need survive a power cut
        exporter.keep_the_registry()
        exporter.remember(Path(kept))
        for seed in range(first, first + seeds):
            for name in data:
                for line in submissions(name, seed, images, epochs, draws):
                    lines.append(line)
                    click.echo(
                        f"{name} {seed}, {line.way}: {line.kind} {line.score:.4f} ({line.low:.4f} to {line.high:.4f}), "
                        f"fold models {line.folds:.4f} ± {line.error:.4f}: {line.verdict}; file {line.file:.4f}"
                    )
                click.echo(f"== {time.monotonic() - started:.0f} s, {time.process_time():.0f} s of the processor")
    for table in (coverage, by_set, gains):
        click.echo("\n" + "\n".join(table(lines)))


if __name__ == "__main__":
    main()
