"""A want of memory and a missing package say nothing of an image: they are raised as themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.images.test_render import both, encode, thumb
from toolkit.core.cards import Preprocess
from toolkit.errors import ImageError
from toolkit.images import decode, render, statistics, torch_pixels
from toolkit.images.duplicates.prints import prints

# the address space is limited to what there is and a little more, as a machine whose memory is taken
STARVED = """
import resource, sys
from pathlib import Path
from toolkit.images import decode, geometry, render, torch_pixels
import torchcodec.decoders, torchvision.transforms.v2
small, large = (Path(name).read_bytes() for name in sys.argv[1:3])
render.decode(small, "small", implementation=sys.argv[3])
pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + (60 << 20), resource.getrlimit(resource.RLIMIT_AS)[1]))
try:
    render.decode(large, "large", implementation=sys.argv[3])
except Exception as error:
    print(type(error).__name__, error)
render.decode(small, "small", implementation=sys.argv[3])
"""


@both
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_a_good_file_under_memory_pressure_is_not_damaged(
    kind: str, implementation: str, tmp_path: Path, quick_processes: None
) -> None:
    large = Image.fromarray(np.resize(np.arange(251, dtype=np.uint8), (5_000, 6_000)))
    for name, image in (("small", thumb()), ("large", large if kind == "GIF" else large.convert("RGB"))):
        fast = {"WEBP": {"method": 0}, "PNG": {"compress_level": 1}}.get(kind, {})
        (tmp_path / name).write_bytes(encode(image, kind, **fast))
    command = [sys.executable, "-c", STARVED, str(tmp_path / "small"), str(tmp_path / "large"), implementation]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("MemoryError"), done.stdout


@both
@pytest.mark.parametrize("error", [MemoryError(), ImportError("no module")])
def test_they_pass_every_reader_of_images(
    error: Exception, implementation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    data = encode(thumb(), "BMP")
    (tmp_path / "a.bmp").write_bytes(data)
    monkeypatch.setattr("PIL.BmpImagePlugin.BmpImageFile.load", fail)
    with pytest.raises(type(error)):
        render.decode(data, "a.bmp", implementation=implementation)
    with pytest.raises(type(error)):
        render.load(tmp_path / "a.bmp", Preprocess((8, 8)), implementation=implementation)
    with pytest.raises(type(error)):
        prints([tmp_path / "a.bmp"])
    with pytest.raises(type(error)):
        statistics.measure([("a", tmp_path / "a.bmp")], 1)
    monkeypatch.setattr(decode, "_openers", lambda: {"BMP": (fail, lambda _: True)})
    with pytest.raises(type(error)):
        decode.describe(data, "a.bmp")


def test_what_decoders_say_of_memory_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ("out of memory when reading image file", "DefaultCPUAllocator: can't allocate memory"):

        def fail(*_: object, words: str = words, **__: object) -> None:
            raise OSError(words)

        monkeypatch.setattr("PIL.BmpImagePlugin.BmpImageFile.load", fail)
        with pytest.raises(MemoryError, match=r"decode a\.bmp"):
            render.decode(encode(thumb(), "BMP"), "a.bmp")


def test_a_torchcodec_that_cannot_be_loaded_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ImportError):
        render.decode(encode(thumb(), "JPEG"), "a.jpg")

    class Broken:
        @property
        def decode_image(self) -> None:
            raise RuntimeError("Could not load libtorchcodec.\nLikely causes: …")

    monkeypatch.setitem(sys.modules, "torchcodec.decoders", Broken())
    with pytest.raises(ImportError, match=r"torchcodec cannot be loaded: Could not load libtorchcodec\.$"):
        render.decode(encode(thumb(), "JPEG"), "a.jpg")


def test_no_room_for_a_resize_is_a_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.transforms.v2 import functional

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried …")

    monkeypatch.setattr(functional, "resize", fail)
    with pytest.raises(MemoryError):
        torch_pixels.resize(np.zeros((4, 4, 3), np.uint8), (8, 8), Preprocess((8, 8)))


def test_damage_stays_damage() -> None:
    with pytest.raises(ImageError, match=r"cannot be decoded|damaged header"):
        render.decode(encode(thumb(), "WEBP")[:200], "a.webp")
