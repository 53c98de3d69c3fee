"""What an export says about itself: classes in order, the exact pixels it wants, where it comes from."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import Any, Literal

from toolkit.base import documents
from toolkit.base.schema import checked
from toolkit.base.text import html
from toolkit.core.lineage import Lineage, Seen
from toolkit.errors import CardError, counted, few

SCHEMA = 1
KEY = "toolkit.card"  # the metadata_props entry that holds the card
SEAL = "seal"  # in a card of a file: a digest of the card and of what it stands beside

Resize = Literal["squash", "crop"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
Activation = Literal["softmax", "sigmoid", "identity"]
# how the model was chosen; all but "last" owe something to the held-out rows: see `lineage.OPTIMISTIC`
Selected = Literal["last", "best", "soup", "stopped", "soft-oof", "seen", "inherited"]
Task = Literal["multiclass", "binary", "multilabel"]
Alpha = Literal["white", "black", "drop"]
Window = tuple[int, int]
Region = tuple[float, float, float, float]

SIDE = 16_384  # pixels of an input; beyond, one image fills the memory
CLASSES = 100_000
FOLDS = 10_000
MARGIN = 100.0  # times a box's sides

ALPHAS: tuple[Alpha, ...] = ("white", "black", "drop")
WHOLE: Region = (0.0, 0.0, 1.0, 1.0)
_NAMED = re.compile(r"(\w*)([+-]\d*\.?\d+)?")  # a box, and its margin


@dataclass(frozen=True)
class Preprocess:
    """How a decoded RGB image becomes the uint8 pixels (3, height, width) that a model takes.

    `squash` resizes straight to `size`; `crop` resizes the shorter side to `shorter` pixels and cuts the centre (timm's
    evaluation transform with crop_pct = size / shorter). Normalisation is not here: it is inside the exported graph.

    Before that, `box` names the bounding box (of `[boxes]` in competition.toml) that is cut out of each image, and `region` the
    part of it, or of the whole image, that counts: left, top, right and bottom as shares of its sides, below 0 or above 1 for a
    margin around it. What lies outside of the image is cut off.

    `alpha` says what lies behind transparent pixels: "white" or "black" is blended in, "drop" leaves colours as stored.
    `window` has the values of 16-bit files that become 0 and 255, such as (0, 4095) of 12 bits; None: 0 and 65535.
    """

    size: tuple[int, int]
    resize: Resize = "squash"
    shorter: int | None = None
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    orientation: Literal["exif", "stored"] = "exif"
    colour: Literal["RGB"] = "RGB"
    box: str = ""
    region: Region = WHOLE
    alpha: Alpha = "drop"
    window: Window | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _sides(self.size))
        object.__setattr__(self, "region", tuple(float(edge) for edge in self.region))
        if len(self.size) != 2 or min(self.size) < 1:
            raise CardError(f"an input size is two positive numbers (height, width), not {self.size}")
        if max(*self.size, self.shorter or 0) > SIDE:
            raise CardError(f"an input side has at most {SIDE:,} pixels, not {max(*self.size, self.shorter or 0):,}")
        if self.resize not in ("squash", "crop") or self.interpolation not in ("nearest", "bilinear", "bicubic"):
            raise CardError(f"unknown resize {self.resize!r} or interpolation {self.interpolation!r}")
        if (self.resize == "crop") != (self.shorter is not None):
            raise CardError("resize 'crop' needs 'shorter' (pixels of the shorter side), 'squash' must not have it")
        if self.shorter is not None and self.shorter < max(self.size):
            raise CardError(f"shorter={self.shorter} leaves no room for a centre crop of {self.size}")
        if self.alpha not in ALPHAS:
            raise CardError(f"alpha is one of {', '.join(ALPHAS)}, not {self.alpha!r}")
        if self.window is not None:
            object.__setattr__(self, "window", as_window(self.window))
        if len(self.region) != 4 or not all(isfinite(edge) and abs(edge) <= MARGIN for edge in self.region):
            raise CardError(f"a region is four numbers (left, top, right, bottom), not {self.region}")
        if self.region[0] >= self.region[2] or self.region[1] >= self.region[3]:
            raise CardError(f"a region (left, top, right, bottom) has an area, {self.region} has none")

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change whenever any pixel could."""
        fields = self.fields
        for name, plain in (("box", ""), ("region", WHOLE)):  # as before there were boxes: stored rows stay valid
            if fields[name] == plain:
                del fields[name]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def fields(self) -> dict[str, Any]:
        """The fields as plain values; those that came later only where they say something, as keys of before have it."""
        values = asdict(self)
        if self.alpha == "drop":
            del values["alpha"]
        if self.window is None:
            del values["window"]
        return values

    @property
    def framed(self) -> str:
        """What is cut out first, as `frame` reads it; "" for the whole image."""
        margin = -self.region[0]
        if self.box and self.region == WHOLE:
            return self.box
        if self.box and self.region == (-margin, -margin, 1 + margin, 1 + margin):
            return f"{self.box}{margin:+g}"
        edges = ",".join(f"{edge:g}" for edge in self.region)
        return f"{self.box}:{edges}" if self.box else "" if self.region == WHOLE else edges

    def framing(self, text: str) -> Preprocess:
        """The same with what `frame` reads of `text`.

        Raises:
            CardError: see `frame`.
        """
        box, region = frame(text)
        return replace(self, box=box, region=region)


def frame(text: str) -> tuple[str, Region]:
    """The box's name and the region that a text says.

    `face` is that box; `face+0.2` has a margin of a fifth of its sides all around (`face-0.1` is smaller);
    `0.1,0,0.9,0.8` is that part of the image (left, top, right, bottom), `face:0,0,1,0.5` of the box; "" all of it.

    Raises:
        CardError: it says something else.
    """
    if match := _NAMED.fullmatch(text):
        name, margin = match[1], float(match[2] or 0)
        return name, (0.0 - margin, 0.0 - margin, 1 + margin, 1 + margin)
    name, _, edges = text.rpartition(":")
    try:
        left, top, right, bottom = map(float, edges.split(","))
    except ValueError:
        raise CardError(
            f"{text!r} is no box",
            hint="Name one (face), with a margin (face+0.2), or say shares of the sides (left,top,right,bottom): 0.1,0,0.9,0.8",
        ) from None
    return name, (left, top, right, bottom)


@dataclass(frozen=True)
class Output:
    """One target of a model: which logits (columns `start` to `stop`) mean which classes, and how they become p.

    A binary target with one logit has `stop - start == 1`, two classes and activation "sigmoid": p belongs to `classes[1]`.
    Activation "identity" means that the graph gives probabilities; `independent` then says that each class is a yes or no of
    its own, as "sigmoid" always does.
    """

    target: str
    classes: tuple[str, ...]
    activation: Activation = "softmax"
    start: int = 0
    stop: int = -1
    independent: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(str(name) for name in self.classes))
        if self.stop < 0:
            object.__setattr__(self, "stop", self.start + len(self.classes))
        if len(self.classes) > CLASSES or not 0 <= self.start <= CLASSES:
            raise CardError(f"target {self.target!r}: no model has more than {CLASSES:,} classes")
        _check_names(self.target, *self.classes)
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise CardError(f"target {self.target!r}: class names must be present and different: {few(self.classes)}")
        if self.activation not in ("softmax", "sigmoid", "identity"):
            raise CardError(f"target {self.target!r}: unknown activation {self.activation!r}")
        if self.independent and self.activation == "softmax":
            raise CardError(f"target {self.target!r}: classes that exclude each other (softmax) are not independent")
        width = self.stop - self.start
        if width != len(self.classes) and not self.one_logit:
            raise CardError(
                f"target {self.target!r}: {counted(width, 'logits')} cannot mean {counted(len(self.classes), 'classes')}"
            )

    @property
    def one_logit(self) -> bool:
        """Whether a single logit stands for two classes."""
        return self.stop - self.start == 1 and len(self.classes) == 2 and self.activation == "sigmoid"

    @property
    def multilabel(self) -> bool:
        """Whether each class is a yes or no of its own."""
        return (self.activation == "sigmoid" or self.independent) and not self.one_logit


@dataclass(frozen=True)
class Card:
    """What one exported model is; written into the .onnx as JSON, so the ensemble step never guesses.

    `fold` is None for a model trained on everything. `mean` and `std` record what the graph subtracts and divides by, in
    units of pixel / 255. `score` is the metric on the fold that the model did not see. `parity` holds the export's gaps.
    `labels_fix` is the digest of the corrected labels it was trained on; `score` is against those given. `lineage` says which
    rows the weights have seen; None where nobody wrote it down: see `known_lineage`.
    """

    member: str
    fold: int | None
    outputs: tuple[Output, ...]
    preprocess: Preprocess
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    split: str = ""
    metric: str = ""
    score: float | None = None
    selected: Selected = "last"
    recipe: str = ""
    parity: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    labels_fix: str = ""
    lineage: Lineage | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if not self.outputs or len({o.target for o in self.outputs}) != len(self.outputs):
            raise CardError(f"{self.title}: a card needs outputs, each for a different target")
        if not self.member or any(mark in self.member for mark in "/\\=,"):
            raise CardError(f"a member's name is a word without / \\ = or comma, not {self.member!r}")
        _check_names(self.member, self.recipe, self.metric, self.split)
        if self.fold is not None and not 0 <= self.fold <= FOLDS:
            raise CardError(f"a fold is a number from 0 to {FOLDS:,}, or none")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(isfinite, self.mean + self.std)) or min(self.std) <= 0:
            raise CardError(f"{self.title}: mean and std are three numbers each, std above zero")

    def _repr_html_(self) -> str:
        """What the export says of itself, for notebooks."""
        size = " × ".join(map(str, self.preprocess.size))
        outputs = "; ".join(f"{o.target}: {counted(len(o.classes), 'classes')}, {o.activation}" for o in self.outputs)
        rows = [
            ("outputs", outputs),
            ("input", f"{size}, {self.preprocess.resize}, {self.preprocess.interpolation}"),
            *([("box", self.preprocess.framed)] if self.preprocess.framed else []),
            (self.metric or "score", self.score),
            ("selected by", self.selected),
            ("split", self.split),
            ("recipe", self.recipe),
        ]
        return html.table(("", ""), rows, caption=self.title)

    @property
    def title(self) -> str:
        """The short name used in messages: `member.fold3`, or `member.all` for a model trained on everything."""
        return f"{self.member}.{'all' if self.fold is None else f'fold{self.fold}'}"

    @property
    def selected_on_heldout(self) -> bool:
        """Whether the rows that `score` was taken on had a say in the model: then it is optimistic."""
        return self.chosen != "last"

    @property
    def chosen(self) -> Selected:
        """How the model was chosen: as `selected` says, or "seen" where that says nothing and the lineage knows better."""
        return "seen" if self.selected == "last" and self.exposed else self.selected

    @property
    def exposed(self) -> bool:
        """Whether the weights have learned from labels of the rows that `score` was taken on: more than been chosen by them."""
        return self.selected in ("seen", "soft-oof") or bool(self.known_lineage.exposed(self.split, self.fold))

    @property
    def known_lineage(self) -> Lineage:
        """The lineage; where nobody wrote it down, what fold and split say, and that nothing more is known."""
        if self.lineage is not None:
            return self.lineage
        return Lineage((Seen(self.split, self.fold),) if self.split else (), (self.title,))

    @property
    def width(self) -> int:
        """Number of logits the graph emits."""
        return max(output.stop for output in self.outputs)

    def to_json(self) -> str:
        """The card as JSON with sorted keys."""
        return json.dumps(asdict(self) | {"preprocess": self.preprocess.fields}, sort_keys=True, ensure_ascii=False)

    def sealed(self, content: str) -> str:
        """As `to_json`, with a digest over the card and over `content`: what the weights beside it come to."""
        document = json.loads(self.to_json())
        return json.dumps(document | {SEAL: _seal(document, content)}, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, *, where: str, content: str | None = None) -> Card:
        """Read a card; `where` names the file in messages, `content` is what the weights beside it come to.

        Raises:
            CardError: not JSON, fields missing, values that contradict each other, a newer schema, or a digest that says that
                card or content were changed since they were written (files of before have none).
        """
        try:
            raw = documents.parse_json(text)
            schema = checked(raw["schema"], int, "schema")
            seal = raw.pop(SEAL, None)
        except (ValueError, TypeError, KeyError) as error:
            raise CardError(f"{where}: its card cannot be read ({error})", hint="Export the model again.") from error
        if schema > SCHEMA:
            raise CardError(
                f"{where}: its card has schema {schema}, this version reads up to {SCHEMA}", hint="Upgrade toolkit."
            )
        try:
            card: Card = checked(raw, cls)
        except CardError as error:
            raise CardError(f"{where}: {error.message}", hint=error.hint, code=error.code) from error
        except ValueError as error:
            raise CardError(f"{where}: its card cannot be read ({error})", hint="Export the model again.") from error
        if seal is not None and content is not None and seal != _seal(raw, content):
            raise CardError(
                f"{where} is damaged: its digest says that it was changed since it was written",
                hint="Copy or export it again; what another tool changed on purpose is taken in with `toolkit adopt`.",
            )
        return replace(card, mean=_floats(card.mean), std=_floats(card.std))


def _check_names(*names: str) -> None:
    """Names that a document may hold, and so be read again."""
    try:
        documents.bounded(list(names))
    except ValueError as error:
        raise CardError(f"a name in a card cannot be written: {error}") from error


def _seal(document: Any, content: str) -> str:
    text = json.dumps(document, sort_keys=True) + "\0" + content
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def as_window(window: Any) -> Window:
    """Two values of 16 bits, the lower first.

    Raises:
        CardError: anything else.
    """
    whole = isinstance(window, (tuple, list)) and all(isinstance(edge, int) and not isinstance(edge, bool) for edge in window)
    if not whole or len(window) != 2 or not 0 <= window[0] < window[1] <= 65_535:
        raise CardError(f"a window is two whole numbers from 0 to 65535, the lower first, not {window}")
    return window[0], window[1]


def _sides(size: Any) -> tuple[int, ...]:
    try:
        return tuple(int(side) for side in size)
    except (TypeError, ValueError, OverflowError):
        raise CardError(f"an input size is two positive numbers (height, width), not {size!r}") from None


def _floats(values: tuple[float, float, float]) -> tuple[float, float, float]:
    first, second, third = map(float, values)
    return first, second, third
