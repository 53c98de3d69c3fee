"""Test-time augmentation that pays: views measured on images the models did not see, chosen there, or checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base import files, provenance
from toolkit.core.predictions import Predictions, concat
from toolkit.ensemble.run import combine, unseen
from toolkit.ensemble.view_selection import NONE, Finding, Line, Rows, judge, sufferers
from toolkit.errors import DataError, StoreError, ToolkitError, few
from toolkit.images.views import AUTO, VIEW_SETS, needs_square, per_member, views, written
from toolkit.inference.exports import read_exports
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.workspace import make_split
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import SPLIT_FILE, Split

KEPT = "tta.json"  # the last findings, in reports/
ROOM = 1 << 29  # bytes that the views' tables of one member may take: of more rows, as many as that are drawn
CHECKED = 500  # held-out rows on which a set that was asked for is checked: a few percent of most test sets


@dataclass(frozen=True, eq=False)
class Choice:
    """What `resolve` settled: the sets as `ensembling.run` takes them, what predictions keep of how, and warnings.

    The record says what was asked, has what was measured of each member, and notes.
    """

    tta: str
    record: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


def measure(
    competition: Competition, exports: Sequence[Export], wanted: Mapping[str, Sequence[str]], **how: Any
) -> dict[str, Rows]:
    """Every view (`wanted` per member) on held-out rows, through the store; `how` is what `unseen` takes, as `limit`.

    Rows whose images cannot be used are left out.

    Raises:
        DataError, ModelError: no split.csv, or none that these models know.
    """
    split = make_split.load(competition)
    each = {export.digest: tuple(wanted[export.card.member]) for export in exports}
    said: dict[str, dict[tuple[str, str], list[Predictions]]] = {name: {} for name in wanted}
    for group, ids, outcome in unseen(competition, exports, split, each, **how):
        bad = {image.id for image in outcome.bad}
        there = {item.id for item in outcome.items} - bad
        good = [name for name in ids if name in there]
        for member in dict.fromkeys(export.card.member for export in group):
            own = [export for export in group if export.card.member == member]
            for target in competition.targets:
                for view in wanted[member]:
                    one = {export.digest: (view,) for export in own}
                    table = combine(competition, target, own, outcome, good, views=one)[0]
                    said[member].setdefault((target.name, view), []).append(table)
    return {name: _rows(competition, split, name, tuple(wanted[name]), found) for name, found in said.items() if found}


def find(
    competition: Competition, exports: Sequence[Export], sets: Sequence[str] = (), **how: Any
) -> tuple[dict[str, Finding], tuple[str, ...]]:
    """Judge sets of views (all of VIEW_SETS that fit a member's input, unless told) per member; and who could not be judged.

    Raises:
        DataError, ModelError: see `measure`.
    """
    split = make_split.load(competition)
    judged, notes = _judgeable(exports, split)
    fitting = {name: _fitting(judged, name, sets) for name in dict.fromkeys(export.card.member for export in judged)}
    wanted = {name: tuple(dict.fromkeys(view for one in found for view in views(one))) for name, found in fitting.items()}
    width = max(map(len, wanted.values())) * sum(len(target.classes) for target in competition.targets)
    how["limit"] = min(how.get("limit") or ROOM, max(ROOM // (8 * width), CHECKED))
    measured = measure(competition, judged, wanted, **how)
    found = {name: judge(rows, competition.score, fitting[name]) for name, rows in measured.items()}
    _keep(competition, found)
    return found, notes


def kept(competition: Competition) -> dict[str, Any]:
    """What was last found of each member, as plain values; nothing where nothing was, or it cannot be understood."""
    try:
        said = json.loads(competition.path("reports", KEPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _keep(competition: Competition, found: Mapping[str, Finding]) -> None:
    """Note findings for the report; a folder that cannot be written is left as it is."""
    made = provenance.now("seconds")
    said = kept(competition) | {name: {"created": made} | _lines(finding) for name, finding in found.items()}
    with suppress(StoreError):
        files.write_text(competition.path("reports", KEPT), json.dumps(said, indent=1, ensure_ascii=False) + "\n")


def _lines(finding: Finding) -> dict[str, Any]:
    def plain(line: Line) -> dict[str, Any]:
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
    asked: str,
    *,
    members: Sequence[str] = (),
    check: bool = True,
    **how: Any,
) -> Choice:
    """What to predict with when `asked` on the command line: `auto` replaced by the choice, sets that were named checked.

    The check takes CHECKED held-out rows, obeys whatever it finds, and gives way with a note where it cannot be made.

    Raises:
        DataError, ModelError: unknown names; `auto` where no model has images that it did not see.
    """
    if asked == NONE:
        return Choice(asked, {})
    exports = read_exports(paths, competition, members=members)
    sets = per_member(asked, list(dict.fromkeys(export.card.member for export in exports)))
    found: dict[str, Finding] = {}
    notes: list[str] = []
    warnings: list[str] = []
    auto = [export for export in exports if sets[export.card.member] == AUTO]
    if auto:
        found, left = find(competition, auto, **how)
        notes += [f"{name}: {finding.reason}" for name, finding in found.items()] + [f"{line}: {NONE}" for line in left]
        sets |= {name: found[name].chosen if name in found else NONE for name in {export.card.member for export in auto}}
    record = {name: _record(finding, finding.chosen) for name, finding in found.items()}
    named = [export for export in exports if export not in auto and len(views(sets[export.card.member])) > 1]
    if named and check:
        for name, finding in _checked(competition, named, sets, notes, **how).items():
            record[name] = _record(finding, sets[name])
            warnings += _warnings(finding, sets[name])
    said = {"asked": asked, "members": record, "notes": notes + warnings}
    return Choice(written(sets), said, tuple(warnings))


def _rows(
    competition: Competition,
    split: Split,
    member: str,
    wanted: tuple[str, ...],
    found: Mapping[tuple[str, str], list[Predictions]],
) -> Rows:
    joined = {key: concat(parts) for key, parts in found.items()}
    ids = next(iter(joined.values())).ids
    if not ids:
        raise DataError(f"{member}: none of its held-out images can be used", hint="Check [train] in competition.toml.")
    place = {name: i for i, name in enumerate(split.ids)}
    rows = [place[name] for name in ids]
    groups = tuple(split.groups[i] for i in rows)
    truth = competition.truth()
    return Rows(
        member=member,
        targets=competition.targets,
        views=wanted,
        said={t.name: np.stack([_values(joined[t.name, view]) for view in wanted]) for t in competition.targets},
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
    competition: Competition, exports: Sequence[Export], sets: Mapping[str, str], notes: list[str], **how: Any
) -> dict[str, Finding]:
    """Sets that were named, judged on CHECKED held-out rows; a note instead where that cannot be done."""
    try:
        judged, left = _judgeable(exports, make_split.load(competition))
        wanted = {export.card.member: views(sets[export.card.member]) for export in judged}
        measured = measure(competition, judged, wanted, limit=CHECKED, **how)
        notes += [f"{line}: its views were not checked" for line in left]
        return {name: judge(rows, competition.score, [sets[name]]) for name, rows in measured.items()}
    except ToolkitError as error:  # the check is a service: whatever stops it must not stop the work
        notes.append(f"views were not checked on held-out images: {error.message}")
        return {}


def _warnings(finding: Finding, name: str) -> Iterator[str]:
    line = finding.sets[-1]
    if line.estimate.gain_high < 0:
        e = line.estimate
        classes = "; ".join(sufferers(line))
        yield (
            f"--tta {name} costs {finding.member} {finding.metric} {-e.gain:.4f} on {finding.rows:,} held-out rows "
            f"(95 % interval of the gain {e.gain_low:+.4f} to {e.gain_high:+.4f}; {line.won:,} wrong→right, "
            f"{line.lost:,} right→wrong{'; ' + classes if classes else ''}); it is used as asked, `--tta {AUTO}` chooses"
        )


def _record(finding: Finding, used: str) -> dict[str, Any]:
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
