"""Training in several processes: folds side by side to the bit, batches shared up to rounding, and nothing hangs or is left."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, contextmanager, nullcontext
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file
from torch import nn
from torch.utils.data import DataLoader

from tests.conftest import make_workspace
from tests.training.test_training_kit import a_plan
from toolkit import training
from toolkit.cli.recipes import common
from toolkit.core import prediction_files
from toolkit.errors import DeviceError, TrainingError
from toolkit.training import fit, loader
from toolkit.training.fold import state_file
from toolkit.training.fold.process_group import Team
from toolkit.training.fold.samples import Batches
from toolkit.training.launcher import SPREADS, ProcessLauncher, launcher_for


@contextmanager
def within(seconds):
    """A test that hangs fails instead."""

    def late(*_):
        raise TimeoutError(f"still not over after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids, seconds=20):
    until = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(alive, pids))


pytestmark = pytest.mark.usefixtures("quick_processes")

# --- who sees what ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_team_sees_every_batch_once_and_draws_differently(size):
    whole = list(Batches(47, 7, seed=3))
    shares = []
    for rank in range(size):
        sampler = Batches(47, 7, seed=3)
        sampler.team = Team(rank, size)
        shares.append(list(sampler))
        assert len(sampler) == len(shares[-1]) == 6
    for number, (seed, rows) in enumerate(whole):
        dealt = [share[number] for share in shares]
        assert sorted(row for _, part in dealt for row in part) == sorted(rows)
        assert max(len(part) for _, part in dealt) - min(len(part) for _, part in dealt) <= 1
        assert dealt[0][0] == seed
        assert len({draw for draw, _ in dealt}) == size
    assert len({draw for share in shares for draw, _ in share}) == 6 * size


TEAM = """
import sys
from pathlib import Path
import torch
from torch import nn
from toolkit.training.worker import at_work
from toolkit.training.fold.process_group import Team, together

def network():
    torch.manual_seed(0)
    return nn.ModuleDict({
        "body": nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)),
        "first": nn.Linear(6, 3), "idle": nn.Linear(2, 2), "wide": nn.Linear(6, 3).double(), "still": nn.BatchNorm1d(6),
    }).train()

def out(model, x, rank):
    model["still"].eval()
    y = model["body"](model["still"](x)) + model["wide"](x.double()).float()
    return y + model["first"](x) if rank == 0 else y

with at_work() as worker:
    with together(worker.task.rank, worker.task.size, Path(worker.task.meeting), "cpu") as team:
        rank, found = team.rank, {}
        generator = torch.Generator().manual_seed(7)
        x, y = torch.randn(10, 6, generator=generator), torch.randint(0, 3, (10,), generator=generator)
        mine = slice(rank, None, team.size)
        model = network()
        with torch.no_grad():
            for one in model.parameters():
                one.add_(rank)
        team.align(model)
        found["aligned"] = [one.detach().clone() for one in model.parameters()]
        loss = nn.functional.cross_entropy(out(model, x[mine], rank), y[mine]) * len(x[mine]) / len(x)
        loss.backward()
        found["own statistics"] = model["body"][1].running_mean.clone()
        total, micro = team.step(model, loss.detach(), 4 - rank)
        found |= {"loss": total, "own": loss.detach(), "micro": micro}
        found["gradients"] = {name: one.grad for name, one in model.named_parameters()}
        found["statistics"] = model["body"][1].running_mean
        found["still"] = model["still"].running_mean
        found["least"], found["told"] = team.least(5 - rank), team.told(10 + rank)
        # torch's own data parallel averages what equal shares give
        theirs = network()["body"]
        parallel = nn.parallel.DistributedDataParallel(theirs)
        nn.functional.cross_entropy(parallel(x[mine]), y[mine]).backward()
        ours = network()["body"]
        (nn.functional.cross_entropy(ours(x[mine]), y[mine]) / team.size).backward()
        team.step(ours, torch.zeros(()), 1)
        found["theirs"] = [one.grad for one in theirs.parameters()]
        found["ours"] = [one.grad for one in ours.parameters()]
        with team.leading():
            if team.leads:
                __import__("time").sleep(0.5)
                (Path(worker.task.root) / "led").touch()
            found["led"] = (Path(worker.task.root) / "led").exists()
        torch.save(found, Path(worker.task.root) / f"{rank}.pt")
        worker.say("done", __import__("toolkit.training").training.Done(0, 1.0, 0.0)) if team.leads else None
"""


def no_bar(_title):
    return nullcontext(lambda _done, _total: None)


def train(script, workspace, folds, *arguments, processes=2, spread="folds", device="cpu", gpus=0, say=lambda _text: None):
    made = ProcessLauncher(script, arguments, processes, gpus, spread)
    with within(100):
        yield from made.train(a_plan(workspace), folds, device=device, bar=no_bar, say=say)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    def write(name, text):
        path = tmp_path_factory.mktemp("scripts") / f"{name}.py"
        path.write_text(text)
        return path

    return write


def test_a_team_sums_gradients_as_one_process_has_them(script, workspace):
    (done,) = train(script("team", TEAM), workspace, [0], spread="batches")
    assert done.score == 1.0
    one, two = (torch.load(workspace / f"{rank}.pt") for rank in range(2))
    for a, b, c in zip(one["aligned"], two["aligned"], one["gradients"].values(), strict=True):
        assert torch.equal(a, b)
        assert c is None or c.shape == a.shape
    assert torch.equal(one["loss"], two["loss"])
    torch.testing.assert_close(one["loss"], one["own"] + two["own"])
    assert (one["micro"], two["micro"]) == (3, 3)
    for name, gradient in one["gradients"].items():
        assert (
            gradient is None
            if "idle" in name or ("still" in name and gradient is None)
            else torch.equal(gradient, two["gradients"][name])
        ), name
    assert two["gradients"]["first.weight"].abs().sum() > 0  # took part in the first process only
    assert two["gradients"]["wide.weight"].dtype == torch.float64
    mean = (one["own statistics"] + two["own statistics"]) / 2
    torch.testing.assert_close(one["statistics"], mean)
    assert torch.equal(one["statistics"], two["statistics"])
    assert torch.equal(one["still"], torch.zeros(6))
    assert (one["least"], two["least"], one["told"], two["told"]) == (4, 4, 10, 10)
    for ours, theirs in zip(one["ours"], one["theirs"], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert one["led"]
    assert two["led"]


# --- processes, without any training ------------------------------------------------------------------------------------

LIGHT = """
import json, os, signal, sys, time
from pathlib import Path
from toolkit.errors import TrainingError
from toolkit.training.worker import at_work
from toolkit.training import Done
from toolkit.training.fold.process_group import PeerError

with at_work() as worker:
    task, what = worker.task, dict(word.split("=") for word in sys.argv[1:])
    for fold in task.folds:
        begun, name = time.time(), f"{fold}.{task.rank}"
        (Path(task.root) / f"pid.{name}").write_text(str(os.getpid()))
        print("said on stdout")
        worker.say("progress", f"fold {fold}", 1, 10)
        kind, _, more = what.get(name, "well:0.1").partition(":")
        if kind != "deaf" and kind != "well":
            time.sleep(float(more or 0))
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "fail":
            raise TrainingError("the loss is nan", hint="Try less.")
        if kind == "crash":
            raise ZeroDivisionError("by nothing")
        if kind == "exit":
            os._exit(0)
        if kind == "lost":
            raise PeerError("connection closed")
        if kind == "deaf":
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(float(more))
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
        (Path(task.root) / f"log.{name}").write_text(json.dumps([begun, time.time(), gpu, os.environ.get("OMP_NUM_THREADS")]))
        if task.rank == 0:
            worker.say("done", Done(fold, 0.5, 1.0))
"""


@pytest.fixture(scope="module")
def light(script):
    return script("light", LIGHT)


def test_folds_come_in_order_two_at_a_time_each_with_a_gpu_of_its_own(light, workspace, monkeypatch, capfd):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    folds = [0, 1, 2, None]
    with closing(train(light, workspace, folds, "0.0=well:1.5", device="cuda", gpus=2)) as found:
        assert [done.fold for done in found] == folds
    ran = {fold: json.loads((workspace / f"log.{fold}.0").read_text()) for fold in folds}
    for one, (begun, _, gpu, _) in ran.items():
        others = [other for other, (start, end, *_) in ran.items() if other != one and start <= begun < end]
        assert len(others) <= 1
        assert all(ran[other][2] != gpu for other in others)
    assert {gpu for _, _, gpu, _ in ran.values()} == {"4", "7"}
    assert ran[1][1] < ran[0][1]  # the second was over before the first
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("said on stdout") == 4


@pytest.mark.parametrize(
    ("what", "message", "hint"),
    [
        ("kill", "fold 1: its process was ended by SIGKILL", "Memory may have run out. Finished folds and epochs are kept"),
        ("fail", "fold 1: the loss is nan", "Try less."),
        ("crash", "fold 1: ZeroDivisionError: by nothing", "traceback stands above"),
        ("exit", "fold 1: the processes ended without a result", "run the same command again"),
    ],
)
def test_a_process_that_fails_names_its_fold_and_ends_the_others(light, workspace, what, message, hint):
    said = []
    every = train(light, workspace, [0, 1, 2, 3], f"1.0={what}:1.5", "2.0=well:600", say=said.append)
    assert next(every).fold == 0
    with pytest.raises(TrainingError) as caught:
        next(every)
    assert caught.value.message == message
    assert hint in caught.value.hint
    assert ["ZeroDivisionError: by nothing" in text for text in said] == [True] * (what == "crash")
    assert gone([int(path.read_text()) for path in workspace.glob("pid.*")])


def test_what_ended_one_of_a_team_is_told_not_that_the_others_lost_it(light, workspace):
    with pytest.raises(TrainingError, match=r"^fold 1: process 2 of 2 was ended by SIGKILL$"):
        list(train(light, workspace, [1, 0], "1.0=lost", "1.1=kill", spread="batches"))
    with pytest.raises(TrainingError, match=r"^fold 0: the loss is nan$"):
        list(train(light, workspace, [0], "0.0=lost", "0.1=fail", spread="batches"))


PARENT = """
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from toolkit.training import launcher

launcher.GRACE = 1.0
plan = SimpleNamespace(root=Path({root!r}), key="", member="light")
made = launcher.ProcessLauncher(Path({script!r}), ("0.0=well:600", "1.0=deaf:600"), 2)
list(made.train(plan, [0, 1], device="cuda", bar=lambda _: nullcontext(lambda *_: None), say=print))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_the_death_of_the_first_process_end_all_of_them(light, workspace, how):
    text = PARENT.format(script=str(light), root=str(workspace))
    with (workspace / "err").open("wb") as err:  # no pipe: the others would hold it open
        parent = subprocess.Popen([sys.executable, "-c", text], stderr=err)
    until = time.monotonic() + 60
    while len(pids := [int(p.read_text() or 0) for p in workspace.glob("pid.*")]) < 2 or 0 in pids:
        assert time.monotonic() < until, (workspace / "err").read_text()
        time.sleep(0.05)
    time.sleep(0.3)
    parent.send_signal(how)
    assert parent.wait(timeout=60) != 0
    assert gone(pids, 5 if how == signal.SIGINT else 20)  # one of them does not hear interrupts
    assert (workspace / "err").read_text().count("Traceback") == (how == signal.SIGINT)  # of the one that has no command


# --- flags ----------------------------------------------------------------------------------------------------------------


def asked(**said):
    given = {"gpus": None, "processes": None, "spread": None, "device": "auto", "models": 5} | said
    return launcher_for((asked, ["--epochs", "2"]), **given)


def test_flags_ask_for_processes(monkeypatch):
    assert asked() is None
    assert asked(processes=1) is None
    made = asked(processes=3, device="cpu")
    assert (made.processes, made.gpus, made.spread, made.arguments) == (3, 0, "folds", ("--epochs", "2"))
    assert made.script == Path(__file__)
    assert asked(processes=2, device="cpu", models=1, spread="batches").spread == "batches"
    assert made.splits([0, 1])
    assert not made.splits([3])
    assert asked(processes=2, device="cpu", spread="batches").splits([3])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for said, processes, gpus in (
        ({"gpus": "all"}, 4, 4),
        ({"gpus": 2}, 2, 2),
        ({"gpus": 2, "processes": 6}, 6, 2),
        ({"processes": 3}, 3, 1),
        ({"gpus": 4, "spread": "batches", "models": 1}, 4, 4),
    ):
        made = asked(**said)
        assert (made.processes, made.gpus) == (processes, gpus)
    for said, error, message, code in (
        ({"gpus": 5}, DeviceError, "5 GPUs were asked for, there are 4", "gpus-all"),
        ({"gpus": 2, "device": "cpu"}, DeviceError, "the device is the CPU", "processes-on-cpu"),
        ({"gpus": 2, "processes": 4, "spread": "batches"}, DeviceError, "a GPU per process", "gpu-per-process"),
        ({"gpus": 2, "models": 1}, TrainingError, "there is one model to train", "spread-batches"),
        ({"spread": "batches"}, TrainingError, "over how many", "spread-over"),
    ):
        with pytest.raises(error, match=message) as caught:
            asked(**said)
        assert caught.value.code == code


def test_every_way_of_spreading_can_be_asked_for():
    options = {param.name: param for param in common(".")(lambda: None).__click_params__}
    assert list(options["spread"].type.choices) == list(SPREADS)
    assert not any(options[name].expose_value for name in ("gpus", "processes", "spread"))  # recipes need not take them


# --- training ---------------------------------------------------------------------------------------------------------------

RECIPE = """
import os
from dataclasses import dataclass, replace
from pathlib import Path
import click, numpy as np, torch
from torch import nn
from torch.nn import functional as F
from toolkit.core.cards import Preprocess
from toolkit.cli.recipes import Recipe, common, folds_of, follow, results, settings
from toolkit.workspace.competition import Competition
from toolkit.errors import TrainingError
from toolkit.training import Plan, fit, loader, normalise, setting

MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Config:
    member: str = setting("tiny", "Name.")
    seed: int = setting(0, "Seed.")
    epochs: int = setting(4, "Epochs.")
    batch_size: int = setting(7, "Batch.")
    patience: int = setting(0, "Patience.")
    norm: bool = setting(False, "BatchNorm.")


class Net(nn.Module):
    def __init__(self, rank, norm):
        super().__init__()
        self.rank = rank
        middle = [nn.BatchNorm1d(16)] if norm else []
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), *middle, nn.Tanh(), nn.Linear(16, 3))

    def forward(self, images):
        if os.environ.get("NARROW") and self.training and self.rank == 1 and len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.inner(images)


def train_fold(config, fold):
    rank, seen, steps = fold.team.rank, [], []
    model = Net(rank, config.norm)
    feed = loader(fold.training, config.batch_size)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, total_steps=config.epochs * len(feed))

    def prepare(pixels):
        seen.append(pixels.double().sum((1, 2, 3)).tolist())
        return normalise(pixels, MEAN, STD)

    def loss(logits, labels):
        steps.append(1)
        if os.environ.get("FAIL") and rank == 1 and len(steps) == 3 * len(feed):  # in the third epoch
            raise TrainingError("the second process has had enough", hint="Ask it nicely.")
        return F.cross_entropy(logits, labels)

    trained = fit(model, feed, fold, epochs=config.epochs, prepare=prepare, loss=loss, optimiser=optimiser, schedule=schedule,
        ema=0.5, clip=0.5, patience=config.patience)
    if "SEEN" in os.environ:
        Path(os.environ["SEEN"], f"{fold.number}.{rank}").write_text(repr(seen[1:]))  # after those that the network was looked at with
        torch.save(trained.state_dict(), Path(os.environ["SEEN"], f"{fold.number}.{rank}.pt"))
    return trained


@click.command(cls=Recipe)
@common(workspace=".")
@settings(Config)
def main(workspace, folds, device, *, fresh, smoke, **said):
    torch.set_num_threads(1)
    competition, config = Competition.read(workspace), Config(**said)
    if smoke:
        config, folds = replace(config, epochs=1), folds or (0,)
    with results(competition, smoke=smoke) as root:
        plan = Plan("tiny", config, {"model_name": "none"}, Preprocess((8, 8)), MEAN, STD, competition, folds_of(competition), root)
        follow(plan, train_fold, folds=folds, device=device, fresh=fresh)


if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def recipe(script):
    path = script("recipe", RECIPE)
    spec = importlib.util.spec_from_file_location("parallel_recipe", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("parallel") / "work", train=48)


@pytest.fixture(scope="module")
def run(recipe, bare, tmp_path_factory):
    """A function that runs the recipe in a fresh workspace, or in that of an earlier run; on a CPU unless told."""
    numbers = count()

    def go(*flags, root=None, device="cpu", **environment):
        if root is None:
            root = tmp_path_factory.mktemp("runs") / str(next(numbers))
            shutil.copytree(bare, root)
            (root / "seen").mkdir()
        arguments = ["--workspace", str(root), "--device", device, *flags]
        with within(200):
            done = CliRunner().invoke(recipe.main, arguments, env={"SEEN": str(root / "seen"), **environment})
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return root, done

    return go


@pytest.fixture(scope="module")
def alone(run):
    root, done = run()
    assert done.exit_code == 0, done.output
    return root, done


def lines(done):
    """Results on stdout, without the seconds."""
    return [line.rpartition("  ")[0] if line.endswith(" s") else line for line in done.stdout.splitlines()]


def metrics(root, fold):
    rows = list(csv.DictReader((root / f"runs/tiny/fold{fold}/metrics.csv").read_text().splitlines()))
    return [{name: float(value) for name, value in row.items() if name not in ("images/s", "waited")} for row in rows]


def about(root, fold):
    return json.loads((root / f"runs/tiny/fold{fold}/config.json").read_text())


def same_weights(one, two, fold=0, **tolerance):
    a, b = (load_file(root / f"runs/tiny/fold{fold}/model.safetensors") for root in (one, two))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], **(tolerance or {"rtol": 0, "atol": 1e-5}), err_msg=name)


def test_folds_side_by_side_are_those_of_one_process_to_the_byte(run, alone):
    one, first = alone
    two, second = run("--processes", "2")
    assert second.exit_code == 0, second.output
    assert lines(second) == lines(first)
    assert lines(first)[0].startswith("fold 0  accuracy ")
    assert second.stderr.count("feeding:") == 1
    kept = [
        "oof/tiny.parquet",
        *(f"runs/tiny/fold{k}/oof.parquet" for k in range(2)),
        *(f"folds/tiny.fold{k}.onnx" for k in range(2)),
    ]
    for name in kept:
        assert (two / name).read_bytes() == (one / name).read_bytes(), name
    for fold in range(2):
        same_weights(one, two, fold, rtol=0, atol=0)  # the file's own header has no fixed order
        assert metrics(one, fold) == metrics(two, fold)
        assert about(one, fold)["settings"] == about(two, fold)["settings"]
        assert len(list((two / f"runs/tiny/fold{fold}").glob("events.out.tfevents.*"))) == 1
    (two / "folds/tiny.fold1.onnx").unlink()
    before = (two / "folds/tiny.fold0.onnx").stat().st_mtime_ns
    _, again = run("--processes", "2", root=two)  # what is left is one fold, which takes no other process
    assert "fold 0  accuracy" in again.stdout
    assert again.stdout.splitlines()[0].endswith("finished before")
    assert (two / "folds/tiny.fold0.onnx").stat().st_mtime_ns == before
    assert (two / "folds/tiny.fold1.onnx").read_bytes() == (one / "folds/tiny.fold1.onnx").read_bytes()


def test_shared_batches_give_the_weights_of_one_process_and_go_on_after_a_failure(run, alone):
    one, _ = alone
    flags = ["--processes", "2", "--spread", "batches"]
    two, failed = run(*flags, FAIL="1")
    assert failed.exit_code == 1
    assert "Error: fold 0: the second process has had enough" in failed.stderr
    assert "Hint: Ask it nicely." in failed.stderr
    assert "Traceback" not in failed.stderr
    assert torch.load(two / "runs/tiny/fold0" / state_file.FILE, weights_only=True)["epoch"] == 2
    _, done = run(*flags, root=two, NARROW="1")
    assert done.exit_code == 0, done.output
    for fold in range(2):
        same_weights(one, two, fold)
        for ours, theirs in zip(metrics(two, fold), metrics(one, fold), strict=True):
            assert ours == pytest.approx(theirs, abs=2e-5)
        (report,) = about(two, fold)["report"]
        assert about(two, fold)["processes"] == report["processes"] == 2
        assert (report["effective_batch"], report["micro_batch"]) == (7, 2)  # the second process ran out of memory
        assert about(one, fold)["processes"] == 1
        ranks = [torch.load(two / f"seen/{fold}.{rank}.pt") for rank in range(2)]
        assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
    assert len(list((two / "runs/tiny/fold1").glob("events.out.tfevents.*"))) == 1  # the first process's
    ours, theirs = (prediction_files.read_table(root / "oof/tiny.parquet").predictions["label"] for root in (two, one))
    np.testing.assert_allclose(ours.values, theirs.align(ours.ids).values, atol=1e-5)
    # fold 1 was trained in one go: in each step its processes saw the rows of the one that works alone
    whole = eval((one / "seen/1.0").read_text())
    shares = [eval((two / f"seen/1.{rank}").read_text()) for rank in range(2)]
    assert sum(map(len, whole)) == 7 * len(whole)
    first = [x for part in shares[0] for x in part]
    assert len(first) == 4 * len(whole)
    second = [x for part in shares[1][1:] for x in part]  # after the part that had no memory
    for number, rows in enumerate(whole):
        assert Counter(first[4 * number : 4 * number + 4] + second[3 * number : 3 * number + 3]) == Counter(rows)


def test_all_processes_agree_when_to_stop_and_on_statistics(run):
    root, done = run("--processes", "2", "--spread", "batches", "--fold", "0", "--epochs", "40", "--patience", "1", "--norm")
    assert done.exit_code == 0, done.output
    (report,) = about(root, 0)["report"]
    assert 1 < report["epochs"] == len(metrics(root, 0)) < 40
    ranks = [torch.load(root / f"seen/0.{rank}.pt") for rank in range(2)]
    for name in ranks[0]:
        assert torch.equal(ranks[0][name], ranks[1][name]), name  # BatchNorm's among them
    assert ranks[0]["inner.2.running_mean"].abs().sum() > 0


@pytest.fixture
def two(monkeypatch):
    """A team of which the other process says the same as this one."""
    monkeypatch.setattr(Team, "_largest", lambda _team, values: list(values))
    return Team(0, 2)


def test_what_two_processes_cannot_share_is_refused(two, workspace):
    plan = a_plan(workspace)

    def fold_of(feed_of):
        def train_fold(config, fold):
            model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
            optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.ConstantLR(optimiser)
            said = {"prepare": lambda x: x.float(), "loss": nn.functional.cross_entropy}
            return fit(model, feed_of(fold.training), fold, epochs=1, optimiser=optimiser, schedule=schedule, **said)

        return train_fold

    def own_loop(config, fold):
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))

    plain = fold_of(lambda rows: DataLoader(rows, 4))
    for train_fold, message, code in (
        (
            fold_of(lambda rows: loader(rows, 1)),
            "fold 0: a batch of 1 image cannot be shared by 2 processes",
            "fewer-processes",
        ),
        (plain, "fold 0: 2 processes can share only batches of toolkit.training.loader", "spread-folds"),
        (own_loop, "fold 0: every process trained on whole batches, since test.py has a loop of its own", "spread-folds"),
    ):
        with pytest.raises(TrainingError) as caught:
            list(training.train(plan, train_fold, bar=no_bar, folds=[0], device="cpu", team=two))
        assert caught.value.message == message
        assert caught.value.code == code


two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.mark.gpu
@two_gpus
def test_folds_on_two_gpus_are_those_of_one(run):
    (one, first), (two, second) = run(device="cuda"), run("--gpus", "2", device="cuda")
    assert (first.exit_code, second.exit_code) == (0, 0), second.output
    for fold in range(2):
        same_weights(one, two, fold, rtol=0, atol=1e-3)
        assert about(two, fold)["device"] == "cuda"


@pytest.mark.gpu
@two_gpus
def test_batches_shared_by_two_gpus_give_the_weights_of_one(run):
    (one, first), (two, second) = run(device="cuda"), run("--gpus", "2", "--spread", "batches", device="cuda")
    assert (first.exit_code, second.exit_code) == (0, 0), second.output
    for fold in range(2):
        same_weights(one, two, fold, rtol=0, atol=1e-2)  # bfloat16
        ranks = [torch.load(two / f"seen/{fold}.{rank}.pt", map_location="cpu") for rank in range(2)]
        assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])


@pytest.mark.gpu
@two_gpus
def test_a_process_that_fails_on_its_gpu_ends_the_other(run):
    _, failed = run("--gpus", "2", "--spread", "batches", device="cuda", FAIL="1")
    assert failed.exit_code == 1
    assert "the second process has had enough" in failed.stderr
