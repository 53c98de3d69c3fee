"""What every recipe shares: pixels and labels in memory, the trainer set-up, cross-validation with resume and export."""

from toolkit.training.cross_validation import Done, Plan, join, train
from toolkit.training.data import Fold, Rows, Samples, decode, loader
from toolkit.training.loop import choose_device, fit, logits, normalise

__all__ = [
    "Done",
    "Fold",
    "Plan",
    "Rows",
    "Samples",
    "choose_device",
    "decode",
    "fit",
    "join",
    "loader",
    "logits",
    "normalise",
    "train",
]
