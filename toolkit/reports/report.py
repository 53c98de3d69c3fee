"""The page of an ensemble: how good it is, where it errs, what it is made of, and what was submitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit import reporting
from toolkit.objectives import decide
from toolkit.reports import figures
from toolkit.reports.page import (
    LIMIT_THUMBNAILS,
    Block,
    Confusion,
    Gallery,
    Page,
    Picture,
    Points,
    Section,
    Table,
    Thumbnail,
    of_file,
)

if TYPE_CHECKING:
    from toolkit.reporting import Judged, Report

PER_CELL = 12  # thumbnails behind a cell of the confusion matrix
MOST_CLASSES = 40  # a larger matrix shows the classes that err most


def page(report: Report) -> Page:
    """The page; every figure on it comes from `report`."""
    name = report.competition.name
    scores = ", ".join(
        f"{judged.target.name} {judged.scores[reporting.ENSEMBLE].metrics[report.competition.metric].score:.4f}"
        for judged in report.judged
    )
    rows = max(len(judged.rows.ids) for judged in report.judged)
    return Page(
        f"{name}: the ensemble",
        f"out of fold over {rows:,} rows, {report.competition.metric}: {scores}",
        [section for section in _sections(report) if section.blocks],
    )


def write(report: Report) -> Path:
    """Write reports/report.html, then the figures that the next report is compared with.

    Raises:
        StoreError: they cannot be written.
    """
    path = page(report).write(report.competition.path("reports", "report.html"))
    reporting.keep(report)
    return path


def _sections(report: Report) -> Iterator[Section]:
    yield Section("Since the last report", [Table(("figure", "before", "now"), report.changes)] if report.changes else [])
    paths = _paths(report)
    for judged in report.judged:
        several = f" of {judged.target.name}" if len(report.judged) > 1 else ""
        yield _scores(report, judged, several)
        yield _confusion(judged, several, paths)
        yield _classes(judged, several)
        yield _reliability(judged, several)
        yield _members(judged, several)
        yield _cases("Most confident mistakes", judged, judged.mistakes, several, paths)
        yield _cases("Least certain cases", judged, judged.uncertain, several, paths)
    yield _blend(report)
    yield _curves(report)
    yield _predictions(report)
    yield _submission(report)


def _scores(report: Report, judged: Judged, several: str) -> Section:
    metric = report.competition.metric
    rows = []
    for name, scored in judged.scores.items():
        whole = scored.metrics[metric]
        rows.append((name, whole.score, whole.low, whole.high, *scored.folds[metric].values()))
    numbers = list(next(iter(judged.scores.values())).folds[metric])
    head = ("member", metric, "95 % from", "to", *(f"fold {number}" for number in numbers))
    return Section(f"Scores{several}", [Table(head, rows)], f"Together: {judged.how}.")


def _confusion(judged: Judged, several: str, paths: dict[str, Path]) -> Section:
    classes, counts = judged.target.classes, judged.confused
    if judged.target.multilabel:
        rows = [(name, *map(int, cell.reshape(-1))) for name, cell in zip(classes, counts, strict=True)]
        return Section(f"Errors{several}", [Table(("label", "rightly not", "wrongly said", "missed", "rightly said"), rows)])
    kept = np.arange(len(classes))
    lead = "Rows are the truth, columns what was said; click a number to see the images."
    if len(classes) > MOST_CLASSES:
        errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
        kept = np.sort(np.argsort(-errors, kind="stable")[:MOST_CLASSES])
        lead += f" The {MOST_CLASSES} classes with most errors of {len(classes):,} are shown."
    examples = _examples(judged, kept, paths)
    shown = Confusion(tuple(classes[c] for c in kept), counts[np.ix_(kept, kept)], examples, "Confusion matrix, out of fold")
    return Section(f"Errors{several}", [shown], lead)


def _examples(judged: Judged, kept: Any, paths: dict[str, Path]) -> dict[tuple[int, int], Sequence[Thumbnail]]:
    """Thumbnails of every cell off the diagonal, the most confident first, as many as a page bears."""
    truth, said = judged.rows.truth.decided, decide(judged.combined, judged.rows.truth.decided)
    place = {int(c): i for i, c in enumerate(kept)}
    wrong = np.flatnonzero(truth != said)
    wrong = wrong[np.argsort(-judged.confidence[wrong], kind="stable")]
    found: dict[tuple[int, int], list[Thumbnail]] = {}
    budget = LIMIT_THUMBNAILS // 2
    for row in wrong.tolist():
        cell = (place.get(int(truth[row]), -1), place.get(int(said[row]), -1))
        if min(cell) < 0 or len(found.get(cell, ())) >= PER_CELL or not budget:
            continue
        budget -= 1
        found.setdefault(cell, []).append(_thumbnail(judged, row, paths))
    return dict(found)


def _classes(judged: Judged, several: str) -> Section:
    scored = judged.scores[reporting.ENSEMBLE].classes
    rows = [(name, one.support, one.precision, one.recall, one.f1, one.auc) for name, one in scored.items()]
    return Section(f"Classes{several}", [Table(("class", "rows", "precision", "recall", "F1", "AUC"), rows)])


def _reliability(judged: Judged, several: str) -> Section:
    found = judged.scores[reporting.ENSEMBLE].calibration
    if found is None or not found.bins:
        return Section("")
    curves = {"as it is": ([one["confidence"] for one in found.bins], [one["accuracy"] for one in found.bins])}
    rows = [(name, found.before[name], found.after[name]) for name in found.before]
    chart = figures.reliability("Confidence against truth", curves)
    table = Table(
        ("", "as it is", "after temperature"), rows, f"Temperature {found.temperature:.3f}, fitted without each row's fold"
    )
    return Section(f"Calibration{several}", [chart, table])


def _members(judged: Judged, several: str) -> Section:
    """How members differ, and what each is worth to the others."""
    if not judged.pairs:
        return Section("")
    names = list(judged.rows.members)
    grid = np.eye(len(names))
    for pair in judged.pairs:
        i, j = names.index(pair.first), names.index(pair.second)
        grid[i, j] = grid[j, i] = pair.correlation
    kept = [name for name in names if name in judged.without]
    rows = [(name, e.score, e.gain, e.gain_low, e.gain_high) for name, e in judged.without.items()]
    gains = {"gain": [judged.without[name].gain for name in kept]}
    return Section(
        f"Members{several}",
        [
            figures.heat("Correlation of errors", names, np.nan_to_num(grid)),
            figures.bars("Plain mean without it", kept, gains, unit="gain by leaving it out"),
            Table(("left out", "score", "gain", "95 % from", "to"), rows, "Gains below 0: the member is worth its place"),
        ],
    )


def _cases(title: str, judged: Judged, rows: Any, several: str, paths: dict[str, Path]) -> Section:
    items = [_thumbnail(judged, row, paths) for row in rows.tolist()]
    return Section(f"{title}{several}", [Gallery(items)] if items else [])


def _thumbnail(judged: Judged, row: int, paths: dict[str, Path]) -> Thumbnail:
    name, truth = judged.rows.ids[row], _label(judged, row, judged.rows.truth.decided)
    said = _label(judged, row, decide(judged.combined, judged.rows.truth.decided))
    lines = (name, f"truth {truth}", f"said {said}, {judged.confidence[row]:.2f}")
    alt = f"image {name}, truth {truth}, predicted {said}"
    return of_file(paths[name], alt, *lines) if name in paths else Thumbnail("", alt, lines)


def _label(judged: Judged, row: int, labels: Any) -> str:
    classes = judged.target.classes
    return " ".join(classes[c] for c in np.flatnonzero(labels[row])) if labels.ndim == 2 else classes[int(labels[row])]


def _paths(report: Report) -> dict[str, Path]:
    """The first image of each training id; none where the images are elsewhere."""
    competition = report.competition
    if not competition.path(competition.train.folder).is_dir():
        return {}
    return dict(reversed(competition.images("train")))


def _blend(report: Report) -> Section:
    blocks: list[Block] = []
    for name, said in report.blend.get("targets", {}).items():
        blocks.append(Points([f"{name}: {said.get('reason', '')}"]))
        rows = [(member, weight) for member, weight in said.get("members", {}).items()]
        blocks.append(Table(("member", "weight"), rows, f"vote {said.get('vote', 'soft')}"))
        estimates = [
            (what, one["score"], one["low"], one["high"], one["gain"]) for what, one in said.get("estimates", {}).items()
        ]
        blocks.append(Table(("", "score", "95 % from", "to", "gain over the mean"), estimates))
    return Section("The blend", blocks, "blend.json, as `toolkit blend` wrote it.")


def _curves(report: Report) -> Section:
    blocks: list[Block] = []
    columns = list(dict.fromkeys(name for run in report.runs.values() for name in run if name not in ("epoch", "images/s")))
    for column in columns[:6]:
        y = {run: values[column] for run, values in report.runs.items() if column in values}
        x = {run: report.runs[run].get("epoch", list(range(1, len(y[run]) + 1))) for run in y}
        blocks.append(figures.lines(column, x, y, labels=("epoch", column)))
    return Section("Learning curves", blocks)


def _predictions(report: Report) -> Section:
    meta = report.predictions
    if not meta:
        return Section("")
    plain = {key: value for key, value in meta.items() if isinstance(value, (str, int, float)) and value != ""}
    blocks: list[Block] = [Table(("", ""), list(plain.items()), "The last predictions")]
    models = [(m.get("path"), m.get("member"), m.get("fold"), m.get("weight"), m.get("score")) for m in meta.get("models", ())]
    blocks.append(Table(("export", "member", "fold", "weight", "score on its card"), models))
    views = [
        (name, one["used"], one["score"], *one["gain"], one["won"], one["lost"])
        for name, one in (meta.get("tta") or {}).get("members", {}).items()
    ]
    if views:
        head = ("member", "views", "score", "gain", "95 % from", "to", "wrong → right", "right → wrong")
        blocks.append(Table(head, views, "Test-time augmentation on held-out images"))
    blocks += [Table(("member", "views"), [(name, ", ".join(views)) for name, views in meta.get("views", {}).items()])]
    return Section("Predictions", blocks)


def _submission(report: Report) -> Section:
    blocks: list[Block] = [_histogram(name, pairs) for name, pairs in report.histograms.items()]
    if warnings := report.submission.get("warnings"):
        blocks.append(Points(warnings))
    elif report.submission:
        blocks.append(Points(["The submission passed every check without a warning."]))
    return Section("Submission", blocks)


def _histogram(name: str, pairs: Any) -> Picture:
    """Shares of the labels decided out of fold and on the test images."""
    totals = [max(1, sum(pair[i] for pair in pairs.values())) for i in (0, 1)]
    names = sorted(pairs, key=lambda one: -pairs[one][0])[:MOST_CLASSES]
    series = {what: [pairs[one][i] / totals[i] for one in names] for i, what in enumerate(("out of fold", "test"))}
    return figures.bars(f"Labels of {name}", names, series, unit="share of the images")
