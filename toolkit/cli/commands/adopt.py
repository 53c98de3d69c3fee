"""`toolkit adopt`: a classifier that others exported → an export of ours."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.base.text.printing import Table, facts
from toolkit.cli import options
from toolkit.core.raw_outputs import GIVES
from toolkit.errors import counted

if TYPE_CHECKING:
    from toolkit.models.adopt import Adopted
    from toolkit.workspace.competition import Competition

_THREE = (float, float, float)


class _Size(click.ParamType[tuple[int, int]]):
    """`224` or `224x192` (height × width)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        sides = str(value).lower().split("x")
        if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
            self.fail(f"{value!r} is no size, such as 224 or 224x192 (height × width)", param, ctx)
        return int(sides[0]), int(sides[-1])


@click.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="MODEL.onnx")
@click.option(
    "--classes", required=True, help="In the order of its columns: a,b,c, a .txt or .json file, `workspace` or `imagenet`."
)
@click.option("--mean", type=_THREE, help="Normalisation in the model's channel order, in the unit of --range.")
@click.option("--std", type=_THREE, help="Normalisation in the model's channel order, in the unit of --range.")
@click.option(
    "--range", "top", type=click.Choice(["0..1", "0..255"]), default="0..1", help="What mean and std are subtracted from."
)
@click.option("--timm", metavar="MODEL", help="Take size, crop, interpolation, mean and std from timm's model of this name.")
@click.option("--size", type=_Size(), help="Input size (224 or 224x192, height first), where the graph takes any.")
@click.option("--layout", type=click.Choice(["nchw", "nhwc"]), help="Where the channels are, where the graph does not say it.")
@click.option(
    "--input", "element", type=click.Choice(["float32", "float16", "uint8"]), help="Refuse a graph that takes another."
)
@click.option("--colour", type=click.Choice(["rgb", "bgr"]), default="rgb", help="Order of its channels (OpenCV, Caffe: bgr).")
@click.option("--output", type=click.Choice(list(GIVES)), help="What it gives; seen from its rows unless told.")
@click.option("--output-name", default="", help="Which of several outputs holds the classes.")
@click.option("--multilabel", is_flag=True, help="Each class is a yes or no of its own.")
@click.option("--resize", type=click.Choice(["squash", "crop"]), help="Resize whole (default), or cut the centre.")
@click.option("--crop-pct", type=float, help="Share of the shorter side that the crop takes, as timm says it.")
@click.option("--box", default="", help="What is cut out of an image first: a box of competition.toml, or shares of its sides.")
@click.option("--interpolation", type=click.Choice(["nearest", "bilinear", "bicubic"]), help="Default bilinear.")
@click.option(
    "--class-map", "mapping", type=click.Path(path_type=Path), help="Drop, merge, rename: CSV (from,to), JSON or TOML."
)
@click.option("--member", default="", help="Member it belongs to; default the file's name.")
@click.option("--fold", type=click.IntRange(0), help="The fold of split.csv that it did not train on, where there is one.")
@click.option("--target", default="", help="Which of several targets of competition.toml it predicts.")
@click.option("--to", "-o", type=click.Path(path_type=Path), help="Where to write; default folds/MEMBER.foldK.onnx.")
@click.option("--force", is_flag=True, help="Replace an export that is there.")
@options.as_json
@options.workspace_if_any
def command(
    competition: Competition | None,
    source: Path,
    to: Path | None,
    classes: str,
    top: str,
    mapping: Path | None,
    *,
    force: bool,
    target: str,
    **known: object,
) -> options.Said:
    """Take in a classifier that others exported: any layout, element type, batch or output, with a card.

    Its graph is put behind uint8 RGB input and checked to give what it gave by itself, on training images where there are
    some; where these have labels, its accuracy is shown. A class map drops classes (`to` empty), merges and renames them;
    what is left is renormalised, and `*` stands for all classes that are not named.

    \b
    toolkit adopt effnet.onnx --classes workspace --timm tf_efficientnet_b0 --member effnet --fold 0
    toolkit adopt keras.onnx --classes cat,dog --size 224 --mean 0 0 0 --std 1 1 1
    toolkit adopt caffe.onnx --classes names.txt --colour bgr --range 0..255 --mean 104 117 123 --std 1 1 1
    """
    from toolkit.models import adopt, class_map, foreign_model

    names = adopt.class_names(classes, competition, target)
    known |= {"classes": names, "target": target, "top": int(top[3:]), "mapping": class_map.read(mapping) if mapping else {}}
    done = adopt.adopt(source, foreign_model.Asked(**known), competition, output=to, force=force)  # type: ignore[arg-type]
    record = {"ok": True, "path": str(done.path), "card": asdict(done.card), "batching": done.batching}
    return record | {"accuracy": done.accuracy, "checked": done.checked, "notes": list(done.notes)}, _text(done)


_BATCHING = {
    "any": "any number of images at a time",
    "reshaped": "any number of images at a time (its fixed batch was freed)",
    "scanned": "one batch of its own fixed size after another, which is slower than a dynamic batch",
}


def _text(done: Adopted) -> Table:
    from toolkit.cli.summaries import card, shown

    lines = [*card(done.card), ("Batches", _BATCHING[done.batching])]
    if done.accuracy is not None:
        rows = (
            f"{counted(done.checked, 'images')} of fold {done.card.fold}"
            if done.card.fold is not None
            else f"{counted(done.checked, 'training images')}"
        )
        lines.append(("Accuracy", f"{done.accuracy:.4f} on {rows}"))
    return facts([*lines, *(("Note", note) for note in done.notes), ("Wrote", shown(done.path))])
