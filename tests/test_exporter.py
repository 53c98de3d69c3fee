"""What is remembered of torch's exporter is what the exporter says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.conftest import card, network
from tests.exporter import UnknownError, key, plain, remember
from toolkit.models import export as exporting

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Nothing is remembered yet."""
    monkeypatch.setattr(torch.onnx, "export", torch.onnx.export)  # as it is now, put back at the end
    remember(tmp_path / "exports")
    return tmp_path / "exports"


def graph(model, path):
    """The export with its values numbered as they come: the exporter's numbers count what was optimised away too."""
    exporting.export(model, card(), path, samples=PIXELS)
    proto = onnx.load(path).graph
    numbers = {}
    for node in proto.node:
        node.name = ""
        for names in (node.input, node.output):
            names[:] = [numbers.setdefault(name, str(len(numbers))) for name in names]
    for value in (*proto.initializer, *proto.input, *proto.output):
        value.name = numbers[value.name]
    return proto.SerializeToString()


class Scaled(nn.Module):
    """Settings, a table outside the state and code, of which each makes another graph."""

    def __init__(self, by=2.0, shift=0.0):
        super().__init__()
        self.layer, self.by = nn.Linear(3, 3), by
        self.register_buffer("table", torch.full((3,), shift), persistent=False)

    def forward(self, images):
        return self.layer(images.mean((2, 3))) * self.by + self.table


class Squared(Scaled):
    def forward(self, images):
        return super().forward(images) ** 2


def scaled(seed):
    """Its mean over pixels has the name of the mean that images are normalised with."""
    torch.manual_seed(seed)
    return Scaled()


@pytest.mark.parametrize("make", [network, scaled], ids=["network", "a name twice"])
def test_other_weights_give_the_graph_that_the_exporter_gives(folder, tmp_path, make):
    graph(make(0), tmp_path / "first.onnx")
    assert len(list(folder.iterdir())) == 1
    again = graph(make(1), tmp_path / "again.onnx")
    assert len(list(folder.iterdir())) == 1
    with plain():
        assert again == graph(make(1), tmp_path / "plain.onnx")


def tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


def test_what_makes_another_graph_is_another_key():
    def local(change):
        class Net(Scaled):
            def forward(self, images):
                return super().forward(images) + change

        return Net()

    models = [Scaled(), Scaled(by=3.0), Scaled(shift=1.0), Squared(), local(1.0), local(2.0), nn.Sequential(Scaled())]
    models += [nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), tied(), Scaled().half(), Scaled().eval()]
    images = (torch.zeros(2, 3, 8, 8),)
    keys = {key(model, (images,), {"opset_version": 20}) for model in models}
    assert len(keys) == len(models)
    ours = key(Scaled(), (images,), {"opset_version": 20})
    assert ours in keys
    assert key(Scaled(), ((torch.ones(2, 3, 8, 8),),), {"opset_version": 20}) == ours
    assert key(Scaled(), ((torch.zeros(2, 3, 9, 8),),), {"opset_version": 20}) not in keys
    assert key(Scaled(), (images,), {"opset_version": 18}) not in keys


def test_what_nobody_can_tell_apart_has_no_key(folder, tmp_path):
    hooked, strange = Scaled(), Scaled()
    hooked.register_forward_hook(lambda *_: None)
    strange.kept = object()
    for model in (hooked, strange):
        with pytest.raises(UnknownError):
            key(model, ((torch.zeros(2, 3, 8, 8),),), {})
        exporting.export(model, card(), tmp_path / "x.onnx", samples=PIXELS)
    assert list(folder.iterdir()) == []
