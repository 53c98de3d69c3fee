"""Damaged and hostile files of every kind that is read: each is read as it was, refused by name, or made again.

    python benchmarks/attack.py                          every kind, 200 seeds each (50 where a trial takes long)
    python benchmarks/attack.py --seeds 20 segment npz   a few of some kinds
    python benchmarks/attack.py --list

A kind makes a damaged file from a seed in a folder of its own, uses it, and says what came of it. Each trial runs in a child
that was forked from one warmed process, under limits of processor time and memory and with no way to the network. Exit code 1
if a trial was silently wrong, ended in a traceback, took longer than 10 s of its own processor time, ran code or asked for a
connection. Files beside this one that are called attack_*.py add kinds: they put them into `KINDS`, which `register` does.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 10  # of a trial's own processor time
WALL = 60.0  # seconds after which a trial that waits for something is ended
MEMORY = 6 << 30  # bytes that a trial may add
OUTCOMES = ("refused", "recomputed", "same", "silently wrong", "traceback", "hang", "code run", "connection")
BAD = ("silently wrong", "traceback", "hang", "code run", "connection")


@dataclass(frozen=True)
class Kind:
    """A kind of file: what is made once, and what a trial does with it.

    `prepare(folder)` makes the good file and all it needs, once. `trial(folder, seed)` gets a copy of that folder, which is the
    current one, damages it by the seed, uses it, and returns "same", "recomputed" or "silently wrong"; an error of the library
    that it lets through counts as "refused" if it names the file or says `refusals`.
    """

    name: str
    prepare: Callable[[Path], object]
    trial: Callable[[Path, int], str]
    refusals: tuple[str, ...] = ()
    ours: bool = True  # whether we write it: then all of it is what it was; else a parser of others reads the same
    share: float = 1.0  # of the seeds that are asked for: less where a trial takes long


KINDS: dict[str, Kind] = {}


def register(kind: Kind) -> Kind:
    """Add a kind to the suite."""
    KINDS[kind.name] = kind
    return kind


def damaged(data: bytes, seed: int) -> bytes:
    """One of eleven kinds of damage, never what it was, unless there is nothing to damage."""
    import numpy as np

    rng = np.random.default_rng(seed)
    if not data:
        return b"\0"
    start = int(rng.integers(0, min(len(data), 400) if rng.random() < 0.4 else len(data)))
    end = min(start + int(rng.integers(1, 64)), len(data))
    head, hit, tail = data[:start], data[start:end], data[end:]
    scattered = np.frombuffer(data, dtype=np.uint8).copy()
    scattered[rng.integers(0, len(data), 20)] = rng.integers(0, 256, 20)
    half = max(len(hit) // 2, 1)
    result = [
        head + bytes([hit[0] ^ 1 << int(rng.integers(0, 8))]) + hit[1:] + tail,
        head + rng.bytes(len(hit)) + tail,
        head + tail,
        head + hit + hit + tail,
        head + b"\xff" * len(hit) + tail,
        head + bytes(len(hit)) + tail,
        head + hit[half:] + hit[:half] + tail,
        head,
        data + rng.bytes(8),
        scattered.tobytes(),
        head + b"9" * len(hit) + tail,
    ][seed % 11]
    return result if result != data else data[:-1]


def replaced(path: Path, seed: int) -> None:
    """Put something else in a file's place: nothing in it, a pipe, a folder, a device, a link to itself."""
    path.unlink()
    what = seed % 6
    if what == 0:
        path.touch()
    elif what == 1:
        os.mkfifo(path)
    elif what == 2:
        path.mkdir()
    else:
        path.symlink_to(("/dev/zero", "/dev/null", path)[what - 3])


def damage(path: Path, seed: int) -> None:
    """Damage a file where it lies, its time stays what it was; or, one time in twelve, something else stands in its place."""
    if seed % 12 == 11:
        replaced(path, seed // 12)
        return
    stat = path.stat()
    path.write_bytes(damaged(path.read_bytes(), seed))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


# --- a trial in a child ----------------------------------------------------------------------------------------------


def _child(kind: Kind, folder: Path, seed: int, answer: int) -> None:
    """Run one trial and write its outcome; never returns."""
    import traceback

    from toolkit.errors import ToolkitError

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 2))
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, held + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seen = _watch()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    os.chdir(folder)
    detail, names = "", [path.name for path in folder.rglob("*")]
    try:
        outcome = kind.trial(folder, seed)
    except ToolkitError as error:
        outcome, detail = "refused", f"{error.message} {error.hint}"
        if not any(name in detail for name in (*names, *kind.refusals)):
            outcome, detail = "traceback", f"a refusal that names nothing: {detail}"
    except BaseException:  # noqa: BLE001 - whatever it is, it is what a person would see
        outcome, detail = "traceback", traceback.format_exc()
    if seen:
        outcome, detail = seen[0]
    os.write(answer, json.dumps([outcome, detail[-3000:]]).encode())
    os._exit(0)


def _watch() -> list[tuple[str, str]]:
    """What the trial must not do, as it is noticed: processes and connections."""
    seen: list[tuple[str, str]] = []
    forbidden = {
        "subprocess.Popen": "code run", "os.system": "code run", "os.exec": "code run", "os.posix_spawn": "code run",
        "os.spawn": "code run", "socket.connect": "connection", "socket.getaddrinfo": "connection",
    }  # fmt: skip

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in forbidden:
            if event == "subprocess.Popen" and Path(str(arguments[0])).name == "git":
                return  # reading a commit's name; what git itself may start is tried by a kind of its own
            seen.append((forbidden[event], f"{event} {arguments!r}"[:300]))

    sys.addaudithook(hook)
    return seen


def trial(kind: Kind, good: Path, seed: int) -> tuple[str, str, float]:
    """Outcome, what was said, and seconds of processor time of one trial in a forked child."""
    folder = Path(tempfile.mkdtemp(prefix="attack-"))
    try:
        work = folder / "work"
        shutil.copytree(good, work, symlinks=True)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            _child(kind, work, seed, writing)
        os.close(writing)
        until, status, used = time.monotonic() + WALL, 0, None
        while used is None:
            pid, status, usage = os.wait4(child, os.WNOHANG)
            if pid:
                used = usage.ru_utime + usage.ru_stime
            elif time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
                os.wait4(child, 0)
                os.close(reading)
                return "hang", f"waits for more than {WALL:.0f} s", 0.0
            else:
                time.sleep(0.001)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
        if said:
            outcome, detail = json.loads(said)
            return outcome, detail, used
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) and used > SECONDS - 1:
            return "hang", f"{used:.0f} s of processor time", used
        return "traceback", f"the process died: {status}", used
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def warm(*, light: bool = False) -> None:
    """Import once what children would import each; not onnxruntime, which starts threads. A `light` process forks faster."""
    modules = "numpy onnx pandas pyarrow.compute pyarrow.csv pyarrow.parquet scipy.special tomlkit PIL.Image"
    for module in (modules if light else f"{modules} timm torch.onnx").split():
        importlib.import_module(module)


def run(kind: Kind, seeds: Iterable[int], *, told: Callable[[int, str, str], object] = lambda *_: None) -> Counter[str]:
    """All trials of a kind, counted by outcome; `told` hears of each."""
    with tempfile.TemporaryDirectory(prefix="attack-good-") as folder:
        good = Path(folder) / "work"
        good.mkdir()
        with _inside(good):
            kind.prepare(good)
        counts: Counter[str] = Counter()
        for seed in seeds:
            outcome, detail, _ = trial(kind, good, seed)
            counts[outcome] += 1
            told(seed, outcome, detail)
        return counts


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def load_siblings() -> None:
    """Take in the kinds of attack_*.py beside this file."""
    sys.modules.setdefault("attack", sys.modules[__name__])
    sys.path.append(str(Path(__file__).parent))  # they know each other
    for path in sorted(Path(__file__).parent.glob("attack_*.py")):
        if path.stem in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec
        assert spec.loader
        sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def main() -> int:
    """Run the suite and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", help="Only these.")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="The first seed.")
    parser.add_argument("--list", action="store_true", help="Name the kinds.")
    parser.add_argument("--say", action="store_true", help="Show what went wrong.")
    parser.add_argument("--light", action="store_true", help="Import no torch first: for kinds that need none.")
    parser.add_argument("--results", type=Path, help="A line of JSON per trial; those that are in it are not run again.")
    given = parser.parse_args()
    load_siblings()
    if given.list:
        print("\n".join(KINDS))
        return 0
    logging.getLogger("toolkit").setLevel(logging.CRITICAL)
    warm(light=given.light)
    known = _known(given.results)
    print(f"{'kind':<24}{'tried':>7}" + "".join(f"{name:>16}" for name in OUTCOMES), flush=True)
    total: Counter[str] = Counter()
    for name in given.kinds or KINDS:
        every = range(given.first, given.first + max(1, round(given.seeds * KINDS[name].share)))
        done = {seed: known[name, seed] for seed in every if (name, seed) in known}
        wrong = [f"  seed {seed}: {outcome}: {detail}" for seed, (outcome, detail) in done.items() if outcome in BAD]

        def told(seed: int, outcome: str, detail: str, name: str = name, wrong: list[str] = wrong) -> None:
            if outcome in BAD:
                wrong.append(f"  seed {seed}: {outcome}: {detail}")
            if given.results:
                with given.results.open("a") as file:
                    file.write(json.dumps([name, seed, outcome, detail]) + "\n")

        counts = Counter(outcome for outcome, _ in done.values())
        if todo := [seed for seed in every if seed not in done]:
            counts += run(KINDS[name], todo, told=told)
        total += counts
        _print(name, counts)
        if given.say and wrong:
            print("\n".join(wrong[:5]), flush=True)
    _print("all", total)
    return int(any(total[outcome] for outcome in BAD))


def _print(name: str, counts: Counter[str]) -> None:
    print(f"{name:<24}{sum(counts.values()):>7}" + "".join(f"{counts[outcome]:>16}" for outcome in OUTCOMES), flush=True)


def _known(results: Path | None) -> dict[tuple[str, int], tuple[str, str]]:
    """Trials of before: kind and seed → outcome and what was said."""
    if results is None or not results.exists():
        return {}
    rows = map(json.loads, results.read_text().splitlines())
    return {(name, seed): (outcome, detail) for name, seed, outcome, detail in rows}


def digest_of(*values: object) -> str:
    """What results come to, to be compared."""
    return hashlib.sha256(repr(values).encode()).hexdigest()


if __name__ == "__main__":
    sys.modules["attack"] = sys.modules["__main__"]
    sys.exit(main())
