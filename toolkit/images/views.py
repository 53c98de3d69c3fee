"""Test-time augmentation: named views of an image, each a cut of the decoded picture and then a turn of its pixels."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from toolkit.errors import DataError, few

# A view is "id" or a chain of steps joined by "+". Identity first; no two views of a set alike; each by its canonical name.
VIEW_SETS: dict[str, tuple[str, ...]] = {
    "none": ("id",),
    "hflip": ("id", "hflip"),
    "flip": ("id", "vflip", "hflip", "rot180"),
    "rot90": ("id", "rot90", "rot180", "rot270"),
    "d4": ("id", "rot90", "rot180", "rot270", "hflip", "hflip+rot90", "vflip", "hflip+rot270"),
    "scale": ("id", "scale:0.9", "scale:1.1"),
    "five_crop": ("id", "crop:lt", "crop:lb", "crop:rb", "crop:rt"),
    "ten_crop": (
        *("id", "crop:lt", "crop:lb", "crop:rb", "crop:rt"),
        *("hflip", "crop:lt+hflip", "crop:lb+hflip", "crop:rb+hflip", "crop:rt+hflip"),
    ),
    "multiply": ("id", "multiply:0.9", "multiply:1.1"),
    "add": ("id", "add:-10", "add:10"),
}
AUTO = "auto"  # instead of a set: the one that pays on held-out images
GRAMMAR = (
    f"Use {', '.join(VIEW_SETS)}, a step (vflip, rot180, crop:lt), values (scale:0.9,1.1, multiply:0.8,1.2, add:-20,20), "
    "or a product of them, as in hflip+scale:0.9,1.1."
)
CORNERS = ("lt", "lb", "rb", "rt")  # left or right, top or bottom: ttach's names
_RANGES = {"scale": (0.1, 10.0), "multiply": (0.01, 100.0), "add": (-255.0, 255.0)}

# The eight ways to turn a square: a mirror or none, then so many quarter turns.
_TURNS = {"id": (0, 0), "rot90": (0, 1), "rot180": (0, 2), "rot270": (0, 3)}
_TURNS |= {"hflip": (1, 0), "hflip+rot90": (1, 1), "vflip": (1, 2), "hflip+rot270": (1, 3)}
_NAMES = {turn: name for name, turn in _TURNS.items()}


@dataclass(frozen=True)
class Cut:
    """The part of a view that changes what is cut from the decoded image: `images.cuts` makes it.

    `scale` multiplies the size before the centre crop: above 1 it zooms in, below 1 it shows more, or pads with the edge
    (ttach's Scale changes the size of the batch, by nearest neighbours; this resizes the decoded image, with the card's own
    filter, and lands on the export's size). `corner` cuts there instead of at the centre, from an image at least 8/7 as large
    as the crop (256 for 224). Pixels become round(multiply · pixel + add), clipped to 0..255.
    """

    scale: float = 1.0
    corner: str = ""
    multiply: float = 1.0
    add: float = 0.0

    @property
    def name(self) -> str:
        """Its canonical name, "id" for the plain evaluation pixels."""
        steps = [f"scale:{self.scale:.6g}"] if self.scale != 1 else []
        steps += [f"crop:{self.corner}"] if self.corner else []
        steps += [f"multiply:{self.multiply:.6g}"] if self.multiply != 1 else []
        steps += [f"add:{self.add:.6g}"] if self.add else []
        return "+".join(steps) or "id"


def views(name: str) -> tuple[str, ...]:
    """The views of a set, identity first, by canonical name: of VIEW_SETS, or composed as in `hflip+scale:0.9,1.1`.

    Factors joined by "+" make the Cartesian product, the first varying slowest, as in ttach's Compose; a step or its values
    stand for the identity and these. Whatever comes twice is left out.

    Raises:
        DataError: a name or value that the grammar does not have.
    """
    products = itertools.product(*(_factor(part, name) for part in name.split("+")))
    return tuple(dict.fromkeys(canonical("+".join(chain)) for chain in products))


def per_member(asked: str, members: Sequence[str]) -> dict[str, str]:
    """The set that each member was given: one for all of them, or `b4=flip,vit=none`; who is not named gets "none".

    Raises:
        DataError: a member that is not there or named twice, or see `views`.
    """
    if "=" not in asked:
        sets = dict.fromkeys(members, asked)
    else:
        first, *pieces = re.split(r"(?:^|,)([^=,]+)=", asked)  # commas also part the values of a step
        named = list(zip(pieces[::2], pieces[1::2], strict=True))
        given = dict(named)
        unknown = [name for name in given if name not in members]
        if first or unknown or len(given) < len(named):
            problem = f"are named for {few(unknown)}, which is no member here" if unknown else f"cannot be read: {asked!r}"
            hint = f"Name each once, as in b4=flip,vit=none. There are: {', '.join(members)}."
            raise DataError(f"views {problem}", hint=hint, code="views")
        sets = {name: given.get(name, "none") for name in members}
    for name in sets.values():
        if name != AUTO:
            views(name)
    return sets


def written(sets: dict[str, str]) -> str:
    """What `per_member` reads: the set itself where all members have the same."""
    several = set(sets.values())
    return several.pop() if len(several) == 1 else ",".join(f"{member}={name}" for member, name in sets.items())


def canonical(view: str) -> str:
    """The one name of a view, whatever the order and number of its steps: `vflip+hflip+scale:1.0` is `rot180`.

    Raises:
        DataError: an unknown step or a value out of its range.
    """
    cut, turn = parse(view)
    return "+".join(name for name in (cut.name, turn) if name != "id") or "id"


@lru_cache(maxsize=4096)
def parse(view: str) -> tuple[Cut, str]:
    """The two parts of a view: what is cut from the decoded image, then the canonical name of how the cut is turned.

    Raises:
        DataError: an unknown step, a value out of its range, or two corners.
    """
    cut, mirror, quarters = Cut(), 0, 0
    for step in view.split("+"):
        if step in _TURNS:
            flip, turns = _TURNS[step]
            mirror, quarters = mirror ^ flip, ((-quarters if flip else quarters) + turns) % 4
        else:
            cut = _extended(cut, step, view)
    return cut, _NAMES[mirror, quarters]


def needs_square(view: str) -> bool:
    """Whether the view swaps height and width, so that only square inputs keep their shape."""
    return _TURNS[parse(view)[1]][1] % 2 == 1


def turn_of(view: str) -> str:
    """The canonical name of how a view turns a batch, for views that do no more.

    Raises:
        DataError: an unknown step, or a view that is cut from the decoded image.
    """
    cut, turn = parse(view)
    if cut != Cut():
        raise DataError(f"view {view!r} is cut from the decoded image, a batch can only be turned")
    return turn


def _factor(part: str, whole: str) -> tuple[str, ...]:
    """The alternatives that one factor of a product stands for, identity first."""
    if part in VIEW_SETS:
        return VIEW_SETS[part]
    step, colon, values = part.partition(":")
    if not colon and step not in _TURNS:
        raise _unknown(part, whole)
    return ("id", *(f"{step}:{value}" for value in values.split(","))) if colon else ("id", step)


def _extended(cut: Cut, step: str, view: str) -> Cut:
    """The cut with one more step: scales and factors multiply, brightness adds up."""
    kind, _, text = step.partition(":")
    if kind == "crop" and text in CORNERS and not cut.corner:
        return replace(cut, corner=text)
    if kind not in _RANGES:
        raise _unknown(step, view)
    low, high = _RANGES[kind]
    before: float = getattr(cut, kind)
    try:
        value = float(text)
        value = float(f"{before + value if kind == 'add' else before * value:.6g}")  # the name says all of it
    except ValueError:
        raise _unknown(step, view) from None
    if not low <= value <= high:
        raise DataError(f"view {view!r}: {kind} takes numbers from {low:g} to {high:g}, not {value:g}")
    changed: dict[str, Any] = {kind: value}
    return replace(cut, **changed)


def _unknown(step: str, whole: str) -> DataError:
    where = "" if step == whole else f" in {whole!r}"
    return DataError(f"unknown view {step!r}{where}", hint=GRAMMAR)
