"""A search over a recipe's flags with Optuna: the space from TOML, trials in SQLite, pruned by epoch and fold, resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.base import documents, files
from toolkit.base.quiet import quiet
from toolkit.base.schema import checked
from toolkit.base.text import csv_text
from toolkit.errors import StoreError, TrainingError, counted, few
from toolkit.workspace import make_split, toml_update
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import SPLIT_FILE, Split

if TYPE_CHECKING:
    import optuna

Watch = Callable[[Any, Mapping[str, float], Any], None]  # fold, row of metrics.csv, model: after every epoch
TrainFold = Callable[[str, Mapping[str, Any], int, Watch | None], float]  # member, flags, fold → its score
FOLD = 10_000  # the step at which the first fold's score is reported; epochs count up to it
WEIGHTS = ("*.safetensors", "*.pt")  # not kept: a hundred trials of five folds would fill a disk
STARTUP = 5  # trials that are never pruned: the median of fewer says little


@dataclass(frozen=True)
class Space:
    """Which flags of which recipe are searched, from a TOML file.

    `search` holds per flag `{ low = 1e-4, high = 1e-2, log = true }`, `{ low = 8, high = 64, step = 8 }` or
    `{ choices = [32, 64] }`; whole numbers give whole numbers. `fixed` goes to every trial as it is. `folds` are those that a
    trial is judged on.
    """

    recipe: str
    search: Mapping[str, Mapping[str, Any]]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    folds: tuple[int, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Space:
        """Read and check a space.

        Raises:
            TrainingError: not there, not TOML, keys that are unknown, ranges that are none.
        """
        try:
            raw = documents.read_toml(path)
        except (OSError, ValueError) as error:
            raise TrainingError(f"{path} cannot be read: {error}", hint=EXAMPLE) from error
        if unknown := sorted(set(raw) - {"recipe", "search", "fixed", "folds"}):
            raise TrainingError(f"{path}: unknown key {few(unknown)}", hint=EXAMPLE)
        if not isinstance(raw.get("recipe"), str) or not isinstance(raw.get("search"), dict) or not raw["search"]:
            raise TrainingError(f"{path} needs a recipe and a table [search]", hint=EXAMPLE)
        for name, asked in raw["search"].items():
            _check_range(f"{path}: {name}", asked)
        try:
            fixed, folds = checked(raw.get("fixed", {}), dict, "fixed"), checked(raw.get("folds", []), tuple[int, ...], "folds")
        except ValueError as error:
            raise TrainingError(f"{path}: {error}", hint=EXAMPLE) from error
        if both := sorted(set(raw["search"]) & set(fixed)):
            raise TrainingError(f"{path}: {few(both)} is both searched and fixed")
        return cls(raw["recipe"], raw["search"], fixed, folds)

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """All flags of one trial, the searched ones as the sampler wants them."""
        flags = dict(self.fixed)
        for name, asked in self.search.items():
            if "choices" in asked:
                flags[name] = trial.suggest_categorical(name, asked["choices"])
            elif isinstance(asked["low"], int) and isinstance(asked["high"], int):
                flags[name] = trial.suggest_int(name, **asked)
            else:
                flags[name] = trial.suggest_float(name, **asked)
        return flags

    def require(self, flags: Sequence[str]) -> None:
        """Make sure that the recipe has every flag that is searched or fixed.

        Raises:
            TrainingError: it has not; the message lists those it has.
        """
        if unknown := [name for name in (*self.search, *self.fixed) if name not in flags]:
            raise TrainingError(f"{self.recipe} has no flag {few(unknown)}", hint=f"It has: {', '.join(flags)}.")


EXAMPLE = 'Write: recipe = "digits", then [search] with lr = { low = 1e-4, high = 1e-2, log = true }.'
_KEYS = ({"choices"}, {"low", "high"}, {"low", "high", "log"}, {"low", "high", "step"})


def _check_range(where: str, asked: Any) -> None:
    if not isinstance(asked, dict) or set(asked) not in _KEYS:
        raise TrainingError(f"{where} is no range: {asked!r}", hint=EXAMPLE)
    if "choices" in asked:
        if not isinstance(asked["choices"], list) or len(asked["choices"]) < 2:
            raise TrainingError(f"{where}: choices are a list of two and more, not {asked['choices']!r}")
        return
    low, high = asked["low"], asked["high"]
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in (low, high)) or not low < high:
        raise TrainingError(f"{where}: low must be a number below high, not {low!r} and {high!r}")
    if not isinstance(asked.get("log", False), bool):
        raise TrainingError(f"{where}: log is true or false, not {asked['log']!r}")
    if asked.get("log") and low <= 0:
        raise TrainingError(f"{where}: a logarithmic range begins above 0, not at {low!r}")


def words(flags: Mapping[str, Any]) -> list[str]:
    """Flags as a command line has them; true and false become --flag and --no-flag."""
    flags_: list[str] = []
    for name, value in flags.items():
        flags_ += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return flags_


def scratch(competition: Competition, folder: Path) -> tuple[Competition, Split]:
    """A workspace inside `folder` on the same images and split, which takes what trials leave.

    Raises:
        TrainingError: trials there were made on another split.
    """
    split = make_split.load(competition)
    kept = folder / SPLIT_FILE
    if kept.exists() and Split.read(kept).digest != split.digest:
        raise TrainingError(
            f"the trials in {folder} were made on another split", hint="Begin another study.", code="another-study"
        )
    split.write(kept)
    root = competition.root.absolute()
    parts = {
        part: replace(
            where,
            folder=root.joinpath(where.folder).as_posix(),
            table=root.joinpath(where.table).as_posix() if where.table else "",
        )
        for part, where in (("train", competition.train), ("test", competition.test))
    }
    sample = root.joinpath(competition.sample).as_posix()
    inside = replace(competition, root=folder, train=parts["train"], test=parts["test"], sample=sample)
    toml_update.write(inside)
    if not (folder / "cache").exists():
        root.joinpath("cache").mkdir(exist_ok=True)
        (folder / "cache").symlink_to(root / "cache")  # decoded images are the same whoever asks
    return inside, split


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep a second search out of the same study: trials that seem to run would be taken for those of a killed one.

    Raises:
        TrainingError: another process searches there.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TrainingError(
                f"another search works in {folder}", hint="Wait for it, or begin another.", code="another-study"
            ) from error
        yield


def open_study(folder: Path, name: str, *, seed: int = 0) -> optuna.Study:
    """The study in `folder`/study.db, made if it is not there; trials that a kill left running are queued again.

    Raises:
        TrainingError: Optuna is not installed.
        StoreError: the database is damaged.
    """
    try:
        import optuna
    except ImportError as error:
        raise TrainingError(
            "a search needs the package optuna",
            hint="Install it: pip install optuna.",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with quiet():
        pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP)
        try:
            study = optuna.create_study(
                storage=f"sqlite:///{folder / 'study.db'}",
                study_name=name,
                direction="maximize",
                pruner=pruner,
                load_if_exists=True,
            )
        except Exception as error:  # SQLAlchemy's errors, which nothing else here imports
            raise StoreError(
                f"{folder / 'study.db'} cannot be used: {error}", hint="Begin another study.", code="another-study"
            ) from error
        count = len(study.get_trials(deepcopy=False))  # or a search that goes on would draw its first trials again
        study.sampler = optuna.samplers.TPESampler(seed=seed + count, multivariate=True)
        for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params)
    return study


def finished(study: optuna.Study) -> int:
    """Trials that count: complete or pruned."""
    return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.get_trials(deepcopy=False))


def run_trial(study: optuna.Study, space: Space, train_fold: TrainFold, competition: Competition, epochs: int) -> str:
    """Ask for one trial, train it fold by fold, tell what came out; a line about it.

    A trial is pruned by the score after each epoch of its first fold, from half of its epochs on (schedules that anneal sort
    out late; `epochs` are those of a trial whose flags do not say), and by the mean after each fold. One that ends in a
    TrainingError is told as failed.

    Raises:
        TrainingError: the first trials all fail, whatever their flags.
    """
    import optuna

    with quiet():
        trial = study.ask()
        flags = space.suggest(trial)
    member = name_of(flags)
    scores: list[float] = []
    state, why = optuna.trial.TrialState.COMPLETE, ""
    try:
        for place, fold in enumerate(space.folds):
            scores.append(train_fold(member, flags, fold, None if place else _watch(trial, flags.get("epochs", epochs))))
            trial.report(_gain(competition, scores), FOLD * (place + 1))
            if place + 1 < len(space.folds) and trial.should_prune():
                raise optuna.TrialPruned(f"after fold {fold}")
    except optuna.TrialPruned as pruned:
        state, why = optuna.trial.TrialState.PRUNED, str(pruned)
    except TrainingError as error:
        state, why = optuna.trial.TrialState.FAIL, error.message
        trial.set_user_attr("error", why)
    done = state is optuna.trial.TrialState.COMPLETE
    study.tell(trial, _gain(competition, scores) if done else None, state=state)
    _sweep(competition, member)
    if state is optuna.trial.TrialState.FAIL and not finished(study) and trial.number >= 2:
        raise TrainingError(f"the first {counted(trial.number + 1, 'trials')} failed, the last one: {why}")
    shown = f"{competition.metric} {np.mean(scores):.4f}" if done else f"{state.name.lower()}: {why}"
    return f"trial {trial.number:3d}  {shown}  {' '.join(words({name: flags[name] for name in space.search}))}"


def _gain(competition: Competition, scores: Sequence[float]) -> float:
    return float(np.mean([competition.score.gain(score) for score in scores]))


def _watch(trial: optuna.Trial, epochs: int) -> Watch:
    """What a fold calls after every epoch: reports how the model does on the held-out rows, ends a trial that is behind."""
    import optuna

    def watch(fold: Any, row: Mapping[str, float], model: Any) -> None:
        epoch = int(row["epoch"])
        if epochs <= 2 * epoch < 2 * epochs and fold.judge:
            trial.report(fold.judge(model)["score"], epoch)
            if trial.should_prune():
                raise optuna.TrialPruned(f"in epoch {epoch}")

    return watch


def _sweep(competition: Competition, member: str) -> None:
    """Remove the weights of a trial that has ended."""
    for pattern in (f"folds/{member}.*", *(f"runs/{member}/**/{kind}" for kind in WEIGHTS)):
        for weights in list(competition.root.glob(pattern)):
            weights.unlink(missing_ok=True)


def name_of(flags: Mapping[str, Any]) -> str:
    """The member that a trial's folds are kept under: equal for equal flags, so that a trial asked for again goes on."""
    return f"trial-{hashlib.sha256(json.dumps(dict(flags), sort_keys=True).encode()).hexdigest()[:8]}"


def best(study: optuna.Study, space: Space, competition: Competition) -> tuple[int, float, dict[str, Any]]:
    """The best trial's number, score and flags.

    Raises:
        TrainingError: no trial is complete.
    """
    if not any(trial.state.name == "COMPLETE" for trial in study.get_trials(deepcopy=False)):
        raise TrainingError("no trial is complete yet", hint="Search on, for more trials or longer.", code="more-trials")
    found = study.best_trial
    assert found.value is not None
    sign = 1 if competition.score.higher_is_better else -1
    return found.number, sign * found.value, {**space.fixed, **found.params}


def report(study: optuna.Study, competition: Competition, folder: Path) -> dict[str, float]:
    """Write `trials.csv` and, from two complete trials on, `importance.png`; return each flag's importance, largest first."""
    import optuna
    from matplotlib.figure import Figure

    trials = study.get_trials(deepcopy=False)
    names = sorted({name for trial in trials for name in trial.params})
    sign = 1 if competition.score.higher_is_better else -1
    scores = [sign * t.value if t.state.name == "COMPLETE" and t.value is not None else "" for t in trials]
    rows = [
        (trial.number, trial.state.name.lower(), score, *(trial.params.get(name, "") for name in names))
        for trial, score in zip(trials, scores, strict=True)
    ]
    csv_text.write(folder / "trials.csv", ["trial", "state", competition.metric, *names], rows)
    if len(set(scores) - {""}) < 2:
        return {}
    with quiet("optuna"):
        importance = optuna.importance.get_param_importances(study)
    figure = Figure(figsize=(6, 1 + 0.4 * len(importance)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(list(importance)[::-1], list(importance.values())[::-1])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xlabel(f"share of the variation of {competition.metric} ({counted(len(trials), 'trials')})")
    axes.set_xlim(0, 1.1)
    files.write(folder / "importance.png", lambda file: figure.savefig(file, format="png", dpi=120))
    return dict(importance)
