"""How far in-sample gains of blends are from true ones, and how often intervals hold: `python benchmarks/overfit.py`."""

from __future__ import annotations

import click
import numpy as np

from toolkit.blending.objectives import decide
from toolkit.blending.plan_selection import judge, plans
from toolkit.blending.weighers import WEIGHERS
from toolkit.core.activations import softmax
from toolkit.core.metrics import METRICS

CLASSES = 5
FRESH = 20_000


def draw(rng, skills, rows: int):
    """Probabilities [M, rows, C] of members with these skills, half of whose noise is shared, and the truth."""
    truth = rng.integers(0, CLASSES, rows)
    logits = rng.normal(0, 1, (rows, CLASSES)) + rng.normal(0, 2, (len(skills), rows, CLASSES))
    logits[:, np.arange(rows), truth] += skills[:, None]
    return softmax(logits.reshape(-1, CLASSES)).reshape(logits.shape), truth


def score(metric, truth, values):
    return metric.score(truth, decide(values, truth) if metric.accepts == "labels" else values)


def once(seed: int, how: str, metric, members: int, rows: int, spread: float) -> dict[str, float]:
    """One competition: judge on `rows` rows, then look at fresh ones."""
    rng = np.random.default_rng(seed)
    skills = 2 + spread * rng.normal(0, 1, members)
    stack, truth = draw(rng, skills, rows)
    plan = plans(metric, multilabel=False) if how == "auto" else how
    verdict = judge(stack, truth, metric, plan, seed=seed, always=True)
    fresh, answer = draw(rng, skills, FRESH)
    plain = score(metric, answer, fresh.mean(axis=0))
    if verdict.blend is None:  # stacking has no weight per member
        said = verdict.weights.apply(fresh)
    else:
        outcome = verdict.blend.apply(fresh)
        said = np.eye(CLASSES)[outcome.labels] if outcome.values is None else outcome.values
    real = score(metric, answer, said)
    true_gain = metric.gain(real) - metric.gain(plain)
    found, uniform = verdict.estimates["nested"], verdict.estimates["uniform"]
    uses = found.gain_low > 0
    return {
        "in_sample": verdict.estimates["in_sample"].gain,
        "nested": found.gain,
        "true": true_gain,
        "covers_score": found.low <= real <= found.high,
        "covers_uniform": uniform.low <= plain <= uniform.high,
        "covers_gain": found.gain_low <= true_gain <= found.gain_high,
        "uses": uses,
        "ruled": true_gain if uses else 0.0,
        "noise": (found.gain_high - found.gain_low) / 2,
    }


@click.command()
@click.option("--repetitions", default=200, show_default=True)
@click.option("--members", default=30, show_default=True)
@click.option("--rows", default=500, show_default=True)
@click.option("--weigher", "weighers", multiple=True, type=click.Choice(["auto", *WEIGHERS]), default=("auto", "greedy"))
@click.option("--metric", "names", multiple=True, type=click.Choice(list(METRICS)), default=("log_loss", "accuracy"))
def main(repetitions: int, members: int, rows: int, weighers: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Members alike (spread 0: the plain mean is right) and of different skill (0.5); auto: the whole plan is chosen."""
    print("| members | metric | weigher | in-sample gain | nested gain | true gain | score covered | gain covered "
          "| rule blends | true gain of the rule | worst, in half intervals |\n" + "|---" * 11 + "|")  # fmt: skip
    for spread in (0.0, 0.5):
        for name in names:
            for how in weighers:
                table = [once(seed, how, METRICS[name], members, rows, spread) for seed in range(repetitions)]
                mean = {key: float(np.mean([row[key] for row in table])) for key in table[0]}
                worst = min(row["ruled"] / row["noise"] if row["noise"] else 0.0 for row in table)
                print(
                    f"| {'alike' if spread == 0 else 'mixed'} | {name} | {how} "
                    f"| {mean['in_sample']:+.5f} | {mean['nested']:+.5f} | {mean['true']:+.5f} "
                    f"| {mean['covers_score']:.1%} | {mean['covers_gain']:.1%} "
                    f"| {mean['uses']:.1%} | {mean['ruled']:+.5f} | {worst:+.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
