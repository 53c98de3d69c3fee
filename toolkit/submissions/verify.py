"""Proving a submission again: are its inputs what they were, and does the same work give the same bytes?"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.base import files
from toolkit.base.provenance import portable
from toolkit.base.text import arrow_csv
from toolkit.blending.blend import read_blend
from toolkit.blending.combination import Combination
from toolkit.core import prediction_files
from toolkit.ensemble.run import EnsembleRun, run_ensemble
from toolkit.errors import ImageError, ModelError, SubmissionError, counted, few
from toolkit.images import render as images_of
from toolkit.inference import engine_choice
from toolkit.inference.execution import Execution
from toolkit.inference.exports import read_exports, share
from toolkit.inference.store.file_index import ImageIndex
from toolkit.submissions import csv_problems
from toolkit.submissions.manifest import path_of, read, writer_of
from toolkit.submissions.sample import read_sample, render
from toolkit.workspace.competition import FILE, Competition

OURS = (FILE, "predictions", "submissions")  # what the temporary workspace has of its own
LESS = "The manifest says how it was made; restore the inputs that changed, or submit anew."


@dataclass(frozen=True)
class Input:
    """One thing a submission was made of, and what became of it since: same, rewritten (the card alone), changed, missing."""

    what: str
    path: str
    state: str


@dataclass(frozen=True)
class Verdict:
    """What `verify` found: every input's state and, if it was made again, whether the bytes are the same (None: not tried)."""

    id: str
    inputs: tuple[Input, ...]
    rebuilt: bool | None = None

    @property
    def changed(self) -> tuple[Input, ...]:
        """The inputs that are no longer what they were."""
        return tuple(source for source in self.inputs if source.state in ("changed", "missing"))

    @property
    def record(self) -> dict[str, Any]:
        """The verdict as plain values, for machines."""
        proved = "the file and its inputs are those of its manifest" if not self.rebuilt else "its inputs give this file"
        return {
            "ok": True,
            "sha256": self.id,
            "rebuilt": self.rebuilt,
            "proved": proved,
            "inputs": [vars(source) for source in self.inputs],
        }


def verify(competition: Competition, path: Path, *, rebuild: bool = False, images: bool = False) -> Verdict:
    """Compare a submission and its inputs with its manifest; `rebuild` makes the file again, from the exports if there are any.

    With `images` every test image is read and compared with what the store knows of it. Without `rebuild` nothing says that the
    inputs give this file: one that was edited together with its manifest may pass.

    Raises:
        SubmissionError: the file is not the one of its manifest, an input changed (and nothing was rebuilt), or the file made
            again differs; it says which inputs changed.
        DataError: there is no manifest.
    """
    manifest = read(path_of(path))
    written = manifest["output"]["sha256"]
    if (digest := files.sha256(path)) != written:
        raise SubmissionError(
            f"{path} is not the file of its manifest: its digest is {digest[:8]}, the manifest says {written[:8]}",
            hint=f"It was edited, or belongs to another manifest; the ledger may have it: submissions/{written[:8]}.csv.",
        )
    inputs = (*_inputs(competition, manifest), *(_images(competition) if images else ()))
    verdict = Verdict(written, inputs)
    if not rebuild:
        if verdict.changed:
            names = few((source.path for source in verdict.changed), limit=12)
            raise SubmissionError(
                f"of what {path.name} was made of, this changed: {names}",
                hint="Making it again tells whether the file would change.",
                code="verify-rebuild",
            )
        return verdict
    ours = _rebuilt(competition, manifest, images=images)
    if ours != path.read_bytes():
        raise SubmissionError(_difference(competition, path, ours, verdict), hint=LESS)
    return replace(verdict, rebuilt=True)


def _inputs(competition: Competition, manifest: Mapping[str, Any]) -> Iterator[Input]:
    """Every input of a manifest as it is now."""
    named = {what: manifest[what] for what in ("competition", "sample", "predictions") if what in manifest}
    known = {Path(where).name: competition.path(where) for where in (competition.sample, competition.train.table)}
    for what, entry in (named | manifest.get("tables", {})).items():
        path = competition.path(entry["path"])
        path = path if path.exists() or "/" in entry["path"] else known.get(entry["path"], path)
        yield Input(what, entry["path"], _state(path, entry["sha256"]))
    for entry in manifest.get("exports", ()):
        path = competition.path(entry["path"])
        state = _state(path, entry["sha256"])
        if state == "changed" and _digest(path) == entry["digest"]:
            state = "rewritten"
        yield Input("export", entry["path"], "outside" if state == "missing" and "/" not in entry["path"] else state)


def _images(competition: Competition) -> Iterator[Input]:
    """The test images together if those that the store would trust are what it holds them for, else each that is not."""
    paths = list(dict.fromkeys(Path(file) for _, file in competition.image_files("test")))
    index = ImageIndex(competition.path("store", "images.npz"))
    digests, known = index.known(paths)

    def digest(path: Path) -> bytes:
        try:
            return images_of.digest(images_of.read(path)).rstrip(b"\0")  # as numpy gives such bytes back
        except ImageError:
            return b""

    trusted = [(path, bytes(ours)) for path, ours, sure in zip(paths, digests, known, strict=True) if sure]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        now = list(pool.map(digest, (path for path, _ in trusted)))
    changed = [path for (path, ours), theirs in zip(trusted, now, strict=True) if ours != theirs]
    yield from (Input("image", portable(path, competition.root), "changed") for path in changed)
    if not changed:
        yield Input("images", f"{len(trusted):,} of {len(paths):,} are known, all were read", "same")


def _state(path: Path, digest: str) -> str:
    if not path.is_file():
        return "missing"
    return "same" if files.sha256(path) == digest else "changed"


def _digest(path: Path) -> str:
    from toolkit.runtime.graphs import onnx_file

    try:
        return onnx_file.digest(path)
    except ModelError:
        return ""


def _rebuilt(competition: Competition, manifest: Mapping[str, Any], *, images: bool) -> bytes:
    """The bytes that the same work gives now; with `images` no image is trusted by its time."""
    meta = manifest.get("predictions", {}).get("meta")
    if meta is None:
        raise SubmissionError(f"it was made by {manifest.get('from', 'others')}, so how is not known")
    with _aside(competition) as own:
        if meta.get("models"):
            predictions = _predicted(competition, own, meta, images=images).predictions
        else:
            predictions = prediction_files.read_table(competition.path(manifest["predictions"]["path"])).predictions
        sample = competition.path(manifest["sample"]["path"])
        wanted = read_sample(competition, sample if sample.is_file() else None)
        frame = render(predictions, wanted.written_by(writer_of(manifest)))
        return files.write(own.path("submission.csv"), lambda file: arrow_csv.write(file, frame)).read_bytes()


def _predicted(competition: Competition, own: Competition, meta: Mapping[str, Any], *, images: bool) -> EnsembleRun:
    """The ensemble run again as the predictions say it was made."""
    models = meta["models"]
    paths = [competition.path(model["path"]) for model in models]
    if lost := [model["path"] for model, path in zip(models, paths, strict=True) if not path.is_file()]:
        raise SubmissionError(f"it cannot be made again: {counted(len(lost), 'exports are')} not there: {few(lost)}", hint=LESS)
    given = [float(model["weight"]) for model in models]
    records = meta.get("blend") or {}
    blend = {name: read_blend(record, competition.target(name).classes) for name, record in records.items()} or None
    weights = "" if blend else _weights(competition, paths, given)
    combination = Combination(meta["view_set"], meta["vote"], weights, blend)
    execution = Execution(on_bad_image=meta.get("on_bad_image", "fail"), verify_images=images)
    if "engine" in meta:  # the device and precision that the predictions were made with, where they say so
        execution = engine_choice.recorded(competition, paths, meta["engine"]).applied(execution)
    return run_ensemble(own, paths, combination, execution, limit=meta.get("limit"), name=meta["name"])


def _weights(competition: Competition, paths: Sequence[Path], given: list[float]) -> str:
    """What to say to get exactly these weights: dividing numbers by their sum again may cost the last digit."""
    exports = read_exports(paths, competition)
    better = competition.score.higher_is_better
    numbers = ",".join(map(repr, given))
    for text in ("", numbers):
        if share(exports, text, higher_is_better=better) == given:
            return text
    return numbers


@contextmanager
def _aside(competition: Competition) -> Iterator[Competition]:
    """The same competition in a temporary workspace: it shares inputs and store by links, and what is made stays there."""
    folder = Path(tempfile.mkdtemp(prefix="verify-"))
    try:
        for entry in competition.root.iterdir():
            if entry.name not in OURS:
                (folder / entry.name).symlink_to(entry.resolve())
        shutil.copy(competition.path(FILE), folder / FILE)
        (folder / "submission.csv").unlink(missing_ok=True)
        yield replace(competition, root=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _difference(competition: Competition, path: Path, ours: bytes, verdict: Verdict) -> str:
    """Which rows the rebuilt file says otherwise, and which inputs may be the cause."""
    (now, _), (before, _), rows = csv_problems.parse(ours), csv_problems.read(path), ""
    key = competition.sample_id
    if now is not None and before is not None and key in now.columns and key in before.columns:
        same = set(_lines(before)) & set(_lines(now))
        every = zip(arrow_csv.text(before[key]).to_pylist(), _lines(before), strict=True)
        ids = [name for name, line in every if line not in same]
        rows = f" in {len(ids):,} of {counted(len(before), 'rows')} ({few(ids)})" if ids else ""
    names = few((f"{source.path} ({source.state})" for source in verdict.changed), limit=12)
    cause = f"what changed: {names}" if verdict.changed else "no recorded input did: test images, device or versions may have"
    return f"{path.name} made again differs{rows}; {cause}"


def _lines(frame: Any) -> list[str]:
    lines: list[str] = arrow_csv.join(*(arrow_csv.text(frame[name]) for name in frame.columns), by="\x1f").to_pylist()
    return lines
