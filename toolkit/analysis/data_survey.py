"""What a data set is: counts, classes, groups, files, pixels, and how the test images differ from the training ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64
from toolkit.core import prediction_files
from toolkit.core.metrics import Metric
from toolkit.core.twins import twins_note
from toolkit.errors import DataError, SubmissionError, counted, few
from toolkit.images import statistics
from toolkit.images.duplicates import twins
from toolkit.images.duplicates.prints import Prints
from toolkit.images.statistics import PIXEL, SHAPE, Files, Odd, Peculiar, quantiles
from toolkit.images.treatments import Treatment
from toolkit.submissions import submission
from toolkit.workspace.competition import Competition, Part

SAMPLE = 20_000  # images of each part whose pixels are looked at, unless told
SHIFTED = 1e-3  # p-value below which two distributions count as different …
FAR = 0.1  # … if their largest difference (Kolmogorov-Smirnov) is at least this
MAPPED = 2_000  # images of each part on the map
LISTED = 100  # pairs of one picture in two files, odd files and groups of several labels that are named
IMBALANCED = 3.0  # largest class over smallest, from which accuracy hides the small ones

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Shift:
    """How far a property of the test images is from the training images: Kolmogorov-Smirnov distance and p-value."""

    what: str
    distance: float
    p: float

    @property
    def large(self) -> bool:
        """Whether it is more than chance, and enough to matter."""
        return self.p < SHIFTED and self.distance >= FAR


@dataclass(frozen=True)
class Double:
    """One picture in two files, each (part, id, path): the same bytes, or the same sight (then perhaps turned)."""

    first: tuple[Part, str, Path]
    second: tuple[Part, str, Path]
    exact: bool
    similarity: float
    turn: str = "id"


@dataclass(frozen=True, eq=False)
class Survey:
    """A data set: the files of both parts and what was found in them; `record` has every figure as plain values.

    `seen` places images by what models say of them, float64 [n, 2] for training (out of fold) and test images: the first two
    principal components of their standardised log-probabilities. It is empty until there are both.
    """

    competition: Competition
    files: Mapping[Part, Files]
    classes: Mapping[str, Mapping[str, int]]
    missing: Mapping[str, int]
    groups: Mapping[str, Any]
    shifts: tuple[Shift, ...]
    doubles: tuple[Double, ...]
    odd: Mapping[Part, tuple[Odd, ...]]
    seen: Mapping[str, F64]
    peculiar: Mapping[Part, Peculiar]

    @property
    def mean(self) -> tuple[float, ...]:
        """Channel means over the sampled training images, 0..1: for normalisation."""
        part = self.files["train"]
        return tuple(float(np.nanmean(part.pixel[name])) if len(part.sampled) else 0.5 for name in ("red", "green", "blue"))

    @property
    def std(self) -> tuple[float, ...]:
        """Channel standard deviations over all pixels of the sampled training images, 0..1."""
        part = self.files["train"]
        if not len(part.sampled):
            return (0.5, 0.5, 0.5)
        squares = part.square[part.sampled].mean(axis=0)
        return tuple(float(np.sqrt(max(square - mean**2, 0.0))) for square, mean in zip(squares, self.mean, strict=True))

    @property
    def imbalance(self) -> float:
        """The largest class of any target over its smallest."""
        ratios = [max(counts.values()) / max(1, min(counts.values())) for counts in self.classes.values() if counts]
        return max(ratios, default=1.0)

    @property
    def advice(self) -> list[str]:
        """What to do about it, the most important first."""
        return _advice(self)

    @property
    def record(self) -> dict[str, Any]:
        """Every figure as plain values, for machines."""
        return {
            "ok": True,
            "name": self.competition.name,
            "images": {part: len(files.ids) for part, files in self.files.items()},
            "sampled": {part: len(files.sampled) for part, files in self.files.items()},
            "classes": {name: dict(counts) for name, counts in self.classes.items()},
            "imbalance": self.imbalance,
            "missing": dict(self.missing),
            "groups": dict(self.groups),
            "formats": {part: dict(Counter(files.formats).most_common()) for part, files in self.files.items()},
            "modes": {part: dict(Counter(files.modes).most_common()) for part, files in self.files.items()},
            "shape": {part: {name: quantiles(files.shape[name]) for name in SHAPE} for part, files in self.files.items()},
            "pixels": {part: {name: quantiles(files.pixel[name]) for name in PIXEL} for part, files in self.files.items()},
            "mean": self.mean,
            "std": self.std,
            "bad": {part: {str(files.paths[i]): why for i, why in files.bad.items()} for part, files in self.files.items()},
            "odd": {
                part: {
                    "count": len(files),
                    "files": [{"id": o.id, "path": str(o.path), "what": o.what, "value": o.value} for o in files[:LISTED]],
                }
                for part, files in self.odd.items()
            },
            "shifts": [vars(shift) for shift in self.shifts],
            "doubles": {
                "exact": sum(double.exact for double in self.doubles),
                "near": sum(not double.exact for double in self.doubles),
                "across": sum(double.first[0] != double.second[0] for double in self.doubles),
                "pairs": [[list(map(str, d.first)), list(map(str, d.second)), d.similarity] for d in self.doubles[:LISTED]],
            },
            "peculiar": {part: vars(kinds) for part, kinds in self.peculiar.items()},
            "advice": self.advice,
        }


def survey(competition: Competition, *, sample: int = SAMPLE, progress: Progress | None = None) -> Survey:
    """Look at every image file of a workspace (its header), and at the pixels of `sample` images of each part.

    Raises:
        CompetitionError: the tables cannot be read, or a folder of images is missing.
        DataError: no training images.
    """
    listed: dict[Part, list[tuple[str, Path]]] = {"train": competition.images("train"), "test": _test(competition)}
    if not listed["train"]:
        raise DataError("there are no training images to look at")
    every = sum(map(len, listed.values()))
    before, by_part = 0, {}
    for part, named in listed.items():
        report = (lambda done, start=before: progress(start + done, every)) if progress else None
        by_part[part] = statistics.measure(named, sample, report, Treatment(competition.alpha, competition.window))
        before += len(named)
    truth = {} if competition.rows.empty else competition.truth()
    classes = {
        name: dict(zip(table.classes, _counts(table.decided, len(table.classes)), strict=True)) for name, table in truth.items()
    }
    empty = {column: int((competition.rows[column] == "").sum()) for column in competition.rows.columns}
    return Survey(
        competition=competition,
        files=by_part,
        classes=classes,
        missing={column: count for column, count in empty.items() if count},
        groups=_groups(competition),
        shifts=tuple(_shifts(by_part)),
        doubles=tuple(_doubles(by_part)),
        odd={part: tuple(statistics.odd(files)) for part, files in by_part.items()},
        seen=_seen(competition),
        peculiar={part: statistics.peculiar([path for _, path in named]) for part, named in listed.items()},
    )


def _test(competition: Competition) -> list[tuple[str, Path]]:
    """The test images; none where a code competition hides them."""
    table = competition.path(competition.test.table or competition.sample)
    if not competition.path(competition.test.folder).is_dir() or not table.is_file():
        return []
    return competition.images("test")


def _counts(labels: NDArray[Any], classes: int) -> list[int]:
    """Rows per class."""
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=classes)
    return [int(count) for count in counts]


def _groups(competition: Competition) -> dict[str, Any]:
    """How many groups there are, how large, in what share of them (of several rows) all labels agree, and where they do not.

    `sizes` counts groups by their rows; `mixed` names groups with several labels, the largest first: target, group, rows and
    how many labels.
    """
    if not competition.group:
        return {}
    named = competition.rows.drop_duplicates(competition.id)[competition.group].to_numpy()
    groups, codes, sizes = np.unique(named, return_inverse=True, return_counts=True)
    several = sizes > 1
    agree: dict[str, float] = {}
    mixed: list[tuple[str, str, int, int]] = []
    for name, table in competition.truth().items():
        labels = np.unique(table.decided, axis=0, return_inverse=True)[1].reshape(-1)
        pairs = np.unique(np.stack([codes, labels]), axis=1)
        kinds = np.bincount(pairs[0], minlength=len(sizes))
        agree[name] = float((kinds == 1)[several].mean()) if several.any() else 1.0
        apart = np.flatnonzero(kinds > 1)
        largest = apart[np.argsort(-sizes[apart], kind="stable")][:LISTED].tolist()
        mixed += [(name, str(groups[g]), int(sizes[g]), int(kinds[g])) for g in largest]
    return {
        "column": competition.group,
        "count": len(sizes),
        "largest": int(sizes.max()),
        "agreement": agree,
        "sizes": {int(rows): int(count) for rows, count in zip(*np.unique(sizes, return_counts=True), strict=True)},
        "mixed": mixed,
    }


def _doubles(by_part: Mapping[Part, Files]) -> list[Double]:
    """The same picture twice among the sampled ones, proved by bytes or pixels, surest first."""
    here = [(part, files.ids[i], files.paths[i]) for part, files in by_part.items() for i in files.sampled.tolist()]
    every = [files.prints for files in by_part.values()]
    together = Prints(
        tuple(path for prints in every for path in prints.paths),
        tuple(digest for prints in every for digest in prints.digests),
        np.concatenate([prints.sides for prints in every]),
        np.concatenate([prints.thumbs for prints in every]),
        {},
    )
    proved = twins.find(together).twins
    return [Double(here[twin.first], here[twin.second], twin.exact, twin.similarity, twin.turn) for twin in proved]


def _seen(competition: Competition) -> dict[str, F64]:
    """Both parts on one map, at most MAPPED images of each."""
    held_out = sorted(competition.path("oof").glob("*.parquet"))
    try:
        predicted = submission.last_made(competition)
    except SubmissionError:
        return {}
    if not held_out:
        return {}
    target, rng = competition.targets[0], np.random.default_rng(0)
    logs = []
    for path in (held_out[0], predicted):
        table = prediction_files.read_table(path).predictions.get(target.name)
        if table is None or table.values is None or set(table.classes) != set(target.classes):
            return {}
        values = np.log(np.clip(table.with_classes(target.classes).values, 1e-6, None))  # type: ignore[arg-type]
        values = values - values.mean(axis=1, keepdims=True)
        values /= values.std(axis=1, keepdims=True) + 1e-9  # an ensemble is less sure than one of its models
        logs.append(values[rng.permutation(len(values))[:MAPPED]])
    every = np.concatenate(logs)
    _, _, axes = np.linalg.svd(every - every.mean(axis=0), full_matrices=False)
    flat = (every - every.mean(axis=0)) @ axes[:2].T
    return {"train (out of fold)": flat[: len(logs[0])], "test": flat[len(logs[0]) :]} if flat.shape[1] > 1 else {}


def _shifts(by_part: Mapping[Part, Files]) -> list[Shift]:
    from scipy import stats

    shifts = []
    for name in (*SHAPE, *PIXEL):
        both = [files.values(name) for files in (by_part["train"], by_part["test"])]
        first, second = (values[np.isfinite(values)] for values in both)
        if len(first) and len(second):
            tested = stats.ks_2samp(first, second, method="asymp")
            shifts.append(Shift(name, float(tested.statistic), float(tested.pvalue)))
    return shifts


def _advice(survey: Survey) -> list[str]:
    advice = [*_about_twins(survey), *_about_files(survey)]
    for name, counts in survey.classes.items():
        advice += _about_classes(name, counts, survey.competition.score)
    if survey.groups:
        g = survey.groups
        kept, column = max(g["agreement"].values(), default=0.0), g["column"]
        advice.append(
            f"{counted(g['count'], 'groups')} by {column!r}, up to {counted(g['largest'], 'rows')} each; in {kept:.0%} "
            f"of them all labels agree: "
            "split by group, or the same subject stands on both sides (toolkit split does)."
        )
    if large := [shift for shift in survey.shifts if shift.large]:
        named = ", ".join(f"{shift.what} (distance {shift.distance:.2f})" for shift in large)
        advice.append(
            f"Test images differ from training images in {named}: augment towards them, and trust the public board less."
        )
    advice += _about_kinds(survey.files["train"])
    for column, count in survey.missing.items():
        advice.append(f"{survey.competition.train.table}: column {column!r} is empty in {counted(count, 'rows')}.")
    return advice or ["Nothing stands out: balanced classes, sound files, test images like the training images."]


def _about_twins(survey: Survey) -> Iterator[str]:
    """Classes and groups that people take for one, and programs for two."""
    for name, counts in survey.classes.items():
        if note := twins_note(counts, f"classes of {name!r}"):
            yield f"{note}: if they are one class, write it one way in the table, and run `toolkit init` again."
    if (group := survey.competition.group) and (note := twins_note(survey.competition.rows[group], f"groups of {group!r}")):
        yield f"{note}: if they are one group, its rows may stand on both sides of the split; write it one way in the table."


def _about_files(survey: Survey) -> Iterator[str]:
    for part, files in survey.files.items():
        if files.bad:
            first = next(iter(files.bad.values()))
            bad = counted(len(files.bad), f"{part} images")
            yield f"{bad} cannot be used (the first: {first}): mend or remove them before training."
    for part, peculiar in survey.peculiar.items():
        for note in peculiar.notes(survey.competition.alpha, survey.competition.window):
            yield f"{part.capitalize()} images: {note}."
    if survey.doubles:
        across = sum(double.first[0] != double.second[0] for double in survey.doubles)
        turned = sum(double.turn != "id" for double in survey.doubles)
        yield (
            f"{counted(len(survey.doubles), 'pairs of files show')} one picture"
            + (f", {turned:,} of them mirrored or turned" if turned else "")
            + (f", {across:,} of them in train and test" if across else "")
            + ": `toolkit audit` says which of them leak."
        )
    for part, odd in survey.odd.items():
        if odd:
            kinds = ", ".join(f"{count:,} {what}" for what, count in Counter(odd_file.what for odd_file in odd).most_common())
            yield f"Odd {part} images, worth a look: {kinds}."


def _about_kinds(files: Files) -> Iterator[str]:
    sizes = quantiles(files.shape["aspect"])
    if sizes and sizes["95%"] / max(sizes["5%"], 1e-9) > 1.5:
        yield (
            f"Aspect ratios go from {sizes['5%']:.2f} to {sizes['95%']:.2f}: squashing bends shapes, cropping loses edges; "
            "try both."
        )
    modes = Counter(files.modes)
    if set(modes) & {"L", "1", "I;16", "LA"} and len(modes) > 1:
        yield f"Grey and colour images are mixed ({_listed(modes)}): grey ones are repeated in three channels."


def _about_classes(name: str, counts: Mapping[str, int], metric: Metric) -> list[str]:
    advice = []
    present = {label: count for label, count in counts.items() if count}
    if absent := [label for label, count in counts.items() if not count]:
        advice.append(f"Target {name!r}: no training image of {few(absent)}.")
    if not present:
        return advice
    ratio = max(present.values()) / min(present.values())
    if ratio >= IMBALANCED:
        rare = min(present, key=lambda label: present[label])
        advice.append(f"Target {name!r} is imbalanced {ratio:.0f}:1 (fewest: {rare!r} with {present[rare]:,}): {_cure(metric)}")
    if tiny := [label for label, count in present.items() if count < 5]:
        advice.append(f"Target {name!r}: {few(tiny)} with fewer than 5 images cannot be in every one of five folds.")
    return advice


def _cure(metric: Metric) -> str:
    """What helps against imbalance where it is this metric that counts."""
    if metric.name == "accuracy" or metric.name.startswith(("micro_", "weighted_")):
        return f"{metric.name} hardly sees the rare ones, and a loss or sampler weighted for them may cost more than it wins."
    if metric.accepts == "probabilities":
        return f"{metric.name} wants the shares as they are; weighted losses and samplers shift them, so calibrate after those."
    return f"try a weighted or focal loss or a weighted sampler, and keep what gains {metric.name} out of fold."


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name or 'unreadable'}" for name, count in counts.items())
