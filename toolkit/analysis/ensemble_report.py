"""What an ensemble does out of fold and why: scores, mistakes, blend, views, runs, and the submission beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toolkit.analysis import member_diagnosis, run_history
from toolkit.analysis.run_history import Curves, Fed, Spent
from toolkit.analysis.scores import Scored, score
from toolkit.base import documents, files, provenance
from toolkit.base.arrays import F64
from toolkit.blending import oof
from toolkit.blending.blend import Blend
from toolkit.blending.nested import Estimate, compare, widening
from toolkit.blending.objectives import decide
from toolkit.core import prediction_files
from toolkit.core.lineage import optimistic
from toolkit.ensemble import evidence, tta
from toolkit.errors import DataError, SubmissionError, counted, few
from toolkit.submissions import manifest
from toolkit.submissions.checks import CODES
from toolkit.submissions.submission import last_made
from toolkit.workspace.competition import Competition, Target

MISTAKES = 24  # pictures of the most confident mistakes, and of the least certain cases
ENSEMBLE = "ensemble"
FOLDS = 5  # a temperature is fitted without each of so many parts of the rows
KEPT = "report.json"  # the figures of the last report, beside it
TIMID, BOLD = 0.8, 1.25  # temperatures from which probabilities are worth cooling or warming


@dataclass(frozen=True, eq=False)
class Judged:
    """One target: its members' out-of-fold tables and what they give together, with the scores of each.

    `folds` has each member's score of each fold with its interval, None where the metric has no value there. `combined` float64
    [N, C] is what blend.json makes of them (settled without each row's fold, where it was fitted), else their mean, and `how`
    says so. `optimistic` says by member, ENSEMBLE among them, why its scores are too good, of those that are. `confused` int64
    [C, C] counts truth by decided label (of a multilabel target, each label's truth by what was said: [C, 2, 2]). `pairs` say
    how members go together, `without` what leaving one out of the plain mean brings; both are empty for a single member.
    `doubts` are sentences on tables that seem wrong.
    """

    target: Target
    rows: oof.MemberRows
    combined: F64
    how: str
    scores: Mapping[str, Scored]
    folds: Mapping[int, Mapping[str, Estimate] | None]
    confused: NDArray[np.int64]
    pairs: tuple[member_diagnosis.Pair, ...]
    without: Mapping[str, Estimate]
    optimistic: Mapping[str, str]
    doubts: tuple[str, ...] = ()

    def title(self, name: str) -> str:
        """A member's name beside its score, which says that this is too good where it is."""
        return f"{name} (optimistic)" if name in self.optimistic else name

    @property
    def confidence(self) -> F64:
        """Probability of what was decided, float64 [N]; of a multilabel target the least certain label's."""
        sure = np.maximum(self.combined, 1 - self.combined) if self.target.multilabel else self.combined
        return np.asarray(sure.min(axis=1) if self.target.multilabel else sure.max(axis=1))

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Rows whose label (or any of whose labels) is not the truth."""
        missed = decide(self.combined, self.rows.truth.decided) != self.rows.truth.decided
        return np.asarray(missed.any(axis=1) if missed.ndim == 2 else missed)

    @property
    def mistakes(self) -> NDArray[np.int64]:
        """Wrong rows, the most confident first."""
        wrong = np.flatnonzero(self.wrong)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:MISTAKES]

    @property
    def uncertain(self) -> NDArray[np.int64]:
        """Rows whose two most probable classes are closest, right or wrong."""
        if self.target.multilabel:
            margin = np.abs(self.combined - 0.5).min(axis=1)
        else:
            top = np.partition(self.combined, -2, axis=1)[:, -2:]
            margin = top[:, 1] - top[:, 0]
        return np.argsort(margin, kind="stable")[:MISTAKES]


@dataclass(frozen=True, eq=False)
class Report:
    """All that the page shows; `record` has every figure as plain values.

    `blend` is blend.json, `predictions` what the last ones say of themselves, `views` what `toolkit tta` found, `submission`
    its manifest, `runs` learning curves, `fed` and `spent` where the time of training and of predicting went, `before` the
    figures of the last report.
    """

    competition: Competition
    judged: tuple[Judged, ...]
    blend: Mapping[str, Any]
    predictions: Mapping[str, Any]
    views: Mapping[str, Any]
    histograms: Mapping[str, Mapping[str, tuple[int, int]]]
    submission: Mapping[str, Any]
    runs: Curves
    fed: tuple[Fed, ...]
    spent: tuple[Spent, ...]
    before: Mapping[str, Any]

    @property
    def figures(self) -> dict[str, float]:
        """Scores by target and member."""
        return {
            f"{judged.target.name}: {name}": scored.metrics[self.competition.metric].score
            for judged in self.judged
            for name, scored in judged.scores.items()
        }

    @property
    def evidence(self) -> list[tuple[str, dict[str, Any]]]:
        """What the last predictions and the submission would score as they were made, where there are any."""
        both = {"last predictions": evidence.of(self.predictions) if self.predictions else {}}
        scores = self.submission.get("scores")
        both["submission"] = evidence.of({"evidence": scores}) if scores else {}
        return [(what, record) for what, record in both.items() if record]

    @property
    def watched(self) -> dict[str, float]:
        """The figures that are compared with the last report's: scores, rows, calibration, weights."""
        figures = self.figures
        for judged in self.judged:
            name, scored = judged.target.name, judged.scores[ENSEMBLE]
            figures[f"{name}: rows"] = len(judged.rows.ids)
            figures[f"{name}: wrong rows"] = int(judged.wrong.sum())
            if scored.calibration:
                figures[f"{name}: calibration error"] = scored.calibration.before["ece"]
            weights = self.blend.get("targets", {}).get(name, {}).get("members", {})
            figures |= {f"{name}: weight of {member}": weight for member, weight in weights.items()}
        return figures

    @property
    def changes(self) -> list[tuple[str, float | None, float | None]]:
        """(figure, before, now) of what is not as it was in the last report; nothing if there was none."""
        if not self.before:
            return []
        then, now = self.before.get("figures", {}), self.watched
        return [(name, then.get(name), now.get(name)) for name in {**then, **now} if then.get(name) != now.get(name)]

    @property
    def checks(self) -> list[tuple[str, str, str, str]]:
        """(code, severity, what, what was seen) of every check a submission goes through; nothing without a submission."""
        if not self.submission:
            return []
        seen = {str(warning).partition(" ")[0]: str(warning) for warning in self.submission.get("warnings", ())}
        return [(code, rule.severity, rule.what, seen.get(code, "")) for code, rule in CODES.items()]

    @property
    def advice(self) -> list[str]:
        """What the figures say, in sentences, and what to do about it."""
        sentences = [sentence for judged in self.judged for sentence in _about(judged, self)]
        return [sentence[:1].upper() + sentence[1:] for sentence in sentences] + list(_next(self))

    @property
    def record(self) -> dict[str, Any]:
        """Every figure as plain values, for machines."""
        return {
            "ok": True,
            "metric": self.competition.metric,
            "targets": {
                judged.target.name: {
                    "rows": len(judged.rows.ids),
                    "how": judged.how,
                    "optimistic": dict(judged.optimistic),
                    "scores": {name: scored.record(self.competition.metric) for name, scored in judged.scores.items()},
                    "folds": {
                        fold: {name: asdict(fold_estimate) for name, fold_estimate in estimates.items()} if estimates else None
                        for fold, estimates in judged.folds.items()
                    },
                    "classes": list(judged.target.classes),
                    "confused": judged.confused.tolist(),
                    "mistakes": [judged.rows.ids[row] for row in judged.mistakes],
                    "pairs": [asdict(pair) for pair in judged.pairs],
                    "without": {name: asdict(estimate) for name, estimate in judged.without.items()},
                    "uncertain": [judged.rows.ids[row] for row in judged.uncertain],
                    "histogram": {name: list(pair) for name, pair in self.histograms.get(judged.target.name, {}).items()},
                }
                for judged in self.judged
            },
            "advice": self.advice,
            "figures": self.figures,
            "changes": [list(change) for change in self.changes],
            "blend": dict(self.blend),
            "predictions": dict(self.predictions),
            "views": dict(self.views),
            "training": [asdict(fed) for fed in self.fed],
            "predicting": [asdict(spent) for spent in self.spent],
            "checks": [list(check) for check in self.checks],
            "submission": dict(self.submission),
        }


def gather(competition: Competition) -> Report:
    """Read what the workspace has: out-of-fold tables, blend.json, the last predictions, the submission, the runs.

    Raises:
        DataError, AlignmentError: no out-of-fold tables, or tables that do not fit each other.
    """
    tables = oof.find_tables(competition)
    blends = oof.read_blends(competition) if competition.path(oof.FILE).is_file() else {}
    judged = tuple(_judged(competition, target, tables, blends.get(target.name)) for target in competition.targets)
    meta, predicted = _last(competition)
    runs = run_history.curves(competition.path("runs"))
    return Report(
        competition,
        judged,
        _json(competition.path(oof.FILE)),
        meta,
        tta.kept(competition),
        {
            judgement.target.name: _histogram(judgement, predicted[judgement.target.name])
            for judgement in judged
            if judgement.target.name in predicted
        },
        _json(manifest.path_of(competition.path("submission.csv"))),
        runs,
        tuple(run_history.training(competition.path("runs"), runs)),
        tuple(run_history.predicting(competition.path("store"), meta.get("models", ()))),
        _json(competition.path("reports", KEPT)),
    )


def keep(report: Report) -> Path:
    """Note the figures for the next report to compare with.

    Raises:
        StoreError: they cannot be written.
    """
    path, record = report.competition.path("reports", KEPT), {"created": provenance.now(), "figures": report.watched}
    return files.write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _judged(competition: Competition, target: Target, tables: Mapping[str, Path], blend: Blend | None) -> Judged:
    rows = oof.read_members(competition, target, tables, common=True)
    known = blend is not None and set(blend.members) <= set(rows.members)
    marks = {name: why for name in rows.members if (why := optimistic(oof.chosen_by(tables[name])))}
    joined = _together(rows, blend if known else None, target)
    rows, combined = joined.rows, joined.combined
    of_members = dict.fromkeys(marks[name] for name in joined.members if name in marks)
    if whole := "; ".join(filter(None, [joined.fitted, *of_members])):
        marks[ENSEMBLE] = whole
    together = replace(rows, members=(*rows.members, ENSEMBLE), stack=np.concatenate([rows.stack, combined[None]]))
    truth, (doubted, doubts) = rows.truth.decided, member_diagnosis.doubted(rows)
    enough = rows.folds is not None or len(set(rows.groups or rows.ids)) >= FOLDS
    widen = {ENSEMBLE: widening(joined.outer)} if joined.outer > 1 else {}
    scores = score(together, [competition.metric], calibration=enough, widen=widen)
    return Judged(
        target,
        rows,
        combined,
        joined.how,
        dict(zip(together.members, scores, strict=True)),
        _by_fold(together, competition),
        _confused(truth, decide(combined, truth), len(target.classes)),
        tuple(member_diagnosis.pairs(rows)) if len(rows.members) > 1 else (),
        member_diagnosis.ablation(member_diagnosis.honest(rows, doubted), competition.score),
        marks,
        tuple(doubts),
    )


class _Joined(NamedTuple):
    """The rows that have an answer, what members say together of them [N, C], how, and which of them have a say.

    `fitted` says why its score is too good, `outer` without how many folds it was settled.
    """

    rows: oof.MemberRows
    combined: F64
    how: str
    members: tuple[str, ...]
    fitted: str = ""
    outer: int = 0


def _together(rows: oof.MemberRows, blend: Blend | None, target: Target) -> _Joined:
    """What members say together of their rows: as blend.json says, else their plain mean.

    A blend that was fitted is, for the rows of each fold, the one that the other folds lead to. One that leaves no numbers
    gives way to the plain mean.
    """
    plain = _Joined(rows, rows.stack.mean(axis=0), "the plain mean of the members", rows.members)
    if blend is None:
        return plain
    how = f"blend.json: {blend.vote} vote with {blend.spec}"
    if blend.outer is None:
        order = [rows.members.index(name) for name in blend.members]
        values = blend.apply(rows.stack[order], multilabel=target.multilabel).values
        why = "blend.json was fitted to these rows" if blend.fitted else ""
        return plain if values is None else _Joined(rows, values, how, blend.weighing, why)
    places = [places for _, places in blend.outer.parts(rows.ids)]
    votes = blend.outer.apply(rows.stack, rows.members, rows.ids, multilabel=target.multilabel)
    parts = [vote.values for vote in votes if vote.values is not None]
    if not parts or len(parts) < len(votes):
        return plain
    by_place = np.argsort(np.concatenate(places), kind="stable")
    kept = np.concatenate(places)[by_place]
    how += "; in these figures settled without each row's fold"
    weighing = tuple(dict.fromkeys(name for own in [blend, *blend.outer.blends.values()] for name in own.weighing))
    return _Joined(rows.take(kept), np.concatenate(parts)[by_place], how, weighing, outer=len(votes))


def _by_fold(rows: oof.MemberRows, competition: Competition) -> dict[int, dict[str, Estimate] | None]:
    """Each member's score of each fold with its interval; None where the metric has no value there, as an area of one class."""
    by_fold: dict[int, dict[str, Estimate] | None] = {}
    for fold in [] if rows.folds is None else np.unique(rows.folds).tolist():
        inside = np.flatnonzero(rows.folds == fold)
        part = rows.take(inside)
        tables = dict(zip(part.members, part.stack, strict=True))
        try:
            by_fold[fold] = compare(part.truth.decided, competition.score, tables, baseline=ENSEMBLE, groups=part.groups)
        except DataError:
            by_fold[fold] = None
    return by_fold


def _confused(truth: NDArray[Any], predicted: NDArray[Any], classes: int) -> NDArray[np.int64]:
    if truth.ndim == 2:
        cells = 2 * truth.astype(np.int64) + predicted
        return np.stack([np.bincount(column, minlength=4).reshape(2, 2) for column in cells.T])
    return np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _last(competition: Competition) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What the last predictions say of themselves, and the tables."""
    try:
        table = prediction_files.read_table(last_made(competition))
    except SubmissionError:
        return {}, {}
    return table.meta, table.predictions


def _histogram(judged: Judged, predicted: Any) -> dict[str, tuple[int, int]]:
    """Per class the labels decided out of fold and on the test images."""
    classes = judged.target.classes
    test = predicted.with_classes(classes).decided
    ours = decide(judged.combined, judged.rows.truth.decided)

    def counted(labels: NDArray[Any]) -> list[int]:
        counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=len(classes))
        return [int(count) for count in counts]

    return dict(zip(classes, zip(counted(ours), counted(test), strict=True), strict=True))


def _about(judged: Judged, report: Report) -> Iterator[str]:
    """What stands out of one target."""
    name = f"of {judged.target.name}, " if len(report.judged) > 1 else ""
    if not judged.target.multilabel and (confusions := _confusions(judged)):
        yield f"{name}most often mistaken: {'; '.join(confusions)}."
    classes = judged.scores[ENSEMBLE].classes
    weak = min((label for label in classes if classes[label].support), key=lambda label: classes[label].f1, default="")
    if weak and classes[weak].f1 < 1:
        yield f"{name}weakest class: {weak!r}, F1 {classes[weak].f1:.3f} over {counted(classes[weak].support, 'rows')}."
    calibration = judged.scores[ENSEMBLE].calibration
    if calibration and not TIMID < calibration.temperature < BOLD:
        how = "too sure of themselves" if calibration.temperature > 1 else "less sure than they may be"
        yield (
            f"{name}probabilities are {how}: a temperature of {calibration.temperature:.2f} brings the calibration error from "
            f"{calibration.before['ece']:.3f} to {calibration.after['ece']:.3f}, which matters to metrics of probabilities "
            "(toolkit blend --calibrate temperature)."
        )
    for why in dict.fromkeys(judged.optimistic.values()):
        names = [member for member, reason in judged.optimistic.items() if reason == why]
        yield f"{name}the scores of {few(names)} are optimistic: {why}."
    for doubt in judged.doubts:
        yield f"{name}{doubt}."
    for pair in judged.pairs:
        if pair.copies:
            yield f"{name}{pair.first} and {pair.second} are {pair.copies}: one of them is enough."
    for member, rest in judged.without.items():
        if rest.gain_low > 0:
            yield f"{name}the plain mean gains {rest.gain:.4f} without {member!r} (at least {rest.gain_low:.4f}): leave it out."


def _confusions(judged: Judged, most: int = 3) -> list[str]:
    """The largest counts off the diagonal, in words."""
    off = judged.confused - np.diag(np.diag(judged.confused))
    cells = [np.unravel_index(place, off.shape) for place in np.argsort(-off, axis=None, kind="stable")[:most]]
    classes, totals = judged.target.classes, judged.confused.sum(axis=1)
    return [
        f"{classes[i]!r} for {classes[j]!r} ({off[i, j]:,} of {totals[i]:,}, {off[i, j] / totals[i]:.1%})"
        for i, j in cells
        if off[i, j]
    ]


def _next(report: Report) -> Iterator[str]:
    """What has not been done yet, or not since."""
    if any(len(judged.rows.members) > 1 for judged in report.judged) and not report.blend:
        yield "The members are averaged plainly: `toolkit blend` finds out whether weights would pay."
    if not report.predictions:
        yield "There are no predictions of the test images yet: toolkit ensemble folds/*.onnx"
    elif not report.submission:
        yield "There is no submission yet: toolkit submit"
    elif str(report.predictions.get("created", "")) > str(report.submission.get("created", "")):
        yield "The predictions are newer than submission.csv: toolkit submit"
    if codes := [code for code, _, _, seen in report.checks if seen]:
        yield f"The submission was written with {counted(len(codes), 'warnings')} ({', '.join(codes)}): see its checks."


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, nothing where there is none.

    Raises:
        DataError: it is there and cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        return dict(documents.read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="Mend or delete it.") from error
