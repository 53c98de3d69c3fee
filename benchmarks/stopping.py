"""Votes that stop against the full vote: label changes, passes and time: `python benchmarks/stopping.py`."""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))


def random_cases() -> tuple[int, int]:
    """Label changes and cases over random tables made to tie, from the tests' own generator."""
    from tests.inference.test_early_stopping import KINDS, WEIGHTS, stopped, tables
    from toolkit.core.voting import vote
    from toolkit.inference.early_stopping import STOPPING, decided

    rng, changed, cases = np.random.default_rng(1), 0, 0
    for how in STOPPING:
        for multilabel in (False, True):
            for kind in KINDS:
                for weigh in WEIGHTS.values():
                    for members, classes in ((3, 3), (4, 2), (5, 10), (10, 4)):
                        stack = tables(rng, kind, members, 1000, classes, multilabel=multilabel)
                        weights = weigh(rng, members)
                        labels, _ = stopped(stack, weights, how, multilabel=multilabel)
                        full = decided(vote(stack, how=how, weights=weights, multilabel=multilabel), multilabel=multilabel)
                        changed += int((labels != full).reshape(len(labels), -1).any(axis=1).sum())
                        cases += len(labels)
    return changed, cases


def make_workspace(root: Path, name: str, count: int, size: int, folds: int) -> None:
    """Real digits, scaled up, each shown `count / 1797` times with noise, and folds of a network fine-tuned to tell them apart.

    The networks are random features with a classifier fitted per fold on other rows, so that their agreement is that of a real
    ensemble at little cost; every weight before the classifier is shaken a little per fold, so that nothing is shared.
    """
    import timm
    import torch
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    from toolkit.core.cards import Card, Output, Preprocess
    from toolkit.models.export import export
    from toolkit.workspace.competition import Competition, Images, Target

    digits, rng = load_digits(), np.random.default_rng(0)
    classes = tuple(map(str, range(10)))
    order = rng.permutation(len(digits.target))
    train, test = order[:1200], np.resize(order[1200:], count)

    def picture(i: int) -> Any:
        grey = Image.fromarray((digits.images[i] * 15.9).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        noisy = np.asarray(grey, float)[..., None] + rng.normal(0, 8, (size, size, 3))
        return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))

    for part, rows in (("train", train[:20]), ("test", test)):
        (root / part).mkdir(parents=True)
        for place, i in enumerate(rows):
            picture(i).save(root / part / f"{place}.png")
    (root / "train.csv").write_text("id,label\n" + "".join(f"{p},{digits.target[i]}\n" for p, i in enumerate(train[:20])))
    (root / "sample_submission.csv").write_text("id,label\n" + "".join(f"{p},0\n" for p in range(count)))
    target, where = Target("label", "multiclass", classes), Images("train", "{id}.png", "train.csv")
    competition = Competition(root, "stopping", "accuracy", (target,), where, Images("test", "{id}.png"), format="labels")
    (root / "competition.toml").write_text(competition.to_toml())
    some = np.stack([np.asarray(picture(i)).transpose(2, 0, 1) for i in train[:400]])
    for fold in range(folds):
        torch.manual_seed(fold)
        model = timm.create_model(name, num_classes=10).eval()
        scaled = (torch.from_numpy(some).float() / 255 - 0.5) / 0.25
        with torch.inference_mode():
            features = torch.cat(
                [model.forward_head(model.forward_features(x), pre_logits=True) for x in scaled.split(50)]
            ).numpy()
        kept = np.arange(len(features)) % folds != fold
        centre, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
        fitted = LogisticRegression(max_iter=300, C=0.1).fit(
            (features[kept] - centre) / spread, digits.target[train[:400]][kept]
        )
        with torch.no_grad():
            head = model.get_classifier()
            head.weight.copy_(torch.from_numpy(fitted.coef_ / spread))
            head.bias.copy_(torch.from_numpy(fitted.intercept_ - fitted.coef_ @ (centre / spread)))
        card = Card("m", None, (Output("label", classes),), Preprocess((size, size)), (0.5,) * 3, (0.25,) * 3)
        export(model, card, root / "folds" / f"m.{fold}.onnx", samples=some[:10])


def timed(root: Path, *, labels_only: bool, vote: str, tta: str) -> tuple[float, Any]:
    """Seconds of the passes (sessions opened and images decoded with them), nothing stored; and what was made."""
    from toolkit.blending.combination import Combination
    from toolkit.ensemble.run import run_ensemble
    from toolkit.inference.execution import Execution
    from toolkit.inference.exports import find_exports
    from toolkit.workspace.competition import Competition

    shutil.rmtree(root / "store", ignore_errors=True)
    paths = find_exports(["folds"], base=root)
    started = time.perf_counter()
    combination = Combination(tta, vote, labels_only=labels_only)
    made = run_ensemble(Competition.read(root), paths, combination, Execution(device="cpu"))
    return time.perf_counter() - started, made


def compare(root: Path, votes: Sequence[str], tta: str, pairs: int) -> None:
    """Alternate early and full runs; labels must be the same."""
    for vote in votes:
        ratios = []
        for _ in range(pairs):
            early, stopped = timed(root, labels_only=True, vote=vote, tta=tta)
            full, whole = timed(root, labels_only=False, vote=vote, tta=tta)
            changed = int((stopped.predictions["label"].decided != whole.predictions["label"].decided).sum())
            if changed:
                sys.exit(f"{changed} labels changed")
            ratios.append(full / early)
        mean, of = stopped.meta["stopping"]["mean"], stopped.meta["stopping"]["of"]
        ratio, ideal = statistics.median(ratios), of / mean
        click.echo(
            f"--vote {vote} --tta {tta}: {mean:.2f} of {of:g} passes per image, 0 labels changed; {ratio:.2f}x faster "
            f"({min(ratios):.2f} to {max(ratios):.2f}, {pairs} pairs), {ratio / ideal:.2f} of the ideal {ideal:.2f}x"
        )


@click.command()
@click.option("--model", default="resnet18", show_default=True)
@click.option("--images", "count", default=512, show_default=True)
@click.option("--size", default=224, show_default=True)
@click.option("--folds", default=5, show_default=True)
@click.option("--tta", default="none", show_default=True)
@click.option("--pairs", default=5, show_default=True)
@click.option("--workspace", type=click.Path(path_type=Path, exists=True), help="Another ensemble: its folds/ and test images.")
def main(model: str, count: int, size: int, folds: int, tta: str, pairs: int, workspace: Path | None) -> None:
    """Print label changes over random tables, then passes and speed on an ensemble."""
    changed, cases = random_cases()
    click.echo(f"random tables made to tie: {changed} label changes in {cases:,} cases")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "work"
        if workspace:
            shutil.copytree(workspace, root)
        else:
            make_workspace(root, model, count, size, folds)
        compare(root, ("soft", "hard"), tta, pairs)


if __name__ == "__main__":
    main()
