"""Manifests: what a submission was made of, as plain JSON that names its inputs by digest and holds no absolute path."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from toolkit.base import files, sealed
from toolkit.base.provenance import git_commit, now, portable, versions
from toolkit.errors import DataError, ModelError, counted, few
from toolkit.submissions.checks import Problem
from toolkit.submissions.form.cells import WRITER
from toolkit.workspace.competition import FILE

SCHEMA = 1


def path_of(output: Path) -> Path:
    """Where the manifest of a submission stands: beside it, with the suffix .json."""
    return output.with_name(f"{output.stem}.json")


def describe(
    root: Path,
    *,
    sample: Path,
    predictions: Path,
    meta: Mapping[str, Any],
    form: str,
    rows: int,
    command: Sequence[str],
    tables: Mapping[str, Path] | None = None,
    scores: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All but the output's own digest: inputs of the workspace `root`, how they were combined, scores, versions, command line.

    `tables` are further inputs by what they are: the training table, the split, out-of-fold tables; those that are there count.

    Raises:
        DataError: an input cannot be read.
    """
    return {
        "schema": SCHEMA,
        "created": now(),
        "format": form,
        "rows": rows,
        "writer": WRITER,
        "competition": _file(root / FILE, root),
        "sample": _file(sample, root),
        "predictions": _file(predictions, root) | {"meta": dict(meta)},
        "exports": [_export(model) for model in meta.get("models", ()) if model.get("path")],
        "tables": {what: _file(path, root) for what, path in (tables or {}).items() if path.is_file()},
        "scores": dict(scores or {}),
        "versions": versions(),
        "command": [_argument(word, root) for word in command],
        "git": git_commit(root),
    }


def foreign(path: Path, root: Path, *, source: str, form: str, rows: int, problems: Sequence[Problem]) -> dict[str, Any]:
    """The manifest of a submission made elsewhere: who made it, and what it is.

    Raises:
        DataError: it cannot be read.
    """
    head = {"schema": SCHEMA, "created": now(), "from": source, "format": form, "rows": rows}
    return head | {"output": _file(path, root), "warnings": [str(problem) for problem in problems]}


def _export(model: Mapping[str, Any]) -> dict[str, Any]:
    """The file's digest covers the card as well, the graph's does not."""
    return {key: model.get(key) for key in ("path", "sha256", "digest")}


def write(output: Path, description: Mapping[str, Any], problems: Sequence[Problem], root: Path) -> dict[str, Any]:
    """Write the manifest of a submission that stands complete at `output` and return it; it comes last.

    Raises:
        StoreError: the manifest cannot be written.
    """
    document = dict(description) | {"output": _file(output, root), "warnings": [str(problem) for problem in problems]}
    files.write_text(path_of(output), text(document))
    return document


def text(document: Mapping[str, Any]) -> str:
    """A manifest as it is written, its digest last."""
    return json.dumps(sealed.stamp(document), indent=2, ensure_ascii=False) + "\n"


def read(path: Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        DataError: not there, not a manifest, changed since it was written, or written by a newer version.
    """
    try:
        document = sealed.read_json(path)
        if document is None:
            raise DataError(f"{path} is not a readable manifest: there is no such file")
        schema = int(document["schema"])
        if schema <= SCHEMA:
            _check(document)
    except sealed.DamagedError as error:
        raise sealed.DamagedError(f"{path} is not a readable manifest: {error.message}") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise sealed.DamagedError(f"{path} is not a readable manifest: {error!r}") from error
    if schema > SCHEMA:
        raise DataError(f"{path} has schema {schema}, this version reads up to {SCHEMA}", hint="Upgrade toolkit.")
    if (writer := writer_of(document)) > WRITER:
        raise DataError(f"{path} is of writer {writer}, this version knows up to {WRITER}", hint="Upgrade toolkit.")
    return document


def writer_of(document: Mapping[str, Any]) -> int:
    """Which of the ways to write numbers the submission was made with; manifests of before there were two do not say."""
    return int(document.get("writer", 1))


def _check(document: Mapping[str, Any]) -> None:
    """See that what others will look for in a manifest is of its kind; digests are later compared.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it is not.
    """
    datetime.fromisoformat(document["created"])
    writer_of(document)
    entries = [document["output"], *document.get("tables", {}).values(), *document.get("exports", ())]
    entries += [document[what] for what in ("competition", "sample", "predictions") if what in document]
    if not all(isinstance(entry["sha256"], str) and "\0" not in str(entry["path"]) for entry in entries):
        raise ValueError("a digest is no text")
    meta, scores = document.get("predictions", {}).get("meta", {}), document.get("scores", {})
    if not isinstance(meta, dict) or not isinstance(scores, dict):
        raise TypeError("what should be named is not")
    low, high = scores.get("interval") or (0.0, 0.0)
    if not all(map(math.isfinite, (float(low), float(high), float(scores.get("out_of_fold") or 0.0)))):
        raise ValueError("a score is no number")


def stale(root: Path, meta: Mapping[str, Any]) -> Iterator[Problem]:
    """Find exports that are no longer those which the predictions were made by; a rewritten card is not a change."""
    paths_of: dict[str, list[str]] = {"SUB060": [], "SUB061": [], "SUB064": []}
    for model in meta.get("models", ()):
        if not model.get("path"):
            continue  # a table made elsewhere has no export
        path = root / model["path"]
        if not path.is_file():
            # of a file outside the workspace only the name is known
            paths_of["SUB061" if "/" in model["path"] else "SUB064"].append(model["path"])
        elif files.sha256(path) != model["sha256"] and _graph(path) != model["digest"]:
            paths_of["SUB060"].append(model["path"])
    yield from (Problem(code, len(paths), seen=few(paths)) for code, paths in paths_of.items() if paths)


def _graph(path: Path) -> str:
    from toolkit.runtime.graphs import onnx_file

    try:
        return onnx_file.digest(path)
    except ModelError:
        return ""


def summary(meta: Mapping[str, Any]) -> list[str]:
    """A few lines for people: when, how combined, and per member its folds and views."""
    models = meta.get("models", ())
    created = str(meta.get("created", ""))[:16].replace("T", " ")
    count = (
        f"{counted(len(models), 'models')}" if models else f"{counted(len(meta.get('sources', ())), 'tables')} made elsewhere"
    )
    how = f"{count}, vote {meta.get('vote', 'soft')}, views {meta.get('view_set', 'none')}"
    lines = [f"Predictions {meta.get('name', '')!r} of {created}: {how}"]
    if images := meta.get("images"):
        lines.append(
            f"  {counted(images['count'], 'images')}, {images['trusted']:,} of them trusted "
            f"by their size and time and not read again"
        )
    for member in dict.fromkeys(model["member"] for model in models):
        folds = [model["fold"] for model in models if model["member"] == member]
        names = " ".join("all" if fold is None else str(fold) for fold in folds)
        views = meta.get("views", {}).get(member, ("id",))
        lines.append(f"  {member}: folds {names}; views {', '.join(views)}")
    return lines


def _file(path: Path, root: Path) -> dict[str, str]:
    return {"path": portable(path, root), "sha256": files.sha256(path)}


def _argument(word: str, root: Path) -> str:
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    if Path(value).is_absolute():
        return option + equals + portable(Path(value), root)
    value = re.sub(r"(?i)((?:token|key|secret|password)\w*[=:\s]+)\S+", r"\1***", value)
    return option + equals + re.sub(r"(?<![\w./])/(?!/)(?:[^\s/]+/)+", "", value)
