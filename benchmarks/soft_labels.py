"""How much soft labels tell of the labels that score a fold: accuracy out of fold on labels that are pure noise.

python benchmarks/soft_labels.py

0.500 is honest. A student learns from (1 - weight) × label + weight × teacher, where the teacher is the fold's own model (which
never saw the held-out labels) or the out-of-fold table (each row by a model that did). 1,000 rows, five folds; mean of seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsRegressor
from sklearn.tree import DecisionTreeRegressor

MODELS: dict[str, Callable[[], Any]] = {
    "5 neighbours": lambda: KNeighborsRegressor(5),
    "20 neighbours": lambda: KNeighborsRegressor(20),
    "tree": lambda: DecisionTreeRegressor(min_samples_leaf=5, random_state=0),
}
TEACHERS = ("none", "own fold", "out of fold")


def accuracies(make: Callable[[], Any], *, weight: float, width: int, seed: int, rows: int) -> list[float]:
    """The student's accuracy out of fold for each of the teachers."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(rows, width)), rng.integers(0, 2, rows).astype(float)
    folds = list(StratifiedKFold(5, shuffle=True, random_state=seed).split(x, y))
    own, out_of_fold = np.zeros((5, rows)), np.zeros(rows)
    for fold, (train, held_out) in enumerate(folds):
        own[fold] = make().fit(x[train], y[train]).predict(x)
        out_of_fold[held_out] = own[fold, held_out]
    found = []
    for teacher in TEACHERS:
        p = np.zeros(rows)
        for fold, (train, held_out) in enumerate(folds):
            said = {"none": y, "own fold": own[fold], "out of fold": out_of_fold}[teacher][train]
            p[held_out] = make().fit(x[train], (1 - weight) * y[train] + weight * said).predict(x[held_out])
        found.append(float(((p > 0.5) == y).mean()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rows", type=int, default=1_000)
    asked = parser.parse_args()
    print(f"{'model':<14} {'width':>5} {'weight':>6}  " + "  ".join(f"{teacher:>12}" for teacher in TEACHERS))
    for name, make in MODELS.items():
        for width in (2, 20):
            for weight in (0.3, 1.0):
                every = [
                    accuracies(make, weight=weight, width=width, seed=seed, rows=asked.rows) for seed in range(asked.seeds)
                ]
                cells = "  ".join(f"{value:>12.4f}" for value in np.mean(every, axis=0))
                print(f"{name:<14} {width:>5} {weight:>6.1f}  {cells}", flush=True)


if __name__ == "__main__":
    main()
