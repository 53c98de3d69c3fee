"""The cache of decoded images: the pixels of evaluation, decoded once, shared, whole or not there, larger than memory."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from toolkit.base import files
from toolkit.core.cards import Preprocess
from toolkit.errors import ImageError, StoreError
from toolkit.images import render
from toolkit.training import decode, loader
from toolkit.training.fold import decoded_cache
from toolkit.workspace.competition import Competition

SMALL = Preprocess((8, 12))


@pytest.fixture
def counted(monkeypatch):
    """The names of the files that were decoded."""
    seen = []
    load = render.load

    def count(path, preprocess, **said):
        seen.append(path.name)
        return load(path, preprocess, **said)

    monkeypatch.setattr(decoded_cache.render, "load", count)
    return seen


def old(folder):
    """Files of some age, as they are by the time anybody trains: what is younger than two seconds is read again."""
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))


def test_an_image_is_decoded_once_for_all_runs_and_the_size_is_said_first(workspace, counted):
    competition, said = Competition.read(workspace), []
    old(workspace / "train")
    first = decode(competition, SMALL, "label", say=lambda text: said.append((text, len(counted))))
    assert len(counted) == 24
    (text, done), *more = said
    assert not more
    assert done == 0  # said before it began
    assert "24 images" in text
    assert "0.1 MB" in text
    again = decode(Competition.read(workspace), SMALL, "label", say=lambda _: pytest.fail("built again"))
    for _ in range(2):
        for pixels, _labels in loader(again.rows(again.ids), 6, seed=0):
            assert pixels.dtype == torch.uint8
    assert len(counted) == 24
    expected = np.stack([render.load(path, SMALL) for _, path in competition.images("train")])
    for samples in (first, again):
        assert np.array_equal(samples.pixels[np.arange(24)], expected)
    other = decode(competition, replace(SMALL, interpolation="bicubic"), "label")
    assert not np.array_equal(other.pixels[np.arange(24)], expected)


def test_without_the_cache_the_same_pixels_are_decoded_every_time(workspace, counted):
    competition = Competition.read(workspace)
    cached, bare = decode(competition, SMALL, "label"), decode(competition, SMALL, "label", cache=False)
    counted.clear()
    for _ in range(2):
        one, two = ([p for p, _ in loader(s.rows(s.ids), 6, seed=0)] for s in (cached, bare))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert len(counted) == 48
    assert np.array_equal(bare.pixels[3], cached.pixels[3])


def test_a_changed_image_is_seen_and_a_renamed_one_makes_no_difference(workspace, counted):
    competition = Competition.read(workspace)
    old(workspace / "train")
    decode(competition, SMALL, "label")
    path = workspace / "train" / "0003.png"
    Image.new("RGB", (52, 40), (9, 9, 9)).save(path)
    changed = decode(competition, SMALL, "label")
    assert (changed.pixels[3] == 9).all()
    assert len(counted) == 48
    os.utime(path, (2e9, 2e9))  # touched, not changed: read, digested, found
    decode(competition, SMALL, "label")
    assert len(counted) == 48
    some = decode(competition, SMALL, "label", only=["0005", "0003"])
    assert some.ids == ("0003", "0005")
    assert (some.pixels[0] == 9).all()


def test_a_broken_image_leaves_no_half_cache(workspace):
    (workspace / "train" / "0020.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(ImageError, match=r"0020\.png"):
        decode(Competition.read(workspace), SMALL, "label")
    assert not [path for path in (workspace / "cache").rglob("*") if path.is_file()]


def test_a_full_disk_is_said_before_anything_is_decoded(workspace, counted, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")  # noqa: PYI024 - shutil's own kind
    monkeypatch.setattr(decoded_cache.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(StoreError, match=r"needs 0\.1 MB, the disk has 0\.1 MB left") as caught:
        decode(Competition.read(workspace), SMALL, "label")
    assert caught.value.code == "no-cache"
    assert not counted


def test_a_cache_is_sent_to_another_process_as_its_path(workspace):
    samples = decode(Competition.read(workspace), SMALL, "label")
    data = pickle.dumps(samples.pixels)
    assert len(data) < 500
    assert np.array_equal(pickle.loads(data)[5], samples.pixels[5])
    one, _ = samples.rows(samples.ids)[5]
    one[:] = 0  # a copy of its own
    assert samples.pixels[5].any()


LARGE = """
import resource, sys
import numpy as np
from pathlib import Path
from toolkit.training.fold.decoded_cache import Mapped, store
from toolkit.training.fold.samples import Samples, loader

path = Path(sys.argv[1])
parts = (np.full((64, 3, 128, 128), i % 256, np.uint8) for i in range(120))
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
limit = int(open("/proc/self/statm").read().split()[5]) * 4096 + 250_000_000
store(path, (7680, 3, 128, 128), np.uint8, parts)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
pixels = Mapped(path)
samples = Samples(tuple(map(str, range(7680))), pixels, np.arange(7680) // 64 % 256)
total = 0
for images, labels in loader(samples.rows(samples.ids), 64, seed=0):
    assert (images[:, 0, 0, 0] == labels).all()
    total += len(images)
print(total, path.stat().st_size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's data is Linux's")
def test_more_images_than_the_memory_may_hold_are_fed(tmp_path, quick_processes):
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path / "large.npy")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    total, size = map(int, done.stdout.split())
    assert total == 7680
    assert size > 1.4 * 250_000_000  # more than the process may add


def test_orphans_of_killed_builds_are_swept(workspace):
    orphan = workspace / "cache" / f"pixels-0.npy{files.PART}0000"
    orphan.parent.mkdir()
    orphan.write_bytes(b"half")
    os.utime(orphan, (1e9, 1e9))
    decode(Competition.read(workspace), SMALL, "label")
    assert not orphan.exists()


def test_damaged_pixels_are_set_aside_and_decoded_again(workspace, counted):
    """Every byte of the cache is looked at when a process opens it; one of 0.1.0 is read by its header and size."""
    competition = Competition.read(workspace)
    decode(competition, SMALL, "label")
    (path,) = (workspace / "cache").glob("pixels-*.npy")
    good, rng = path.read_bytes(), np.random.default_rng(0)
    damaged = [good[:-1], good[:200], b"", good + b"x", good[:-24] + bytes(24)]
    for place in [0, 20, 70, 128, len(good) - 25, len(good) - 20, len(good) - 1, *rng.integers(len(good), size=10)]:
        damaged.append(good[:place] + bytes([good[place] ^ 8]) + good[place + 1 :])
    for data in damaged:
        path.write_bytes(data)
        counted.clear()
        decode(competition, SMALL, "label")
        assert len(counted) > 0
        assert path.read_bytes() == good
        assert path.with_name(f"{path.name}.damaged").read_bytes() == data
    path.write_bytes(good[:-24])
    counted.clear()
    decode(competition, SMALL, "label")
    assert not counted
