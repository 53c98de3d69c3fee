"""How fold models and views become one answer: the request that travels unchanged from whoever asks to the vote itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.blending.blend import Blend


@dataclass(frozen=True)
class Combination:
    """Which views are merged, how models vote and what each weighs.

    - `tta`: the views of every model ("none", "flip", "hflip+scale:0.9,1.1"), or a set per member ("b4=flip,vit=none").
    - `vote`: one of VOTES; `weights`: a number per model in their order ("0.2,0.8"), names ("b4=0.7,vit=0.3"), "score" for the
      scores on the cards, or "" for the same weight for every member.
    - `blend`: per target, takes the place of both, with temperatures and an adjustment.
    - `members`: use the models of these only; none named: of all.
    - `labels_only`: labels and no probabilities, so that passes that cannot change one are left out.

    >>> Combination(tta="flip", weights="b4=0.7,vit=0.3").votes
    'soft'
    """

    tta: str = "none"
    vote: str = "soft"
    weights: str = ""
    blend: Mapping[str, Blend] | None = None
    members: tuple[str, ...] = ()
    labels_only: bool = False

    @property
    def votes(self) -> str:
        """The vote by name; of several targets with blends, that of the first."""
        return next(iter(self.blend.values())).vote if self.blend else self.vote

    def spec(self, target: str) -> str:
        """The weights for a target in the same words: a blend's where there is one, less the members that weigh nothing."""
        if not self.blend:
            return self.weights
        blend = self.blend[target]
        weighing = zip(blend.members, blend.weights.tolist(), strict=True)
        return ",".join(f"{name}={weight!r}" for name, weight in weighing if weight) or blend.spec
