"""Corrected labels: used for training and nothing else, so that scores stay those of the labels as given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from toolkit.base import files
from toolkit.base.text import csv_text
from toolkit.core.predictions import Predictions
from toolkit.core.targets import Target
from toolkit.errors import CompetitionError, counted, few
from toolkit.workspace.competition import Competition

COLUMNS = ("id", "given", "suggested")


def training_truth(competition: Competition) -> dict[str, Predictions]:
    """The labels to train on, by target: those of the training table, but for the rows of `labels_fix`.

    That is a CSV of id, given and suggested (with several targets also target), as `toolkit audit` writes it; `given` must be
    what the training table says.

    Raises:
        CompetitionError: the table cannot be read, or has ids, labels or targets that are none, or a label given otherwise.
    """
    truth = competition.truth()
    if not competition.labels_fix:
        return truth
    return {target.name: _fixed(competition, target, truth[target.name]) for target in competition.targets}


def digest(competition: Competition) -> str:
    """Sixteen hex digits of the corrections, "" where there are none."""
    return files.sha256(competition.path(competition.labels_fix))[:16] if competition.labels_fix else ""


def _fixed(competition: Competition, target: Target, truth: Predictions) -> Predictions:
    path = competition.path(competition.labels_fix)
    several = len(competition.targets) > 1
    frame = csv_text.read(path, columns=[*COLUMNS, *(["target"] if several else [])], unique="" if several else "id")
    if several:
        names = [one.name for one in competition.targets]
        if unknown := sorted(set(frame["target"]) - set(names)):
            raise CompetitionError(f"{path}: no target {few(unknown)}; there are {few(names)}")
        frame = frame[frame["target"] == target.name]
    ids = list(frame["id"])
    place = {name: row for row, name in enumerate(truth.ids)}
    if unknown := [name for name in ids if name not in place]:
        raise CompetitionError(f"{path}: {counted(len(unknown), 'ids are')} not in {competition.train.table}: {few(unknown)}")
    plain = {what: replace(target, factors={}, column=what) for what in ("given", "suggested")}
    labels_of = {what: one.truth(frame, ids, str(path)).with_classes(truth.classes).decided for what, one in plain.items()}
    rows = np.array([place[name] for name in ids], dtype=np.int64)
    labels = truth.decided.copy()
    stale = np.flatnonzero((labels[rows] != labels_of["given"]).reshape(len(rows), -1).any(axis=1))
    if len(stale):
        raise CompetitionError(
            f"{path}: {competition.train.table} gives {counted(len(stale), 'labels')} "
            f"otherwise (ids {few(ids[i] for i in stale)})",
            hint="Run `toolkit audit` again: the table has changed since.",
        )
    labels[rows] = labels_of["suggested"]
    return replace(truth, labels=labels)
