"""What bundles hold is read back; what workers leave is blended as the library blends."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from tests.conftest import CLASSES, card, network
from tests.submissions.bundle.helpers import HERE, TTA, member_values
from toolkit.base import files
from toolkit.base.text import arrow_csv
from toolkit.blending.blend import read_blend
from toolkit.blending.combination import Combination
from toolkit.cli import cli
from toolkit.core import prediction_files, voting
from toolkit.core.cards import Output
from toolkit.core.predictions import Predictions
from toolkit.ensemble.combine import combine, weights_of
from toolkit.errors import DataError
from toolkit.images import views
from toolkit.inference.execution import Execution
from toolkit.inference.exports import WeightedModels, find_exports, output_of, read_exports
from toolkit.inference.predict import predict
from toolkit.inference.store.prediction_store import Store
from toolkit.models.export import export
from toolkit.models.export_checkpoint import samples
from toolkit.submissions.bundle import contents, pack, request
from toolkit.submissions.bundle.contents import Part, Recipe, Wanted, blend
from toolkit.submissions.bundle.sheet import SheetForm, of_ids
from toolkit.submissions.sample import read_sample, render
from toolkit.workspace import split
from toolkit.workspace.competition import Competition
from toolkit.workspace.image_rows import Item


def test_a_newer_bundle_is_refused(tmp_path):
    (tmp_path / "bundle.json").write_text(json.dumps({"schema": contents.SCHEMA + 1}))
    with pytest.raises(DataError, match="schema"):
        Recipe.read(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        Recipe.read(tmp_path / "nowhere")


@pytest.mark.parametrize("how", list(voting.VOTES))
def test_every_vote_is_the_librarys(done, workspace, how):
    competition, recipe, names, out = done
    wanted = Wanted(replace(recipe, vote=how), competition, tuple(names), np.arange(len(names)))
    found = blend(wanted, [Part(0, len(names), out)])
    vote = voting.vote(np.stack(member_values(competition, names, workspace)), how=how, weights=[0.7, 0.3])
    ours = found.predictions["label"]
    assert (found.whole, found.partial, found.prior, ours.kind) == (len(names), 0, 0, vote.kind)
    if vote.labels is not None:
        np.testing.assert_array_equal(ours.labels, vote.labels)
    else:
        np.testing.assert_allclose(ours.values, vote.values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("per_id", ["mean", "max"])
def test_several_images_of_a_row(done, workspace, per_id):
    competition, recipe, names, out = done
    owner = np.array([0, 0, 0, 1, 2, 2, 2, 2, 4, 4, 4])
    wanted = Wanted(recipe, replace(competition, per_id=per_id), ("a", "b", "c", "none", "e"), owner)
    found = blend(wanted, [Part(0, len(names), out)])
    rows = []
    for place in (0, 1, 2, 4):
        each = [values[owner == place] for values in member_values(competition, names, workspace)]
        merged = [v.mean(axis=0) if per_id == "mean" else v.max(axis=0) / v.max(axis=0).sum() for v in each]
        rows.append(0.7 * merged[0] + 0.3 * merged[1])
    ours = found.predictions["label"].values
    np.testing.assert_allclose(ours[[0, 1, 2, 4]], rows, rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours[3], recipe.priors["label"])
    assert (found.whole, found.prior) == (4, 1)


def test_what_is_there_is_blended_and_nothing_else(done, tmp_path):
    """Three parts: finished, finished with the first model only, and cut off in the middle of the first model."""
    competition, recipe, names, out = done
    first, second = (np.load(out / f"{model.key}.npy") for model in recipe.models)
    bounds = [(0, 4), (4, 8), (8, 11)]
    parts = [Part(start, stop, tmp_path / str(start)) for start, stop in bounds]
    for part in parts:
        part.out.mkdir()
    keys = [model.key for model in recipe.models]
    np.save(parts[0].out / f"{keys[0]}.npy", first[:4])
    np.save(parts[0].out / f"{keys[1]}.npy", second[:4])
    np.save(parts[1].out / f"{keys[0]}.npy", first[4:8])
    np.save(parts[1].out / f"{keys[1]}.part.npy", second[4:8])
    begun = first[8:].copy()
    begun[1:] = np.nan
    np.save(parts[2].out / f"{keys[0]}.part.npy", begun)
    found = blend(Wanted(recipe, competition, tuple(names), np.arange(11)), parts)
    assert found.models == ("tiny.fold1",)
    assert (found.whole, found.partial, found.prior) == (9, 0, 2)
    ours = found.predictions["label"].values
    np.testing.assert_allclose(ours[:9], first[:9], atol=1e-12)
    np.testing.assert_allclose(ours[9:], [recipe.priors["label"]] * 2)
    np.save(parts[1].out / f"{keys[1]}.npy", second[4:8])
    found = blend(Wanted(recipe, competition, tuple(names), np.arange(11)), parts)
    assert (found.models, found.whole, found.partial, found.prior) == (("tiny.fold1", "tiny.fold0"), 8, 1, 2)
    ours = found.predictions["label"].values
    np.testing.assert_allclose(ours[:8], 0.7 * first[:8] + 0.3 * second[:8], atol=1e-12)
    np.testing.assert_allclose(ours[8], first[8], atol=1e-12)
    np.save(parts[2].out / f"{keys[1]}.part.npy", second[8:])
    found = blend(Wanted(recipe, competition, tuple(names[8:]), np.arange(3)), [replace(parts[2], start=0, stop=3)])
    assert (found.models, found.whole, found.partial, found.prior) == ((), 0, 3, 0)
    np.testing.assert_allclose(found.predictions["label"].values, [first[8], *second[9:]], atol=1e-12)


ADJUSTED = {
    "temperature": {"how": "temperature", "scale": [0.5, 0.5, 0.5], "bias": [0.0, 0.0, 0.0]},
    "vector scaling": {"how": "vector", "scale": [0.5, 1.5, 1.1], "bias": [0.3, 0.0, -0.2]},
    "factors": {"how": "factors", "scale": [1.0, 1.0, 1.0], "bias": [2.0, -1.0, 0.0]},
    "prior": {"how": "prior", "scale": [1.0, 1.0, 1.0], "bias": [0.7, 0.1, -0.9]},
    "temperatures alone": None,
}


@pytest.mark.parametrize("how", ["soft", "geometric"])
@pytest.mark.parametrize("name", ADJUSTED)
def test_adjusted_blends_give_the_workspaces_bytes(done, workspace, tmp_path, name, how):
    """Given the same numbers of each model, the file of the bundle is that of the workspace."""
    competition, recipe, names, _ = done
    target, stored = competition.targets[0], ADJUSTED[name]
    if stored:
        each = {what: dict(zip(target.classes, stored[what], strict=True)) for what in ("scale", "bias")}
        stored = {"how": stored["how"], **each, "multilabel": False}
    record = {"members": {"tiny": 1.0}, "vote": how, "temperatures": {"tiny": 1.7}, "adjustment": stored}
    exports = read_exports(find_exports(["folds/*.onnx"]), competition)
    each_views = {export.digest: views.views(TTA) for export in exports}
    items = [Item(row_id, path) for row_id, path in competition.images("test")]
    outcome = predict(exports, each_views, items, Store(workspace / "other"), Execution("cpu", implementation="pillow"))
    combination = Combination(blend={"label": read_blend(record, target.classes)})
    weights = weights_of(competition, exports, combination)["label"]
    theirs, _ = combine(competition, target, WeightedModels(exports, each_views, weights), outcome, names, combination)
    sample = read_sample(competition)
    files.write(tmp_path / "theirs.csv", lambda file: arrow_csv.write(file, render({"label": theirs}, sample)))
    for model, values in zip(recipe.models, member_values(competition, names, workspace), strict=True):
        np.save(tmp_path / f"{model.key}.npy", values)
    models = tuple(replace(m, weights={"label": w}) for m, w in zip(recipe.models, weights[::-1], strict=True))
    ours = replace(recipe, blend={"label": record}, models=models, vote=how)
    form = SheetForm("id", recipe.header, recipe.form, [f.column(competition) for f in recipe.fields])
    sheet = of_ids(names, form)
    blended = blend(Wanted(ours, competition, tuple(names), np.arange(len(names))), [Part(0, len(names), tmp_path)])
    request.write_submission(tmp_path / "ours.csv", sheet, recipe.form, form.columns, blended.predictions)
    assert (tmp_path / "ours.csv").read_bytes() == (tmp_path / "theirs.csv").read_bytes()


def test_a_changed_bundle_json_is_refused(tmp_path):
    from toolkit.submissions.bundle.contents import Field, Recipe

    recipe = Recipe(
        "e", "now", "soft", "labels", ("id", "label"), (Field("id", "label"),), (), {"label": (0.5, 0.5)}, {}, "3.11", ""
    )
    path = recipe.write(tmp_path)
    assert repr(Recipe.read(tmp_path)) == repr(recipe)
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"priors": {"label": [0.25, 0.75]}}))
    with pytest.raises(DataError, match="digest says that it was changed"):
        Recipe.read(tmp_path)
    path.write_text(json.dumps({key: value for key, value in raw.items() if key != "seal"}))  # of before
    assert repr(Recipe.read(tmp_path)) == repr(recipe)


def test_thresholds_of_several_labels_give_the_bytes_that_were_submitted(workspace, tmp_path):
    """From tables and pictures on: `blend` finds a threshold a class, `ensemble --blend` and `submit` write, a bundle writes the same."""
    competition = _several_labels(workspace)
    for words in (
        "blend --calibrate factors --vote soft --weigher uniform --always --metric macro_f1",
        "ensemble folds/*.onnx --blend --tta hflip --device cpu --no-tta-check",
        "submit",
    ):
        outcome = CliRunner().invoke(cli, words.replace("folds/*.onnx", "folds/tiny.fold0.onnx folds/tiny.fold1.onnx").split())
        assert outcome.exit_code == 0, outcome.output
    bundle = pack.make(competition, tmp_path / "bundle", python=HERE, cuda="cpu", wheels=False)
    recipe = Recipe.read(bundle.path)
    bias = list(recipe.blend["label"]["adjustment"]["bias"].values())
    assert recipe.blend["label"]["adjustment"]["multilabel"]
    assert max(map(abs, bias)) > 0.5  # a threshold of some class is far from a half
    names = [name for name, _ in competition.images("test")]
    exports = {e.sha256: e for e in read_exports(find_exports(["folds/*.onnx"]), competition)}
    items = [Item(name, path) for name, path in competition.images("test")]
    each = {export.digest: views.views("hflip") for export in exports.values()}
    outcome = predict(list(exports.values()), each, items, Store(workspace / "store"), Execution("cpu"))
    assert outcome.passes == 0  # the numbers that the submission was made of
    for model in recipe.models:
        export = exports[model.sha256]
        values = outcome.probabilities(export, output_of(export, "label"), views.views("hflip"), outcome.digests)
        np.save(tmp_path / f"{model.key}.npy", values)
    form = SheetForm("id", recipe.header, recipe.form, [f.column(competition) for f in recipe.fields])
    blended = blend(Wanted(recipe, competition, tuple(names), np.arange(len(names))), [Part(0, len(names), tmp_path)])
    request.write_submission(tmp_path / "ours.csv", of_ids(names, form), recipe.form, form.columns, blended.predictions)
    (submitted,) = (workspace / "submissions").glob("*.csv")
    assert (tmp_path / "ours.csv").read_bytes() == submitted.read_bytes()
    plain = replace(recipe, blend={})
    without = blend(Wanted(plain, competition, tuple(names), np.arange(len(names))), [Part(0, len(names), tmp_path)])
    request.write_submission(tmp_path / "plain.csv", of_ids(names, form), recipe.form, form.columns, without.predictions)
    assert (tmp_path / "plain.csv").read_bytes() != submitted.read_bytes()


def _several_labels(root):
    """The workspace with several labels an image, two exports of it, and an out-of-fold table whose classes want other thresholds."""
    text = (root / "competition.toml").read_text().replace('"multiclass"', '"multilabel"').replace('"accuracy"', '"macro_f1"')
    (root / "competition.toml").write_text(text)
    rng = np.random.default_rng(5)
    rows = list(csv.DictReader((root / "train.csv").read_text().splitlines()))
    truth = rng.random((len(rows), 3)) < 0.4
    truth[:3] = np.eye(3)
    names = [" ".join(np.array(CLASSES)[row]) for row in truth]
    (root / "train.csv").write_text(
        "id,label\n" + "".join(f"{row['id']},{name}\n" for row, name in zip(rows, names, strict=True))
    )
    competition = Competition.read(root)
    labels = competition.truth()["label"]
    split.make(labels.ids, labels.labels, CLASSES, folds=2).write(root / "split.csv")
    digest = split.Split.read(root / "split.csv").digest
    for fold in range(2):
        said = card(fold=fold, split=digest, outputs=(Output("label", CLASSES, "sigmoid"),), metric="macro_f1")
        pixels = samples(competition, said.preprocess)
        export(network(fold), said, root / "folds" / f"tiny.fold{fold}.onnx", samples=pixels)
    odds = np.where(truth, 1.5, -1.5) + rng.normal(0, 1, truth.shape) + [-2.0, 0.0, 2.0]
    values = 1 / (1 + np.exp(-odds))
    table = Predictions("label", "probabilities", tuple(row["id"] for row in rows), CLASSES, values, multilabel=True)
    prediction_files.write_table(root / "oof" / "tiny.parquet", {"label": table}, {"member": "tiny"})
    return competition
