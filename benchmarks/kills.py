"""Training killed (kill -9) before every write of a run and at random moments, and refused by a full disk at every write.

    python benchmarks/kills.py                        every write of two folds of three epochs, and 50 random moments
    python benchmarks/kills.py --moments 200 --seed 1

A run makes the decoded cache, trains, exports and joins. What it asks of the file system is counted in an undisturbed run:
every file opened for writing, synced, renamed or removed and every folder made in the workspace. Then, for each of these, a run
is killed just before it; the next run has to end with out-of-fold values equal to the bit to the undisturbed ones, the one
after that has to find every fold finished. Again for each that can meet a full disk, with ENOSPC: the run has to say so, to
leave no part of a file, and the next one has to end the same. All runs are forked from one process. Exit code 1 if any did not.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

EVENTS = {"os.rename": "rename", "os.remove": "remove", "os.mkdir": "make folder"}
FILLING = ("open", "sync", "rename", "make")  # what a full disk can refuse; removing it cannot


@dataclass
class Writes:
    """Counts what a process asks of the file system below `root`; `at` a number (from 0) it does `then`."""

    root: str
    at: int = -1
    then: Callable[[], object] = bool
    seen: list[str] = field(default_factory=list)
    on: bool = True

    def event(self, kind: str, path: object) -> None:
        """One more."""
        name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if self.on and (name.startswith(self.root) or kind == "sync"):
            self.seen.append(f"{kind} {name.removeprefix(self.root).lstrip('/')}".strip())
            if len(self.seen) == self.at + 1:
                self.then()

    def listen(self) -> None:
        """From now on, for as long as the process lives."""
        true = os.fsync

        def synced(handle: int) -> None:
            self.event("sync", "")
            true(handle)

        def hook(name: str, arguments: tuple[Any, ...]) -> None:
            if name in EVENTS:
                self.event(EVENTS[name], arguments[0])
            elif name == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.event("open", arguments[0])

        os.fsync = synced
        sys.addaudithook(hook)


# --- what is trained -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """A recipe's settings."""

    member: str = "tiny"
    seed: int = 0
    seeds: int = 1
    epochs: int = 3


def make_workspace(root: Path) -> None:
    """Thirty small pictures of three classes in two folds."""
    from PIL import Image

    from toolkit.workspace.competition import Competition, Images, Target
    from toolkit.workspace.split import make

    rng = np.random.default_rng(7)
    (root / "train").mkdir(parents=True)
    names = [f"{number:03d}" for number in range(30)]
    for number, name in enumerate(names):
        pixels = (rng.normal(100, 40, (12, 12, 3)) + 40 * np.eye(3)[number % 3]).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / "train" / f"{name}.png")
    rows = [f"{name},{'abc'[number % 3]}\n" for number, name in enumerate(names)]
    (root / "train.csv").write_text("id,label\n" + "".join(rows))
    competition = Competition(
        root=root,
        name="kills",
        metric="accuracy",
        targets=(Target("label", "multiclass", ("a", "b", "c")),),
        train=Images("train", "{id}.png", "train.csv"),
        test=Images("train", "{id}.png"),
        format="labels",
    )
    (root / "competition.toml").write_text(competition.to_toml())
    truth = competition.truth()["label"]
    make(truth.ids, truth.labels, truth.classes, folds=2).write(root / "split.csv")
    old = time.time() - 100  # the index trusts no file that was written a moment ago
    for path in (root / "train").iterdir():
        os.utime(path, (old, old))


def train(root: Path, config: Config, logger: str = "tensorboard") -> tuple[str, list[bool]]:
    """A recipe's run in `root`: the digest of the joined out-of-fold values, and which folds were finished before."""
    import torch
    from torch import nn

    from toolkit.core import prediction_files
    from toolkit.core.cards import Preprocess
    from toolkit.training import TrainingPlan, fit, join, loader, normalise
    from toolkit.training import train as trained
    from toolkit.workspace.competition import Competition
    from toolkit.workspace.split import Split

    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)

    def train_fold(config: Config, fold: Any) -> nn.Module:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        feed = loader(fold.training, 6, seed=fold.seed)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.epochs * len(feed))
        parts: dict[str, Any] = {"loss": nn.functional.cross_entropy, "optimiser": optimiser, "schedule": schedule}
        prepare = lambda pixels: normalise(pixels, mean, std)  # noqa: E731
        return fit(model, feed, fold, epochs=config.epochs, prepare=prepare, ema=0.5, **parts)

    said = {"architecture": {"model_name": "none"}, "preprocess": Preprocess((8, 8)), "mean": mean, "std": std}
    split, competition = Split.read(root / "split.csv"), Competition.read(root)
    plan = TrainingPlan("kills", config, competition=competition, split=split, root=root, logger=logger, **said)
    resumed = [done.resumed for done in trained(plan, train_fold, bar=lambda _: contextlib.nullcontext(lambda *_: None))]
    if join(plan) is None:
        raise AssertionError("no joined table")
    table = prediction_files.read_table(plan.oof).predictions["label"]
    return hashlib.sha256(repr(table.ids).encode() + np.asarray(table.values).tobytes()).hexdigest(), resumed


def quick_exports() -> Any:
    """Exports that are written as real ones are, without torch's exporter, which takes most of the time of a run."""
    from toolkit.base import files

    def export(_model: object, _card: object, path: Path, **_: object) -> None:
        files.write_text(path, "an export")

    return mock.patch("toolkit.training.one_fold.export", export)


# --- runs ------------------------------------------------------------------------------------------------------------


def forked(work: Callable[[], object], kill_after: float | None = None) -> tuple[int, Any]:
    """Exit code and result (plain values) of `work` in a forked process, killed after so many seconds if asked."""
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        os.close(reading)
        code = 3
        import torch

        torch.set_num_threads(1)  # makes its pool anew here, before the threads of autograd race for it ("Invalid thread pool")
        try:
            said: Any = work()
            code = 0
        except BaseException as error:  # noqa: BLE001 - told to who asked
            said = [type(error).__name__, str(error), getattr(error, "hint", "")]
        os.write(writing, json.dumps(said).encode())
        os._exit(code)
    os.close(writing)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code, json.loads(data or b"null") if code >= 0 else None


@dataclass
class Attack:
    """A workspace, how it is trained, and what the undisturbed run came to."""

    root: Path
    config: Config
    logger: str
    whole: str = ""
    writes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def fresh(self) -> Path:
        """The workspace as before any training."""
        for name in ("runs", "folds", "oof", "cache", "store"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        return self.root

    def run(self, at: int = -1, then: Callable[[], object] = bool) -> Any:
        """One run, with what happens at a write."""
        writes = Writes(str(self.root), at, then)
        writes.listen()
        digest, resumed = train(self.root, self.config, self.logger)
        writes.on = False
        return [digest, resumed, writes.seen, list(sys.modules)] if at < 0 else [digest]

    def undisturbed(self) -> None:
        """Count the writes."""
        self.fresh()
        started = time.monotonic()
        code, said = forked(self.run)
        assert code == 0, said
        self.seconds = time.monotonic() - started
        self.whole, _, self.writes, modules = said
        for name in modules:  # so that the runs that follow need not import them
            if name.split(".")[0] != "onnxruntime":  # it starts a thread
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
        gc.collect()
        gc.freeze()

    def goes_on(self, what: str) -> None:
        """The next run ends as the undisturbed one did, and leaves nothing for the one after."""

        def twice() -> Any:
            first = train(self.root, self.config, self.logger)
            return [first[0], *train(self.root, self.config, self.logger)]

        code, said = forked(twice)
        if code != 0 or said[:2] != [self.whole] * 2 or not all(said[2]):
            self.wrong.append(f"{what}: {said}")

    def killed(self, at: int) -> None:
        """Killed before write `at`, then run again."""
        self.fresh()
        code, said = forked(lambda: self.run(at, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        what = f"killed before {at} ({self.writes[at]})"
        if code != -signal.SIGKILL:
            self.wrong.append(f"{what}: was not killed: {code} {said}")
        self.goes_on(what)

    def killed_after(self, seconds: float) -> None:
        """Killed at a moment, then run again."""
        self.fresh()
        forked(lambda: self.run(1 << 30), seconds)
        self.goes_on(f"killed after {seconds:.3f} s")

    def full(self, at: int) -> None:
        """The disk full at write `at`, then run again."""

        def refuse() -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.fresh()
        code, said = forked(lambda: self.run(at, refuse))
        what = f"full at {at} ({self.writes[at]})"
        parts = [str(path.relative_to(self.root)) for path in self.root.rglob("*.part-*")]
        if code == 0:
            if said[0] != self.whole:
                self.wrong.append(f"{what}: other values")
        elif said[0] != "StoreError" or "No space left" not in said[1]:
            self.wrong.append(f"{what}: {said}")
        else:
            self.refused.append(what)
        if parts:
            self.wrong.append(f"{what}: left {parts}")
        self.goes_on(what)


def attack(
    moments: int, seed: int, config: Config, logger: str, chosen: Callable[[list[str]], list[int]] | None = None
) -> Attack:
    """All of it, or at the `chosen` ones of all writes, in a workspace of its own."""
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        root = Path(folder, "work")
        make_workspace(root)
        made = Attack(root, config, logger)
        made.undisturbed()
        places = chosen(made.writes) if chosen else list(range(len(made.writes)))
        for at in places:
            made.killed(at)
        print(f"killed before {len(places)} writes: {len(made.wrong)} wrong", file=sys.stderr, flush=True)
        draws = random.Random(seed)
        for _ in range(moments):
            made.killed_after(draws.random() * made.seconds)
        print(f"killed at {moments} moments: {len(made.wrong)} wrong in all", file=sys.stderr, flush=True)
        for at in places:
            if made.writes[at].split()[0] in FILLING:
                made.full(at)
    return made


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--logger", choices=["tensorboard", "none"], default="tensorboard")
    parser.add_argument("--quick", action="store_true", help="write exports without torch's exporter")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    import pytorch_lightning  # noqa: F401 - once, before anything is forked
    import torch
    import torch.onnx

    torch.set_num_threads(1)
    if asked.logger == "tensorboard":
        import torch.utils.tensorboard
    started = time.monotonic()
    with quick_exports() if asked.quick else contextlib.nullcontext():
        made = attack(asked.moments, asked.seed, Config(seeds=asked.seeds, epochs=asked.epochs), asked.logger)
    said = {"writes": len(made.writes), "moments": asked.moments, "refused": len(made.refused), "wrong": made.wrong}
    if asked.json:
        print(json.dumps(said | {"kinds": made.writes}))
    else:
        print(f"killed before each of {len(made.writes)} writes and at {asked.moments} moments")
        print(f"full disk at a write: {len(made.refused)} times refused with a sentence")
        print(f"wrong: {len(made.wrong)}, in {time.monotonic() - started:.0f} s", *made.wrong, sep="\n  ")
    return int(bool(made.wrong))


if __name__ == "__main__":
    sys.exit(main())
