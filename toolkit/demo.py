"""The demo: the digits workspace through every stage, with the choice of views made on out-of-fold rows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from toolkit import csvs, digits, ensembling, shipped, submissions
from toolkit.competition import Competition
from toolkit.errors import TrainingError
from toolkit.inference import Progress
from toolkit.members import find_exports, read_exports
from toolkit.predictions import Predictions
from toolkit.views import VIEW_SETS

SETS = ("none", "hflip", "flip")
INTERRUPTED = (130, -2)  # the recipe's exit code when Ctrl-C reached it, or the signal itself

Say = Callable[[str], None]
Bar = Callable[[str], AbstractContextManager[Progress]]


def _no_bar(_what: str) -> AbstractContextManager[Progress]:
    return nullcontext(lambda _done, _total: None)


@dataclass(frozen=True, eq=False)
class Demo:
    """What the demo found: scores per fold, and per view set out of fold and on the held-out images; what it chose."""

    competition: Competition
    metric: str
    folds: Mapping[str, float]
    out_of_fold: Mapping[str, float]
    held_out: Mapping[str, float]
    chosen: str
    receipt: submissions.Receipt


def run(root: Path, *, say: Say, bar: Bar = _no_bar) -> Demo:
    """Make the workspace (or go on with one that is there), train, compare views, predict, check, write.

    Raises:
        TrainingError: the recipe failed; it has said why.
        CompetitionError: the folder holds something else.
    """
    say(f"1. Images: scikit-learn's handwritten digits as PNG files in {root}")
    competition = digits.make_workspace(root)
    split = digits.make_split(competition)
    say(f"2. Folds: {len(split.ids):,} images in {split.count} stratified folds (split {split.digest})")
    say("3. Train and export: python recipes/digits.py")
    _train(root)
    paths = find_exports(["folds/*.onnx"], base=root)
    say("4. Do mirrored views help? Each fold model judges them on the images it did not see")
    found = _compare(competition, paths, bar)
    chosen = max(SETS, key=lambda name: (competition.score.gain(found[name]), -SETS.index(name)))
    say(f"   {', '.join(f'{name} {score:.4f}' for name, score in found.items())}: --tta {chosen}")
    say(f"5. Predict: toolkit ensemble folds/*.onnx --tta {chosen}")
    other = next(name for name in ("flip", "none") if name != chosen)
    made = {}
    for name, file in ((other, f"tta-{other}"), (chosen, "ensemble")):  # `toolkit submit` takes what was made last
        with bar("Predicting") as progress:
            made[name] = ensembling.run(competition, paths, tta=name, name=file, progress=progress)
    say("6. Check and write: toolkit submit")
    receipt = submissions.submit(competition, name="ensemble", command=["toolkit", "demo", str(root)])
    kept = csvs.read(competition.path(digits.TRUTH), columns=["id", "label"], unique="id")
    truth = competition.targets[0].truth(kept, kept["id"], digits.TRUTH)
    return Demo(
        competition=competition,
        metric=competition.metric,
        folds={f"fold {export.card.fold}": export.card.score or 0.0 for export in read_exports(paths, competition)},
        out_of_fold=found,
        held_out={name: made[name].predictions[truth.target].score(competition.score, truth) for name in (chosen, other)},
        chosen=chosen,
        receipt=receipt,
    )


def _train(root: Path) -> None:
    """Run the recipe as a person would; a subprocess, since a recipe is a script and no part of the library."""
    done = subprocess.run(  # noqa: S603 - our own script with our own interpreter
        [sys.executable, str(shipped.recipe_path("digits")), "--workspace", str(root)], check=False
    )
    if done.returncode in INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode:
        raise TrainingError(f"recipes/digits.py ended with exit code {done.returncode}; its last lines say why")


def _compare(competition: Competition, paths: Sequence[Path], bar: Bar) -> dict[str, float]:
    """The joined out-of-fold score of every set of views."""
    exports = read_exports(paths, competition)
    split, truth = digits.make_split(competition), competition.truth()
    largest = max(SETS, key=lambda name: len(VIEW_SETS[name]))
    found = {}
    for name in (largest, *(name for name in SETS if name != largest)):  # the largest fills the store for the others
        with bar(f"Out of fold, {name}") as progress:
            tables = ensembling.out_of_fold(competition, exports, split, tta=name, progress=progress)
        found[name] = _joined(tables, truth, competition)
    return {name: found[name] for name in SETS}


def _joined(tables: Mapping[str, Predictions], truth: Mapping[str, Predictions], competition: Competition) -> float:
    (target,) = tables
    rows = truth[target].align(tables[target].ids)
    return tables[target].score(competition.score, rows)
