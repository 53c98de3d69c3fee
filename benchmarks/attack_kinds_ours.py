"""Kinds of files that toolkit writes: what was damaged is never served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from attack import Kind, damage, register

IDS = tuple(f"{number:03d}" for number in range(40))
CLASSES = ("a", "b", "c")


def _kind(name: str, make: Callable[[Path], Any], use: Callable[[Path], Any], pattern: str, **more: Any) -> None:
    """A kind whose good file `make` leaves at `pattern`; `use` gives what is to be the same after damage.

    What is used may make itself again: it is "recomputed" where a file was set aside on the way.
    """

    def prepare(folder: Path) -> None:
        make(folder)
        _forget()
        (folder / "expected").write_text(repr(use(folder)))

    def trial(folder: Path, seed: int) -> str:
        expected = (folder / "expected").read_text()
        files = sorted(path for path in folder.glob(pattern) if path.is_file())
        damage(files[seed % len(files)], seed)
        _forget()
        if repr(use(folder)) != expected:
            return "silently wrong"
        return "recomputed" if list(folder.rglob("*.damaged")) else "same"

    register(Kind(name, prepare, trial, **more))


def _forget() -> None:
    """Be as a new process, that has not looked at any file."""
    from toolkit.base import files
    from toolkit.inference.store import prediction_store
    from toolkit.training.fold import decoded_cache

    for memory in (prediction_store._CHECKED, decoded_cache._seen, files._cleared):
        memory.clear()


# --- the store -------------------------------------------------------------------------------------------------------


def _keys() -> Any:
    from toolkit.inference.store.file_index import as_digests

    return as_digests(name.encode() * 5 + b"x" for name in IDS)


def _logits() -> Any:
    return np.random.default_rng(0).normal(0, 3, (len(IDS), len(CLASSES))).astype(np.float32)


def _store(folder: Path, kept_as: str) -> str:
    """Rows from the store, those that are not there computed, as a run does."""
    from toolkit.inference.store.prediction_store import Store, TableKey

    store = Store(folder / "store")
    table, keys, logits = store.table(TableKey("m", "p", "id", "e", kept_as=kept_as)), _keys(), _logits()
    missing = ~table.present(keys)
    for start in range(0, len(keys), 15):
        some = np.flatnonzero(missing[start : start + 15]) + start
        if len(some):
            table.add(keys[some], logits[some])
    table.refresh()
    rows = table.gather(keys).tobytes().hex()
    store.close()
    return rows


for _as in ("float32", "float16"):
    _kind(
        f"segment {_as}",
        lambda folder, kept_as=_as: _store(folder, kept_as),
        lambda folder, kept_as=_as: _store(folder, kept_as),
        "store/tables/*/*.seg",
    )
_kind("table key", lambda f: _store(f, "float32"), lambda f: _store(f, "float32"), "store/tables/*/key.json")


def _looked_after(folder: Path) -> str:
    """What `toolkit store` and its subcommands do, then a run."""
    from toolkit.inference.store import maintenance

    maintenance.survey(folder / "store", folder / "folds")
    maintenance.compact(folder / "store")
    return _store(folder, "float32")


_kind("segment, compacted", lambda f: _store(f, "float32"), _looked_after, "store/tables/*/*.seg")


def _images(folder: Path) -> None:
    import os

    from toolkit.images import render
    from toolkit.inference.store.file_index import ImageIndex

    (folder / "test").mkdir()
    index = ImageIndex(folder / "images.npz")
    for name in IDS:
        path = folder / "test" / f"{name}.png"
        path.write_bytes(name.encode() * 9)
        os.utime(path, (1e9, 1e9))
        index.learn(path.relative_to(folder), path.stat(), render.digest(path.read_bytes()))
    index.save()


def _known(folder: Path) -> list[str]:
    """The digest of each image, from the index or read."""
    from toolkit.images import render
    from toolkit.inference.store.file_index import ImageIndex

    index = ImageIndex(folder / "images.npz")
    paths = [Path("test") / f"{name}.png" for name in IDS]
    digests, sure = index.known(paths)
    whole = [bytes(d) if s else render.digest((folder / p).read_bytes()) for d, s, p in zip(digests, sure, paths, strict=True)]
    return [digest.rstrip(b"\0").hex() for digest in whole]


_kind("images.npz", _images, _known, "images.npz")


def _exports(folder: Path) -> None:
    import os

    from toolkit.inference.store.file_index import ExportIndex

    for fold in range(2):
        path = folder / f"m.fold{fold}.onnx"
        path.write_bytes(_model(fold))
        os.utime(path, (1e9, 1e9))
    ExportIndex(folder / "exports.json").read(sorted(folder.glob("*.onnx")))
    text = (folder / "exports.json").read_text()
    (folder / "exports.json").write_text(text)


def _read_exports(folder: Path) -> list[Any]:
    import os

    from toolkit.inference.store.file_index import ExportIndex

    for path in folder.glob("*.onnx"):
        os.utime(path, (1e9, 1e9))
    exports = ExportIndex(folder / "exports.json").read(sorted(folder.glob("*.onnx")))
    return [(export.title, export.digest, export.sha256, export.card.to_json()) for export in exports]


def _model(fold: int) -> bytes:
    """An export in miniature, with a card."""
    from onnx import TensorProto, helper, numpy_helper

    from toolkit.core.cards import Card, Output, Preprocess
    from toolkit.runtime.graphs import onnx_file

    weights = np.random.default_rng(fold).normal(0, 1, (3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("GlobalAveragePool", ["x"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx_file.embed(model, Card("m", fold, (Output("label", CLASSES),), Preprocess((16, 16)), (0.0,) * 3, (1.0,) * 3))
    data: bytes = model.SerializeToString()
    return data


_kind("exports.json", _exports, _read_exports, "exports.json")


def _timed(folder: Path) -> None:
    from toolkit.inference.store import timings
    from toolkit.inference.store.timings import Timing

    timings.note(folder, {f"{name} e fp32": Timing(100, 1.5) for name in IDS})


def _timings(folder: Path) -> Any:
    """What is noted, or nothing: then models are timed again."""
    from toolkit.inference.store import timings
    from toolkit.inference.store.timings import Timing

    noted = timings.read(folder)
    return noted or {f"{name} e fp32": Timing(100, 1.5) for name in IDS}


_kind("timings.json", _timed, _timings, "timings.json")


# --- tables ----------------------------------------------------------------------------------------------------------


def _table(folder: Path) -> None:
    from toolkit.core import prediction_files
    from toolkit.core.predictions import Predictions

    p = np.random.default_rng(0).dirichlet(np.ones(3), len(IDS))
    tables = {"label": Predictions("label", "probabilities", IDS, CLASSES, p)}
    tables["other"] = Predictions("other", "labels", IDS, CLASSES, labels=np.arange(len(IDS)) % 3)
    prediction_files.write_table(folder / "t.parquet", tables, {"member": "m", "scores": [0.5, 0.25]})


def _read_table(folder: Path) -> Any:
    from toolkit.core import prediction_files

    table = prediction_files.read_table(folder / "t.parquet")
    return json.dumps(table.meta), [
        (p.ids, p.classes, p.kind, *(None if cells is None else cells.tolist() for cells in (p.values, p.labels)))
        for p in table.predictions.values()
    ]


def _read_meta(folder: Path) -> Any:
    from toolkit.core import prediction_files

    return json.dumps(prediction_files.read_meta(folder / "t.parquet"))


_kind("predictions", _table, _read_table, "t.parquet")
_kind("predictions' origin", _table, _read_meta, "t.parquet")


# --- training --------------------------------------------------------------------------------------------------------


def _cached(folder: Path) -> str:
    """A cache of pixels, built where it is not there or not whole."""
    from toolkit.training.fold import decoded_cache

    path, shape = folder / "cache" / "pixels-0.npy", (30, 3, 8, 8)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    if not decoded_cache.whole(path, shape, np.uint8):
        decoded_cache.store(path, shape, np.uint8, iter([pixels[:20], pixels[20:]]))
    return decoded_cache.Mapped(path)[:].tobytes().hex()


def _features(folder: Path) -> str:
    from toolkit.training.fold import decoded_cache

    path, shape = folder / "cache" / "features-0.npy", (30, 16)
    features = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    if not decoded_cache.whole(path, shape, np.float32):
        decoded_cache.store(path, shape, np.float32, iter([features]))
    return decoded_cache.Mapped(path)[:].tobytes().hex()


_kind("decoded pixels", _cached, _cached, "cache/*.npy")
_kind("features", _features, _features, "cache/*.npy")


def _state(folder: Path) -> str:
    """A resume state, or that of the beginning computed anew."""
    import torch

    from toolkit.training.fold import state_file

    state = state_file.load(folder, "key")
    if state is None:
        weights = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (20, 20)))
        state_file.save(folder, "key", {"epoch": 3, "weights": {"w": weights}})
        state = {"epoch": 3, "weights": {"w": weights}}
    return f"{state['epoch']} {state['weights']['w'].numpy().tobytes().hex()}"


_kind("resume state", _state, _state, "resume.pt")


# --- submissions -----------------------------------------------------------------------------------------------------


def _submitted(folder: Path) -> None:
    from toolkit.base import files
    from toolkit.submissions import ledger, manifest

    (folder / "competition.toml").write_text("")
    (folder / "sample.csv").write_text("id,label\n")
    (folder / "t.parquet").write_text("")
    files.write_text(folder / "submission.csv", "id,label\n" + "".join(f"{name},a\n" for name in IDS))
    where = {"sample": folder / "sample.csv", "predictions": folder / "t.parquet"}
    scores = {"metric": "accuracy", "out_of_fold": 0.91, "interval": [0.9, 0.92], "rows": 40, "members": {"m": 0.91}}
    about = manifest.describe(
        folder, **where, meta={"name": "e", "models": []}, form="labels", rows=40, command=["toolkit"], scores=scores
    )
    document = manifest.write(folder / "submission.csv", about, (), folder)
    place = _Place(folder)
    name = ledger.keep(place, folder / "submission.csv", document)  # type: ignore[arg-type]
    ledger.score(place, name, 0.875, "public")  # type: ignore[arg-type]
    ledger.sent(place, name, "kaggle:x", "thanks")  # type: ignore[arg-type]


class _Place:
    """As much of a competition as the ledger looks at."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, *parts: str) -> Path:
        """Within the workspace."""
        return self.root.joinpath(*parts)


def _manifest(folder: Path) -> Any:
    from toolkit.submissions import manifest

    return manifest.read(folder / "submission.json")


def _ledger(folder: Path) -> Any:
    """The entries; one whose manifest is damaged is left out and said, and kept again."""
    from toolkit.submissions import ledger, manifest

    place = _Place(folder)
    if not ledger.entries(place):  # type: ignore[arg-type]
        ledger.keep(place, folder / "submission.csv", manifest.read(folder / "submission.json"))  # type: ignore[arg-type]
    return [(entry.record, dict(entry.manifest)) for entry in ledger.entries(place)]  # type: ignore[arg-type]


_kind("manifest", _submitted, _manifest, "submission.json")
_kind("ledger's manifest", _submitted, _ledger, "submissions/[0-9a-f]*.json")
_kind("scores.json", _submitted, _ledger, "submissions/scores.json")
_kind("uploads.json", _submitted, _ledger, "submissions/uploads.json")
