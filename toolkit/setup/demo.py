"""The demo: the digits workspace through every stage, with the choice of views made on out-of-fold rows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from toolkit.base.text import csv_text
from toolkit.base.text.printing import Part
from toolkit.blending.combination import Combination
from toolkit.ensemble import tta, view_selection
from toolkit.ensemble.run import run_ensemble, with_evidence
from toolkit.errors import TrainingError, counted
from toolkit.inference.execution import Execution, Progress
from toolkit.inference.exports import find_exports, read_exports
from toolkit.setup import digits_data, recipe_files
from toolkit.submissions import submission
from toolkit.workspace.competition import Competition

INTERRUPTED = (130, -2)  # the recipe's exit code when Ctrl-C reached it, or the signal itself

Say = Callable[[Part], None]
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
    receipt: submission.Receipt


def run(root: Path, *, say: Say, bar: Bar = _no_bar) -> Demo:
    """Make the workspace (or go on with one that is there), train, compare views, predict, check, write.

    Raises:
        TrainingError: the recipe failed; it has said why.
        CompetitionError: the folder holds something else.
    """
    say(f"1. Images: scikit-learn's handwritten digits as PNG files in {root}")
    competition = digits_data.make_workspace(root)
    split = digits_data.make_split(competition)
    say(f"2. Folds: {counted(len(split.ids), 'images')} in {counted(split.count, 'stratified folds')} (split {split.digest})")
    say("3. Train and export: python recipes/digits.py")
    _train(root)
    paths = find_exports(["folds/*.onnx"], base=root)
    say("4. Do other views of an image help? Each fold model judges them on the images it did not see")
    exports = read_exports(paths, competition)
    with bar("Judging views") as progress:
        judged, _ = tta.find(competition, exports, execution=Execution(progress=progress))
    (finding,) = judged.values()
    chosen = finding.chosen
    for part in view_selection.table(finding, alone=False):
        say(part)
    say(f"5. Predict: toolkit ensemble folds/*.onnx --tta {chosen}")
    other = next(name for name in ("flip", "none") if name != chosen)
    ensembles, origins = {}, {chosen: {"tta": {"asked": chosen, "members": tta.recorded(judged)}}}
    for name, file in ((other, f"tta-{other}"), (chosen, "ensemble")):  # `toolkit submit` takes what was made last
        with bar("Predicting") as progress:
            execution = Execution(progress=progress)
            made = run_ensemble(competition, paths, Combination(name), execution, name=file, origin=origins.get(name))
            ensembles[name] = with_evidence(competition, made, execution)
    say("6. Check and write: toolkit submit")
    receipt = submission.submit(competition, name="ensemble", command=["toolkit", "demo", str(root)])
    kept = csv_text.read(competition.path(digits_data.TRUTH), columns=["id", "label"], unique="id")
    truth = competition.targets[0].truth(kept, kept["id"], digits_data.TRUTH)
    return Demo(
        competition=competition,
        metric=competition.metric,
        folds={f"fold {export.card.fold}": export.card.score or 0.0 for export in exports},
        out_of_fold=_out_of_fold(finding, other),
        held_out={name: ensembles[name].predictions[truth.target].score(competition.score, truth) for name in (chosen, other)},
        chosen=chosen,
        receipt=receipt,
    )


def _out_of_fold(finding: view_selection.ViewFinding, other: str) -> dict[str, float]:
    """The scores of the plain image, of the set that was chosen (nested: it was chosen on these rows), and of another."""
    shown = (view_selection.NONE, finding.chosen, other)
    scores = {line.name: line.estimate.score for line in finding.sets if line.name in shown}
    return scores | ({finding.chosen: finding.nested.score} if finding.chosen != view_selection.NONE else {})


def _train(root: Path) -> None:
    """Run the recipe as a person would; a subprocess, since a recipe is a script and no part of the library."""
    done = subprocess.run(  # noqa: S603 - our own script with our own interpreter
        [sys.executable, str(recipe_files.recipe_path("digits")), "--workspace", str(root)], check=False
    )
    if done.returncode in INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode:
        raise TrainingError(f"recipes/digits.py ended with exit code {done.returncode}; its last lines say why")
