"""Losses against torch, torchvision, timm and numbers worked out by hand; every one learns, and refuses what it cannot mean."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel, LabelSmoothingCrossEntropy
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from toolkit.errors import TrainingError
from toolkit.training.parts import losses
from toolkit.training.parts.losses import LOSSES

torch.manual_seed(0)
LOGITS = 3 * torch.randn(40, 4)
HARD = torch.randint(0, 4, (40,))
SOFT = torch.rand(40, 4).softmax(1)
MANY = torch.rand(40, 4) < 0.3
COUNTS = (30, 5, 4, 1)


def make(name, **options):
    return losses.make(name, classes=4, counts=COUNTS, **options)


def targets(name, *, soft=False):
    if LOSSES[name].multilabel:
        return torch.rand(40, 4) if soft else MANY
    return SOFT if soft else HARD


def test_cross_entropy_is_torchs_also_with_soft_targets():
    for given in (HARD, SOFT):
        torch.testing.assert_close(make("cross_entropy")(LOGITS, given), functional.cross_entropy(LOGITS, given))


def test_label_smoothing_is_timms():
    torch.testing.assert_close(
        make("label_smoothing", smoothing=0.2)(LOGITS, HARD), LabelSmoothingCrossEntropy(0.2)(LOGITS, HARD)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_are_torchs_weighted_mean(smoothing):
    weight = 1 / torch.tensor(COUNTS)
    expected = functional.cross_entropy(LOGITS, HARD, weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(make("class_weighted", smoothing=smoothing)(LOGITS, HARD), expected)
    onehot = functional.one_hot(HARD, 4).float()
    torch.testing.assert_close(make("class_weighted", smoothing=smoothing)(LOGITS, onehot), expected)
    torch.testing.assert_close(make("class_weighted", power=0)(LOGITS, HARD), functional.cross_entropy(LOGITS, HARD))


def test_a_class_without_rows_has_a_finite_weight():
    found = losses.make("class_weighted", classes=4, counts=(10, 0, 5, 5))(LOGITS, HARD)
    assert torch.isfinite(found)


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_focal_of_two_classes_is_torchvisions_sigmoid_focal_loss(gamma):
    z, y = LOGITS[:, 0], (HARD % 2)
    two = torch.stack([torch.zeros_like(z), z], dim=1)
    expected = sigmoid_focal_loss(z, y.float(), alpha=-1, gamma=gamma, reduction="mean")
    torch.testing.assert_close(losses.make("focal", classes=2, gamma=gamma)(two, y), expected)


def test_focal_by_hand():
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1, 1e-9]]))
    hard = -(0.3**2) * math.log(0.7)
    soft = 0.5 * hard - 0.5 * 0.8**2 * math.log(0.2)
    assert float(make("focal")(logits, torch.tensor([0]))) == pytest.approx(hard, rel=1e-5)
    assert float(make("focal")(logits, torch.tensor([[0.5, 0.5, 0, 0]]))) == pytest.approx(soft, rel=1e-5)


def test_soft_f1_by_hand_and_at_certainty():
    p = torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.5, 0.5]])
    expected = 1 - (2 * 1.2 / (1.7 + 2) + 2 * 0.5 / (1.3 + 1)) / 2
    found = losses.make("soft_f1", classes=2)(p.log(), torch.tensor([0, 0, 1]))
    assert float(found) == pytest.approx(expected, rel=1e-6)
    sure = 40 * functional.one_hot(HARD, 4).float()
    assert float(make("soft_f1")(sure, HARD)) == pytest.approx(0, abs=1e-6)
    assert float(make("soft_f1")(sure[HARD < 3], HARD[HARD < 3])) == pytest.approx(0, abs=1e-6)  # class 3 is not there


def test_soft_f1_of_certain_answers_is_scikit_learns_macro_f1():
    from sklearn.metrics import f1_score

    said = torch.where(torch.rand(40) < 0.6, HARD, torch.randint(0, 4, (40,)))
    found = make("soft_f1")(60 * functional.one_hot(said, 4).float(), HARD)
    assert float(found) == pytest.approx(1 - f1_score(HARD, said, average="macro"), abs=1e-6)
    yes = torch.rand(40, 4) < 0.5
    found = make("sigmoid_f1")(120.0 * yes - 60, MANY)
    assert float(found) == pytest.approx(1 - f1_score(MANY, yes, average="macro"), abs=1e-6)


def test_bce_is_torchs():
    torch.testing.assert_close(
        make("bce")(LOGITS, MANY), functional.binary_cross_entropy_with_logits(LOGITS, MANY.float()), rtol=0, atol=0
    )
    smooth = functional.binary_cross_entropy_with_logits(LOGITS, MANY * 0.8 + 0.1)
    torch.testing.assert_close(make("bce", smoothing=0.2)(LOGITS, MANY), smooth)


def test_sigmoid_focal_is_torchvisions():
    expected = sigmoid_focal_loss(LOGITS, MANY.float(), alpha=0.3, gamma=1.0, reduction="mean")
    torch.testing.assert_close(make("sigmoid_focal", alpha=0.3, gamma=1.0)(LOGITS, MANY), expected)


@pytest.mark.parametrize(("pos", "neg", "clip"), [(0, 4, 0.05), (1, 4, 0.05), (1, 2, 0.0), (0, 0, 0.0)])
def test_asymmetric_is_timms(pos, neg, clip):
    expected = AsymmetricLossMultiLabel(gamma_pos=pos, gamma_neg=neg, clip=clip, reduction="mean")(LOGITS, MANY)
    found = make("asymmetric", gamma_pos=pos, gamma_neg=neg, clip=clip)(LOGITS, MANY)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_without_focus_and_clip_asymmetric_is_bce():
    torch.testing.assert_close(
        make("asymmetric", gamma_pos=0, gamma_neg=0, clip=0)(LOGITS, MANY), make("bce")(LOGITS, MANY), rtol=1e-5, atol=1e-6
    )


def test_asymmetric_still_pulls_on_a_positive_that_the_model_is_sure_against():
    logits = torch.full((1, 4), -40.0, requires_grad=True)
    (slope,) = torch.autograd.grad(make("asymmetric")(logits, torch.ones(1, 4)), logits)
    torch.testing.assert_close(slope, torch.full((1, 4), -0.25))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("soft", [False, True])
def test_every_loss_goes_down_and_pickles(name, soft):
    function = pickle.loads(pickle.dumps(make(name)))
    given, logits = targets(name, soft=soft), torch.zeros(40, 4, requires_grad=True)
    before = function(logits, given).detach()
    assert before.shape == ()
    for _ in range(30):
        (slope,) = torch.autograd.grad(function(logits, given), logits)
        logits = (logits - 2 * slope).detach().requires_grad_()
    assert float(function(logits, given).detach()) < float(before) - 1e-3


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [0.0, 60.0, 1e4])
def test_extreme_logits_give_finite_losses_and_gradients(name, size):
    signs = torch.where(torch.rand(40, 4) < 0.5, -size, size).to(torch.bfloat16).requires_grad_()
    found = make(name)(signs, targets(name))
    assert found.dtype == torch.float32
    (slope,) = torch.autograd.grad(found, signs)
    assert torch.isfinite(found)
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize("name", LOSSES)
def test_targets_of_another_task_are_refused(name):
    other = HARD if LOSSES[name].multilabel else MANY
    with pytest.raises(TrainingError, match="per row") as caught:
        make(name)(LOGITS, other)
    assert all(LOSSES[one].multilabel != LOSSES[name].multilabel for one in caught.value.hint[12:-1].split(", "))


def test_what_cannot_be_made_is_refused():
    with pytest.raises(TrainingError, match="unknown loss 'mse'") as caught:
        make("mse")
    assert "cross_entropy" in caught.value.hint
    with pytest.raises(TrainingError, match="no option alpha") as caught:
        make("focal", alpha=1)
    assert "gamma=2" in caught.value.hint
    with pytest.raises(TrainingError, match="rows of each of 4 classes, got None"):
        losses.make("class_weighted", classes=4)
    with pytest.raises(TrainingError, match="over 4 classes"):
        make("focal")(LOGITS[:, :3], HARD)
    with pytest.raises(TrainingError, match="do not fit"):
        make("bce")(LOGITS, MANY[:, :3])
