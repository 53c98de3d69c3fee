"""The house: import contracts hold, light commands stay light, the public names are there."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from toolkit.cli import cli

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "toolkit"
LINT = Path(sys.executable).parent / "lint-imports"


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if "_recipes" not in path.parts)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, typing: bool = False):
    """(module, name) of every import of a file, also inside functions; without those under TYPE_CHECKING unless asked for."""
    tree = parsed(path)
    hidden = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing:
            hidden |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def test_contracts():
    """Layers, cycles, independence of commands, owners of heavy packages, what bundles carry: the contracts of pyproject.toml."""
    done = subprocess.run([LINT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_imports_recipes_and_recipes_do_not_import_each_other():
    names = {path.stem for path in (ROOT / "recipes").glob("*.py")}
    for path in [*modules(), *(ROOT / "recipes").glob("*.py")]:
        for module, _ in imports(path, typing=True):
            assert module.split(".")[0] not in names | {"recipes"}, f"{path} imports {module}"


def test_a_command_body_is_thin():
    for path in (PACKAGE / "cli" / "commands").glob("*.py"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef) and node.name == "command":
                lines = node.end_lineno - node.body[1].lineno + 1
                assert lines <= 20, f"{path.name}: {lines} lines"
                assert not any(isinstance(inner, ast.Try) for inner in ast.walk(node)), f"{path.name} catches errors itself"


def loaded_after(code: str, *arguments: str, cwd: Path | None = None) -> set[str]:
    script = f"import sys\n{code}\nprint('LOADED', *sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=cwd, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("LOADED")]
    assert lines, done.stderr
    return set(lines[-1].split())


RUN = "from toolkit.cli import cli\ncli(sys.argv[1:], standalone_mode=False)"
HEAVY = {"torch", "timm", "onnx", "onnxruntime", "pandas", "numpy", "PIL", "torchvision", "pyarrow", "rich"}


def test_help_loads_nothing_heavy():
    assert not loaded_after(RUN.replace("cli(", "cli.main("), "--help") & HEAVY


def test_light_commands_load_no_torch(workspace, folds):
    done = CliRunner().invoke(cli, ["ensemble", "folds/*.onnx", "--tta", "flip"])
    assert done.exit_code == 0, done.output
    for arguments in (["ensemble", "folds/*.onnx", "--tta", "hflip", "--vote", "hard"], ["submit"], ["inspect", "folds"]):
        loaded = loaded_after(RUN, *arguments, cwd=workspace)
        assert not loaded & {"torch", "timm", "onnxruntime", "torchvision", "rich"}, arguments
    (workspace / "split.csv").unlink()
    (workspace / "competition.toml").unlink()
    for arguments in (["init", "--metric", "accuracy"], ["split", "--folds", "3"]):
        assert not loaded_after(RUN, *arguments, cwd=workspace) & {"torch", "timm", "onnx", "onnxruntime"}, arguments


def test_the_package_costs_nothing_to_import():
    assert not loaded_after("import toolkit\ndir(toolkit)") & HEAVY


def test_every_public_name_is_there():
    import toolkit

    for name in toolkit.__all__:
        assert getattr(toolkit, name) is not None
    with pytest.raises(AttributeError, match="wings"):
        _ = toolkit.wings


def test_every_dependency_can_be_imported_beside_the_others():
    for name in ("torch", "torchvision", "torchcodec.decoders", "timm", "onnx", "onnxscript", "onnxruntime", "ttach", "numpy"):
        assert __import__(name)
    for name in ("pandas", "pyarrow.parquet", "click", "rich", "sklearn", "iterstrat.ml_stratifiers", "pytorch_lightning"):
        assert __import__(name)
