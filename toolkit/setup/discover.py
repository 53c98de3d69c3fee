"""What `toolkit init` finds in a folder: tables, id column, targets, image folders; never guessed, each proved or asked for."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.base import files, provenance
from toolkit.base.text import csv_text
from toolkit.core.alignment import spelled
from toolkit.core.metrics import METRICS
from toolkit.core.twins import twins_note
from toolkit.errors import CompetitionError, counted, few
from toolkit.images import boxes, statistics
from toolkit.setup import find_images, infer_targets, mask_data
from toolkit.setup.find_images import Index, Match, Part
from toolkit.setup.infer_targets import Findings, Tables, Wishes
from toolkit.workspace import path_patterns, toml_update
from toolkit.workspace.competition import FILE, Competition, Images
from toolkit.workspace.make_split import SEVERAL

if TYPE_CHECKING:
    import pandas as pd

MADE = "train.csv"  # the table that is written for class-per-folder trees
_PACKED = re.compile(r"\.(?:zip|tar|tgz|tar\.gz|tar\.xz|tar\.bz2|7z|rar)$", re.IGNORECASE)
_ROLES = {
    "sample": re.compile(r"sample|submission_format", re.IGNORECASE),
    "train": re.compile(r"^(train|labels?|annotations?)", re.IGNORECASE),
    "test": re.compile(r"^(test|eval|info)", re.IGNORECASE),
}


@dataclass(frozen=True)
class Discovery:
    """A competition, `lines` that say what was concluded, the text of a table that has to be made, and a recipe for it."""

    competition: Competition
    lines: tuple[str, ...]
    table: str = ""
    recipe: str = "timm_kfold"

    def write(self, *, force: bool = False) -> Path:
        """Write competition.toml (before it the table of images, if one has to be made); files that exist stay unless `force`.

        Raises:
            CompetitionError: a file is already there.
            StoreError: the workspace cannot be written.
        """
        root = self.competition.root
        made = [self.competition.train.table] if self.table else []
        for name in (FILE, *made):
            refuse_existing(root / name, force=force)
        for name in made:
            files.write_text(root / name, self.table)
        return toml_update.write(self.competition)


@dataclass(frozen=True)
class _Source:
    """A table on disk, or one made from class folders (its path is where it will stand)."""

    path: Path
    frame: pd.DataFrame

    @property
    def columns(self) -> dict[str, list[str]]:
        return {str(name): list(self.frame[name]) for name in self.frame.columns}


def refuse_existing(path: Path, *, force: bool) -> None:
    """Make sure that nothing is overwritten by accident.

    Raises:
        CompetitionError: the file exists and `force` is not set.
    """
    if path.exists() and not force:
        raise CompetitionError(f"{path} exists", code="file-exists")


def discover(root: Path, wishes: Wishes) -> Discovery:
    """Look at a folder (and its `data`, or at `wishes.data`) and describe the competition.

    Raises:
        CompetitionError: all that is ambiguous or missing, each with the wish that says it; or a table that cannot be read.
    """
    root = _absolute(root)
    places = _places(root, wishes)
    if wishes.only("data", "metric", "name") and (home := next(filter(mask_data.is_there, places), None)):
        return _masks(root, home, wishes)
    findings = Findings()
    named = [_absolute(root / d) for d in (wishes.train_images, wishes.test_images) if d]
    images = find_images.index([*places, *named])
    tables = {role: _table(role, places, root, wishes, findings) for role in _ROLES}
    sample = tables["sample"] or tables["test"]
    made = ""
    if tables["train"] is None and not findings.questions:
        tables["train"], made = _from_folders(root, images, sample, wishes, findings)
    if tables["train"] is None and not any(q.wish == "train" for q in findings.questions):
        others = [path for path in _csvs(places) if sample is None or path != sample.path]
        why = f"no table of labels (train*.csv, labels*.csv) and no folders named after classes in {places[0]}"
        findings.ask("train", why, (_written(path, root) for path in others))
    if sample is None and not any(q.wish == "sample" for q in findings.questions):
        findings.ask("sample", "no sample submission (*sample*.csv, info.csv, test.csv)", _csvs(places))
    if sample is not None and len(sample.frame.columns) == 1 and not any(q.wish == "sample" for q in findings.questions):
        why = f"{_columns_of(sample)} lists ids alone: a sample submission says what is asked for"
        findings.ask("sample", why, (_written(path, root) for path in _csvs(places) if path != sample.path))
    if not wishes.metric:
        findings.ask("metric", "the metric stands in the rules, not in the data", METRICS)
    if tables["train"] is None or sample is None:
        findings.check()
    assert tables["train"] is not None
    assert sample is not None
    competition = _describe(root, tables["train"], tables["test"], sample, images, wishes, findings)
    recipe = "multilabel" if any(target.multilabel for target in competition.targets) else "timm_kfold"
    return Discovery(competition, tuple(findings.lines), made, recipe)


def _masks(root: Path, home: Path, wishes: Wishes) -> Discovery:
    """AI Stages' mask competition, whose rows are people and whose labels are in the names of their pictures."""
    competition, table = mask_data.describe(root, home)
    competition = replace(competition, metric=wishes.metric or competition.metric, name=wishes.name or competition.name)
    target = competition.targets[0]
    listed = csv_text.cells(competition.path(competition.sample), ["ImageID"], unique="ImageID")["ImageID"]
    there = {
        name for names in find_images.index([competition.path(competition.test.folder)]).folders.values() for name in names
    }
    if lost := [name for name in listed if name not in there]:
        raise CompetitionError(
            f"{competition.test.folder} lacks {counted(len(lost), 'images')} of {competition.sample}: {few(lost)}"
        )
    count = table.count("\n") - 1
    lines = (
        "AI Stages' mask competition, set up as recipes/mask_profile.py --data does it",
        f"train images: {competition.train.folder}, listed in a new {competition.train.table} ({counted(count, 'images')})",
        f"test images: {competition.test.folder}, all {len(listed):,} of {competition.sample} are there",
        f"target {target.name}: {' × '.join(target.factors)}, {counted(len(target.classes), 'classes')} in that order: "
        + ", ".join(target.classes[:7])
        + " …",
        f"metric: {competition.metric}" + ("" if wishes.metric else ", that of its rules; --metric names another"),
        "group column: person, since seven pictures (and further ones, as 001498-1) show one",
    )
    return Discovery(competition, lines, table, "mask_profile")


def _describe(
    root: Path, train: _Source, test: _Source | None, sample: _Source, images: Index, wishes: Wishes, findings: Findings
) -> Competition:
    key, sample_key = _ids(train, sample, wishes, findings)
    for wish, name in (("group", wishes.group), ("extra", wishes.extra)):
        if name and name not in train.frame.columns:
            findings.ask(wish, f"{train.path.name} has no column {name!r}", train.frame.columns)
    train_match = _match("train", train, key, images, root, wishes, findings)
    listing = test if test is not None and test is not sample and sample_key in test.frame.columns else None
    like = train_match.pattern if train_match else ""
    test_match = _match("test", listing or sample, sample_key, images, root, wishes, findings, like=like)
    used = frozenset({wishes.group, wishes.extra, *(path_patterns.columns(train_match.pattern) if train_match else ())})
    targets = infer_targets.targets(Tables(train.frame, sample.frame, key, sample_key, used), wishes, findings) if key else ()
    if key:
        _several_images(key, train, (train_match, test_match), wishes, findings)
    if not key or not targets or train_match is None or test_match is None:
        findings.check()
    assert train_match is not None
    assert test_match is not None
    _say_columns(train, wishes, key, targets, findings)
    names = [(target.classes, f"classes of {target.name!r}", "") for target in targets]
    if wishes.group:
        names.append((tuple(train.columns[wishes.group]), "groups", "; rows of one may stand in two folds, which is a leak"))
    for column, what, end in names:
        if note := twins_note(column, what):
            findings.say(f"Warning: {note}{end}")
    competition = Competition(
        root=root,
        name=wishes.name or root.name,
        metric=wishes.metric or next(iter(METRICS)),
        targets=targets,
        train=_images(train_match, train, root),
        test=_images(test_match, listing, root),
        id=key,
        sample_id=sample_key,
        group=wishes.group,
        extra=wishes.extra,
        per_id=wishes.per_id,
        encoding=wishes.encoding,
        delimiter=wishes.delimiter,
        sample=_written(sample.path, root),
    )
    competition = _pixels(
        replace(competition, format=_format(sample.frame, competition, wishes, findings)), train_match, test_match, findings
    )
    findings.check()
    for target in targets:
        target.truth(train.frame, map(str, range(len(train.frame))), str(train.path))
    return competition


def _pixels(competition: Competition, train: Match, test: Match, findings: Findings) -> Competition:
    """The competition with what pictures of its kind need behind their transparent pixels; what is odd about them is said."""
    files = [path for match in (train, test) for name in match.files if name and (path := Path(match.folder, name)).is_file()]
    peculiar = statistics.peculiar(files)
    seen = replace(competition, alpha=peculiar.behind)
    for note in peculiar.notes(seen.alpha, None):
        findings.say(f"pictures: {note}")
    return seen


def _places(root: Path, wishes: Wishes) -> list[Path]:
    """The folders that are searched: the data folder, or the workspace, and their `data`."""
    start = _absolute(root / wishes.data)
    if not start.is_dir():
        raise CompetitionError(f"{start} is not a folder")
    if any("\ud800" <= letter <= "\udfff" for letter in str(root)):  # half a character: bytes that are no text
        raise CompetitionError(
            f"the name of the folder {root} is not UTF-8, and no model is opened in such a one", hint="Rename it."
        )
    return [start, *([start / "data"] if (start / "data").is_dir() else [])]


def _csvs(places: Iterable[Path]) -> list[Path]:
    """CSV files in the searched folders and one level below, but for a workspace's own."""
    paths: dict[Path, None] = {}
    for place in places:
        below = [
            p for p in sorted(place.iterdir()) if p.is_dir() and not p.name.startswith(".") and p.name not in find_images.OURS
        ]
        for folder in (place, *below):
            with os.scandir(folder) as entries:
                names = sorted(e.name for e in entries if e.name.lower().endswith(".csv") and not e.name.startswith("."))
            paths |= dict.fromkeys(folder / name for name in names)
    return list(paths)


def _table(role: str, places: list[Path], root: Path, wishes: Wishes, findings: Findings) -> _Source | None:
    """The table that plays a role: the one that was named, or the only one whose name says so."""
    if named := getattr(wishes, role):
        return _read(root / named, wishes, findings)
    fits = [
        p for p in _csvs(places) if _ROLES[role].search(p.stem) and (role == "sample" or not _ROLES["sample"].search(p.stem))
    ]
    if len(fits) > 1:
        findings.ask(role, "several tables could be it", (_written(p, root) for p in fits))
        return None
    return _read(fits[0], wishes, findings) if fits else None


def _read(path: Path, wishes: Wishes, findings: Findings) -> _Source:
    """A table, and a line on how it was read where that is not plain UTF-8 with commas."""
    frame = csv_text.read(path, form=wishes.text_form)
    if note := csv_text.note(path, wishes.text_form):
        findings.say(note)
    return _Source(path, frame)


def _from_folders(
    root: Path, images: Index, sample: _Source | None, wishes: Wishes, findings: Findings
) -> tuple[_Source | None, str]:
    """A training table of a tree whose folders are named after classes: id, label, path."""
    import pandas as pd

    homes = find_images.class_folders(images, folder=_absolute(root / wishes.train_images) if wishes.train_images else None)
    if len(homes) != 1:
        if homes:
            findings.ask("train_images", "several folders hold one folder per class", (_written(Path(f), root) for f in homes))
            findings.ask("train", "or name a table of labels")
        return None, ""
    asked = [str(name) for name in sample.frame.columns] if sample else []
    key = wishes.id or (asked[0] if asked else "id")
    label = next(iter(wishes.target), asked[1] if len(asked) == 2 and asked[1] != key else "label")
    below = {f: names for f, names in sorted(images.folders.items()) if posixpath.dirname(f) == homes[0]}
    paths = [f"{posixpath.basename(f)}/{name}" for f, names in below.items() for name in names]
    stems = [Path(path).stem for path in paths]
    ids = stems if len(set(stems)) == len(stems) else paths
    names = _class_names(sorted({path.partition("/")[0] for path in paths}))
    rows = [(name, names[path.partition("/")[0]], path) for name, path in zip(ids, paths, strict=True)]
    frame = pd.DataFrame(rows, columns=[key, label, "path"], dtype=str)
    findings.say(
        f"training labels: the folders in {_written(Path(homes[0]), root)}, "
        f"listed in a new {MADE} ({counted(len(rows), 'images')})"
    )
    return _Source(root / MADE, frame), files.as_csv([frame.columns, *rows])


def _class_names(folders: Iterable[str]) -> dict[str, str]:
    """Folder → the class: its name in the normal form of tables (a Mac's archives have another), where names stay apart."""
    names = {folder: unicodedata.normalize("NFC", folder) for folder in folders}
    return names if len(set(names.values())) == len(names) else {folder: folder for folder in names}


def _ids(train: _Source, sample: _Source, wishes: Wishes, findings: Findings) -> tuple[str, str]:
    """The columns that name a row, of train.csv and of the sample: one that both have, or one of each; "" if it is asked."""
    both = [str(name) for name in sample.frame.columns if name in train.frame.columns]
    key, sample_key = wishes.id, wishes.sample_id or (wishes.id if wishes.id in both else "")
    if not key and not sample_key:
        unique = [name for name in both if _names_rows(sample, name)]
        shared = [name for name in unique if train.frame[name].is_unique] or unique
        if len(shared) > 1:
            where = f"both {_columns_of(train)} and {_columns_of(sample)}"
            findings.ask("id", f"several columns could name a row in {where}", shared)
            return "", ""
        key = sample_key = shared[0] if shared else ""
    key = key or _only("id", train, [name for name in map(str, train.frame.columns) if _names_rows(train, name)], findings)
    theirs = [name for name in map(str, sample.frame.columns) if name not in both and _names_rows(sample, name)]
    sample_key = sample_key or _only("sample_id", sample, theirs, findings)
    for wish, source, name in (("id", train, key), ("sample_id" if wishes.sample_id else "id", sample, sample_key)):
        if name and name not in source.frame.columns:
            findings.ask(wish, f"{source.path.name} has no column {name!r}", both or source.frame.columns)
            return "", ""
    if not key or not sample_key:
        return "", ""
    csv_text.read(sample.path, columns=[sample_key], unique=sample_key, form=wishes.text_form)
    other = f"{sample_key} in " if sample_key != key else ""
    findings.say(
        f"id column: {key} - in {train.path.name} ({counted(len(train.frame), 'rows')}) "
        f"and {other}{sample.path.name} ({counted(len(sample.frame), 'rows')})"
    )
    return key, sample_key


def _names_rows(source: _Source, column: str) -> bool:
    cells = source.frame[column]
    return bool(cells.is_unique and (cells != "").all())


def _only(wish: str, source: _Source, columns: list[str], findings: Findings) -> str:
    """The one column that can name a row, or the one of them that calls itself an id."""
    named = [name for name in columns if re.search(r"(^|[\W_])[iI][dD]$|[a-z]I[dD]$", name)]
    for candidates in (columns, named):
        if len(candidates) == 1:
            return candidates[0]
    which = "several columns could name a row" if columns else "no column names every row"
    findings.ask(wish, f"{which} in {_columns_of(source)}", columns)
    return ""


def _columns_of(source: _Source) -> str:
    return f"{source.path.name} ({few(source.frame.columns, limit=8)})"


def _match(
    part: Part, source: _Source, key: str, images: Index, root: Path, wishes: Wishes, findings: Findings, like: str = ""
) -> Match | None:
    """Where the images of a part are, if one folder and pattern give nearly every row its file."""
    wanted = wishes.train_images if part == "train" else wishes.test_images
    folder = _absolute(root / wanted) if wanted else None
    if folder and not folder.is_dir():
        findings.ask(f"{part}_images", f"{folder} is not a folder")
        return None
    if wishes.pattern:
        path_patterns.require(wishes.pattern, list(source.frame.columns), source.path.name)
    matches = find_images.matches(source.columns, images, part=part, key=key, like=like, folder=folder, pattern=wishes.pattern)
    name = source.path.name
    if not matches:
        where = f"below {wanted}" if wanted else "in the folders searched"
        why = f"no image files {where} fit the rows of {name}" + (f" by pattern {wishes.pattern!r}" if wishes.pattern else "")
        why += "; a pattern says how a row names its file, as in '{id}.png'"
        packed = sorted(path for top in images.tops if top.is_dir() for path in top.glob("*") if _PACKED.search(path.name))
        if spelling := spelled(source.columns[key] if key in source.frame.columns else [], list(images.stems)):
            why += f"; rows and files differ in {spelling}"
        why += f"; they may still be packed: unpack {few(_written(path, root) for path in packed)} first" if packed else ""
        findings.ask(f"{part}_images", why, instead="pattern")
        return None
    if len(matches) > 1:
        places = [f"{_written(Path(m.folder), root)} with {m.pattern}" for m in matches]
        findings.ask(f"{part}_images", f"several kinds of files fit the rows of {name}", places, instead="pattern")
        return None
    match = matches[0]
    lost = [i for i, file in enumerate(match.files) if not file]
    names = source.columns[key] if key in source.frame.columns else [str(i) for i in range(len(match.files))]
    missing = f"; {len(lost):,} not there: {few(names[i] for i in lost)}" if lost else ""
    covered = f"{match.found:,} of {counted(len(match.files), 'rows')} of {name}{missing}"
    findings.say(f"{part} images: {_written(Path(match.folder), root)}/{match.pattern} - {covered}")
    if match.note:
        findings.say(f"{part} images: {match.note}")
    return match


def _images(match: Match, source: _Source | None, root: Path) -> Images:
    return Images(_written(Path(match.folder), root), match.pattern, _written(source.path, root) if source else "")


def _several_images(key: str, train: _Source, matches: tuple[Match | None, ...], wishes: Wishes, findings: Findings) -> None:
    """Whether an id has several images, which must be said: it decides what a row of predictions is."""
    several = not train.frame[key].is_unique or any(m is not None and m.pattern.endswith("/*") for m in matches)
    if several and not wishes.per_id:
        most = int(train.frame[key].value_counts().max())
        why = (
            f"an id has several images (up to {counted(most, 'rows')} in {train.path.name})"
            if most > 1
            else "a folder of images belongs to one id"
        )
        findings.ask("per_id", f"{why}: how are their predictions merged", ("mean", "max"))
    train_match = matches[0]
    if not train.frame[key].is_unique or (train_match is not None and train_match.pattern.endswith("/*")):
        findings.say(f"train images: {SEVERAL}")


def _format(sample: pd.DataFrame, competition: Competition, wishes: Wishes, findings: Findings) -> str:
    """The submission format: named, or the only one that fits under the metric (under any, where that is still to be said)."""
    from toolkit.submissions.form.layout import infer_format

    error = None
    for metric in [wishes.metric] if wishes.metric else METRICS:
        try:
            inferred = infer_format(sample, replace(competition, metric=metric, format=wishes.format))
        except CompetitionError as problem:
            error = problem
        else:
            findings.say(f"submission format: {inferred}")
            return inferred
    assert error is not None
    findings.ask("format", f"{error.message}. {error.hint}")
    return ""


def _say_columns(train: _Source, wishes: Wishes, key: str, targets: Iterable[Any], findings: Findings) -> None:
    taken = {
        key,
        *(t.column for t in targets),
        *(f for t in targets for f in t.factors),
        *(c for t in targets for c in t.classes),
    }
    repeated = [str(n) for n in train.frame.columns if n not in taken and 1 < train.frame[n].nunique() < len(train.frame)]
    hint = f" (columns that repeat: {few(repeated)})" if repeated else ""
    findings.say(f"group column: {wishes.group}" if wishes.group else f"group column: none, use --group{hint}")
    if wishes.extra:
        findings.say(f"extra rows: marked in column {wishes.extra}")
    if box := boxes.likely([str(name) for name in train.frame.columns]):
        quoted = ", ".join(f'"{name}"' for name in box.columns)
        findings.say(
            f'box columns, it seems: to cut them out, add [boxes.NAME] with columns = [{quoted}] and form = "{box.form}", '
            f"train with --box NAME"
        )


def _written(path: Path, root: Path) -> str:
    """How a path stands in competition.toml: relative inside the workspace, else absolute."""
    return provenance.from_inside(_absolute(path), root)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the user's links


def factors(texts: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """The factors of a joint target from texts such as `mask=wear,incorrect,normal`.

    Raises:
        CompetitionError: a text of another form, or a name twice.
    """
    by_name: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, classes = text.partition("=")
        if not equals or not name or len(parts := tuple(part.strip() for part in classes.split(","))) < 2 or name in by_name:
            raise CompetitionError(
                f"factor {text!r} is not of the form mask=wear,incorrect,normal", hint="Name each factor once.", code="factor"
            )
        by_name[name] = parts
    return by_name
