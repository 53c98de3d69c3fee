"""toolkit inspect: what exports say about themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from toolkit.base.text.printing import facts
from toolkit.cli import options
from toolkit.cli.completion import FILES
from toolkit.errors import counted


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODELS...", shell_complete=FILES)
@options.as_json
def command(models: tuple[str, ...]) -> Iterator[options.Said]:
    """Print what exports say about themselves.

    MODELS are .onnx files, folders, or globs.
    """
    from toolkit.cli.summaries import card, shown
    from toolkit.inference.exports import find_exports
    from toolkit.runtime.graphs import onnx_file

    every: list[dict[str, Any]] = []
    for path in find_exports(models):
        export, found = onnx_file.read(path), onnx_file.facts(path)
        every.append({"path": shown(path), "digest": export.digest, **found, "card": asdict(export.card)})
        size = f"opset {found['opset']}, IR {found['ir']}, {found['bytes'] / 1e6:.2f} MB, {counted(found['nodes'], 'nodes')}"
        said = facts([*card(export.card), ("File", f"{size}, digest {export.digest}")])
        yield {"ok": True, "models": every}, [*([""] if len(every) > 1 else []), shown(path), said]
