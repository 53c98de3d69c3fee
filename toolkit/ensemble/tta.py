"""Test-time augmentation that pays: views measured on images the models did not see, chosen there, or checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base import provenance, sealed
from toolkit.blending.combination import Combination
from toolkit.core.predictions import Predictions, concat
from toolkit.ensemble.combine import combine
from toolkit.ensemble.unseen import unseen
from toolkit.ensemble.view_selection import NONE, ViewFinding, ViewLine, ViewRows, judge, sufferers
from toolkit.errors import DataError, StoreError, ToolkitError, counted, few
from toolkit.images.views import AUTO, VIEW_SETS, needs_square, per_member, views, written
from toolkit.inference.execution import Execution
from toolkit.inference.exports import WeightedModels, read_exports
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.workspace import make_split
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import SPLIT_FILE, Split

KEPT = "tta.json"  # the last findings, in reports/
ROOM = 1 << 29  # bytes that the views' tables of one member may take: of more rows, as many as that are drawn
CHECKED = 500  # held-out rows on which a set that was asked for is checked: a few percent of most test sets


@dataclass(frozen=True, eq=False)
class ViewChoice:
    """What `resolve` settled: the sets as `Combination` takes them, what predictions keep of how, and warnings.

    The record says what was asked, has what was measured of each member, and notes.
    """

    tta: str
    record: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


def measure(
    competition: Competition,
    exports: Sequence[Export],
    wanted: Mapping[str, Sequence[str]],
    execution: Execution = Execution(),
    *,
    limit: int | None = None,
    notes: list[str] | None = None,
) -> dict[str, ViewRows]:
    """Every view (`wanted` per member) on held-out rows, through the store; of `limit` rows about, drawn by chance.

    Rows whose images cannot be used are left out; what is to be said of the others is added to `notes`.

    Raises:
        DataError, ModelError: no split.csv, or none that these models know.
        DeviceError, StoreError: see `predict`.
    """
    split = make_split.load(competition)
    each = {export.digest: tuple(wanted[export.card.member]) for export in exports}
    tables: dict[str, dict[tuple[str, str], list[Predictions]]] = {name: {} for name in wanted}
    for group, ids, outcome in unseen(competition, exports, split, each, execution, limit=limit):
        if notes is not None:
            notes += outcome.notes
        there = {item.id for item in outcome.items} - {image.id for image in outcome.bad}
        good = [name for name in ids if name in there]
        for member in dict.fromkeys(export.card.member for export in group):
            own = [export for export in group if export.card.member == member]
            for target in competition.targets:
                for view in wanted[member]:
                    alone = WeightedModels(own, {export.digest: (view,) for export in own})
                    table = combine(competition, target, alone, outcome, good)[0]
                    tables[member].setdefault((target.name, view), []).append(table)
    return {name: _rows(competition, split, name, tuple(wanted[name]), parts) for name, parts in tables.items() if parts}


def find(
    competition: Competition,
    exports: Sequence[Export],
    sets: Sequence[str] = (),
    execution: Execution = Execution(),
    *,
    limit: int | None = None,
) -> tuple[dict[str, ViewFinding], tuple[str, ...]]:
    """Judge sets of views (all of VIEW_SETS that fit a member's input, unless told) per member; and who could not be judged.

    Raises:
        DataError, ModelError, DeviceError, StoreError: see `measure`.
    """
    split = make_split.load(competition)
    judged, notes = _judgeable(exports, split)
    fitting = {name: _fitting(judged, name, sets) for name in dict.fromkeys(export.card.member for export in judged)}
    wanted = {name: tuple(dict.fromkeys(view for own in fit for view in views(own))) for name, fit in fitting.items()}
    width = max(map(len, wanted.values())) * sum(len(target.classes) for target in competition.targets)
    at_most = min(limit or ROOM, max(ROOM // (8 * width), CHECKED))
    seen: list[str] = []
    measured = measure(competition, judged, wanted, execution, limit=at_most, notes=seen)
    findings = {name: judge(rows, competition.score, fitting[name]) for name, rows in measured.items()}
    _keep(competition, findings)
    return findings, (*notes, *seen)


def kept(competition: Competition) -> dict[str, Any]:
    """What was last found of each member, as plain values; nothing where nothing was, or it cannot be understood."""
    return sealed.notes(competition.path("reports", KEPT), "views are judged again") or {}


def _keep(competition: Competition, findings: Mapping[str, ViewFinding]) -> None:
    """Note findings for the report; a folder that cannot be written is left as it is."""
    now = provenance.now("seconds")
    record = kept(competition) | {name: {"created": now} | _lines(finding) for name, finding in findings.items()}
    with suppress(StoreError):
        sealed.write_json(competition.path("reports", KEPT), record, indent=1)


def _lines(finding: ViewFinding) -> dict[str, Any]:
    def plain(line: ViewLine) -> dict[str, Any]:
        e = line.estimate
        return {
            "name": line.name,
            "score": e.score,
            "gain": [e.gain, e.gain_low, e.gain_high],
            "won": line.won,
            "lost": line.lost,
        }

    kinds = {"sets": [plain(line) for line in finding.sets], "views": [plain(line) for line in finding.views]}
    return {"metric": finding.metric, "rows": finding.rows, "chosen": finding.chosen, "reason": finding.reason} | kinds


def resolve(
    competition: Competition,
    paths: Sequence[Path],
    combination: Combination,
    execution: Execution = Execution(),
    *,
    check: bool = True,
) -> ViewChoice:
    """The views to predict with: `auto` replaced by the choice, sets that were named checked.

    The check takes CHECKED held-out rows, obeys whatever it finds, and gives way with a note where it cannot be made.

    Raises:
        DataError, ModelError: unknown names; `auto` where no model has images that it did not see.
    """
    asked = combination.tta
    if asked == NONE:
        return ViewChoice(asked, {})
    exports = read_exports(paths, competition, members=combination.members)
    sets = per_member(asked, list(dict.fromkeys(export.card.member for export in exports)))
    findings: dict[str, ViewFinding] = {}
    notes: list[str] = []
    warnings: list[str] = []
    auto = [export for export in exports if sets[export.card.member] == AUTO]
    if auto:
        findings, left = find(competition, auto, execution=execution)
        notes += [f"{name}: {finding.reason}" for name, finding in findings.items()] + [f"{line}: {NONE}" for line in left]
        members = {export.card.member for export in auto}
        sets |= {name: findings[name].chosen if name in findings else NONE for name in members}
    record = recorded(findings)
    named = [export for export in exports if export not in auto and len(views(sets[export.card.member])) > 1]
    if named and check:
        for name, finding in _checked(competition, named, sets, notes, execution).items():
            record[name] = _record(finding, sets[name])
            warnings += _warnings(finding, sets[name])
    record_of_all = {"asked": asked, "members": record, "notes": notes + warnings, "warnings": warnings}
    return ViewChoice(written(sets), record_of_all, tuple(warnings))


def _rows(
    competition: Competition,
    split: Split,
    member: str,
    wanted: tuple[str, ...],
    tables: Mapping[tuple[str, str], list[Predictions]],
) -> ViewRows:
    joined = {key: concat(parts) for key, parts in tables.items()}
    ids = next(iter(joined.values())).ids
    if not ids:
        raise DataError(f"{member}: none of its held-out images can be used", hint="Check [train] in competition.toml.")
    place = {name: i for i, name in enumerate(split.ids)}
    rows = [place[name] for name in ids]
    groups = tuple(split.groups[i] for i in rows)
    truth = competition.truth()
    return ViewRows(
        member=member,
        targets=competition.targets,
        views=wanted,
        probabilities={t.name: np.stack([_values(joined[t.name, view]) for view in wanted]) for t in competition.targets},
        truth={t.name: truth[t.name].with_classes(t.classes).align(ids).decided for t in competition.targets},
        folds=split.folds[rows],
        groups=groups if all(groups) else None,
    )


def _values(table: Predictions) -> NDArray[np.float64]:
    assert table.values is not None
    return table.values


def _judgeable(exports: Sequence[Export], split: Split) -> tuple[list[Export], tuple[str, ...]]:
    """The models with rows of this split that they did not see, and a sentence for each member without such models."""
    good = [export for export in exports if export.card.fold is not None and export.card.split == split.digest]
    members = {export.card.member for export in good}
    left = [name for name in dict.fromkeys(export.card.member for export in exports) if name not in members]
    if not good:
        raise DataError(
            f"no model has a fold of {SPLIT_FILE} that it did not see: {few(left)}",
            hint="Views are judged on held-out images: name a set, or restore the split that the models were trained on.",
        )
    return good, tuple(f"{name} has no fold of {SPLIT_FILE} that it did not see" for name in left)


def _fitting(exports: Sequence[Export], member: str, sets: Sequence[str]) -> list[str]:
    """The sets to judge for a member: those named, else all; without quarter turns where the input is not square.

    Raises:
        DataError: an unknown set, or a named one with quarter turns for an input that is not square.
    """
    height, width = next(export.card.preprocess.size for export in exports if export.card.member == member)
    turned = [name for name in sets or VIEW_SETS if height != width and any(map(needs_square, views(name)))]
    if sets and turned:
        raise DataError(f"{few(turned)} turns images by 90°, {member} takes {height}×{width}", hint="Use flip or hflip.")
    return [name for name in sets or VIEW_SETS if name not in turned]


def _checked(
    competition: Competition, exports: Sequence[Export], sets: Mapping[str, str], notes: list[str], execution: Execution
) -> dict[str, ViewFinding]:
    """Sets that were named, judged on CHECKED held-out rows; a note instead where that cannot be done."""
    try:
        judged, left = _judgeable(exports, make_split.load(competition))
        wanted = {export.card.member: views(sets[export.card.member]) for export in judged}
        measured = measure(competition, judged, wanted, execution, limit=CHECKED)
        notes += [f"{line}: its views were not checked" for line in left]
        return {name: judge(rows, competition.score, [sets[name]]) for name, rows in measured.items()}
    except ToolkitError as error:  # the check is a service: whatever stops it must not stop the work
        notes.append(f"views were not checked on held-out images: {error.message}")
        return {}


def _warnings(finding: ViewFinding, name: str) -> Iterator[str]:
    line = finding.sets[-1]
    if line.estimate.gain_high < 0:
        e = line.estimate
        classes = "; ".join(sufferers(line))
        yield (
            f"views {name} cost {finding.member} {finding.metric} {-e.gain:.4f} on {counted(finding.rows, 'held-out rows')} "
            f"(95 % interval of the gain {e.gain_low:+.4f} to {e.gain_high:+.4f}; {line.won:,} wrong→right, "
            f"{line.lost:,} right→wrong{'; ' + classes if classes else ''}); they are used as asked, {AUTO!r} chooses"
        )


def recorded(findings: Mapping[str, ViewFinding]) -> dict[str, Any]:
    """What predictions remember of sets that were chosen, by member."""
    return {name: _record(finding, finding.chosen) | _chosen(finding) for name, finding in findings.items()}


def _chosen(finding: ViewFinding) -> dict[str, Any]:
    """That the set was chosen on held-out rows, and what the rows of all other folds choose for each."""
    return {"chosen": finding.chosen != NONE, "outer": {str(fold): name for fold, name in finding.outer.items()}}


def _record(finding: ViewFinding, used: str) -> dict[str, Any]:
    """What predictions remember of a finding: the set that is used, on how many rows it was measured, and what it brings."""
    line = next(line for line in finding.sets if line.name == used)
    e, nested = line.estimate, finding.nested
    return {
        "used": used,
        "metric": finding.metric,
        "rows": finding.rows,
        "score": e.score,
        "gain": [e.gain, e.gain_low, e.gain_high],
        "won": line.won,
        "lost": line.lost,
        "nested_gain": [nested.gain, nested.gain_low, nested.gain_high],
    }
