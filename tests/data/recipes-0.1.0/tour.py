# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From data to submission, in a notebook
#
# Everything the commands do is a function, and most results show themselves. This tour takes scikit-learn's handwritten digits
# through the whole job: look, split, train, judge, predict, check, submit, explain. Five minutes to read, one to run on a CPU.
# `jupytext --to ipynb recipes/tour.py` makes the notebook.

# %%
"""The whole job in a notebook, with the library alone: look, split, train, judge, predict, check, submit, explain."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch.nn import functional as F

from toolkit import digits, ensembling, explaining, fitting, scoring, submissions, surveying, tta
from toolkit.cards import Preprocess
from toolkit.folds import make
from toolkit.graphs import read
from toolkit.members import find_exports, read_exports
from toolkit.payoff import table as payoff_table
from toolkit.tables import read_table
from toolkit.training import Plan, fit, join, loader, normalise, train

# %% [markdown]
# ## The workspace
# A folder with a `competition.toml`: here one is made; `toolkit init` writes it for a folder of your own.

# %%
competition = digits.make_workspace(Path(tempfile.mkdtemp()) / "digits")
print((competition.root / "competition.toml").read_text())

# %% [markdown]
# ## Look at the data
# What `toolkit eda` puts on a page: counts, formats, pixels, shift between train and test, and what to do about it.

# %%
survey = surveying.survey(competition)
print(*survey.advice, sep="\n")
print("mean", survey.mean, "std", survey.std)
survey.classes["label"]

# %% [markdown]
# ## Split
# Stratified folds; with a group column in `competition.toml`, no group stands on both sides.

# %%
truth = competition.truth()["label"]
split = make(truth.ids, truth.labels, truth.classes, folds=3)
split.write(competition.path("split.csv"))
split


# %% [markdown]
# ## Train
# A recipe is a configuration, a network and a `train_fold`. The held-out rows are not in `fold`, so they cannot leak. Each
# fold is exported to ONNX with a card, and the export is proved to compute what the network does.


# %%
@dataclass(frozen=True)
class Config:
    """What may change a result."""

    member: str = "tour"
    seed: int = 0
    epochs: int = 6
    lr: float = 6e-3


ARCHITECTURE = {"model_name": "resnet10t", "channels": [16, 32, 64, 96], "stem_width": 16, "num_classes": 10}
HALF = (0.5, 0.5, 0.5)


def train_fold(config, fold):
    """One fold: AdamW, one cycle of the learning rate, averaged weights."""
    model = timm.create_model(**ARCHITECTURE)
    feed = loader(fold.training, 64)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.lr, total_steps=config.epochs * len(feed))
    return fit(
        model,
        feed,
        fold,
        epochs=config.epochs,
        prepare=lambda pixels: normalise(pixels.float(), HALF, HALF),
        loss=F.cross_entropy,
        optimiser=optimiser,
        schedule=schedule,
        ema=0.95,
    )


plan = Plan("tour", Config(), ARCHITECTURE, Preprocess((32, 32)), HALF, HALF, competition, split, competition.root)
torch.set_num_threads(1)  # layers this small are done before a second thread has woken up
for done in train(plan, train_fold, bar=lambda what: nullcontext(lambda done, total: None), device="cpu"):
    print(f"fold {done.fold}: accuracy {done.score:.4f} on the images it did not see ({done.seconds:.0f} s)")
print(f"out of fold: {join(plan):.4f}")

# %% [markdown]
# An export says what it is:

# %%
paths = find_exports(["folds"], base=competition.root)
read(paths[0]).card

# %% [markdown]
# ## Judge
# The out-of-fold table holds, for every training image, what the model says that did not see it.

# %%
read_table(plan.oof).predictions["label"]

# %%
rows = fitting.read_members(competition, competition.targets[0], fitting.find_tables(competition))
(scored,) = scoring.score(rows, ["accuracy", "log_loss"], calibration=True)
for name, estimate in scored.metrics.items():
    print(f"{name} {estimate.score:.4f} (95 % {estimate.low:.4f} to {estimate.high:.4f})")
print("fitted temperature", round(scored.calibration.temperature, 3))

# %% [markdown]
# Does test-time augmentation pay? Each view is judged on held-out images, and a set is chosen only where its gain exceeds
# its noise.

# %%
exports = read_exports(paths, competition)
finding = tta.find(competition, exports, ("hflip", "flip"))[0]["tour"]
print(*payoff_table(finding), sep="\n")

# %% [markdown]
# ## Predict
# Every fold model and view over the test images; the second time everything comes from the store.

# %%
made = ensembling.run(competition, paths, tta=finding.chosen, device="cpu")
again = ensembling.run(competition, paths, tta=finding.chosen, device="cpu")
print("passes:", made.outcome.passes, "then", again.outcome.passes)
made.predictions["label"]

# %% [markdown]
# ## Submit
# Every check first, then the file, its manifest, and a copy in the ledger.

# %%
receipt = submissions.submit(competition)
print(*receipt.warnings, sep="\n")
receipt.path.read_text().splitlines()[:4]

# %% [markdown]
# ## Explain
# Why is this image predicted as it is? Red parts speak for the answer: covering them lowers its probability.

# %%
first = made.predictions["label"].ids[0]
explanation = explaining.explain(competition, exports, first, device="cpu")
print(explanation.predicted, explanation.combined.round(3))

# %%
from PIL import Image  # shown here, where it is used

from toolkit.reports.explained import overlay

Image.fromarray(overlay(explanation.pixels, explanation.saliency)).resize((192, 192))
