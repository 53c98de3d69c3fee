"""The README is true: its tables are what the code says. `python tests/house/test_docs.py` writes them."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
KIT = ROOT / "recipes" / "README.md"

KINDS = (Path("recipes"), Path("tests"), Path("benchmarks"))


def first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]


def commands() -> str:
    from toolkit.cli import STAGES

    rows = [f"| {stage} | `toolkit {name}` | {text} |" for stage, found in STAGES.items() for name, text in found.items()]
    return "\n".join(["| stage | command | what it does |", "|---|---|---|", *rows])


def registries() -> str:
    from toolkit.blending.plan_selection import CALIBRATIONS
    from toolkit.blending.weighers import WEIGHERS
    from toolkit.core.metrics import METRICS
    from toolkit.core.voting import VOTES
    from toolkit.images.views import VIEW_SETS
    from toolkit.runtime.devices import PRECISIONS, PROVIDERS
    from toolkit.submissions.checks import CODES
    from toolkit.submissions.form.formats import FORMATS
    from toolkit.training.parts.losses import LOSSES
    from toolkit.training.parts.schedules import SCHEDULES

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
    shown = sorted((ROOT / "toolkit").rglob("__init__.py"))
    for folder in KINDS:
        shown += sorted(path for path in (ROOT / folder).glob("*.py") if folder.name != "tests" or path.name == "conftest.py")
    lines += [f"| `{path.relative_to(ROOT)}` | {first_line(path)} |" for path in shown]
    lines.append("| `exports/` | Where recipes put their workspaces; ignored by git. |")
    return "\n".join(lines)


def sourced() -> list[tuple[str, str, str]]:
    """Kind, name and source of every loss, schedule and preset."""
    from toolkit.training.parts.augment import PRESETS
    from toolkit.training.parts.losses import LOSSES
    from toolkit.training.parts.schedules import SCHEDULES, WARMUP

    rows = [("loss", name, loss.source) for name, loss in LOSSES.items()]
    rows += [("schedule", name, schedule.source) for name, schedule in SCHEDULES.items()]
    rows += [("schedule", "warmup", WARMUP)]
    return rows + [("augmentation", name, preset.source) for name, preset in PRESETS.items() if preset]


def sources() -> str:
    from toolkit.training.parts.losses import LOSSES
    from toolkit.training.parts.schedules import SCHEDULES

    every = {**LOSSES, **SCHEDULES}
    lines = ["| kind | name | options | source |", "| --- | --- | --- | --- |"]
    for kind, name, source in sourced():
        options = ", ".join(f"`{key}={value:g}`" for key, value in every[name].options.items()) if name in every else ""
        lines.append(f"| {kind} | `{name}` | {options} | {source} |")
    return "\n".join(lines)


BLOCKS = {"commands": commands, "registries": registries, "files": files, "sources": sources}
PAGES = {"sources": KIT}  # the others stand in README.md


def block(name: str, text: str) -> str:
    return re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", text, re.DOTALL)[1]


@pytest.mark.parametrize("name", BLOCKS)
def test_the_tables_are_what_the_code_says(name):
    page = PAGES.get(name, README).read_text(encoding="utf-8")
    assert block(name, page) == BLOCKS[name](), "run: uv run python tests/house/test_docs.py"


@pytest.mark.parametrize(("kind", "name", "source"), [pytest.param(*row, id=" ".join(row[:2])) for row in sourced()])
def test_every_loss_schedule_and_preset_has_a_paper(kind, name, source):
    assert re.search(r"[A-Z][\w-]+.* (19|20)\d\d\b", source), source


def kit() -> list[tuple[str, str, str]]:
    """The rows of the kit's table: what, where, proved by."""
    lines = block("kit", KIT.read_text(encoding="utf-8")).splitlines()[2:]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    return [row for row in rows if not row[0].startswith("**")]


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def options_of(words: list[str]) -> set[str]:
    """The flags of a recipe, or of a command of the toolkit."""
    from tests.recipes.test_recipes import load

    if words[0] == "toolkit":
        command = importlib.import_module(f"toolkit.cli.commands.{words[1]}").command
    else:
        command = load(ROOT / "recipes" / words[0]).main
    return {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("row", [pytest.param(row, id=row[0]) for row in kit()])
def test_what_the_kits_table_names_is_there(row):
    _, where, proofs = row
    known: set[str] = set()
    for words in map(str.split, spans(where)):
        if words[0] == "toolkit" or (ROOT / "recipes" / words[0]).is_file():
            known = options_of(words)
        flags = [word for word in words if word.startswith("--")]
        assert set(flags) <= known, (flags, where)
    assert known, f"{where} names no recipe and no command"
    assert spans(proofs)
    for proof in spans(proofs):
        file, _, function = proof.partition("::")
        module = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}, proof


def command_lines() -> list[tuple[str, list[str]]]:
    """Where `python recipes/NAME.py …` stands in docstrings and READMEs, and its words from NAME.py on."""
    import shlex

    texts = {
        path.name: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for path in (ROOT / "recipes").glob("*.py")
    }
    texts |= {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (README, KIT)}
    found = []
    for where, text in texts.items():
        for line in re.findall(r"python recipes/([\w]+\.py(?: [^#`\n]*)?)", text):
            found.append((where, shlex.split(re.split(r"\s{2,}", line.rstrip(" &"))[0])))
    return found


@pytest.mark.parametrize(
    ("where", "words"), [pytest.param(*one, id=f"{one[0]}: {' '.join(one[1])}") for one in command_lines()]
)
def test_command_lines_are_ones_that_recipes_take(where, words):
    from tests.recipes.test_recipes import load

    load(ROOT / "recipes" / words[0]).main.make_context(words[0], [word for word in words[1:] if word != "--help"])


def test_the_kits_table_names_every_flag_of_the_recipe_for_any_workspace():
    shown = {word for _, where, _ in kit() for span in spans(where) for word in span.split()}
    flags = options_of(["timm_kfold.py"])
    assert {flag for flag in flags if flag not in shown and f"--no-{flag[2:]}" not in shown and flag[:5] != "--no-"} == set()


def test_summaries_are_the_commands_own_first_sentences():
    from toolkit.cli import STAGES

    for found in STAGES.values():
        for name, text in found.items():
            command = importlib.import_module(f"toolkit.cli.commands.{name}").command
            assert " ".join(command.help.split("\n\n")[0].split()) == text, name
    there = {path.stem for path in (ROOT / "toolkit" / "cli" / "commands").glob("*.py")} - {"__init__"}
    assert there == {name for found in STAGES.values() for name in found}


def test_every_option_has_words():
    from toolkit.cli import STAGES

    for found in STAGES.values():
        for name in found:
            for parameter in importlib.import_module(f"toolkit.cli.commands.{name}").command.params:
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


def test_nothing_tells_people_to_install_a_package_of_our_name():
    """An index has a package called toolkit, and it is not ours: extras are named by a checkout's own command."""
    pages = [README, KIT, *(ROOT / "docs").glob("*.md"), *(ROOT / "toolkit").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    assert not [str(path) for path in pages if re.search(r"install [^\n]*\btoolkit\[", path.read_text(encoding="utf-8"))]


def test_every_claim_of_the_security_page_names_a_test_that_is_there():
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    claims = [line for line in page.partition("| held by |")[2].partition("\n\n")[0].splitlines() if line.startswith("| ")]
    assert len(claims) > 10
    assert not [line for line in claims if "::test_" not in line.rpartition(" | ")[2]]
    where = ""
    for path, name in re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", page):
        where = path or where
        assert f"def {name}(" in (ROOT / where).read_text(encoding="utf-8"), (where, name)


if __name__ == "__main__":
    for name, make in BLOCKS.items():
        path = PAGES.get(name, README)
        page = path.read_text(encoding="utf-8")
        page = re.sub(
            rf"(<!-- {name} -->\n).*?\n?(<!-- /{name} -->)",
            lambda m, make=make: m[1] + make() + "\n" + m[2],
            page,
            flags=re.DOTALL,
        )
        path.write_text(page, encoding="utf-8")
