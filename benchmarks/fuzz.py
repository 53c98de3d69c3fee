"""Damaged images and hostile .onnx files: every one read or refused with a sentence, in seconds, and nothing crashes.

    python benchmarks/fuzz.py                       2,400 images over 12 kinds, 600 models
    python benchmarks/fuzz.py --images 240 --models 60

Each file is read in a worker process, so that a crash of native code is seen as one; models are opened and run, and also
taken in as others' (toolkit adopt). A worker that computes for 5 s, or says nothing for 60 s, counts as hung. Ends with exit
code 1 if any file crashed a worker, hung, raised what is no ToolkitError, or was refused without its name.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

SECONDS = 5.0  # of a worker's own processor time from which a file counts as a hang,
WALL = 60.0  # or of waiting: on a busy machine a process may stand still for a while
KINDS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "PNG 16 bit", "progressive JPEG", "TIFF LZW")


# --- images ----------------------------------------------------------------------------------------------------------


def picture(kind: str, rng: np.random.Generator) -> bytes:
    """A real file of a kind: smooth colours with noise."""
    y, x = np.mgrid[: int(rng.integers(20, 90)), : int(rng.integers(20, 90))]
    smooth = np.stack([np.sin(x / 7), np.cos(y / 9), np.sin((x + y) / 11)], axis=-1) * 90 + 127
    image = Image.fromarray((smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8))
    options: dict[str, object] = {}
    name = kind.split(maxsplit=1)[0]
    if kind == "PNG 16 bit":
        image = Image.fromarray(np.asarray(image)[:, :, 0].astype(np.uint16) * 257)
    elif kind == "progressive JPEG":
        name, options = "JPEG", {"progressive": True, "quality": 80}
    elif kind == "TIFF LZW":
        options = {"compression": "tiff_lzw"}
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One of eight kinds of damage, at the header as often as anywhere."""
    start = int(rng.integers(0, min(len(data), 64) if rng.random() < 0.4 else len(data)))
    end = start + int(rng.integers(1, 64))
    head, hit, tail = data[:start], data[start:end], data[end:]
    largest = b"\xff" * 4 + hit[4:]  # sizes and counts as large as they can be
    flipped = bytes([hit[0] ^ 1 << int(rng.integers(0, 8))]) + hit[1:]
    instead = [flipped, rng.bytes(len(hit)), b"", hit + hit, largest, bytes(len(hit))]
    kind = int(rng.integers(0, len(instead) + 2))
    if kind < len(instead):
        return head + instead[kind] + tail
    if kind == len(instead):
        return head
    scattered = np.frombuffer(data, dtype=np.uint8).copy()
    scattered[rng.integers(0, len(data), 20)] = rng.integers(0, 256, 20)
    return scattered.tobytes()


def image_files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(kind, bytes), the kinds in turn."""
    rng = np.random.default_rng(seed)
    for at in range(count):
        kind = KINDS[at % len(KINDS)]
        yield kind, damaged(picture(kind, rng), rng)


# --- models ----------------------------------------------------------------------------------------------------------


def model_file() -> bytes:
    """An export in miniature, with a card: uint8 images in, three logits out."""
    from toolkit.core.cards import KEY, Card, Output, Preprocess

    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(0, 1, (4, 3, 3, 3)).astype(np.float32),
        "v": rng.normal(0, 1, (4, 3)).astype(np.float32),
        "shape": np.array([0, 4], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Reshape", ["g", "shape"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    said = Card("tiny", 0, (Output("label", ("a", "b", "c")),), Preprocess((16, 16)), (0.0,) * 3, (1.0,) * 3)
    model.metadata_props.add(key=KEY, value=said.to_json())  # without a digest, which would end every trial early
    data: bytes = model.SerializeToString()
    return data


def hostile(whole: bytes) -> dict[str, bytes]:  # noqa: C901 - a list of cases with what makes them
    """Models made to hurt: graphs that loop, sizes beyond memory, wrong types, deep nests, files elsewhere."""

    def changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
        model = onnx.load_model_from_string(whole)
        change(model)
        data: bytes = model.SerializeToString()
        return data

    def conv(**values: list[int] | int) -> Callable[[onnx.ModelProto], object]:
        def change(model: onnx.ModelProto) -> None:
            model.graph.node[1].ClearField("attribute")
            model.graph.node[1].attribute.extend(helper.make_attribute(k, v) for k, v in values.items())

        return change

    def shape(*dims: int) -> Callable[[onnx.ModelProto], object]:
        return lambda m: m.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.array(dims, dtype=np.int64), "shape"))

    def node(kind: str, inputs: list[str], **values: object) -> Callable[[onnx.ModelProto], object]:
        """Replace the ReLU by another operator."""

        def change(model: onnx.ModelProto) -> None:
            model.graph.node[2].CopyFrom(helper.make_node(kind, inputs, ["r"], **values))

        return change

    def tensor(**fields: object) -> Callable[[onnx.ModelProto], object]:
        def change(model: onnx.ModelProto) -> None:
            one = model.graph.initializer[0]
            for name, value in fields.items():
                one.ClearField(name)
                if isinstance(value, list):
                    getattr(one, name).extend(value)
                else:
                    setattr(one, name, value)

        return change

    def elsewhere(location: str) -> Callable[[onnx.ModelProto], object]:
        def change(model: onnx.ModelProto) -> None:
            one = model.graph.initializer[0]
            one.ClearField("raw_data")
            one.data_location = TensorProto.EXTERNAL
            one.external_data.add(key="location", value=location)

        return change

    def big_constant(kind: str, dims: list[int]) -> Callable[[onnx.ModelProto], object]:
        """A node that would make a tensor beyond memory out of a few bytes."""

        def change(model: onnx.ModelProto) -> None:
            model.graph.initializer.append(numpy_helper.from_array(np.array(dims, dtype=np.int64), "dims"))
            model.graph.node.insert(
                0, helper.make_node(kind, ["dims"] if kind == "ConstantOfShape" else ["v", "dims"], ["huge"])
            )
            model.graph.node.append(helper.make_node("ReduceSum", ["huge"], ["total"], keepdims=0))
            model.graph.node.append(helper.make_node("Cast", ["total"], ["small"], to=TensorProto.FLOAT))
            model.graph.node.append(helper.make_node("Add", ["logits", "small"], ["sum"]))
            model.graph.output[0].name = "sum"

        return change

    def nested(depth: int) -> Callable[[onnx.ModelProto], object]:
        def change(model: onnx.ModelProto) -> None:
            value = helper.make_tensor_value_info("k", TensorProto.FLOAT, None)
            graph = helper.make_graph([helper.make_node("Relu", ["c"], ["k"])], "leaf", [], [value])
            for _ in range(depth):
                branch = helper.make_node("If", ["yes"], ["k"], then_branch=graph, else_branch=graph if depth < 12 else None)
                graph = helper.make_graph([branch], "n", [], [value])
            model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
            model.graph.node[2].CopyFrom(helper.make_node("If", ["yes"], ["r"], then_branch=graph, else_branch=graph))

        return change

    def forever(model: onnx.ModelProto) -> None:
        """A Loop whose condition never fails."""
        kinds = {"i": TensorProto.INT64, "cond": TensorProto.BOOL, "on": TensorProto.BOOL}
        values = {name: helper.make_tensor_value_info(name, kind, []) for name, kind in kinds.items()}
        state = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("state", "next")]
        body = helper.make_graph(
            [helper.make_node("Identity", ["cond"], ["on"]), helper.make_node("Relu", ["state"], ["next"])],
            "body",
            [values["i"], values["cond"], state[0]],
            [values["on"], state[1]],
        )
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        model.graph.node[2].CopyFrom(helper.make_node("Loop", ["", "yes", "c"], ["r"], body=body))

    def rounds(model: onnx.ModelProto, count: int) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(count, dtype=np.int64), "rounds"))
        model.graph.node[2].input[0] = "rounds"

    def recursive_function(model: onnx.ModelProto) -> None:
        inner = helper.make_node("F", ["a"], ["b"], domain="local")
        made = helper.make_function(
            "local", "F", ["a"], ["b"], [inner], [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
        )
        model.functions.append(made)
        model.opset_import.append(helper.make_opsetid("local", 1))
        model.graph.node[2].CopyFrom(helper.make_node("F", ["c"], ["r"], domain="local"))

    def many_nodes(model: onnx.ModelProto) -> None:
        chain = [helper.make_node("Relu", ["c" if i == 0 else f"k{i}"], [f"k{i + 1}"]) for i in range(5_000)]
        model.graph.node[2].CopyFrom(helper.make_node("Relu", ["k5000"], ["r"]))
        every = list(model.graph.node)
        model.graph.ClearField("node")
        model.graph.node.extend([*every[:2], *chain, *every[2:]])

    cases: dict[str, Callable[[onnx.ModelProto], object]] = {
        "cycle": lambda m: m.graph.node[1].input.__setitem__(0, "r"),
        "self-loop": lambda m: m.graph.node[2].input.__setitem__(0, "r"),
        "missing value": lambda m: m.graph.node[2].input.__setitem__(0, "nobody"),
        "two writers": lambda m: m.graph.node[3].output.__setitem__(0, "r"),
        "unknown operator": lambda m: setattr(m.graph.node[2], "op_type", "Destroy"),
        "foreign domain": lambda m: setattr(m.graph.node[2], "domain", "evil.corp"),
        "no nodes": lambda m: m.graph.ClearField("node"),
        "no output": lambda m: m.graph.ClearField("output"),
        "no input": lambda m: m.graph.ClearField("input"),
        "no opset": lambda m: m.ClearField("opset_import"),
        "opset 0": lambda m: setattr(m.opset_import[0], "version", 0),
        "opset 9999": lambda m: setattr(m.opset_import[0], "version", 9999),
        "opset -1": lambda m: setattr(m.opset_import[0], "version", -1),
        "ir 0": lambda m: setattr(m, "ir_version", 0),
        "ir 9999": lambda m: setattr(m, "ir_version", 9999),
        "dims beyond the data": tensor(dims=[1 << 30, 3, 3, 3]),
        "dims overflow": tensor(dims=[1 << 62, 4, 4, 4]),
        "negative dims": tensor(dims=[-4, 3, 3, 3]),
        "zero dims": tensor(dims=[0, 3, 3, 3]),
        "too many dims": tensor(dims=[1] * 4000),
        "no data": tensor(raw_data=b""),
        "short data": tensor(raw_data=b"1234"),
        "odd data": tensor(raw_data=b"12345"),
        "type 99": tensor(data_type=99),
        "type 0": tensor(data_type=0),
        "strings": tensor(data_type=TensorProto.STRING),
        "weights are bool": tensor(data_type=TensorProto.BOOL),
        "weights are double": tensor(data_type=TensorProto.DOUBLE),
        "weights are complex": tensor(data_type=TensorProto.COMPLEX128),
        "kernel 0": conv(kernel_shape=[0, 0]),
        "kernel huge": conv(kernel_shape=[1 << 40, 1 << 40]),
        "kernel of three": conv(kernel_shape=[3, 3, 3]),
        "stride 0": conv(strides=[0, 0]),
        "stride negative": conv(strides=[-1, -1]),
        "pads huge": conv(pads=[1 << 30, 1 << 30, 1 << 30, 1 << 30]),
        "pads overflow": conv(pads=[1 << 62, 1 << 62, 1 << 62, 1 << 62]),
        "pads negative": conv(pads=[-100, -100, -100, -100]),
        "dilation huge": conv(dilations=[1 << 40, 1 << 40]),
        "dilation 0": conv(dilations=[0, 0]),
        "group 0": conv(group=0),
        "group negative": conv(group=-3),
        "group 7": conv(group=7),
        "reshape overflow": shape(1 << 40, 1 << 40),
        "reshape negative": shape(-5, -7),
        "reshape two unknown": shape(-1, -1),
        "reshape zero": shape(0, 0, 0, 0, 0),
        "reshape wrong": shape(7, 11),
        "memory 4 TB": big_constant("ConstantOfShape", [1 << 20, 1 << 20]),
        "memory overflow": big_constant("ConstantOfShape", [1 << 40, 1 << 40]),
        "memory negative": big_constant("ConstantOfShape", [-1, 5]),
        "expand 4 TB": big_constant("Expand", [1 << 28, 4, 3]),
        "tile 4 TB": big_constant("Tile", [1 << 20, 1 << 18]),
        "resize 10^6": node("Resize", ["c", "", "s"], mode="nearest"),
        "transpose out of range": node("Transpose", ["c"], perm=[0, 9, 1, 2]),
        "transpose twice the same": node("Transpose", ["c"], perm=[0, 1, 1, 1]),
        "concat axis 99": node("Concat", ["c", "c"], axis=99),
        "gather out of range": node("Gather", ["c", "shape"], axis=0),
        "softmax axis 99": node("Softmax", ["c"], axis=99),
        "split to nothing": node("Split", ["c"], axis=1, num_outputs=0),
        "pool of 0": node("MaxPool", ["c"], kernel_shape=[0, 0]),
        "pool huge": node("MaxPool", ["c"], kernel_shape=[1 << 30, 1 << 30]),
        "pool stride 0": node("MaxPool", ["c"], kernel_shape=[2, 2], strides=[0, 0]),
        "average pool ceil": node("AveragePool", ["c"], kernel_shape=[2, 2], strides=[1 << 40, 1 << 40], ceil_mode=1),
        "one-hot 10^12": node("OneHot", ["c", "shape", "v"], axis=0),
        "einsum": node("Einsum", ["c", "c"], equation="abcd,efgh->abcdefgh"),
        "einsum nonsense": node("Einsum", ["c"], equation=")(" * 500),
        "nested 8": nested(8),
        "nested 30": nested(30),
        "loop without end": forever,
        "recursive function": recursive_function,
        "5,000 nodes": many_nodes,
        "beside it": elsewhere("weights.bin"),
        "above it": elsewhere("../../../../etc/passwd"),
        "absolute": elsewhere("/etc/passwd"),
        "device": elsewhere("/dev/zero"),
        "nowhere": elsewhere(""),
        "loop of 2^60 rounds": lambda m: (forever(m), rounds(m, 1 << 60)),
        "input is float": lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.FLOAT),
        "input is a sequence": lambda m: m.graph.input[0].type.sequence_type.elem_type.tensor_type.SetInParent(),
        "input 10^9 wide": lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[3], "dim_value", 1 << 30),
        "output 10^9 wide": lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 1 << 30),
        "name of 10 MB": lambda m: setattr(m.graph.node[2], "name", "x" * 10_000_000),
        "card is no JSON": lambda m: setattr(m.metadata_props[0], "value", "{" * 5000),
        "card nested": lambda m: setattr(m.metadata_props[0], "value", "[" * 100_000),
        "card is a list": lambda m: setattr(m.metadata_props[0], "value", "[]"),
        "card is null": lambda m: setattr(m.metadata_props[0], "value", "null"),
        "card with NaN": lambda m: setattr(m.metadata_props[0], "value", m.metadata_props[0].value.replace("1.0", "NaN")),
        "card of size 10^9": lambda m: setattr(
            m.metadata_props[0], "value", m.metadata_props[0].value.replace('"size": [16, 16]', '"size": [1000000000, 16]')
        ),
        "card of size text": lambda m: setattr(
            m.metadata_props[0], "value", m.metadata_props[0].value.replace('"size": [16, 16]', '"size": ["a", null]')
        ),
    }
    found = {name: changed(change) for name, change in cases.items()}
    found["empty"] = b""
    found["one byte"] = b"\x08"
    found["Git LFS pointer"] = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    found["web page"] = b"<!DOCTYPE html><title>404</title>"
    found["zip"] = b"PK\x03\x04" + bytes(64)
    found["pickle"] = b"\x80\x04\x95" + bytes(64)
    found["length beyond the file"] = b"\x3a\xff\xff\xff\xff\x0f" + bytes(16)
    found["nested messages"] = nested_messages(5000)
    found["zeros"] = bytes(1 << 20)
    found["the model twice"] = whole + whole
    return found


def nested_messages(depth: int) -> bytes:
    """Protobuf inside protobuf: graph → node → attribute → graph …, deeper than any stack."""

    def sized(tag: int, body: bytes) -> bytes:
        size, length = b"", len(body)
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        return bytes([tag]) + size + bytes([length]) + body

    body = b""
    for _ in range(depth):
        body = sized(0x0A, sized(0x2A, sized(0x32, body)))  # node, attribute, g
    return sized(0x3A, body)


def model_files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(kind, bytes): those made to hurt, the file cut at every hundredth, and random damage up to `count`."""
    rng, whole = np.random.default_rng(seed), model_file()
    every = list(hostile(whole).items())
    every += [(f"cut at {share} %", whole[: len(whole) * share // 100]) for share in range(1, 100)]
    while len(every) < count:
        every.append(("damaged", damaged(whole, rng)))
    chosen = every if count >= len(every) else [every[i] for i in rng.permutation(len(every))[:count]]
    yield from chosen


# --- workers ---------------------------------------------------------------------------------------------------------

WORKER = """
import resource, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import numpy as np
from toolkit.models import adopt as adopting
from toolkit.models import foreign_model
from toolkit.runtime.graphs import onnx_file
from toolkit.images import render
from toolkit.runtime import session as sessions
from toolkit.core.cards import Preprocess
from toolkit.errors import ToolkitError

def image(path):
    for implementation in render.IMPLEMENTATIONS:
        render.load(path, Preprocess((32, 32)), implementation=implementation)

def model(path):
    export = onnx_file.read(path)
    session = sessions.open_session({export.digest: path}, device="cpu", batch=2)
    height, width = export.card.preprocess.size
    session.run(session.place(np.zeros((2, 3, height, width), np.uint8)), "id")

image(Path(sys.argv[1]))  # what is loaded at the first image and model is no hang of the next one
model(Path(sys.argv[2]))
def adopt(path):
    said = foreign_model.Asked(("a", "b", "c"), mean=(0.0,) * 3, std=(1.0,) * 3)
    try:
        said = foreign_model.Asked(("a", "b", "c")) if b"images" in path.read_bytes() else said  # uint8 normalises itself
        adopting.adopt(path, said, output=path.with_suffix(".adopted.onnx"), force=True)
    finally:
        path.with_suffix(".adopted.onnx").unlink(missing_ok=True)

adopt(Path(sys.argv[2]))
print("> ready", flush=True)
for line in sys.stdin:
    what, path = line.rstrip("\\n").split("\\t")
    try:
        {"image": image, "model": model, "adopt": adopt}[what](Path(path))
        print("> read", flush=True)
    except ToolkitError as error:
        named = Path(path).name in error.message
        print(("> refused " if named else "> nameless ") + " ".join(error.message.split())[:200], flush=True)
    except BaseException as error:
        print("> escaped " + type(error).__name__ + ": " + " ".join(str(error).split())[:200], flush=True)
"""


def spent(process: int) -> float:
    """Seconds of processor time that a process has used, of all its threads; 0 once it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Worker:
    """A process that reads files one after another, started anew when it dies or hangs."""

    def __init__(self, folder: Path) -> None:
        self.good = [folder / "good.png", folder / "good.onnx"]
        self.good[0].write_bytes(picture("PNG", np.random.default_rng(0)))
        self.good[1].write_bytes(model_file())
        self.process: subprocess.Popen[str] | None = None
        self.lines: queue.Queue[str] = queue.Queue()

    def ask(self, what: str, path: Path) -> str:
        """What became of a file: read, refused, nameless, escaped, crashed or hung, and the words."""
        process = self.ready()
        assert process.stdin is not None
        process.stdin.write(f"{what}\t{path}\n")
        process.stdin.flush()
        started, before, line = time.monotonic(), spent(process.pid), None
        while line is None:
            try:
                line = self.lines.get(timeout=min(SECONDS, 1.0))
            except queue.Empty:
                if spent(process.pid) - before > SECONDS or time.monotonic() - started > WALL:
                    self.stop()
                    return f"hung for {time.monotonic() - started:.0f} s"
        if line:
            return line
        code = process.wait()
        self.stop()
        return f"crashed with exit code {code}"

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.listener.join()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            self.process = None

    def ready(self) -> subprocess.Popen[str]:
        """The process, started where there is none."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WORKER, *map(str, self.good)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self.lines = queue.Queue()
            self.listener = threading.Thread(target=self._listen, args=(self.process, self.lines), daemon=True)
            self.listener.start()
            if self.lines.get(timeout=300) != "ready":
                raise RuntimeError("the worker does not start")
        return self.process

    @staticmethod
    def _listen(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("> "):  # libraries print as well
                lines.put(line[2:].rstrip("\n"))
        lines.put("")


def run(images: int, models: int, seed: int, folder: Path) -> list[dict[str, object]]:
    """Every file through a worker; what became of each."""
    worker, rows = Worker(folder), []
    jobs = [("image", *one) for one in image_files(images, seed)]
    jobs += [(what, *one) for one in model_files(models, seed) for what in ("model", "adopt")]
    try:
        for at, (what, kind, data) in enumerate(jobs):
            path = folder / f"{what}{at:05d}.{'img' if what == 'image' else 'onnx'}"
            path.write_bytes(data)
            worker.ready()
            started = time.monotonic()
            said = worker.ask(what, path)
            rows.append({"what": what, "kind": kind, "said": said, "seconds": time.monotonic() - started, "file": path.name})
            path.unlink() if said.startswith(("read", "refused")) else None
    finally:
        worker.stop()
    return rows


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2400)
    parser.add_argument("--models", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="leave files that were neither read nor refused in this folder")
    parser.add_argument("--json", type=Path, help="write a row per file")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        rows = run(asked.images, asked.models, asked.seed, folder)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))
    for what in ("image", "model", "adopt"):
        mine = [row for row in rows if row["what"] == what]
        tally = Counter(str(row["said"]).split()[0] for row in mine)
        slowest = max((float(str(row["seconds"])) for row in mine), default=0.0)
        kinds = len({row["kind"] for row in mine})
        print(f"{what}  {len(mine):,} of {kinds} kinds: {dict(tally)}, slowest {slowest:.2f} s")
    wrong = [row for row in rows if not str(row["said"]).startswith(("read", "refused"))]
    for row in wrong:
        print(f"  {row['what']} {row['kind']}: {row['said']}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
