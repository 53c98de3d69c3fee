"""What the command lines of recipes share: errors as sentences, Ctrl-C that keeps finished work, options, smoke runs."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import INTERRUPTED, Explaining
from toolkit.errors import TrainingError, counted
from toolkit.setup.recipe_files import recipe_path
from toolkit.training.worker import WORKER, at_work
from toolkit.workspace.competition import FILE, Competition

if TYPE_CHECKING:
    from toolkit.training.launcher import ProcessLauncher
    from toolkit.training.plan import TrainFold, TrainingPlan, Watch
    from toolkit.workspace.split import Split

__all__ = ["INTERRUPTED", "Recipe", "common", "folds_of", "follow", "here", "recipe_path", "results", "settings"]


class Recipe(Explaining):
    """A recipe's command; where another process started this one for some of its folds, errors go there."""

    kept = "Finished folds and epochs are kept"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line, and keep it for the processes that may be started with it."""
        ctx.meta[ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        if WORKER not in os.environ:
            return super().invoke(ctx)
        with at_work() as ctx.meta[WORKER]:
            return click.Command.invoke(self, ctx)


OPTIMISTIC = "  (optimistic: these rows had a say in the training)"
LOGGER = "toolkit.logger"  # where the context keeps --logger, which is no setting: it changes no result
PROCESSES = "toolkit.processes"  # and --gpus, --processes and --spread, which are none either
ARGUMENTS = "toolkit.arguments"


def common(
    workspace: str, *, spread: Sequence[str] = ("folds", "batches")
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of every recipe: --workspace (with its default), --fold, --device, --gpus, --fresh, --smoke and more.

    `spread` is what several processes can share: a recipe with a loop of its own has no "batches".
    """
    options = (
        click.option(
            "--workspace",
            type=click.Path(path_type=Path),
            callback=lambda _context, _parameter, path: path or here(workspace),
            help=f"Where the competition is.  [default: the workspace around the current folder, else {workspace}]",
        ),
        click.option(
            "--fold",
            "folds",
            type=_Fold(),
            multiple=True,
            help="Only this fold, or all: one model on every row. May be repeated.",
        ),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
        *_process_options(spread),
        click.option("--fresh", is_flag=True, help="Train again what is finished."),
        click.option("--smoke", is_flag=True, help="Two batches of one fold, exported, then thrown away: does it run?"),
        click.option(
            "--logger",
            type=click.Choice(["tensorboard", "wandb", "none"]),
            default="tensorboard",
            show_default=True,
            expose_value=False,
            callback=lambda context, _parameter, name: context.meta.__setitem__(LOGGER, name),
            help="Where training can be watched: tensorboard --logdir runs; metrics.csv is written anyhow.",
        ),
    )

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            body = option(body)
        return body

    return decorate


def _process_options(spread: Sequence[str]) -> tuple[Callable[..., Any], ...]:
    """--gpus, --processes and --spread: kept in the context, since recipes need not take them."""

    def keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        context.meta.setdefault(PROCESSES, {})[parameter.name] = value

    return (
        click.option(
            "--gpus",
            type=_NumberOr(int, ["all"], 1),
            expose_value=False,
            callback=keep,
            help="Train on so many GPUs, a process on each.  [default: one]",
        ),
        click.option(
            "--processes",
            type=click.IntRange(1),
            expose_value=False,
            callback=keep,
            help="The same on a CPU; with --gpus, so many processes share them.  [default: one, or one per GPU]",
        ),
        click.option(
            "--spread",
            type=click.Choice(spread),
            expose_value=False,
            callback=keep,
            help="folds: each process trains another fold."
            + ("  batches: all share every batch of one fold." if "batches" in spread else "")
            + "  [default: folds]",
        ),
    )


class _Fold(click.ParamType[Any]):
    """A fold's number, or `all`, which is None."""

    name = "NUMBER|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value is None or value == "all":
            return None
        if not str(value).isdigit():
            self.fail(f"{value!r} is neither a fold's number nor 'all'", param, ctx)
        return int(value)


_RANGES: dict[type, Any] = {int: click.IntRange, float: click.FloatRange}


class _NumberOr(click.ParamType[Any]):
    """A number in a range, or one of a few words."""

    def __init__(self, kind: type, words: Sequence[str], least: float | None, most: float | None = None) -> None:
        self.kind, self.words = kind, words
        self.range: Any = _RANGES[kind](least, most)
        self.name = "|".join(("NUMBER", *words))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in self.words:
            return value
        try:
            self.kind(value)
        except ValueError:
            self.fail(f"{value!r} is no number and not {' or '.join(self.words)}", param, ctx)
        return self.range.convert(value, param, ctx)


def settings(config: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """One option for every field of a recipe's Config that was made by `setting`: its name, type, default and help."""
    kinds = typing.get_type_hints(config)

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        for known in reversed(dataclasses.fields(config)):
            if "help" in known.metadata:
                body = _option(known, kinds[known.name])(body)
        return body

    return decorate


def _option(known: dataclasses.Field[Any], kind: Any) -> Callable[..., Any]:
    text, words, least, most = (known.metadata[key] for key in ("help", "choices", "minimum", "maximum"))
    flag = "--" + known.name.replace("_", "-")
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", known.name, default=known.default, show_default=True, help=text)
    numbers = [part for part in (kind, *typing.get_args(kind)) if part in (int, float)]
    if numbers:
        of: Any = _NumberOr(numbers[0], words, least, most) if words else _RANGES[numbers[0]](least, most)
    else:
        of = click.Choice(words) if words else click.STRING
    return click.option(
        flag, known.name, type=of, default=known.default, show_default=known.default not in (None, ""), help=text
    )


def follow(
    plan: TrainingPlan,
    train_fold: TrainFold,
    *,
    folds: Sequence[int | None] = (),
    device: str = "auto",
    fresh: bool = False,
    watch: Watch | None = None,
) -> None:
    """Train the folds with a bar, print a line for each, what there is to say about the first, and the out-of-fold score."""
    from toolkit.cli.progress import bar
    from toolkit.core import prediction_files
    from toolkit.core.lineage import optimistic
    from toolkit.training import join, pseudo_labels, train

    def say(text: str) -> None:
        click.echo(text, err=True)  # results only on stdout

    launcher = None
    if context := click.get_current_context(silent=True):
        plan = dataclasses.replace(plan, logger=context.meta.get(LOGGER, "none"))
        if worker := context.meta.get(WORKER):
            worker.train(plan, train_fold)
            return
        watch = watch or context.obj  # a search over this recipe's flags looks on
        launcher = None if watch else _launcher(context, plan, folds, device)  # whoever looks on does so in this process
    if leak := pseudo_labels.leaks(plan):
        say(leak)
    metric, told, trained = plan.competition.metric, False, set[int | None]()
    options: dict[str, Any] = {"folds": folds, "device": device, "fresh": fresh, "watch": watch, "launcher": launcher}
    for done in train(plan, train_fold, bar=bar, say=say, **options):
        trained.add(done.fold)
        how = "finished before" if done.resumed else f"{done.seconds:.0f} s"
        what = "all rows" if done.fold is None else f"fold {done.fold}"
        score = "not scored" if done.score is None else f"{metric} {done.score:.4f}"
        click.echo(f"{what}  {score}  {how}{OPTIMISTIC if optimistic(done.selected) else ''}")
        for note in done.notes if not told else ():
            say(f"  {note}")
        told = told or bool(done.notes)
    if (joined := join(plan)) is not None:
        why = optimistic(str(prediction_files.read_meta(plan.oof).get("selected", "last")))
        mark = f"  (optimistic: {why})" if why else ""
        click.echo(f"out of fold  {metric} {joined:.4f}  ({counted(len(plan.split.ids), 'images')}){mark}")
    elif trained >= set(range(plan.split.count)):
        raise TrainingError(
            f"every fold was trained, but files of them are gone: {plan.oof} was not written",
            hint="Run the same command again.",
        )


def _launcher(context: click.Context, plan: TrainingPlan, folds: Sequence[int | None], device: str) -> ProcessLauncher | None:
    """The processes that the command line asks for; a smoke run is one fold, so that there are none to spread."""
    from toolkit.training.cross_validation import asked
    from toolkit.training.launcher import launcher_for

    processes = context.meta.get(PROCESSES, {})
    if context.params.get("smoke") and processes.get("spread") != "batches":
        return None
    command = (context.command.callback, context.meta.get(ARGUMENTS, ()))
    return launcher_for(command, **processes, device=device, models=len(asked(plan, folds)))  # type: ignore[arg-type]


def folds_of(competition: Competition) -> Split:
    """The split of the workspace: split.csv, or five stratified folds, grouped where there are groups, written there."""
    from toolkit.workspace.make_split import load_or_make
    from toolkit.workspace.split import SPLIT_FILE

    new = not competition.path(SPLIT_FILE).exists()
    split = load_or_make(competition)
    if new:
        click.echo(f"made {SPLIT_FILE}: {counted(split.count, 'folds')} of {counted(len(split.ids), 'rows')}", err=True)
    return split


def here(otherwise: str) -> Path:
    """The workspace that holds the current folder; `otherwise` where there is none."""
    folder = Path.cwd()
    workspace = next((parent for parent in (folder, *folder.parents) if (parent / FILE).is_file()), None)
    return workspace or Path(otherwise)


@contextmanager
def results(competition: Competition, *, smoke: bool) -> Iterator[Path]:
    """The folder that takes runs/, folds/ and oof/: the workspace, or for a smoke run one that is removed afterwards."""
    if not smoke:
        yield competition.root
        return
    with tempfile.TemporaryDirectory(prefix="toolkit-smoke-") as folder:
        yield Path(folder)
