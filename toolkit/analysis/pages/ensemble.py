"""The page of an ensemble: how good it is, where it errs, what its members are worth; then what was made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.analysis import ensemble_report
from toolkit.analysis.pages import ensemble_sections, figures
from toolkit.analysis.pages.page import (
    LIMIT_THUMBNAILS,
    Confusion,
    Facts,
    Gallery,
    Page,
    PageTable,
    Points,
    Section,
    Thumbnail,
    of_file,
)
from toolkit.blending.objectives import decide
from toolkit.ensemble import evidence
from toolkit.errors import counted

if TYPE_CHECKING:
    from toolkit.analysis.ensemble_report import Judged, Report

PER_CELL = 12  # thumbnails behind a cell of the confusion matrix
RIGHT = 6  # thumbnails behind a cell of its diagonal
MOST_CLASSES = 40  # a larger matrix shows the classes that err most
TOLD = 3  # classes whose probabilities stand under a thumbnail, beside the truth's
OPEN = 16  # rows from which a table of folds is folded


def page(report: Report) -> Page:
    """The page; every figure on it comes from `report`."""
    name = report.competition.name
    scores = ", ".join(
        f"{judged.target.name} {judged.scores[ensemble_report.ENSEMBLE].metrics[report.competition.metric].score:.4f}"
        + (" (optimistic)" if ensemble_report.ENSEMBLE in judged.optimistic else "")
        for judged in report.judged
    )
    rows = max(len(judged.rows.ids) for judged in report.judged)
    return Page(
        f"{name}: the ensemble",
        f"out of fold over {counted(rows, 'rows')}, {report.competition.metric}: {scores}",
        [section for section in _sections(report) if section.blocks],
    )


def write(report: Report) -> Path:
    """Write reports/report.html, then the figures that the next report is compared with.

    Raises:
        StoreError: they cannot be written.
    """
    path = page(report).write(report.competition.path("reports", "report.html"))
    ensemble_report.keep(report)
    return path


def _sections(report: Report) -> Iterator[Section]:
    yield Section("In short", [Facts(list(_facts(report))), Points(report.advice)])
    yield _changes(report)
    paths = _paths(report)
    for judged in report.judged:
        several = f" of {judged.target.name}" if len(report.judged) > 1 else ""
        yield _scores(report, judged, several)
        yield _confusion(judged, several, paths, LIMIT_THUMBNAILS // 2 // len(report.judged))
        yield _classes(judged, several)
        yield _reliability(judged, several)
        yield _members(judged, several)
        yield _cases("Most confident mistakes", judged, judged.mistakes, several, paths)
        yield _cases("Least certain cases", judged, judged.uncertain, several, paths)
    yield from ensemble_sections.sections(report)


def _facts(report: Report) -> Iterator[tuple[str, object, str]]:
    metric = report.competition.metric
    for judged in report.judged:
        whole = judged.scores[ensemble_report.ENSEMBLE].metrics[metric]
        several = f", {judged.target.name}" if len(report.judged) > 1 else ""
        why = judged.optimistic.get(ensemble_report.ENSEMBLE, "")
        sure = f"95 % from {whole.low:.4f} to {whole.high:.4f}" + (f"; optimistic: {why}" if why else "")
        yield f"{metric}, out of fold{several}", f"{whole.score:.4f}", sure
        best = max(judged.rows.members, key=lambda name: report.competition.score.gain(_score(judged, name, metric)))
        if len(judged.rows.members) > 1:
            yield f"best member{several}", f"{_score(judged, best, metric):.4f}", judged.title(best)
        wrong, rows = int(judged.wrong.sum()), len(judged.rows.ids)
        yield f"wrong rows{several}", wrong, f"of {rows:,}, {wrong / max(rows, 1):.1%}"
        if calibration := judged.scores[ensemble_report.ENSEMBLE].calibration:
            note = f"{calibration.after['ece']:.4f} at temperature {calibration.temperature:.2f}"
            yield f"calibration error{several}", f"{calibration.before['ece']:.4f}", note
    for what, record in report.evidence:
        score = record.get("out_of_fold")
        yield f"{what}, as made", "unknown" if score is None else f"{score:.4f}", "; ".join(evidence.lines(record))
    if report.submission:
        failed = sum(bool(seen) for *_, seen in report.checks)
        yield (
            "submission",
            report.submission.get("rows"),
            f"rows; {counted(failed, 'warnings')} of {counted(len(report.checks), 'checks')}",
        )


def _score(judged: Judged, name: str, metric: str) -> float:
    return judged.scores[name].metrics[metric].score


def _changes(report: Report) -> Section:
    if not report.before:
        return Section("")
    lead = f"The last report was made {ensemble_sections.when(report.before.get('created')) or 'earlier'}."
    rows = [(name, then, now, None if now is None or then is None else now - then) for name, then, now in report.changes]
    table = PageTable(("figure", "before", "now", "change"), rows)
    return Section("Since the last report", [table if rows else Points(["No figure has changed."])], lead)


def _scores(report: Report, judged: Judged, several: str) -> Section:
    metric = report.competition.metric
    rows = []
    for name, scored in judged.scores.items():
        whole = scored.metrics[metric]
        rows.append((judged.title(name), whole.score, whole.low, whole.high, *scored.folds[metric].values()))
    numbers = list(next(iter(judged.scores.values())).folds[metric])
    head = ("member", metric, "95 % from", "to", *(f"fold {number}" for number in numbers))
    every = {judged.title(name): scored.metrics[metric] for name, scored in judged.scores.items()}
    spans = {name: (estimate.score, estimate.low, estimate.high) for name, estimate in every.items()}
    parts = {
        judged.title(name): [v for v in scored.folds[metric].values() if v is not None]
        for name, scored in judged.scores.items()
    }
    chart = figures.intervals(f"{metric}, each with its folds", spans, parts, unit=metric)
    each = [
        (judged.title(name), fold, estimate.score, estimate.low, estimate.high)
        for name in judged.scores
        for fold, estimates in judged.folds.items()
        for estimate in ([estimates[name]] if estimates else [])
    ]
    apart = PageTable(
        ("member", "fold", metric, "95 % from", "to"), each, "Folds with their intervals", folded=len(each) >= OPEN
    )
    lead = f"Together: {judged.how}. Lines are 95 % intervals, small dots the folds."
    return Section(f"Scores{several}", [PageTable(head, rows), chart, *([apart] if each else [])], lead)


def _confusion(judged: Judged, several: str, paths: dict[str, Path], budget: int) -> Section:
    classes, counts = judged.target.classes, judged.confused
    if judged.target.multilabel:
        rows = [(name, *map(int, cell.reshape(-1))) for name, cell in zip(classes, counts, strict=True)]
        return Section(
            f"Errors{several}", [PageTable(("label", "rightly not", "wrongly said", "missed", "rightly said"), rows)]
        )
    kept = np.arange(len(classes))
    lead = "Rows are the truth, columns what was said; click a number to see the images."
    if len(classes) > MOST_CLASSES:
        errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
        kept = np.sort(np.argsort(-errors, kind="stable")[:MOST_CLASSES])
        lead += f" The {MOST_CLASSES} classes with most errors of {len(classes):,} are shown."
    examples = examples_of(judged, kept, paths, budget)
    shown = Confusion(tuple(classes[c] for c in kept), counts[np.ix_(kept, kept)], examples, "Confusion matrix, out of fold")
    return Section(f"Errors{several}", [shown], lead)


def examples_of(judged: Judged, kept: Any, paths: dict[str, Path], budget: int) -> dict[tuple[int, int], Sequence[Thumbnail]]:
    """Thumbnails of every cell, as many as `budget`: mistakes, the most confident first, then right ones, the least certain."""
    truth, decided = judged.rows.truth.decided, decide(judged.combined, judged.rows.truth.decided)
    place = {int(c): i for i, c in enumerate(kept)}
    order = np.argsort(-judged.confidence, kind="stable")
    wrong = (truth != decided)[order]
    chosen: dict[tuple[int, int], list[int]] = {}
    for row in [*order[wrong].tolist(), *order[~wrong][::-1].tolist()]:
        cell = (place.get(int(truth[row]), -1), place.get(int(decided[row]), -1))
        most = RIGHT if cell[0] == cell[1] else PER_CELL
        if min(cell) >= 0 and budget and len(chosen.setdefault(cell, [])) < most:
            chosen[cell].append(row)
            budget -= 1
    return {cell: [_thumbnail(judged, row, paths) for row in rows] for cell, rows in chosen.items()}


def _classes(judged: Judged, several: str) -> Section:
    scored = judged.scores[ensemble_report.ENSEMBLE].classes
    rows = [(name, scores.support, scores.precision, scores.recall, scores.f1, scores.auc) for name, scores in scored.items()]
    return Section(f"Classes{several}", [PageTable(("class", "rows", "precision", "recall", "F1", "AUC"), rows)])


def _reliability(judged: Judged, several: str) -> Section:
    calibration = judged.scores[ensemble_report.ENSEMBLE].calibration
    if calibration is None or not calibration.bins:
        return Section("")
    both = {"as it is": calibration.bins, "after temperature": calibration.bins_after}
    curves = {
        name: (
            [reliability_bin["confidence"] for reliability_bin in bins],
            [reliability_bin["accuracy"] for reliability_bin in bins],
            [reliability_bin["count"] for reliability_bin in bins],
        )
        for name, bins in both.items()
    }
    names = {"ece": "calibration error (ECE)", "brier": "Brier score", "log_loss": "log-loss"}
    rows = [(names.get(name, name), calibration.before[name], calibration.after[name]) for name in calibration.before]
    title = f"Temperature {calibration.temperature:.3f}; each row's was fitted without its fold"
    bins = [(name, *reliability_bin.values()) for name, part in both.items() for reliability_bin in part]
    head = ("", "from", "to", "rows", "confidence", "share right")
    return Section(
        f"Calibration{several}",
        [
            figures.reliability("Confidence against truth", curves),
            PageTable(("", "as it is", "after temperature"), rows, title),
            PageTable(head, bins, "The points of the diagram", folded=True),
        ],
        "On the dotted line confidence is honest; above it there is too little, below it too much. Larger dots are more rows.",
    )


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
    spans = [(judged.without[name].gain_low, judged.without[name].gain_high) for name in kept]
    pairs = [(p.first, p.second, p.correlation, p.disagreement, p.both_wrong) for p in judged.pairs]
    head = ("member", "other", "correlation", "say otherwise", "both wrong")
    return Section(
        f"Members{several}",
        [
            figures.heat("Correlation of errors", names, np.nan_to_num(grid)),
            figures.bars(
                "The plain mean without it", kept, gains, unit="gain by leaving it out, with 95 % interval", spans=spans
            ),
            PageTable(("left out", "score", "gain", "95 % from", "to"), rows, "Gains below 0: the member is worth its place"),
            PageTable(head, pairs, "Every two members", folded=len(pairs) >= OPEN),
        ],
    )


def _cases(title: str, judged: Judged, rows: Any, several: str, paths: dict[str, Path]) -> Section:
    items = [_thumbnail(judged, row, paths) for row in rows.tolist()]
    return Section(f"{title}{several}", [Gallery(items)] if items else [])


def _thumbnail(judged: Judged, row: int, paths: dict[str, Path]) -> Thumbnail:
    name, truth = judged.rows.ids[row], _label(judged, row, judged.rows.truth.decided)
    decided = _label(judged, row, decide(judged.combined, judged.rows.truth.decided))
    lines = (name, f"truth {truth}", f"said {decided}", *_probabilities(judged, row))
    alt = f"image {name}, truth {truth}, predicted {decided}"
    return of_file(paths[name], alt, *lines) if name in paths else Thumbnail("", alt, lines)


def _probabilities(judged: Judged, row: int) -> list[str]:
    """The probabilities of the most probable classes and of the true one, a line each: names may run from right to left."""
    classes, p = judged.target.classes, judged.combined[row]
    if judged.target.multilabel:
        shown = np.argsort(np.abs(p - 0.5), kind="stable")[:TOLD]  # where it hung in the balance
    else:
        shown = np.argsort(-p, kind="stable")[:TOLD]
        truth = int(judged.rows.truth.decided[row])
        shown = shown if truth in shown else np.append(shown, truth)
    return [f"{classes[c]} {p[c]:.2f}" for c in shown]


def _label(judged: Judged, row: int, labels: Any) -> str:
    classes = judged.target.classes
    return " ".join(classes[c] for c in np.flatnonzero(labels[row])) if labels.ndim == 2 else classes[int(labels[row])]


def _paths(report: Report) -> dict[str, Path]:
    """The first image of each training id; none where the images are elsewhere."""
    competition = report.competition
    if not competition.path(competition.train.folder).is_dir():
        return {}
    return dict(reversed(competition.images("train")))
