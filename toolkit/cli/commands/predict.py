"""`toolkit predict`: a table of any models on any images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.base.text.printing import Mark, Table, facts
from toolkit.cli import options
from toolkit.cli.completion import FILES, offer
from toolkit.core.voting import VOTES
from toolkit.errors import counted

if TYPE_CHECKING:
    from toolkit.blending.combination import Combination
    from toolkit.ensemble.predict_images import WrittenTables
    from toolkit.inference.execution import Execution
    from toolkit.workspace.competition import Competition


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODELS...", shell_complete=FILES)
@click.option(
    "--on",
    required=True,
    metavar="train|test|DIR|CSV",
    shell_complete=offer(["train", "test"], files=True),
    help="The workspace's images, a folder, or a CSV of id and path.",
)
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="Where to write: *.parquet or *.csv.")
@click.option("--tta", type=options.SETS, default="none", show_default=True, help="Views of every image.")
@click.option("--vote", type=click.Choice(list(VOTES)), default="soft", show_default=True, help="How models combine.")
@click.option("--weights", default="", help="A number per model (0.2,0.8), names (b4=0.7,vit=0.3), or score.")
@click.option("--each", is_flag=True, help="A table per model (with --held-out: per member), as NAME.<model>.<suffix>.")
@click.option("--held-out", is_flag=True, help="With --on train: every row by the folds that did not see it.")
@click.option("--in-sample", is_flag=True, help="With --on train: also rows that a model was trained on.")
@click.option(
    "--on-bad-image",
    type=click.Choice(["fail", "skip", "decode"]),
    default="fail",
    help="Fail, leave the row out, or use what is there of pictures cut short.",
)
@click.option("--id-column", default="", help="Of the CSV; default `id`, else its first column.")
@click.option("--path-column", default="", help="Of the CSV; paths are relative to it. Default `path`, `file`, `image`…")
@click.option("--limit", type=click.IntRange(1), help="Only the first N images, to try things out.")
@options.engine
@click.option("--batch-size", "batch", type=click.IntRange(1), help="Images a model takes at a time.")
@options.as_json
@options.workspace_if_any
@options.requests
def command(
    competition: Competition | None,
    models: tuple[str, ...],
    output: Path,
    combination: Combination,
    execution: Execution,
    *,
    on: str,
    id_column: str,
    path_column: str,
    limit: int | None,
    held_out: bool,
    in_sample: bool,
    each: bool,
    min_agreement: float,
) -> options.Said:
    """Predict any images with any models and write one table, or one per model.

    MODELS are .onnx files with a card, folders, or globs. No workspace is needed: classes come from the card. In one, what was
    computed before is taken from its store. On training images, models that were trained on them are refused.

    \b
    toolkit predict folds/*.onnx --on photos/ -o photos.csv
    toolkit predict folds/b4.*.onnx --on train --held-out -o oof/b4.parquet
    """
    from toolkit.cli.progress import bar
    from toolkit.ensemble.predict_images import ImageSource, predict_images
    from toolkit.inference.exports import find_exports

    paths = find_exports(models)
    engine: dict[str, Any] = {}
    if execution.precision != "fp32":
        execution, engine = options.settled_engine(competition, paths, execution, min_agreement=min_agreement)
    with bar("Predicting") as progress:
        execution = replace(execution, progress=progress)
        source = ImageSource(on, id_column, path_column, limit, held_out=held_out, in_sample=in_sample)
        tables = predict_images(competition, paths, source, output, combination, execution, each=each, origin=engine)
    return _record(tables), _text(tables)


def _record(tables: WrittenTables) -> dict[str, Any]:
    return {
        "written": {path.as_posix(): len(next(iter(by_target.values()))) for path, by_target in tables.written.items()},
        "bad": [{"id": image.id, "why": image.why} for image in tables.bad],
        "notes": list(tables.notes),
    }


def _text(tables: WrittenTables) -> Table:
    from toolkit.cli.summaries import shown

    rows: list[tuple[str, str]] = (
        [(Mark("Bad", "odd"), f"{counted(len(tables.bad), 'images were')} left out:")] if tables.bad else []
    )
    rows += [("", image.why) for image in tables.bad]
    rows += [("Note", note) for note in tables.notes]
    for path, by_target in tables.written.items():
        rows.append(
            ("Wrote", f"{shown(path)} ({counted(len(next(iter(by_target.values()))), 'rows')} × {', '.join(by_target)})")
        )
    return facts(rows)
