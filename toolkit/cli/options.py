"""Options that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from toolkit.base.text.printing import Part, Table, to_json
from toolkit.cli import sentence
from toolkit.cli.completion import offer
from toolkit.cli.terminal import show
from toolkit.errors import DataError, ToolkitError
from toolkit.images.views import AUTO, VIEW_SETS, views
from toolkit.runtime.devices import PRECISIONS, PROVIDERS

if TYPE_CHECKING:
    from pathlib import Path

    from toolkit.blending.combination import Combination
    from toolkit.inference.execution import Execution
    from toolkit.inference.store.retention import Growth
    from toolkit.workspace.competition import Competition

Said = tuple[dict[str, Any], Part | Sequence[Part]]  # what a command found as plain values, and what people are shown


class _Views(click.ParamType[str]):
    """A set of views; where a set is to be used also auto, or one per member, to be checked when the members are known."""

    name = "views"

    def __init__(self, *, single: bool) -> None:
        self.single = single

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        try:
            if self.single or (text != AUTO and "=" not in text):
                views(text)
        except DataError as error:
            self.fail(f"{error.message}. {error.hint}", param, ctx)
        return text

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Sets by name."""
        return offer([*VIEW_SETS, *([] if self.single else [AUTO])])(ctx, param, incomplete)


VIEWS, SETS = _Views(single=False), _Views(single=True)


def requests(body: Callable[..., Any]) -> Callable[..., Any]:
    """Pass `combination`, `execution` or both, as the body takes them, made of the options that the command has.

    With `--blend`, the blend is that of blend.json in the workspace, which is then the first argument.
    """

    @wraps(body)
    def wrapped(*args: Any, blend: bool = False, members: str = "", **kwargs: Any) -> Any:
        from dataclasses import fields

        from toolkit.blending import oof
        from toolkit.blending.combination import Combination
        from toolkit.inference.execution import Execution

        given = [name for name in ("weights", "vote") if kwargs.get(name, "soft") not in ("", "soft")]
        if blend and given:
            raise click.UsageError(f"--blend says weights and vote: leave {' and '.join(f'--{name}' for name in given)} out.")
        kwargs |= {"members": tuple(name for name in members.split(",") if name)}
        kwargs |= {"blend": oof.read_blends(args[0])} if blend else {}
        requests = {}
        for kind in (Combination, Execution):
            own = {field.name: kwargs.pop(field.name) for field in fields(kind) if field.name in kwargs}
            requests[kind.__name__.lower()] = kind(**own)
        wanted = inspect.signature(body).parameters
        return body(*args, **{name: request for name, request in requests.items() if name in wanted}, **kwargs)

    return wrapped


def settled_views(
    competition: Competition, paths: Sequence[Path], combination: Combination, execution: Execution, *, check: bool
) -> tuple[Combination, dict[str, Any]]:
    """The request after `auto` was replaced by a choice and sets that were named were checked; and what predictions say of it.

    Where none are named, views are those that a blend was made with.
    """
    from dataclasses import replace

    from toolkit.blending import oof
    from toolkit.cli.progress import bar
    from toolkit.ensemble import tta
    from toolkit.inference.store.retention import Keeping

    if combination.tta == "none" and combination.blend:
        combination = replace(combination, tta=oof.views_of(combination.blend))
    if combination.tta == "none":
        return combination, {}
    with bar("Judging views") as progress:
        judging = replace(execution, precision="fp32", keeping=Keeping(), deadline=None, progress=progress)
        settled = tta.resolve(competition, paths, combination, judging, check=check)
    for line in settled.warnings:
        aside(f"Warning: {line}")
    return replace(combination, tta=settled.tta), {"tta": settled.record}


def engine(body: Callable[..., Any]) -> Callable[..., Any]:
    """Pass `device`, `precision` and `min_agreement`: where models run, in what, and how many labels that must leave."""

    @click.option("--device", type=click.Choice([AUTO, *PROVIDERS]), default=AUTO, show_default=True, help="auto: the fastest.")
    @click.option(
        "--precision",
        type=click.Choice([*PRECISIONS, AUTO]),
        default="fp32",
        show_default=True,
        help="Less than fp32 is compared with it on held-out images first; auto: the fastest that passes.",
    )
    @click.option(
        "--min-agreement",
        type=click.FloatRange(0, 1),
        default=0.99,
        show_default=True,
        help="The share of held-out images whose labels a reduced precision must leave as they are.",
    )
    @wraps(body)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return body(*args, **kwargs)

    return wrapped


def settled_engine(
    competition: Competition | None,
    paths: Sequence[Path],
    execution: Execution,
    *,
    min_agreement: float,
    members: Sequence[str] = (),
    limit: int | None = None,
) -> tuple[Execution, dict[str, Any]]:
    """The request after `auto` was replaced by a choice and a precision compared; and what predictions say of it."""
    from dataclasses import replace

    from toolkit.cli.progress import bar
    from toolkit.inference import engine_choice

    if competition is None:
        raise DataError(
            "a reduced precision is compared with fp32 on a workspace's images, and this is none", hint="Use --precision fp32."
        )
    with bar("Preparing models") as progress:
        told = replace(execution, progress=progress)
        engine = engine_choice.settle(competition, paths, told, members=members, limit=limit, min_agreement=min_agreement)
    return engine.applied(execution), {"engine": engine.record}


def announce(growth: Growth) -> None:
    """Say how much the store may grow, and which options make it less."""
    from toolkit.inference.store.retention import HALVED, MERGED

    flags = {(HALVED,): "--keep-as float16", (MERGED,): "--keep folds", (HALVED, MERGED): "both"}
    less = ", ".join(f"{flags[way]}: {size / 1e9:,.1f}" for way, size in growth.smaller.items())
    aside(f"The store may grow by {growth.size / 1e9:,.1f} GB ({less or '--keep none removes it in the end'})")


def workspace(body: Callable[..., Any]) -> Callable[..., Any]:
    """Pass the competition of the current workspace (or of --workspace) as the first argument."""

    @click.pass_context
    @wraps(body)
    def wrapped(ctx: click.Context, *args: Any, **kwargs: Any) -> Any:
        from toolkit.workspace.competition import Competition

        return ctx.invoke(body, Competition.find(ctx.obj), *args, **kwargs)

    return wrapped


def workspace_if_any(body: Callable[..., Any]) -> Callable[..., Any]:
    """As `workspace`, but None where there is none and none was named."""

    @click.pass_context
    @wraps(body)
    def wrapped(ctx: click.Context, *args: Any, **kwargs: Any) -> Any:
        from pathlib import Path

        from toolkit.workspace.competition import FILE, Competition

        here = Path.cwd()
        there = ctx.obj is not None or any((folder / FILE).is_file() for folder in (here, *here.parents))
        return ctx.invoke(body, Competition.find(ctx.obj) if there else None, *args, **kwargs)

    return wrapped


def as_json(body: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command a `--json`: its body returns (plain values, parts to show), or yields several, shown as they come.

    With `--json` the values are printed as one object at the end; an error joins what was done before it. Exit code 1 where
    they say that something is not `ok`.
    """

    @click.option("--json", "machine", is_flag=True, help="Print one JSON object, also for errors.")
    @wraps(body)
    def wrapped(*args: Any, machine: bool, **kwargs: Any) -> None:
        whole: dict[str, Any] = {}
        try:
            found = body(*args, **kwargs)
            for record, parts in [found] if isinstance(found, tuple) else found:
                whole |= record
                if not machine:
                    show(*([parts] if isinstance(parts, str | Table) else parts))
        except (ToolkitError, OSError) as cause:
            if not machine:
                raise
            error = sentence(cause)
            from toolkit.cli.advice import hint as advised

            problems = whole.get("problems", []) + [problem.record for problem in getattr(error, "problems", ())]
            whole |= {"ok": False, "error": error.message, "hint": advised(error), "problems": problems}
        if machine:
            click.echo(to_json({"ok": True} | whole))
        if whole.get("ok") is False:
            raise click.exceptions.Exit(1)

    return wrapped


def passed_on(ctx: click.Context, group: click.Group, *, machine: bool) -> None:
    """Let `--json` before a subcommand mean what it means behind it."""
    if machine:
        ctx.default_map = {name: {"machine": True} for name in group.commands}


def passes(body: Callable[..., Any]) -> Callable[..., Any]:
    """Pass `labels_only`, `deadline` (seconds or None) and `keeping`: which passes are made, until when, and what stays."""

    @click.option("--labels-only", is_flag=True, help="Labels, no probabilities: passes that cannot change one are left out.")
    @click.option("--deadline", default="", metavar="8h30m", help="When to stop: models that are through by then are combined.")
    @click.option(
        "--keep",
        type=click.Choice(["views", "folds", "none"]),
        default="views",
        show_default=True,
        help="What the store keeps: a row per view, one merged row per model, or nothing once the predictions are written.",
    )
    @click.option(
        "--keep-as",
        type=click.Choice(["float32", "float16"]),
        default="float32",
        show_default=True,
        help="How; float16 takes half the space and rounds probabilities by up to 2.5e-4.",
    )
    @wraps(body)
    def wrapped(*args: Any, deadline: str, keep: Any, keep_as: str, **kwargs: Any) -> Any:
        from toolkit.base.durations import seconds
        from toolkit.inference.store.retention import Keeping

        limit = seconds(deadline) if deadline else None
        return body(*args, deadline=limit, keeping=Keeping(keep, keep_as), **kwargs)

    return wrapped


def aside(text: str) -> None:
    """Say something beside the results, on stderr."""
    show(*text.splitlines(), err=True)


def tables(body: Callable[..., Any]) -> Callable[..., Any]:
    """Pass the competition (of the workspace, or made of --truth) first, and as `reading` how others' tables are read."""
    from pathlib import Path

    from toolkit.base.text.text_forms import TextForm
    from toolkit.core.metrics import METRICS

    @click.option("--metric", type=click.Choice(list(METRICS)), metavar="NAME", help="Another than the competition's.")
    @click.option("--truth", type=click.Path(path_type=Path, dir_okay=False), help="True labels: needs no workspace.")
    @click.option("--label", default="", help="Which column of --truth is the label (a,b,c: one of 0 and 1 per class).")
    @click.option("--group", default="", help="Which column of --truth names the group of a row.")
    @click.option("--id", "key", default="", help="The id column of tables made elsewhere.")
    @click.option("--columns", default="", help="Which of their names is which class: p0=cat,p1=dog.")
    @click.option("--logits", is_flag=True, help="Values that are no probabilities are logits.")
    @click.option("--encoding", default="", help="That of CSV files, where their bytes do not say it: cp949, cp1252, utf-16.")
    @click.option("--delimiter", default="", help="The mark between their cells, where it is not clear: ';', $'\\t'.")
    @click.pass_context
    @wraps(body)
    def wrapped(ctx: click.Context, *args: Any, **kwargs: Any) -> Any:
        from toolkit.blending import outside_tables

        said = {name: kwargs.pop(name) for name in ("metric", "truth", "label", "group")}
        columns, key, logits = (kwargs.pop(name) for name in ("columns", "key", "logits"))
        form = TextForm(kwargs.pop("encoding"), kwargs.pop("delimiter"))
        reading = outside_tables.Reading(outside_tables.pairs(columns, "--columns"), key, logits, form)
        competition = outside_tables.competition_of(ctx.obj, key=key, form=form, **said)
        return ctx.invoke(body, competition, *args, reading=reading, **kwargs)

    return wrapped
