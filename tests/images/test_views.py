"""Views: identity first, all different, one name each; turned exactly as by ttach, cut as by ttach and torchvision."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
import ttach
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from tests.images.test_render import both, photo
from toolkit.core.cards import Preprocess
from toolkit.errors import DataError
from toolkit.images import geometry, render
from toolkit.images.tensor_views import apply
from toolkit.images.views import CORNERS, VIEW_SETS, Cut, canonical, needs_square, parse, per_member, views, written

SQUARE = torch.from_numpy(np.random.default_rng(0).permutation(2 * 3 * 6 * 6).astype(np.int64).reshape(2, 3, 6, 6))
ALIASES = {"flip": ttach.aliases.flip_transform, "d4": ttach.aliases.d4_transform, "hflip": ttach.aliases.hflip_transform}
TURNS = [name for name in VIEW_SETS if all(parse(view)[0] == Cut() for view in VIEW_SETS[name])]
STEPS = ("id", "hflip", "vflip", "rot90", "rot180", "rot270")
SIZE = Preprocess((48, 48))


def made(image, preprocess, view, implementation="fast"):
    """A view of one image, uint8 (3, height, width)."""
    cut, turn = parse(view)
    pixels = render.cuts(image, preprocess, [cut], implementation=implementation)[0]
    return apply(torch.from_numpy(pixels)[None], turn)[0].numpy()


# --- sets and names ---------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("name", VIEW_SETS)
@pytest.mark.parametrize("preprocess", [SIZE, Preprocess((48, 48), "crop", 55), Preprocess((48, 48), "crop", 48)])
def test_a_set_starts_with_identity_repeats_nothing_and_lands_on_the_size(name, preprocess, implementation):
    found = [made(photo(), preprocess, view, implementation) for view in views(name)]
    assert views(name) == VIEW_SETS[name]
    assert [canonical(view) for view in VIEW_SETS[name]] == list(VIEW_SETS[name])
    assert views(name)[0] == "id"
    np.testing.assert_array_equal(found[0], render.render(photo(), preprocess, implementation=implementation))
    assert len({view.tobytes() for view in found}) == len(found)
    assert {(view.shape, view.dtype) for view in found} == {((3, 48, 48), np.dtype(np.uint8))}


@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=7))
def test_chains_of_turns_have_one_name_for_the_same_pixels(steps):
    expected = SQUARE
    for step in steps:
        expected = apply(expected, step)
    name = canonical("+".join(steps))
    assert torch.equal(apply(SQUARE, "+".join(steps)), expected)
    assert torch.equal(apply(SQUARE, name), expected)
    assert name in VIEW_SETS["d4"]
    assert canonical(name) == name


def test_the_eight_names_are_eight_pictures():
    assert len({tuple(apply(SQUARE, view).flatten().tolist()) for view in VIEW_SETS["d4"]}) == 8


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hflip+vflip+hflip+vflip", "id"),
        ("scale:1.0", "id"),
        ("scale:1.00+hflip+hflip", "id"),
        ("hflip+scale:0.90", "scale:0.9+hflip"),
        ("add:10+multiply:0.5+add:-10", "multiply:0.5"),
        ("multiply:0.8+multiply:1.25", "id"),
        ("hflip+crop:rb+scale:1.1", "scale:1.1+crop:rb+hflip"),
    ],
)
def test_canonical_names(text, name):
    assert canonical(text) == name


def test_compositions_are_ttachs_products_identity_first_without_repetition():
    compose = ttach.Compose([ttach.HorizontalFlip(), ttach.Multiply([1, 0.9, 1.1])])
    names = [
        canonical(("hflip" if flip else "id") + f"+multiply:{factor}") for flip, factor in compose.aug_transform_parameters
    ]
    assert views("hflip+multiply:0.9,1.1") == tuple(dict.fromkeys(["id", *names]))
    assert views("hflip+scale:0.9,1.0,1.1") == ("id", "scale:0.9", "scale:1.1", "hflip", "scale:0.9+hflip", "scale:1.1+hflip")
    assert views("hflip+vflip") == views("flip")
    assert set(views("hflip+rot90")) == set(views("d4")) == set(views("d4+flip"))
    assert views("hflip+five_crop")[0] == "id"
    assert set(views("hflip+five_crop")) == set(views("ten_crop"))
    assert views("vflip") == ("id", "vflip")
    for first, second in itertools.product(VIEW_SETS, repeat=2):
        if {first, second} & {"five_crop", "ten_crop"}:
            continue
        found = views(f"{first}+{second}")
        assert found[0] == "id"
        assert len(set(found)) == len(found)
        assert set(VIEW_SETS[first]) | set(VIEW_SETS[second]) <= set(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("spin", "unknown view 'spin'"),
        ("", "unknown view ''"),
        ("hflip+spin", "'spin' in 'hflip+spin'"),
        ("scale:x", "'scale:x'"),
        ("scale:", "'scale:'"),
        ("scale:nan", "0.1 to 10"),
        ("scale:99", "0.1 to 10, not 99"),
        ("scale:0.2+scale:0.2", "not 0.04"),
        ("add:300", "-255 to 255"),
        ("multiply:0", "0.01 to 100"),
        ("crop:middle", "crop:middle"),
        ("crop:lt+crop:rb", "'crop:rb'"),
        ("hflip:2", "hflip:2"),
    ],
)
def test_what_the_grammar_does_not_have(text, words):
    with pytest.raises(DataError) as caught:
        views(text)
    assert words in caught.value.message
    if "unknown" in caught.value.message:
        for word in (*VIEW_SETS, "hflip+scale:0.9,1.1", "vflip"):
            assert word in caught.value.hint


def test_sets_per_member():
    members = ["b4", "vit", "cnn"]
    assert per_member("flip", members) == dict.fromkeys(members, "flip")
    assert per_member("b4=scale:0.9,1.1,vit=flip", members) == {"b4": "scale:0.9,1.1", "vit": "flip", "cnn": "none"}
    assert per_member("vit=auto", members)["vit"] == "auto"
    for text in ("flip", "b4=scale:0.9,1.1,vit=flip,cnn=none"):
        assert written(per_member(text, members)) == text
        assert per_member(written(per_member(text, members)), members) == per_member(text, members)
    for text, words in (
        ("b5=flip", "'b5'"),
        ("flip,b4=none", "cannot be read"),
        ("b4=flip,b4=none", "cannot be read"),
        ("b4=spin", "unknown view 'spin'"),
        ("b4=", "unknown view ''"),
    ):
        with pytest.raises(DataError) as caught:
            per_member(text, members)
        assert words in caught.value.message


# --- turns ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TURNS)
def test_turns_are_permutations_within_each_channel(name):
    for view in views(name):
        turned = apply(SQUARE, view)
        assert turned.shape == SQUARE.shape
        assert torch.equal(turned.flatten(2).sort(-1).values, SQUARE.flatten(2).sort(-1).values)


@pytest.mark.parametrize("name", ALIASES)
def test_the_sets_are_ttachs(name):
    theirs = [transformer.augment_image(SQUARE) for transformer in ALIASES[name]()]
    ours = [apply(SQUARE, view) for view in views(name)]
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_quarter_turns_need_squares_and_flips_do_not():
    wide = torch.zeros(1, 3, 4, 6, dtype=torch.uint8)
    for view in ("hflip+vflip", "rot90+rot90", "rot90+hflip+rot90"):
        assert not needs_square(view)
        assert apply(wide, view).shape == wide.shape
    for view in {view for name in TURNS for view in views(name) if needs_square(view)}:
        with pytest.raises(DataError, match="square"):
            apply(wide, view)


def test_a_batch_can_only_be_turned():
    with pytest.raises(DataError, match="cut from the decoded image"):
        apply(SQUARE, "scale:0.9")
    with pytest.raises(DataError, match="unknown view 'spiral'"):
        apply(SQUARE, "spiral")


# --- cuts -------------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("view", ["multiply:0.9", "multiply:1.1", "add:-10", "add:10", "add:200", "multiply:1.2+add:-30"])
def test_brightness_is_ttachs_rounded_and_clipped(view, implementation):
    cut = parse(view)[0]
    plain = torch.from_numpy(render.render(photo(), SIZE, implementation=implementation))[None].double()
    theirs = ttach.Multiply([cut.multiply]).apply_aug_image(plain, factor=cut.multiply)
    theirs = ttach.Add([cut.add]).apply_aug_image(theirs, value=cut.add)
    expected = theirs.round().clamp(0, 255).to(torch.uint8)[0].numpy()
    np.testing.assert_array_equal(made(photo(), SIZE, view, implementation), expected)


@both
@pytest.mark.parametrize(("side", "shorter"), [(224, 256), (96, 128), (48, 56)])
@pytest.mark.parametrize("kind", ["five_crop", "ten_crop"])
def test_crops_are_torchvisions_and_ttachs_on_the_resized_image(implementation, side, shorter, kind):
    """Where the card resizes to 8/7 of the crop or more (256 for 224), the identity is the centre crop of the five."""
    preprocess, image = Preprocess((side, side), "crop", shorter), np.ascontiguousarray(photo()[:, :427])
    full = torch.from_numpy(render.render(image, Preprocess((shorter, shorter)), implementation=implementation))
    theirs = {crop.numpy().tobytes() for crop in getattr(tv, kind)(full, [side, side])}
    assert {made(image, preprocess, view, implementation).tobytes() for view in views(kind)} == theirs
    for corner in CORNERS:
        expected = getattr(ttach.functional, f"crop_{corner}")(full[None], side, side)[0].numpy()
        np.testing.assert_array_equal(made(image, preprocess, f"crop:{corner}", implementation), expected)


@both
@pytest.mark.parametrize("preprocess", [Preprocess((48, 40)), Preprocess((48, 48), "crop", 50)])
def test_crops_of_what_is_resized_to_less_are_cut_from_eight_sevenths(implementation, preprocess):
    """48 becomes 55, the next integer above 48 · 8/7."""
    large = Preprocess((55, 46)) if preprocess.shorter is None else Preprocess((55, int(55 * 640 / 427)))
    full = torch.from_numpy(render.render(photo(), large, implementation=implementation))
    for place, view in enumerate(["crop:lt", "crop:rt", "crop:lb", "crop:rb"]):  # torchvision's order
        expected = tv.five_crop(full, list(preprocess.size))[place].numpy()
        np.testing.assert_array_equal(made(photo(), preprocess, view, implementation), expected)


@both
@pytest.mark.parametrize("factor", [0.5, 0.77, 0.9, 1.1, 1.37, 2.0])
@pytest.mark.parametrize("side", [48, 49])
def test_scales_are_ttachs_then_cut_or_padded_at_the_centre(implementation, factor, side):
    """ttach's Scale on the size itself, bilinear without antialias; ours starts from the file, here of that size already."""
    image = np.ascontiguousarray(photo()[100 : 100 + side, 200 : 200 + side])
    preprocess = Preprocess((side, side), antialias=False)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    scale = ttach.Scale([factor], interpolation="bilinear", align_corners=False)
    scaled = scale.apply_aug_image(batch, scale=factor)[0]
    ours = made(image, preprocess, f"scale:{factor}", implementation)
    have = scaled.shape[-1]
    expected = tv.center_crop(scaled, [side, side]).numpy()
    start = max((side - have) // 2, 0)
    inside = np.s_[:, start : start + min(have, side), start : start + min(have, side)]
    assert np.abs(ours[inside] - expected[inside]).max() <= 1.01  # uint8 rounds twice, once per axis
    outside = (
        np.pad(ours[inside], [(0, 0), (start, side - start - have), (start, side - start - have)], mode="edge")
        if have < side
        else ours
    )
    np.testing.assert_array_equal(ours, outside)


@pytest.mark.parametrize("view", ["scale:0.9", "scale:1.1", "crop:lt", "crop:rb", "scale:1.3+crop:rt+add:5", "multiply:1.1"])
@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
def test_the_two_implementations_agree(view, resize, interpolation, antialias):
    preprocess = Preprocess((61, 61), resize, 70 if resize == "crop" else None, interpolation, antialias)
    for image in (photo(), np.ascontiguousarray(photo().transpose(1, 0, 2)[:301]), photo()[:40, :50]):
        fast, small = (made(image, preprocess, view, name).astype(int) for name in render.IMPLEMENTATIONS)
        gap = np.abs(fast - small)
        assert gap.max() <= (0 if interpolation == "nearest" else 3)  # 2 levels of resizing, times 1.1
        assert gap.mean() <= 0.12


def test_cuts_share_a_resized_image_but_no_memory(monkeypatch):
    calls = []
    true = geometry._resize  # the only place where every implementation resizes
    monkeypatch.setattr(geometry, "_resize", lambda *a: calls.append(1) or true(*a))
    wanted = [parse(view)[0] for view in views("ten_crop+add")]
    found = render.cuts(photo(), Preprocess((56, 56), "crop", 64), list(dict.fromkeys(wanted)))
    assert len(calls) == 1
    assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(found, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render.cuts(photo(), Preprocess((56, 56)), list(dict.fromkeys(wanted)))


def test_a_cut_that_would_fill_the_memory_is_refused():
    from toolkit.errors import ImageError

    thin = np.zeros((2, 40_000, 3), np.uint8)
    with pytest.raises(ImageError, match="too long and thin"):
        render.cuts(thin, Preprocess((40, 40), "crop", 40), [Cut(), Cut(scale=3.0)], where="thin.png")
