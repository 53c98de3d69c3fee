"""Models exported by others taken in: what the graph says is checked, the rest is told, the two proved to agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base import documents, files
from toolkit.base.arrays import U8
from toolkit.core.activations import probabilities
from toolkit.core.cards import Activation, Card, Output, Preprocess
from toolkit.errors import CardError, ImageError, ModelError, ParityError, counted, few
from toolkit.images import render
from toolkit.models import export, export_checkpoint, foreign_output, wrap_graph
from toolkit.models.foreign_model import Asked, Input, Original, find_input, find_layout, find_size
from toolkit.models.wrap_graph import Back, Batching, Colour, Front
from toolkit.runtime.graphs import graph_end, onnx_file, trial
from toolkit.workspace.competition import FILE, Competition, Target
from toolkit.workspace.split import Split

BATCHES = (1, 2, 7)
TOLERANCE = {"float32": 1e-4, "uint8": 1e-4, "float16": 5e-3}  # in probability; float16 has eleven bits
LOOKED = 32  # images whose numbers are looked at
CHECKED = 128  # training images that the accuracy is shown on: enough to see a wrong colour order or class order
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Adopted:
    """The export that was written, how images go through it, and how it does on labelled images where there are some."""

    path: Path
    card: Card
    batching: Batching
    notes: tuple[str, ...]
    accuracy: float | None = None
    checked: int = 0


def class_names(text: str, competition: Competition | None = None, target: str = "") -> tuple[str, ...]:
    """Classes as one says them: `cat,dog`, a file (.txt: a line each; .json: a list, or {"0": name}), `imagenet`, `workspace`.

    Raises:
        CardError: a file that holds no names, or `workspace` outside of one.
    """
    path = Path(text)
    if text == "workspace":
        if competition is None:
            raise CardError(
                "classes of the workspace: this is no workspace",
                hint="Name the classes, or give a file of them.",
                code="classes",
            )
        return _target(competition, target).classes
    if text == "imagenet":
        return export_checkpoint.imagenet_classes()
    if path.suffix in (".txt", ".json"):
        try:
            content = documents.read_text(path)
            content_: Any = documents.parse_json(content) if path.suffix == ".json" else content.splitlines()
            content_ = [name for name in content_ if name.strip()] if path.suffix != ".json" else content_
            names = [content_[key] for key in sorted(content_, key=int)] if isinstance(content_, dict) else content_
            if isinstance(names, list) and names and all(isinstance(name, str | int) for name in names):
                return tuple(str(name).strip() for name in names)
        except (OSError, ValueError, TypeError) as error:
            raise CardError(f"{path} cannot be read: {error}") from error
        raise CardError(
            f"{path} holds no class names", hint='A line each, or JSON: ["cat", "dog"] or {"0": "cat", "1": "dog"}.'
        )
    return tuple(name.strip() for name in text.split(",") if name.strip())


def adopt(
    source: Path, asked: Asked, competition: Competition | None = None, *, output: Path | None = None, force: bool = False
) -> Adopted:
    """Write `source` as an export of ours: behind uint8 RGB input, with a card, in one file, after both gave the same.

    What the graph says is checked against `asked`. Whether rows are probabilities is seen from what the model gives for
    training images (noise, where there is no workspace). Where these have labels, its accuracy is measured.

    Raises:
        ModelError: `source` is no usable classifier, or contradicts what was said of it, also of the rows that it has seen.
        CardError: classes, pixels or names that do not fit.
        ParityError: no way was found that gives what the model itself gives.
        DataError: a class map that does not fit.
    """
    model = onnx_file.load(source, external=True)
    trial.check(model, source)
    taken, given = find_input(source, model, asked), foreign_output.find_output(source, model, asked)
    card, front = _card(source, asked, taken, competition)
    card = export_checkpoint.claimed(card, onnx_file.card_of(model, source), competition, ids=None, where=source)
    path = output or (competition.path("folds") if competition else Path()) / f"{card.title}.onnx"
    if path.exists() and not force:
        raise ModelError(f"{path} exists", hint="Replace it, or name another member or fold.", code="replace-export")
    rows = _labelled(competition, asked)
    pixels = _pixels(card.preprocess, rows, competition)
    original = Original(source, model, taken, given.name, len(asked.classes))
    foreign_output.check_eval(source, model, original, front, pixels)
    raw = original(front, pixels[: max(sum(BATCHES), LOOKED)])
    back, notes = foreign_output.meaning(source, asked, raw, graph_end.last_operation(model, given.name))
    card = _complete(card, asked, back, competition)
    data, batching, gaps = _prove(source, model, original, front, back, card, pixels, taken, given.name)
    done = replace(card, parity=gaps)
    final = onnx_file.parse(data, source)
    onnx_file.strip(final)
    onnx_file.embed(final, done)
    files.write(path, lambda file: file.write(final.SerializeToString()))
    accuracy, more = _judged(done, original, front, back, rows, pixels)
    return Adopted(path, done, batching, (*notes, *more), accuracy, len(rows) if accuracy is not None else 0)


def _card(source: Path, asked: Asked, taken: Input, competition: Competition | None) -> tuple[Card, Front]:
    """The card but for its classes, and what the graph wants."""
    known = export_checkpoint.pretrained(asked.timm) if asked.timm else None
    layout = find_layout(source, taken, asked)
    fixed = taken.dims[2:] if layout == "nchw" else taken.dims[1:3]
    told = asked.size or (known[0].size if known and None in fixed else None)
    size = find_size(source, taken, layout, told)
    mean, std = asked.mean or (known[1] if known else None), asked.std or (known[2] if known else None)
    if taken.element == "uint8":
        if asked.mean or asked.std:
            raise ModelError(
                f"{source} takes uint8 pixels: it normalises them itself", hint="Leave mean and std out.", code="no-mean"
            )
        mean, std = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)
    if mean is None or std is None:
        raise ModelError(
            f"{source} takes {taken.element} images, and no graph says what they were normalised with",
            hint="Say mean and std, or the timm model that has them.",
            code="mean-and-std",
        )
    if min(std) <= 0:
        raise CardError(f"std is above zero, not {std}")
    front = Front(size, mean, std, layout, taken.element, asked.top if taken.element != "uint8" else 1, asked.colour)
    step = -1 if asked.colour == "bgr" else 1
    cut = _cut(asked, size, known[0] if known else None)
    in_rgb = [tuple(value / front.top for value in values[::step]) for values in (mean, std)]
    card = Card(
        member=asked.member or source.stem.replace(",", "_").replace("=", "_"),
        fold=asked.fold,
        outputs=(Output("label", ("pending",)),),
        preprocess=competition.treated(cut) if competition else cut,
        mean=in_rgb[0],  # type: ignore[arg-type]
        std=in_rgb[1],  # type: ignore[arg-type]
        split=export_checkpoint.split_of(competition, asked.fold) if competition else "",
        metric=competition.metric if competition else "",
        recipe=f"adopted from {source.name}",
        versions={name: version(name) for name in ("toolkit", "onnx")},
    )
    return card, front


def _cut(asked: Asked, size: tuple[int, int], known: Preprocess | None) -> Preprocess:
    """How an image becomes `size`: as told, as timm does, else resized whole."""
    start = known or Preprocess(size)
    share = asked.crop_pct or max(start.size) / (start.shorter or max(start.size))
    how = asked.resize or ("crop" if asked.crop_pct else start.resize)
    if not 0 < share <= 1:
        raise CardError(
            f"crop_pct is the share of the shorter side that the crop takes, between 0 and 1, not {share:g}", code="crop-pct"
        )
    shorter = int(np.floor(max(size) / share)) if how == "crop" else None
    return Preprocess(size, how, shorter, interpolation=asked.interpolation or start.interpolation).framing(asked.box)


def _complete(card: Card, asked: Asked, back: Back, competition: Competition | None) -> Card:
    """The card with its classes, which must be the competition's."""
    target = _target(competition, asked.target) if competition else None
    classes = back.mapping.classes if back.mapping else asked.classes
    one_logit = back.width == 1 and not back.probabilities
    sigmoid = back.multilabel or one_logit
    activation: Activation = "identity" if back.probabilities else "sigmoid" if sigmoid else "softmax"
    if target is not None and (set(classes) != set(target.classes) or target.multilabel != back.multilabel):
        raise CardError(
            f"target {target.name!r} is {target.task} over {few(target.classes)}; the model says "
            f"{few(sorted(set(classes) - set(target.classes)) or classes)}"
            + (f" and lacks {few(sorted(lacking))}" if (lacking := set(target.classes) - set(classes)) else ""),
            hint=f"Name classes as {FILE} does, or map them; say it where an image has several labels.",
            code="classes-or-map",
        )
    name = target.name if target else asked.target or "label"
    independent = back.multilabel and back.probabilities
    output = Output(name, classes, activation, 0, 1 if one_logit else len(classes), independent)
    return replace(card, outputs=(output,))


def _target(competition: Competition, name: str) -> Target:
    if not name and len(competition.targets) > 1:
        raise CardError(
            f"{FILE} has several targets: {few(t.name for t in competition.targets)}", hint="Choose one.", code="target"
        )
    return competition.target(name) if name else competition.targets[0]


def _prove(
    source: Path,
    model: Any,
    original: Original,
    front: Front,
    back: Back,
    card: Card,
    pixels: U8,
    taken: Input,
    given: str,
) -> tuple[bytes, Batching, dict[str, float]]:
    """The first way of batching under which any number of images gives what the model itself gives; its bytes and gaps."""
    modern = wrap_graph.modern(model, source)
    fixed = taken.dims[0] is not None
    ways: tuple[Batching, ...] = ("any", "reshaped", "scanned") if fixed else ("any", "scanned")
    sample = export.enough(pixels[: sum(BATCHES)], card)
    expected = back.finish(original(front, sample))
    why, gap = "", 0.0
    for batching in ways:
        wrapped = wrap_graph.wrap(modern, taken.name, given, front, back, batching=batching, batch=original.batch)
        data = wrapped.SerializeToString()
        try:
            session = export.opened(data, str(source))
            name = session.get_inputs()[0].name
            parts = [np.asarray(session.run(None, {name: part})[0]) for part in export.batches(sample)]
        except Exception as error:  # noqa: BLE001 - a way that does not work is followed by the next
            why = getattr(error, "message", "") or (str(error).strip().splitlines() or [type(error).__name__])[0]
            continue
        found = np.concatenate(parts)
        if found.shape != expected.shape or not np.isfinite(found).all():
            why = f"numbers of shape {found.shape} where the model itself gives {expected.shape}"
            continue
        gaps = export.parity(expected, found, card.outputs)
        if gaps["probability"] <= TOLERANCE[taken.element]:
            return data, batching, gaps
        why, gap = f"probabilities that differ by {gaps['probability']:.2e} from the model's own", gaps["probability"]
    raise ParityError(
        f"{source} cannot be made to take any number of images: {why}", gap=gap, hint="Export it with a dynamic batch."
    )


def _labelled(competition: Competition | None, asked: Asked) -> list[tuple[str, Path, str]]:
    """(id, file, class) of up to CHECKED training images, evenly spaced; of the fold's held-out ones where there is a fold."""
    if competition is None or not competition.path(competition.train.folder).is_dir():
        return []
    target = _target(competition, asked.target)
    truth = competition.truth()[target.name]
    labels = dict(zip(truth.ids, truth.decided.tolist(), strict=True))
    rows = [(name, path) for name, path in competition.images("train") if path.exists()]
    if asked.fold is not None and (split := Split.if_made(competition)):
        held_out = set(split.held_out(asked.fold))
        rows = [row for row in rows if row[0] in held_out] or rows
    chosen = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(CHECKED, len(rows))).astype(int))] if rows else []
    return [(name, path, "" if target.multilabel else target.classes[labels[name]]) for name, path in chosen]


def _pixels(preprocess: Preprocess, rows: list[tuple[str, Path, str]], competition: Competition | None) -> U8:
    """Evaluation pixels of the labelled images (those that cannot be read are taken out of `rows`), else noise."""
    good, found = [], []
    for row in rows:
        try:
            box = competition.boxes.of(preprocess.box, row[0], row[1]) if competition else None
            found.append(render.load(row[1], preprocess, box=box))
        except ImageError:
            continue
        good.append(row)
    rows[:] = good
    if found:
        return np.stack(found)
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (sum(BATCHES), 3, *preprocess.size), dtype=np.uint8)


def _judged(
    card: Card, original: Original, front: Front, back: Back, rows: Sequence[tuple[str, Path, str]], pixels: U8
) -> tuple[float | None, list[str]]:
    """The accuracy on labelled images, and what else was tried where it is no better than always saying the commonest class."""
    if not rows or back.multilabel:
        return None, [] if rows else ["no labelled image was there to check the pixels and the order of classes on"]
    names = np.array([name for _, _, name in rows])
    output = card.outputs[0]

    def accuracy(front: Front, classes: Sequence[str] = output.classes) -> float:
        rows = back.finish(original(front, pixels))
        if not np.isfinite(rows).all():
            return 0.0  # other pixels than it was trained with may overflow
        p = probabilities(rows, output)
        return float(np.mean(np.array(classes)[p.argmax(axis=1)] == names))

    found = accuracy(front)
    commonest = max(np.unique(names, return_counts=True)[1]) / len(names)
    if found > commonest + 2 * np.sqrt(commonest * (1 - commonest) / len(names)):
        return found, []
    notes = [
        f"accuracy {found:.3f} on {counted(len(names), 'images')} is what guessing the commonest class gives ({commonest:.3f})"
    ]
    better = {what: accuracy(other, order) for what, other, order in _variants(front, output.classes)}
    better = {what: value for what, value in better.items() if value > found + 0.1}
    if better:
        best = max(better, key=lambda what: better[what])
        notes.append(f"{best} it would have {better[best]:.3f}: adopt it again so (--force)")
    return found, notes


def _variants(front: Front, classes: Sequence[str]) -> list[tuple[str, Front, Sequence[str]]]:
    """What people most often get wrong about a model."""
    other: list[tuple[str, Front, Sequence[str]]] = [
        ("with classes in the order of their code points (ImageFolder's)", front, sorted(classes)),
    ]
    if all(name.isdecimal() for name in classes):
        other.append(("with classes in numeric order", front, sorted(classes, key=int)))
    swapped: Colour = "rgb" if front.colour == "bgr" else "bgr"
    other.append((f"with --colour {swapped}", replace(front, colour=swapped), classes))
    if front.element != "uint8":
        plain = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        half = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        for what, (mean, std), top in (
            ("with ImageNet's --mean and --std", IMAGENET, 1),
            ("with --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5", half, 1),
            ("with --mean 0 0 0 --std 1 1 1", plain, 1),
            ("with --mean 0 0 0 --std 1 1 1 --range 0..255", plain, 255),
        ):
            other.append((what, replace(front, mean=mean, std=std, top=top), classes))
    return other
