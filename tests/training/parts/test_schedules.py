"""Schedules against torch's schedulers and their formulas, optimisers against timm's and torch's."""

from __future__ import annotations

import math
import warnings

import pytest
import timm
import torch
from torch.optim import lr_scheduler

from toolkit.errors import TrainingError
from toolkit.training.parts import schedules
from toolkit.training.parts.schedules import OPTIMISERS, SCHEDULES

EPOCHS, STEPS = 6, 5


def groups(*rates):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates], momentum=0.9)


def rates(scheduler, optimiser, steps, *scores):
    """The rate of the first group at each step."""
    found = []
    for step in range(steps):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step(*([scores[step]] if scores else []))
    return found


def run(name, *, lr=0.1, warmup=0, **options):
    optimiser = groups(0.5)
    scheduler, interval, needs_metric = schedules.make(
        name, optimiser, epochs=EPOCHS, steps_per_epoch=STEPS, lr=lr, warmup=warmup, **options
    )
    assert (interval, needs_metric) == (SCHEDULES[name].interval, SCHEDULES[name].needs_metric)
    return rates(scheduler, optimiser, EPOCHS * STEPS)


def reference(make, steps=EPOCHS * STEPS, lr=0.1):
    optimiser = groups(lr)
    return rates(make(optimiser), optimiser, steps)


def test_constant_and_step():
    assert run("constant") == [0.1] * 30
    assert run("step", every=2, gamma=0.5) == pytest.approx(reference(lambda o: lr_scheduler.StepLR(o, 10, 0.5)))


def test_cosine_is_torchs():
    assert run("cosine") == pytest.approx(reference(lambda o: lr_scheduler.CosineAnnealingLR(o, 30)), abs=1e-12)
    floored = reference(lambda o: lr_scheduler.CosineAnnealingLR(o, 30, eta_min=0.01))
    assert run("cosine", floor=0.1) == pytest.approx(floored, abs=1e-12)


@pytest.mark.parametrize("times", [1, 2])
def test_restarts_are_torchs_until_the_last_which_ends_with_the_training(times):
    expected = reference(lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10, times))
    found = run("cosine_restarts", first=2, times=times)
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[10] == 0.1


def test_onecycle_is_torchs_and_reaches_the_peak():
    expected = reference(lambda o: lr_scheduler.OneCycleLR(o, 0.1, 31, pct_start=0.3, div_factor=25, final_div_factor=1e4))
    found = run("onecycle")
    assert found == pytest.approx(expected, abs=1e-12)
    assert max(found) == pytest.approx(0.1, rel=1e-2)
    assert int(torch.tensor(run("onecycle", warmup=1)).argmax()) == 5


@pytest.mark.parametrize("rise", [0.1, 0.2, 0.3, 0.5, 1.0])
def test_onecycle_runs_over_any_number_of_steps(rise):
    for steps in range(1, 24):
        optimiser = groups(0.1)
        scheduler, *_ = schedules.make("onecycle", optimiser, epochs=1, steps_per_epoch=steps, lr=0.1, rise=rise)
        found = rates(scheduler, optimiser, steps)
        assert all(0 < rate < 0.1 + 1e-9 for rate in found)


def test_warmup_climbs_in_a_line_and_leaves_the_rest_to_the_schedule():
    found = run("cosine", warmup=1.2)
    assert found[:6] == pytest.approx([0.1 * (0.01 + 0.99 * step / 6) for step in range(6)])
    assert found[6:] == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 24)) for step in range(24)])
    assert run("step", warmup=2, every=1)[10:20] == pytest.approx([0.1] * 5 + [0.01] * 5)


def test_plateau_waits_for_a_score_that_does_not_rise():
    optimiser = groups(0.1)
    scheduler, interval, needs_metric = schedules.make(
        "plateau", optimiser, epochs=8, steps_per_epoch=3, lr=0.1, patience=1, factor=0.5, floor=0.3
    )
    assert (interval, needs_metric) == ("epoch", True)
    found = rates(scheduler, optimiser, 8, 0.5, 0.6, 0.6, 0.6, 0.7, 0.6, 0.6, 0.6)
    assert found == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.03])


@pytest.mark.parametrize("name", SCHEDULES)
def test_groups_keep_the_ratio_of_their_rates(name):
    optimiser = groups(0.01, 0.04)
    scheduler, *_ = schedules.make(name, optimiser, epochs=4, steps_per_epoch=3, lr=0.4)
    for _ in range(11):
        first, second = (group["lr"] for group in optimiser.param_groups)
        assert second == pytest.approx(4 * first)
        optimiser.step()
        scheduler.step(*([0.5] if SCHEDULES[name].needs_metric else []))


@pytest.mark.parametrize(("name", "warmup"), [(n, w) for n in SCHEDULES for w in (0, 1) if n != "plateau" or not w])
def test_a_run_that_was_stopped_goes_on_where_it_was(name, warmup):
    def new():
        optimiser = groups(0.1)
        return optimiser, schedules.make(name, optimiser, epochs=4, steps_per_epoch=3, lr=0.1, warmup=warmup)[0]

    def go(optimiser, scheduler, steps):
        return rates(scheduler, optimiser, steps, *([0.5] * 12 if SCHEDULES[name].needs_metric else []))

    whole = go(*new(), 12)
    optimiser, scheduler = new()
    first = go(optimiser, scheduler, 7)
    other, resumed = new()
    other.load_state_dict(optimiser.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    assert first + go(other, resumed, 5) == pytest.approx(whole, rel=1e-12)


def test_layer_decay_is_in_the_rates_and_biases_are_not_decayed():
    model = timm.create_model("test_resnet", num_classes=3)
    made = schedules.optimiser("adamw", model, 0.1, 0.05, layer_decay=0.5)
    found = {(group["lr"], group["weight_decay"]) for group in made.param_groups}
    assert {rate for rate, _ in found} == {0.1 * 0.5**depth for depth in range(6)}
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
    assert all(group["lr"] == 0.1 for group in made.param_groups for p in group["params"] if id(p) in head)
    assert {p.ndim > 1 for group in made.param_groups if group["weight_decay"] for p in group["params"]} == {True}


def test_frozen_parameters_are_left_out():
    model = timm.create_model("test_resnet", num_classes=3)
    model.requires_grad_(requires_grad=False)
    with pytest.raises(TrainingError, match="nothing to train"):
        schedules.optimiser("sgd", model, 0.1)
    model.get_classifier().requires_grad_()
    for decay in (None, 0.7):
        made = schedules.optimiser("sgd", model, 0.1, layer_decay=decay)
        assert sum(p.numel() for g in made.param_groups for p in g["params"]) == sum(
            p.numel() for p in model.get_classifier().parameters()
        )


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_learns(name):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    x = torch.randn(64, 4)
    y = x.sum(1, keepdim=True)
    made = schedules.optimiser(name, model, 0.01, 1e-4)
    before = float(((model(x) - y) ** 2).mean().detach())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(60):
            made.zero_grad()
            value = ((model(x) - y) ** 2).mean()
            value.backward()
            made.step()
    assert float(value.detach()) < 0.7 * before


def test_the_usual_names_are_torchs_classes():
    model = torch.nn.Linear(2, 2)
    sgd, adam = (schedules.optimiser(name, model, 0.1) for name in ("sgd", "adamw"))
    assert (type(sgd), sgd.param_groups[0]["nesterov"]) == (torch.optim.SGD, True)
    assert type(adam) is torch.optim.AdamW
    assert schedules.optimiser("adamw", model, 0.1, options={"betas": (0.8, 0.9)}).param_groups[0]["betas"] == (0.8, 0.9)


def test_what_cannot_be_made_is_refused():
    model, optimiser = torch.nn.Linear(2, 2), groups(0.1)
    with pytest.raises(TrainingError, match="no optimiser 'adamx'") as caught:
        schedules.optimiser("adamx", model, 0.1)
    assert "adam" in caught.value.hint
    for bad in ({"lr": 0}, {"lr": 0.1, "weight_decay": -1}, {"lr": 0.1, "layer_decay": 2}, {"lr": 0.1, "layer_decay": 0}):
        with pytest.raises(TrainingError, match="learning rate"):
            schedules.optimiser("sgd", model, **bad)
    with pytest.raises(TrainingError, match="wings"):
        schedules.optimiser("sgd", model, 0.1, options={"wings": 2})
    given = {"epochs": 3, "steps_per_epoch": 2, "lr": 0.1}
    with pytest.raises(TrainingError, match="unknown schedule 'poly'"):
        schedules.make("poly", optimiser, **given)
    with pytest.raises(TrainingError, match="no option gamma"):
        schedules.make("cosine", optimiser, **given, gamma=1)
    with pytest.raises(TrainingError, match="leaves nothing of 3 epochs"):
        schedules.make("cosine", optimiser, **given, warmup=3)
    with pytest.raises(TrainingError, match="takes no warm-up"):
        schedules.make("plateau", optimiser, **given, warmup=1)
