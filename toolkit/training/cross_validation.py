"""Cross-validation: folds one after another, each finished on disk before the next; resume, out-of-fold scores, exports."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from toolkit.base import files, provenance
from toolkit.core import activations, metrics, prediction_files
from toolkit.core.cards import Activation, Card, Output, Preprocess, Selected
from toolkit.core.predictions import Predictions, concat
from toolkit.errors import TrainingError, few
from toolkit.models import checkpoints
from toolkit.models import export as exporting
from toolkit.training import dry_run, label_fixes, loggers, pseudo_labels
from toolkit.training.fold import state_file, throughput
from toolkit.training.fold.fit import Triple, choose_device, logits
from toolkit.training.fold.process_group import ALONE, Team
from toolkit.training.fold.samples import Fold, Progress, Rows, Samples, decode
from toolkit.training.shares import imbalance
from toolkit.workspace.competition import Competition, Target
from toolkit.workspace.split import Split

if TYPE_CHECKING:
    import torch

    from toolkit.training.launcher import Crew

PARITY_SAMPLES = 64
GAP_SAMPLES = 512  # training rows that the gap to the held-out rows is measured on
OOF = "oof.parquet"
PARTS = ("model.safetensors", "metrics.csv", OOF, "config.json")  # in this order; the export comes last

TrainFold = Callable[[Any, Fold], "torch.nn.Module"]
Bar = Callable[[str], AbstractContextManager[Progress]]
Say = Callable[[str], None]
Watch = Callable[[Fold, Mapping[str, float], "torch.nn.Module"], None]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be trained: a recipe's settings on a split of a competition, and the folder that takes the results.

    `config` is the recipe's frozen dataclass and has at least `member` and `seed`; with `seeds` above one, a fold is trained as
    often, from neighbouring seeds, and all its models are exported. `architecture` is what `networks.create` rebuilds the
    network from. `mean` and `std` are in units of pixel / 255. Without `cache` images are decoded anew in every
    epoch. `logger` is a name from `tracking.LOGGERS`.
    """

    recipe: str
    config: Any
    architecture: Mapping[str, Any]
    preprocess: Preprocess
    mean: Triple
    std: Triple
    competition: Competition
    split: Split
    root: Path
    cache: bool = True
    logger: str = "none"

    @property
    def target(self) -> Target:
        """The one target.

        Raises:
            TrainingError: the competition has several.
        """
        if len(self.competition.targets) > 1:
            raise TrainingError(f"{self.recipe} trains one target, this competition has {len(self.competition.targets)}")
        return self.competition.targets[0]

    @property
    def member(self) -> str:
        """The name under which the folds go together."""
        return str(self.config.member)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that may change a result, as JSON values: folds of one member must agree in all of it."""
        fast = {known.name for known in fields(self.config) if not known.metadata.get("matters", True)}
        every = {f"config.{name}": value for name, value in asdict(self.config).items() if name not in fast}
        shared: dict[str, Any] = {
            "recipe": self.recipe,
            "split": self.split.digest,
            "target": self.target.name,
            "classes": self.target.classes,
        }
        shared |= {"labels_fix": corrected} if (corrected := label_fixes.digest(self.competition)) else {}
        if box := self.preprocess.box:
            shared["boxes"] = self.competition.boxes.digest(box, set(self.split.ids))
        shared |= {f"architecture.{name}": value for name, value in self.architecture.items()}
        user = {name: str(value).rpartition(":")[0] for name, value in every.items() if ".py:" in str(value)}
        every |= {f"{name} content": files.sha256(Path(path))[:16] for name, path in user.items() if Path(path).is_file()}
        pixels = {"preprocess": asdict(self.preprocess), "mean": self.mean, "std": self.std}
        plain: dict[str, Any] = json.loads(json.dumps(shared | pixels | every | pseudo_labels.sources(self)))
        return plain

    @cached_property
    def key(self) -> str:
        """Sixteen hex digits that change with any of the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]

    def folder(self, fold: int | None) -> Path:
        """Where a fold (None: the model of all rows) keeps its checkpoint, settings, metrics and out-of-fold rows."""
        return self.root / "runs" / self.member / ("all" if fold is None else f"fold{fold}")

    def export(self, fold: int | None, number: int = 0) -> Path:
        """The fold's .onnx, or the one of its further models."""
        name = "all" if fold is None else f"fold{fold}"
        return self.root / "folds" / f"{self.member}.{name}{f'.{number}' if number else ''}.onnx"

    @property
    def oof(self) -> Path:
        """The member's joined out-of-fold table."""
        return self.root / "oof" / f"{self.member}.parquet"

    def finished(self, fold: int | None) -> bool:
        """Whether everything of a fold is on disk: files are written whole, and the export after all others."""
        parts = [part for part in PARTS if fold is not None or part != OOF]
        return self.export(fold).exists() and all((self.folder(fold) / part).exists() for part in parts)


@dataclass(frozen=True)
class Done:
    """A finished fold: its score on the rows it did not see (None where it saw all); `resumed` if an earlier run finished it.

    `selected` other than "last" says that these rows chose the epoch: the score is optimistic. `notes` are sentences for the
    reader: how it was fed, how it fits.
    """

    fold: int | None
    score: float | None
    seconds: float
    resumed: bool = False
    selected: str = "last"
    notes: tuple[str, ...] = ()


def train(
    plan: Plan,
    train_fold: TrainFold,
    *,
    bar: Bar,
    folds: Sequence[int | None] = (),
    device: str = "auto",
    fresh: bool = False,
    say: Say = lambda _text: None,
    watch: Watch | None = None,
    team: Team | None = None,
    crew: Crew | None = None,
) -> Iterator[Done]:
    """Train and export the folds asked for (default: every fold; None: one model on all rows), skipping finished ones.

    `fresh` trains them again. A fold's result depends on its number and the seed only, so a resumed run ends as an
    uninterrupted one does (on a CPU). Where there are many images to decode, a step on made-up ones comes first. `say` is told
    what takes long or looks odd; `watch` is called after every epoch with the fold, the row of metrics.csv and the model.

    A `crew` trains them in processes of its own; folds come in the same order. `team` is the one that this process belongs to,
    if it is one of those: only the first process of a team writes anything, and only it gives folds.

    Raises:
        TrainingError: a fold that the split does not have, finished folds that were trained with other settings, or what ended
            a process of the crew.
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
    assert plan.key  # teachers or boxes that are not there are said before anything is decoded
    if pending and team is None and len(plan.split.ids) >= dry_run.WORTH:
        dry_run.rehearse(plan, train_fold, pending[0], device)
    if crew and crew.splits(pending):
        _decoded(plan, bar, say)  # by one, for all
        made = crew.train(plan, pending, device=device, bar=bar, say=say)
    else:
        made = _one_by_one(plan, train_fold, pending, device, bar, say, watch, team or ALONE)
    with closing(made):
        for fold in wanted:
            if fold in finished:
                about = _about(plan, fold)
                yield Done(fold, about["score"], 0.0, resumed=True, selected=str(about.get("selected", "last")))
            elif done := next(made, None):
                yield done


def asked(plan: Plan, folds: Sequence[int | None]) -> list[int | None]:
    """The folds that a command line means, in order: all of the split if it names none; None is the model of all rows.

    Raises:
        TrainingError: a fold that the split does not have.
    """
    numbers = sorted({fold for fold in folds if fold is not None})
    if unknown := [fold for fold in numbers if not 0 <= fold < plan.split.count]:
        raise TrainingError(f"the split has no fold {few(unknown)}", hint=f"Its folds are 0 to {plan.split.count - 1}.")
    wanted: list[int | None] = [*(numbers or ([] if None in folds else range(plan.split.count)))]
    return wanted + ([None] if None in folds else [])


def join(plan: Plan) -> float | None:
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
    score = joined.score(plan.competition.score, _truth(plan, joined.ids))
    meta = _meta(plan) | {"folds": scores, "score": score, "selected": "+".join(selected)}
    prediction_files.write_table(plan.oof, {target: joined}, meta)
    return score


def _one_by_one(
    plan: Plan,
    train_fold: TrainFold,
    pending: Sequence[int | None],
    device: str,
    bar: Bar,
    say: Say,
    watch: Watch | None,
    team: Team,
) -> Generator[Done]:
    """Train folds in this process; all but the first of a team give none."""
    samples = None
    for fold in pending:
        started = time.monotonic()
        if team.leads:
            _discard(plan, fold)
        if samples is None:
            samples = _decoded(plan, bar, say)
        with bar(f"{plan.member} {'all' if fold is None else f'fold {fold}'}") as progress, loggers.Trackers(plan) as trackers:
            about = _one(plan, train_fold, fold, samples, device, progress, watch, trackers, team)
        if about:
            notes = tuple(about["notes"])
            yield Done(fold, about["score"], time.monotonic() - started, selected=about["selected"], notes=notes)
        team.least(0)  # nobody begins the next one while another is at this


def _decoded(plan: Plan, bar: Bar, say: Say) -> Samples:
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


def _one(
    plan: Plan,
    train_fold: TrainFold,
    fold: int | None,
    samples: Samples,
    device: str,
    progress: Progress,
    watch: Watch | None,
    trackers: loggers.Trackers,
    team: Team,
) -> dict[str, Any]:
    """Train one fold, once per seed, and write all that belongs to it, the export last; what config.json says.

    In a team only its first process does more than train.
    """
    held_out = None if fold is None else samples.rows(plan.split.held_out(fold))
    with team.leading():
        training, taught = pseudo_labels.taught(plan, fold, samples.rows(plan.split.training(fold)), device)
    models: list[torch.nn.Module] = []
    runs: list[Fold] = []
    for number in range(getattr(plan.config, "seeds", 1)):
        given = replace(_given(plan, fold, number, training, held_out, device, progress, watch), team=team)
        random.seed(given.seed)
        _seed_torch(given.seed)
        seen = trackers.attach(given) if team.leads else given
        models += [train_fold(_with_seed(plan.config, number), seen), *given.outcome.others]
        runs.append(given)
        if given.outcome.report.get("processes", 1) != team.size:
            raise TrainingError(
                f"{given.title}: every process trained on whole batches, since {plan.recipe}.py has a loop of its own",
                hint="Use --spread folds, or train with toolkit.training.fit.",
            )
    if not team.leads:
        return {}
    folder, selected = plan.folder(fold), pseudo_labels.selected(plan, runs[0].outcome.selected)
    for number, model in enumerate(models):  # what comes next may fail
        checkpoints.save(_checkpoint(folder, number), model, _card(plan, fold, None, selected), plan.architecture)
    scores: list[float | None] = [None] * len(models)
    score, fed = None, runs[0].outcome.report.get("feeding", {})
    notes = [str(fed["said"])] if fed else []
    if held_out is not None:
        found = [_predict(plan, model, held_out, device) for model in models]
        truth = _truth(plan, found[0].ids)
        scores = [one.score(plan.competition.score, truth) for one in found]
        merged = replace(found[0], values=np.mean([np.asarray(one.values) for one in found], axis=0))
        score = merged.score(plan.competition.score, truth)
        meta = _meta(plan) | {"fold": fold, "score": score, "selected": selected}
        prediction_files.write_table(folder / OOF, {plan.target.name: merged}, meta)
        notes.append(_fits(plan, models[0], training, merged, device))
        trackers.confusion(truth, merged)
    cards = [_card(plan, fold, own, selected) for own in scores]
    for number, (model, card) in enumerate(zip(models, cards, strict=True)):
        checkpoints.save(_checkpoint(folder, number), model, card, plan.architecture)
    about: dict[str, Any] = {
        "fold": fold,
        "score": score,
        "selected": selected,
        "notes": notes,
        "device": device,
        "processes": team.size,
        "versions": _versions(),
    }
    about |= {"seeds": [given.seed for given in runs], "commit": provenance.git_commit(plan.root) or "", "models": len(models)}
    about |= {"report": [given.outcome.report for given in runs], "taught": taught, "settings": plan.settings}
    files.write_text(folder / "config.json", json.dumps(about, indent=1, ensure_ascii=False, default=str) + "\n")
    pixels, _ = (held_out or training).__getitems__(range(min(len(held_out or training), PARITY_SAMPLES)))
    for number in reversed(range(len(models))):  # the one that says "finished" last
        exporting.export(models[number], cards[number], plan.export(fold, number), samples=pixels)
    for given in runs:
        state_file.forget(given.folder)
    return about


def _given(
    plan: Plan,
    fold: int | None,
    number: int,
    training: Rows,
    held_out: Rows | None,
    device: str,
    progress: Progress,
    watch: Watch | None,
) -> Fold:
    """What `train_fold` gets for one of the fold's seeds."""
    given = Fold(
        number=fold,
        training=training,
        classes=plan.target.classes,
        device=device,
        folder=plan.folder(fold) / (f"seed{number}" if number else ""),
        progress=progress,
        seed=(plan.config.seed + number) * 1_000 + (plan.split.count if fold is None else fold),
        key=f"{plan.key}.{number}",
        judge=None if held_out is None else lambda model: _scores(plan, _predict(plan, model, held_out, device)),
        cache=plan.root / "cache" if plan.cache else None,
    )
    if watch is None:
        return given
    return replace(given, watch=lambda row, model: watch(given, row, model))


def _with_seed(config: Any, number: int) -> Any:
    return replace(config, seed=config.seed + number) if number else config


def _seed_torch(seed: int) -> None:
    import torch

    torch.manual_seed(seed)


def _checkpoint(folder: Path, number: int) -> Path:
    return folder / (f"model.{number}.safetensors" if number else PARTS[0])


def _scores(plan: Plan, predicted: Predictions) -> dict[str, float]:
    """Mean loss and score, larger is better, against the truth as given."""
    truth = _truth(plan, predicted.ids)
    assert predicted.values is not None
    loss = metrics.log_loss(truth.decided, predicted.values)
    return {"loss": loss, "score": plan.competition.score.gain(predicted.score(plan.competition.score, truth))}


def _fits(plan: Plan, model: torch.nn.Module, training: Rows, held_out: Predictions, device: str) -> str:
    """The verdict on the gap between some of the training rows and the held-out ones."""
    places = np.linspace(0, len(training.places) - 1, min(GAP_SAMPLES, len(training.places))).astype(np.int64)
    seen = _scores(plan, _predict(plan, model, Rows(training.samples, training.places[places]), device))
    chance = 0.693 if plan.target.multilabel else float(np.log(len(plan.target.classes)))
    return throughput.verdict(seen | {"chance": chance}, _scores(plan, held_out))


def _predict(plan: Plan, model: torch.nn.Module, rows: Rows, device: str) -> Predictions:
    values = activations.probabilities(logits(model, rows, plan.mean, plan.std, device=device), _output(plan.target))
    ids = tuple(rows.samples.ids[place] for place in rows.places)
    return Predictions(plan.target.name, "probabilities", ids, plan.target.classes, values, multilabel=plan.target.multilabel)


def _truth(plan: Plan, ids: Sequence[str]) -> Predictions:
    return plan.competition.truth()[plan.target.name].align(ids)


def _output(target: Target) -> Output:
    activation: Activation = "sigmoid" if target.multilabel else "softmax"
    return Output(target.name, target.classes, activation)


def _card(plan: Plan, fold: int | None, score: float | None, selected: str) -> Card:
    return Card(
        member=plan.member,
        fold=fold,
        outputs=(_output(plan.target),),
        preprocess=plan.preprocess,
        mean=plan.mean,
        std=plan.std,
        split=plan.split.digest,
        metric=plan.competition.metric,
        score=score,
        selected=cast("Selected", selected),
        recipe=plan.recipe,
        labels_fix=label_fixes.digest(plan.competition),
    )


def _same_settings(plan: Plan, fold: int | None) -> None:
    """Refuse to go on from a fold that was trained otherwise: the folds of a member would not belong together."""
    there = _about(plan, fold)["settings"]
    differing = [name for name in {**there, **plan.settings} if there.get(name) != plan.settings.get(name)]
    if differing:
        changes = "; ".join(
            f"{name.removeprefix('config.')} was {there.get(name)!r}, is {plan.settings.get(name)!r}" for name in differing
        )
        which = "the model of all rows" if fold is None else f"fold {fold}"
        raise TrainingError(
            f"{which} of {plan.member!r} was trained with other settings: {changes}",
            hint="Use --fresh to train again, --member NAME to keep both, or go back to the old settings.",
        )


def _about(plan: Plan, fold: int | None) -> Mapping[str, Any]:
    path = plan.folder(fold) / "config.json"
    try:
        about: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"settings", "score"} <= set(about):
            raise ValueError("settings and score are missing")
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read: {error}", hint="Use --fresh to train the fold again.") from error
    return about


def _discard(plan: Plan, fold: int | None) -> None:
    """Remove what an earlier or killed run left of a fold, the export first: from then on it counts as unfinished.

    Its state after the last finished epoch stays, and is gone on from.
    """
    stem = plan.export(fold).stem
    further = [*(plan.root / "folds").glob(f"{stem}.[0-9]*.onnx"), *plan.folder(fold).glob("model.[0-9]*.safetensors")]
    joined = [] if fold is None else [plan.oof]
    for path in (plan.export(fold), *joined, *further, *(plan.folder(fold) / part for part in PARTS)):
        with files.explained(path):
            path.unlink(missing_ok=True)


def _forget(plan: Plan, fold: int | None) -> None:
    """Remove the states between epochs, so that the fold is trained from its start."""
    for folder in (plan.folder(fold), *plan.folder(fold).glob("seed*")):
        state_file.forget(folder)


def _meta(plan: Plan) -> dict[str, Any]:
    return {"member": plan.member, "split": plan.split.digest, "metric": plan.competition.metric, "recipe": plan.recipe}


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("toolkit", "torch", "timm", "pytorch-lightning")}
