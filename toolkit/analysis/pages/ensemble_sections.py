"""Sections of the ensemble's page on what was made of it: blend, views, runs, time, predictions and submission."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from toolkit.analysis.pages import figures
from toolkit.analysis.pages.page import Block, PageTable, Picture, Points, Section
from toolkit.analysis.run_history import RATE, WAITED
from toolkit.base.text.html import shown
from toolkit.errors import counted

if TYPE_CHECKING:
    from toolkit.analysis.ensemble_report import Report

MOST_CLASSES = 40  # bars of the histogram
CURVES = 6  # columns of the runs that are drawn
RUNS = 60  # runs that are drawn
_LINE = ("score", "gain", "95 % from", "to", "wrong → right", "right → wrong")


def sections(report: Report) -> Iterator[Section]:
    """The sections; those without a block have nothing to show."""
    yield _blend(report)
    yield _views(report)
    yield _curves(report)
    yield _time(report)
    yield _predictions(report)
    yield _submission(report)


def when(moment: object) -> str:
    """A moment as manifests write it, to the minute."""
    return f"{str(moment)[:16].replace('T', ' ')} UTC" if moment else ""


def _blend(report: Report) -> Section:
    blocks: list[Block] = []
    for name, target_blend in report.blend.get("targets", {}).items():
        several = f"{name}: " if len(report.judged) > 1 else ""
        blocks.append(Points([f"{several}{target_blend.get('reason', '')}"]))
        members = target_blend.get("members", {})
        vote = f"{target_blend.get('vote', 'soft')} vote"
        blocks.append(figures.bars(f"Weights, {vote}", list(members), {"weight": list(members.values())}, unit="weight"))
        blocks.append(PageTable(("member", "weight"), list(members.items()), vote))
        estimates = [
            (what, estimate["score"], estimate["low"], estimate["high"], estimate["gain"])
            for what, estimate in target_blend.get("estimates", {}).items()
        ]
        blocks.append(PageTable(("", "score", "95 % from", "to", "gain over the mean"), estimates))
    return Section("The blend", blocks, "As toolkit blend chose it, and the rule by which it did.")


def _views(report: Report) -> Section:
    """What `toolkit tta` found of every set and view, and what the last predictions were made with."""
    blocks: list[Block] = []
    for member, judged in report.views.items():
        sets = [(*_line(line), "chosen" if line["name"] == judged["chosen"] else "") for line in judged["sets"]]
        title = f"{member}: {judged['metric']} on {counted(judged['rows'], 'held-out rows')}, {when(judged['created'])}"
        blocks.append(Points([f"{member}: {judged['reason']}"]))
        blocks.append(PageTable(("set", *_LINE, ""), sets, title))
        blocks.append(
            PageTable(("view", *_LINE), [_line(line) for line in judged["views"]], f"{member}: single views", folded=True)
        )
    used = [
        (name, member_views["used"], member_views["score"], *member_views["gain"], member_views["won"], member_views["lost"])
        for name, member_views in (report.predictions.get("tta") or {}).get("members", {}).items()
    ]
    if used:
        blocks.append(PageTable(("member", "set", *_LINE), used, "What the last predictions were made with"))
    lead = "Test-time augmentation on images that the models did not see; gains are over the plain image."
    return Section("Views", blocks, lead)


def _line(line: Mapping[str, Any]) -> tuple[object, ...]:
    return (line["name"], line["score"], *line["gain"], line["won"], line["lost"])


def _curves(report: Report) -> Section:
    blocks: list[Block] = []
    runs = dict(list(report.runs.items())[:RUNS])
    columns = list(dict.fromkeys(name for run in runs.values() for name in run if name not in ("epoch", RATE, WAITED)))
    kinds = {run: _member(run) for run in runs}
    for column in columns[:CURVES]:
        y = {run: values[column] for run, values in runs.items() if column in values}
        x = {run: runs[run].get("epoch", list(range(1, len(y[run]) + 1))) for run in y}
        blocks.append(figures.lines(column, x, y, labels=("epoch", column), kinds=kinds))
    more = f" The first {RUNS} of {counted(len(report.runs), 'runs')}." if len(report.runs) > RUNS else ""
    return Section("Learning curves", blocks, f"A line per fold, a colour per member.{more}")


def _time(report: Report) -> Section:
    """Throughput, and where the time went."""
    blocks: list[Block] = []
    if report.spent:
        names = [job.what for job in report.spent[:MOST_CLASSES]]
        seconds = {"seconds": [job.seconds for job in report.spent[:MOST_CLASSES]]}
        blocks.append(figures.bars("Predicting: seconds in all", names, seconds, unit="seconds"))
        spent = [(job.what, job.how, job.passes, job.seconds, job.rate, job.share) for job in report.spent]
        what = ("what", "engine", "passes or images", "seconds", "per second", "share")
        blocks.append(PageTable(what, spent, "Predicting, everything computed in this workspace so far"))
    if report.fed:
        fed = [(job.run, job.epochs, job.rate, job.waited, job.loader, job.model) for job in report.fed]
        head = ("run", "epochs", "images/s", "waited for data, share", "loader alone", "model alone")
        blocks.append(PageTable(head, fed, "Training, images per second"))
        remarks = {_member(job.run): f"{_member(job.run)}: {job.said}" for job in report.fed if job.said}
        blocks += [Points(list(remarks.values()))] if remarks else []
    return Section("Where the time went", blocks)


def _member(run: str) -> str:
    return run.rpartition(".fold")[0]


def _predictions(report: Report) -> Section:
    meta = report.predictions
    if not meta:
        return Section("")
    meta = {**meta, "created": when(meta.get("created"))}
    plain = {key: value for key, value in meta.items() if isinstance(value, (str, int, float)) and value != ""}
    views = {f"views of {name}": ", ".join(views) for name, views in meta.get("views", {}).items()}
    models = [(m.get("path"), m.get("member"), m.get("fold"), m.get("weight"), m.get("score")) for m in meta.get("models", ())]
    blocks: list[Block] = [PageTable(("export", "member", "fold", "weight", "score on its card"), models)] if models else []
    blocks.append(
        PageTable(("", ""), [(name, shown(value)) for name, value in (plain | views).items()], "The last predictions")
    )
    return Section("Predictions", blocks)


def _submission(report: Report) -> Section:
    blocks: list[Block] = []
    if report.submission:
        counts = [seen for *_, seen in report.checks if seen]
        passed = f"{len(report.checks) - len(counts)} of {counted(len(report.checks), 'checks')} found nothing."
        blocks.append(Points([passed, *counts]))
        about: dict[str, Any] = {name: shown(report.submission.get(name)) for name in ("format", "rows")}
        about["created"] = when(report.submission.get("created"))
        about["predictions"] = (report.submission.get("predictions") or {}).get("path")
        about["output"] = (report.submission.get("output") or {}).get("path")
        about["SHA-256"] = (report.submission.get("output") or {}).get("sha256")
        blocks.append(PageTable(("", ""), [(name, value) for name, value in about.items() if value]))
        checks = [(code, severity, what, seen or "nothing") for code, severity, what, seen in report.checks]
        blocks.append(PageTable(("code", "severity", "looks for", "found"), checks, "Every check", folded=True))
    for name, pairs in report.histograms.items():
        several = f" of {name}" if len(report.histograms) > 1 else ""
        blocks.append(_histogram(several, pairs))
        rows = [(label, *pair) for label, pair in pairs.items()]
        blocks.append(PageTable(("class", "out of fold", "test"), rows, f"Labels{several}, rows", folded=True))
    return Section("Submission", blocks)


def _histogram(several: str, pairs: Any) -> Picture:
    """Shares of the labels decided out of fold and on the test images."""
    totals = [max(1, sum(pair[i] for pair in pairs.values())) for i in (0, 1)]
    names = sorted(pairs, key=lambda name: -pairs[name][0])[:MOST_CLASSES]
    series = {what: [pairs[name][i] / totals[i] for name in names] for i, what in enumerate(("out of fold", "test"))}
    return figures.bars(f"What was said{several}", names, series, unit="share of the images")
