"""What two tables say of the targets: classes, task and columns, with a question for everything that could be otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from toolkit.base.text.text_forms import TextForm
from toolkit.core.cards import Task
from toolkit.core.targets import YES_NO, Target, class_order
from toolkit.errors import CompetitionError, counted, few

if TYPE_CHECKING:
    import pandas as pd

PerId = Literal["", "mean", "max"]
SEPARATORS = (" ", ",", "|", ";")
DISTANCES = ("mae", "mse")
MANY_LEVELS = 30  # whole numbers that may still be grades


@dataclass(frozen=True)
class Wishes:
    """What the user has said instead of leaving it to be found; empty means not said."""

    data: str = ""
    train: str = ""
    test: str = ""
    sample: str = ""
    train_images: str = ""
    test_images: str = ""
    pattern: str = ""
    id: str = ""
    sample_id: str = ""
    target: tuple[str, ...] = ()
    factor: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    group: str = ""
    extra: str = ""
    task: Task | None = None
    metric: str = ""
    positive: str = ""
    name: str = ""
    format: str = ""
    per_id: PerId = ""
    encoding: str = ""
    delimiter: str = ""

    def only(self, *names: str) -> bool:
        """Whether nothing was said but these."""
        return not any(getattr(self, wish.name) for wish in fields(self) if wish.name not in names)

    @property
    def text_form(self) -> TextForm:
        """How tables are written, where their bytes do not say it."""
        return TextForm(self.encoding, self.delimiter)


@dataclass(frozen=True)
class Question:
    """What only the user can say: the field of `Wishes` that answers it (or another, `instead`), why, and what may be meant."""

    wish: str
    why: str
    candidates: tuple[str, ...] = ()
    instead: str = ""

    def text(self, spell: Callable[[str], str] = str) -> str:
        """The question in a line, its wishes spelled as who answers it spells them."""
        wishes = " or ".join(map(spell, filter(None, (self.wish, self.instead))))
        return f"{wishes}: {self.why}" + (f" - candidates: {few(self.candidates, limit=12)}" if self.candidates else "")


class OpenQuestionsError(CompetitionError):
    """A folder leaves things open; `questions` has all of them."""

    def __init__(self, questions: Sequence[Question], spell: Callable[[str], str] = str, *, hint: str = "") -> None:
        lines = [f"{counted(len(questions), 'things')} must be said:", *(asked.text(spell) for asked in questions)]
        super().__init__("\n  ".join(lines), hint=hint)
        self.questions = tuple(questions)


@dataclass
class Findings:
    """What was concluded, line by line, and what has to be asked."""

    lines: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)

    def say(self, line: str) -> None:
        """Note a conclusion."""
        self.lines.append(line)

    def ask(self, wish: str, why: str, candidates: Iterable[object] = (), *, instead: str = "") -> None:
        """Note that only the user can say this."""
        self.questions.append(Question(wish, why, tuple(map(str, candidates)), instead))

    def check(self) -> None:
        """Stop here if anything has to be asked.

        Raises:
            OpenQuestionsError: every question.
        """
        if self.questions:
            raise OpenQuestionsError(self.questions, hint="Each is named after the wish that answers it.")


@dataclass(frozen=True)
class Tables:
    """The two tables, their id columns, and the columns of train that are used otherwise (files, groups, extra rows)."""

    train: pd.DataFrame
    sample: pd.DataFrame
    key: str
    sample_key: str
    used: frozenset[str] = frozenset()

    @property
    def asked(self) -> list[str]:
        """The sample's columns that are to be filled."""
        return [str(name) for name in self.sample.columns if name != self.sample_key]

    @property
    def free(self) -> list[str]:
        """The columns of train.csv that could be labels: they repeat, and are not used otherwise."""
        rows = len(self.train)
        names = [str(name) for name in self.train.columns if name != self.key and name not in self.used]
        return [name for name in names if 1 < self.train[name].nunique() < rows]


def targets(tables: Tables, wishes: Wishes, findings: Findings) -> tuple[Target, ...]:
    """The targets, as far as the tables and the wishes say; empty where `findings` now holds a question."""
    columns = list(wishes.factor) or list(wishes.target)
    if lost := [name for name in columns if name not in tables.train.columns]:
        findings.ask("factor" if wishes.factor else "target", f"the training table has no column {few(lost)}", tables.free)
        return ()
    if wishes.factor:
        return _joint(tables, wishes, findings)
    columns = columns or _columns(tables, findings)
    if len(columns) > 1 and all(set(tables.train[name]) <= set(YES_NO) for name in columns) and wishes.task != "binary":
        return _class_columns(tables, columns, wishes, findings)
    inferred = [target for name in columns if (target := _from_column(name, tables, wishes, findings))]
    return tuple(inferred) if len(inferred) == len(columns) else ()


def _columns(tables: Tables, findings: Findings) -> list[str]:
    """The label columns: those of the sample that train has too, or those whose values are the sample's columns."""
    asked = tables.asked
    if not asked:  # the sample itself is asked for
        return []
    here = [name for name in asked if name in tables.train.columns]
    if here and here == asked:
        return here
    if here:
        lost = [name for name in asked if name not in here]
        findings.ask("target", f"of the sample's columns, {few(lost)} are not in the training table", tables.free)
        return []
    spelled = {name: _spelled(name, tables) for name in tables.free}
    by_class = [name for name, columns in spelled.items() if columns]
    covered = [column for name in by_class for column in spelled[name]]
    if by_class and sorted(covered) == sorted(asked):
        return by_class
    if not by_class and len(asked) == 1 and len(tables.free) == 1:
        return tables.free
    why = f"the sample asks for {few(asked)}, which no single column of the training table explains"
    findings.ask("target", why, by_class or tables.free)
    return []


def _spelled(name: str, tables: Tables) -> set[str]:
    """The sample's columns that stand for the classes of a column (`cat`, `kind_cat` or `kind/cat`), if all do."""
    asked = set(tables.asked)
    cells = set(tables.train[name])
    lists = [cells, *({part.strip() for cell in cells for part in cell.split(mark)} - {""} for mark in SEPARATORS)]
    for classes in lists:
        for spelling in ("{}", f"{name}_{{}}", f"{name}/{{}}"):
            columns = {spelling.replace("{}", part) for part in classes}
            if len(columns) > 1 and columns <= asked:
                return columns
    return set()


def _joint(tables: Tables, wishes: Wishes, findings: Findings) -> tuple[Target, ...]:
    for name, classes in wishes.factor.items():
        if unknown := sorted(set(tables.train[name]) - set(classes)):
            findings.ask("factor", f"column {name!r} also holds {few(unknown)}; name every class, in order", ())
    if findings.questions:
        return ()
    name = tables.asked[0] if len(tables.asked) == 1 else "label"
    target = Target(name, "multiclass", (), factors=wishes.factor)
    findings.say(
        f"target {name}: {' × '.join(wishes.factor)}, {counted(len(target.classes), 'classes')} "
        f"in that order: {_some(target.classes)}"
    )
    return (target,)


def _class_columns(tables: Tables, columns: Sequence[str], wishes: Wishes, findings: Findings) -> tuple[Target, ...]:
    """One target whose classes are columns of 0 and 1."""
    grid = tables.train[list(columns)].isin([yes for yes, value in YES_NO.items() if value])
    task = wishes.task or "multilabel"
    if not wishes.task and bool((grid.sum(axis=1) == 1).all()):
        findings.ask("task", f"exactly one of the 0/1 columns {few(columns)} is 1 in every row", ("multiclass", "multilabel"))
        return ()
    taken = set(tables.train.columns)
    name = next(
        name
        for name in ("label", "labels", "target", "targets", *(f"target{i}" for i in range(len(taken) + 1)))
        if name not in taken
    )
    classes = class_order(columns)
    findings.say(
        f"target {name}: a column of 0 and 1 for each of {counted(len(classes), 'classes')}: {_some(classes)}; task {task}"
    )
    return (Target(name, task, classes),)


def _from_column(name: str, tables: Tables, wishes: Wishes, findings: Findings) -> Target | None:
    """One target whose classes are the cells of a column."""
    cells = tables.train[name]
    marks = _lists(set(cells))
    there = [mark for mark in SEPARATORS if any(mark in cell.strip() for cell in cells)]
    shown = [mark for mark in there if _parts(cells, mark) == set(tables.asked) or _shown(name, mark, tables)]
    if wishes.task == "multilabel" or (shown and wishes.task is None):
        return _multilabel(name, cells, shown or marks, findings)
    if marks and wishes.task is None:
        findings.ask(
            "task",
            f"cells of {name!r} such as {_example(cells, marks[0])!r} may list several classes",
            ("multilabel", "multiclass"),
        )
        return None
    if empty := int((cells == "").sum()):
        findings.ask(
            "target", f"column {name!r} is empty in {empty:,} of {counted(len(cells), 'rows')}: label them, or use", tables.free
        )
        return None
    classes = class_order(cells)
    if wishes.task is None and _quantity(classes, wishes.metric):
        findings.ask(
            "task",
            f"column {name!r} holds quantities, {len(classes):,} of them such as {classes[len(classes) // 2]}: to predict a "
            "quantity (regression) is not supported; cut it into classes in the table and name that column as target, or, if "
            "each value is a class, say so",
            ("multiclass",),
            instead="target",
        )
        return None
    if len(classes) < 2 or len(classes) == len(cells) > 2:
        findings.ask(
            "target",
            f"column {name!r} has {counted(len(classes), 'different values')} in {counted(len(cells), 'rows')}",
            tables.free,
        )
        return None
    task = wishes.task or _task(name, classes, tables, wishes)
    positive = wishes.positive if wishes.positive in classes else next((c for c in classes if YES_NO.get(c)), "")
    if task == "binary" and (len(classes) != 2 or not positive or not (wishes.positive or set(classes) <= set(YES_NO))):
        findings.ask("positive", f"which class of {name!r} is the probability of", classes)
        return None
    sense = f", positive {positive}" if task == "binary" else ""
    findings.say(f"target {name}: {counted(len(classes), 'classes')}: {_some(classes)}; task {task}{sense}")
    return Target(name, task, classes, positive=positive if task == "binary" else "")


def _quantity(classes: Sequence[str], metric: str) -> bool:
    """Whether a column holds measured values, not names: fractions, or very many whole numbers under a metric of distance."""
    try:
        values = [float(value) for value in classes]
    except ValueError:
        return False
    whole = all(math.isfinite(value) and value == round(value) for value in values)
    return not whole or (metric in DISTANCES and len(classes) > MANY_LEVELS)


def _task(name: str, classes: Sequence[str], tables: Tables, wishes: Wishes) -> Task:
    """Binary: two classes of which one is named positive, is 1, or has its probability asked for in a single column."""
    if len(classes) != 2:
        return "multiclass"
    single = name if name in tables.asked else (tables.asked[0] if len(tables.asked) == 1 else "")
    numbers = bool(single) and not set(tables.sample[single]) <= {*classes, ""}
    return "binary" if wishes.positive or set(classes) <= set(YES_NO) or numbers else "multiclass"


def _multilabel(name: str, cells: Any, marks: Sequence[str], findings: Findings) -> Target | None:
    if len(marks) > 1:
        marks = [mark for mark in marks if mark != " "]
    if len(marks) > 1:
        findings.ask("target", f"cells of {name!r} may be separated by any of {few(marks)}: keep one of them in the file")
        return None
    mark = marks[0] if marks else " "
    classes = class_order(part.strip() for cell in cells for part in cell.split(mark) if part.strip())
    if not classes:
        findings.ask("target", f"column {name!r} is empty in every row")
        return None
    findings.say(f"target {name}: {counted(len(classes), 'classes')}: {_some(classes)}; task multilabel, separated by {mark!r}")
    return Target(name, "multilabel", classes, separator=mark)


def _lists(cells: set[str]) -> list[str]:
    """The marks that may separate several classes in a cell.

    A part of such a cell is also a cell of its own, or the parts are fewer than the cells that are made of them.
    """
    marks = []
    for mark in SEPARATORS:
        several = {cell for cell in cells if mark in cell.strip()}
        parts = _parts(several, mark)
        marks += [mark] if parts & cells or len(parts) < len(several) else []
    return marks


def _parts(cells: Iterable[str], mark: str) -> set[str]:
    return {part.strip() for cell in cells for part in cell.split(mark)} - {""}


def _shown(name: str, mark: str, tables: Tables) -> bool:
    """Whether the sample's cells are lists: of parts that are known, in combinations that no cell of train is."""
    column = name if name in tables.asked else tables.asked[0] if len(tables.asked) == 1 else ""
    if not column:
        return False
    lists = {cell for cell in tables.sample[column] if mark in cell.strip()}
    known = set(tables.train[name])
    return bool(lists - known) and _parts(lists, mark) <= _parts(known, mark)


def _example(cells: Any, mark: str) -> str:
    return next(str(cell) for cell in cells if mark in cell.strip())


def _some(classes: Sequence[str]) -> str:
    return ", ".join(classes) if len(classes) <= 12 else f"{', '.join(classes[:10])} … {classes[-1]}"
