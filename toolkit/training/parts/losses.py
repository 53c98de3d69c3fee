"""Losses by name: mean over the batch, in float32 also under mixed precision, for hard and for soft targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from toolkit.errors import TrainingError, counted
from toolkit.training.parts.by_name import choose

if TYPE_CHECKING:
    import torch

Function = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Loss:
    """A loss of logits (N, C): where it comes from, its options with their defaults, and the targets that it takes.

    `multilabel` losses take targets (N, C) of 0 and 1, or of shares between; the others class numbers, int64 (N,), or
    probabilities (N, C), as mixup and pseudo-labels give. `counts` says whether it needs the rows of each class.
    """

    of: Callable[..., torch.Tensor]
    source: str
    multilabel: bool = False
    options: Mapping[str, float] = field(default_factory=dict)
    counts: bool = False


def make(name: str, *, classes: int, counts: Sequence[int] | None = None, **options: float) -> Function:
    """The loss of that name over `classes` classes, as a function of logits (N, C) and targets; it pickles.

    Options may stand in the name as well ("focal:gamma=1.5"). `counts` are the training rows of each class, for losses that
    weigh classes by them.

    Raises:
        TrainingError: no such loss, an option that it does not have, or counts that are missing or too few. The function
            raises it too, for targets of another task or shape.
    """
    name, given = choose("loss", LOSSES, name, options)
    if LOSSES[name].counts:
        if counts is None or len(counts) != classes:
            raise TrainingError(
                f"loss {name!r} needs the number of training rows of each of {counted(classes, 'classes')}, "
                f"got {None if counts is None else len(counts)}"
            )
        given["counts"] = tuple(int(count) for count in counts)
    return partial(_checked, name, classes, given)


def _checked(name: str, classes: int, given: Mapping[str, Any], logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss in float32 (sums of exponentials overflow in half precision), after the targets were looked at."""
    import torch

    loss = LOSSES[name]
    if logits.ndim != 2 or logits.shape[1] != classes:
        raise TrainingError(
            f"loss {name!r} is over {counted(classes, 'classes')}, the model gives logits {tuple(logits.shape)}"
        )
    hard = targets.ndim == 1
    if not hard and targets.shape != logits.shape:
        raise TrainingError(f"loss {name!r}: targets {tuple(targets.shape)} do not fit logits {tuple(logits.shape)}")
    if hard if loss.multilabel else not hard and targets.dtype == torch.bool:
        task, others = ("multilabel", "one class") if loss.multilabel else ("one class", "several classes")
        fitting = [other for other, one in LOSSES.items() if one.multilabel != loss.multilabel]
        raise TrainingError(
            f"loss {name!r} is for {task} per row, these rows have {others}", hint=f"Use one of: {', '.join(fitting)}."
        )
    with torch.autocast(logits.device.type, enabled=False):
        return loss.of(logits.float(), targets if hard else targets.float(), **given)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, *, smoothing: float = 0.0) -> torch.Tensor:
    """Cross-entropy; `smoothing` moves that share of each target evenly to all classes."""
    import torch

    return torch.nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)


def class_weighted(
    logits: torch.Tensor, targets: torch.Tensor, *, counts: Sequence[int], power: float = 1.0, smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy with weights n_c^(-power), averaged over the weights of the rows.

    Power 1 gives all classes the same say, 0.5 half-way, 0 none; a class without rows is taken as if it had one.
    """
    import torch

    weights = torch.tensor([max(count, 1) for count in counts], dtype=torch.float32, device=logits.device) ** -power
    shares = _shares(logits, targets, smoothing)
    losses = -(shares * weights * logits.log_softmax(1)).sum(1)
    return losses.sum() / (_shares(logits, targets) * weights).sum()


def focal(logits: torch.Tensor, targets: torch.Tensor, *, gamma: float = 2.0) -> torch.Tensor:
    """Cross-entropy of each class times (1 - p)^gamma: rows that are right already say little."""
    logs = logits.log_softmax(1)
    return -(_shares(logits, targets) * (1 - logs.exp()).clamp(min=_TINY) ** gamma * logs).sum(1).mean()


def soft_f1(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One minus macro-F1 with softmax probabilities for counts, over the classes that the batch's targets have."""
    return _soft_f1(logits.softmax(1), _shares(logits, targets))


def bce(logits: torch.Tensor, targets: torch.Tensor, *, smoothing: float = 0.0) -> torch.Tensor:
    """Binary cross-entropy, mean over rows and classes; `smoothing` moves targets that share of the way to one half."""
    import torch

    return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets * (1 - smoothing) + 0.5 * smoothing)


def sigmoid_focal(logits: torch.Tensor, targets: torch.Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> torch.Tensor:
    """Focal loss of each class by itself; positives weigh `alpha`, negatives 1 - alpha (below 0: both 1)."""
    from torchvision.ops import sigmoid_focal_loss

    loss: torch.Tensor = sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma, reduction="mean")
    return loss


def asymmetric(
    logits: torch.Tensor, targets: torch.Tensor, *, gamma_pos: float = 0.0, gamma_neg: float = 4.0, clip: float = 0.05
) -> torch.Tensor:
    """Focal loss with a weaker pull on positives; negatives with p below `clip` are dropped. Mean over rows and classes."""
    import torch

    p = logits.sigmoid()
    rest = (1 - p + clip).clamp(max=1)
    right = p * targets + rest * (1 - targets)
    focus = (1 - right).clamp(min=_TINY) ** (gamma_pos * targets + gamma_neg * (1 - targets))
    # logsigmoid and not log(p): a lone positive that the model is sure against must keep its gradient
    losses = targets * torch.nn.functional.logsigmoid(logits) + (1 - targets) * rest.clamp(min=_TINY).log()
    return -(focus * losses).mean()


def sigmoid_f1(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One minus macro-F1 with sigmoid probabilities for counts, over the classes that the batch's targets have."""
    return _soft_f1(logits.sigmoid(), targets)


_TINY = 1e-12  # a power of exactly 0 has no gradient, and 0 no logarithm


def _shares(logits: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Targets as probabilities (N, C)."""
    import torch

    shares = torch.nn.functional.one_hot(targets, logits.shape[1]).float() if targets.ndim == 1 else targets
    return shares * (1 - smoothing) + smoothing / logits.shape[1] if smoothing else shares


def _soft_f1(p: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    there = shares.sum(0) > 0  # a class that the batch lacks has F1 = 0 whatever the model does
    f1 = 2 * (p * shares).sum(0) / (p + shares).sum(0).clamp(min=_TINY)
    return 1 - (f1 * there).sum() / there.sum().clamp(min=1)


_BRIDLE = "Bridle 1990, Probabilistic Interpretation of Feedforward Classification Network Outputs"
_SZEGEDY = "Szegedy et al. 2016, Rethinking the Inception Architecture, arXiv:1512.00567"
_LIN = "Lin et al. 2017, Focal Loss for Dense Object Detection, arXiv:1708.02002"
_F1 = "Bénédict et al. 2021, sigmoidF1, arXiv:2108.10566"
_KING = "King and Zeng 2001, Logistic Regression in Rare Events Data"

LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(cross_entropy, _BRIDLE, options={"smoothing": 0.0}),
    "label_smoothing": Loss(cross_entropy, _SZEGEDY, options={"smoothing": 0.1}),
    "class_weighted": Loss(class_weighted, _KING, options={"power": 1.0, "smoothing": 0.0}, counts=True),
    "focal": Loss(focal, _LIN, options={"gamma": 2.0}),
    "soft_f1": Loss(soft_f1, _F1),
    "bce": Loss(bce, "Cox 1958, The Regression Analysis of Binary Sequences", multilabel=True, options={"smoothing": 0.0}),
    "sigmoid_focal": Loss(sigmoid_focal, _LIN, multilabel=True, options={"alpha": 0.25, "gamma": 2.0}),
    "asymmetric": Loss(
        asymmetric,
        "Ridnik et al. 2021, Asymmetric Loss For Multi-Label Classification, arXiv:2009.14119",
        multilabel=True,
        options={"gamma_pos": 0.0, "gamma_neg": 4.0, "clip": 0.05},
    ),
    "sigmoid_f1": Loss(sigmoid_f1, _F1, multilabel=True),
}
