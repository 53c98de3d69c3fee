"""Inference: nothing computed twice, nothing stale, bad images named and the good ones kept."""

from __future__ import annotations

import os
import shutil
import time

import numpy as np
import pytest

from tests.conftest import card, draw
from toolkit.errors import StoreError
from toolkit.images import render
from toolkit.inference import passes
from toolkit.inference.execution import Execution
from toolkit.inference.predict import predict
from toolkit.inference.store.prediction_store import Store
from toolkit.runtime.graphs.onnx_file import Export
from toolkit.runtime.session import FakeSession
from toolkit.workspace.image_rows import Item

VIEWS = ("id", "hflip")


def fake(digest, member="a", **changes):
    return Export(path=None, card=card(member, **changes), digest=digest, sha256="")


def brightness(pixels):
    return pixels.reshape(len(pixels), 3, -1).mean(axis=2).astype(np.float32)


class Opened:
    """An opener of fake sessions that counts what went through them."""

    def __init__(self, function=brightness):
        self.function, self.sessions = function, []

    def __call__(self, models, *, device, batch):
        self.sessions.append(FakeSession(dict.fromkeys(models, self.function)))
        return self.sessions[-1]

    @property
    def passes(self):
        return sum(session.passes for session in self.sessions)


@pytest.fixture
def items(tmp_path):
    rng = np.random.default_rng(1)
    (tmp_path / "images").mkdir()
    found = []
    for i in range(150):
        path = tmp_path / "images" / f"{i}.png"
        draw(rng, i % 3, 20, 24).save(path)
        os.utime(path, (time.time() - 100,) * 2)
        found.append(Item(str(i), path))
    return found


def run(items, root, exports=("m1", "m2"), views=VIEWS, **more):
    exports = [fake(e) if isinstance(e, str) else e for e in exports]
    opened = more.pop("opener", None) or Opened()
    outcome = predict(
        exports, {e.digest: views for e in exports}, items, Store(root / "store"), Execution("cpu", opener=opened, **more)
    )
    return outcome, exports, opened


def test_every_pass_is_made_once_and_then_never_again(items, tmp_path):
    outcome, exports, opened = run(items, tmp_path)
    assert opened.passes == outcome.passes == 150 * 2 * 2
    expected = brightness(np.stack([render.load(item.path, exports[0].card.preprocess) for item in items]))
    assert np.array_equal(outcome.logits(exports[0], "id", outcome.digests), expected)
    again, _, opened = run(items, tmp_path)
    assert (again.passes, opened.sessions) == (0, [])
    assert np.array_equal(
        again.logits(exports[1], "hflip", again.digests), outcome.logits(exports[1], "hflip", outcome.digests)
    )


def test_a_new_fold_or_view_runs_alone(items, tmp_path):
    run(items, tmp_path)
    outcome, _, _ = run(items, tmp_path, exports=("m1", "m2", "m3"))
    assert outcome.passes == 150 * 2
    outcome, _, _ = run(items, tmp_path, views=("id", "hflip", "vflip"))
    assert outcome.passes == 150 * 2


def test_a_changed_image_costs_one_row_and_a_new_name_none(items, tmp_path):
    run(items, tmp_path)
    draw(np.random.default_rng(99), 0, 20, 24).save(items[7].path)
    outcome, exports, _ = run(items, tmp_path)
    assert outcome.passes == 4
    expected = brightness(render.load(items[7].path, exports[0].card.preprocess)[None])
    assert np.array_equal(outcome.logits(exports[0], "id", outcome.digests[7:8]), expected)
    copy = items[3].path.with_name("copy.png")
    shutil.copy(items[3].path, copy)
    assert run([*items, Item("copy", copy)], tmp_path)[0].passes == 0


def test_an_image_replaced_within_the_same_second_and_size_is_seen(items, tmp_path):
    path = items[0].path
    now = time.time()
    os.utime(path, (now, now))
    run(items[:1], tmp_path)
    data = bytearray(path.read_bytes())
    other = items[1].path.read_bytes()
    size = max(len(data), len(other))
    path.write_bytes(bytes(data) + b"\0" * (size - len(data)))
    os.utime(path, (now, now))
    run(items[:1], tmp_path)
    path.write_bytes(other + b"\0" * (size - len(other)))
    os.utime(path, (now, now))
    outcome, exports, _ = run(items[:1], tmp_path)
    expected = brightness(render.load(items[1].path, exports[0].card.preprocess)[None])
    assert np.array_equal(outcome.logits(exports[0], "id", outcome.digests), expected)


def test_other_pixels_are_other_rows(items, tmp_path):
    run(items, tmp_path)
    outcome, _, _ = run(items, tmp_path, exports=[fake("m1", size=(16, 16)), fake("m2")])
    assert outcome.passes == 150 * 2


def test_an_image_is_decoded_once_for_all_models_views_and_sizes(items, tmp_path, monkeypatch):
    calls = []
    true = render.decode
    monkeypatch.setattr(render, "decode", lambda *a, **k: calls.append(1) or true(*a, **k))
    run(items, tmp_path, exports=[fake("m1"), fake("m2"), fake("m3", size=(16, 16))])
    assert len(calls) == 150


def test_bad_images_are_named_and_the_others_finished(items, tmp_path):
    items[5].path.write_bytes(items[5].path.read_bytes()[:60])
    items[66].path.unlink()
    items[70].path.write_bytes(b"")
    outcome, _, _ = run(items, tmp_path)
    assert [bad.id for bad in outcome.bad] == ["5", "66", "70"]
    assert all(str(bad.path) in bad.why for bad in outcome.bad)
    assert len(outcome.items) == 147
    assert outcome.passes == 147 * 4
    draw(np.random.default_rng(5), 1, 20, 24).save(items[5].path)
    assert run(items, tmp_path)[0].passes == 4


def test_what_was_finished_before_a_failure_is_kept(items, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "BLOCK", 16)

    class Fails(Opened):
        def __call__(self, models, *, device, batch):
            session = super().__call__(models, device=device, batch=batch)
            true = session.run

            def run(batch, view, models=None):
                if session.passes >= 64 * 4:
                    raise KeyboardInterrupt
                return true(batch, view, models)

            session.run = run
            return session

    with pytest.raises(KeyboardInterrupt):
        run(items, tmp_path, opener=Fails())
    assert run(items, tmp_path)[0].passes == (150 - 64) * 4


def test_logits_that_are_no_numbers_never_reach_the_store(items, tmp_path):
    with pytest.raises(StoreError, match="finite"):
        run(items[:3], tmp_path, opener=Opened(lambda pixels: np.full((len(pixels), 3), np.nan, np.float32)))
    assert run(items[:3], tmp_path)[0].passes == 12


def test_progress_reaches_the_end(items, tmp_path):
    seen = []
    run(items, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (150, 150)
    assert seen == sorted(seen)
