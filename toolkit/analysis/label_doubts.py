"""Labels that out-of-fold predictions speak against, by confident learning, and how good a judge those predictions are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.analysis.audit_findings import AuditFinding
from toolkit.base.arrays import F64, Labels
from toolkit.blending import oof
from toolkit.blending.nested import score_of
from toolkit.core import metrics
from toolkit.core.metrics import Metric
from toolkit.core.predictions import Predictions
from toolkit.errors import DataError, counted, few
from toolkit.workspace.competition import Competition, Target

FIXES = "labels_fix.csv"
EPS = 1e-9
WEAK = 0.5  # of the class shares' log-loss: predictions above it say too little of a single label
MANY = 0.15  # of the labels: more cannot all be slips, and no list of them helps


@dataclass(frozen=True)
class Issue:
    """A label that the out-of-fold predictions speak against: the probability of what is given and of what they suggest."""

    id: str
    target: str
    given: str
    suggested: str
    p_given: float
    p_suggested: float
    path: Path | None = None


@dataclass(frozen=True)
class LabelJudge:
    """How good the out-of-fold predictions are that judge a target's labels.

    `score` is the competition's metric, out of fold (None where it has none for these rows); `log_loss` is theirs and `shares`
    that of the class shares alone, in nats; `doubted` counts the labels they speak against, of `rows`.
    """

    target: str
    tables: int
    metric: str
    score: float | None
    log_loss: float
    shares: float
    doubted: int
    rows: int

    @property
    def weak(self) -> str:
        """Why these predictions say nothing of single labels; "" where they may."""
        if self.log_loss > WEAK * self.shares:
            return f"a judge of labels needs a log-loss below {WEAK:.0%} of that of the class shares"
        if self.doubted > MANY * self.rows:
            return f"it speaks against {self.doubted:,} of {counted(self.rows, 'labels')}, which cannot all be slips"
        return ""

    def __str__(self) -> str:
        """In words: what it is and how good."""
        score = "" if self.score is None or self.metric == "log_loss" else f"{self.metric} {self.score:.4f}, "
        mean = f"the mean of {counted(self.tables, 'tables')}" if self.tables > 1 else "one table"
        return f"{mean} out of fold, {score}log-loss {self.log_loss:.3f} (class shares alone: {self.shares:.3f})"


def judged(competition: Competition, paths: Mapping[str, Path]) -> tuple[list[Issue], list[LabelJudge], list[AuditFinding]]:
    """Labels that the mean of all out-of-fold tables speaks against, the surest first; who says so, and what is worth saying.

    A judge that is weak names no label.

    Raises:
        DataError, AlignmentError: out-of-fold tables that do not fit the workspace.
    """
    try:
        tables = oof.find_tables(competition)
    except DataError as error:
        return [], [], [AuditFinding("labels", "note", f"labels were not looked at: {error.message}", hint=error.hint)]
    issues, judges, findings = [], [], []
    for target in competition.targets:
        rows = oof.read_members(competition, target, tables, common=True)
        mean = rows.stack.mean(axis=0)
        doubted = list(doubts(target, rows.truth, mean, paths))
        judge = _judge(target, rows.truth, mean, competition.score, tables=len(rows.members), doubted=len(doubted))
        judges.append(judge)
        if judge.weak:
            named = f" of {target.name!r}" if len(competition.targets) > 1 else ""
            what = f"labels{named} were not judged: {judge} is too weak for it; {judge.weak}"
            findings.append(AuditFinding("labels", "note", what, hint="Train a better member, then audit again."))
        elif doubted:
            issues += doubted
            findings.append(_finding(doubted, judge))
    return sorted(issues, key=lambda issue: issue.p_given - issue.p_suggested), judges, findings


def confident(p: F64, truth: Labels) -> Labels:
    """The class that each row probably has, where it is not the given one (int64 [N]); else the given one.

    Confident learning (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068): a row counts for the classes whose probability
    reaches the mean that rows given to that class have, and for the most probable of them. `p` is float64 [N, C].
    """
    classes = p.shape[1]
    mean = np.full(classes, np.inf)  # no row is given to an absent class, and none can be confident in it
    for c in np.unique(truth):
        mean[c] = p[truth == c, c].mean()
    confident_in = np.where(p >= mean - EPS, p, -1.0)
    likely = confident_in.argmax(axis=1)
    return np.asarray(np.where(confident_in.max(axis=1) >= 0, likely, truth))


def doubts(target: Target, truth: Predictions, p: F64, paths: Mapping[str, Path]) -> Iterator[Issue]:
    """Rows whose label the out-of-fold probabilities [N, C] contradict, by confident learning; a row is one issue."""
    labels, rows = truth.decided, np.arange(len(truth))
    if target.multilabel:  # every class is a question of its own; a row's doubts are one issue
        likely = np.stack([confident(np.stack([1 - q, q], axis=1), y) for q, y in zip(p.T, labels.T.astype(int), strict=True)])
        likely = likely.T.astype(bool)
        places = np.flatnonzero((likely != labels).any(axis=1))
        odds = [(np.where(yes, p, 1 - p).min(axis=1)) for yes in (labels, likely)]
    else:
        likely = confident(p, labels)
        places = np.flatnonzero(likely != labels)
        odds = [p[rows, labels], p[rows, likely]]
    corrected = Predictions(truth.target, "labels", truth.ids, truth.classes, labels=likely, multilabel=truth.multilabel)
    given, suggested = names(truth, target.separator), names(corrected, target.separator)
    for row in places.tolist():
        row_id = truth.ids[row]
        yield Issue(
            row_id, target.name, given[row], suggested[row], float(odds[0][row]), float(odds[1][row]), paths.get(row_id)
        )


def names(table: Predictions, separator: str = " ") -> list[str]:
    """The labels of a table as its competition writes them."""
    if table.multilabel:
        return [separator.join(name for name, yes in zip(table.classes, row, strict=True) if yes) for row in table.decided]
    return [table.classes[label] for label in table.decided.tolist()]


def _judge(target: Target, truth: Predictions, p: F64, metric: Metric, *, tables: int, doubted: int) -> LabelJudge:
    labels = truth.decided
    shares = np.broadcast_to(truth.class_shares, p.shape)
    try:
        score = score_of(labels, metric, p)
    except DataError:  # rows of one class have no area
        score = None
    losses = metrics.log_loss(labels, p), metrics.log_loss(labels, shares)
    return LabelJudge(target.name, tables, metric.name, score, *losses, doubted, len(truth))


def _finding(issues: Sequence[Issue], judge: LabelJudge) -> AuditFinding:
    shown = few(f"{issue.id}: {issue.given} → {issue.suggested}" for issue in issues)
    what = f"{counted(len(issues), 'labels are')} probably wrong, or hard: {shown}; says {judge}"
    hint = f'Delete the rows of {FIXES} that are right as given, and set [train] labels_fix = "reports/{FIXES}".'
    return AuditFinding("labels", "warning", what, len(issues), hint)
