"""`toolkit explain`: why an image is predicted as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from toolkit.cli import options, summaries
from toolkit.cli.completion import FILES, VIEWS
from toolkit.core.voting import VOTES
from toolkit.runtime.devices import PROVIDERS

if TYPE_CHECKING:
    from toolkit.blending.combination import Combination
    from toolkit.inference.execution import Execution
    from toolkit.workspace.competition import Competition


@click.command()
@click.argument("image", metavar="IMAGE", shell_complete=FILES)
@click.argument("models", nargs=-1, metavar="[MODELS]...", shell_complete=FILES)
@click.option("--target", default="", help="Which target.  [default: the first]")
@click.option("--tta", default="none", shell_complete=VIEWS, show_default=True, help="Set of views, as in `toolkit ensemble`.")
@click.option("--vote", type=click.Choice(list(VOTES)), default="soft", show_default=True, help="How the answers combine.")
@click.option("--weights", default="", help="A number per model (0.2,0.8), names (b4=0.7,vit=0.3), or score.")
@click.option("--device", type=click.Choice(["auto", *PROVIDERS]), default="auto", show_default=True)
@options.as_json
@options.workspace
@options.requests
def command(
    competition: Competition, image: str, models: tuple[str, ...], target: str, combination: Combination, execution: Execution
) -> options.Said:
    """Show what every fold model and view says of one image, and which parts of it the answer rests on.

    IMAGE is a path or an id; MODELS are those of folds/ unless told. Writes reports/explain-IMAGE.html.
    """
    from toolkit.analysis.explanation import explain
    from toolkit.analysis.pages import explanation as page
    from toolkit.inference.exports import find_exports, read_exports

    paths = find_exports(models or ["folds"], base=None if models else competition.root)
    exports = read_exports(paths, competition)
    explained = explain(competition, exports, image, combination, target=target, device=execution.device)
    path = page.write(competition, explained)
    return explained.record | {"path": str(path)}, summaries.explanation(explained, path)
