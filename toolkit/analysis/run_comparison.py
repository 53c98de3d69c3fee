"""Runs side by side: which settings differ, out-of-fold scores, and whether the difference can be told from noise."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base import documents, sealed
from toolkit.base.text import html
from toolkit.blending import nested, oof
from toolkit.blending.nested import Estimate
from toolkit.core import prediction_files
from toolkit.core.lineage import optimistic
from toolkit.core.metrics import Metric
from toolkit.core.predictions import Predictions, concat
from toolkit.ensemble import evidence
from toolkit.errors import DataError, counted, few
from toolkit.workspace.competition import Competition, Target

NAMES = frozenset({"config.member"})  # what a run is called is no difference in what it is


@dataclass(frozen=True, eq=False)
class Run:
    """A member's training: its settings (its folds agree in them) and what each fold says of the rows it did not see.

    `optimistic` says why its scores are too good; "" where they are not.
    """

    name: str
    settings: Mapping[str, Any]
    folds: Mapping[int, Mapping[str, Predictions]]
    optimistic: str


@dataclass(frozen=True)
class Comparison:
    """Runs over the rows that all of them predict; the first is what the others are compared with.

    `differing` says the settings by name and run; `folds` the scores by fold and run, where all have one split; `estimates` the
    score of each and its gain over the first, paired row by row, with 95 % intervals; `verdicts` the same in words;
    `optimistic` why scores are too good, by run, of those that are.
    """

    target: str
    metric: str
    rows: int
    differing: Mapping[str, Mapping[str, Any]]
    folds: Mapping[int, Mapping[str, float | None]]
    estimates: Mapping[str, Estimate]
    verdicts: Mapping[str, str]
    notes: tuple[str, ...]
    optimistic: Mapping[str, str] = field(default_factory=dict)

    def title(self, name: str) -> str:
        """A run's name beside its score, which says that this is too good where it is."""
        return f"{name} (optimistic)" if name in self.optimistic else name

    def _repr_html_(self) -> str:
        """Scores with gains and verdicts, folds and settings side by side, for notebooks."""
        first, runs = next(iter(self.estimates), ""), list(self.estimates)
        scores = [
            (
                self.title(name),
                e.score,
                e.low,
                e.high,
                *((None,) * 3 if name == first else (e.gain, e.gain_low, e.gain_high)),
                per_run,
            )
            for name, e in self.estimates.items()
            for per_run in [self.verdicts.get(name, "")]
        ]
        head = ("run", self.metric, "95 % from", "to", f"gain over {first}", "95 % from", "to", "")
        folds = [(f"fold {fold}", *(per_run.get(name) for name in runs)) for fold, per_run in self.folds.items()]
        settings = [(name, *(str(per_run.get(run)) for run in runs)) for name, per_run in self.differing.items()]
        parts = [html.table(head, scores, caption=f"{self.target}, {counted(self.rows, 'rows')}; {'; '.join(self.notes)}")]
        parts += [html.table(("", *runs), folds, caption=f"{self.metric} by fold")] if folds else []
        parts += [html.table(("setting", *runs), settings, caption="Settings that differ")] if settings else []
        return "\n".join(parts)


def read_run(competition: Competition, word: str) -> Run:
    """The run of a member's name, or of a folder.

    Raises:
        DataError: no such run, no finished fold, a file that cannot be read, or folds that were trained otherwise.
    """
    folder = Path(word) if Path(word).is_dir() else competition.path("runs", word)
    parts = {int(match[1]): path for path in folder.glob("fold*") if (match := re.fullmatch(r"fold(\d+)", path.name))}
    finished = {fold: parts[fold] for fold in sorted(parts) if all(os.path.lexists(parts[fold] / name) for name in _FILES)}
    if not finished:
        there = sorted(path.name for path in competition.path("runs").glob("*") if path.is_dir())
        hint = f"There are: {', '.join(there)}." if there else "Train first: python recipes/<recipe>.py"
        raise DataError(f"{folder} has no finished fold", hint=hint)
    about = {fold: _about(path / "config.json") for fold, path in finished.items()}
    settings = next(iter(about.values()))["settings"]
    if other := [fold for fold, told in about.items() if told["settings"] != settings]:
        raise DataError(
            f"{folder}: fold {few(other)} was trained with other settings",
            hint="Train it again from the start.",
            code="train-fresh",
        )
    tables = {fold: prediction_files.read_table(path / "oof.parquet").predictions for fold, path in finished.items()}
    chosen = sorted({str(fold_about.get("selected", "last")) for fold_about in about.values()})
    return Run(folder.resolve().name, settings, tables, optimistic("+".join(chosen)))


def compare(competition: Competition, words: Sequence[str], *, draws: int = 1000) -> list[Comparison]:
    """Compare runs with the first of them, target by target; one alone is shown as it is.

    Raises:
        DataError: no run, two of one name, runs without a common target or rows; see `read_run`.
    """
    runs = [read_run(competition, word) for word in words]
    names = [run.name for run in runs]
    if not names or len(set(names)) < len(runs):
        raise DataError(f"a comparison needs runs, each once; there are {few(names)}")
    shared = [t for t in competition.targets if all(t.name in by_target for run in runs for by_target in run.folds.values())]
    if not shared:
        raise DataError(f"{few(names)} do not predict a common target of {few(t.name for t in competition.targets)}")
    return [_of_target(competition, target, runs, draws) for target in shared]


def as_made(competition: Competition, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What predictions of these names would score out of fold, as they say themselves, with their views and vote.

    Nothing where a name is a run's or no predictions'.

    Raises:
        DataError: predictions that cannot be read.
    """
    paths = {name: competition.path("predictions", f"{name}.parquet") for name in names}
    runs = [name for name in names if Path(name).is_dir() or competition.path("runs", name).is_dir()]
    if runs or not all(path.is_file() for path in paths.values()):
        return {}
    metas = {name: prediction_files.read_meta(path) for name, path in paths.items()}
    return {name: evidence.described(meta) | evidence.of(meta) for name, meta in metas.items()}


def verdict(estimate: Estimate, metric: Metric, rows: int, other: str) -> str:
    """A gain with its interval in words: better, worse, or how many more rows it would take to tell."""
    gain = f"{estimate.gain:+.5f} in {metric.name}, 95 % {estimate.gain_low:+.5f} to {estimate.gain_high:+.5f}"
    if estimate.gain_low > 0 or estimate.gain_high < 0:
        return f"{'better' if estimate.gain > 0 else 'worse'} than {other}: {gain}"
    width = (estimate.gain_high - estimate.gain_low) / 2
    if width == 0:
        return f"the same as {other}: every row scores alike"
    if abs(estimate.gain) < width / 100:
        return f"cannot tell from {other}: {gain}; the difference is next to nothing"
    # an interval shrinks with the square root of the rows
    more = _rounded(rows * ((width / abs(estimate.gain)) ** 2 - 1))
    return f"cannot tell from {other}: {gain}; a difference of this size takes about {counted(more, 'more rows')}"


def _of_target(competition: Competition, target: Target, runs: Sequence[Run], draws: int) -> Comparison:
    metric = competition.score
    tables = {run.name: concat(by_target[target.name] for by_target in run.folds.values()) for run in runs}
    shared = set.intersection(*(set(table.ids) for table in tables.values()))
    ids = [name for name in tables[runs[0].name].ids if name in shared]
    if not ids:
        raise DataError(f"{few(tables)} predict no row in common", hint="Train the same folds of both.")
    truth = competition.truth()[target.name].with_classes(target.classes).align(ids)
    stack = {}
    for name, table in tables.items():
        values = table.align(ids).with_classes(target.classes).values
        if values is None:
            raise DataError(f"run {name!r} has labels only, and a comparison needs probabilities")
        stack[name] = values
    first, groups = runs[0].name, oof.folds_and_groups(competition, ids)[1]
    estimates = nested.compare(truth.decided, metric, stack, baseline=first, groups=groups, draws=draws)
    others = {name: verdict(estimate, metric, len(ids), first) for name, estimate in estimates.items() if name != first}
    differing = _differing(runs)
    folds = _by_fold(runs, target, truth, metric)
    notes = tuple(_notes(runs, differing, len(ids)))
    marks = {run.name: run.optimistic for run in runs if run.optimistic}
    return Comparison(target.name, competition.metric, len(ids), differing, folds, estimates, others, notes, marks)


def _by_fold(runs: Sequence[Run], target: Target, truth: Predictions, metric: Metric) -> dict[int, dict[str, float | None]]:
    """Scores of the folds that all runs have, where they are folds of one split; None where a fold lacks what it takes."""
    if len({run.settings.get("split") for run in runs}) > 1:
        return {}
    common = sorted(set.intersection(*(set(run.folds) for run in runs)))
    scores: dict[int, dict[str, float | None]] = {}
    for fold in common:
        scores[fold] = {}
        for run in runs:
            table = run.folds[fold][target.name]
            try:
                scores[fold][run.name] = table.score(metric, truth.align(table.ids))
            except DataError:  # as ROC-AUC of a fold with one class
                scores[fold][run.name] = None
    return scores


def _differing(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in NAMES)
    every = {key.removeprefix("config."): {run.name: run.settings.get(key) for run in runs} for key in keys}
    return {key: values for key, values in every.items() if any(value != values[runs[0].name] for value in values.values())}


def _notes(runs: Sequence[Run], differing: Mapping[str, Mapping[str, Any]], rows: int) -> list[str]:
    """What keeps the comparison from being clean."""
    notes = []
    first = runs[0]
    for run in runs[1:]:
        changed = [key for key, values in differing.items() if values[run.name] != values[first.name]]
        if len(changed) > 1:
            notes.append(
                f"{run.name} differs in {counted(len(changed), 'settings')} ({', '.join(changed)}): no telling which one did it"
            )
        elif not changed:
            notes.append(f"{run.name} has the settings of {first.name}: what differs is chance")
    if "split" in differing:
        notes.append("the splits differ: rows are compared one by one, folds cannot be")
    if partial := [run.name for run in runs if sum(len(next(iter(s.values()))) for s in run.folds.values()) > rows]:
        notes.append(f"{', '.join(partial)} predicted more rows than the others; only the {rows:,} that all have count")
    notes += [f"{run.name} is optimistic: {run.optimistic}" for run in runs if run.optimistic]
    if all(run.settings.get("config.seeds", 1) == 1 for run in runs):
        notes.append("each was trained from one seed; the interval does not show what another seed would change")
    return notes


def _about(path: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = sealed.unstamped(documents.read_json(path))
        if not isinstance(about["settings"], dict):
            raise TypeError("settings are no table")
    except (OSError, ValueError, KeyError, TypeError, sealed.DamagedError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error})", hint="Train the fold again.") from error
    return about


def _rounded(number: float) -> int:
    """Two digits say enough."""
    size = 10 ** max(int(np.log10(max(number, 1))) - 1, 0)
    return int(max(round(number / size) * size, 1))


_FILES = ("config.json", "oof.parquet")
