"""What views bring: sets of them judged on held-out rows, and one chosen only where its nested gain exceeds its noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64
from toolkit.base.text.printing import INTERVAL, Mark, Part, Table, facts, interval
from toolkit.blending.nested import Chooser, Estimate, compare, joint, nested, outer_folds, score_of, widening
from toolkit.blending.objectives import decide
from toolkit.core.metrics import Metric
from toolkit.core.voting import vote
from toolkit.errors import counted
from toolkit.images.views import views
from toolkit.workspace.competition import Target

CERTAIN = 0.05  # below this chance of a fair coin a class counts as suffering, each class for itself
NAMED = 3  # classes in a line for people
DRAWS, FEWER, MANY = 1000, 200, 5_000_000  # bootstrap draws; fewer where rows × tables are so many that they take minutes
NONE = "none"


@dataclass(frozen=True, eq=False)
class ViewRows:
    """What one member's fold models say of rows they did not see: per target, probabilities [V, N, C] by view and the truth."""

    member: str
    targets: tuple[Target, ...]
    views: tuple[str, ...]
    probabilities: Mapping[str, F64]
    truth: Mapping[str, NDArray[Any]]
    folds: NDArray[np.int64]
    groups: tuple[str, ...] | None

    def merged(self, wanted: Sequence[str]) -> F64:
        """These views merged, the classes of all targets side by side: float64 [N, C]."""
        rows = [self.views.index(view) for view in wanted]
        parts = [vote(self.probabilities[t.name][rows], how="soft", multilabel=t.multilabel).values for t in self.targets]
        return np.concatenate([part for part in parts if part is not None], axis=1)


@dataclass(frozen=True)
class Suffering:
    """A class that loses more rows than chance explains: how many of its rows, lost and won, and what most became."""

    target: str
    name: str
    rows: int
    lost: int
    won: int
    became: str


@dataclass(frozen=True)
class ViewLine:
    """A set of views (or the identity with nothing else, or a view alone), against the identity."""

    name: str
    views: tuple[str, ...]
    estimate: Estimate
    won: int
    lost: int
    suffering: tuple[Suffering, ...]


@dataclass(frozen=True, eq=False)
class ViewFinding:
    """What views bring one member: every view alone, every set, the nested estimate of choosing among the sets, the choice.

    `picks` counts in how many outer folds each set was the best, `outer` says which by the number of the split's fold (nothing
    where the rows are of one fold alone). Scores and gains are in `metric`, over `rows` held-out rows.
    """

    member: str
    metric: str
    rows: int
    views: tuple[ViewLine, ...]
    sets: tuple[ViewLine, ...]
    nested: Estimate
    picks: Mapping[str, int]
    chosen: str
    reason: str
    outer: Mapping[int, str] = field(default_factory=dict)


def judge(rows: ViewRows, metric: Metric, sets: Sequence[str], *, draws: int | None = None) -> ViewFinding:
    """Score every view and set against the identity, and choose: the identity, unless the nested gain exceeds its noise.

    The set is chosen inside each outer fold and scored on the fold left out; intervals are paired bootstraps, by group where
    there are groups.

    Raises:
        DataError: a metric that these rows have no value of.
    """
    sets = list(dict.fromkeys([NONE, *sets]))
    scored, truth = _joint(rows, metric)
    merged = {name: rows.merged(views(name)) for name in sets}
    alone = {view: rows.merged([view]) for view in dict.fromkeys(v for n in sets for v in views(n))}
    numbers = np.unique(rows.folds)
    folds = rows.folds if len(numbers) > 1 else outer_folds(next(iter(rows.truth.values())), groups=rows.groups)
    picked: list[int] = []
    choice = nested(np.stack(list(merged.values())), truth, {"": _best(scored, picked)}, folds)[""]
    tables = {**{f"set {n}": p for n, p in merged.items()}, **{f"view {v}": p for v, p in alone.items()}, "nested": choice}
    estimates = compare(
        truth,
        scored,
        tables,
        baseline=f"set {NONE}",
        groups=rows.groups,
        widen={"nested": widening(len(np.unique(folds)))},
        draws=draws or (DRAWS if len(tables) * len(truth) < MANY else FEWER),
    )

    def line(name: str, parts: tuple[str, ...], key: str) -> ViewLine:
        won, lost, suffering = _moves(rows, merged[NONE], tables[key])
        return ViewLine(name, parts, estimates[key], won, lost, suffering)

    best = max(sets, key=lambda name: (estimates[f"set {name}"].gain, -sets.index(name)))
    chosen, reason = _rule(best, estimates["nested"], metric.name)
    return ViewFinding(
        member=rows.member,
        metric=metric.name,
        rows=len(rows.folds),
        views=tuple(line(view, (view,), f"view {view}") for view in alone),
        sets=tuple(line(name, views(name), f"set {name}") for name in sets),
        nested=estimates["nested"],
        picks={sets[place]: picked.count(place) for place in sorted(set(picked))},
        chosen=chosen,
        reason=reason,
        outer={int(k): sets[place] for k, place in zip(numbers, picked, strict=True)} if len(numbers) > 1 else {},
    )


def table(finding: ViewFinding, *, alone: bool = True) -> list[Part]:
    """What a person reads of a finding: a row per set and per view `alone`, the classes that suffer, the choice and why."""
    lines: list[Part] = []
    caption = f"{finding.member}: {finding.metric} on {counted(finding.rows, 'held-out rows')}"
    for title, judged in (("set", finding.sets), ("view alone", finding.views))[: 1 + alone]:
        rows = []
        for line in judged:
            e, chosen = line.estimate, title == "set" and line.name == finding.chosen
            sure = interval(e.gain_low, e.gain_high, 4, sign="+")
            moved = (f"{line.won:,}", f"{line.lost:,}")
            rows.append((line.name, f"{e.score:.4f}", f"{e.gain:+.4f}", sure, *moved, Mark("← chosen" * chosen, "good")))
        head = (title, "score", "gain", INTERVAL, "wrong → right", "right → wrong", "")
        lines.append(Table(head, rows, "lrrrrrl", caption="" if lines else caption))
        suffering = [("" if i else line.name, words) for line in judged for i, words in enumerate(sufferers(line))]
        lines += [facts(suffering)] if suffering else []
    return [*lines, facts([("Chosen", finding.reason)])]


def sufferers(line: ViewLine) -> list[str]:
    """The classes that suffer most, in words."""
    shown = line.suffering[:NAMED]
    words = [
        f"class '{suffering.name}': {suffering.lost:,} of {counted(suffering.rows, 'rows')} lost"
        + (f" (most become '{suffering.became}')" if suffering.became else "")
        + f", {suffering.won:,} won"
        for suffering in shown
    ]
    more = len(line.suffering) - len(shown)
    return [*words, *([f"and {counted(more, 'more classes')}"] if more else [])]


def _joint(rows: ViewRows, metric: Metric) -> tuple[Metric, NDArray[Any]]:
    """The metric over all targets (their mean, where there are several) and the truth it is told."""
    sizes = [len(target.classes) for target in rows.targets]
    return joint(metric, [rows.truth[target.name] for target in rows.targets], sizes)


def _best(metric: Metric, picked: list[int]) -> Chooser:
    """A chooser of one of the tables: the best on the rows it sees, the first of equals; `picked` collects which."""

    def choose(stack: F64, truth: NDArray[Any]) -> Any:
        place = int(np.argmax([metric.gain(score_of(truth, metric, values)) for values in stack]))
        picked.append(place)
        return lambda unseen_rows: unseen_rows[place]

    return choose


def _rule(best: str, choosing: Estimate, metric: str) -> tuple[str, str]:
    """The default rule: the best set, or none; and a sentence that says why."""
    if best == NONE:
        return NONE, f"{NONE}: no set of views has a better {metric}"
    interval = f"95 % interval {choosing.gain_low:+.4f} to {choosing.gain_high:+.4f}"
    gain = f"choosing views gains {choosing.gain:+.4f} {metric} (nested, {interval})"
    if choosing.gain_low > 0:
        return best, f"{best}: {gain}, above zero throughout"
    worse = "it costs score" if choosing.gain_high < 0 else "this cannot be told from noise"
    return NONE, f"{NONE}: {gain}, so {worse}; best on all rows was {best}"


def _moves(rows: ViewRows, before: F64, after: F64) -> tuple[int, int, tuple[Suffering, ...]]:
    """How many answers become right and wrong, and the classes that lose more than chance explains."""
    won = lost = start = 0
    suffering: list[Suffering] = []
    for target in rows.targets:
        stop = start + len(target.classes)
        truth = rows.truth[target.name]
        old, new = (decide(values[:, start:stop], truth) for values in (before, after))
        start = stop
        gains, losses = (old != truth) & (new == truth), (old == truth) & (new != truth)
        won, lost = won + int(gains.sum()), lost + int(losses.sum())
        suffering += _sufferers(target, truth, new, gains, losses)
    return won, lost, tuple(sorted(suffering, key=lambda own: own.won - own.lost))


def _sufferers(
    target: Target, truth: NDArray[Any], new: NDArray[Any], gains: NDArray[np.bool_], losses: NDArray[np.bool_]
) -> Iterator[Suffering]:
    """Classes whose losses exceed their gains beyond a fair coin's chance (McNemar's exact test)."""
    from scipy.special import bdtrc

    for place, name in enumerate(target.classes):
        win, loss = (at[:, place] if truth.ndim == 2 else at[truth == place] for at in (gains, losses))
        won, lost = int(win.sum()), int(loss.sum())
        if lost > won and bdtrc(lost - 1, lost + won, 0.5) < CERTAIN:
            became = "" if truth.ndim == 2 else target.classes[int(np.bincount(new[losses & (truth == place)]).argmax())]
            yield Suffering(target.name, name, len(win), lost, won, became)
