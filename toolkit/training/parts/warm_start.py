"""Warm starts: a fold begins from weights, which are asked first whether they have seen the rows that score it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.base import documents, files
from toolkit.core.lineage import Lineage, SeenIds
from toolkit.errors import TrainingError, counted, few
from toolkit.models import checkpoints
from toolkit.models.checkpoints import Checkpoint
from toolkit.training.settings import setting
from toolkit.workspace.competition import FILE, Competition
from toolkit.workspace.split import Split

MEMBER = "member:"
CHECKPOINT = "model.safetensors"
_WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


@dataclass(frozen=True)
class WarmStart:
    """Settings for a recipe's Config to inherit: the weights that its folds begin from.

    The rule that keeps scores honest: what fold k begins from must not have seen the rows that score fold k. A member's own
    fold k on the same split has not. `train_fold` finds the file for its fold in `config.weights`, whatever was asked for.
    Measured on labels that are pure noise, where 0.500 is honest: 0.833 where every fold began from fold 0 of another member.
    """

    weights: str = setting("", "Begin from this file (.safetensors, .pth), or from member:NAME, fold k from its own fold k.")
    allow_seen: bool = setting(
        False, "Also from weights that have seen the rows that score a fold: its scores are then marked optimistic."
    )


@dataclass(frozen=True, eq=False)
class Start:
    """What a fold begins from: the file, how it has seen the rows that score the fold, and what is not known, in words.

    `chosen` says that these rows, unseen as they are, chose the weights.
    """

    path: Path
    origin: Checkpoint
    seen: tuple[str, ...]
    unknown: tuple[str, ...]
    chosen: bool

    @property
    def lineage(self) -> Lineage:
        """Whose labels the weights have learned from."""
        return self.origin.lineage

    @property
    def ids(self) -> SeenIds | None:
        """The ids of these rows, where the file says them."""
        return self.origin.seen


def asked(config: Any) -> str:
    """What a recipe's settings say to begin from; "" for nothing, or where `weights` mean something else there."""
    weights = getattr(config, "weights", "")
    if not isinstance(weights, str):
        return ""
    ours = isinstance(config, WarmStart) or weights.startswith(MEMBER) or weights.endswith(_WEIGHTS)
    return weights if ours else ""


def start_of(competition: Competition, split: Split, config: Any, fold: int | None) -> Start | None:
    """What a fold (None: the model of all rows) begins from, read but for its weights; None where it begins from nothing.

    Raises:
        TrainingError: no such member, or not this fold of it.
        ModelError: no such file, or one that cannot be read.
    """
    weights = asked(config)
    if not weights:
        return None
    path = _member_file(competition, weights, fold) if weights.startswith(MEMBER) else Path(weights)
    origin = checkpoints.read_origin(path)
    lineage, card = origin.lineage, origin.card
    seen = [f"trained on {part}" for part in lineage.exposed(split.digest, fold)]
    unknown = [_unsaid(path, name) for name in lineage.unknown]
    own = card is not None and card.split == split.digest and card.fold == fold
    if own and card is not None and card.exposed and fold is not None and not seen:
        seen.append(f"marked as having seen the rows of fold {fold}")
    if fold is not None and (elsewhere := lineage.elsewhere(split.digest)):
        if origin.seen is None:
            unknown.append(f"{path} has seen {few(elsewhere)}: whether rows of this split are among them is not known")
        elif (shared := origin.seen.shared(split.held_out(fold)))[0]:
            seen.append(
                f"trained on {shared[0]:,} of {counted(shared[1], 'ids')} of fold {fold}, under split {elsewhere[0].split}"
            )
    chosen = own and card is not None and card.selected_on_heldout
    return Start(path, origin, tuple(seen), tuple(unknown), chosen)


def configured(config: Any, start: Start | None) -> Any:
    """The settings as `train_fold` gets them: `weights` names the fold's file."""
    return config if start is None else replace(config, weights=str(start.path))


def check(competition: Competition, split: Split, config: Any, folds: Sequence[int | None], say: Callable[[str], None]) -> None:
    """Refuse weights that have seen the rows that score a fold, unless the settings allow it; `say` what is not known.

    Raises:
        TrainingError, ModelError: see `start_of`; weights that have seen rows which score a fold.
    """
    starts = {fold: start for fold in folds if (start := start_of(competition, split, config, fold)) is not None}
    seen = {fold: start for fold, start in starts.items() if start.seen}
    if seen and not getattr(config, "allow_seen", False):
        first = next(iter(seen.values()))
        card = first.origin.card
        own = f": {MEMBER}{card.member}" if card and card.split == split.digest else ""
        raise TrainingError(
            f"{first.path} has seen the rows that score {_folds(list(seen))}: {'; '.join(first.seen)}. "
            f"A score on them would be too good",
            hint=f"Begin every fold from the same fold of a member{own}. If these are other rows that are called alike, "
            f"keep the plain state dict in a file of its own.",
            code="seen-rows",
        )
    for sentence in dict.fromkeys(sentence for start in starts.values() for sentence in start.unknown):
        say(f"{sentence}; if it has seen held-out rows, their scores are too good")


def content(competition: Competition, config: Any) -> str:
    """Sixteen hex digits of what is begun from: of a file its content, of a member its settings; "" where nothing is there.

    Raises:
        TrainingError: no such member.
    """
    weights = asked(config)
    if not weights.startswith(MEMBER):
        return files.sha256(Path(weights))[:16] if weights and Path(weights).is_file() else ""
    folder = _member_folder(competition, weights)
    for path in sorted(folder.glob("*/config.json")):
        try:
            settings = documents.read_json(path)["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return _digest(json.dumps(settings, sort_keys=True))
    return _digest("".join(files.sha256(path) for path in sorted(folder.glob(f"*/{CHECKPOINT}"))))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _member_folder(competition: Competition, weights: str) -> Path:
    """runs/NAME of the workspace, or of the one around it: trials of a search are inside of another."""
    name = weights.removeprefix(MEMBER)
    if not name or any(mark in name for mark in "/\\") or name in (".", ".."):
        raise TrainingError(f"{weights!r} names no member", hint=f"For example {MEMBER}base.", code="start")
    roots = [competition.root, *(root for root in competition.root.absolute().parents if (root / FILE).is_file())]
    folders = [root / "runs" / name for root in roots]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        there = sorted(path.name for path in (roots[0] / "runs").glob("*") if path.is_dir())
        hint = f"There are: {', '.join(there)}." if there else "Train it first."
        raise TrainingError(f"there is no member {name!r} in {roots[0] / 'runs'} to begin from", hint=hint, code="start")
    return folder


def _member_file(competition: Competition, weights: str, fold: int | None) -> Path:
    folder = _member_folder(competition, weights)
    path = folder / ("all" if fold is None else f"fold{fold}") / CHECKPOINT
    if not path.exists():
        what = "model of all rows" if fold is None else f"fold {fold}"
        raise TrainingError(
            f"{folder.name!r} has no {what} to begin from: {path} is not there",
            hint=f"Train the {what} of {folder.name} first." if fold is None else f"Train {what} of {folder.name} first.",
            code="train-start",
        )
    return path


def _unsaid(path: Path, name: str) -> str:
    """A sentence about what does not say which rows it has seen: the file, or what it was made of."""
    if name == path.name:
        return f"{path} does not say which rows it has seen"
    return f"{path} does not say all that it has seen ({name} does not)"


def _folds(folds: Sequence[int | None]) -> str:
    numbers = [str(fold) for fold in folds]
    return f"fold {numbers[0]}" if len(numbers) == 1 else f"folds {', '.join(numbers[:-1])} and {numbers[-1]}"
