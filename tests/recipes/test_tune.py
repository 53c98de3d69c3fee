"""recipes/tune.py: the space, a search that a kill does not end, pruning, importance, and the line that retrains the best."""

from __future__ import annotations

import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.conftest import few_digits, make_workspace
from tests.recipes.test_recipes import load
from toolkit.errors import TrainingError
from toolkit.training.search import Space, name_of, open_study, words

TUNE = Path(__file__).parents[2] / "recipes" / "tune.py"

# a recipe whose score is known: best at lr 0.01 and depth 3, whatever `colour` is; one fold takes `--nap` seconds
RECIPE = """
import json, math, time
from pathlib import Path
import click
from toolkit.cli.recipes import Recipe
from toolkit.errors import TrainingError

@click.command(cls=Recipe)
@click.option("--workspace", type=click.Path(path_type=Path))
@click.option("--member")
@click.option("--fold", type=int)
@click.option("--device")
@click.option("--epochs", type=int, default=4)
@click.option("--lr", type=float, default=0.1)
@click.option("--depth", type=int, default=1)
@click.option("--colour", default="red")
@click.option("--fast/--no-fast", default=False)
@click.option("--nap", type=float, default=0.0)
@click.pass_context
def main(ctx, workspace, member, fold, device, epochs, lr, depth, colour, fast, nap):
    print("noise")
    folder = workspace / "runs" / member / f"fold{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    (workspace / "folds").mkdir(exist_ok=True)
    with (workspace / "log").open("a") as log:
        log.write(f"{member} {fold} {lr!r} {depth} {colour} {fast}\\n")
    time.sleep(nap)
    score = 1 - (math.log10(lr) + 2) ** 2 / 10 - (depth - 3) ** 2 / 50 + fold / 1000
    if depth == 7:
        raise TrainingError("the loss is nan")
    if ctx.obj:
        class Fold: judge = staticmethod(lambda model: {"score": score})
        for epoch in range(1, epochs + 1):
            ctx.obj(Fold, {"epoch": epoch}, None)
    for path in (folder / "model.safetensors", workspace / "folds" / f"{member}.fold{fold}.onnx"):
        path.write_text("weights")
    (folder / "config.json").write_text(json.dumps({"score": score}))

if __name__ == "__main__":
    main()
"""
SPACE = """
recipe = "{recipe}"
[search]
lr = {{ low = 1e-5, high = 10.0, log = true }}
depth = {{ low = 1, high = 6 }}
colour = {{ choices = ["red", "blue"] }}
[fixed]
fast = true
{fixed}
"""


@pytest.fixture
def place(tmp_path):
    root = make_workspace(tmp_path / "work")
    (root / "recipes").mkdir()
    (root / "recipes" / "known.py").write_text(RECIPE)
    return root


def space(root, fixed="", recipe="known"):
    path = root / "space.toml"
    path.write_text(SPACE.format(recipe=recipe, fixed=fixed))
    return path


def tune(root, *options, **said):
    return CliRunner().invoke(load(TUNE).main, [str(space(root, **said)), "--workspace", str(root), *options])


def trials(root, study="study"):
    return list(csv.DictReader((root / "tuning" / study / "trials.csv").read_text().splitlines()))


def test_the_best_flags_are_found_and_the_last_line_retrains_them(place):
    ran = tune(place, "--trials", "25")
    assert ran.exit_code == 0, ran.output
    assert "noise" not in ran.output
    found = trials(place)
    assert len(found) == 25
    done = [row for row in found if row["state"] == "complete"]
    best = max(done, key=lambda row: float(row["accuracy"]))
    assert 0.9 < float(best["accuracy"]) <= 1.0005
    assert f"best: trial {best['trial']}  accuracy {float(best['accuracy']):.4f}" in ran.output
    line = shlex.split(ran.output.splitlines()[-1])
    assert line[:2] == ["python", str(place / "recipes" / "known.py")]
    assert "--fast" in line
    assert line[line.index("--lr") + 1] == best["lr"]
    assert line[line.index("--member") + 1] == "study-best"
    assert (place / "tuning/study/importance.png").read_bytes().startswith(b"\x89PNG")
    shares = dict(part.split() for part in ran.output.split("importance: ")[1].splitlines()[0].split(", "))
    assert set(shares) == {"lr", "depth", "colour"}
    assert float(shares["colour"]) < max(float(shares["lr"]), float(shares["depth"]))
    assert sum(map(float, shares.values())) == pytest.approx(1, abs=0.03)


def test_the_same_command_goes_on_and_keeps_no_weights(place):
    assert tune(place, "--trials", "3").exit_code == 0
    before = trials(place)
    assert tune(place, "--trials", "3").exit_code == 0
    assert trials(place) == before
    assert tune(place, "--trials", "5").exit_code == 0
    assert trials(place)[:3] == before
    assert len({row["lr"] for row in trials(place)}) == 5
    study = place / "tuning" / "study"
    assert not [*study.rglob("*.safetensors"), *study.rglob("*.onnx")]
    assert not (place / "runs").exists()
    assert not (place / "folds").exists()


@pytest.mark.parametrize(("fixed", "when"), [("", "in epoch 2"), ("epochs = 1", "after fold 0")])
def test_bad_trials_are_pruned_by_epoch_and_by_fold(place, fixed, when):
    ran = tune(place, "--trials", "20", fixed=fixed)
    assert ran.exit_code == 0, ran.output
    assert f"pruned: {when}  --lr" in ran.output
    found = trials(place)
    pruned = [row for row in found if row["state"] == "pruned"]
    assert min(int(row["trial"]) for row in pruned) >= 5  # the median of fewer says little
    log = [line.split() for line in (place / "tuning/study/log").read_text().splitlines()]
    folds = {member: [int(one[1]) for one in log if one[0] == member] for member, *_ in log}
    assert [0] in folds.values()  # pruned before its second fold
    worst = sorted(float(row["accuracy"]) for row in found if row["state"] == "complete")
    assert all(row["accuracy"] == "" for row in pruned)
    assert len(worst) >= 5


def test_a_search_that_was_killed_goes_on_where_it_stopped(place, quick_processes):
    path = space(place, "nap = 0.3")
    command = [sys.executable, str(TUNE), str(path), "--workspace", str(place), "--trials", "4"]
    log = place / "tuning" / "study" / "log"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    until = time.monotonic() + 60
    while not log.exists() or len(log.read_text().splitlines()) < 4:  # in the second fold of the second trial
        assert time.monotonic() < until
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    killed = log.read_text().splitlines()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = trials(place)
    states = [row["state"] for row in found]
    assert states.count("complete") == 4
    assert states.count("fail") == 1  # the one that was running
    again = [line for line in log.read_text().splitlines()[len(killed) :] if line.split()[0] == killed[-1].split()[0]]
    assert again == [killed[-1]]  # its second fold only, with the same flags
    assert "another search" not in done.stderr


def test_two_searches_in_one_study_are_kept_apart(place, quick_processes):
    path = space(place, "nap = 5")
    command = [sys.executable, str(TUNE), str(path), "--workspace", str(place), "--trials", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    until = time.monotonic() + 60
    while not (place / "tuning/study/log").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    ran = tune(place, "--trials", "1")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert ran.exit_code == 1
    assert "another search works in" in ran.output


def test_a_trial_that_fails_is_noted_and_flags_that_all_fail_end_the_search(place):
    text = SPACE.format(recipe="known", fixed="").replace("low = 1, high = 6", "low = 6, high = 7")
    (place / "space.toml").write_text(text)
    ran = CliRunner().invoke(load(TUNE).main, [str(place / "space.toml"), "--workspace", str(place), "--trials", "4"])
    assert ran.exit_code == 0, ran.output
    assert "fail: the loss is nan" in ran.output
    assert [row["state"] for row in trials(place)].count("fail") >= 1
    (place / "space.toml").write_text(text.replace("depth = { low = 6, high = 7 }", "").replace("fast = true", "depth = 7"))
    every = [str(place / "space.toml"), "--workspace", str(place), "--study", "other"]
    ran = CliRunner().invoke(load(TUNE).main, every)
    assert ran.exit_code == 1
    assert "the first 3 trials failed, the last one: the loss is nan" in ran.output


def test_a_shipped_recipe_is_searched_on_real_images(tmp_path):
    root = few_digits(tmp_path / "digits", 4)
    path = root / "space.toml"
    path.write_text(
        'recipe = "plain_torch"\nfolds = [1]\n[search]\nlr = { low = 1e-3, high = 1e-2, log = true }\n'
        "[fixed]\nepochs = 2\nbatch-size = 8\n"
    )
    ran = CliRunner().invoke(load(TUNE).main, [str(path), "--workspace", str(root), "--trials", "2", "--device", "cpu"])
    assert ran.exit_code == 0, ran.output
    found = trials(root)
    assert [row["state"] for row in found] == ["complete"] * 2
    assert all(0 <= float(row["accuracy"]) <= 1 for row in found)
    assert sorted(p.name for p in (root / "tuning/study/runs").glob("*/*")) == ["fold1", "fold1"]
    assert len(list((root / "tuning/study/runs").rglob("events.out.tfevents.*"))) == 2
    for trial in open_study(root / "tuning" / "study", "study").trials:  # judged after half of the epochs, then by the fold
        assert list(trial.intermediate_values) == [1, 10_000]
    best = max(found, key=lambda row: float(row["accuracy"]))
    assert f"--member study-best --epochs 2 --batch-size 8 --lr {best['lr']}" in ran.output


def test_a_space_that_is_wrong_is_explained(place):
    for text, said in (
        ("", "needs a recipe and a table"),
        ('recipe = "known"\n[search]\n', "needs a recipe and a table"),
        ('recipe = "known"\ntrials = 3\n[search]\nlr = { low = 1, high = 2 }', "unknown key 'trials'"),
        ('recipe = "known"\n[search]\nlr = { low = 2, high = 1 }', "low must be a number below high"),
        ('recipe = "known"\n[search]\nlr = { low = 0.0, high = 1.0, log = true }', "begins above 0"),
        ('recipe = "known"\n[search]\nlr = { from = 1, to = 2 }', "is no range"),
        ('recipe = "known"\n[search]\nlr = { choices = [1] }', "two and more"),
        ('recipe = "known"\n[search]\nlr = { low = 1, high = 2 }\n[fixed]\nlr = 1', "both searched and fixed"),
        ('recipe = "known"\n[search]\nspeed = { low = 1, high = 2 }', "known has no flag 'speed'"),
        ('recipe = "nobody"\n[search]\nlr = { low = 1, high = 2 }', "there is no recipe 'nobody'"),
        ('recipe = "known"\nfolds = 1\n[search]\nlr = { low = 1, high = 2 }', "folds: a list is needed"),
        ('recipe = "known"\nfixed = [[]]\n[search]\nlr = { low = 1, high = 2 }', "fixed: "),
        ('recipe = "known"\n[search]\nlr = { low = 1.0, high = 2.0, log = [] }', "log is true or false"),
        ("recipe = ", "cannot be read"),
    ):
        (place / "space.toml").write_text(text)
        ran = CliRunner().invoke(load(TUNE).main, [str(place / "space.toml"), "--workspace", str(place)])
        assert ran.exit_code == 1, text
        assert said in ran.output, ran.output
    assert not (place / "tuning").exists()


def test_flags_are_written_as_a_shell_takes_them():
    assert words({"lr": 0.1, "fast": True, "pretrained": False, "n": 3}) == [
        "--lr",
        "0.1",
        "--fast",
        "--no-pretrained",
        "--n",
        "3",
    ]
    assert name_of({"a": 1, "b": 2.0}) == name_of({"b": 2.0, "a": 1}) != name_of({"a": 1, "b": 2.1})


def test_whole_numbers_stay_whole_and_steps_are_kept(tmp_path):
    asked = Space(
        "r", {"n": {"low": 8, "high": 64, "step": 8}, "x": {"low": 0.0, "high": 1.0, "step": 0.25}, "c": {"choices": [1, 2]}}
    )
    study = open_study(tmp_path, "s")
    for _ in range(20):
        flags = asked.suggest(study.ask())
        assert type(flags["n"]) is int
        assert flags["n"] % 8 == 0
        assert flags["x"] in (0, 0.25, 0.5, 0.75, 1)
        assert flags["c"] in (1, 2)


def test_a_missing_optuna_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(TrainingError, match="needs the package optuna") as caught:
        open_study(tmp_path, "s")
    assert "pip install optuna" in caught.value.hint
