"""In which order an ensemble's passes are made: all together, model after model until time is up, or only those labels need."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from toolkit.errors import DataError, ModelError, counted
from toolkit.images.boxes import NO_BOXES, Boxes
from toolkit.inference.early_stopping import EarlyStopping, LabelVote
from toolkit.inference.execution import Execution, Progress
from toolkit.inference.exports import WeightedModels
from toolkit.inference.outcome import PredictOutcome
from toolkit.inference.predict import predict
from toolkit.inference.store.prediction_store import Store
from toolkit.inference.store.retention import Keeping, growth
from toolkit.runtime.devices import gpu_count
from toolkit.runtime.graphs import onnx_file, shared_trunks
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.workspace.image_rows import Items

ANNOUNCED = 100_000_000  # bytes from which what the store takes is worth a line before the work


@dataclass(frozen=True, eq=False)
class Scheduled:
    """What was made: the models that have a row of every usable image, their weights summing to 1, and those that have not.

    `stopping` is the plan that left passes out, where labels alone were asked for.
    """

    outcome: PredictOutcome
    models: WeightedModels
    late: Sequence[Export] = ()
    stopping: EarlyStopping | None = None


def make_passes(
    models: WeightedModels,
    items: Items,
    store: Store,
    execution: Execution,
    *,
    boxes: Boxes = NO_BOXES,
    labels: LabelVote | None = None,
) -> Scheduled:
    """Make the passes that the request leaves: every one, those of models that are through in time, or those `labels` need.

    Raises:
        DataError: choices that exclude each other, or a vote that cannot be stopped.
        ModelError: not one model was through when time was up; what it has is kept.
        DeviceError, StoreError: see `predict`.
    """
    stopping = EarlyStopping(models, items, labels) if labels else None
    _check(execution, labels=labels is not None)
    if execution.announce and (more := growth(models.exports, models.views, len(items), execution.keeping)).size >= ANNOUNCED:
        execution.announce(more)
    if execution.deadline is not None:
        return _until(models, items, store, execution, execution.deadline, boxes)
    filled = _filled(models, items, store, execution, boxes) if stopping is None and execution.keeping == Keeping() else 0
    outcome = predict(models.exports, models.views, items, store, execution, boxes=boxes, plan=stopping)
    return Scheduled(replace(outcome, passes=outcome.passes + filled), models, stopping=stopping)


def _check(execution: Execution, *, labels: bool) -> None:
    if labels and execution.deadline is not None:
        raise DataError(
            "a deadline takes model after model, and labels alone image after image",
            hint="Leave one of them out.",
            code="labels-only-deadline",
        )
    if labels and execution.keeping.what == "folds":
        raise DataError(
            "labels alone leave out views, so that there is nothing to merge",
            hint="Keep the rows of views, or nothing.",
            code="labels-only-keep",
        )


def _filled(models: WeightedModels, items: Items, store: Store, execution: Execution, boxes: Boxes) -> int:
    """Rows brought into the store by other processes, where the request names a runner for that; how many passes that took."""
    several = execution.workers or (execution.device not in ("cpu", "openvino") and gpu_count() > 1)
    if not execution.runner or not several:
        return 0
    from toolkit.inference import multi_process

    return multi_process.fill(models.exports, models.views, items, store.root, execution, boxes=boxes)


def _until(
    models: WeightedModels, items: Items, store: Store, execution: Execution, deadline: float, boxes: Boxes
) -> Scheduled:
    """One stage after another; those that have nothing left to compute still count when time is up."""
    end = time.monotonic() + deadline
    weight = _by_digest(models)
    stages = sorted(_stages(models.exports), key=lambda group: -sum(weight[export.digest] for export in group))
    outcomes: list[PredictOutcome] = []
    done: list[Export] = []
    for number, group in enumerate(stages):
        told = replace(execution, progress=_part(execution.progress, number, len(stages), len(items)))
        outcome = predict(group, models.views, items, store, told, boxes=boxes, until=end)
        outcomes.append(outcome)
        done += group if outcome.finished else []
    ready = [export for export in models.exports if export in done]
    total = sum(weight[export.digest] for export in ready)
    if not total:
        furthest = max(len(outcome.items) for outcome in outcomes)
        raise ModelError(
            f"time was up before one model was through ({furthest:,} of {counted(len(items), 'images')}); nothing was written",
            hint="What was computed is kept: run the same command again, or give it more time.",
        )
    weights = [weight[export.digest] / total for export in ready]
    late = [export for export in models.exports if export not in done]
    return Scheduled(_joined(outcomes), WeightedModels(ready, models.views, weights), late)


def _by_digest(models: WeightedModels) -> dict[str, float]:
    weights = models.weights or [1 / len(models.exports)] * len(models.exports)
    return dict(zip([export.digest for export in models.exports], weights, strict=True))


def _joined(outcomes: Sequence[PredictOutcome]) -> PredictOutcome:
    """The finished stages as one outcome."""
    finished = [outcome for outcome in outcomes if outcome.finished]
    return replace(
        finished[0],
        tables={key: table for outcome in finished for key, table in outcome.tables.items()},
        passes=sum(outcome.passes for outcome in outcomes),
        seconds=sum(outcome.seconds for outcome in outcomes),
        finished=len(finished) == len(outcomes),
        endless=max(outcome.endless for outcome in outcomes),
    )


def _stages(exports: Sequence[Export]) -> list[list[Export]]:
    """Each model alone, but those with a backbone in common together, since it runs once for all of them."""
    if len(exports) < 2:
        return [[export] for export in exports]
    by_digest = {export.digest: export for export in exports}
    trunks, alone = shared_trunks.find_trunks({digest: onnx_file.load(export.path) for digest, export in by_digest.items()})
    return [[by_digest[digest]] for digest in alone] + [[by_digest[d] for d in trunk.heads] for trunk in trunks]


def _part(progress: Progress | None, number: int, stages: int, images: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, _: progress(number * images + done, stages * images)
