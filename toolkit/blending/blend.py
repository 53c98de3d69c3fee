"""Blends: how members' tables become one, as plain data that is chosen in one place and applied in many."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64
from toolkit.base.schema import checked
from toolkit.base.text import html
from toolkit.blending.adjustment import Adjustment
from toolkit.core.voting import VOTES, Vote, vote
from toolkit.errors import DataError, counted, few


@dataclass(frozen=True, eq=False)
class Blend:
    """Members' weights (float64 [M], >= 0, summing to 1), the vote, and what is done to probabilities before and after it.

    `temperatures` (float64 [M]) divide a member's logits: 1 leaves it as it is. `adjustment` changes the outcome of the vote:
    `adjusted` says what it is (one of ADJUSTMENTS, or "prior"). `views` are those its members' tables were made with. `fitted`
    says that rows had a say in it, and `outer` how it was settled without each fold of these: none where that is not known.

    Raises:
        DataError: an unknown vote, numbers that do not fit the members, weights or temperatures that cannot be, or an
            adjustment of a vote that leaves no probabilities.
    """

    members: tuple[str, ...]
    weights: F64
    vote: str = "soft"
    temperatures: F64 | None = None
    adjustment: Adjustment | None = None
    adjusted: str = ""
    views: Mapping[str, str] | None = None
    fitted: bool = False
    outer: OuterBlends | None = None

    def __post_init__(self) -> None:
        weights = np.asarray(self.weights, dtype=np.float64)
        warm = np.ones(len(weights)) if self.temperatures is None else np.asarray(self.temperatures, dtype=np.float64)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "temperatures", warm)
        if self.vote not in VOTES:
            raise DataError(f"unknown vote {self.vote!r}", hint=f"Use one of: {', '.join(VOTES)}.")
        if not len(self.members) == len(weights) == len(warm) or weights.ndim != 1:
            raise DataError(
                f"{counted(len(self.members), 'members need')} as many weights and temperatures, not {weights.shape}"
            )
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
            raise DataError(f"weights must not be negative or all zero, got {weights.tolist()}")
        if not (np.isfinite(warm).all() and (warm > 0).all()):
            raise DataError(f"temperatures must be above zero, got {warm.tolist()}")
        if self.adjustment is not None and self.vote in ("hard", "rank"):
            raise DataError(f"a {self.vote} vote leaves no probabilities to adjust", hint="Use another vote.")

    def _repr_html_(self) -> str:
        """Members with their weights and temperatures, for notebooks."""
        rows = list(zip(self.members, self.weights.tolist(), self.warm.tolist(), strict=True))
        caption = f"{self.vote} vote" + (f", then {self.adjusted}" if self.adjusted else "")
        return html.table(("member", "weight", "temperature"), rows, caption=caption)

    @property
    def plain(self) -> bool:
        """Whether it is a weighted vote and nothing else."""
        return self.adjustment is None and bool((self.warm == 1).all())

    @property
    def weighing(self) -> tuple[str, ...]:
        """The members that weigh anything."""
        return tuple(name for name, weight in zip(self.members, self.weights.tolist(), strict=True) if weight)

    @property
    def spec(self) -> str:
        """The weights as `--weights` takes them: `b4=0.7,vit=0.3`."""
        return ",".join(f"{name}={weight!r}" for name, weight in zip(self.members, self.weights.tolist(), strict=True))

    def among(self, present: Collection[str]) -> Blend:
        """The blend of those members that are there, its weights summing to 1 again.

        Raises:
            DataError: none of them weighs anything.
        """
        kept = np.array([name in present for name in self.members])
        if not self.weights[kept].any():
            raise DataError(f"no member that is there has a weight; there are {few(present)}")
        weights = self.weights[kept] / self.weights[kept].sum() if not kept.all() else self.weights
        names = tuple(name for name in self.members if name in present)
        return replace(self, members=names, weights=weights, temperatures=self.warm[kept])

    @property
    def warm(self) -> F64:
        """The temperatures, float64 [M]."""
        assert self.temperatures is not None
        return self.temperatures

    def cooled(self, member: str, p: F64, *, multilabel: bool = False) -> F64:
        """What a member says [N, C], its logits divided by its temperature."""
        return cool(p, float(self.warm[self.members.index(member)]), multilabel=multilabel)

    def combine(self, stack: F64, weights: Sequence[float] | F64, *, multilabel: bool = False) -> Vote:
        """The vote over tables that are cooled already [K, N, C], with a weight each, then the adjustment."""
        outcome = vote(stack, how=self.vote, weights=weights, multilabel=multilabel)
        if self.adjustment is None or outcome.values is None:
            return outcome
        return Vote(self.adjustment.apply(outcome.values), None, outcome.ties, outcome.kind)

    def apply(self, stack: F64, *, multilabel: bool = False) -> Vote:
        """The blend of the members' tables [M, N, C]."""
        tables = zip(stack, self.warm, strict=True)
        cold = stack if (self.warm == 1).all() else np.stack([cool(p, float(t), multilabel=multilabel) for p, t in tables])
        return self.combine(cold, self.weights, multilabel=multilabel)

    def record(self, classes: Sequence[str]) -> dict[str, Any]:
        """Plain values; `temperature` and `thresholds` say again, for people, what `adjustment` says exactly."""
        record: dict[str, Any] = {
            "members": dict(zip(self.members, self.weights.tolist(), strict=True)),
            "vote": self.vote,
            "views": dict(self.views or {}),
            "temperatures": dict(zip(self.members, self.warm.tolist(), strict=True)),
            "temperature": None,
            "thresholds": None,
            "adjustment": None,
        }
        if self.adjustment is not None:
            adjustment = self.adjustment
            scale, bias = (dict(zip(classes, column.tolist(), strict=True)) for column in (adjustment.scale, adjustment.bias))
            record["adjustment"] = {"how": self.adjusted, "scale": scale, "bias": bias, "multilabel": adjustment.multilabel}
            if self.adjusted == "temperature":
                record["temperature"] = adjustment.temperature
            if not (adjustment.scale != 1).any():
                thresholds = 1 / (1 + np.exp(adjustment.bias)) if adjustment.multilabel else np.exp(adjustment.bias)
                record["thresholds"] = dict(zip(classes, thresholds.tolist(), strict=True))
        return record


@dataclass(frozen=True, eq=False)
class OuterBlends:
    """A blend as it was chosen and fitted without each outer fold: the blend by fold, and the fold of each row by its id."""

    blends: Mapping[int, Blend]
    folds: Mapping[str, int]

    def apply(self, stack: F64, members: Sequence[str], ids: Sequence[str], *, multilabel: bool = False) -> list[Vote]:
        """What is said of each row, fold by fold as `parts` has them, from tables of these members [M, N, C]."""
        votes = []
        for number, rows in self.parts(ids):
            blend = self.blends[number].among(members)
            order = [members.index(name) for name in blend.members]
            votes.append(blend.apply(stack[order][:, rows], multilabel=multilabel))
        return votes

    def parts(self, ids: Sequence[str]) -> list[tuple[int, NDArray[np.int64]]]:
        """The fold numbers and the places of their ids; ids without a fold are in none."""
        place = np.array([self.folds.get(name, -1) for name in ids], dtype=np.int64)
        return [(number, np.flatnonzero(place == number)) for number in sorted(self.blends) if (place == number).any()]


def cool(p: F64, temperature: float, *, multilabel: bool = False) -> F64:
    """Probabilities [N, C] whose logits are divided by a temperature; 1 gives back the very same.

    >>> cool(np.array([[0.8, 0.2]]), 2.0).round(3)
    array([[0.667, 0.333]])
    """
    if temperature == 1:
        return p
    classes = p.shape[1]
    return Adjustment(np.full(classes, 1 / temperature), np.zeros(classes), multilabel).apply(p)


def read_blend(record: Mapping[str, Any], classes: Sequence[str]) -> Blend:
    """The blend that `Blend.record` wrote, its classes matched by name.

    Raises:
        DataError: other classes, or numbers that cannot be.
        KeyError, TypeError, ValueError, AttributeError: it is no such record.
    """
    members = {str(name): float(weight) for name, weight in record["members"].items()}
    warm = {name: float(value) for name, value in (record.get("temperatures") or {}).items()}
    stored, adjustment = record.get("adjustment"), None
    if stored:
        if set(stored["scale"]) != set(classes) or set(stored["bias"]) != set(classes):
            raise DataError(f"it was fitted to the classes {few(stored['scale'])}, and there are {few(classes)}")
        scale, bias = (np.array([float(stored[what][name]) for name in classes]) for what in ("scale", "bias"))
        adjustment = Adjustment(scale, bias, bool(stored["multilabel"]))
    return Blend(
        tuple(members),
        np.array(list(members.values())),
        str(record.get("vote", "soft")),
        np.array([warm.get(name, 1.0) for name in members]),
        adjustment,
        str(stored["how"]) if stored else "",
        checked(record.get("views") or {}, dict[str, str], "views"),
    )
