"""Blend weights against AutoGluon, hillclimbers and SciPy, same answer first, then time: see the command in RESULTS.md."""

from __future__ import annotations

import contextlib
import io
import statistics
import sys
import time
from collections.abc import Callable

import click
import numpy as np

from toolkit.blending.nested import compare, score_of
from toolkit.blending.plan_selection import judge, plans
from toolkit.blending.weighers import fit_weights
from toolkit.core.activations import softmax
from toolkit.core.metrics import METRICS

CASES: dict[str, Callable[[int], tuple[Callable, Callable | None, Callable, str]]] = {}  # ours, peer, check, size


def case(function):
    CASES[function.__name__] = function
    return function


def members(rows: int, classes: int, count: int, seed: int = 0):
    """Probabilities of `count` members of different skill whose errors are partly shared, and the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, rows)
    shared = rng.normal(0, 1, (rows, classes))
    stack = np.empty((count, rows, classes))
    for member in range(count):
        logits = shared + rng.normal(0, 1, (rows, classes))
        logits[np.arange(rows), truth] += rng.uniform(2.5, 3.5)
        stack[member] = softmax(logits)
    return stack, truth


def _autogluon(metric: str, peer_metric: str, steps: int):
    import autogluon.core.metrics
    from autogluon.core.models.greedy_ensemble.ensemble_selection import EnsembleSelection

    stack, truth = members(20_000, 100, 40)
    scorer = getattr(autogluon.core.metrics, peer_metric)

    def ours():
        return fit_weights(stack, truth, METRICS[metric], "greedy", steps=steps, patience=steps)

    def peer():
        found = EnsembleSelection(steps, "multiclass", scorer, tie_breaker="second_metric")
        return found.fit(list(stack), truth)

    def check(mine, theirs):
        assert list(mine.picks) == [int(pick) for pick in theirs.indices_], "other picks"
        gap, total = 0.0, np.zeros(stack.shape[1:])
        for step, (pick, score) in enumerate(zip(mine.picks, mine.path, strict=True), start=1):
            total += stack[pick]
            regret = theirs._calculate_regret(truth, total / step, scorer)
            gap = max(gap, abs((score if metric == "log_loss" else 1 - score) - regret))
        assert gap < 1e-12, f"scores differ by {gap}"
        return f"the same {len(mine.picks)} picks, scores within {gap:.0e}"

    return ours, peer, check, f"N = 20,000, C = 100, M = 40, {steps} steps"


@case
def log_loss(steps: int):
    return _autogluon("log_loss", "log_loss", steps)


@case
def accuracy(steps: int):
    return _autogluon("accuracy", "accuracy", steps)


@case
def hill_climb(_: int):
    import hillclimbers
    import pandas as pd
    from sklearn.metrics import roc_auc_score

    stack, truth = members(20_000, 2, 10)
    oof = pd.DataFrame(stack[:, :, 1].T, columns=[f"m{i}" for i in range(len(stack))])

    def ours():
        return fit_weights(stack, truth, METRICS["roc_auc"], "hill_climb")

    def peer():
        with contextlib.redirect_stdout(io.StringIO()):
            return hillclimbers.climb_hill(
                train=pd.DataFrame({"y": truth}),
                oof_pred_df=oof,
                test_pred_df=oof,
                target="y",
                objective="maximize",
                eval_metric=hillclimbers.partial(roc_auc_score),
                plot_hill=False,
                return_oof_preds=True,
            )[1]

    def check(mine, theirs):
        gap = np.abs(mine.apply(stack)[:, 1] - theirs).max()
        assert gap < 1e-12, f"blends differ by {gap}"
        assert abs(mine.score - roc_auc_score(truth, theirs)) < 1e-12
        return f"the same {mine.steps} moves, blends within {gap:.0e}"

    return ours, peer, check, "N = 20,000, M = 10, 50 weights"


def _slsqp(stack, truth, loss, jac, told: str):
    from scipy.optimize import minimize

    count = len(stack)

    def ours():
        return fit_weights(stack, truth, METRICS["log_loss"], "convex")

    def peer():
        start = np.full(count, 1 / count)
        total = {"type": "eq", "fun": lambda w: w.sum() - 1}
        p = stack[:, np.arange(len(truth)), truth]
        return minimize(loss, start, args=(p,), jac=jac, method="SLSQP", bounds=[(0, 1)] * count, constraints=total)

    def check(mine, theirs):
        weights = np.clip(theirs.x, 0, 1)
        other = METRICS["log_loss"].score(truth, np.tensordot(weights / weights.sum(), stack, 1))
        assert mine.score <= other + 1e-12, f"{mine.score} against {other}"
        return f"loss lower by {other - mine.score:.1e} ({theirs.message}); {mine.message}"

    return ours, peer, check, f"N = {stack.shape[1]:,}, C = {stack.shape[2]}, M = {count}, {told}"


@case
def slsqp(_: int):
    from sklearn.metrics import log_loss as reference

    stack, truth = members(20_000, 18, 10)
    return _slsqp(stack, truth, lambda w, _p: reference(truth, np.tensordot(w, stack, 1)), None, "as usually written")


@case
def slsqp_gathered(_: int):
    stack, truth = members(20_000, 18, 40)
    return _slsqp(stack, truth, lambda w, p: -np.log(w @ p).mean(), None, "true class only, no gradient")


@case
def slsqp_gradient(_: int):
    stack, truth = members(20_000, 18, 40)
    return _slsqp(
        stack,
        truth,
        lambda w, p: -np.log(w @ p).mean(),
        lambda w, p: -(p / (w @ p)).mean(axis=1),
        "true class only, with gradient",
    )


@case
def nested(_: int):
    stack, truth = members(100_000, 18, 10)

    def check(mine, _theirs):
        return mine.reason

    return lambda: judge(stack, truth, METRICS["log_loss"]), None, check, "N = 100,000, C = 18, M = 10, 1,000 bootstraps"


@case
def chosen(_: int):
    stack, truth = members(100_000, 18, 10)
    every = plans(METRICS["log_loss"], multilabel=False)

    def check(mine, _theirs):
        return f"{len(every)} plans: {mine.chosen}"

    size = "N = 100,000, C = 18, M = 10, weigher × vote × temperature chosen"
    return lambda: judge(stack, truth, METRICS["log_loss"], every), None, check, size


@case
def auc_intervals(_: int):
    stack, truth = members(20_000, 2, 2)
    metric, said = METRICS["roc_auc"], {"uniform": stack[0], "other": stack[1]}

    def peer():
        rng, drawn = np.random.default_rng(0), []
        for _ in range(1000):
            rows = rng.integers(0, len(truth), len(truth), dtype=np.int32)
            drawn.append([score_of(truth[rows], metric, values[rows]) for values in said.values()])
        return np.quantile(drawn, [0.025, 0.975], axis=0)

    def check(mine, theirs):
        ours = np.array([[one.low, one.high] for one in mine.values()]).T
        gap = np.abs(ours - theirs).max()
        assert gap < 1e-12, f"intervals differ by {gap}"
        return f"intervals within {gap:.0e}"

    return (
        lambda: compare(truth, metric, said),
        peer,
        check,
        "ROC-AUC, N = 20,000, 2 tables, 1,000 bootstraps; peer: scored anew",
    )


def timed(function):
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


@click.command()
@click.argument("cases", nargs=-1, type=click.Choice(list(CASES)))
@click.option("--pairs", default=5, show_default=True, help="Runs of each, in turn.")
@click.option("--steps", default=100, show_default=True, help="Greedy steps.")
def main(cases: tuple[str, ...], pairs: int, steps: int) -> None:
    """Compare the answers, then print the median time of each and of the ratio over alternating runs."""
    print("| case | size | ours | peer | ratio (least) | same answer |\n|---|---|---|---|---|---|")
    for name in cases or CASES:
        ours, peer, check, size = CASES[name](steps)
        first, _ = timed(ours)  # imports and page faults are nobody's merit
        del first
        times, verdict = [], ""
        for _ in range(pairs):
            (mine, a), (theirs, b) = timed(ours), timed(peer or (lambda: None))
            verdict = verdict or check(mine, theirs)
            times.append((a, b))
            print(f"{name}: {a:.3g} s against {b:.3g} s; {verdict}", file=sys.stderr, flush=True)
        mine_s, peer_s = (statistics.median(column) for column in zip(*times, strict=True))
        ratios = [b / a for a, b in times]
        ratio = "–" if peer is None else f"{statistics.median(ratios):.3g} ({min(ratios):.3g})"
        print(f"| {name} | {size} | {mine_s:.3g} s | {peer_s:.3g} s | {ratio} | {verdict} |", flush=True)


if __name__ == "__main__":
    main()
