"""What every recipe shares: pixels and labels, networks, the trainer set-up, cross-validation with resume and export."""

from toolkit.training.cross_validation import Done, Plan, join, train
from toolkit.training.fold.fit import choose_device, fit, logits, normalise
from toolkit.training.fold.samples import Fold, Outcome, Rows, Samples, decode, loader
from toolkit.training.settings import setting
from toolkit.training.shares import limited

__all__ = [
    "Done",
    "Fold",
    "Outcome",
    "Plan",
    "Rows",
    "Samples",
    "choose_device",
    "decode",
    "fit",
    "join",
    "limited",
    "loader",
    "logits",
    "normalise",
    "setting",
    "train",
]
