"""`toolkit split`: folds for train.csv and what they really hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from toolkit.base.text.printing import Mark, Part, Table
from toolkit.cli import options
from toolkit.core.twins import twins_note
from toolkit.errors import counted

if TYPE_CHECKING:
    from toolkit.workspace.competition import Competition
    from toolkit.workspace.make_split import Rare
    from toolkit.workspace.split import Split

_SHOWN = 12  # classes with a column of their own


@click.command()
@click.option("--folds", "count", type=click.IntRange(2), default=5, show_default=True, help="Number of folds.")
@click.option(
    "--holdout", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="A single held-out share instead, as 0.2."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, other folds.")
@click.option(
    "--rare",
    type=click.Choice(["refuse", "extra"]),
    default="refuse",
    show_default=True,
    help="Classes with fewer members than folds: refuse, or let them train in every fold, never scored.",
)
@click.option("--force", is_flag=True, help="Replace an existing split.csv.")
@options.as_json
@options.workspace
def command(competition: Competition, count: int, holdout: float | None, seed: int, rare: Rare, *, force: bool) -> options.Said:
    """Make split.csv: stratified folds, grouped where there are groups."""
    from toolkit.workspace import make_split
    from toolkit.workspace.split import SPLIT_FILE

    split = make_split.create(competition, count=count, holdout=holdout, seed=seed, rare=rare, force=force)
    path = competition.path(SPLIT_FILE)
    record = {"ok": True, "path": str(path), "digest": split.digest, "folds": split.count, "balance": split.balance()}
    several = make_split.several_images_note(competition)
    remarks = [*_remarks(split), *([Mark(f"Warning: {several}", "odd")] if several else [])]
    return record, [_table(split), *remarks, f"Wrote {path}: digest {split.digest}"]


def _table(split: Split) -> Table:
    """Rows, groups and classes per fold; many classes become their extremes."""
    balance = split.balance()
    few, grouped = len(balance[0]["classes"]) <= _SHOWN, any(split.groups)
    heads = list(balance[0]["classes"]) if few else ["smallest class", "largest class", "classes absent"]
    rows = []
    for row in balance:
        cells = row["classes"].values() if few else _extremes(row["classes"])
        name = row["fold"] if row["fold"] >= 0 else "extra" if split.count > 1 else "training"
        rows.append([*map(str, [name, row["rows"], *([row["groups"]] if grouped else []), *cells])])
    head = ["fold", "rows", *(["groups"] if grouped else []), *heads]
    return Table(head, rows, "r" * len(head))


def _extremes(classes: dict[str, int]) -> list[Any]:
    least, most = min(classes, key=lambda n: classes[n]), max(classes, key=lambda n: classes[n])
    return [f"{classes[least]} ({least})", f"{classes[most]} ({most})", sum(not n for n in classes.values())]


def _remarks(split: Split) -> list[Part]:
    """The class whose count differs most between folds, and every class that a fold cannot score."""
    scored = [row["classes"] for row in split.balance() if row["fold"] >= 0]
    lines: list[Part] = []
    if len(scored) > 1 and scored[0]:
        spread = {name: max(row[name] for row in scored) - min(row[name] for row in scored) for name in scored[0]}
        worst = max(spread, key=lambda name: spread[name])
        counts = sorted(row[worst] for row in scored)
        if spread[worst]:
            lines.append(f"Largest spread: class {worst} has {counts[0]} to {counted(counts[-1], 'rows')} per fold")
    leak = "; rows of one may stand in two folds, which is a leak"
    for note, end in ((twins_note(split.labels, "classes"), ""), (twins_note(split.groups, "groups"), leak)):
        lines += [Mark(f"Warning: {note}{end}", "odd")] if note else []
    lines += [Mark(f"Warning: {note}", "odd") for note in split.unseen_notes()[:_SHOWN]]
    missing: dict[str, list[int]] = {}
    for fold, name in split.missing_classes():
        missing.setdefault(name, []).append(fold)
    for name, folds in list(missing.items())[:_SHOWN]:
        words = f"class {name} is absent from fold {', '.join(map(str, folds))}: scores there say nothing of it"
        lines.append(Mark(f"Warning: {words}", "odd"))
    if len(missing) > _SHOWN:
        lines.append(Mark(f"Warning: {counted(len(missing) - _SHOWN, 'more classes are')} absent from some folds", "odd"))
    return lines
