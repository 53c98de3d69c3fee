"""Bundles: an ensemble packed into one folder that predicts a hidden test set with no network, no torch and no pandas."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base import files, provenance
from toolkit.blending.blend import Blend, read_blend
from toolkit.blending.combination import Combination
from toolkit.core import prediction_files
from toolkit.ensemble.combine import combine, weights_of
from toolkit.errors import DataError, SubmissionError, ToolkitError, few
from toolkit.inference.execution import Execution, Progress
from toolkit.inference.exports import WeightedModels
from toolkit.inference.predict import predict
from toolkit.inference.store.prediction_store import Store
from toolkit.runtime.graphs import onnx_file
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.submissions import manifest, submission
from toolkit.submissions.bundle import program
from toolkit.submissions.bundle.contents import Field, Model, Recipe, agreement_line
from toolkit.submissions.bundle.wheels import check_target, fetch
from toolkit.submissions.sample import read_sample
from toolkit.workspace.competition import FILE, Competition
from toolkit.workspace.image_rows import Item
from toolkit.workspace.split import Split

COMPARED = 1000  # images on which the two ways of making pixels are compared
_BEYOND = ("temperature", "temperatures", "thresholds", "calibration")  # steps beside the vote, which a blend has to record


@dataclass(frozen=True)
class Bundle:
    """What `make` made: the folder, what is in it, its size in bytes and the wheels."""

    path: Path
    recipe: Recipe
    size: int
    wheels: tuple[str, ...]

    @property
    def agreement(self) -> str:
        """How well its pixels agree with those of the fast path, as a sentence."""
        return agreement_line(self.recipe.agreement)


def make(
    competition: Competition,
    output: Path,
    *,
    python: str,
    cuda: str,
    name: str = "",
    wheels: bool = True,
    deadline: float = 0.0,
    progress: Progress | None = None,
) -> Bundle:
    """Pack the named (or last made) predictions' ensemble for a target: Python `3.12`, CUDA `12`, `13` or `cpu`.

    The folder appears when it is complete. Without wheels the target must have onnxruntime, numpy and Pillow.

    Raises:
        DataError: the folder is there already, an unknown target, or an ensemble that bundles cannot do.
        SubmissionError: no such predictions, or exports that changed since; lists them.
        ToolkitError: pip is missing or cannot get the wheels.
    """
    check_target(python, cuda)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output} exists", code="bundle-output")
    predictions = competition.path("predictions", f"{name}.parquet") if name else submission.last_made(competition)
    meta = prediction_files.read_meta(predictions)
    chosen = _chosen(competition, meta)
    blend = _blend(competition, meta)
    form, header, fields = _form(competition, meta)
    part = output.with_name(f"{output.name}{files.PART}{secrets.token_hex(4)}")
    try:
        with files.explained(part):
            (part / "models").mkdir(parents=True)
            models = _models(part, competition, chosen, blend)
            shutil.copyfile(competition.path(FILE), part / FILE)
            program.copy(part)
        if wheels:
            fetch(part / "wheels", python, cuda)
        recipe = Recipe(
            name=str(meta.get("name", predictions.stem)),
            created=provenance.now(),
            vote=str(meta.get("vote", "soft")),
            form=form,
            header=header,
            fields=fields,
            models=models,
            priors={target.name: tuple(competition.prior(target).tolist()) for target in competition.targets},
            agreement=agreement(competition, chosen, blend=blend, progress=progress),
            python=python,
            cuda=cuda,
            deadline=deadline,
            slashes=_slashes(competition),
            blend=dict(meta.get("blend") or {}),
            versions=provenance.versions(),
            competition=files.sha256(part / FILE),
            partial=meta.get("on_bad_image") == "decode",
        )
        recipe.write(part)
        files.write_text(part / "README.txt", _readme(recipe, wheels=wheels))
        with files.explained(output):
            part.replace(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    kept = tuple(sorted(path.name for path in (output / "wheels").glob("*.whl")))
    return Bundle(output, recipe, sum(path.stat().st_size for path in output.rglob("*") if path.is_file()), kept)


Chosen = tuple[Export, float, tuple[str, ...]]  # a fold model, its weight and its views


def _models(
    part: Path, competition: Competition, chosen: Sequence[Chosen], blend: Mapping[str, Blend] | None
) -> tuple[Model, ...]:
    """The exports copied into the bundle, each with its weight in every target's blend where there are blends."""
    weights = weights_of(competition, [export for export, *_ in chosen], Combination(blend=blend)) if blend else {}
    return tuple(
        _model(part, place, *entry, {target: own[place] for target, own in weights.items()})
        for place, entry in enumerate(chosen)
    )


def _chosen(competition: Competition, meta: Mapping[str, Any]) -> list[Chosen]:
    """The fold models of some predictions, those of most weight first, as they are on disk and as they were then."""
    beyond = [name for name in _BEYOND if meta.get(name)]
    if beyond and not meta.get("blend"):
        raise DataError(f"these predictions were made with {few(beyond)}, and no blend in them says how", hint="Predict again.")
    models = [model for model in meta.get("models", ()) if model["weight"]]
    if not models or any(not model.get("path") or not isinstance(model["weight"], float | int) for model in models):
        raise DataError("these predictions are not a vote of exports, each with one weight: there is nothing to bundle")
    problems = list(manifest.stale(competition.root, meta))
    if wrong := [problem for problem in problems if problem.severity == "error" or problem.code == "SUB064"]:
        raise SubmissionError("the exports behind these predictions are not all in the workspace any more", problems=wrong)
    models.sort(key=lambda model: -model["weight"])
    return [
        (onnx_file.read(competition.path(model["path"])), float(model["weight"]), tuple(meta["views"][model["member"]]))
        for model in models
    ]


def _form(competition: Competition, meta: Mapping[str, Any]) -> tuple[str, tuple[str, ...], tuple[Field, ...]]:
    """The submission's format, header and columns, as the sample of the workspace has them."""
    sample = read_sample(competition)
    if sample.layout.format.values and meta.get("vote") == "hard":
        raise DataError(
            f"format {sample.form!r} needs numbers, a hard vote leaves labels",
            hint="Predict with a soft vote.",
            code="vote-soft",
        )
    fields = tuple(map(Field.of, sample.layout.columns))
    return sample.form, tuple(map(str, sample.frame.columns)), fields


def _slashes(competition: Competition) -> bool:
    """Whether ids of the sample have slashes, so that they may be paths below the images' folder."""
    sample = read_sample(competition)
    return any("/" in name for name in sample.layout.rows(sample.frame)[0].to_pylist())


def _blend(competition: Competition, meta: Mapping[str, Any]) -> dict[str, Blend] | None:
    """Per target, what the predictions' blend does; None where they were a vote and nothing else."""
    try:
        return {
            name: read_blend(own, competition.target(name).classes) for name, own in (meta.get("blend") or {}).items()
        } or None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the blend of these predictions cannot be read: {error}", hint="Predict again.") from error


def _model(
    folder: Path, place: int, export: Export, weight: float, views: tuple[str, ...], weights: Mapping[str, float]
) -> Model:
    file = f"models/{place:02d}-{export.title}.onnx"
    shutil.copyfile(export.path, folder / file)
    return Model(file, export.title, weight, views, export.card.to_json(), export.sha256, weights)


def agreement(
    competition: Competition,
    chosen: Sequence[Chosen],
    *,
    blend: Mapping[str, Blend] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare the labels that Pillow's pixels and the fast path's lead to, on images that each fold model did not see.

    Without a split that the models know, on any training images; nothing if there are none. At most COMPARED images, evenly
    spread.

    Raises:
        ModelError, DeviceError: see `predict`.
    """
    try:
        where: dict[str, Path] = {}
        for name, path in competition.images("train"):
            where.setdefault(name, path)
    except ToolkitError:
        return {}  # the images need not be on the machine that packs
    split = _split(competition)
    unseen = [e for e in chosen if split and e[0].card.fold is not None and e[0].card.split == split.digest]
    used = unseen or list(chosen)
    each = max(COMPARED // len(used), 1)
    rows = same = 0
    gap = 0.0
    for export, _, views in used:
        ids = split.held_out(export.card.fold or 0) if split and unseen else list(where)
        ids = [ids[i] for i in np.unique(np.linspace(0, len(ids) - 1, min(each, len(ids))).astype(int))] if ids else []
        items = [Item(name, where[name]) for name in ids if name in where]
        model = WeightedModels([export], {export.digest: views})
        executions = [Execution(implementation=name, progress=progress) for name in ("fast", "pillow")]
        with Store(competition.path("store")) as store:
            ways = [predict([export], model.views, items, store, how, boxes=competition.boxes) for how in executions]
        bad = {image.id for way in ways for image in way.bad}
        good = [item.id for item in items if item.id not in bad]
        alike = np.ones(len(good), dtype=bool)
        for target in competition.targets:
            fast, plain = (combine(competition, target, model, way, good, Combination(blend=blend))[0] for way in ways)
            alike &= (fast.decided == plain.decided).reshape(len(good), -1).all(axis=1)
            if fast.values is not None and plain.values is not None and good:
                gap = max(gap, float(np.abs(fast.values - plain.values).max()))
        rows, same = rows + len(good), same + int(alike.sum())
    what = "out-of-fold images" if unseen else "training images (seen by the models)"
    return {"what": what, "rows": rows, "same": same, "gap": gap} if rows else {}


def _split(competition: Competition) -> Split | None:
    try:
        return Split.if_made(competition)
    except DataError:
        return None


def _readme(recipe: Recipe, *, wheels: bool) -> str:
    target = f"Python {recipe.python}, {'no GPU' if recipe.cuda == 'cpu' else f'CUDA {recipe.cuda}'}"
    needs = "nothing else: its wheels are unpacked for each run" if wheels else "onnxruntime, numpy and Pillow installed"
    models = "\n".join(f"  {model.title}: weight {model.weight:.4g}, views {', '.join(model.views)}" for model in recipe.models)
    return f"""The ensemble {recipe.name!r}, to be run where there is no network.
It needs {target}, and {needs}.

    python run.py --test TEST_IMAGES --sample SAMPLE_SUBMISSION.csv --out submission.csv --deadline 8h30m

The rows come from the sample. A submission stands from the first seconds on and gets better with every model that finishes;
at the deadline it is left as it is. Images that cannot be used get the class prior. Further options: python run.py --help

{agreement_line(recipe.agreement)}.
Vote {recipe.vote}, in this order:
{models}
"""
