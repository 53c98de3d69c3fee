"""toolkit inspect: what exports say about themselves."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODELS...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def command(models: tuple[str, ...], *, as_json: bool) -> None:
    """Print what exports say about themselves.

    MODELS are .onnx files, folders, or globs.
    """
    from toolkit import graphs
    from toolkit.cli.summaries import card, shown
    from toolkit.members import find_exports

    for path in find_exports(models):
        export = graphs.read(path)
        facts: dict[str, Any] = {"path": shown(path), "digest": export.digest, **graphs.facts(path)}
        if as_json:
            click.echo(json.dumps(facts | {"card": asdict(export.card)}, ensure_ascii=False))
        else:
            size = f"opset {facts['opset']}, IR {facts['ir']}, {facts['bytes'] / 1e6:.2f} MB, {facts['nodes']} nodes"
            click.echo(f"{shown(path)}\n{card(export.card)}\nFile      {size}, digest {export.digest}\n")
