"""One self-contained .onnx from many: members, views, activations, temperatures, weights and mean in a single graph."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64, U8
from toolkit.base.files import write
from toolkit.blending.adjustment import EPS
from toolkit.blending.blend import Blend
from toolkit.blending.combination import Combination
from toolkit.core import voting
from toolkit.core.activations import probabilities
from toolkit.core.cards import Card, Output, Preprocess
from toolkit.ensemble.combine import views_for, weights_of
from toolkit.errors import DataError, ModelError, ParityError, counted, few
from toolkit.images.views import Cut, parse, written
from toolkit.inference.exports import check_width, output_of, read_exports
from toolkit.models.export import parity
from toolkit.models.export_checkpoint import samples
from toolkit.runtime.graphs import onnx_file
from toolkit.runtime.graphs.merge import Merger
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.runtime.session import Session, open_session
from toolkit.workspace.competition import Competition, Target

TOLERANCE = 1e-5  # float32 softmax and mean against float64: 1e-6 was measured
VOTES = ("soft", "geometric")  # those that a graph computes
ROUNDS = 3


@dataclass(frozen=True)
class Fused:
    """What `fuse` made: the file, its card, its size against the parts', and images per second of both on one CPU.

    `nodes` counts the graph's nodes, `parts_nodes` those of the models in it.
    """

    path: Path
    card: Card
    models: tuple[str, ...]
    views: Mapping[str, Sequence[str]]
    bytes: int
    parts_bytes: int
    nodes: int
    parts_nodes: int
    rate: float
    parts_rate: float
    checked: int


@dataclass(frozen=True, eq=False)
class _FusePlan:
    """Models of one pixel pipeline, the views of each (by digest), and per target the blend with a weight per model."""

    exports: Sequence[Export]
    views: Mapping[str, Sequence[str]]
    blends: Mapping[str, tuple[Blend, Sequence[float]]]
    targets: Sequence[Target]

    @property
    def preprocess(self) -> Preprocess:
        return self.exports[0].card.preprocess


def fuse(
    competition: Competition,
    paths: Sequence[Path],
    path: Path,
    combination: Combination = Combination(),
    *,
    force: bool = False,
) -> Fused:
    """Write the ensemble of these exports as one export, after it gave what they give on the workspace's training images.

    A blend says weights, vote, temperatures and (unless the request names others) views. The file takes the same uint8 images
    and gives `probabilities`, float32 (N, classes of all targets), in the competition's order of classes. `force` replaces a
    file that is there.

    Raises:
        ModelError, CardError, DataError: see `read_exports`, `share` and `views_for`; members of different pixels, views that
            are cut from the decoded image, a vote that no graph computes, or a file that is there.
        ParityError: it differs from the ensemble by more than 1e-5; nothing stands at `path`.
        ImageError: no training image can be read.
    """
    if path.exists() and not force:
        raise ModelError(f"{path} exists", hint="Name another file, or have it replaced.", code="exists")
    exports = read_exports(paths, competition, members=combination.members)
    plan = _plan(competition, exports, combination)
    merger, width = Merger(), sum(len(target.classes) for target in plan.targets)
    merger.rename(_graph(merger, plan), "probabilities")
    proto = merger.model(plan.preprocess.size, "probabilities", width)
    proto.producer_name = "toolkit"
    card = _card(plan, path.stem, competition)
    pixels = samples(competition, card.preprocess)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "fused.onnx"
        onnx_file.embed(proto, card)
        trial.write_bytes(proto.SerializeToString())
        whole = open_session({"fused": trial}, device="cpu")
        parts = open_session({export.digest: export.path for export in plan.exports}, device="cpu")
        card = replace(card, parity=_prove(plan, card, parts, whole, pixels))
        rates = _rates(plan, parts, whole, pixels)
    onnx_file.embed(proto, card)
    write(path, lambda file: file.write(proto.SerializeToString()))
    sizes = [onnx_file.facts(export.path) for export in plan.exports]
    return Fused(
        path=path,
        card=card,
        models=tuple(export.title for export in plan.exports),
        views={export.title: plan.views[export.digest] for export in plan.exports},
        bytes=path.stat().st_size,
        parts_bytes=sum(facts["bytes"] for facts in sizes),
        nodes=len(proto.graph.node),
        parts_nodes=sum(facts["nodes"] for facts in sizes),
        rate=rates[0],
        parts_rate=rates[1],
        checked=len(pixels),
    )


def reference(plan: _FusePlan, session: Session, pixels: U8) -> F64:
    """What the ensemble says of images, float64 (N, classes of all targets), by the unfused pipeline."""
    batch = session.place(pixels)
    logits: dict[tuple[str, str], NDArray[np.float32]] = {}
    for view in dict.fromkeys(view for views in plan.views.values() for view in views):
        wanted = [export.digest for export in plan.exports if view in plan.views[export.digest]]
        logits |= {(digest, view): values for digest, values in session.run(batch, view, wanted).items()}
    for export in plan.exports:
        for view in plan.views[export.digest]:
            check_width(export, logits[export.digest, view], len(pixels))
    tables = []
    for target in plan.targets:
        blend, share = plan.blends[target.name]
        stack = []
        for export in plan.exports:
            output = output_of(export, target.name)
            every = np.stack([probabilities(logits[export.digest, view], output) for view in plan.views[export.digest]])
            merged = voting.vote(every, how="soft", multilabel=target.multilabel).values
            assert merged is not None
            merged = merged[:, [output.classes.index(name) for name in target.classes]]
            stack.append(blend.cooled(export.card.member, merged, multilabel=target.multilabel))
        values = blend.combine(np.stack(stack), share, multilabel=target.multilabel).values
        assert values is not None
        tables.append(values)
    return np.concatenate(tables, axis=1)


def _plan(competition: Competition, exports: Sequence[Export], combination: Combination) -> _FusePlan:
    names = tuple(dict.fromkeys(export.card.member for export in exports))
    blends = dict(combination.blend or {t.name: Blend(names, np.ones(len(names))) for t in competition.targets})
    for target, blend in blends.items():
        if blend.vote not in VOTES:
            raise DataError(
                f"target {target!r}: blend.json votes {blend.vote!r}, and a graph computes {few(VOTES)}",
                hint="Blend with a soft vote.",
                code="blend-soft",
            )
    weights = weights_of(competition, exports, combination)
    used = [place for place in range(len(exports)) if any(own[place] for own in weights.values())]
    kept = [exports[place] for place in used]
    shares = {name: (blends[name], [own[place] for place in used]) for name, own in weights.items()}
    views = views_for(kept, _sets(combination, blends.values(), names))
    _check_pixels(kept)
    if cut := [view for views_of in views.values() for view in views_of if parse(view)[0] != Cut()]:
        raise DataError(
            f"view {cut[0]!r} is cut from the decoded image, and a graph sees only the pixels it is given",
            hint="Use views that turn images: hflip, flip, rot90, d4.",
        )
    return _FusePlan(kept, views, shares, competition.targets)


def _sets(combination: Combination, blends: Iterable[Blend], members: Sequence[str]) -> str:
    """The views that were asked for, else those of the first blend that names any."""
    named = next((blend.views for blend in blends if blend.views), None)
    if combination.tta != "none" or not named:
        return combination.tta
    return written({name: named.get(name, "none") for name in members})


def _check_pixels(exports: Sequence[Export]) -> None:
    first = exports[0]
    for export in exports:
        if export.card.preprocess != first.card.preprocess:
            raise ModelError(
                f"{first.path} and {export.path} take different pixels: {first.card.preprocess} and {export.card.preprocess}",
                hint="One graph has one input. Fuse the members of each size by themselves, then ensemble those.",
            )


def _graph(merger: Merger, plan: _FusePlan) -> str:
    """All of it below the input: the value that holds the probabilities of every target side by side."""
    logits = {}
    for export in plan.exports:
        stacked = _views(merger, plan.views[export.digest])
        logits[export.digest] = merger.add(onnx_file.load(export.path), stacked, where=str(export.path))
    tables = [_target(merger, plan, target, logits) for target in plan.targets]
    return merger.op("Concat", *tables, axis=1) if len(tables) > 1 else tables[0]


def _views(merger: Merger, views: Sequence[str]) -> str:
    """The views of the images one below the other along the batch: a model then runs once for all of them."""
    turned = []
    for view in views:
        value = "images"
        for step in parse(view)[1].split("+"):
            transpose, axes = _STEPS[step]
            value = merger.op("Transpose", value, perm=[0, 1, 3, 2]) if transpose else value
            if axes:
                ends = [merger.constant(x, np.int64) for x in ([-1] * len(axes), [_LOWEST] * len(axes), axes, [-1] * len(axes))]
                value = merger.op("Slice", value, *ends)
        turned.append(value)
    return merger.op("Concat", *turned, axis=0) if len(turned) > 1 else turned[0]


_LOWEST = np.iinfo(np.int64).min
# a turn is a transposition or none, then a reversal along axes: torch.rot90 and flips written as Transpose and Slice
_STEPS: dict[str, tuple[bool, list[int]]] = {
    "id": (False, []),
    "hflip": (False, [3]),
    "vflip": (False, [2]),
    "rot90": (True, [2]),
    "rot180": (False, [2, 3]),
    "rot270": (True, [3]),
}

_Table = tuple[str, str]  # the probabilities of yes and, where classes are independent, of no: 1 − p loses its digits near 1


def _target(merger: Merger, plan: _FusePlan, target: Target, logits: Mapping[str, str]) -> str:
    """The blend of one target's probabilities, (batch, C)."""
    blend, share = plan.blends[target.name]
    tables = []
    for export in plan.exports:
        output = output_of(export, target.name)
        table = _activated(merger, logits[export.digest], output, export.card.width)
        order = [output.classes.index(name) for name in target.classes]
        table = _each(table, partial(_merged, merger, views=len(plan.views[export.digest]), order=order))
        warm = float(blend.warm[blend.members.index(export.card.member)])
        tables.append(table if warm == 1 else _adjusted(merger, table, 1 / warm, 0.0))
    mixed = _mixed(merger, tables, share, blend.vote)
    if blend.adjustment is not None:
        mixed = _adjusted(merger, mixed, blend.adjustment.scale, blend.adjustment.bias)
    return mixed[0]


def _activated(merger: Merger, logits: str, output: Output, width: int) -> _Table:
    """A model's columns of one target as probabilities: what `activations.probabilities` does, in float32."""
    x = logits
    if (output.start, output.stop) != (0, width):
        x = merger.op("Slice", x, *(merger.constant([edge], np.int64) for edge in (output.start, output.stop, 1)))
    if output.activation == "softmax":
        return merger.op("Softmax", x, axis=1), ""
    if output.activation == "sigmoid":
        yes, no = _certain(merger, x, independent=True)
        return (merger.op("Concat", no, yes, axis=1), "") if output.one_logit else (yes, no)
    if output.multilabel:
        return x, merger.op("Sub", merger.constant(1.0), x)
    return merger.op("Div", x, merger.op("ReduceSum", x, merger.constant([1], np.int64))), ""


def _merged(merger: Merger, value: str, *, views: int, order: Sequence[int]) -> str:
    """(views · batch, C) to (batch, C): the mean of the views, its columns in another order."""
    if views > 1:
        apart = merger.op("Reshape", value, merger.constant([views, -1, len(order)], np.int64))
        value = merger.op("ReduceMean", apart, merger.constant([0], np.int64), keepdims=0)
    return value if order == sorted(order) else merger.op("Gather", value, merger.constant(order, np.int64), axis=1)


def _adjusted(merger: Merger, table: _Table, scale: Any, bias: Any) -> _Table:
    """softmax(scale · log p + bias); where classes are independent, the sigmoid of their log-odds, scaled and shifted."""
    x = merger.op("Add", merger.op("Mul", _logits(merger, table), merger.constant(scale)), merger.constant(bias))
    return _certain(merger, x, independent=bool(table[1]))


def _mixed(merger: Merger, tables: Sequence[_Table], share: Sequence[float], vote: str) -> _Table:
    """The weighted mean of probabilities, or of their logits."""
    if vote == "geometric":
        logits = [(_logits(merger, table), "") for table in tables]
        return _certain(merger, _mean(merger, logits, share)[0], independent=bool(tables[0][1]))
    return _mean(merger, tables, share)


def _mean(merger: Merger, tables: Sequence[_Table], share: Sequence[float]) -> _Table:
    weights = [weight / sum(share) for weight in share]
    if len(tables) == 1:
        return tables[0]

    def mean(values: Sequence[str]) -> str:
        terms = [merger.op("Mul", value, merger.constant(w)) for value, w in zip(values, weights, strict=True)]
        return merger.op("Sum", *terms)

    yes, no = zip(*tables, strict=True)
    return mean(yes), mean(no) if no[0] else ""


def _logits(merger: Merger, table: _Table) -> str:
    """Logarithms of p, or log-odds; with the floor that `calibration` gives probabilities."""
    logs = [merger.op("Log", merger.op("Max", value, merger.constant(EPS))) for value in table if value]
    return merger.op("Sub", *logs) if len(logs) > 1 else logs[0]


def _certain(merger: Merger, logits: str, *, independent: bool) -> _Table:
    if not independent:
        return merger.op("Softmax", logits, axis=1), ""
    signed = merger.op("Neg", logits), logits  # onnxruntime's Sigmoid is flat beyond 18, and a temperature would show it
    yes, no = (merger.op("Exp", merger.op("Neg", merger.op("Softplus", value))) for value in signed)
    return yes, no


def _each(table: _Table, change: Callable[[str], str]) -> _Table:
    yes, no = table
    return change(yes), change(no) if no else ""


def _card(plan: _FusePlan, member: str, competition: Competition) -> Card:
    """What the fused file says of itself: the competition's classes, probabilities as they are, trained on everything."""
    cards, start, outputs = [export.card for export in plan.exports], 0, []
    for target in plan.targets:
        outputs.append(Output(target.name, target.classes, "identity", start, independent=target.multilabel))
        start += len(target.classes)
    splits, insides = {card.split for card in cards}, {(card.mean, card.std) for card in cards}
    mean, std = insides.pop() if len(insides) == 1 else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # each normalises for itself
    return Card(
        member=member,
        fold=None,
        outputs=tuple(outputs),
        preprocess=plan.preprocess,
        mean=mean,
        std=std,
        split=splits.pop() if len(splits) == 1 else "",
        metric=competition.metric,
        recipe="toolkit fuse " + " ".join(export.title for export in plan.exports),
        versions={name: version(name) for name in ("toolkit", "onnx")},
    )


def _prove(plan: _FusePlan, card: Card, parts: Session, whole: Session, pixels: U8) -> dict[str, float]:
    """The gaps between the fused file and the ensemble on these images, or ParityError."""
    expected = reference(plan, parts, pixels)
    fused = whole.run(whole.place(pixels), "id")["fused"]
    gaps = parity(expected.astype(np.float32), fused, card.outputs)
    if not gaps["probability"] <= TOLERANCE:
        raise ParityError(
            f"the fused file differs from the ensemble by {gaps['probability']:.2e} in probability (allowed {TOLERANCE:.0e}), "
            f"in {gaps['flips']:.0f} of {counted(len(pixels), 'labels')}; not written",
            gap=gaps["probability"],
            hint="Look for a model whose output depends on the other images of its batch.",
        )
    return gaps


def _rates(plan: _FusePlan, parts: Session, whole: Session, pixels: U8) -> tuple[float, float]:
    """Images per second of the fused file and of the parts, medians of runs in turn."""
    rates: dict[str, list[float]] = {"whole": [], "parts": []}
    runs: dict[str, Callable[[], object]] = {
        "whole": partial(whole.run, whole.place(pixels), "id"),
        "parts": partial(reference, plan, parts, pixels),
    }
    for _ in range(ROUNDS):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            rates[name].append(len(pixels) / (time.perf_counter() - started))
    return statistics.median(rates["whole"]), statistics.median(rates["parts"])
