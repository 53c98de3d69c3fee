"""The page of a data set: what it is, what to do about it, and pictures of every class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from toolkit.analysis.pages import figures
from toolkit.analysis.pages.page import (
    LIMIT_THUMBNAILS,
    Block,
    Facts,
    Gallery,
    Page,
    PageTable,
    Picture,
    Points,
    Section,
    Thumbnail,
    of_file,
)
from toolkit.base.arrays import F64
from toolkit.errors import counted
from toolkit.images.statistics import quantiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from toolkit.analysis.data_survey import Survey
    from toolkit.images.statistics import Files

PER_CLASS = 10  # thumbnails of a class
MOST_CLASSES = 60  # classes that get thumbnails and bars: more is a wall
DRAWN = 24  # pairs of one picture in two files that are drawn
ODD = 36  # odd files of a part that are drawn
MOST_BAD = 200  # bad files that are listed
_UNITS = {"width": "pixels", "height": "pixels", "aspect": "width / height", "kilobytes": "KB"}


def page(survey: Survey) -> Page:
    """The page of a survey; every figure on it comes from `found`."""
    return Page(
        f"{survey.competition.name}: the data", _subtitle(survey), [section for section in _sections(survey) if section]
    )


def write(survey: Survey) -> Path:
    """Write reports/eda.html.

    Raises:
        StoreError: it cannot be written.
    """
    return page(survey).write(survey.competition.path("reports", "eda.html"))


def _subtitle(survey: Survey) -> str:
    counts = [counted(len(files.ids), f"{part} images") for part, files in survey.files.items()]
    sampled = [f"{len(files.sampled):,} of {counted(len(files.ids), f'{part} images')}" for part, files in survey.files.items()]
    whole = all(len(files.sampled) + len(files.bad) >= len(files.ids) for files in survey.files.values())
    return ", ".join(counts) + (
        "; the pixels of all were looked at" if whole else f"; pixel figures from a random sample: {' and '.join(sampled)}"
    )


def _sections(survey: Survey) -> Iterator[Section]:
    yield Section("What to do", [Points(survey.advice), Facts(list(_facts(survey)))])
    for name, counts in survey.classes.items():
        yield _classes(survey, name, dict(counts))
    yield from (_samples(survey, name) for name in survey.classes)
    if survey.groups:
        yield _groups(survey)
    yield _files(survey)
    yield _pixels(survey)
    if survey.shifts:
        yield _shift(survey)
    if survey.doubles:
        yield _doubles(survey)
    if any(survey.odd.values()):
        yield _odd(survey)
    if survey.missing:
        rows = list(survey.missing.items())
        yield Section("Missing values", [PageTable(("column", "empty rows"), rows, survey.competition.train.table)])
    yield from _bad(survey)


def _facts(survey: Survey) -> Iterator[tuple[str, object, str]]:
    for part, files in survey.files.items():
        size = quantiles(files.shape["width"]), quantiles(files.shape["height"])
        note = f"median {size[0]['50%']:.0f} × {size[1]['50%']:.0f} pixels" if all(size) else ""
        yield f"{part} images", len(files.ids), note
    for name, counts in survey.classes.items():
        several = f"classes of {name}" if len(survey.classes) > 1 else "classes"
        most, least = (pick(counts.values(), default=0) for pick in (max, min))
        yield several, len(counts), f"{most:,} to {counted(least, 'rows')} each"
    yield "imbalance", f"{survey.imbalance:.1f} : 1", "largest class over smallest"
    if survey.groups:
        yield (
            "groups",
            survey.groups["count"],
            f"by {survey.groups['column']}, up to {counted(survey.groups['largest'], 'rows')}",
        )
    yield "unusable files", sum(len(files.bad) for files in survey.files.values()), ""
    across = sum(double.first[0] != double.second[0] for double in survey.doubles)
    yield (
        "one picture twice",
        len(survey.doubles),
        f"{counted(across, 'pairs')} across train and test" if survey.doubles else "pairs",
    )
    yield "odd files", sum(map(len, survey.odd.values())), "sound, but unlike the rest"


def _of(survey: Survey, name: str) -> str:
    """How a heading names one of several targets."""
    return f" of {name}" if len(survey.classes) > 1 else ""


def _classes(survey: Survey, name: str, counts: dict[str, int]) -> Section:
    total = sum(counts.values())
    rows = [(label, count, count / max(1, total)) for label, count in counts.items()]
    shown = sorted(rows, key=lambda row: -row[1])[:MOST_CLASSES]
    chart = figures.bars("Training images per class", [row[0] for row in shown], {"images": [row[1] for row in shown]})
    return Section(
        f"Classes{_of(survey, name)}",
        [chart, PageTable(("class", "images", "share"), rows)],
        f"{counted(len(counts), 'classes')}, {counted(total, 'labels')}."
        + (f" The {MOST_CLASSES} largest are drawn." if len(rows) > MOST_CLASSES else ""),
    )


def _samples(survey: Survey, name: str) -> Section:
    """Thumbnails of each class: random ones, the same at every run."""
    table, files = survey.competition.truth()[name], survey.files["train"]
    first = {row_id: i for i, row_id in reversed(list(enumerate(files.ids)))}
    labels, rng = table.decided, np.random.default_rng(0)
    most = table.classes[:MOST_CLASSES]
    each = max(1, min(PER_CLASS, LIMIT_THUMBNAILS // 2 // len(survey.classes) // max(1, len(most))))
    galleries = []
    for c, label in enumerate(most):
        rows: NDArray[np.int64] = np.flatnonzero(labels[:, c] if labels.ndim == 2 else labels == c)
        chosen = [table.ids[row] for row in rng.permutation(rows)[:each] if table.ids[row] in first]
        items = [_thumbnail(files, first[sample_id], label) for sample_id in chosen]
        galleries.append(Gallery(items, f"{label} ({len(rows):,})"))
    more = f" The first {MOST_CLASSES} classes of {len(table.classes):,}." if len(most) < len(table.classes) else ""
    return Section(f"Samples{_of(survey, name)}", galleries, f"Random training images of each class.{more}")


def _thumbnail(files: Files, row: int, label: str) -> Thumbnail:
    return of_file(files.paths[row], f"{label}: image {files.ids[row]}", files.ids[row])


def _groups(survey: Survey) -> Section:
    g = survey.groups
    sizes = np.repeat([float(size) for size in g["sizes"]], list(g["sizes"].values()))
    rows = [
        ("column", g["column"]),
        ("groups", g["count"]),
        ("largest, rows", g["largest"]),
        *((f"all labels of {name!r} agree, share of groups", share) for name, share in g["agreement"].items()),
    ]
    blocks: list[Block] = [PageTable(("", ""), rows), figures.histogram("Rows per group", {"groups": sizes}, unit="rows")]
    if g["mixed"]:
        head, title = ("target", "group", "rows", "labels"), "Groups with several labels, the largest first"
        blocks.append(PageTable(head, g["mixed"], title, folded=True))
    lead = "Rows that belong together must stand on the same side of a split."
    if g["mixed"]:
        head, title = ("target", "group", "rows", "labels"), "Groups with several labels, the largest first"
        blocks.append(PageTable(head, g["mixed"], title, folded=True))
    return Section("Groups", blocks, lead)


def _files(survey: Survey) -> Section:
    kinds = [
        (part, f"{form or 'unreadable'}, {mode or 'unknown mode'}", count)
        for part, files in survey.files.items()
        for (form, mode), count in Counter(zip(files.formats, files.modes, strict=True)).most_common()
    ]
    sizes = [
        (part, f"{int(w)} × {int(h)}", count)
        for part, files in survey.files.items()
        for (w, h), count in Counter(
            (w, h) for w, h in zip(files.shape["width"], files.shape["height"], strict=True) if np.isfinite(w)
        ).most_common(8)
    ]
    spread = [
        (part, f"{name} ({unit})", *(quantiles(files.shape[name]).get(q) for q in ("min", "5%", "50%", "95%", "max")))
        for part, files in survey.files.items()
        for name, unit in _UNITS.items()
    ]
    return Section(
        "Files",
        [
            PageTable(("part", "format, mode", "files"), kinds),
            PageTable(("part", "width × height", "files"), sizes, "The most common sizes"),
            PageTable(("part", "", "smallest", "5 %", "median", "95 %", "largest"), spread),
            *_shapes(survey),
        ],
    )


def _shapes(survey: Survey) -> Iterator[Picture]:
    """Histograms of what differs from file to file."""
    for name, unit in _UNITS.items():
        series = {part: values[np.isfinite(values)] for part, files in survey.files.items() for values in [files.shape[name]]}
        if any(len(values) and np.ptp(values) > 0 for values in series.values()):
            yield figures.histogram(name.capitalize(), {part: v for part, v in series.items() if len(v)}, unit=unit)


def _pixels(survey: Survey) -> Section:
    rows = [(channel, mean, std) for channel, mean, std in zip(("red", "green", "blue"), survey.mean, survey.std, strict=True)]
    return Section(
        "Pixels",
        [
            PageTable(
                ("channel", "mean", "standard deviation"), rows, "For normalisation, of values in 0..1 (training images)"
            ),
            *(_histogram(survey, name) for name in ("brightness", "contrast")),
        ],
    )


def _histogram(survey: Survey, name: str) -> Picture:
    series: dict[str, F64] = {
        part: files.pixel[name][files.sampled] for part, files in survey.files.items() if len(files.sampled)
    }
    return figures.histogram(name.capitalize(), series, unit=f"{name} of an image, 0..1")


def _shift(survey: Survey) -> Section:
    rows = [(shift.what, shift.distance, shift.p, "differs" if shift.large else "") for shift in survey.shifts]
    seen = [figures.scatter("As the models see them", survey.seen)] if survey.seen else []
    return Section(
        "Training against test",
        [PageTable(("property", "distance", "p-value", ""), rows), *seen],
        "Kolmogorov-Smirnov: the largest difference between the two distributions, and the chance of it among equal ones.",
    )


def _doubles(survey: Survey) -> Section:
    pairs = [
        Gallery(
            [of_file(path, f"image {name} of {part}", name, part) for part, name, path in (double.first, double.second)],
            "the same bytes"
            if double.exact
            else "proved by pixels" + ("" if double.turn == "id" else f", turned: {double.turn}"),
        )
        for double in survey.doubles[:DRAWN]
    ]
    more = f" The surest {DRAWN} are shown." if len(survey.doubles) > DRAWN else ""
    return Section(
        "One picture twice", pairs, f"{counted(len(survey.doubles), 'pairs')} among the images that were looked at.{more}"
    )


def _odd(survey: Survey) -> Section:
    blocks: list[Block] = []
    for part, odd in survey.odd.items():
        if odd:
            items = [of_file(o.path, f"image {o.id} of {part}, {o.what}", o.id, f"{o.what}: {o.value:.4g}") for o in odd[:ODD]]
            more = f", {ODD} of {len(odd):,} shown" if len(odd) > ODD else ""
            blocks.append(Gallery(items, f"{part} ({len(odd):,}{more})"))
    return Section("Odd files", blocks, "Far from all others in size, weight, shape or brightness, or next to blank.")


def _bad(survey: Survey) -> Iterator[Section]:
    rows = [(part, why) for part, files in survey.files.items() for why in files.bad.values()]
    if rows:
        more = f" The first {MOST_BAD} of {len(rows):,} are listed." if len(rows) > MOST_BAD else ""
        yield Section("Files that cannot be used", [PageTable(("part", "what is wrong"), rows[:MOST_BAD])], more.strip())
