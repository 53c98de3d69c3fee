"""Workspaces and files of somebody who means harm: nothing in them runs, asks for a connection, hangs or ends in a traceback.

    python benchmarks/attack_hostile.py              every kind, 10 seeds each
    python benchmarks/attack_hostile.py --seeds 2 git toml

A kind makes its files from a seed in a workspace and gives the command to try there. Each trial runs in a forked child with
10 s of processor time, with an audit hook that sees connections and imports from the workspace; a file called `marker` tells
that code ran. Where `attack.py` stands beside it, it takes these kinds in.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

SECONDS = 10
WALL = 120
Words = list[str]
Make = Callable[[random.Random, Path], Words]
HOSTILE: dict[str, Make] = {}
CHECK = ["submit", "--check-only", "sample_submission.csv"]
BAD = ("traceback", "hang", "code run", "connection")


def hostile(make: Make) -> Make:
    """Add a kind by its function's name."""
    HOSTILE[make.__name__] = make
    return make


def workspace(root: Path) -> None:
    """A workspace of twelve training images, without models."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(5)
    for part, count in (("train", 12), ("test", 3)):
        (root / part).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(root / part / f"{part}{i}.png")
    (root / "train.csv").write_text("id,label\n" + "".join(f"train{i},{'abc'[i % 3]}\n" for i in range(12)))
    (root / "sample_submission.csv").write_text("id,label\n" + "".join(f"test{i},a\n" for i in range(3)))
    (root / "competition.toml").write_text(
        'schema = 1\nname = "x"\nmetric = "accuracy"\n[columns]\nid = "id"\n'
        '[train]\ntable = "train.csv"\nimages = "train"\npattern = "{id}.png"\n'
        '[test]\nimages = "test"\npattern = "{id}.png"\n[submission]\nsample = "sample_submission.csv"\nformat = "labels"\n'
        '[targets.label]\ntask = "multiclass"\ncolumn = "label"\nclasses = ["a", "b", "c"]\n'
    )
    (root / "evil.py").write_text(f"open({str(root / 'marker')!r}, 'w').close()\ndef build(**k):\n    raise SystemExit\n")
    for name in ("numpy.py", "onnxruntime.py", "sitecustomize.py"):  # never to be imported from here
        (root / name).write_text((root / "evil.py").read_text())


def odd(rng: random.Random) -> object:
    """A value of a type, size or shape that nobody expects."""
    return rng.choice(
        [None, True, -1, 0, 10**20, 1e308, float("inf"), float("nan"), "", "\0", "\ud800", "x" * 5000, "../../etc/passwd",
         [], [[]], {}, {"a": {"b": [1]}}, ["a", "a"], [None], [1e999], -(2**63), "{id}", "**/*", "/dev/zero"]
    )  # fmt: skip


def mutated(rng: random.Random, value: object) -> object:
    """The same tree with one to three of its places replaced, removed, doubled or deepened."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.randrange(1, 4)):
        node: object = value
        while isinstance(node, dict | list) and node:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = rng.choice(keys)
            inner = node[key]  # type: ignore[index]
            if not isinstance(inner, dict | list) or not inner or rng.random() < 0.4:
                if rng.random() < 0.15:
                    del node[key]  # type: ignore[attr-defined]
                else:
                    node[key] = odd(rng)  # type: ignore[index]
                break
            node = inner
    return value


CARD = {
    "schema": 1, "member": "m", "fold": 0, "mean": [0.5] * 3, "std": [0.2] * 3, "split": "", "metric": "accuracy", "score": 0.5,
    "selected": "last", "recipe": "", "parity": {"logit": 1e-7}, "versions": {}, "labels_fix": "",
    "outputs": [{"target": "label", "classes": ["a", "b", "c"], "activation": "softmax", "start": 0, "stop": 3,
                 "independent": False}],
    "preprocess": {"size": [8, 8], "resize": "squash", "shorter": None, "interpolation": "bilinear", "antialias": True,
                   "orientation": "exif", "colour": "RGB", "box": "", "region": [0, 0, 1, 1]},
}  # fmt: skip


def graph(card: object, repeat: int = 1, axis: int = 1) -> bytes:
    """A model of channel means, its output repeated so often along an axis, whatever the card says."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["mean"]),
        helper.make_node("Concat", ["mean"] * repeat, ["logits"], axis=axis),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 3, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", "c"])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [images], [logits]), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    model.metadata_props.add(key="toolkit.card", value=json.dumps(card))
    return bytes(model.SerializeToString())


@hostile
def git(rng: random.Random, root: Path) -> Words:
    """A repository whose configuration names programs."""
    script = root / "run.sh"
    script.write_text(f"#!/bin/sh\ntouch {root / 'marker'}\ncat\n")
    script.chmod(0o755)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(root), "add", "train.csv"], check=True)
    subprocess.run(["git", "-C", str(root), *who, "commit", "-qm", "x"], check=True)
    keys = ["core.fsmonitor", "filter.x.clean", "filter.x.process", "diff.external", "diff.x.textconv", "diff.x.command",
            "core.pager", "core.sshCommand", "alias.describe", "credential.helper", "core.editor", "gpg.program"]  # fmt: skip
    for key in rng.sample(keys, rng.randrange(1, 6)):
        value = f"!{script}" if key.startswith(("alias", "cred")) else str(script)
        subprocess.run(["git", "-C", str(root), "config", key, value], check=True)
    (root / ".gitattributes").write_text("* filter=x diff=x\n")
    (root / "train.csv").write_text((root / "train.csv").read_text() + " ")
    return ["#commit"]


@hostile
def architecture(rng: random.Random, root: Path) -> Words:
    """A checkpoint that names code, addresses, paths and sizes of its own."""
    import torch
    from safetensors.torch import save_file

    base: dict[str, object] = {"model_name": "test_resnet", "num_classes": 3}
    hostile_keys = [
        {"model_name": "evil.py:build"}, {"model_name": "hf-hub:a/b"}, {"model_name": "local-dir:."}, {"pretrained": True},
        {"checkpoint_path": "evil.py"}, {"pretrained_cfg": {"url": "http://127.0.0.1:9/a"}}, {"weights": "DEFAULT"},
        {"num_classes": 10**15}, {"channels": [8192] * 9}, {"factors": [10**5] * 9}, {rng.choice("abc"): odd(rng)},
        {"img_size": odd(rng)}, {"drop_rate": odd(rng)}, {"model_name": odd(rng)},
    ]  # fmt: skip
    text = json.dumps(base | rng.choice(hostile_keys))
    text = rng.choice([text, text, text, "[" * 50_000, text[:-3]])
    save_file({"a": torch.zeros(3)}, root / "x.safetensors", {"toolkit.card": json.dumps(CARD), "toolkit.architecture": text})
    return ["export", "x.safetensors", "--output", "x.onnx"]


@hostile
def toml(rng: random.Random, root: Path) -> Words:
    """competition.toml with other values, deep, long, or cut."""
    import tomllib

    import tomlkit

    path = root / "competition.toml"
    try:
        text = tomlkit.dumps(mutated(rng, tomllib.loads(path.read_text())))  # type: ignore[arg-type]
        path.write_text(text)
    except Exception:  # noqa: BLE001 - what TOML cannot say is said in another way
        path.write_text(
            path.read_text()
            + rng.choice(["x = " + "[" * 30_000, "x = " + "9" * 6000, 'x = "\\u0000"', "a" + ".a" * 5000 + "=1"])
        )
    return rng.choice([["eda"], CHECK, ["split", "--folds", "2", "--force"]])


@hostile
def card(rng: random.Random, root: Path) -> Words:
    """An export whose card has values of other types and sizes."""
    if rng.random() < 0.5:
        other: object = mutated(rng, CARD)
    else:  # a card that may be, of somebody who leaves out or adds what need not be there
        name = rng.choice(["parity", "versions", "recipe", "metric", "score", "member", "split", "labels_fix", "fold"])
        values = [
            {},
            {"x": 1.0},
            {"logit": float("inf")},
            {"a\x1b[31m": "b"},
            "",
            "\x1b]0;x\x07",
            "{0}",
            "%s",
            None,
            1e308,
            "\u202ex",
        ]
        other = CARD | {name: rng.choice(values)}
    (root / "x.onnx").write_bytes(graph(other))
    return rng.choice([["inspect", "x.onnx"], ["ensemble", "x.onnx", "--device", "cpu"]])


@hostile
def shapes(rng: random.Random, root: Path) -> Words:
    """An export that gives more logits or rows than its card says."""
    (root / "x.onnx").write_bytes(graph(CARD, rng.randrange(2, 5), rng.randrange(2)))
    return ["ensemble", "x.onnx", "--device", "cpu"]


@hostile
def pipes(rng: random.Random, root: Path) -> Words:
    """A pipe or a device where a file should be."""
    name, words = rng.choice(
        [("train.csv", ["eda"]), ("sample_submission.csv", CHECK), ("competition.toml", ["eda"]),
         ("x.onnx", ["inspect", "x.onnx"]), ("x.safetensors", ["export", "x.safetensors"]), ("split.csv", ["split"]),
         ("x.parquet", ["score", "x.parquet"]), ("x.pth", ["export", "x.pth", "--model", "resnet18"])]
    )  # fmt: skip
    (root / name).unlink(missing_ok=True)
    if rng.random() < 0.7:
        os.mkfifo(root / name)
    else:
        (root / name).symlink_to("/dev/zero")
    return words


@hostile
def names(rng: random.Random, root: Path) -> Words:
    """Folders, files and columns whose names are no UTF-8, or too long, or patterns of stars."""
    name = os.fsdecode(bytes(rng.randrange(128, 256) for _ in range(5)))
    choice = rng.randrange(4)
    text = (root / "competition.toml").read_text()
    if choice == 0:
        (root / "test").rename(root / name)
        return ["predict", "x.onnx", "--on", name, "--output", "out.parquet"]
    if choice == 1:
        (root / f"{name}.csv").write_bytes(b"id,lab\xe9l\n1,\xff\n")
        return ["score", f"{name}.csv"]
    if choice == 2:
        (root / "train.csv").write_bytes("id,label,école\n".encode("latin-1") + b"train0,a,b\n")
        return ["eda"]
    (root / "train" / ("a" * 200 + ".png")).touch()
    (root / "competition.toml").write_text(text.replace("{id}.png", "*a" * 6 + "*{id}*b", 1))
    return ["eda"]


@hostile
def blend(rng: random.Random, root: Path) -> Words:
    """blend.json with other values."""
    record = {"members": {"m": 1.0}, "vote": "soft", "views": {}, "temperatures": {"m": 1.0}, "adjustment": None}
    text = json.dumps(mutated(rng, {"schema": 2, "targets": {"label": record}}))
    (root / "blend.json").write_text(rng.choice([text, text, text, "[" * 100_000, "9" * 10_000]))
    (root / "x.onnx").write_bytes(graph(CARD))
    return ["ensemble", "x.onnx", "--weights", "blend", "--device", "cpu"]


# --- a trial in a child ----------------------------------------------------------------------------------------------


def outcome_of(words: Words, root: Path) -> str:
    """Run a command of `toolkit` here: "refused", "same" (it went through), or what must not be."""
    if words == ["#commit"]:
        from toolkit.base.provenance import git_commit

        git_commit(root)
        return "code run" if (root / "marker").exists() else "same"
    from click.testing import CliRunner

    from toolkit.cli import cli

    done = CliRunner().invoke(cli, words)
    if (root / "marker").exists():
        return "code run"
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    if done.exit_code and not done.output.strip():
        raise RuntimeError("it ends without a word")
    return "refused" if done.exit_code else "same"


def trial(name: str, seed: int, root: Path) -> str:
    """Make one kind's files in the workspace `root` and run the command there, in this process."""
    os.chdir(root)
    return outcome_of(HOSTILE[name](random.Random(f"{name}{seed}"), root), root)


def in_a_child(name: str, seed: int, good: Path) -> tuple[str, str]:
    """One trial in a forked child; the outcome, and a traceback where there is one."""
    import traceback

    with tempfile.TemporaryDirectory(prefix="toolkit-hostile-") as folder:
        root = Path(folder) / "work"
        shutil.copytree(good, root)
        (root / "evil.py").write_text((root / "evil.py").read_text().replace(str(good), str(root)))
        read, write = os.pipe()
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
            signal.alarm(WALL)  # what waits for a pipe takes no processor time
            asked: list[str] = []
            closed = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
            sys.addaudithook(lambda event, _: asked.append(event) if event in closed else None)
            try:
                answer = [trial(name, seed, root), ""]
            except BaseException:  # noqa: BLE001 - what a person would see
                answer = ["traceback", traceback.format_exc()[-2000:]]
            os.write(write, json.dumps(["connection", asked[0]] if asked else answer).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            answered = pipe.read()
        os.waitpid(child, 0)
        if (root / "marker").exists():
            return "code run", ""
        outcome, detail = json.loads(answered) if answered else ("hang", "")
        return outcome, detail


def main() -> None:
    """The table of all kinds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[[], *HOSTILE])
    parser.add_argument("--seeds", type=int, default=10)
    parsed = parser.parse_args()
    for module in (
        "numpy",
        "onnx",
        "pandas",
        "pyarrow.csv",
        "pyarrow.parquet",
        "scipy.special",
        "timm",
        "torch.onnx",
        "PIL.Image",
    ):
        importlib.import_module(module)  # once for all children; not onnxruntime, which starts threads
    bad = 0
    with tempfile.TemporaryDirectory(prefix="toolkit-hostile-") as folder:
        good = Path(folder) / "work"
        workspace(good)
        for name in parsed.kinds or HOSTILE:
            every = [(seed, *in_a_child(name, seed, good)) for seed in range(parsed.seeds)]
            print(f"{name:14} {dict(Counter(outcome for _, outcome, _ in every))}", flush=True)
            for seed, outcome, detail in every:
                if outcome in BAD:
                    bad += 1
                    print(f"  seed {seed}: {outcome}\n{detail}")
    sys.exit(bool(bad))


def _take_part() -> None:
    """Put these kinds into the suite that loads this file."""
    try:
        from attack import Kind, register
    except ImportError:
        return
    for name in HOSTILE:

        def one(folder: Path, seed: int, name: str = name) -> str:
            return trial(name, seed, folder)

        register(Kind(f"hostile {name}", workspace_in, one, ours=False, share=0.25))


def workspace_in(folder: Path) -> None:
    """A workspace in a folder that is there."""
    with tempfile.TemporaryDirectory() as other:
        workspace(Path(other) / "work")
        shutil.copytree(Path(other) / "work", folder, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
else:
    _take_part()
