"""Optimisers and learning-rate schedules by name: timm's optimiser factory and torch's own schedulers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from toolkit.errors import TrainingError, counted
from toolkit.models import networks
from toolkit.training.parts.by_name import choose

if TYPE_CHECKING:
    import torch

Interval = Literal["step", "epoch"]

OPTIMISERS = ("sgd", "momentum", "adam", "adamw", "nadamw", "lamb", "lion", "rmsproptf")  # timm's factory knows more


@dataclass(frozen=True)
class Schedule:
    """How a learning rate runs: its source, its options with their defaults, when it is stepped, and whether with a score."""

    of: Callable[..., Any]
    source: str
    options: Mapping[str, float] = field(default_factory=dict)
    interval: Interval = "step"
    needs_metric: bool = False


@dataclass(frozen=True)
class Span:
    """How long a schedule runs: `steps` in all behind a warm-up of `climb` steps, and `epoch` steps in an epoch."""

    steps: int
    epoch: int
    climb: int

    def length(self, epochs: float) -> int:
        """So many epochs in steps, one at least; 0 stands for a third of the training."""
        return max(round(epochs * self.epoch) if epochs else -(-self.steps // 3), 1)


def optimiser(
    name: str,
    model: torch.nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    layer_decay: float | None = None,
    *,
    options: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """An optimiser of timm's factory over the parameters that are trained; biases and norms are not decayed.

    "sgd" has Nesterov's momentum of 0.9. `layer_decay` multiplies the rate once for every stage away from the head (Clark et
    al. 2020, arXiv:2003.10555), as timm knows them, or as `networks.stages` finds them in networks of others; the rates stand
    in the groups themselves, so that any scheduler keeps their ratios. `options` are further ones of timm's factory.

    Raises:
        TrainingError: no such optimiser, numbers that make no sense, or nothing to train.
    """
    import difflib

    import timm.optim

    if name not in (known := timm.optim.list_optimizers()):
        near = difflib.get_close_matches(name, known, n=3) or list(OPTIMISERS)
        raise TrainingError(f"timm has no optimiser {name!r}", hint=f"Use one of: {', '.join(near)}.")
    if lr <= 0 or weight_decay < 0 or not 0 < (1.0 if layer_decay is None else layer_decay) <= 1:
        raise TrainingError(
            f"a learning rate is above 0, a weight decay not below, a layer decay above 0 and at most 1; "
            f"got {lr}, {weight_decay}, {layer_decay}"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError("every parameter of the model is frozen: there is nothing to train")
    further = dict(options or {})
    if layer_decay is not None and not hasattr(model, "group_matcher"):
        further["param_group_fn"] = partial(_by_stage, weight_decay=weight_decay, layer_decay=layer_decay)
        layer_decay = None
    try:
        chosen: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
            model, opt=name, lr=lr, weight_decay=weight_decay, layer_decay=layer_decay, **further
        )
    except TypeError as error:
        raise TrainingError(f"optimiser {name!r}: {error}", hint="Leave the option out that it does not know.") from error
    for group in chosen.param_groups:
        group["lr"] = lr * group.pop("lr_scale", 1.0)  # timm's own schedulers read it, torch's do not
    return chosen


def _by_stage(model: torch.nn.Module, *, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Groups of parameters by stage and by whether they are decayed, with the share of the rate that each learns at."""
    stages = networks.stages(model)
    if len(stages) < 2:
        raise TrainingError(
            f"{type(model).__name__} is one layer: its layers have no rates of their own",
            hint="Leave layer decay out.",
            code="layer-decay",
        )
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            stage, plain = networks.stage_of(name, stages), parameter.ndim <= 1
            scale, decay = layer_decay ** (len(stages) - 1 - stage), 0.0 if plain else weight_decay
            group = groups.setdefault((stage, plain), {"params": [], "lr_scale": scale, "weight_decay": decay})
            group["params"].append(parameter)
    return list(groups.values())


def make(
    name: str,
    optimiser: torch.optim.Optimizer,
    *,
    epochs: int,
    steps_per_epoch: int,
    lr: float,
    warmup: float = 0,
    **options: float,
) -> tuple[torch.optim.lr_scheduler.LRScheduler, Interval, bool]:
    """A scheduler whose highest rate is `lr`, when to step it, and whether `step` takes the epoch's score (larger is better).

    Options may stand in the name as well: "step:every=3,gamma=0.5".
    Groups of the optimiser keep the ratios of their rates. The first `warmup` epochs (a fraction will do) climb from a
    hundredth of the rate, and the schedule runs over what is left.

    Raises:
        TrainingError: no such schedule, an option that it does not have, or a warm-up as long as the whole training.
    """
    name, given = choose("schedule", SCHEDULES, name, options)
    schedule = SCHEDULES[name]
    if not 0 <= warmup < epochs:
        raise TrainingError(f"a warm-up of {warmup:g} epochs leaves nothing of {counted(epochs, 'epochs')}")
    peak = max(float(group["lr"]) for group in optimiser.param_groups)
    for group in optimiser.param_groups:
        group["lr"] = lr * float(group["lr"]) / peak
    climb = round(warmup * steps_per_epoch)
    span = Span(max(epochs * steps_per_epoch - climb, 1), steps_per_epoch, climb)
    scheduler = schedule.of(optimiser, span, **given)
    return scheduler, schedule.interval, schedule.needs_metric


def constant(optimiser: Any, span: Span) -> Any:
    """The same rate throughout."""
    from torch.optim.lr_scheduler import ConstantLR

    return _behind_warmup(optimiser, span.climb, lambda: ConstantLR(optimiser, factor=1.0))


def step(optimiser: Any, span: Span, *, every: float, gamma: float) -> Any:
    """The rate times `gamma` after every `every` epochs; 0: after each third of the training."""
    from torch.optim.lr_scheduler import StepLR

    return _behind_warmup(optimiser, span.climb, lambda: StepLR(optimiser, span.length(every), gamma))


def cosine(optimiser: Any, span: Span, *, floor: float) -> Any:
    """Half a cosine down to `floor` times the rate."""
    return _behind_warmup(optimiser, span.climb, lambda: _cosine(optimiser, span.steps, span.steps, 1, floor))


def cosine_restarts(optimiser: Any, span: Span, *, first: float, times: float, floor: float) -> Any:
    """Half cosines down to `floor` times the rate: the first over `first` epochs, each `times` as long as the one before.

    `first` of 0 is a third of the training.
    """
    length = span.length(first)
    return _behind_warmup(optimiser, span.climb, lambda: _cosine(optimiser, span.steps, length, round(times), floor))


def plateau(optimiser: Any, span: Span, *, factor: float, patience: float, floor: float) -> Any:
    """The rate times `factor`, down to `floor` times the first, when the score has not risen for `patience` epochs.

    Raises:
        TrainingError: a warm-up was asked for.
    """
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    if span.climb:
        raise TrainingError("schedule 'plateau' takes no warm-up: it moves once an epoch", hint="Leave it out.", code="warmup")
    least = [floor * float(group["lr"]) for group in optimiser.param_groups]
    return ReduceLROnPlateau(optimiser, "max", factor=factor, patience=round(patience), min_lr=least)


def onecycle(optimiser: Any, span: Span, *, rise: float, start: float, floor: float) -> Any:
    """One rise from `start` times the rate and one fall to `floor` times the start, momentum the other way round.

    The rise takes the warm-up, or the share `rise` of all steps where there is none.
    """
    from torch.optim.lr_scheduler import OneCycleLR

    every = span.steps + span.climb
    cycled = all("betas" in group or "momentum" in group for group in optimiser.param_groups)
    return OneCycleLR(
        optimiser,
        max_lr=[float(group["lr"]) for group in optimiser.param_groups],
        total_steps=every + 1,  # torch counts the rate after the last step, and refuses one step more
        pct_start=span.climb / every if span.climb else max(rise, 2 / (every + 1)),  # a rise of one step divides by zero
        div_factor=1 / start,
        final_div_factor=1 / floor,
        cycle_momentum=cycled,
    )


def _cosine(optimiser: Any, steps: int, length: int, times: int, floor: float) -> Any:
    """Half cosines, since torch's own take one floor in units of the rate for all groups; here it is a share of each's."""
    import math

    from torch.optim.lr_scheduler import LambdaLR

    def factor(done: int) -> float:
        start, size = 0, length
        while done - start >= size and start + size < steps:
            start, size = start + size, size * times
        return floor + (1 - floor) * (1 + math.cos(math.pi * min((done - start) / size, 1.0))) / 2

    return LambdaLR(optimiser, factor)


def _behind_warmup(optimiser: Any, climb: int, then: Callable[[], Any]) -> Any:
    """The schedule, after `climb` steps of a straight line up."""
    from torch.optim.lr_scheduler import LinearLR, SequentialLR

    if not climb:
        return then()
    first = LinearLR(optimiser, start_factor=0.01, total_iters=climb)
    return SequentialLR(optimiser, [first, then()], milestones=[climb])


_SGDR = "Loshchilov and Hutter 2017, SGDR, arXiv:1608.03983"
_BOTTOU = "Bottou et al. 2018, Optimization Methods for Large-Scale Machine Learning, arXiv:1606.04838"
_STEPS = "Szegedy et al. 2015, Going Deeper with Convolutions, arXiv:1409.4842"
WARMUP = "Goyal et al. 2017, Accurate, Large Minibatch SGD, arXiv:1706.02677"

SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule(
        constant, "Bottou et al. 2018, Optimization Methods for Large-Scale Machine Learning, arXiv:1606.04838"
    ),
    "step": Schedule(step, _STEPS, {"every": 0, "gamma": 0.1}),
    "cosine": Schedule(cosine, _SGDR, {"floor": 0.0}),
    "cosine_restarts": Schedule(cosine_restarts, _SGDR, {"first": 0, "times": 1, "floor": 0.0}),
    "plateau": Schedule(
        plateau,
        "He et al. 2016, Deep Residual Learning, arXiv:1512.03385",
        {"factor": 0.1, "patience": 3, "floor": 0.0},
        interval="epoch",
        needs_metric=True,
    ),
    "onecycle": Schedule(
        onecycle, "Smith and Topin 2018, Super-Convergence, arXiv:1708.07120", {"rise": 0.3, "start": 0.04, "floor": 1e-4}
    ),
}
