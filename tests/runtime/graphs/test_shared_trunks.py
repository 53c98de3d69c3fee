"""Shared backbones: found where they are, cut exactly, run once, and bit-equal to the whole models."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch

from tests.conftest import card, network
from toolkit.models.export import export
from toolkit.runtime import host, onnxruntime_session
from toolkit.runtime.devices import PROVIDERS
from toolkit.runtime.graphs import onnx_file, shared_trunks
from toolkit.runtime.session import open_session

PIXELS = np.random.default_rng(0).integers(0, 256, (21, 3, 32, 32), dtype=np.uint8)


def tuned(seed, layers):
    """`network(0)` with the last layers trained anew: their weights, and nothing else, differ."""
    model = network(0)
    torch.manual_seed(100 + seed)
    for layer in list(model)[-layers:]:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def exported_as(model, path, member="m", fold=0):
    export(model, card(member, fold), path, samples=PIXELS)
    return onnx_file.read(path)


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Three fold models with one frozen backbone, and one with a backbone of its own."""
    root = tmp_path_factory.mktemp("heads")
    found = [exported_as(tuned(fold, 1), root / f"m.fold{fold}.onnx", fold=fold) for fold in range(3)]
    return [*found, exported_as(network(9), root / "other.onnx", "other")]


def heavy(model):
    return [node.op_type for node in model.graph.node if node.op_type in shared_trunks.HEAVY]


def test_a_frozen_backbone_is_one_trunk_with_small_heads(heads):
    trunks, alone = shared_trunks.find_trunks({e.digest: onnx_file.load(e.path) for e in heads})
    (trunk,) = trunks
    assert alone == [heads[-1].digest]
    assert heavy(trunk.model) == ["Conv", "Conv"]
    assert set(trunk.heads) == {e.digest for e in heads[:3]}
    assert all(heavy(head) == ["Gemm"] for head in trunk.heads.values())
    for model in (trunk.model, *trunk.heads.values()):
        onnx.checker.check_model(model, full_check=True)


def test_results_are_those_of_the_whole_models_to_the_bit(heads):
    together = open_session({e.digest: e.path for e in heads}, device="cpu")
    assert [len(unit.heads) for unit in together.units] == [1, 3]
    for view in ("id", "hflip"):
        found = together.run(PIXELS, view)
        for e in heads:
            alone = open_session({e.digest: e.path}, device="cpu").run(PIXELS, view)
            assert found[e.digest].tobytes() == alone[e.digest].tobytes()


def test_the_trunk_runs_once_for_all_heads(heads):
    session = open_session({e.digest: e.path for e in heads[:3]}, device="cpu")
    (unit,) = session.units
    calls = []

    class Counted:
        def run(self, *given):
            calls.append(1)
            return unit.trunk.run(*given)

        def get_inputs(self):
            return unit.trunk.get_inputs()

    session.units = [host.Unit(Counted(), unit.cut, unit.heads)]
    session.run(PIXELS[:8], "id")
    assert len(calls) == 1
    assert list(session.run(PIXELS[:8], "id", [heads[1].digest])) == [heads[1].digest]


def test_partly_frozen_backbones_share_what_is_frozen(tmp_path):
    found = []
    for fold in range(2):
        model = tuned(fold, 7)  # the second convolution on is trained, the first block is frozen
        found.append(exported_as(model, tmp_path / f"{fold}.onnx", fold=fold))
    (trunk,), alone = shared_trunks.find_trunks({e.digest: onnx_file.load(e.path) for e in found})
    assert alone == []
    assert heavy(trunk.model) == ["Conv"]
    assert all(heavy(head) == ["Conv", "Gemm"] for head in trunk.heads.values())


def test_batchnorm_statistics_that_drifted_leave_nothing_to_share(tmp_path):
    drifted = copy.deepcopy(network(0))
    drifted[1].running_mean += 0.01
    found = [exported_as(m, tmp_path / f"{i}.onnx", fold=i) for i, m in enumerate((network(0), drifted))]
    trunks, alone = shared_trunks.find_trunks({e.digest: onnx_file.load(e.path) for e in found})
    assert trunks == []
    assert alone == [e.digest for e in found]


def test_the_gpus_code_gives_the_same_on_the_cpus_memory(heads):
    """IO binding, trunks and padding as on a GPU, with tensors in main memory."""
    PROVIDERS["bound"] = PROVIDERS["cpu"]
    try:
        bound = onnxruntime_session.Gpu({e.digest: e.path for e in heads}, "bound", 8, memory="cpu")
    finally:
        del PROVIDERS["bound"]
    plain = open_session({e.digest: e.path for e in heads}, device="cpu", batch=8)
    for view in ("id", "hflip", "rot90"):
        ours, theirs = bound.run(bound.place(PIXELS), view), plain.run(PIXELS, view)
        assert set(ours) == set(theirs)
        for digest in theirs:
            np.testing.assert_allclose(ours[digest], theirs[digest], atol=1e-5)
    assert list(bound.run(bound.place(PIXELS), "id", [heads[2].digest])) == [heads[2].digest]
