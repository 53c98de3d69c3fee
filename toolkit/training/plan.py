"""What is to be trained, and what comes of it: the values that pass between a recipe, its folds and whoever starts them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from toolkit.base import files
from toolkit.core.cards import Preprocess
from toolkit.core.predictions import Predictions
from toolkit.errors import TrainingError
from toolkit.training import label_fixes
from toolkit.training.fold.fit import Triple
from toolkit.training.fold.samples import Fold, Progress
from toolkit.training.parts import warm_start
from toolkit.workspace.competition import Competition, Target
from toolkit.workspace.split import Split

if TYPE_CHECKING:
    import torch

OOF = "oof.parquet"
WEIGHTS_CONTENT = "weights content"  # the setting that changes with what is begun from
PARTS = ("model.safetensors", "metrics.csv", OOF, "config.json")  # in this order; the export comes last

TrainFold = Callable[[Any, Fold], "torch.nn.Module"]
Bar = Callable[[str], AbstractContextManager[Progress]]
Say = Callable[[str], None]
Watch = Callable[[Fold, Mapping[str, float], "torch.nn.Module"], None]


@runtime_checkable
class Taught(Protocol):
    """A configuration whose member learns from files beside the training table: `pseudo_labels.SelfTraining`."""

    def source_digests(self, plan: TrainingPlan) -> dict[str, Any]:
        """What decides the targets beside the settings themselves, as plain values."""
        ...


class Launcher(Protocol):
    """What trains folds elsewhere than in this process: `launcher.ProcessLauncher`."""

    def splits(self, folds: Sequence[int | None]) -> bool:
        """Whether these folds are more than one process can do alone."""
        ...

    def train(self, plan: TrainingPlan, folds: Sequence[int | None], *, device: str, bar: Bar, say: Say) -> Generator[Done]:
        """Train these folds, which are unfinished, and give them in order."""
        ...


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """What is to be trained: a recipe's settings on a split of a competition, and the folder that takes the results.

    `config` is the recipe's frozen dataclass and has at least `member` and `seed`; with `seeds` above one, a fold is trained as
    often, from neighbouring seeds, and all its models are exported. `architecture` is what `networks.create` rebuilds the
    network from. `mean` and `std` are in units of pixel / 255. Without `cache` images are decoded anew in every
    epoch. `logger` is a name from `loggers.LOGGERS`.
    """

    recipe: str
    config: Any
    architecture: Mapping[str, Any]
    preprocess: Preprocess
    mean: Triple
    std: Triple
    competition: Competition
    split: Split
    root: Path
    cache: bool = True
    logger: str = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "preprocess", self.competition.treated(self.preprocess))

    @property
    def target(self) -> Target:
        """The one target.

        Raises:
            TrainingError: the competition has several.
        """
        if len(self.competition.targets) > 1:
            raise TrainingError(f"{self.recipe} trains one target, this competition has {len(self.competition.targets)}")
        return self.competition.targets[0]

    @property
    def member(self) -> str:
        """The name under which the folds go together."""
        return str(self.config.member)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that may change a result, as JSON values: folds of one member must agree in all of it."""
        fast = {known.name for known in fields(self.config) if not known.metadata.get("matters", True)}
        every = {f"config.{name}": value for name, value in asdict(self.config).items() if name not in fast}
        shared: dict[str, Any] = {
            "recipe": self.recipe,
            "split": self.split.digest,
            "target": self.target.name,
            "classes": self.target.classes,
        }
        shared |= {"labels_fix": corrected} if (corrected := label_fixes.digest(self.competition)) else {}
        if box := self.preprocess.box:
            shared["boxes"] = self.competition.boxes.digest(box, set(self.split.ids))
        shared |= {f"architecture.{name}": value for name, value in self.architecture.items()}
        user = {name: str(value).rpartition(":")[0] for name, value in every.items() if ".py:" in str(value)}
        every |= {f"{name} content": files.sha256(Path(path))[:16] for name, path in user.items() if Path(path).is_file()}
        pixels = {"preprocess": self.preprocess.fields, "mean": self.mean, "std": self.std}
        taught = self.config.source_digests(self) if isinstance(self.config, Taught) else {}
        if content := warm_start.content(self.competition, self.config):
            shared[WEIGHTS_CONTENT] = content
        plain: dict[str, Any] = json.loads(json.dumps(shared | pixels | every | taught))
        return plain

    @cached_property
    def key(self) -> str:
        """Sixteen hex digits that change with any of the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]

    def folder(self, fold: int | None) -> Path:
        """Where a fold (None: the model of all rows) keeps its checkpoint, settings, metrics and out-of-fold rows."""
        return self.root / "runs" / self.member / ("all" if fold is None else f"fold{fold}")

    def export(self, fold: int | None, number: int = 0) -> Path:
        """The fold's .onnx, or the one of its further models."""
        name = "all" if fold is None else f"fold{fold}"
        return self.root / "folds" / f"{self.member}.{name}{f'.{number}' if number else ''}.onnx"

    @property
    def oof(self) -> Path:
        """The member's joined out-of-fold table."""
        return self.root / "oof" / f"{self.member}.parquet"

    @property
    def table_meta(self) -> dict[str, str]:
        """What every out-of-fold table of this member says of its origin."""
        split, metric = self.split.digest, self.competition.metric
        return {"member": self.member, "split": split, "metric": metric, "recipe": self.recipe}

    def truth(self, ids: Sequence[str]) -> Predictions:
        """The labels as given of these rows: what every score is measured against."""
        return self.competition.truth()[self.target.name].align(ids)

    def finished(self, fold: int | None) -> bool:
        """Whether everything of a fold is on disk: files are written whole, and the export after all others."""
        return not self.missing(fold)

    def missing(self, fold: int | None) -> list[Path]:
        """The files that a fold needs to count as finished and does not have."""
        parts = [self.folder(fold) / part for part in PARTS if fold is not None or part != OOF]
        return [path for path in (*parts, self.export(fold)) if not path.exists()]


@dataclass(frozen=True)
class Done:
    """A finished fold: its score on the rows it did not see (None where it saw all); `resumed` if an earlier run finished it.

    `selected` other than "last" says that these rows had a say in the model: the score is optimistic. `notes` are sentences for
    the reader: how it was fed, how it fits.
    """

    fold: int | None
    score: float | None
    seconds: float
    resumed: bool = False
    selected: str = "last"
    notes: tuple[str, ...] = ()
