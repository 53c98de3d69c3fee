"""What a file says of its network: a name that timm or torchvision has, and sizes; never code, a path or an address."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from safetensors.torch import save_file

from tests.conftest import card
from toolkit.cli import cli
from toolkit.errors import ModelError
from toolkit.models import checkpoints, networks

SMALL = {"model_name": "test_resnet", "num_classes": 3}


@pytest.fixture(scope="module")
def state():
    return dict(networks.create(SMALL).state_dict())


@pytest.fixture
def written(workspace, state):
    def write(architecture, name="theirs.safetensors", **more):
        text = architecture if isinstance(architecture, str) else json.dumps(architecture)
        save_file(state, workspace / name, {"toolkit.card": card(fold=None).to_json(), "toolkit.architecture": text} | more)
        return workspace / name

    return write


@pytest.fixture
def planted(workspace, monkeypatch):
    """A module that leaves a marker when it is imported, wherever names might lead."""
    marker = workspace / "marker"
    for name in ("evil.py", "hub.py"):
        (workspace / name).write_text(
            f"open({str(marker)!r}, 'w').close()\ndef build(**k):\n    import timm\n    return timm.create_model('test_resnet', **k)\n"
        )
    monkeypatch.setattr("huggingface_hub.file_download.get_session", lambda *a, **k: pytest.fail("a connection"), raising=False)
    return marker


HOSTILE = {
    "function": {"model_name": "evil.py:build"},
    "function below": {"model_name": "./evil.py:build"},
    "function of torchvision's": {"model_name": "torchvision/evil.py:build"},
    "hub": {"model_name": "hf-hub:timm/resnet18.a1_in1k"},
    "hub with a bar": {"model_name": "hf_hub:timm/resnet18.a1_in1k"},
    "folder": {"model_name": "local-dir:."},
    "checkpoint": {"checkpoint_path": "evil.py"},
    "pretrained": {"pretrained": True},
    "configuration": {"pretrained_cfg": {"url": "http://127.0.0.1:9/x.pth"}},
    "overlay": {"pretrained_cfg_overlay": {"file": "evil.py"}},
    "cache": {"cache_dir": "."},
    "weights": {"weights": "DEFAULT", "model_name": "torchvision/resnet18"},
    "backbone": {"weights_backbone": "DEFAULT", "model_name": "torchvision/resnet18"},
    "layer": {"act_layer": "evil.Layer"},
    "device": {"device": "cuda"},
    "scripted": {"scriptable": True},
    "features": {"features_only": True},
    "name that is no text": {"model_name": ["resnet18"]},
    "no name": {"model_name": None},
    "classes without end": {"num_classes": 10**12},
    "a share beyond": {"drop_rate": 1e400},
    "widths without end": {"channels": [8192, 8192, 8192, 8192], "model_name": "resnet18"},
    "factors without end": {"factors": [100_000] * 16},
    "crops without factors": {"crops": [[0, 0, 1, 1]]},
    "a crop without area": {"factors": [3], "crops": [[0.5, 0.5, 0.5, 0.5]]},
    "odd numbers": {"layers": [0, 0, 0, 0]},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_files_network_is_a_name_and_sizes(written, planted, what):
    path = written({**SMALL, **HOSTILE[what]})
    done = CliRunner().invoke(cli, ["export", str(path), "--output", "x.onnx"])
    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.output.startswith("Error: ")
    assert not planted.exists()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{",
        "[]",
        "3",
        '{"model_name": "a\\u0000b"}',
        '{"model_name": "\\ud800"}',
        '{"num_classes": 1' + "0" * 5000 + "}",
    ],
)
def test_metadata_that_is_no_architecture(written, text):
    with pytest.raises(ModelError, match="theirs"):
        checkpoints.read(written(text))


def test_a_function_runs_where_it_is_typed(written, planted):
    path = written({**SMALL, "model_name": "evil.py:build"})
    words = ["export", str(path), "--output", "x.onnx", "--model", "evil.py:build"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert planted.exists()


def test_what_recipes_write_is_taken(state, written):
    assert checkpoints.build(checkpoints.read(written(SMALL)))
    for more in ({"factors": [3]}, {"drop_rate": 0.1}, {"in_chans": 3}):
        checkpoints.read(written({**SMALL, **more}))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "resnet18.a1_in1k", "torchvision/resnet18"])
def test_names_of_the_registries_are_known(name):
    assert networks.known(name)


def test_a_checkpoint_whose_weights_changed_is_refused(tmp_path):
    import torch

    from tests.conftest import card
    from toolkit.errors import CardError
    from toolkit.models import checkpoints

    path = checkpoints.save(tmp_path / "m.safetensors", torch.nn.Linear(3, 2), card(), {"model_name": "x"})
    assert checkpoints.read(path).architecture == {"model_name": "x"}
    whole = path.read_bytes()
    for place in (len(whole) - 3, whole.index(b'{\\"model_name\\": \\"x') + 19):  # a weight; the architecture's name
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CardError, match=r"m\.safetensors is damaged"):
            checkpoints.read(path)
