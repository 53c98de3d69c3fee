"""Soups: weights of several checkpoints of one fold averaged into one network (Wortsman et al. 2022, arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.base.arrays import F64
from toolkit.blending.nested import Estimate, compare
from toolkit.core.activations import probabilities
from toolkit.core.cards import Card, Selected
from toolkit.core.lineage import SeenIds
from toolkit.core.predictions import Predictions
from toolkit.errors import AlignmentError, ModelError, few
from toolkit.models import checkpoints, export_checkpoint
from toolkit.models.checkpoints import Checkpoint
from toolkit.models.export import export
from toolkit.training.fold.fit import choose_device, logits, normalise
from toolkit.training.fold.samples import Rows, decode
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split

if TYPE_CHECKING:
    import torch

STATISTICS = 2048  # training images that BatchNorm's statistics are taken from: more change them in the third digit
BATCH = 64

State = Mapping[str, "torch.Tensor"]
Progress = Callable[[int, int], None]  # networks judged, and at most in all


@dataclass(frozen=True, eq=False)
class Soup:
    """What was cooked: the checkpoints in it, every candidate's score on the fold's held-out rows, and what was written.

    `estimates` has each checkpoint by name, then "uniform" and "greedy", with gains over the best checkpoint.
    """

    card: Card
    ingredients: tuple[Path, ...]
    estimates: Mapping[str, Estimate]
    best: str
    normalised: int
    checkpoint: Path
    export: Path


def find_checkpoints(paths: Sequence[Path]) -> list[Path]:
    """The files named, and all .safetensors of the folders named, each once.

    Raises:
        ModelError: fewer than two.
    """
    files: dict[Path, None] = {}
    for path in paths:
        files |= dict.fromkeys(sorted(path.rglob("*.safetensors")) if path.is_dir() else [path])
    if len(files) < 2:
        raise ModelError(
            f"a soup needs several checkpoints of one fold, and {few(map(str, paths))} has {len(files)}",
            hint="Train the fold again with other seeds, or name the .safetensors of several runs.",
        )
    return list(files)


def cook(
    competition: Competition,
    paths: Sequence[Path],
    *,
    how: str = "greedy",
    member: str = "",
    device: str = "auto",
    model: str = "",
    force: bool = False,
    progress: Progress | None = None,
) -> Soup:
    """Average checkpoints of one fold, judge every one and both soups on its held-out rows, and write the soup asked for.

    The uniform soup is the mean of all. The greedy one starts with the best checkpoint and takes in the next best where
    the held-out score does not fall, so that its score is optimistic, and its card says so; it does too where a checkpoint has
    seen these rows or was chosen by them. Where the network has BatchNorm, a
    soup's statistics are taken anew from training images of the fold. `model` names the checkpoints' network, which it must
    where that is a function of the user's own.

    Raises:
        ModelError: checkpoints without a card, of different networks, folds, splits, classes or pixels, or of another split
            than the workspace's; a soup that is there already.
        ParityError, ImageError, StoreError: see `models.export.export` and `training.decode`.
    """
    every = _read(competition, paths)
    names = _names(paths)
    first = every[0].card
    assert first is not None
    card = replace(
        first,
        member=member or f"{first.member}-{how}",
        recipe=f"{how} soup of {', '.join(names)}",
        score=None,
        lineage=reduce(or_, (each.lineage for each in every)),
    )
    path = competition.path("folds", f"{card.title}.onnx")
    if path.exists() and not force:
        raise ModelError(f"{path} exists", hint="Replace it, or name another member.", code="replace-soup")
    kitchen = _Kitchen.of(competition, every[0], choose_device(device), len(every) + 1 + len(every), progress, model)
    rows = {name: kitchen.judge(checkpoint.state, fresh=False) for name, checkpoint in zip(names, every, strict=True)}
    order = sorted(range(len(every)), key=lambda i: -kitchen.gain(rows[names[i]]))
    uniform, rows["uniform"] = kitchen.soup(every)
    chosen, greedy, rows["greedy"] = kitchen.greedy(every, order, rows[names[order[0]]])
    best = names[order[0]]
    truth, groups = kitchen.truth.decided, kitchen.groups
    estimates = compare(truth, competition.score, rows, baseline=best, groups=groups)
    taken = list(range(len(every))) if how == "uniform" else chosen
    card = replace(card, score=estimates[how].score, selected=_selected(every, how))
    network = kitchen.network(uniform if how == "uniform" else greedy)
    written = export(network, card, path, samples=kitchen.samples())
    where = competition.path("runs", card.member, f"fold{card.fold}", "model.safetensors")
    checkpoints.save(where, network, written, every[0].architecture or {}, _ids(every))
    return Soup(written, tuple(paths[i] for i in taken), estimates, best, kitchen.normalised, where, path)


def _selected(every: Sequence[Checkpoint], how: str) -> Selected:
    """How a soup was chosen: its rows' labels may have been seen by a checkpoint, chosen one, or the checkpoints among all."""
    if any(each.card and each.card.exposed for each in every):
        return "seen"
    chosen = how == "greedy" or any(each.card.selected_on_heldout for each in every if each.card)
    return "soup" if chosen else "last"


def _ids(every: Sequence[Checkpoint]) -> SeenIds | None:
    """The ids that any of the checkpoints has seen; None where one does not say."""
    ids = [each.seen for each in every if each.seen]
    return reduce(or_, ids) if len(ids) == len(every) else None


def average(states: Sequence[State]) -> dict[str, torch.Tensor]:
    """The mean of every floating tensor (summed in float64); what only counts is taken from the first.

    Raises:
        ModelError: tensors of other names or shapes.
    """
    import torch

    first = states[0]
    for state in states[1:]:
        if odd := [name for name in {**first, **state} if name not in first or name not in state]:
            raise ModelError(f"checkpoints of different networks cannot be averaged: {few(odd)} is not in all of them")
        if odd := [name for name in first if first[name].shape != state[name].shape]:
            raise ModelError(f"checkpoints of different networks cannot be averaged: {few(odd)} differ in shape")
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in first.items()
    }


def statistics(model: torch.nn.Module, batches: Sequence[torch.Tensor]) -> int:
    """Set BatchNorm's running statistics to the mean over these batches, every other layer in eval mode; how many there are.

    As torch.optim.swa_utils.update_bn, except that dropout stays off.
    """
    import torch

    kinds = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)  # timm's own layers are among them
    layers = [layer for layer in model.modules() if isinstance(layer, kinds) and layer.track_running_stats]
    before = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a mean over all batches
        layer.train()
    with torch.no_grad():
        for batch in batches if layers else ():
            model(batch)
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum
    model.eval()
    return len(layers)


def _read(competition: Competition, paths: Sequence[Path]) -> list[Checkpoint]:
    """The checkpoints, checked against each other and the workspace's split."""
    every = [checkpoints.read(path) for path in paths]
    for one in every:
        if one.card is None or not one.architecture:
            raise ModelError(f"{one.path} has no card", hint="Soups are made of the .safetensors that recipes write in runs/.")
        if one.card.fold is None:
            raise ModelError(f"{one.path} was trained on every row, so that no held-out row can judge a soup of it")
    first = every[0]
    for one in every[1:]:
        for what in ("fold", "split", "outputs", "preprocess", "mean", "std"):
            ours, other = getattr(first.card, what), getattr(one.card, what)
            if ours != other:
                raise ModelError(f"{first.path} and {one.path} differ in {what}: {ours} against {other}", hint=_ONE)
        if first.architecture != one.architecture:
            raise ModelError(f"{first.path} and {one.path} are of different networks", hint=_ONE)
    assert first.card is not None
    here = Split.of(competition).digest
    if first.card.split != here:
        raise ModelError(
            f"{first.path} was trained on split {first.card.split}, this one is {here}",
            hint="Restore the split.csv of its run.",
        )
    return every


_ONE = "A soup is made of one fold of one network: other seeds, epochs or settings, nothing else."


def _names(paths: Sequence[Path]) -> list[str]:
    """As short as tells them apart: seed1/model, seed2/model."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.with_suffix("").parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise ModelError("the same checkpoint was named twice")


@dataclass(eq=False)
class _Kitchen:
    """The fold's rows, and the network that every candidate's weights are put into."""

    competition: Competition
    card: Card
    model: torch.nn.Module
    held_out: Rows
    training: Rows
    truth: Predictions
    groups: tuple[str, ...] | None
    device: str
    total: int
    progress: Progress | None
    normalised: int = 0
    done: int = 0

    @classmethod
    def of(
        cls, competition: Competition, one: Checkpoint, device: str, total: int, progress: Progress | None, model: str
    ) -> _Kitchen:
        card = one.card
        assert card is not None
        output = card.outputs[0]
        split = Split.of(competition)
        held_out, training = split.held_out(card.fold or 0), split.training(card.fold)
        spread = [training[i] for i in np.unique(np.linspace(0, len(training) - 1, min(STATISTICS, len(training))).astype(int))]
        samples = decode(competition, card.preprocess, output.target, only=[*held_out, *spread])
        truth = competition.truth()[output.target].align(held_out)
        if set(truth.classes) != set(output.classes):
            raise AlignmentError(f"{one.path} has other classes than the competition: {few(output.classes)}")
        group = dict(zip(split.ids, split.groups, strict=True))
        groups = tuple(group[name] for name in held_out)
        return cls(
            competition,
            card,
            checkpoints.build(one, {**(one.architecture or {}), "model_name": model} if model else None),
            samples.rows(held_out),
            samples.rows(spread),
            truth.with_classes(output.classes),
            groups if all(groups) else None,
            device,
            total,
            progress,
        )

    def network(self, state: State) -> torch.nn.Module:
        """The network with these weights."""
        self.model.load_state_dict(dict(state))
        return self.model.eval()

    def soup(self, every: Sequence[Checkpoint]) -> tuple[State, F64]:
        """The mean of some checkpoints with statistics of its own, and what it says of the held-out rows."""
        mixed = average([one.state for one in every])
        rows = self.judge(mixed, fresh=True)
        return {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}, rows

    def greedy(self, every: Sequence[Checkpoint], order: Sequence[int], alone: F64) -> tuple[list[int], State, F64]:
        """The best checkpoint, and each next one with which the score does not fall."""
        chosen, state, best = [order[0]], every[order[0]].state, alone
        for i in order[1:]:
            mixed, values = self.soup([every[j] for j in (*chosen, i)])
            if self.gain(values) >= self.gain(best):
                chosen, state, best = [*chosen, i], mixed, values
        return chosen, state, best

    def judge(self, state: State, *, fresh: bool) -> F64:
        """Probabilities of the held-out rows [N, C]; `fresh` takes BatchNorm's statistics anew."""
        model = self.network(state)
        if fresh:
            self.normalised = statistics(model.to(self.device), self._batches())
        raw = logits(model, self.held_out, self.card.mean, self.card.std, device=self.device)
        self.done += 1
        if self.progress:
            self.progress(self.done, self.total)
        return probabilities(raw, self.card.outputs[0])

    def gain(self, values: F64) -> float:
        """The competition's metric, turned so that larger is better."""
        output, metric = self.card.outputs[0], self.competition.score
        table = Predictions(
            output.target, "probabilities", self.truth.ids, output.classes, values, multilabel=output.multilabel
        )
        return metric.gain(table.score(metric, self.truth))

    def samples(self) -> NDArray[np.uint8]:
        """Images that the export is proved on."""
        count = min(len(self.held_out), export_checkpoint.SAMPLES)
        return np.asarray(self.held_out.__getitems__(range(count))[0])

    def _batches(self) -> list[Any]:
        """Training images, normalised, the last batch left out where it is too small for a variance."""
        import torch

        starts = range(0, len(self.training), BATCH)
        chunks = [range(start, min(start + BATCH, len(self.training))) for start in starts]
        chunks = [chunk for chunk in chunks if len(chunk) == BATCH] or chunks
        pixels = [torch.from_numpy(np.asarray(self.training.__getitems__(chunk)[0])) for chunk in chunks]
        return [normalise(part.to(self.device), self.card.mean, self.card.std) for part in pixels]
