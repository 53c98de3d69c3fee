"""The README is true: its tables are what the code says. `python tests/test_docs.py` writes them."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

KINDS = (Path("recipes"), Path("tests"), Path("benchmarks"))


def first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]


def commands() -> str:
    from toolkit.cli import STAGES

    rows = [f"| {stage} | `toolkit {name}` | {text} |" for stage, found in STAGES.items() for name, text in found.items()]
    return "\n".join(["| stage | command | what it does |", "|---|---|---|", *rows])


def registries() -> str:
    from toolkit.blending import WEIGHERS
    from toolkit.checks import CODES
    from toolkit.formats import FORMATS
    from toolkit.judging import CALIBRATIONS
    from toolkit.metrics import METRICS
    from toolkit.sessions import PRECISIONS, PROVIDERS
    from toolkit.training.losses import LOSSES
    from toolkit.training.schedules import SCHEDULES
    from toolkit.views import VIEW_SETS
    from toolkit.voting import VOTES

    def listed(names):
        return ", ".join(f"`{name}`" for name in names)

    views = "; ".join(f"`{name}`: {', '.join(found)}" for name, found in VIEW_SETS.items())
    up, down = ([name for name, m in METRICS.items() if m.higher_is_better == best] for best in (True, False))
    alone, many = ([name for name, loss in LOSSES.items() if loss.multilabel == several] for several in (False, True))
    rows = [
        ("view sets (`--tta`)", views),
        ("votes (`--vote`)", listed(VOTES)),
        ("weighers (`toolkit blend --weigher`)", listed(name for name in WEIGHERS if name != "stacking")),
        ("calibrations (`toolkit blend --calibrate`)", listed(filter(None, CALIBRATIONS))),
        ("metrics", f"higher is better: {listed(up)}; lower is better: {listed(down)}"),
        ("losses", f"one class per row: {listed(alone)}; several: {listed(many)}"),
        ("schedules", listed(SCHEDULES)),
        ("submission formats", listed(FORMATS)),
        ("devices (`--device`)", listed(["auto", *PROVIDERS])),
        ("precisions (`--precision`)", "; ".join([*(f"`{name}`: {text}" for name, text in PRECISIONS.items()), "`auto`"])),
    ]
    table = ["| what | choices |", "|---|---|", *(f"| {what} | {choices} |" for what, choices in rows)]
    codes = ["| code | severity | what | cure |", "|---|---|---|---|"]
    codes += [f"| {code} | {rule.severity} | {rule.what} | {rule.hint} |" for code, rule in CODES.items()]
    return "\n".join(
        [*table, "", "<details><summary>What <code>toolkit submit</code> checks</summary>", "", *codes, "", "</details>"]
    )


def files() -> str:
    lines = ["| file | what it is |", "|---|---|"]
    shown = sorted((ROOT / "toolkit").glob("*.py"))
    shown += [ROOT / "toolkit" / name / "__init__.py" for name in ("training", "cli")]
    for folder in KINDS:
        shown += sorted(path for path in (ROOT / folder).glob("*.py") if folder.name != "tests" or path.name == "conftest.py")
    lines += [f"| `{path.relative_to(ROOT)}` | {first_line(path)} |" for path in shown]
    lines.append("| `exports/` | Where recipes put their workspaces; ignored by git. |")
    return "\n".join(lines)


BLOCKS = {"commands": commands, "registries": registries, "files": files}


def block(name: str, text: str) -> str:
    return re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", text, re.DOTALL)[1]


@pytest.mark.parametrize("name", BLOCKS)
def test_the_tables_are_what_the_code_says(name):
    assert block(name, README.read_text(encoding="utf-8")) == BLOCKS[name](), "run: uv run python tests/test_docs.py"


def test_summaries_are_the_commands_own_first_sentences():
    from toolkit.cli import STAGES

    for found in STAGES.values():
        for name, text in found.items():
            command = importlib.import_module(f"toolkit.cli.{name}").command
            assert " ".join(command.help.split("\n\n")[0].split()) == text, name
    there = {path.stem for path in (ROOT / "toolkit" / "cli").glob("*.py")}
    assert there - {name for found in STAGES.values() for name in found} == {
        "__init__",
        "options",
        "progress",
        "completion",
        "summaries",
        "terminal",
        "recipes",
    }


def test_every_option_has_words():
    from toolkit.cli import STAGES

    for found in STAGES.values():
        for name in found:
            for parameter in importlib.import_module(f"toolkit.cli.{name}").command.params:
                if parameter.param_type_name == "option" and parameter.name != "device":
                    assert parameter.help, f"{name} --{parameter.name}"


def test_the_error_tree_is_the_drawing():
    from toolkit import errors

    def drawn(cls, depth=0):
        yield "  " * depth + cls.__name__
        for child in cls.__subclasses__():
            if child.__module__ == "toolkit.errors":
                yield from drawn(child, depth + 1)

    assert list(drawn(errors.ToolkitError)) == errors.__doc__.strip().splitlines()[2:]


def raising():
    for path in sorted((ROOT / "toolkit").rglob("*.py")):
        if "_recipes" in path.parts or "cli" in path.parts:
            continue
        module = ast.parse(path.read_text(encoding="utf-8"))
        classes = [node for node in module.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        for node in (inner for scope in (module, *classes) for inner in scope.body):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield pytest.param(node, id=f"{path.relative_to(ROOT)}:{node.name}")


@pytest.mark.parametrize("node", list(raising()))
def test_public_functions_are_described_and_say_what_they_raise(node):
    said = ast.get_docstring(node)
    assert said
    own = [n for n in ast.walk(node) if isinstance(n, ast.Raise) and n.exc is not None]
    if own:
        assert "Raises:" in said


def test_the_commands_of_the_readme_exist():
    from toolkit.cli import STAGES

    known = {name for found in STAGES.values() for name in found}
    text = README.read_text(encoding="utf-8")
    for used in re.findall(r"(?:^|[`\s])toolkit ([a-z]+)\b", text):
        assert used in known | {"writes"}, used
    for path in re.findall(r"`((?:toolkit|recipes|tests|benchmarks|exports)/[\w/.*-]*)`", text):
        assert list(ROOT.glob(path.rstrip("/"))), path


if __name__ == "__main__":
    page = README.read_text(encoding="utf-8")
    for name, make in BLOCKS.items():
        page = re.sub(
            rf"(<!-- {name} -->\n).*?\n?(<!-- /{name} -->)",
            lambda m, make=make: m[1] + make() + "\n" + m[2],
            page,
            flags=re.DOTALL,
        )
    README.write_text(page, encoding="utf-8")
