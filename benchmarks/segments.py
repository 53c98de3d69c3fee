"""Damaged segments of the store: each is detected, set aside and computed again, to the same bytes.

    python benchmarks/segments.py                  3,000 segments
    python benchmarks/segments.py --trials 100

Two models over 12 images, with a mirrored view each, are predicted by onnxruntime; then, per trial, one segment of the store is
damaged (in one of the eleven ways of attack.py; its time stays) and the same prediction is asked for as a new process would. A
trial counts as detected if the segment was set aside, and as equal if all tables have the bytes of the first prediction. Exit
code 1 if one was not.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import attack
import numpy as np

VIEWS = ("id", "hflip")


def prepared(folder: Path) -> tuple[Sequence[object], Sequence[object]]:
    """Two exports and the rows of 12 images."""
    from attack_kinds_ours import _model
    from PIL import Image

    from toolkit.runtime.graphs import onnx_file
    from toolkit.workspace.image_rows import Item

    rng = np.random.default_rng(0)
    items = []
    for number in range(12):
        path = folder / "test" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 18, 3), dtype=np.uint8)).save(path)
        os.utime(path, (1e9, 1e9))
        items.append(Item(str(number), path))
    exports = []
    for fold in range(2):
        path = folder / f"m.fold{fold}.onnx"
        path.write_bytes(_model(fold))
        exports.append(onnx_file.read(path))
    return exports, items


def tables(folder: Path, exports: Sequence[object], items: Sequence[object]) -> tuple[bytes, int]:
    """All logits that the store then holds for these images, and how many passes had to be made."""
    from toolkit.inference.execution import Execution
    from toolkit.inference.predict import predict
    from toolkit.inference.store.prediction_store import Store

    store = Store(folder / "store")
    views = {export.digest: VIEWS for export in exports}  # type: ignore[attr-defined]
    outcome = predict(exports, views, items, store, Execution(device="cpu", batch=8, implementation="pillow"))  # type: ignore[arg-type]
    rows = b"".join(outcome.tables[key].gather(outcome.digests).tobytes() for key in sorted(outcome.tables))
    store.close()
    return rows, outcome.passes


def main() -> int:
    """Run the trials and print how many were detected and equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0, help="The first seed.")
    given = parser.parse_args()
    attack.load_siblings()
    from attack_kinds_ours import _forget

    logging.getLogger("toolkit").setLevel(logging.CRITICAL)
    detected = equal = again = 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="segments-") as name:
        folder = Path(name)
        exports, items = prepared(folder)
        expected, _ = tables(folder, exports, items)
        for seed in range(given.first, given.first + given.trials):
            segments = sorted(folder.glob("store/tables/*/*.seg"))
            path = segments[seed // 11 % len(segments)]
            stat = path.stat()
            path.write_bytes(attack.damaged(path.read_bytes(), seed))
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            _forget()
            rows, passes = tables(folder, exports, items)
            aside = list(folder.rglob("*.damaged"))
            detected, equal, again = detected + (len(aside) == 1), equal + (rows == expected), again + passes
            for damaged in aside:
                damaged.unlink()
    print(
        f"{given.trials:,} damaged segments: {detected:,} detected, {equal:,} times every byte as before, "
        f"{again:,} passes made again, {time.monotonic() - started:.0f} s"
    )
    return int(min(detected, equal) < given.trials)


if __name__ == "__main__":
    sys.exit(main())
