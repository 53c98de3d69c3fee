"""What can be wrong with a submission: stable codes with their cures, and the checks of header, ids and cells."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import Bools, Ints
from toolkit.base.text import arrow_csv
from toolkit.errors import few

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
R = TypeVar("R")

PAIR = ", "  # between class and id, where both name a row
QUOTES = "'\"`“”‘’"
ROW_SUM = 1e-3  # probabilities that somebody rounded to four digits are no error
STRICT_SUM = 1e-5  # what graders allow that compare with numpy's isclose
SHOWN = 3


@dataclass(frozen=True)
class Rule:
    """What a code means, whether it forbids the submission, and the cure."""

    severity: Literal["error", "warning"]
    what: str
    hint: str


CODES: dict[str, Rule] = {
    "SUB001": Rule("error", "the file cannot be read as a table", "Write it again as a comma-separated UTF-8 text file."),
    "SUB002": Rule("error", "a byte-order mark at the start", "Save without BOM: the mark joins the first column's name."),
    "SUB003": Rule("error", "not encoded as UTF-8", "Save as UTF-8."),
    "SUB004": Rule("error", "cells separated by something else than a comma", "Save with commas."),
    "SUB005": Rule("error", "lines that end in a bare carriage return", "Save with \\n line ends."),
    "SUB006": Rule("warning", "lines that end in \\r\\n", "Most platforms accept them; \\n is safer."),
    "SUB007": Rule("error", "lines with more or fewer cells than the header", "Quote cells that hold a comma."),
    "SUB008": Rule("error", "quotes that became part of the text", "Only double quotes around a whole cell are taken off."),
    "SUB009": Rule("error", "a file larger than the platform takes", "Write fewer digits; max_mb stands in competition.toml."),
    "SUB010": Rule("error", "missing columns", "The header must be that of the sample submission."),
    "SUB011": Rule("error", "columns that the sample does not have", "Remove them."),
    "SUB012": Rule("error", "an index column", "Write without the index: to_csv(..., index=False), row.names = FALSE in R."),
    "SUB013": Rule("error", "columns in another order than the sample's", "Reorder them: some platforms go by position."),
    "SUB014": Rule("error", "columns that appear more than once", "Keep one of each."),
    "SUB015": Rule("error", "column names spelled differently", "Copy the names from the sample submission."),
    "SUB020": Rule("error", "missing ids", "Every id of the sample submission needs a row."),
    "SUB021": Rule("error", "ids that the sample does not have", "Remove those rows; ids are compared as text."),
    "SUB022": Rule("error", "rows that repeat an id", "Keep one row per id."),
    "SUB023": Rule("error", "rows without an id", "Fill in the id or remove the row."),
    "SUB024": Rule("error", "ids that lost or gained leading zeros", "Read ids as text: dtype=str."),
    "SUB025": Rule("error", "ids with spaces around them", "Strip them."),
    "SUB026": Rule("error", "ids that became decimal numbers", "Read ids as text: dtype=str."),
    "SUB027": Rule("error", "ids that lost or gained a folder or a file extension", "Write the ids as the sample does."),
    "SUB028": Rule("error", "ids in other letter case", "Write the ids as the sample does."),
    "SUB029": Rule("warning", "rows in another order than the sample's", "Most platforms join by id; the sample's is safer."),
    "SUB030": Rule("error", "empty cells", "Every row needs a value."),
    "SUB031": Rule("error", "NaN cells", "Every row needs a value; a NaN often comes from a join that found no partner."),
    "SUB032": Rule("error", "infinite numbers", "Look for a division by zero or an overflowing exp."),
    "SUB033": Rule("error", "cells that are no numbers", "Write numbers with a decimal point, without units."),
    "SUB034": Rule("error", "numbers outside 0 to 1", "Submit probabilities: softmax or sigmoid of the logits, not per cent."),
    "SUB035": Rule("error", "rows whose probabilities do not sum to 1", "Normalise each row over its classes."),
    "SUB036": Rule("warning", "numbers rounded into ties", "The metric goes by rank: write more digits, or ranks."),
    "SUB037": Rule("warning", "rows whose probabilities sum to 1 only roughly", "Some graders allow 1e-5: write more digits."),
    "SUB040": Rule("error", "labels that are no class", "The classes stand in competition.toml."),
    "SUB041": Rule("error", "labels written as decimal numbers", "Write 1, not 1.0; a join with gaps makes floats."),
    "SUB042": Rule("error", "labels spelled differently", "Mind spaces, case and zeros: write them as competition.toml does."),
    "SUB043": Rule("warning", "classes that no row is given", "This often means a mixed-up class order."),
    "SUB044": Rule("error", "numbers in place of class names", 'Write names, or set format = "indices" if asked for.'),
    "SUB050": Rule("error", "rows with too many labels", "Keep the k most probable."),
    "SUB051": Rule("error", "rows that repeat a label", "List each label once."),
    "SUB052": Rule("warning", "rows with fewer labels than allowed", "A further guess cannot hurt a top-k score."),
    "SUB053": Rule("warning", "rows without any label", "Some platforms read an empty cell as missing."),
    "SUB060": Rule("error", "exports that changed since the predictions", "Run `toolkit ensemble` again, or use --name."),
    "SUB061": Rule("error", "exports that vanished since the predictions", "Run `toolkit ensemble` again, or use --name."),
    "SUB062": Rule("warning", "predicted ids that the sample does not ask for", "They are left out."),
    "SUB063": Rule("warning", "rows filled with the class prior", "Their images could not be read; mend those and run again."),
    "SUB064": Rule("warning", "exports outside the workspace", "They could not be compared with those that predicted."),
    "SUB065": Rule("warning", "cards whose score is not that of their out-of-fold rows", "Train or export the member again."),
    "SUB066": Rule("warning", "out-of-fold tables that cannot be used", "The checks that compare with them were left out."),
    "SUB070": Rule("error", "the sample submission's own answers", "Submit predictions, not the sample."),
    "SUB071": Rule("warning", "the same answer in every row", "This often means images that were not read."),
    "SUB072": Rule("warning", "classes in other shares than out of fold", "Look for a mixed-up class order or other pixels."),
    "SUB073": Rule("warning", "confidence unlike that out of fold", "This often means other pixels than in training."),
    "SUB074": Rule("warning", "most answers differ from the last submission", "Look for a mixed-up class or row order."),
    "SUB075": Rule("warning", "the same file as an earlier submission", "It will score the same."),
    "SUB076": Rule("warning", "test images that no row asks for", "The sample may be stale: compare it with the platform's."),
    "SUB077": Rule("warning", "rows whose test image is not there", "Download the images again, or compare the sample."),
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One finding: its code, how often, where (column, first line, first ids) and what was seen there."""

    code: str
    count: int = 1
    column: str = ""
    line: int = 0
    ids: tuple[str, ...] = ()
    seen: str = ""

    @property
    def severity(self) -> str:
        """`error` forbids the submission, `warning` does not."""
        return CODES[self.code].severity

    @property
    def record(self) -> dict[str, Any]:
        """The finding as plain values, for machines."""
        rule = CODES[self.code]
        return {"code": self.code, "severity": rule.severity, "what": rule.what, "hint": rule.hint} | {
            "count": self.count, "column": self.column, "line": self.line, "ids": list(self.ids), "seen": self.seen
        }  # fmt: skip

    def __str__(self) -> str:
        where = [f"column {self.column!r}"] if self.column else []
        where += [f"line {self.line:,}"] if self.line else []
        rest = f" and {self.count - len(self.ids):,} more" if self.count > len(self.ids) else ""
        where += [f"ids {', '.join(map(repr, self.ids))}{rest}"] if self.ids else []
        where += [self.seen] if self.seen else []
        rule = CODES[self.code]
        count = f": {self.count:,}" if self.count > 1 or self.ids else ""
        place = f" ({'; '.join(where)})" if where else ""
        return f"{self.code} {rule.severity}: {rule.what}{count}{place}. {rule.hint}"


def errors(problems: Sequence[Problem]) -> list[Problem]:
    """Those that forbid the submission."""
    return [problem for problem in problems if problem.severity == "error"]


def of_ids(code: str, ids: Sequence[str], seen: str = "") -> Iterator[Problem]:
    """A finding about ids that have no line of their own; none if there are no ids."""
    if len(ids):
        yield Problem(code, len(ids), ids=tuple(ids[:SHOWN]), seen=seen)


def header(frame: pd.DataFrame, wanted: Sequence[str]) -> tuple[pd.DataFrame, list[Problem]]:
    """Compare column names; the frame comes back with misspelled names mended, so that its cells can be checked as well."""
    names = [str(name) for name in frame.columns]
    missing, extra = [n for n in wanted if n not in names], [n for n in names if n not in wanted]
    twins = {e: m for e in extra for m in missing if _plain(e) == _plain(m)}
    problems = []
    if twins:
        problems.append(Problem("SUB015", len(twins), seen=", ".join(f"{e!r} for {m!r}" for e, m in twins.items())))
    if absent := [n for n in missing if n not in twins.values()]:
        problems.append(Problem("SUB010", len(absent), seen=few(absent)))
    extra = [n for n in extra if n not in twins]
    index = [n for n in extra if n == names[0] and re.fullmatch(r"|index|Unnamed: \d+|rownames", n)]
    if index:
        problems.append(Problem("SUB012", column=index[0], line=1))
    if others := [n for n in extra if n not in index]:
        problems.append(Problem("SUB011", len(others), line=1, seen=few(others)))
    frame = frame.rename(columns=twins)
    if [n for n in frame.columns if n in wanted] != [n for n in wanted if n in frame.columns]:
        problems.append(Problem("SUB013", line=1, seen=f"the sample has {few(wanted, limit=12)}"))
    return frame, problems


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-\ufeff]", "", name).casefold()


# what may have happened to an id on the way: two ids that are equal after the change are the same image's
_CHANGES: dict[str, Callable[[str], str]] = {
    "SUB025": lambda name: re.sub(rf"\s*({PAIR.strip()}|^|$)\s*", r"\1", name),
    "SUB008": lambda name: name.strip(QUOTES),
    "SUB024": lambda name: re.sub(rf"(^|{PAIR})0+", r"\1", name),
    "SUB026": lambda name: re.sub(r"\.0*$", "", name),
    "SUB027": lambda name: PurePosixPath(name).stem,
    "SUB028": str.casefold,
}


def ids(frame: pd.DataFrame, sample: pd.DataFrame, key: str) -> Iterator[Problem]:
    """Compare the ids of a submission with the sample's, which are known to differ from each other."""
    import pandas as pd

    if key not in frame.columns:
        return
    if arrow_csv.text(frame[key]).equals(arrow_csv.text(sample[key])):
        return
    ours, wanted = (pd.Index(arrow_csv.text(table[key]).to_pylist(), dtype=object) for table in (frame, sample))
    empty = np.asarray(ours == "")
    repeated = np.asarray(ours.duplicated()) & ~empty
    yield from at("SUB023", empty, frame, "")
    yield from at("SUB022", repeated, frame, key)
    missing = [str(name) for name in wanted[~wanted.isin(ours)]]
    extra = {str(ours[i]): int(i) for i in np.flatnonzero(~ours.isin(wanted) & ~empty & ~repeated)}
    for code, change in _CHANGES.items():
        origin = {change(name): name for name in missing}
        changed = {name: origin[change(name)] for name in extra if change(name) in origin}
        if changed:
            name = next(iter(changed))
            yield from at(
                code, _mask(len(ours), [extra[n] for n in changed]), frame, key, seen=f"{name!r} for {changed[name]!r}"
            )
            missing = [name for name in missing if name not in set(changed.values())]
            extra = {name: row for name, row in extra.items() if name not in changed}
    yield from of_ids("SUB020", missing)
    yield from at("SUB021", _mask(len(ours), list(extra.values())), frame, key)
    if len(ours) == len(wanted) and not missing and not extra and not repeated.any() and not empty.any():
        place = wanted.get_indexer(ours)
        if (place >= 0).all() and (np.diff(place) < 0).any():
            yield Problem("SUB029")


def at(code: str, mask: Bools, frame: pd.DataFrame, key: str, column: str = "", seen: str = "") -> Iterator[Problem]:
    """One finding about the rows of a bool mask [N]; none if it is all false. `frame.index` counts data lines from 0."""
    rows = np.flatnonzero(mask)
    if rows.size:
        names = tuple(str(name) for name in frame[key].iloc[rows[:SHOWN]]) if key in frame.columns else ()
        yield Problem(code, int(rows.size), column, int(frame.index[rows[0]]) + 2, names, seen)


def _mask(size: int, rows: Sequence[int] | Ints) -> Bools:
    mask = np.zeros(size, dtype=bool)
    mask[np.asarray(rows, dtype=np.int64)] = True
    return mask


_NAN = {"nan", "-nan", "na", "n/a", "<na>", "null", "none", "#n/a"}
_INF = {sign + word for sign in ("", "+", "-") for word in ("inf", "infinity")}


def probabilities(frame: pd.DataFrame, key: str, column: str) -> tuple[NDArray[np.float64], list[Problem]]:
    """The numbers of one column (float64 [N], NaN where a cell is none) and what is wrong with them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = arrow_csv.text(frame[column])
    problems: list[Problem] = []
    try:
        numbers = cells.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        cells = pc.utf8_trim_whitespace(cells)
        good = pc.match_substring_regex(cells, r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$")
        numbers = pc.if_else(good, cells, "nan").cast(pa.float64()).to_numpy(zero_copy_only=False)
    numbers = np.where(np.isinf(numbers), np.nan, numbers)
    bad = np.flatnonzero(np.isnan(numbers))
    words = cells.take(pa.array(bad)).to_pylist()
    kinds = np.array([_no_number(word) for word in words], dtype=object)
    for code in ("SUB030", "SUB031", "SUB032", "SUB033"):
        hit = kinds == code
        seen = few(dict.fromkeys(words[i] for i in np.flatnonzero(hit))) if code == "SUB033" else ""
        problems += at(code, _mask(len(numbers), bad[hit]), frame, key, column, seen)
    outside = (numbers < 0) | (numbers > 1)
    if outside.any():
        seen = f"{np.nanmin(numbers):.6g} to {np.nanmax(numbers):.6g}"
        problems += at("SUB034", outside, frame, key, column, seen)
    return numbers, problems


def _no_number(word: str) -> str:
    plain = word.strip().casefold()
    if not plain:
        return "SUB030"
    return "SUB031" if plain in _NAN else "SUB032" if plain in _INF or re.fullmatch(r"[+-]?[\d.]+e\+?\d+", plain) else "SUB033"


def row_sums(frame: pd.DataFrame, key: str, total: NDArray[np.float64]) -> Iterator[Problem]:
    """Find rows whose probabilities do not sum to 1; rows with a NaN were found before."""
    gap = np.abs(total - 1)
    for code, off in (("SUB035", gap > ROW_SUM), ("SUB037", (gap > STRICT_SUM) & (gap <= ROW_SUM))):
        if off.any():
            yield from at(code, off, frame, key, seen=f"sums from {total[off].min():.6g} to {total[off].max():.6g}")


def labels(frame: pd.DataFrame, key: str, column: str, classes: Sequence[str], *, names: bool = True) -> Iterator[Problem]:
    """Check a column with one of `classes` per cell; `names` says that they are names, each to be expected somewhere."""
    import pyarrow.compute as pc

    encoded = pc.dictionary_encode(arrow_csv.text(frame[column]))
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    words = encoded.dictionary.to_pylist()
    yield from _words(frame, key, column, words, codes, np.arange(len(codes)), classes)
    if names and len(codes) >= 10 * len(classes) and (absent := sorted(set(classes) - set(words))):
        yield Problem("SUB043", len(absent), column, seen=few(absent))


def lists(frame: pd.DataFrame, key: str, column: str, classes: Sequence[str], separator: str, k: int = 0) -> Iterator[Problem]:
    """Check a column with several of `classes` per cell: at most `k` of them in order of rank, or any number if `k` is 0."""
    import pyarrow.compute as pc

    split = pc.split_pattern(arrow_csv.text(frame[column]), separator)
    flat, rows = pc.list_flatten(split), pc.list_parent_indices(split).to_numpy(zero_copy_only=False)
    some = pc.not_equal(flat, "")
    encoded = pc.dictionary_encode(flat.filter(some))
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    rows = rows[some.to_numpy(zero_copy_only=False)]
    words = encoded.dictionary.to_pylist()
    yield from _words(frame, key, column, words, codes, rows, classes)
    count = np.bincount(rows, minlength=len(frame))
    different = np.bincount(np.unique(rows * (len(words) + 1) + codes) // (len(words) + 1), minlength=len(frame))
    yield from at("SUB051", count > different, frame, key, column)
    yield from at("SUB030" if k else "SUB053", count == 0, frame, key, column)
    if k:
        yield from at("SUB050", count > k, frame, key, column, f"{count.max(initial=0)} for {k}")
        yield from at("SUB052", (count > 0) & (count < k), frame, key, column, f"{k} are allowed")


def _words(
    frame: pd.DataFrame, key: str, column: str, words: list[str], codes: Ints, rows: Ints, classes: Sequence[str]
) -> Iterator[Problem]:
    """Find words that are no class; word `codes[i]` stands in row `rows[i]`."""
    known, spellings = set(classes), {_spelling(name) for name in classes}
    kinds = np.array([_no_class(word, known, spellings) for word in words], dtype=object)
    for kind in sorted(set(kinds) - {""}):
        hit = np.flatnonzero(kinds == kind)
        mask = _mask(len(frame), rows[np.isin(codes, hit)])
        yield from at(kind, mask, frame, key, column, "" if kind == "SUB030" else few(words[i] for i in hit))


def _no_class(word: str, known: set[str], spellings: set[str]) -> str:
    if word in known:
        return ""
    plain = word.strip()
    if not plain:
        return "SUB030"
    if _spelling(word) in spellings:
        return "SUB042"
    if plain.strip(QUOTES) != plain and _spelling(plain.strip(QUOTES)) in spellings:
        return "SUB008"
    if (whole := re.fullmatch(r"([+-]?\d+)\.0*", plain)) and _spelling(whole[1]) in spellings:
        return "SUB041"
    if plain.casefold() in _NAN:
        return "SUB031"
    return "SUB044" if plain.isdecimal() and not any(name.isdecimal() for name in known) else "SUB040"


def _spelling(name: str) -> str:
    return name.strip().casefold().lstrip("0") or "0"
