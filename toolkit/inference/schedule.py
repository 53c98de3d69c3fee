"""In which order an ensemble's passes are made: all together, model after model until time is up, or only those labels need."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.errors import DataError, ModelError
from toolkit.images import boxes as boxing
from toolkit.images.boxes import Boxes
from toolkit.inference.early_stopping import Deciding
from toolkit.inference.predict import Outcome, Progress, predict
from toolkit.inference.store.prediction_store import Store
from toolkit.inference.store.retention import Keeping, announced_size
from toolkit.runtime.graphs import onnx_file, shared_trunks
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.workspace.image_rows import Items

ANNOUNCED = 100_000_000  # bytes from which what the store takes is worth a line before the work

Views = Mapping[str, Sequence[str]]
Fill = Callable[[Sequence[Export], Views, Items, Path, Boxes, Progress | None], int]  # Path: the store's folder; → passes made


@dataclass(frozen=True, eq=False)
class Staged:
    """What was made: models that have a row of every usable image, their weights (summing to 1), and those that have not.

    `decided` holds the labels where passes were left out.
    """

    outcome: Outcome
    exports: Sequence[Export]
    share: Sequence[float]
    late: Sequence[Export] = ()
    decided: Deciding | None = None


def stage(
    exports: Sequence[Export],
    views: Views,
    share: Sequence[float],
    items: Items,
    store: Store,
    *,
    keeping: Keeping,
    boxes: Boxes = boxing.NONE,
    deadline: float | None = None,
    deciding: Deciding | None = None,
    announce: Callable[[str], object] | None = None,
    fill: Fill | None = None,
    progress: Progress | None = None,
    **how: Any,
) -> Staged:
    """Make the passes; `deadline` is in seconds from now, `how` is what else `predict` takes.

    `announce` is told how much the store may grow, where that is worth a line. `fill` may bring rows into the store first, by
    several processes, and says how many passes that took.

    Raises:
        DataError: choices that exclude each other.
        ModelError: not one model was through when time was up; what it has is kept.
        StoreError: the disk has too little space for what is to be kept.
    """
    if deciding is not None and deadline is not None:
        raise DataError("--deadline takes model after model and --labels-only image after image", hint="Leave one of them out.")
    if deciding is not None and keeping.what == "folds":
        raise DataError(
            "--labels-only leaves out views, so that there is nothing to merge", hint="Use --keep views or --keep none."
        )
    if announce and (size := announced_size(exports, views, len(items), keeping)) >= ANNOUNCED:
        announce(f"The store may grow by {size / 1e9:,.1f} GB ({_smaller(exports, views, len(items), keeping)})")
    if deadline is not None:
        return _until(exports, views, share, items, store, deadline, keeping=keeping, boxes=boxes, progress=progress, **how)
    whole = deciding is None and keeping == Keeping()
    filled = fill(exports, views, items, store.root, boxes, progress) if fill and whole else 0
    outcome = predict(exports, views, items, store, keeping=keeping, boxes=boxes, plan=deciding, progress=progress, **how)
    outcome = replace(outcome, passes=outcome.passes + filled)
    return Staged(outcome, exports, share, (), deciding if deciding is not None and not deciding.off else None)


def _smaller(exports: Sequence[Export], views: Views, items: int, keeping: Keeping) -> str:
    """What would take less space, in words."""
    halves, folds = replace(keeping, kept_as="float16"), replace(keeping, what="folds")
    ways = {"--keep-as float16": halves, "--keep folds": folds, "both": replace(halves, what="folds")}
    sizes = {way: announced_size(exports, views, items, kept) for way, kept in ways.items() if kept != keeping}
    return ", ".join(f"{way}: {size / 1e9:,.1f}" for way, size in sizes.items()) or "--keep none removes it in the end"


def _until(
    exports: Sequence[Export],
    views: Views,
    share: Sequence[float],
    items: Items,
    store: Store,
    deadline: float,
    *,
    progress: Progress | None,
    **how: Any,
) -> Staged:
    """One stage after another; those that have nothing left to compute still count when time is up."""
    end = time.monotonic() + deadline
    outcomes: list[Outcome] = []
    weight = dict(zip([export.digest for export in exports], share, strict=True))
    stages = sorted(_stages(exports), key=lambda group: -sum(weight[export.digest] for export in group))
    done: list[Export] = []
    for number, group in enumerate(stages):
        report = _part(progress, number, len(stages), len(items))
        outcome = predict(group, views, items, store, until=end, progress=report, **how)
        outcomes.append(outcome)
        done += group if outcome.finished else []
    ready = [export for export in exports if export in done]
    total = sum(weight[export.digest] for export in ready)
    if not total:
        furthest = max(len(outcome.items) for outcome in outcomes)
        raise ModelError(
            f"time was up before one model was through ({furthest:,} of {len(items):,} images); nothing was written",
            hint="What was computed is kept: run the same command again, or give it more time.",
        )
    finished = [outcome for outcome in outcomes if outcome.finished]
    merged = replace(
        finished[0],
        tables={key: table for outcome in finished for key, table in outcome.tables.items()},
        passes=sum(outcome.passes for outcome in outcomes),
        seconds=sum(outcome.seconds for outcome in outcomes),
        finished=len(finished) == len(outcomes),
    )
    late = [export for export in exports if export not in done]
    return Staged(merged, ready, [weight[export.digest] / total for export in ready], late)


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
