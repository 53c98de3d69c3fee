"""Evaluation pixels against Pillow, timm and hand-made files; damaged files; both implementations."""

from __future__ import annotations

import ast
import functools
import io
import struct
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from toolkit.core.cards import Preprocess
from toolkit.errors import ImageError
from toolkit.images import decode, geometry, render

ROOT = Path(__file__).parents[2]
ROTATIONS = {2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM, 5: Image.TRANSPOSE,
             6: Image.ROTATE_270, 7: Image.TRANSVERSE, 8: Image.ROTATE_90}  # fmt: skip
both = pytest.mark.parametrize("implementation", render.IMPLEMENTATIONS)


@functools.cache
def photo() -> np.ndarray:
    """A real photograph, 427 × 640."""
    import sklearn.datasets

    with Image.open(Path(sklearn.datasets.__file__).parent / "images" / "china.jpg") as file:
        return np.array(file)


@functools.cache
def thumb() -> Image.Image:
    """An odd-sized piece of the photograph."""
    return Image.fromarray(photo()).crop((120, 80, 421, 285)).resize((75, 51))


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)  # a copy: Pillow leaves settings of one save on the image
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, rows: list[bytes], *, after: bytes = b"") -> bytes:
    """A PNG written by hand: Pillow cannot write 16-bit colour."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + body + after + chunk(b"IEND", b"")


def tiff16(values: np.ndarray, order: str, *, photometric: int = 2, planes: int = 1) -> bytes:
    """An uncompressed 16-bit TIFF written by hand."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    pixels = values.astype(f"{order}u2").tobytes()
    depths = 8 + 2 + 10 * 12 + 4
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, depths), (259, 3, 1, 1), (262, 3, 1, photometric),
            (273, 4, 1, depths + 8), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(pixels)), (284, 3, 1, planes)]  # fmt: skip
    if channels == 1:
        tags[2] = (258, 3, 1, 16)
    out = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags))
    for tag, kind, count, value in tags:
        short = kind == 3 and count == 1
        out += struct.pack(f"{order}HHI", tag, kind, count) + struct.pack(
            f"{order}{'HH' if short else 'I'}", *([value, 0] if short else [value])
        )
    return out + struct.pack(f"{order}I", 0) + struct.pack(f"{order}4H", 16, 16, 16, 16) + pixels


def plain(data: bytes) -> np.ndarray:
    """The reference: Pillow's first frame as RGB, alpha and transparency dropped."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        image.info.pop("transparency", None)
        return np.array(image.convert("RGB"))


@functools.cache
def kinds() -> dict[str, bytes]:
    """One file of each kind whose reference is what Pillow makes of it."""
    rgb, grey = thumb(), thumb().convert("L")
    alpha = Image.fromarray(np.random.default_rng(0).integers(0, 256, (rgb.height, rgb.width), np.uint8))
    rgba, la, palette = rgb.copy(), Image.merge("LA", (grey, alpha)), rgb.quantize(64)
    rgba.putalpha(alpha)
    turned = rgb.rotate(180)
    cmyk = encode(rgb.convert("CMYK"), "JPEG", quality=95)
    adobe = cmyk.index(b"Adobe")
    exif = Image.Exif()
    exif[0x010F] = "maker"
    return {
        "jpeg": encode(rgb, "JPEG", quality=90),
        "jpeg 4:4:4": encode(rgb, "JPEG", subsampling=0),
        "jpeg progressive": encode(rgb, "JPEG", progressive=True),
        "jpeg grey": encode(grey, "JPEG"),
        "jpeg stored as rgb": encode(rgb, "JPEG", keep_rgb=True),
        "jpeg cmyk, adobe": cmyk,
        "jpeg cmyk, not adobe": cmyk[: adobe - 4] + cmyk[adobe + 12 :],
        "jpeg ycck": cmyk[: adobe + 11] + b"\x02" + cmyk[adobe + 12 :],
        "jpeg and trailing bytes": encode(rgb, "JPEG") + b"\xff\xda and more",
        "jpeg with exif": encode(rgb, "JPEG", exif=exif),
        "mpo": encode(rgb, "MPO", save_all=True, append_images=[turned]),
        "png": encode(rgb, "PNG"),
        "png grey": encode(grey, "PNG"),
        "png 1 bit": encode(rgb.convert("1"), "PNG"),
        "png 2 bits": png(4, 1, 2, 0, [b"\x1b"]),
        "png 4 bits": png(4, 1, 4, 0, [b"\x03\xaf"]),
        "png palette": encode(palette, "PNG"),
        "png palette, one transparent": encode(palette, "PNG", transparency=5),
        "png palette, many transparent": encode(palette, "PNG", transparency=bytes(range(0, 256, 4))),
        "png rgb, one transparent": encode(rgb, "PNG", transparency=rgb.getpixel((3, 3))),
        "png grey, one transparent": encode(grey, "PNG", transparency=100),
        "png rgba": encode(rgba, "PNG"),
        "png la": encode(la, "PNG"),
        "png with exif": encode(rgb, "PNG", exif=exif),
        "apng": encode(rgb, "PNG", save_all=True, append_images=[turned]),
        "apng, default image": encode(rgb, "PNG", save_all=True, append_images=[turned], default_image=True),
        "webp": encode(rgb, "WEBP", quality=80),
        "webp lossless": encode(rgb, "WEBP", lossless=True),
        "webp rgba": encode(rgba, "WEBP", quality=80),
        "webp rgba exact": encode(rgba, "WEBP", lossless=True, exact=True),
        "webp animated": encode(rgb, "WEBP", save_all=True, append_images=[turned]),
        "gif": encode(palette, "GIF"),
        "gif transparent": encode(palette, "GIF", transparency=5),
        "gif animated": encode(rgb, "GIF", save_all=True, append_images=[turned]),
        "bmp": encode(rgb, "BMP"),
        "bmp palette": encode(palette, "BMP"),
        "tiff": encode(rgb, "TIFF"),
        "tiff lzw rgba": encode(rgba, "TIFF", compression="tiff_lzw"),
        "tiff cmyk": encode(rgb.convert("CMYK"), "TIFF"),
        "tiff 1 bit": encode(rgb.convert("1"), "TIFF", compression="group4"),
        "tiff two pages": encode(rgb, "TIFF", save_all=True, append_images=[rgb.rotate(180)]),
        "ppm": encode(rgb, "PPM"),
        "avif": encode(rgb, "AVIF"),
        "avif rgba": encode(rgba, "AVIF"),
        "jpeg 2000": encode(rgb, "JPEG2000"),
    }


@both
@pytest.mark.parametrize("name", kinds())
def test_every_kind_of_file_gives_the_pixels_of_pillow(name: str, implementation: str) -> None:
    data = kinds()[name]
    pixels = render.decode(data, name, implementation=implementation)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, plain(data))


def wide(channels: int) -> np.ndarray:
    """All 65,536 values, in another order in each channel."""
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    return np.stack([np.roll(every, 991 * c) for c in range(channels)], axis=2)


@functools.cache
def wide_files() -> dict[str, tuple[bytes, np.ndarray]]:
    out = {}
    for name, colour, channels in (("grey", 0, 1), ("rgb", 2, 3), ("la", 4, 2), ("rgba", 6, 4)):
        values = wide(channels)
        out[f"png {name}"] = png(256, 256, 16, colour, [row.astype(">u2").tobytes() for row in values]), values
    for order in "<>":
        out[f"tiff grey {order}"] = tiff16(wide(1)[..., 0], order, photometric=1), wide(1)
        out[f"tiff rgb {order}"] = tiff16(wide(3), order), wide(3)
        out[f"tiff rgba {order}"] = tiff16(wide(4), order), wide(4)
    out["tiff white is zero"] = tiff16(wide(1)[..., 0], "<", photometric=0), 65535 - wide(1)
    for compression in ("tiff_lzw", "tiff_adobe_deflate"):
        out[f"tiff grey {compression}"] = encode(Image.fromarray(wide(1)[..., 0]), "TIFF", compression=compression), wide(1)
    out["pgm"] = b"P5 256 256 65535\n" + wide(1).astype(">u2").tobytes(), wide(1)
    return out


@both
@pytest.mark.parametrize("name", wide_files())
def test_sixteen_bits_are_divided_by_257_and_rounded(name: str, implementation: str) -> None:
    data, values = wide_files()[name]
    wanted = np.rint(values / 257).astype(np.uint8)
    wanted = wanted[..., :3] if wanted.shape[2] >= 3 else np.repeat(wanted[..., :1], 3, axis=2)
    np.testing.assert_array_equal(render.decode(data, name, implementation=implementation), wanted)


@both
def test_depths_without_a_settled_meaning_are_refused(implementation: str) -> None:
    files = [encode(Image.fromarray(np.ones((4, 5), kind)), "TIFF") for kind in (np.int32, np.float32)]
    files.append(tiff16(wide(3), "<", planes=2))
    for data in files:
        with pytest.raises(ImageError, match=r"odd\.tif stores its colours as"):
            render.decode(data, "odd.tif", implementation=implementation)


@both
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_or_kept(orientation: int, kind: str, implementation: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {0x0112: orientation}} if kind == "TIFF" else {"exif": exif}
    data = encode(thumb(), kind, **options)
    stored = plain(encode(thumb(), kind))
    shown = Image.fromarray(stored)
    shown = shown.transpose(ROTATIONS[orientation]) if orientation > 1 else shown
    np.testing.assert_array_equal(render.decode(data, kind, implementation=implementation), np.asarray(shown))
    np.testing.assert_array_equal(render.decode(data, kind, implementation=implementation, exif=False), stored)
    with Image.open(io.BytesIO(data)) as file:
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(ImageOps.exif_transpose(file).convert("RGB")))


@both
def test_orientation_survives_odd_exif(implementation: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    good = exif.tobytes()
    big_endian = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    late = png(75, 51, 8, 2, [row.tobytes() for row in np.asarray(thumb())], after=chunk(b"eXIf", good[6:]))
    assert render.decode(late, "late.png", implementation=implementation).shape == (75, 51, 3)
    nine = big_endian.replace(b"\0\x06\0\0\0\0\0\0", b"\0\x09\0\0\0\0\0\0")
    little_endian = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    endless = good[:10] + b"\x7f\xff\xff\xff" + good[14:]
    nameless = b"Exit" + good[4:]  # TorchCodec does not look at the name
    assert nine != big_endian
    cases = ((good, True), (big_endian, True), (little_endian, True), (nine, False), (good[:14], False), (endless, False),
             (nameless, False))  # fmt: skip
    for block, turned in cases:
        data = encode(thumb(), "JPEG", exif=block)
        shape = render.decode(data, "odd.jpg", implementation=implementation).shape
        assert shape == ((75, 51, 3) if turned else (51, 75, 3)), block


@both
def test_orientation_is_found_behind_another_application_segment(implementation: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(thumb(), "JPEG", exif=exif)
    note = b"http://ns.adobe.com/xap/1.0/\0<x/>"
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(note) + 2) + note + data[2:]
    assert render.decode(data, "xmp.jpg", implementation=implementation).shape == (75, 51, 3)


@both
def test_a_damaged_multi_picture_index_is_not_our_business(implementation: str) -> None:
    mpo = kinds()["mpo"]
    at = mpo.index(b"MPF\0") + 4
    damaged = mpo[: at + 8] + b"\xff" * 30 + mpo[at + 38 :]
    with pytest.warns(UserWarning):  # noqa: PT030 - Pillow warns twice, of EXIF and of MPO
        Image.open(io.BytesIO(damaged))
    np.testing.assert_array_equal(
        render.decode(damaged, "a.jpg", implementation=implementation), plain(encode(thumb(), "JPEG"))
    )


@pytest.mark.parametrize("name", ["webp animated", "gif animated", "apng"])
def test_only_the_first_frame_is_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchcodec.decoders

    asked: list[object] = []  # TorchCodec decodes all frames: a small file could fill the memory
    monkeypatch.setattr(torchcodec.decoders, "decode_image", asked.append)
    np.testing.assert_array_equal(render.decode(kinds()[name], name), plain(kinds()[name]))
    assert not asked


@both
@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
def test_resizing_is_pillows(implementation: str, resize: str, interpolation: str, antialias: bool) -> None:
    """On a photograph Pillow's own resize is met; on noise its two passes, width first (Pillow 13 may turn them round)."""
    resample = Image.Resampling[interpolation.upper()]
    noise = np.random.default_rng(1).integers(0, 2, (151, 133, 3)).astype(np.uint8) * 255
    for image in (photo(), noise, np.ascontiguousarray(photo().transpose(1, 0, 2)[:301])):
        for size in ((96, 97), (224, 224), (37, 121), (449, 513)):
            shorter = max(size) + 13 if resize == "crop" else None
            preprocess = Preprocess(size, resize=resize, shorter=shorter, interpolation=interpolation, antialias=antialias)
            full = size
            if shorter:
                ratio = shorter / min(image.shape[:2])
                full = tuple(shorter if side == min(image.shape[:2]) else int(side * ratio + 1e-9) for side in image.shape[:2])
            got = render.render(image, preprocess, implementation=implementation)
            assert got.shape == (3, *size)
            assert got.flags.c_contiguous
            if antialias:
                first = Image.fromarray(image).resize((full[1], image.shape[0]) if image is noise else full[::-1], resample)
                wanted = np.asarray(first.resize(full[::-1], resample))
            else:
                wanted = geometry._pointwise(image, full, preprocess)
                if interpolation == "bilinear":  # one pass of Pillow's affine transform takes single points too
                    affine = Image.fromarray(image).transform(full[::-1], Image.EXTENT, (0, 0, *image.shape[1::-1]), resample)
                    assert np.abs(np.asarray(affine).astype(int) - wanted).max() <= 2
            top, left = round((full[0] - size[0]) / 2), round((full[1] - size[1]) / 2)
            gap = np.abs(got.transpose(1, 2, 0).astype(int) - wanted[top : top + size[0], left : left + size[1]])
            shrinking = full[0] <= image.shape[0] and full[1] <= image.shape[1]
            assert gap.max() <= (1 if shrinking and antialias else 2), (size, image.shape)
            assert gap.mean() <= 0.1


def test_nearest_is_pillows_and_equal_in_both() -> None:
    rng = np.random.default_rng(2)
    for _ in range(40):
        height, width, new_height, new_width = (int(n) for n in rng.integers(1, 90, 4))
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        preprocess = Preprocess((new_height, new_width), interpolation="nearest")
        fast, small = (render.render(image, preprocess, implementation=name) for name in render.IMPLEMENTATIONS)
        np.testing.assert_array_equal(fast, small)
        wanted = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.NEAREST))
        # Where a new pixel's centre meets an edge between two old ones, Pillow's rounding decides by accident.
        down, across = (
            (2 * np.arange(new) + 1) * old % (2 * new) != 0 for old, new in ((height, new_height), (width, new_width))
        )
        np.testing.assert_array_equal(fast.transpose(1, 2, 0)[down][:, across], wanted[down][:, across])


@both
@pytest.mark.parametrize(("size", "percent"), [(224, 0.875), (96, 1.0), (97, 0.9), (160, 0.95)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_is_timms_evaluation_transform(implementation: str, size: int, percent: float, interpolation: str) -> None:
    from timm.data import create_transform

    transform = create_transform(
        size, is_training=False, crop_pct=percent, interpolation=interpolation, normalize=False, crop_mode="center"
    )
    preprocess = Preprocess((size, size), resize="crop", shorter=int(size / percent), interpolation=interpolation)
    for box in ((0, 0, 640, 427), (0, 0, 333, 427), (5, 7, 640, 120), (100, 100, 400, 400), (0, 0, 101, 102)):
        image = Image.fromarray(photo()).crop(box)
        wanted = np.asarray(transform(image)).astype(int)
        got = render.render(np.asarray(image), preprocess, implementation=implementation)
        gap = np.abs(got - wanted)
        assert gap.max() <= 2
        assert gap.mean() <= 0.1


def test_render_owns_its_pixels_and_takes_any_view() -> None:
    image = photo()
    for name in render.IMPLEMENTATIONS:
        same = render.render(image, Preprocess((427, 640)), implementation=name)
        np.testing.assert_array_equal(same, image.transpose(2, 0, 1))
        assert not np.shares_memory(same, image)
        mirrored = image[:, ::-1]
        mirrored.flags.writeable = False
        straight = render.render(np.ascontiguousarray(mirrored), Preprocess((96, 96)), implementation=name)
        np.testing.assert_array_equal(render.render(mirrored, Preprocess((96, 96)), implementation=name), straight)


def test_long_thin_images_do_not_fill_the_memory() -> None:
    thin = np.zeros((2, 40_000, 3), np.uint8)
    with pytest.raises(ImageError, match=r"thin\.png is too long and thin"):
        render.render(thin, Preprocess((96, 96), resize="crop", shorter=96), where="thin.png")
    assert render.render(thin, Preprocess((96, 96))).shape == (3, 96, 96)


@both
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"])
def test_truncated_files_are_errors(kind: str, implementation: str) -> None:
    data = encode(thumb(), kind)
    spare = {"JPEG": 2, "GIF": 2, "BMP": 3}.get(kind, 0)  # a marker, a terminator, a row's padding: no pixel is missing
    cuts = [*range(0, len(data) - 1 - spare, max(1, len(data) // 40)), len(data) - 1 - spare]
    for cut in cuts:
        with pytest.raises(ImageError, match=r"^cut\.bin "):
            render.decode(data[:cut], "cut.bin", implementation=implementation)


@both
def test_truncated_jpegs_with_a_thumbnail_or_many_scans_are_errors(implementation: str) -> None:
    exif = Image.Exif().tobytes() + b"\xff\xd8 a thumbnail \xff\xda with an end \xff\xd9"
    for options in ({"exif": exif}, {"progressive": True}, {"subsampling": 0, "quality": 100}):
        data = encode(thumb(), "JPEG", **options)
        assert render.decode(data, "whole.jpg", implementation=implementation).shape == (51, 75, 3)
        for share in (0.5, 0.9, 0.99):
            with pytest.raises(ImageError, match="cut short"):
                render.decode(data[: int(len(data) * share)], "cut.jpg", implementation=implementation)


def test_what_torchcodec_refuses_is_read_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchcodec.decoders

    broken_note = chunk(b"tEXt", b"Comment\0hello")[:-1] + b"\0"  # a wrong checksum
    data = png(75, 51, 8, 2, [row.tobytes() for row in np.asarray(thumb())], after=broken_note)
    np.testing.assert_array_equal(render.decode(data, "note.png"), np.asarray(thumb()))

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(torchcodec.decoders, "decode_image", refuse)
    data = encode(thumb(), "JPEG")
    np.testing.assert_array_equal(render.decode(data, "a.jpg"), plain(data))


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "gif", "webp"])
def test_bombs_are_refused_at_once(kind: str) -> None:
    bmp, jpeg = encode(thumb(), "BMP"), encode(thumb(), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    large = {
        "png": png(14_000, 14_000, 8, 2, []),
        "gif": b"GIF89a" + struct.pack("<HH", 65_000, 65_000) + encode(thumb(), "GIF")[10:],
        "bmp": bmp[:18] + struct.pack("<ii", 20_000, 20_000) + bmp[26:],
        "jpeg": jpeg[:at] + struct.pack(">HH", 65_000, 65_000) + jpeg[at + 4 :],
        "webp": b"RIFF\x1e\0\0\0WEBPVP8L\x11\0\0\0\x2f" + struct.pack("<I", 16_000 | 16_000 << 14) + bytes(12),
    }[kind]
    render.decode(encode(thumb(), "PNG"), "warm.png")
    for name in render.IMPLEMENTATIONS:
        start = time.perf_counter()
        with pytest.raises(ImageError, match="above the limit" if kind != "webp" else "bomb"):
            render.decode(large, "bomb", implementation=name)
        assert time.perf_counter() - start < 0.05


def test_between_pillows_limit_and_ours_nothing_warns() -> None:
    """89.5 to 100 million pixels: Pillow's opener would warn here, and warnings are errors in these tests."""
    data = encode(Image.new("1", (9_500, 9_500)), "PNG")
    with pytest.raises(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(data))
    assert render.decode(data, "large.png").shape == (9_500, 9_500, 3)


@both
def test_no_pixels_at_all(implementation: str) -> None:
    jpeg = encode(thumb(), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    for data in (png(0, 5, 8, 2, []), jpeg[:at] + b"\0\0" + jpeg[at + 2 :], b"P6 0 3 255\n"):
        with pytest.raises(ImageError, match="no pixels at all"):
            render.decode(data, "none", implementation=implementation)


def test_unreadable_paths_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "lfs.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html><html></html>")
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "noise.jpg").write_bytes(bytes(range(1, 99)))
    wanted = {"empty": "is empty", "folder": "is a folder", "lfs": "Git LFS pointer", "page": "web page", "phone": "damaged header",
              "noise": "not an image of a known kind", "missing": "does not exist"}  # fmt: skip
    for stem, part in wanted.items():
        path = tmp_path / f"{stem}.jpg"
        with pytest.raises(ImageError) as caught:
            render.load(path, Preprocess((8, 8)))
        assert part in caught.value.message
        assert str(path) in caught.value.message
        assert caught.value.hint
        assert "\n" not in caught.value.message
    with pytest.raises(ImageError, match="cannot be read"):
        render.read(Path("a\0b.jpg"))
    with pytest.raises(ImageError, match="cannot be read"):
        render.read(tmp_path / ("x" * 300))
    with pytest.raises(ImageError, match="not a regular file"):
        render.read(Path("/dev/zero"))


def test_permission_and_size_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(thumb(), "JPEG"))
    monkeypatch.setattr(decode, "LIMIT_BYTES", 100)
    with pytest.raises(ImageError, match="above the limit of 100"):
        render.read(path)
    monkeypatch.undo()

    def deny(_: Path) -> bytes:  # the superuser may read anything, so that chmod proves nothing
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)
    with pytest.raises(ImageError, match="cannot be read: Permission denied"):
        render.read(path)


def test_load_is_read_decode_render(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(thumb(), "JPEG", exif=exif))
    for name in render.IMPLEMENTATIONS:
        shown = render.load(path, Preprocess((75, 51)), implementation=name)
        stored = render.load(path, Preprocess((51, 75), orientation="stored"), implementation=name)
        np.testing.assert_array_equal(stored.transpose(1, 2, 0), plain(path.read_bytes()))
        np.testing.assert_array_equal(shown, np.rot90(stored, -1, (1, 2)))


def test_find_takes_images_only_and_sorts(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "sub/c.webp", "._a.png", ".hidden/d.png", "notes.txt", "e.jpg.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in render.find(tmp_path)] == ["a.png", "b.JPG", "sub/c.webp"]
    with pytest.raises(ImageError, match="nowhere cannot be listed"):
        render.find(tmp_path / "nowhere")
    for suffix in render.SUFFIXES:
        assert suffix == suffix.lower()
        kind = "HEIF" if suffix in (".heic", ".heif") else Image.registered_extensions()[suffix]  # of an extra
        assert kind in set(decode._openers())


def test_digest_and_tag() -> None:
    import torchcodec

    one, two = encode(thumb(), "PNG"), encode(thumb(), "BMP")
    assert len(render.digest(one)) == 16
    assert render.digest(one) == render.digest(bytes(one)) != render.digest(two)
    assert render.implementation_tag("fast").startswith(f"fast:torchcodec{torchcodec.__version__.split('+')[0]}+torchvision")
    assert render.implementation_tag("pillow").startswith("pillow:pillow")
    with pytest.raises(ValueError, match="fast, pillow"):
        render.decode(one, "x", implementation="cv2")


def test_threads_agree(tmp_path: Path) -> None:
    paths = []
    for at, (name, data) in enumerate(kinds().items()):
        paths.append(tmp_path / f"{at}-{name.replace(' ', '-').replace(':', '')}")
        paths[-1].write_bytes(data)
    one = functools.partial(render.load, preprocess=Preprocess((32, 32)))
    alone = [one(path) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(one, paths * 4))
    for at, found in enumerate(together):
        np.testing.assert_array_equal(found, alone[at % len(alone)])


def corrupted(count: int, seed: int) -> list[tuple[str, bytes]]:
    """Real files with bytes flipped, overwritten, removed, repeated or cut."""
    rng = np.random.default_rng(seed)
    sources = list(kinds().items()) + [(name, data) for name, (data, _) in wide_files().items()]
    out = []
    for at in range(count):
        name, data = sources[at % len(sources)]
        raw = bytearray(data)
        start = int(rng.integers(0, min(len(raw), 64 if rng.random() < 0.3 else len(raw))))
        length = int(rng.integers(1, 40))
        match int(rng.integers(0, 5)):
            case 0:
                raw[start] ^= 1 << int(rng.integers(0, 8))
            case 1:
                raw[start : start + length] = rng.bytes(length)
            case 2:
                del raw[start : start + length]
            case 3:
                raw[start:start] = raw[start : start + length]
            case _:
                del raw[start:]
        out.append((name, bytes(raw)))
    return out


def fuzz(count: int, seed: int) -> dict[str, int]:
    """Decode corrupted files with both implementations; anything but pixels or ImageError escapes."""
    messages: list[tuple[str, str]] = []
    tally = dict.fromkeys(("both read", "both refuse", "pixels differ", "one refuses"), 0)
    for name, data in corrupted(count, seed):
        found = []
        for implementation in render.IMPLEMENTATIONS:
            try:
                found.append(render.decode(data, name, implementation=implementation))
                assert found[-1].ndim == 3
                assert found[-1].shape[2] == 3
            except ImageError as error:
                messages.append((name, error.message))
        if len(found) == 2:
            same = found[0].shape == found[1].shape and bool((found[0] == found[1]).all())
            tally["both read" if same else "pixels differ"] += 1
        else:
            tally["one refuses" if found else "both refuse"] += 1
    assert all(message.startswith(f"{name} ") and "\n" not in message for name, message in messages)
    return tally


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged TIFF tags
def test_corrupted_files_give_pixels_or_an_image_error() -> None:
    tally = fuzz(480, seed=0)
    assert sum(tally.values()) == 480
    assert tally["both refuse"] > 100
    assert tally["pixels differ"] + tally["one refuses"] <= 480 * 0.05


def test_decoders_live_in_one_place() -> None:
    """One file imports TorchCodec; torchvision.io, which one flipped byte can crash, is imported nowhere."""
    users = set()
    for path in [*(ROOT / "toolkit").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
            if isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            assert not any(n == "torchvision.io" or n.startswith("torchvision.io.") for n in names), path
            if any(n.split(".")[0] == "torchcodec" for n in names):
                users.add(path.relative_to(ROOT).as_posix())
    assert users == {"toolkit/images/torch_pixels.py"}


def test_the_small_implementation_loads_no_torch(tmp_path: Path) -> None:
    import subprocess

    path = tmp_path / "a.png"
    path.write_bytes(encode(thumb(), "PNG"))
    code = (
        "import sys; \nfrom pathlib import Path; \nfrom toolkit.images import render\nfrom toolkit.core.cards import Preprocess\n"
        f"render.load(Path({str(path)!r}), Preprocess((32, 32)), implementation='pillow')\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
