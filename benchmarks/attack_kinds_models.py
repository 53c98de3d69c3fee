"""Kinds of models, weights, bundles and images: what is read equals what onnxruntime, torch, safetensors or Pillow read."""

from __future__ import annotations

import io
import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from attack import Kind, damage, register
from attack_kinds_ours import CLASSES, _kind, _model

# --- exports and weights ---------------------------------------------------------------------------------------------


def _export(folder: Path) -> None:
    (folder / "m.fold0.onnx").write_bytes(_model(0))


def _read_export(folder: Path) -> Any:
    from toolkit.runtime.graphs import onnx_file

    export = onnx_file.read(folder / "m.fold0.onnx")
    return export.digest, export.card.to_json()


_kind("export", _export, _read_export, "*.onnx")


def _pixels(count: int = 2) -> Any:
    return np.random.default_rng(1).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)


def _logits_of_others(path: Path) -> Any:
    """What onnxruntime makes of the file itself."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads, options.inter_op_num_threads = 4, 1, 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: _pixels()})[0]


def _unsealed(folder: Path) -> None:
    """An export of before, or of others: no digest says what it was."""
    import onnx

    from toolkit.core.cards import KEY, Card

    model = onnx.load_model_from_string(_model(0))
    card = Card.from_json(model.metadata_props[0].value, where="here")
    model.ClearField("metadata_props")
    model.metadata_props.add(key=KEY, value=card.to_json())
    (folder / "m.fold0.onnx").write_bytes(model.SerializeToString())


def _run_export(folder: Path, seed: int) -> str:
    from toolkit.runtime.graphs import onnx_file
    from toolkit.runtime.session import open_session

    path = folder / "m.fold0.onnx"
    damage(path, seed)
    export = onnx_file.read(path)
    session = open_session({export.digest: path}, device="cpu", batch=2)
    logits = session.run(session.place(_pixels()), "id")[export.digest]
    return "same" if np.allclose(logits, _logits_of_others(path), rtol=1e-4, atol=1e-4, equal_nan=True) else "silently wrong"


register(Kind("export of before", _unsealed, _run_export, ours=False, share=0.25))


def _external(folder: Path) -> None:
    import onnx

    model = onnx.load_model_from_string(_model(0))
    model.ClearField("metadata_props")
    onnx.save(model, folder / "theirs.onnx", save_as_external_data=True, location="theirs.data", size_threshold=0)


def _adopted(file: str) -> Callable[[Path, int], str]:
    """Taken in as others': the export gives what onnxruntime gives for the damaged files."""

    def trial(folder: Path, seed: int) -> str:
        from toolkit.models import adopt, foreign_model

        damage(folder / file, seed)
        path = adopt.adopt(folder / "theirs.onnx", foreign_model.Asked(CLASSES), output=folder / "ours.onnx").path
        ours, theirs = _logits_of_others(path), _logits_of_others(folder / "theirs.onnx")
        return "same" if np.allclose(ours, theirs, rtol=1e-3, atol=1e-3) else "silently wrong"

    return trial


register(Kind("model of others", _external, _adopted("theirs.onnx"), ours=False, share=0.25))
register(Kind("model's external data", _external, _adopted("theirs.data"), ours=False, share=0.25))


def _int8(folder: Path) -> str:
    """A quantised model from the cache, made again where it is not whole."""
    from toolkit.runtime import int8

    source, target = folder / "m.fold0.onnx", folder / "cache" / "m.onnx"
    if not source.exists():
        source.write_bytes(_model(0))
    if not int8.whole(target):
        int8.quantise(source, target, _pixels(8))
    return str(np.round(_logits_of_others(target), 3).tolist())


_kind("quantised model", _int8, _int8, "cache/*.onnx", share=0.25)


def _network() -> Any:
    import torch

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3), torch.nn.BatchNorm1d(3))
    with torch.no_grad():
        for number, tensor in enumerate(network.state_dict().values()):
            if tensor.is_floating_point():
                tensor.copy_(torch.from_numpy(np.random.default_rng(number).normal(0, 1, tensor.shape)))
    return network


def _checkpoint(folder: Path) -> None:
    from toolkit.core.cards import Card, Output, Preprocess
    from toolkit.models import checkpoints

    card = Card("m", 0, (Output("label", CLASSES),), Preprocess((16, 16)), (0.0,) * 3, (1.0,) * 3)
    checkpoints.save(folder / "model.safetensors", _network(), card, {"model_name": "resnet18", "num_classes": 3})


def _weights(path: Path) -> Any:
    from toolkit.models import checkpoints

    content = checkpoints.read(path)
    state = {name: (str(tensor.dtype), tensor.tolist()) for name, tensor in sorted(content.state.items())}
    return repr(state), content.card and content.card.to_json(), content.architecture


_kind("checkpoint", _checkpoint, lambda folder: _weights(folder / "model.safetensors"), "*.safetensors")


def _theirs_pth(folder: Path) -> None:
    import torch

    torch.save({"state_dict": _network().state_dict(), "epoch": 3}, folder / "theirs.pth")


def _theirs_safetensors(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(_network().state_dict(), folder / "theirs.safetensors")


class _Runs:
    """A pickle that would leave a mark."""

    def __reduce__(self) -> Any:
        return open, (str(Path.cwd() / "marker"), "w")


def _weights_of_others(file: str) -> Callable[[Path, int], str]:
    def trial(folder: Path, seed: int) -> str:
        import pickle

        import torch
        from safetensors.torch import load_file

        path = folder / file
        if seed % 5 == 4:
            content = {"state_dict": {"w": torch.zeros(3), "x": _Runs()}}
            torch.save(content, path) if seed % 2 else path.write_bytes(pickle.dumps(content))
        else:
            damage(path, seed)
        try:
            state, _, _ = _weights(path)
        finally:
            if (folder / "marker").exists():
                return "code run"  # noqa: B012 - whatever was raised
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        loaded = loaded.get("state_dict", loaded)
        theirs = {name: (str(tensor.dtype), tensor.tolist()) for name, tensor in sorted(loaded.items())}
        return "same" if state == repr(theirs) else "silently wrong"

    return trial


register(Kind("pth of others", _theirs_pth, _weights_of_others("theirs.pth"), ours=False))
register(Kind("safetensors of others", _theirs_safetensors, _weights_of_others("theirs.safetensors"), ours=False))


# --- what runs leave -------------------------------------------------------------------------------------------------


def _run_folder(folder: Path) -> None:
    from toolkit.base import sealed
    from toolkit.core import prediction_files
    from toolkit.core.predictions import Predictions

    p = np.full((4, 3), 1 / 3)
    for fold in range(2):
        at = folder / "runs" / "m" / f"fold{fold}"
        tables = {"label": Predictions("label", "probabilities", tuple(f"{fold}{i}" for i in range(4)), CLASSES, p)}
        prediction_files.write_table(at / "oof.parquet", tables, {})
        about = {
            "settings": {"lr": 0.1, "size": 32},
            "score": 0.5 + fold,
            "selected": "last",
            "report": [{"feeding": {"loader": 3.5}}],
        }
        sealed.write_json(at / "config.json", about, indent=1)
        (at / "metrics.csv").write_text("epoch,train_loss,rate\n" + "".join(f"{e},{1 / (e + 1)},{e + 7}\n" for e in range(5)))


def _compared(folder: Path) -> Any:
    from toolkit.analysis.run_comparison import read_run

    run = read_run(None, str(folder / "runs" / "m"))  # type: ignore[arg-type]
    return dict(run.settings), {fold: tables["label"].values.tolist() for fold, tables in run.folds.items()}


_kind("config.json", _run_folder, _compared, "runs/*/*/config.json")
_kind("a fold's OOF", _run_folder, _compared, "runs/*/*/oof.parquet")


def _curves_trial(folder: Path, seed: int) -> str:
    """Shown as curves: what is there as numbers, as Python's csv reads it; a damaged file does not hide the others."""
    import csv

    from toolkit.analysis import run_history

    path = folder / "runs" / "m" / "fold0" / "metrics.csv"
    damage(path, seed)
    curves = run_history.curves(folder / "runs")
    run_history.training(folder / "runs", curves)
    if "m.fold1" not in curves:
        return "silently wrong"
    try:
        if not path.is_file():
            raise OSError("it is no file")
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    except (OSError, ValueError, csv.Error):
        return "same" if not curves.get("m.fold0") else "silently wrong"
    for name, values in curves.get("m.fold0", {}).items():
        for value in values:
            if not any(_number(row.get(name)) == value for row in rows):
                return "silently wrong"
    return "same"


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


register(Kind("metrics.csv", _run_folder, _curves_trial, ours=False))


def _judged(folder: Path) -> None:
    from toolkit.base import sealed
    from toolkit.ensemble import tta

    sealed.write_json(folder / "reports" / tta.KEPT, {"m": {"created": "now", "sets": ["flip"], "score": 0.75}}, indent=1)


class _Place:
    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, *parts: str) -> Path:
        """Within the workspace."""
        return self.root.joinpath(*parts)


def _kept_views(folder: Path) -> Any:
    """What was found, or found again."""
    from toolkit.ensemble import tta

    kept = tta.kept(_Place(folder))  # type: ignore[arg-type]
    if not kept:
        _judged(folder)
        kept = tta.kept(_Place(folder))  # type: ignore[arg-type]
    return kept


_kind("views that pay", _judged, _kept_views, "reports/*.json")


# --- bundles ---------------------------------------------------------------------------------------------------------


def _bundle(folder: Path) -> None:
    """As much of a bundle as its program reads: bundle.json, competition.toml, a model."""
    import onnx
    from attack_hostile import workspace_in

    from toolkit.base import files
    from toolkit.core.cards import KEY, Card
    from toolkit.submissions.bundle.contents import Field, Model, Recipe

    workspace_in(folder)
    (folder / "models").mkdir()
    path = folder / "models" / "00-m.fold0.onnx"
    path.write_bytes(_model(0))
    text = next(entry.value for entry in onnx.load(path).metadata_props if entry.key == KEY)
    card = Card.from_json(text, where="here").to_json()
    Recipe(
        name="e", created="now", vote="soft", form="labels", header=("id", "label"),
        fields=(Field("id", "label"), Field("label", "label", "label")),
        models=(Model("models/00-m.fold0.onnx", "m.fold0", 1.0, ("id",), card, files.sha256(path)),),
        priors={"label": (0.5, 0.25, 0.25)}, agreement={}, python="3.11", cuda="",
        competition=files.sha256(folder / "competition.toml"),
    ).write(folder)  # fmt: skip


def _recipe(folder: Path) -> Any:
    from toolkit.submissions.bundle.contents import Recipe

    return repr(Recipe.read(folder))


def _bundled(folder: Path) -> Any:
    """Logits of the model in a bundle, as a worker makes them."""
    from toolkit.submissions.bundle import worker
    from toolkit.submissions.bundle.contents import Recipe

    recipe = Recipe.read(folder)
    paths = tuple(str(folder / "test" / f"test{i}.png") for i in range(3))
    (folder / "out").mkdir(exist_ok=True)
    job = worker.Job(str(folder), str(folder / "out"), "cpu", recipe.models, paths)
    worker.work(job)
    failed = folder / "out" / "00-m.fold0.failed"
    if failed.exists():
        from toolkit.errors import ModelError

        raise ModelError(failed.read_text())
    table = np.load(folder / "out" / "00-m.fold0.npy").round(5).tolist()
    for path in (folder / "out").iterdir():
        path.unlink()
    return table


_kind("bundle.json", _bundle, _recipe, "bundle.json")
_kind("a bundle's model", _bundle, _bundled, "models/*.onnx", share=0.25)


def _bundle_sample(folder: Path, seed: int) -> str:
    """The hidden sample of a platform, read without pandas: rows are never lost in silence."""
    from attack_kinds_tables import reference_cells, written_table

    from toolkit.submissions.bundle.sheet import read_rows

    path = folder / "sample_submission.csv"
    damage(path, seed // 2) if seed % 2 else written_table(path, seed)
    rows = read_rows(path)
    ours = [list(rows.header), *map(list, rows.rows)]
    return "same" if rows.warnings or any(ours == cells for cells in reference_cells(path)) else "silently wrong"


register(Kind("a bundle's sample", _bundle, _bundle_sample, ours=False))


# --- images ----------------------------------------------------------------------------------------------------------

FORMATS = {"PNG": {}, "JPEG": {"quality": 80}, "progressive JPEG": {"quality": 80, "progressive": True}, "BMP": {}, "GIF": {},
           "WEBP": {"lossless": True}, "TIFF": {}, "TIFF LZW": {"compression": "tiff_lzw"}, "PPM": {}, "AVIF": {}}  # fmt: skip


def _picture(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from PIL import Image

        rng = np.random.default_rng(3)
        y, x = np.mgrid[:40, :56]
        smooth = np.stack([np.sin(x / 7), np.cos(y / 9), np.sin((x + y) / 11)], axis=-1) * 90 + 127
        image = Image.fromarray((smooth + rng.normal(0, 9, smooth.shape)).clip(0, 255).astype(np.uint8))
        image.save(
            folder / "picture", name.rpartition(" ")[2] if "JPEG" in name else name.split(maxsplit=1)[0], **FORMATS[name]
        )

        from toolkit.images import render

        for implementation in render.IMPLEMENTATIONS:  # decoders look for their libraries with ldconfig when they are imported
            render.decode((folder / "picture").read_bytes(), "picture", implementation=implementation)

    return make


def _seen(folder: Path, seed: int) -> str:
    """Both decoders, against Pillow's own strict reading of the same bytes; of a JPEG without its end marker, with one."""
    from PIL import Image, ImageFile

    from toolkit.errors import ImageError
    from toolkit.images import decode as decoding
    from toolkit.images import render

    path = folder / "picture"
    damage(path, seed)
    data = decoding.read(path)
    refusals, seen = [], []
    for implementation in render.IMPLEMENTATIONS:
        try:
            seen.append(render.decode(data, str(path), implementation=implementation, exif=False))
        except ImageError as error:
            refusals.append(error)
    if not seen:
        raise refusals[0]
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    if decoding.lacks_end(data):
        data = data + b"\xff\xd9"
    with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
        warnings.simplefilter("ignore")
        theirs = np.asarray(image.convert("RGB"), dtype=np.int64)
    close = [pixels.shape == theirs.shape and np.abs(pixels.astype(np.int64) - theirs).max() <= 2 for pixels in seen]
    return "same" if all(close) else "silently wrong"


for _name in FORMATS:
    register(Kind(f"image {_name}", _picture(_name), _seen, ours=False))


def _odd_job(folder: Path, seed: int) -> str:
    """bundle.json of others: other values in its tree."""
    from attack_hostile import mutated

    from toolkit.submissions.bundle.contents import Recipe

    path = folder / "bundle.json"
    raw = json.loads(path.read_text())
    raw.pop("seal")
    path.write_text(json.dumps(mutated(random.Random(seed), raw)))
    recipe = Recipe.read(folder)
    for model in recipe.models:
        model.read_card  # noqa: B018 - read when it is needed
    return "same"


register(Kind("bundle.json of others", _bundle, _odd_job, ours=False))
