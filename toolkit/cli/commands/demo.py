"""toolkit demo: the whole job on real handwritten digits."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default="exports/digits", metavar="[DIR]")
def command(folder: Path) -> None:
    """Run the whole job on real handwritten digits, from images to a checked submission.

    Makes the workspace DIR (default exports/digits), trains five folds, exports them, compares views out of fold, predicts
    and submits. An interrupted or finished demo goes on where it was.
    """
    from toolkit.cli.progress import bar
    from toolkit.cli.summaries import demo
    from toolkit.cli.terminal import show
    from toolkit.setup.demo import run

    show(*demo(run(folder, say=show, bar=bar), folder))
