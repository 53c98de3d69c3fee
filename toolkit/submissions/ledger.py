"""The ledger: every submission that was written, kept with its manifest under a short name, and what it scored."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from toolkit.base import files, provenance, sealed
from toolkit.ensemble import evidence
from toolkit.errors import DataError, SubmissionError, few
from toolkit.submissions.manifest import path_of, read, text
from toolkit.workspace.competition import Competition

FOLDER = "submissions"
SCORES = "scores.json"
UPLOADS = "uploads.json"
SHORT = 8  # hex digits of the content's digest that name a submission
FEW = 3  # fewer pairs of scores have no correlation worth a number

Board = Literal["public", "private"]


@dataclass(frozen=True)
class Entry:
    """One kept submission: its name, file, manifest, the scores that the platform gave it, where known, and its uploads.

    An upload says `to`, `at` (UTC) and the platform's `reply`.
    """

    id: str
    path: Path
    manifest: Mapping[str, Any]
    public: float | None = None
    private: float | None = None
    uploads: tuple[Mapping[str, str], ...] = ()

    @property
    def created(self) -> datetime:
        """When it was written or taken in (UTC)."""
        return datetime.fromisoformat(self.manifest["created"])

    @property
    def source(self) -> str:
        """The predictions it was made of, or who made it."""
        return str(self.manifest.get("from") or self._meta.get("name", ""))

    @property
    def out_of_fold(self) -> float | None:
        """What its predictions would score out of fold as they were made, where that is known."""
        score = self.manifest.get("scores", {}).get("out_of_fold")
        return None if score is None else float(score)

    @property
    def evidence(self) -> str:
        """What kind of number `out_of_fold` is, or why there is none."""
        return evidence.kind(self.manifest.get("scores", {}))

    @property
    def views(self) -> str:
        """The views of its predictions, as they were asked for."""
        return evidence.described(self._meta)["views"]

    @property
    def vote(self) -> str:
        """How its models voted; that a blend was applied."""
        return evidence.described(self._meta)["vote"]

    @property
    def _meta(self) -> Mapping[str, Any]:
        meta: Mapping[str, Any] = self.manifest.get("predictions", {}).get("meta", {})
        return meta

    @property
    def record(self) -> dict[str, Any]:
        """The entry as plain values, for machines."""
        scores = {"out_of_fold": self.out_of_fold, "public": self.public, "private": self.private}
        head = {"id": self.id, "created": self.manifest["created"], "source": self.source}
        how = {"views": self.views, "vote": self.vote, "evidence": self.evidence}
        how |= {"optimistic": str(self.manifest.get("scores", {}).get("optimistic", ""))}
        return head | scores | how | {"uploads": [dict(upload) for upload in self.uploads]}

    @property
    def noise(self) -> float:
        """Half the width of the out-of-fold score's interval."""
        interval = self.manifest.get("scores", {}).get("interval")
        return (interval[1] - interval[0]) / 2 if interval else 0.0


def entries(competition: Competition) -> list[Entry]:
    """Every submission that was kept, the oldest first; one whose manifest is damaged is left out, and its file stays.

    Raises:
        DataError: the scores cannot be read, or a manifest is of a newer version.
    """
    folder = competition.path(FOLDER)
    scores, uploads = _scores(folder), _uploads(folder)
    known = {path.stem: (path, _manifest(path)) for path in sorted(folder.glob("*.csv")) if path_of(path).is_file()}
    kept = [
        Entry(name, path, manifest, **scores.get(name, {}), uploads=tuple(uploads.get(name, ())))
        for name, (path, manifest) in known.items()
        if manifest is not None
    ]
    return sorted(kept, key=lambda entry: (entry.created, entry.id))


def keep(competition: Competition, path: Path, manifest: Mapping[str, Any]) -> str:
    """Copy a submission and its manifest into the ledger, the manifest last; the same bytes are kept once.

    Made again, they are dated anew; a teammate's copy of what is here changes nothing.

    Raises:
        StoreError: the folder cannot be written.
        DataError: the submission cannot be read.
    """
    digest = manifest["output"]["sha256"]
    folder = competition.path(FOLDER)
    name: str = next(digest[:n] for n in range(SHORT, 65) if not _taken(folder / f"{digest[:n]}.csv", digest))
    kept = folder / f"{name}.csv"
    if not path_of(kept).is_file():
        files.write(kept, lambda file: _copy(path, file))
    elif manifest.get("from"):
        return name
    files.write_text(path_of(kept), text(manifest))
    return name


def _taken(kept: Path, digest: str) -> bool:
    """Whether another submission has that name."""
    manifest = _manifest(kept) if path_of(kept).is_file() else None
    return manifest is not None and bool(manifest["output"]["sha256"] != digest)


def _manifest(kept: Path) -> dict[str, Any] | None:
    """The manifest of a kept submission; None where it was damaged and is set aside now."""
    try:
        return read(path_of(kept))
    except sealed.DamagedError as error:
        sealed.set_aside(path_of(kept), error.message.partition(": ")[2], f"{kept.name} stays and is not listed")
        return None


def _copy(path: Path, file: IO[bytes]) -> None:
    """By the kernel where it can: 231 MB take 0.1 s instead of 0.7, and no time at all where blocks can be shared."""
    with files.opened(path) as source:
        if hasattr(os, "copy_file_range"):
            try:
                while os.copy_file_range(source.fileno(), file.fileno(), 1 << 30):
                    pass
                return
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
        shutil.copyfileobj(source, file, 1 << 24)


def find(competition: Competition, name: str) -> Entry:
    """The submission whose name starts so; `last` is the last one.

    Raises:
        SubmissionError: none does, or several do.
    """
    every = entries(competition)
    if name == "last" and every:
        return every[-1]
    matches = [entry for entry in every if name and entry.id.startswith(name)]
    if len(matches) != 1:
        named = f"{'several submissions are' if matches else 'no submission is'} named {name!r}"
        raise SubmissionError(
            f"{named}; there are {few(entry.id for entry in every)}" if every else f"{named}: none was written yet",
            hint="`toolkit submissions` lists them.",
        )
    return matches[0]


def score(competition: Competition, name: str, value: float, board: Board) -> Entry:
    """Note what the platform gave a submission.

    Raises:
        SubmissionError: no such submission, or no number.
        StoreError: the note cannot be written.
    """
    if not math.isfinite(value):
        raise SubmissionError(f"{value} is not a score")
    entry = find(competition, name)
    folder = competition.path(FOLDER)
    scores = _scores(folder)
    scores.setdefault(entry.id, {})[board] = value
    sealed.write_json(folder / SCORES, dict(sorted(scores.items())), indent=1)
    return find(competition, entry.id)


def sent(competition: Competition, name: str, where: str, reply: str) -> None:
    """Note that a submission was uploaded.

    Raises:
        StoreError: the note cannot be written.
        DataError: the notes cannot be read.
    """
    folder = competition.path(FOLDER)
    uploads = _uploads(folder)
    uploads.setdefault(name, []).append({"to": where, "at": provenance.now(), "reply": reply})
    sealed.write_json(folder / UPLOADS, dict(sorted(uploads.items())), indent=1)


def _uploads(folder: Path) -> dict[str, list[dict[str, str]]]:
    raw = _notes(folder / UPLOADS, "Mend it, or delete it: it only says what was uploaded when.")
    try:
        return {
            name: [{key: str(upload[key]) for key in ("to", "at", "reply")} for upload in uploads]
            for name, uploads in raw.items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / UPLOADS} cannot be read: {error!r}", hint="Mend it, or delete it.") from error


def _scores(folder: Path) -> dict[str, dict[str, float]]:
    raw = _notes(folder / SCORES, "Mend it, or delete it and note the scores again.")
    try:
        scores = {
            name: {b: float(dict(boards)[b]) for b in ("public", "private") if b in boards} for name, boards in raw.items()
        }
        if not all(math.isfinite(score) for boards in scores.values() for score in boards.values()):
            raise ValueError("a score is no number")
        return scores
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{folder / SCORES} cannot be read: {error}", hint="Mend it, or delete it.") from error


def _notes(path: Path, cure: str) -> dict[str, Any]:
    """What a file of notes says, nothing where there is none."""
    try:
        return sealed.read_json(path) or {}
    except sealed.DamagedError as error:
        cure += f" After mending, leave its {sealed.KEY!r} out."
        raise DataError(f"{path} cannot be read: {error.message}", hint=cure) from error


def correlation(every: Sequence[Entry], board: Board = "public") -> float | None:
    """Spearman's rank correlation of the out-of-fold scores with a board's; None for too few or constant ones."""
    pairs = [(e.out_of_fold, getattr(e, board)) for e in every if e.out_of_fold is not None and getattr(e, board) is not None]
    if len(pairs) < FEW:
        return None
    first, second = (_ranks(np.array(column)) for column in zip(*pairs, strict=True))
    if not first.std() or not second.std():
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Any) -> Any:
    """Ranks from 0, the mean of them where values tie."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[place]


def warning(competition: Competition, every: Sequence[Entry]) -> str:
    """A sentence if the best of the public board is worse out of fold than noise explains; else nothing."""
    gain = competition.score.gain
    both = [e for e in every if e.out_of_fold is not None and e.public is not None]
    if not both:
        return ""
    by_public = max(both, key=lambda e: gain(e.public or 0.0))
    by_fold = max(both, key=lambda e: gain(e.out_of_fold or 0.0))
    lost = gain(by_fold.out_of_fold or 0.0) - gain(by_public.out_of_fold or 0.0)
    noise = max(by_public.noise, by_fold.noise)
    if lost <= noise:
        return ""
    return (
        f"{by_public.id} is best on the public board, but out of fold it is {lost:.4g} behind {by_fold.id}, more than the "
        f"noise of ±{noise:.2g}: picking by the public board may be luck. Submit both if two may be chosen."
    )
