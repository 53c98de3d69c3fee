"""Seconds to combine 100,000 × 18 × 10 stored tables anew, and the store at a million rows: `python benchmarks/store.py`."""

from __future__ import annotations

import os
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import click
import numpy as np

CLASSES = tuple(f"c{i:02d}" for i in range(18))
SIZE = 32
CODE = "import sys; from toolkit.cli import cli; cli.main(sys.argv[1:], standalone_mode=False); "
CODE += "print('TORCH' if {'torch', 'onnxruntime'} & set(sys.modules) else 'LIGHT')"


def picture(number: int) -> bytes:
    """A PNG file of one pixel whose bytes differ from every other's."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    pixel = b"\0" + number.to_bytes(4, "big")[1:]
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(pixel)) + chunk(b"IEND", b"")


def make_workspace(root: Path, count: int, models: int) -> None:
    """Image files, a competition, small exports, and a store filled through its own interface as if all had been predicted."""
    import torch

    from toolkit.core.cards import Card, Output, Preprocess
    from toolkit.images import render
    from toolkit.inference.exports import find_exports, read_exports
    from toolkit.inference.store import retention
    from toolkit.inference.store.file_index import as_digests
    from toolkit.inference.store.prediction_store import Store
    from toolkit.models.export import export
    from toolkit.workspace.competition import Competition, Images, Target

    (root / "test").mkdir(parents=True)
    (root / "train").mkdir()
    (root / "train" / "0.png").write_bytes(picture(0))
    (root / "train.csv").write_text("id,label\n0,c00\n")
    (root / "sample_submission.csv").write_text("id,label\n" + "".join(f"{i:06d},c00\n" for i in range(count)))
    target = Target("label", "multiclass", CLASSES)
    train, test = Images("train", "{id}.png", "train.csv"), Images("test", "{id}.png")
    competition = Competition(root, "store", "accuracy", (target,), train, test, format="labels")
    (root / "competition.toml").write_text(competition.to_toml())
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 256, (4, 3, SIZE, SIZE), dtype=np.uint8)
    for fold in range(models):
        torch.manual_seed(fold)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 4), torch.nn.Flatten(), torch.nn.Linear(8 * 64, len(CLASSES)))
        card = Card("m", None, (Output("label", CLASSES),), Preprocess((SIZE, SIZE)), (0.5,) * 3, (0.5,) * 3)
        export(model.eval(), card, root / "folds" / f"m.{fold}.onnx", samples=samples)
    then = time.time() - 1000
    for path in (root / "folds").glob("*.onnx"):
        os.utime(path, (then, then))
    store, digests = Store(root / "store"), []
    for i in range(count):
        path, data = root / "test" / f"{i:06d}.png", picture(i)
        path.write_bytes(data)
        os.utime(path, (then, then))
        digests.append(render.digest(data))
        store.images.learn(path, path.stat(), digests[-1])
    store.images.save()
    every = as_digests(digests)
    for one in read_exports(find_exports(["folds"], base=root), competition):
        key = retention.table_key(one, "id", render.implementation_tag(), "cpu", "fp32")
        store.table(key).add(every, rng.normal(0, 3, (count, len(CLASSES))).astype(np.float32))


def ensemble(root: Path, *more: str, python: Path | str = sys.executable) -> tuple[float, float]:
    """Wall-clock and processor seconds of the command, interpreter and all."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [str(python), "-c", CODE, "ensemble", "folds", "--device", "cpu", *more]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode or "LIGHT" not in done.stdout or "0 computed" not in done.stdout:
        sys.exit(f"not what was to be measured:\n{done.stdout}{done.stderr}")
    return seconds


def against(root: Path, other: Path, checkout: Path, repeat: int) -> None:
    """Ours over that of another checkout, each on the store that it wrote itself, one after the other."""
    python = checkout / ".venv" / "bin" / "python"
    for vote in ("soft", "hard"):
        ratios = []
        for _ in range(repeat):
            ours, theirs = ensemble(root, "--vote", vote), ensemble(other, "--vote", vote, python=python)
            ratios.append([a / b for a, b in zip(ours, theirs, strict=True)])
        for name, values in zip(("wall", "processor"), np.transpose(ratios), strict=True):
            spread = f"{values.min():.2f} to {values.max():.2f}"
            click.echo(
                f"--vote {vote}, {name} time over that of {checkout.name}: {np.median(values):.3f} ({spread}, {repeat} pairs)"
            )


def scale(rows: int, classes: int, kept_as: str) -> None:
    """Write, look up and gather one large table."""
    from toolkit.inference.store.prediction_store import Store, TableKey

    rng = np.random.default_rng(0)
    keys = np.frombuffer(rng.bytes(16 * rows), dtype="S16")
    with tempfile.TemporaryDirectory() as folder:
        key = TableKey("m", "p", "id", "e", kept_as=kept_as)
        table = Store(Path(folder)).table(key)
        part = rng.normal(0, 3, (4096, classes)).astype(np.float32)
        started = time.perf_counter()
        for start in range(0, rows, 4096):
            table.add(keys[start : start + 4096], part[: min(4096, rows - start)])
        wrote = time.perf_counter() - started
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.seg"))
        started = time.perf_counter()
        table = Store(Path(folder)).table(key)
        opened = time.perf_counter() - started
        order = rng.permutation(rows)
        started = time.perf_counter()
        for start in range(0, rows, 65_536):
            table.gather(keys[order[start : start + 65_536]])
        took = time.perf_counter() - started
    click.echo(
        f"{rows:,} × {classes:,} {kept_as}: {size / 1e9:.2f} GB written at {size / wrote / 1e6:,.0f} MB/s, "
        f"opened in {opened:.2f} s, looked up and gathered in random order in {took:.2f} s"
    )


@click.command()
@click.option("--images", default=100_000, show_default=True)
@click.option("--models", default=10, show_default=True)
@click.option("--repeat", default=5, show_default=True)
@click.option("--million", is_flag=True, help="Also a million rows of a thousand classes in float16 (2 GB of disk).")
@click.option("--folder", type=click.Path(path_type=Path), help="Make the workspace there, or use the one that is there.")
@click.option("--against", "checkout", type=click.Path(path_type=Path), help="Another checkout with its .venv: pairs with it.")
def main(images: int, models: int, repeat: int, million: bool, folder: Path | None, checkout: Path | None) -> None:
    """Print the median seconds of `toolkit ensemble` with every row stored (at most 1.5 is asked); it must not load torch."""
    with tempfile.TemporaryDirectory() as temporary:
        root = folder or Path(temporary) / "work"
        if not root.exists():
            make_workspace(root, images, models)
        if checkout:
            other, script = Path(temporary) / "other", checkout / "benchmarks" / "store.py"
            words = ["--folder", str(other), "--images", str(images), "--models", str(models), "--repeat", "1"]
            subprocess.run(
                [str(checkout / ".venv" / "bin" / "python"), str(script), *words], check=True, stdout=subprocess.DEVNULL
            )
            against(root, other, checkout, repeat)
            return
        for vote in ("soft", "hard"):
            found = [ensemble(root, "--vote", vote)[0] for _ in range(repeat)]
            spread = f"{min(found):.2f} to {max(found):.2f}"
            click.echo(f"{images:,} × {len(CLASSES)} × {models}, --vote {vote}: {statistics.median(found):.2f} s ({spread})")
    if million:
        scale(1_000_000, 1_000, "float16")


if __name__ == "__main__":
    main()
