"""The `toolkit` command: one file per command, loaded when it is called; errors become sentences in one place."""

from __future__ import annotations

import importlib
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

from toolkit import __version__
from toolkit.errors import SubmissionError, ToolkitError

# stage → command → what it does: kept here so that --help loads no command; a test holds it equal to their docstrings
STAGES: dict[str, dict[str, str]] = {
    "Start": {
        "demo": "Run the whole job on real handwritten digits, from images to a checked submission.",
        "init": "Write competition.toml by looking at a folder.",
        "doctor": "Say what this machine can run, what does not fit together, and the cure.",
    },
    "Train": {
        "split": "Make split.csv: stratified folds, grouped where there are groups.",
        "audit": "Look for leaks, pictures that are there twice and labels that look wrong; see reports/audit.html.",
        "export": "Turn a checkpoint into a self-contained .onnx with a card, proved equal to the model.",
        "soup": "Average the weights of several checkpoints of one fold, judged on its held-out rows before and after.",
        "adopt": "Take in a classifier that others exported: any layout, element type, batch or output, with a card.",
        "inspect": "Print what exports say about themselves.",
        "fuse": "Make one self-contained .onnx of fold models, views, weights and mean, proved equal to the ensemble.",
    },
    "Judge": {
        "compare": "Compare training runs: which settings differ, the scores of each, and whether one is better.",
        "score": "Score out-of-fold tables on the competition's metric, with a 95 % interval and fold by fold.",
        "diagnose": "Look for permuted classes, copies, odd folds and idle members in out-of-fold tables.",
        "blend": "Learn members' weights from out-of-fold tables and write blend.json: the mean unless more is certain.",
        "tta": "Judge views on held-out images: score, gain with interval, answers won and lost, and the set that pays.",
    },
    "Predict": {
        "plan": "Find the members, views and precision with the best score that predict the test images in a given time.",
        "ensemble": "Predict the test images with every fold model and view, and combine them by vote.",
        "predict": "Predict any images with any models and write one table, or one per model.",
        "store": "Show what the prediction store holds; compact or prune it.",
    },
    "See": {
        "eda": "Look at the data and write reports/eda.html: classes, files, pixels, shift, and what to do about them.",
        "report": "Show how good the ensemble is, where it errs and why, in reports/report.html.",
        "explain": "Show what every fold model and view says of one image, and which parts of it the answer rests on.",
    },
    "Submit": {
        "submit": "Check the predictions against the sample submission and write submission.csv.",
        "verify": "Compare a submission and all it was made of with its manifest.",
        "submissions": "List the submissions kept in submissions/ with their scores.",
        "bundle": "Pack an ensemble into one folder that predicts a hidden test set without network.",
    },
}

INTERRUPTED = 130


class _Explained(click.ClickException):
    """A ToolkitError as the person at the terminal sees it: what is wrong, every problem found, what to do."""

    def __init__(self, error: ToolkitError) -> None:
        super().__init__(error.message)
        self.error = error

    def show(self, file: Any = None) -> None:
        from toolkit.base.text.printing import Mark
        from toolkit.cli.advice import hint as advised
        from toolkit.cli.terminal import show

        said = [Mark(line, "bad") for line in f"Error: {self.error.message}".splitlines()]
        problems = self.error.problems if isinstance(self.error, SubmissionError) else ()
        text = advised(self.error)
        hint = f"Hint: {text}".splitlines() if text else []
        show(*said, *(f"  {problem}" for problem in problems), *hint, err=True)


def sentence(error: ToolkitError | OSError | MemoryError) -> ToolkitError:
    """What the system refused, as an error of ours; ours as they are."""
    if isinstance(error, ToolkitError):
        return error
    if isinstance(error, MemoryError):
        kept = "Finished work is kept: end what else needs memory, or use smaller images or batches, and run it again."
        return ToolkitError(f"memory ran out: {error}" if str(error) else "memory ran out", hint=kept)
    return ToolkitError((f"{error.filename}: " if error.filename else "") + str(error.strerror or error))


def _say_usage(ctx: click.Context, error: click.UsageError) -> None:
    """Where `--json` is among the words, say as JSON why they cannot be read, and end."""
    if ctx.meta["toolkit.json"]:
        from toolkit.base.text.printing import to_json

        usage = error.ctx.get_usage() if error.ctx else ""
        click.echo(to_json({"ok": False, "error": error.format_message(), "hint": usage, "problems": []}))
        ctx.exit(error.exit_code)


class Explaining(click.Command):
    """A command under which a user's mistake is a sentence and exit code 1, and an interrupt exit code 130: no traceback."""

    kept = "Finished work is kept"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words; whether `--json` is among them is kept, for the words that cannot be read."""
        ctx.meta.setdefault("toolkit.json", "--json" in args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            _say_usage(ctx, error)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            _say_usage(ctx, error)
            raise
        except KeyboardInterrupt:
            click.echo(f"\nInterrupted. {self.kept}: run the same command again to go on.", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            raise
        except (ToolkitError, OSError, MemoryError) as error:
            raise _Explained(sentence(error)) from error
        except UnicodeEncodeError as error:  # names of files are bytes, and text that is written is not
            shown = error.object[max(error.start - 20, 0) : error.end + 20]
            problem = ToolkitError(f"a name is not UTF-8: {shown!r}", hint="Rename that file or folder.")
            raise _Explained(problem) from error
        except ValueError as error:
            if "null byte" not in str(error) and "null character" not in str(error):
                raise
            raise _Explained(ToolkitError("a path holds a NUL, which no file's name can")) from error


class _Stages(Explaining, click.Group):
    """A group whose commands are found by name in `toolkit.cli.commands.<name>` and listed by stage."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for commands in STAGES.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"toolkit.cli.commands.{cmd_name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        import difflib

        if args and args[0] not in (names := self.list_commands(ctx)) and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], names, n=1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {close[0]!r}?" if close else ""))
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        every = ((name, text) for commands in STAGES.values() for name, text in commands.items())
        found = [CompletionItem(name, help=text) for name, text in every if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for stage, commands in STAGES.items():
            with formatter.section(stage):
                formatter.write_dl(list(commands.items()))


@click.group(cls=_Stages, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--workspace", "-C", type=click.Path(path_type=Path), help="Work there instead of in the current folder (or above it)."
)
@click.option("--json", "machine", is_flag=True, help="As behind a command: print one JSON object, also for errors.")
@click.version_option(__version__, prog_name="toolkit")
@click.pass_context
def cli(ctx: click.Context, workspace: Path | None, *, machine: bool) -> None:
    """Ensembles, test-time augmentation and model export for image-classification competitions.

    \b
    python recipes/digits.py                    train K folds, export each
    toolkit ensemble folds/*.onnx --tta flip    predict the test images
    toolkit submit                              check, then write submission.csv
    """
    ctx.obj = workspace
    if machine:
        ctx.default_map = {name: {"machine": True} for commands in STAGES.values() for name in commands}


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an encoding without Hangul is no reason to stop
    cli(prog_name="toolkit")
