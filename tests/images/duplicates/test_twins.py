"""Planted copies are found by their pixels under every turn; what is merely alike is called so, and templates are told."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tests.conftest import draw
from toolkit.images import tensor_views
from toolkit.images.duplicates import twins
from toolkit.images.duplicates.hashes import TURNS
from toolkit.images.duplicates.prints import prints


def scene(seed):
    """A picture with no symmetry: blurred noise under a gradient."""
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(4))
    wide = np.asarray(noise, dtype=float)
    wide = (wide - wide.mean()) * 4 + 128 + rng.normal(0, 25, 3)
    return Image.fromarray(wide.clip(0, 255).astype(np.uint8))


def turned(image, turn):
    batch = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
    return Image.fromarray(tensor_views.apply(batch, turn)[0].permute(1, 2, 0).contiguous().numpy())


def jpeg(image, quality):
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return data.getvalue()


@pytest.mark.parametrize("turn", TURNS)
def test_copies_are_found_resized_recompressed_and_turned(tmp_path, turn):
    for seed in range(30):
        scene(seed).save(tmp_path / f"{seed:02d}.png")
    for seed in (3, 7):
        copy = turned(scene(seed), turn).resize((70, 70), Image.Resampling.BICUBIC)
        (tmp_path / f"x{seed}.jpg").write_bytes(jpeg(copy, 40))
    paths = sorted(tmp_path.iterdir())
    found = twins.find(prints(paths))
    assert {(paths[t.first].name, paths[t.second].name, t.turn) for t in found.twins} == {
        ("03.png", "x3.jpg", turn),
        ("07.png", "x7.jpg", turn),
    }
    assert (found.alike, found.templates) == ((), ())
    assert not any(t.exact for t in found.twins)


def test_the_same_bytes_are_one_star_and_flat_pictures_are_not_alike(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abc":
        draw(np.random.default_rng(5), 1).save(tmp_path / f"{name}.png")
    for level in (0, 255):
        Image.new("RGB", (20, 20), (level, level, level)).save(tmp_path / f"flat{level}.png")
    draw(rng, 2).save(tmp_path / "z.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    seen = []
    paths = sorted(tmp_path.iterdir())
    given = prints(paths, progress=lambda done, total: seen.append((done, total)))
    found = twins.find(given).twins
    assert [(paths[t.first].name, paths[t.second].name, t.exact) for t in found] == [
        ("a.png", "b.png", True),
        ("a.png", "c.png", True),
    ]
    assert (len(given.bad), seen[-1]) == (1, (7, 7))


def doubles(folder, images):
    """What is found among images by name, saved as PNG or, where they are bytes, as they are."""
    for name, image in images.items():
        if isinstance(image, bytes):
            (folder / name).write_bytes(image)
        else:
            image.save(folder / name)
    paths = sorted(folder.iterdir())
    found = twins.find(prints(paths))
    named = {
        what: {(paths[t.first].stem, paths[t.second].stem): t.differs for t in pairs}
        for what, pairs in (("one", found.twins), ("alike", found.alike))
    }
    return named, {paths[i].stem for i in found.templates}


def disc(rng, colour, size=96, spots=0):
    """A disc on black whose place, size and colour are drawn, with spots on it."""
    image = Image.new("RGB", (size, size))
    centre, radius = size / 2 + rng.normal(0, 1.5, 2), size * 0.4 + rng.normal(0, 1.5)
    tint = tuple(int(level) for level in (np.array(colour) + rng.normal(0, 6, 3)).clip(0, 255))
    pen = ImageDraw.Draw(image)
    pen.ellipse([*(centre - radius), *(centre + radius)], fill=tint)
    for _ in range(spots):
        place = centre + rng.uniform(-0.55, 0.55, 2) * radius
        pen.ellipse([*(place - 2), *(place + 2)], fill=tuple(level * 3 // 4 for level in tint))
    return image


def test_colours_are_part_of_the_proof(tmp_path):
    rng = np.random.default_rng(0)
    red = disc(np.random.default_rng(1), (200, 60, 30))
    flag = {"green": (0, 140, 60), "blue": (70, 105, 60)}  # of one brightness
    flags = {}
    for name, colour in flag.items():
        flags[name] = Image.new("RGB", (96, 64), (250, 250, 250))
        ImageDraw.Draw(flags[name]).rectangle([0, 0, 31, 63], fill=colour)
        ImageDraw.Draw(flags[name]).rectangle([60, 20, 80, 40], fill=(20, 20, 20))
    images = {"red.png": red, "red2.jpg": jpeg(red, 60), "orange.png": disc(np.random.default_rng(1), (220, 130, 40))}
    images |= {f"{name}.png": image for name, image in flags.items()} | {
        "grey.png": scene(3).convert("L"),
        "scene.png": scene(3),
    }
    named, _ = doubles(tmp_path, images | {f"other{i}.png": draw(rng, i) for i in range(3)})
    assert named["one"] == {("red", "red2"): ""}
    assert named["alike"]["blue", "green"] == "colour"
    assert named["alike"]["grey", "scene"] == "colour"
    assert named["alike"]["orange", "red"]


@pytest.mark.parametrize("spots", [0, 4])
def test_drawings_from_one_template_are_no_doubles_and_their_copies_are(tmp_path, spots):
    rng = np.random.default_rng(spots + 7)
    images = {f"{i:03d}.png": disc(rng, ((200, 60, 30), (220, 130, 40))[i % 2], spots=spots) for i in range(80)}
    copies = {f"{i:03d}x.png": images[f"{i:03d}.png"].resize((60, 60), Image.Resampling.BICUBIC) for i in range(0, 80, 8)}
    if spots:
        copies |= {f"{i:03d}x.jpg": jpeg(images[f"{i:03d}.png"], 92) for i in range(4, 80, 8)}
    named, templates = doubles(tmp_path, images | copies)
    planted = {(name[:3], name[:4]) for name in copies}
    assert set(named["one"]) <= planted
    assert len(named["one"]) >= 0.9 * len(planted)
    assert len(templates) > 25
    assert not {name for pair in named["alike"] for name in pair} & templates


def test_a_small_change_is_another_picture(tmp_path):
    plain, marked = scene(1).resize((200, 200)), scene(1).resize((200, 200))
    ImageDraw.Draw(marked).ellipse([60, 60, 68, 68], fill=(0, 0, 0))
    named, _ = doubles(tmp_path, {"plain.png": plain, "marked.png": marked, "plain2.jpg": jpeg(plain, 50)})
    assert set(named["one"]) == {("plain", "plain2")}


def test_the_same_shapes_with_other_detail_are_another_picture(tmp_path):
    smooth = np.asarray(scene(2).resize((64, 64)), dtype=float)
    grains = [
        Image.fromarray((smooth + np.random.default_rng(i).normal(0, 5, (64, 64, 1))).clip(0, 255).astype(np.uint8))
        for i in range(2)
    ]
    named, _ = doubles(tmp_path, {"a.png": grains[0], "b.png": grains[1], "a2.jpg": jpeg(grains[0], 80)})
    assert set(named["one"]) == {("a", "a2")}


def test_letters_are_not_each_other(tmp_path):
    """Of b, d, p and q each is another's mirror or turn; of the others none is."""
    images = {}
    for letter in "bdpqnucoe69":
        for size in (40, 64):
            image = Image.new("L", (2 * size, 2 * size), 255)
            ImageDraw.Draw(image).text((size // 2, size // 3), letter, font=ImageFont.load_default(size), fill=0)
            images[f"{letter}{size}.png"] = image
    for path, image in images.items():
        image.save(tmp_path / path)
    paths = sorted(tmp_path.iterdir())
    for twin in twins.find(prints(paths)).twins:
        first, second = (paths[number].stem[0] for number in (twin.first, twin.second))
        assert first == second or twin.turn != "id"


@pytest.mark.parametrize("side", [8, 14])
def test_of_very_small_pictures_little_is_proved(tmp_path, side):
    rng = np.random.default_rng(0)
    base = np.kron(rng.integers(30, 220, (2, 2)), np.ones((side // 2, side // 2)))
    images = {
        f"{i}.png": Image.fromarray((base + rng.normal(0, 4, base.shape)).clip(0, 255).astype(np.uint8)) for i in range(6)
    }
    grey = Image.open(io.BytesIO(_png(images["0.png"])))
    named, _ = doubles(tmp_path, images | {"0same.png": grey.convert("RGB")})
    assert ("0", "0same") in named["one"]
    assert len(named["one"]) == 1 or side == 14


def _png(image):
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def test_a_picture_that_vanishes_meanwhile_proves_nothing(tmp_path):
    scene(1).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(jpeg(scene(1), 90))
    given = prints(sorted(tmp_path.iterdir()))
    (tmp_path / "b.jpg").unlink()
    found = twins.find(given)
    assert (found.twins, len(found.alike)) == ((), 1)
