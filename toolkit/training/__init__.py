"""What every recipe shares: pixels and labels, networks, the trainer set-up, cross-validation with resume and export.

The public names, loaded on first use: see docs/api.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolkit import moved

_HOMES = {
    "Done": "training.plan:Done",
    "Fold": "training.fold.samples:Fold",
    "Outcome": "training.fold.samples:Outcome",
    "Plan": "training.plan:TrainingPlan",
    "Rows": "training.fold.samples:Rows",
    "Samples": "training.fold.samples:Samples",
    "SelfTraining": "training.pseudo_labels:SelfTraining",
    "TrainingPlan": "training.plan:TrainingPlan",
    "WarmStart": "training.parts.warm_start:WarmStart",
    "augment": "training.parts.augment",
    "choose_device": "training.fold.fit:choose_device",
    "decode": "training.fold.samples:decode",
    "described": "training.parts.by_name:described",
    "factor_losses": "training.parts.factor_losses",
    "fit": "training.fold.fit:fit",
    "join": "training.cross_validation:join",
    "limited": "workspace.split:limited",
    "loader": "training.fold.samples:loader",
    "logits": "training.fold.fit:logits",
    "losses": "training.parts.losses",
    "networks": "models.networks",
    "normalise": "training.fold.fit:normalise",
    "schedules": "training.parts.schedules",
    "search": "training.search",
    "setting": "training.settings:setting",
    "train": "training.cross_validation:train",
    "transfer": "training.parts.transfer",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - names are resolved by __getattr__

if TYPE_CHECKING:
    from toolkit.models import networks as networks
    from toolkit.training import search as search
    from toolkit.training.cross_validation import join as join
    from toolkit.training.cross_validation import train as train
    from toolkit.training.fold.fit import choose_device as choose_device
    from toolkit.training.fold.fit import fit as fit
    from toolkit.training.fold.fit import logits as logits
    from toolkit.training.fold.fit import normalise as normalise
    from toolkit.training.fold.samples import Fold as Fold
    from toolkit.training.fold.samples import Outcome as Outcome
    from toolkit.training.fold.samples import Rows as Rows
    from toolkit.training.fold.samples import Samples as Samples
    from toolkit.training.fold.samples import decode as decode
    from toolkit.training.fold.samples import loader as loader
    from toolkit.training.parts import augment as augment
    from toolkit.training.parts import factor_losses as factor_losses
    from toolkit.training.parts import losses as losses
    from toolkit.training.parts import schedules as schedules
    from toolkit.training.parts import transfer as transfer
    from toolkit.training.parts.by_name import described as described
    from toolkit.training.parts.warm_start import WarmStart as WarmStart
    from toolkit.training.plan import Done as Done
    from toolkit.training.plan import TrainingPlan as TrainingPlan
    from toolkit.training.pseudo_labels import SelfTraining as SelfTraining
    from toolkit.training.settings import setting as setting
    from toolkit.workspace.split import limited as limited

    Plan = TrainingPlan


def __getattr__(name: str) -> Any:
    return moved.public_name(__name__, name, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
