"""How two submissions differ: over the ids that both have, which answers changed, and from which class to which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import SubmissionError
from toolkit.submissions import answers, csv_problems, ledger
from toolkit.submissions.answers import Answers
from toolkit.submissions.form.layout import SubmissionLayout
from toolkit.submissions.sample import read_sample
from toolkit.workspace.competition import Competition

MOVED = 0.1  # of all rows: how far a row's place in an order moves before its answer is another


@dataclass(frozen=True)
class Move:
    """How many rows of one question went from one class (or set of classes) to another."""

    question: str
    before: str
    after: str
    count: int


@dataclass(frozen=True)
class Diff:
    """How two submissions differ over the ids that both have: rows, those that changed, by class, and the ids."""

    rows: int
    changed: int
    moves: tuple[Move, ...]
    ids: tuple[str, ...]

    @property
    def share(self) -> float:
        """Rows that changed, over all."""
        return self.changed / max(1, self.rows)

    @property
    def record(self) -> dict[str, Any]:
        """The difference as plain values, for machines."""
        counts = {"ok": True, "rows": self.rows, "changed": self.changed, "share": self.share}
        return counts | {"moves": [vars(move) for move in self.moves], "ids": list(self.ids)}


@dataclass(frozen=True, eq=False)
class Change:
    """The ids that two submissions share, and which of their answers differ (bool [N])."""

    ids: tuple[str, ...]
    differs: NDArray[np.bool_]

    @property
    def share(self) -> float:
        """Answers that differ, over all; 1 where no id is shared."""
        return float(self.differs.mean()) if self.ids else 1.0

    @property
    def count(self) -> int:
        """How many answers differ."""
        return int(self.differs.sum())


def diff(competition: Competition, first: str, second: str) -> Diff:
    """Compare two kept submissions, named as `ledger.find` takes them; the most frequent change first.

    Where the metric goes by rank, a row has changed if its place in some class's order has moved by more than `MOVED`, and
    there are no moves between classes.

    Raises:
        SubmissionError: no such submission, or one whose file cannot be read.
        CompetitionError: the sample cannot be read.
    """
    layout = read_sample(competition).layout
    entries = [ledger.find(competition, name) for name in (second, first)]
    after, before = (_kept(entry, layout) for entry in entries)
    ordered = competition.score.by_rank
    change = differing(before, after, ordered=ordered)
    changed = tuple(name for name, hit in zip(change.ids, change.differs, strict=True) if hit)
    return Diff(len(change.ids), change.count, () if ordered else tuple(moves(before, after)), changed)


def _kept(entry: ledger.Entry, layout: SubmissionLayout) -> list[Answers]:
    frame, problems = csv_problems.read(entry.path)
    if frame is None or layout.key not in frame.columns:
        raise SubmissionError(f"{entry.path} cannot be read", problems=problems)
    return answers.of_frame(frame, layout)


def compare(ours: Sequence[Answers], layout: SubmissionLayout, other: ledger.Entry, *, ordered: bool = False) -> Change | None:
    """How answers differ from a kept submission's; None if that is unreadable or has other columns."""
    frame, _ = csv_problems.read(other.path)
    wanted = {layout.key, *(column.name for column in layout.columns)}
    if frame is None or not ours or not wanted <= set(frame.columns):
        return None
    return differing(ours, answers.of_frame(frame, layout), ordered=ordered)


def differing(ours: Sequence[Answers], others: Sequence[Answers], *, ordered: bool = False) -> Change:
    """Where the answers to all questions are not the same; a question that only one of two answers makes every row differ.

    `ordered`: numbers that count by their order differ where a row's place has moved by more than `MOVED` of all rows.
    """
    place = {name: row for row, name in enumerate(others[0].ids)}
    shared = [row for row, name in enumerate(ours[0].ids) if name in place]
    ids = tuple(ours[0].ids[row] for row in shared)
    rows = np.array([place[name] for name in ids], dtype=np.int64)
    by_question = {theirs.name: theirs for theirs in others}
    differs = np.zeros(len(ids), dtype=bool)
    for question in ours:
        theirs = by_question.get(question.name)
        if theirs is None or theirs.classes != question.classes:
            differs[:] = True
            continue
        if ordered and question.order is not None and theirs.order is not None:
            differs |= (np.abs(question.order[shared] - theirs.order[rows]) > MOVED).any(axis=1)
            continue
        here, there = question.labels[shared], theirs.labels[rows]
        differs |= (here != there).reshape(len(ids), -1).any(axis=1)
    return Change(ids, differs)


def moves(before: Sequence[Answers], after: Sequence[Answers]) -> list[Move]:
    """Every change of class with its number of rows, the most frequent first."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for old, new in zip(before, after, strict=True):
        place = {name: row for row, name in enumerate(new.ids)}
        pairs = [(row, place[name]) for row, name in enumerate(old.ids) if name in place]
        rows = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        hit = rows[(old.labels[rows[:, 0]] != new.labels[rows[:, 1]]).reshape(len(rows), -1).any(axis=1)]
        counts.update((old.name, old.text(i), new.text(j)) for i, j in hit.tolist())
    return [Move(*change, count) for change, count in counts.most_common()]
