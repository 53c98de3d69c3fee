"""Cards: JSON and back, contradictions refused, newer schemas named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import card
from toolkit.core.cards import SCHEMA, Card, Output, Preprocess
from toolkit.errors import CardError

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)


@given(st.lists(names, min_size=1, max_size=6, unique=True), st.integers(1, 512), st.none() | st.integers(0, 9))
def test_json_and_back(classes, side, fold):
    said = card(fold=fold, classes=classes, size=(side, side + 1), score=0.1, parity={"logit": 1e-7})
    assert Card.from_json(said.to_json(), where="x") == said


def test_a_newer_schema_is_named():
    text = json.dumps(json.loads(card().to_json()) | {"schema": SCHEMA + 1})
    with pytest.raises(CardError, match=rf"model\.onnx.*schema {SCHEMA + 1}") as caught:
        Card.from_json(text, where="model.onnx")
    assert "Upgrade" in caught.value.hint


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "{}", '{"schema": 1}', '{"schema": "one"}', "null"])
def test_what_is_no_card_is_refused(text):
    with pytest.raises(CardError, match=r"model\.onnx"):
        Card.from_json(text, where="model.onnx")


def test_an_unknown_field_is_refused():
    text = json.dumps(json.loads(card().to_json()) | {"wings": 2})
    with pytest.raises(CardError, match="wings"):
        Card.from_json(text, where="x")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Preprocess((0, 32)),
        lambda: Preprocess((32, 32), "crop"),
        lambda: Preprocess((32, 32), "crop", 31),
        lambda: Preprocess((32, 32), "squash", 40),
        lambda: Preprocess((32, 32), interpolation="lanczos"),
        lambda: Output("t", ()),
        lambda: Output("t", ("a", "a")),
        lambda: Output("t", ("a", "b", "c"), start=0, stop=2),
        lambda: Output("t", ("a", "b"), "relu"),
        lambda: card(member="a/b"),
        lambda: card(std=(0.1, 0.0, 0.1)),
        lambda: card(outputs=()),
    ],
)
def test_contradictions_are_refused_at_birth(make):
    with pytest.raises(CardError):
        make()


def test_the_pixel_digest_changes_with_every_field():
    variants = [
        Preprocess((32, 32)),
        Preprocess((32, 33)),
        Preprocess((32, 32), "crop", 40),
        Preprocess((32, 32), "crop", 41),
        Preprocess((32, 32), interpolation="bicubic"),
        Preprocess((32, 32), antialias=False),
        Preprocess((32, 32), orientation="stored"),
    ]
    assert len({variant.digest for variant in variants}) == len(variants)
    assert Preprocess((32, 32)).digest == Preprocess([32, 32]).digest


def test_a_sealed_card_knows_what_it_stands_beside():
    said = card()
    text = said.sealed("weights")
    assert Card.from_json(text, where="x", content="weights") == said
    assert Card.from_json(text, where="x") == said  # where nobody knows the weights
    assert Card.from_json(said.to_json(), where="x", content="others") == said  # of before
    for changed, content in ((text, "others"), (text.replace('"fold": 0', '"fold": 1'), "weights")):
        with pytest.raises(CardError, match=r"m\.onnx is damaged") as caught:
            Card.from_json(changed, where="m.onnx", content=content)
        assert "adopt" in caught.value.hint


@pytest.mark.parametrize("name", ["a\0b", "a\ud800"])
def test_names_that_no_file_holds_are_refused_at_birth(name):
    for what in ({"member": name}, {"recipe": name}):
        with pytest.raises(CardError, match="cannot be written"):
            card(**what)
    with pytest.raises(CardError, match="cannot be written"):
        Output(name, ("a", "b"))
    with pytest.raises(CardError, match="cannot be written"):
        Output("label", ("a", name))
