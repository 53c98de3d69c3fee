"""Every recipe: the contract, and on tiny data that its exports reproduce its own out-of-fold table."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import shutil
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from tests.conftest import few_digits, few_people, few_pictures
from toolkit.core import prediction_files
from toolkit.ensemble.unseen import out_of_fold
from toolkit.models import checkpoints
from toolkit.runtime.graphs import onnx_file
from toolkit.workspace.competition import Competition
from toolkit.workspace.split import Split

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "recipes").glob("*.py"))
RECIPES = [path for path in SCRIPTS if path.stem not in ("tune", "tour")]  # which train no model of their own, or in a notebook
WORKSPACES = {"mask_profile": few_people, "multilabel": few_pictures}  # of recipes that the digits are not for
FLAGS = {"timm_kfold": ["--model", "resnet10t", "--no-pretrained", "--size", "32", "--no-flip"]}  # there is no hub
QUICK = ["--device", "cpu", "--epochs", "2", "--batch-size", "16"]

every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def load(path):
    name = f"recipe_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Sixty of the digits in two folds."""
    return few_digits(tmp_path_factory.mktemp("recipes") / "digits", 6)


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """A function from a recipe to a tiny workspace for it, in two folds."""
    made = {}

    def find(path):
        make = WORKSPACES.get(path.stem)
        if make and path.stem not in made:
            made[path.stem] = make(tmp_path_factory.mktemp("recipes") / path.stem)
        return made.get(path.stem, tiny)

    return find


def run(path, workspace, *options):
    return CliRunner().invoke(load(path).main, ["--workspace", str(workspace), *QUICK, *FLAGS.get(path.stem, []), *options])


def test_there_are_recipes():
    assert RECIPES


@every_recipe
def test_a_recipe_has_the_parts_that_readers_look_for(path):
    recipe = load(path)
    assert recipe.__doc__
    assert f"python recipes/{path.name}" in recipe.__doc__
    assert dataclasses.is_dataclass(recipe.Config)
    assert recipe.Config.__dataclass_params__.frozen
    assert recipe.Config().member
    assert list(inspect.signature(recipe.train_fold).parameters) == ["config", "fold"]
    assert isinstance(recipe.main, click.Command)
    assert {"workspace", "folds", "device", "member", "fresh", "smoke", "seed", "epochs"} <= {
        p.name for p in recipe.main.params
    }
    assert len(path.read_text().splitlines()) <= 150


def test_a_recipe_works_in_the_workspace_around_the_current_folder(tiny, tmp_path, monkeypatch):
    from toolkit.cli.recipes import here

    monkeypatch.chdir(tiny / "data")
    assert here("exports/digits") == tiny
    monkeypatch.chdir(tmp_path)
    assert here("exports/digits") == Path("exports/digits")


def test_a_split_that_does_not_fit_the_competition_is_refused(tiny, tmp_path):
    from toolkit.errors import SplitError
    from toolkit.workspace import make_split

    root = shutil.copytree(tiny, tmp_path / "copy")
    table = root / "data" / "train.csv"
    text = table.read_text()
    table.write_text(text + "9999,1\n")
    with pytest.raises(SplitError, match="'9999'"):
        make_split.load(Competition.read(root))
    lines = text.splitlines()
    table.write_text("\n".join(["id,label,person", *(f"{line},{i // 2}" for i, line in enumerate(lines[1:]))]) + "\n")
    toml = root / "competition.toml"
    toml.write_text(toml.read_text().replace("[columns]\n", '[columns]\ngroup = "person"\n'))
    with pytest.raises(SplitError, match="'person'"):
        make_split.load(Competition.read(root))


@every_recipe
def test_recipes_never_import_each_other(path):
    names = {other.stem for other in SCRIPTS}
    assert not [name for name in imported(path) if name.startswith(("recipes", ".")) or name.split(".")[0] in names]


def test_nothing_imports_recipes():
    for path in (ROOT / "toolkit").rglob("*.py"):
        assert not [name for name in imported(path) if name.split(".")[0] == "recipes"], path


@every_recipe
def test_exports_reproduce_the_out_of_fold_table_and_a_rerun_trains_nothing(path, place):
    tiny = place(path)
    ran = run(path, tiny, "--member", path.stem)
    assert ran.exit_code == 0, ran.output
    competition, split = Competition.read(tiny), Split.read(tiny / "split.csv")
    exports = [onnx_file.read(tiny / "folds" / f"{path.stem}.fold{fold}.onnx") for fold in range(2)]
    table = prediction_files.read_table(tiny / "oof" / f"{path.stem}.parquet")
    found = out_of_fold(competition, exports, split)
    for name, predictions in table.predictions.items():
        again = found[name].align(predictions.ids).with_classes(predictions.classes)
        assert len(predictions) == len(split.ids)
        np.testing.assert_allclose(again.values, predictions.values, atol=1e-4)
        assert np.ptp(predictions.values, axis=0).min() > 1e-3  # a constant would agree with anything
    assert all(export.card.parity["logit"] <= 1e-5 for export in exports)
    assert f"out of fold  {competition.metric} {table.meta['score']:.4f}  ({len(split.ids)} images)" in ran.output

    kept = (tiny / "oof" / f"{path.stem}.parquet").read_bytes()
    again = run(path, tiny, "--member", path.stem)
    assert again.output.count("finished before") == 2
    assert (tiny / "oof" / f"{path.stem}.parquet").read_bytes() == kept

    changed = run(path, tiny, "--member", path.stem, "--seed", "9")
    assert changed.exit_code == 1
    assert "seed was 0, is 9" in changed.output
    assert "Use --fresh" in changed.output


@every_recipe
def test_the_checkpoint_rebuilds_the_network(path, place):
    import torch

    from toolkit.models import checkpoints

    tiny = place(path)
    run(path, tiny, "--member", path.stem)
    checkpoint = checkpoints.read(tiny / "runs" / path.stem / "fold0" / "model.safetensors")
    export = onnx_file.read(tiny / "folds" / f"{path.stem}.fold0.onnx")
    assert checkpoint.card.fold == 0
    model = checkpoints.build(checkpoint)
    import onnxruntime as ort

    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, *export.card.preprocess.size), dtype=np.uint8)
    session = ort.InferenceSession(str(export.path), providers=["CPUExecutionProvider"])
    theirs = session.run(None, {session.get_inputs()[0].name: pixels})[0]
    mean, std = (np.array(v, dtype=np.float32).reshape(1, 3, 1, 1) for v in (export.card.mean, export.card.std))
    with torch.inference_mode():
        ours = model(torch.from_numpy((pixels.astype(np.float32) / 255 - mean) / std)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@every_recipe
def test_a_smoke_run_keeps_nothing(path, place):
    tiny = place(path)
    before = {p: p.stat().st_mtime_ns for p in tiny.rglob("*") if p.is_file()}
    ran = run(path, tiny, "--smoke", "--member", "smoke")
    assert ran.exit_code == 0, ran.output
    assert f"fold 0  {Competition.read(tiny).metric} 0." in ran.output
    assert "fitting" not in ran.output  # two batches say nothing of it
    assert {p: p.stat().st_mtime_ns for p in tiny.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("epochs", [1, 5])
def test_the_digits_recipe_trains_for_any_number_of_steps(tiny, epochs):
    """A rise of a fifth of five steps is a single one, by which torch's OneCycleLR divides by zero."""
    said = ["--fold", "0", "--epochs", str(epochs), "--batch-size", "64", "--member", f"short{epochs}"]
    ran = run(ROOT / "recipes" / "digits.py", tiny, *said)
    assert ran.exit_code == 0, ran.output


def test_the_digits_recipe_turns_its_images_about_and_never_flips_them():
    import torch

    recipe = load(ROOT / "recipes" / "digits.py")
    torch.manual_seed(0)
    still = dataclasses.replace(recipe.Config(), rotate=0, scale=0, shear=0, shift=0)
    images = torch.rand(8, 3, 16, 16) * 255
    torch.testing.assert_close(recipe.augment(images, still), images, rtol=0, atol=1e-2)
    mark = torch.zeros(64, 3, 32, 32)
    mark[:, :, 6:10, 6:10] = 255  # stays in its quarter under any map that is no flip
    moved = recipe.augment(mark, recipe.Config())
    assert (moved[:, :, :16, :16].sum((1, 2, 3)) > 0.95 * moved.sum((1, 2, 3))).all()
    assert len({tuple(image.flatten().tolist()) for image in moved}) > 60


@every_recipe
def test_every_recipe_goes_on_from_the_folds_of_a_member(path, place):
    """At a rate of next to nothing the parameters stay those of the member's own fold; a file that saw the rows is refused."""
    tiny, stem = place(path), path.stem
    assert run(path, tiny, "--member", stem).exit_code == 0  # which may be trained already
    ran = run(path, tiny, "--member", f"{stem}-on", "--weights", f"member:{stem}", "--fold", "1", "--lr", "1e-9")
    assert ran.exit_code == 0, ran.output
    before, after = (checkpoints.read(tiny / "runs" / name / "fold1" / "model.safetensors") for name in (stem, f"{stem}-on"))
    learned = [name for name in before.state if name.endswith((".weight", ".bias"))]
    assert learned
    for name in learned:
        np.testing.assert_allclose(before.state[name], after.state[name], atol=1e-5)
    assert after.card.chosen == "last"
    ran = run(path, tiny, "--member", f"{stem}-leak", "--weights", str(tiny / "runs" / stem / "fold0" / "model.safetensors"))
    assert ran.exit_code == 1
    assert "has seen the rows that score fold 1" in " ".join(ran.output.split())
