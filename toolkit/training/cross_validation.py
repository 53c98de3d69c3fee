"""Cross-validation: folds one after another, each finished on disk before the next; resume, out-of-fold scores, exports."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import MISSING, fields
from typing import Any

from toolkit.base import documents, files, sealed
from toolkit.base.schema import checked
from toolkit.core import prediction_files
from toolkit.core.predictions import concat
from toolkit.errors import TrainingError, few
from toolkit.training import dry_run, pseudo_labels
from toolkit.training.fold import state_file
from toolkit.training.fold.fit import choose_device
from toolkit.training.fold.process_group import ALONE, Team
from toolkit.training.fold.samples import Samples, decode
from toolkit.training.loggers import Trackers
from toolkit.training.one_fold import FoldTraining, train_one
from toolkit.training.parts import warm_start
from toolkit.training.plan import OOF, PARTS, WEIGHTS_CONTENT, Bar, Done, Launcher, Say, TrainFold, TrainingPlan, Watch
from toolkit.workspace.split import imbalance


def _quiet(_text: str) -> None:
    """Where nobody wants to hear what takes long."""


def train(
    plan: TrainingPlan,
    train_fold: TrainFold,
    *,
    bar: Bar,
    folds: Sequence[int | None] = (),
    device: str = "auto",
    fresh: bool = False,
    say: Say = _quiet,
    watch: Watch | None = None,
    team: Team | None = None,
    launcher: Launcher | None = None,
) -> Iterator[Done]:
    """Train and export the folds asked for (default: every fold; None: one model on all rows), skipping finished ones.

    `fresh` trains them again. A fold's result depends on its number and the seed only, so a resumed run ends as an
    uninterrupted one does (on a CPU). Where there are many images to decode, a step on made-up ones comes first. `say` is told
    what takes long or looks odd; `watch` is called after every epoch with the fold, the row of metrics.csv and the model.

    A `launcher` trains them in processes of its own; folds come in the same order. `team` is the one that this process belongs
    to, if it is one of those: only the first process of a team writes anything, and only it gives folds.

    Raises:
        TrainingError: a fold that the split does not have, finished folds that were trained with other settings, weights or
            teachers that have seen rows which score a fold, a fold that lacks a file when it is over, or what ended a process
            of the launcher.
        DeviceError: CUDA was asked for and cannot be used.
        ImageError, AlignmentError: images that cannot be read or are missing.
        ParityError: an export that does not reproduce its model; the fold counts as unfinished.
    """
    wanted = asked(plan, folds)
    device = choose_device(device)
    if fresh:
        for fold in wanted:
            _discard(plan, fold)
            _forget(plan, fold)
    finished = [fold for fold in (*range(plan.split.count), None) if plan.finished(fold)]
    for fold in finished:
        _same_settings(plan, fold)
    pending = [fold for fold in wanted if fold not in finished]
    for fold in pending if team is None else ():
        _say_why(plan, fold, say)
    assert plan.key  # teachers or boxes that are not there are said before anything is decoded
    if pending and team is None:
        _ready(plan, train_fold, pending, device, say)
    if launcher and launcher.splits(pending):
        _decoded(plan, bar, say)  # by one, for all
        trained = launcher.train(plan, pending, device=device, bar=bar, say=say)
    else:
        trained = _one_by_one(FoldTraining(plan, train_fold, device, watch, team or ALONE), pending, bar, say)
    with closing(trained):
        for fold in wanted:
            if fold in finished:
                yield _resumed(plan, fold)
            elif done := next(trained, None):
                _whole(plan, fold)
                yield done


def _ready(plan: TrainingPlan, train_fold: TrainFold, pending: Sequence[int | None], device: str, say: Say) -> None:
    """Refuse what would leak into a fold's score, and make a step on made-up images where there are many to decode."""
    warm_start.check(plan.competition, plan.split, plan.config, pending, say)
    pseudo_labels.check(plan, pending)
    if len(plan.split.ids) >= dry_run.WORTH:
        dry_run.rehearse(plan, train_fold, pending[0], device)


def _named(fold: int | None) -> str:
    return "the model of all rows" if fold is None else f"fold {fold}"


def _say_why(plan: TrainingPlan, fold: int | None, say: Say) -> None:
    """Name what is gone of a fold that was finished once, since it is trained again, and what its model will never see."""
    if plan.export(fold).exists():
        say(f"{_named(fold)} is trained again: {few(path.name for path in plan.missing(fold))} of it is gone")
    for note in [] if fold is None else plan.split.unseen_notes(fold):
        say(f"Warning: {note}")


def _whole(plan: TrainingPlan, fold: int | None) -> None:
    """Refuse to call a fold finished that the next run would train again."""
    if missing := plan.missing(fold):
        raise TrainingError(
            f"{_named(fold)} of {plan.member!r} was trained, but {few(missing)} is not there",
            hint="A recipe with a loop of its own writes metrics.csv into the fold's folder; was a file removed meanwhile?",
        )


def _resumed(plan: TrainingPlan, fold: int | None) -> Done:
    about = _about(plan, fold)
    return Done(fold, about["score"], 0.0, resumed=True, selected=str(about.get("selected", "last")))


def asked(plan: TrainingPlan, folds: Sequence[int | None]) -> list[int | None]:
    """The folds that a command line means, in order: all of the split if it names none; None is the model of all rows.

    Raises:
        TrainingError: a fold that the split does not have.
    """
    numbers = sorted({fold for fold in folds if fold is not None})
    if unknown := [fold for fold in numbers if not 0 <= fold < plan.split.count]:
        raise TrainingError(f"the split has no fold {few(unknown)}", hint=f"Its folds are 0 to {plan.split.count - 1}.")
    wanted: list[int | None] = [*(numbers or ([] if None in folds else range(plan.split.count)))]
    return wanted + ([None] if None in folds else [])


def join(plan: TrainingPlan) -> float | None:
    """Write `oof/<member>.parquet` and return the score over all its rows; None while folds of the split are unfinished.

    Raises:
        TrainingError: folds that were trained with other settings.
    """
    every = range(plan.split.count)
    if not all(plan.finished(fold) for fold in every):
        return None
    for fold in every:
        _same_settings(plan, fold)
    target = plan.target.name
    joined = concat(prediction_files.read_table(plan.folder(fold) / OOF).predictions[target] for fold in every)
    abouts = {str(fold): _about(plan, fold) for fold in every}
    scores = {fold: float(about["score"]) for fold, about in abouts.items()}
    selected = sorted({str(about.get("selected", "last")) for about in abouts.values()})
    score = joined.score(plan.competition.score, plan.truth(joined.ids))
    meta = plan.table_meta | {"folds": scores, "score": score, "selected": "+".join(selected)}
    unknown = dict.fromkeys(name for about in abouts.values() for name in about.get("lineage", {}).get("unknown", ()))
    meta |= {"unknown": list(unknown)} if unknown else {}
    prediction_files.write_table(plan.oof, {target: joined}, meta)
    return score


def _one_by_one(training: FoldTraining, pending: Sequence[int | None], bar: Bar, say: Say) -> Generator[Done]:
    """Train folds in this process; all but the first of a team give none."""
    plan, team = training.plan, training.team
    samples = None
    for fold in pending:
        started = time.monotonic()
        if team.leads:
            _discard(plan, fold)
        if samples is None:
            samples = _decoded(plan, bar, say)
        with bar(f"{plan.member} {'all' if fold is None else f'fold {fold}'}") as progress, Trackers(plan) as trackers:
            about = train_one(training, fold, samples, progress, trackers)
        if about:
            notes = tuple(about["notes"])
            yield Done(fold, about["score"], time.monotonic() - started, selected=about["selected"], notes=notes)
        team.least(0)  # nobody begins the next one while another is at this


def _decoded(plan: TrainingPlan, bar: Bar, say: Say) -> Samples:
    """All images; says what is odd about them."""
    with bar("decoding") as progress:
        samples = decode(
            plan.competition,
            plan.preprocess,
            plan.target.name,
            only=plan.split.ids,
            cache=plan.cache,
            root=plan.root,
            say=say,
            progress=progress,
        )
    for note in imbalance(samples.labels, plan.target.classes, plan.competition.metric):
        say(note)
    return samples


def _same_settings(plan: TrainingPlan, fold: int | None) -> None:
    """Refuse to go on from a fold that was trained otherwise: the folds of a member would not belong together."""
    there = _as_now(plan, _about(plan, fold)["settings"])
    differing = [name for name in {**there, **plan.settings} if there.get(name) != plan.settings.get(name)]
    if differing:
        changes = "; ".join(
            f"{name.removeprefix('config.')} was {there.get(name)!r}, is {plan.settings.get(name)!r}" for name in differing
        )
        raise TrainingError(
            f"{_named(fold)} of {plan.member!r} was trained with other settings: {changes}",
            hint="Go back to the old settings, train it again, or keep both under two members.",
            code="other-settings",
        )


def _as_now(plan: TrainingPlan, there: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version wrote, with the defaults of those that it did not have.

    What a warm start began from is compared only where both know it: files of then may be gone, or were not looked at.
    """
    defaults = {f"config.{known.name}": known.default for known in fields(plan.config) if known.default is not MISSING}
    now = {name: value for name, value in json.loads(json.dumps(defaults, default=str)).items() if name in plan.settings}
    then = {name: value for name, value in there.items() if name != WEIGHTS_CONTENT}
    here = plan.settings.get(WEIGHTS_CONTENT)
    return now | then | ({WEIGHTS_CONTENT: there.get(WEIGHTS_CONTENT, here)} if here else {})


def _about(plan: TrainingPlan, fold: int | None) -> Mapping[str, Any]:
    path = plan.folder(fold) / "config.json"
    try:
        about: Mapping[str, Any] = sealed.unstamped(documents.read_json(path))
        if not {"settings", "score"} <= set(about):
            raise ValueError("settings and score are missing")
        checked(about["settings"], dict, "settings")
        checked(about["score"], float | None, "score")
    except (OSError, ValueError, sealed.DamagedError) as error:
        raise TrainingError(f"{path} cannot be read: {error}", hint="Train the fold again.", code="train-again") from error
    return about


def _discard(plan: TrainingPlan, fold: int | None) -> None:
    """Remove what an earlier or killed run left of a fold, the export first: from then on it counts as unfinished.

    Its state after the last finished epoch stays, and is gone on from.
    """
    stem = plan.export(fold).stem
    further = [*(plan.root / "folds").glob(f"{stem}.[0-9]*.onnx"), *plan.folder(fold).glob("model.[0-9]*.safetensors")]
    joined = [] if fold is None else [plan.oof]
    for path in (plan.export(fold), *joined, *further, *(plan.folder(fold) / part for part in PARTS)):
        with files.explained(path):
            path.unlink(missing_ok=True)


def _forget(plan: TrainingPlan, fold: int | None) -> None:
    """Remove the states between epochs, so that the fold is trained from its start."""
    for folder in (plan.folder(fold), *plan.folder(fold).glob("seed*")):
        state_file.forget(folder)
