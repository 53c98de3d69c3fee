"""`toolkit init`: competition.toml from what a folder holds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.base.text.printing import Verbatim
from toolkit.cli import options
from toolkit.cli.completion import FILES, offer
from toolkit.core.metrics import METRICS

if TYPE_CHECKING:
    from toolkit.setup.discover import Discovery
    from toolkit.setup.infer_targets import Wishes

_NEXT = """Next:
  toolkit split                                {split}
  toolkit init --recipe {recipe:<22} a training script of your own, in recipes/ (there are also: {others})
  python recipes/{file:<29} trains each fold and exports it
  toolkit ensemble folds/*.onnx --tta auto     predicts the test images, with the views that pay on held-out ones
  toolkit submit                               checks, then writes submission.csv"""


def _absolute(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    return os.path.abspath(value) if value else ""  # noqa: PTH100 - resolve() would follow links


def _recipes(_ctx: click.Context) -> tuple[str, ...]:
    from toolkit.setup import recipe_files

    return recipe_files.recipe_names()


RECIPES = offer(_recipes)


def _path(flag: str, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(flag, default="", callback=_absolute, metavar="PATH", shell_complete=FILES, help=text)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), required=False, metavar="[DIR]")
@_path("--data", "Look there instead of in DIR and DIR/data; it may be read-only.")
@_path("--train", "The table of labels.")
@_path("--test", "The table of test images, where the sample submission does not list them.")
@_path("--sample", "The sample submission.")
@_path("--train-images", "The folder of training images.")
@_path("--test-images", "The folder of test images.")
@click.option("--pattern", default="", help="How a row names its file: '{id}.png', '{patient_id}/{image_id}.*'.")
@click.option("--id", default="", metavar="COLUMN", help="The column that names a row.")
@click.option(
    "--sample-id", default="", metavar="COLUMN", help="That of the sample submission, where it has another name there."
)
@click.option("--target", multiple=True, metavar="COLUMN", help="A column of labels; repeat it for several.")
@click.option(
    "--factor", multiple=True, metavar="COLUMN=A,B,..", help="A factor of a joint target, with its classes in order; repeat it."
)
@click.option("--group", default="", metavar="COLUMN", help="Rows that must stay in one fold: a person, a place, an object.")
@click.option("--extra", default="", metavar="COLUMN", help="1 where a row trains in every fold and is never scored.")
@click.option("--task", type=click.Choice(["multiclass", "binary", "multilabel"]), help="What kind of labels.")
@click.option("--metric", default="", type=click.Choice(["", *METRICS]), metavar="METRIC", help=f"One of {', '.join(METRICS)}.")
@click.option("--positive", default="", metavar="CLASS", help="The class whose probability a binary submission holds.")
@click.option("--name", default="", help="The competition's name.  [default: the folder's]")
@click.option("--format", default="", help="The submission format, where the sample leaves it open.")
@click.option(
    "--per-id",
    default="",
    type=click.Choice(["", "mean", "max"]),
    metavar="mean|max",
    help="How several images of one id are merged.",
)
@click.option("--encoding", default="", help="That of the tables, where their bytes do not say it: cp949, cp1252, utf-16.")
@click.option("--delimiter", default="", help="The mark between cells, where the table does not say it: ';', $'\\t'.")
@click.option("--recipe", default="", metavar="NAME", shell_complete=RECIPES, help="Only copy this recipe into DIR/recipes.")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@options.as_json
@click.pass_context
def command(ctx: click.Context, /, folder: Path | None, recipe: str, *, force: bool, **wishes: Any) -> options.Said:
    """Write competition.toml by looking at a folder."""
    from toolkit.setup import discover, recipe_files
    from toolkit.setup.infer_targets import Wishes
    from toolkit.workspace.competition import FILE

    root = folder or ctx.obj or Path.cwd()
    if recipe:
        copy = recipe_files.copy_recipe(recipe, root, force=force)
        return {"ok": True, "path": str(copy)}, f"Wrote {copy}"
    discover.refuse_existing(root / FILE, force=force)
    discovery = _discovered(root, Wishes(**{**wishes, "factor": discover.factors(wishes["factor"])}))
    path = discovery.write(force=force)
    from toolkit.setup.recipe_files import recipe_names

    recipe = discovery.recipe
    others = ", ".join(name for name in recipe_names() if name != recipe)
    split = "stratified folds" + (" that keep groups whole" if discovery.competition.group else "")
    after = _NEXT.format(split=split, recipe=recipe, file=f"{recipe}.py", others=others)
    lines = [*discovery.lines, f"Wrote {path}", *map(Verbatim, after.splitlines())]
    return {"ok": True, "path": str(path), "found": list(discovery.lines), "recipe": recipe}, lines


def _discovered(root: Path, wishes: Wishes) -> Discovery:
    """What the folder holds; what it leaves open is asked by the options that answer it."""
    from toolkit.setup.discover import discover
    from toolkit.setup.infer_targets import OpenQuestionsError

    try:
        return discover(root, wishes)
    except OpenQuestionsError as error:
        hint = "Give the flags named above to `toolkit init`."
        raise OpenQuestionsError(error.questions, lambda wish: f"--{wish.replace('_', '-')}", hint=hint) from error
