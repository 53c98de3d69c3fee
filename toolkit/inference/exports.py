"""Which exports take part: found by path or glob, checked against the competition and each other, weighted."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.base.arrays import F32
from toolkit.core.cards import Output
from toolkit.errors import CardError, DataError, ModelError, counted, few
from toolkit.inference.store.file_index import ExportIndex
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.workspace.competition import FILE, Competition

Views = Mapping[str, Sequence[str]]  # those of each model, by its digest


@dataclass(frozen=True, eq=False)
class WeightedModels:
    """Fold models, the views of each by its digest, and a weight for each in their order; None: all the same."""

    exports: Sequence[Export]
    views: Views
    weights: Sequence[float] | None = None


def find_exports(patterns: Sequence[str], *, base: Path | None = None) -> list[Path]:
    """The .onnx files that paths, folders and quoted globs name, in the order given, folds in natural order, each once.

    Raises:
        ModelError: something named is not there, or matches nothing.
    """
    base = base or Path.cwd()
    exports: dict[Path, None] = {}
    for pattern in patterns:
        path = base / pattern
        if path.is_dir():
            matches = sorted(path.glob("*.onnx"), key=_natural)
        elif path.exists() or not glob.has_magic(pattern):
            matches = [path]
        else:
            matches = sorted((base / name for name in glob.glob(pattern, root_dir=base)), key=_natural)
        if not matches:
            there = sorted(file.name for file in Path(pattern if path.is_dir() else path.parent).glob("*.onnx"))
            hint = f"There are: {few(there)}." if there else "Train first: python recipes/<recipe>.py"
            raise ModelError(f"{pattern} matches no .onnx file", hint=hint)
        exports |= dict.fromkeys(matches)
    if not exports:
        raise ModelError("no models were named", hint="Name files, folders or patterns, such as folds/*.onnx.")
    return list(exports)


def read_exports(paths: Sequence[Path], competition: Competition, *, members: Sequence[str] = ()) -> list[Export]:
    """The exports at these paths, checked against the competition and each other; `members` keeps some members only.

    Raises:
        ModelError: a file that is no export, two folds of one member that disagree, the same model twice, an unknown member.
        CardError: an export whose targets or classes are not the competition's.
    """
    exports = ExportIndex(competition.path("store", "exports.json")).read(paths)
    known = {export.card.member for export in exports}
    if unknown := [name for name in members if name not in known]:
        raise ModelError(f"no export belongs to member {few(unknown)}", hint=f"There are: {', '.join(sorted(known))}.")
    exports = [export for export in exports if not members or export.card.member in members]
    for export in exports:
        _check_targets(export, competition)
    by_digest: dict[str, Export] = {}
    by_member: dict[str, Export] = {}
    for export in exports:
        if (twin := by_digest.setdefault(export.digest, export)) is not export:
            raise ModelError(f"{twin.path} and {export.path} are the same model", hint="Leave one of them out.")
        _check_member(by_member.setdefault(export.card.member, export), export)
    return exports


def share(exports: Sequence[Export], weights: str, *, higher_is_better: bool = True) -> list[float]:
    """One weight per fold model, summing to 1, from what `weights` says.

    "" gives every member the same weight, divided over its fold models; "score" weighs members by the mean score on their cards
    (by its inverse where lower is better); "0.2,0.8,…" is a number per model in the order given; "b4=0.7,vit=0.3" names members
    or single models ("b4.fold0=1"); what is not named weighs nothing.

    Raises:
        DataError: names that are not there, a number too many or too few, negative or all-zero weights, cards without scores.
    """
    sizes = Counter(export.card.member for export in exports)
    if weights in ("", "score"):
        per_member = dict.fromkeys(sizes, 1.0)
        if weights:
            per_member = {name: _member_score(name, exports, higher_is_better=higher_is_better) for name in sizes}
        given = [per_member[export.card.member] / sizes[export.card.member] for export in exports]
    elif "=" in weights:
        given = _named_weights(exports, weights, sizes)
    else:
        given = [_number(part) for part in weights.split(",")]
        if len(given) != len(exports):
            raise DataError(
                f"weights are {counted(len(given), 'numbers')} for {counted(len(exports), 'models')}",
                hint=f"The order is: {', '.join(export.title for export in exports)}.",
                code="model-weights",
            )
    total = sum(given)
    if total <= 0 or min(given) < 0:
        raise DataError(f"weights must not be negative or all zero, got {given}", code="model-weights")
    return [weight / total for weight in given]


def _check_targets(export: Export, competition: Competition) -> None:
    for target in competition.targets:
        output = output_of(export, target.name)
        if set(output.classes) != set(target.classes):
            raise CardError(
                f"{export.path}: classes of target {target.name!r} are not the competition's: "
                f"only in the model {few(sorted(set(output.classes) - set(target.classes)))}, "
                f"only in {FILE} {few(sorted(set(target.classes) - set(output.classes)))}"
            )
        if output.multilabel != target.multilabel:
            raise CardError(
                f"{export.path}: target {target.name!r} is {target.task}, the model's activation {output.activation}"
            )


def _check_member(first: Export, other: Export) -> None:
    """Folds of one member must agree on what they see and what they say."""
    fields = ("outputs", "preprocess", "mean", "std", "split")
    differing = [name for name in fields if getattr(first.card, name) != getattr(other.card, name)]
    if differing:
        shown = "; ".join(f"{name}: {getattr(first.card, name)} against {getattr(other.card, name)}" for name in differing)
        raise ModelError(
            f"{first.path} and {other.path} call themselves folds of {first.card.member!r} but differ in {shown}",
            hint="Train them alike, or give one of them another member name.",
        )


def output_of(export: Export, target: str) -> Output:
    """The part of a model that predicts a target.

    Raises:
        CardError: it predicts other targets only.
    """
    for output in export.card.outputs:
        if output.target == target:
            return output
    raise CardError(
        f"{export.path} does not predict target {target!r}, only {few(o.target for o in export.card.outputs)}",
        hint=f"Compare [targets] in {FILE} with `toolkit inspect`.",
    )


def check_width(export: Export, logits: F32, rows: int) -> None:
    """Compare what a model gave with its card: one row for each image, as wide as its classes.

    Raises:
        CardError: it has another shape, whatever the graph says of itself.
    """
    if logits.shape != (rows, export.card.width):
        raise CardError(
            f"{export.path}: the card says {counted(export.card.width, 'logits')}, "
            f"the model gives {logits.shape} for {counted(rows, 'images')}",
            hint="Export the model again.",
        )


def _member_score(member: str, exports: Sequence[Export], *, higher_is_better: bool) -> float:
    scores = [export.card.score for export in exports if export.card.member == member and export.card.fold is not None]
    if not scores or None in scores:
        raise DataError(
            f"weights by score: the cards of {member!r} carry no score",
            hint="Give the weights as numbers.",
            code="model-weights",
        )
    mean = float(np.mean([score for score in scores if score is not None]))
    if not np.isfinite(mean) or (mean <= 0 and not higher_is_better):
        raise DataError(f"weights by score: the cards of {member!r} say {mean:g}", code="model-weights")
    return mean if higher_is_better else 1 / mean


def _named_weights(exports: Sequence[Export], weights: str, sizes: Mapping[str, int]) -> list[float]:
    given = dict(part.split("=", 1) for part in weights.split(",") if "=" in part)
    titles = {export.title for export in exports}
    if unknown := [name for name in given if name not in titles and name not in sizes]:
        raise DataError(
            f"weights name {few(unknown)}, which is no member or model here",
            hint=f"There are: {', '.join(sorted(sizes))}.",
            code="model-weights",
        )
    weighing = []
    for export in exports:
        if export.title in given:
            weighing.append(_number(given[export.title]))
        else:
            weighing.append(_number(given.get(export.card.member, "0")) / sizes[export.card.member])
    return weighing


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise DataError(
            f"weights: {text!r} is not a number", hint="For example 0.2,0.8 or b4=0.7,vit=0.3.", code="model-weights"
        ) from None
    if not np.isfinite(number):
        raise DataError(f"weights: {text!r} is not a finite number", code="model-weights")
    return number


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """fold2 before fold10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", str(path)) if part]
