"""The house: imports go up, heavy packages have owners, light commands stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "toolkit"

# a module imports only from those before it
ORDER = """
    errors quiet files csvs classmaps markup printing boxes items
    metrics cards predictions patterns targets longform competition fixes folds splitting
    views voting stopping objectives optima blending calibration combining selection judging payoff
    pixels images limits graphs wrapping sharing merging
    providers precision units ortsessions ovsessions sessions quantising
    tables sources indexes fitting scoring diagnosing store timings
    checks delimited formats manifests mixing ledger sense evidence submissions
    userfiles networks checkpoints exporting conversion foreign adopting
    keeping inference members differences trials runners spreading engines
    deciding staging ensembling upkeep predicting fusing tta planning verifying
    uploading plaincsv shards bundled offline wheels bundling
    deduction locating discovery shipped digits portraits training soups demo diagnosis
    comparing twins audits measuring surveying explaining traces reporting reports
    cli
""".split()  # noqa: SIM905 - a layer a line

OWNERS = {
    "torchcodec": {"pixels"},
    "torchvision": {"images", "networks", "training"},
    "PIL": {"pixels", "images", "digits", "portraits", "training", "diagnosis", "explaining", "reports"},
    "ttach": {"views"},
    "onnxruntime": {"ortsessions", "precision", "quantising", "exporting", "shards"},
    "openvino": {"ovsessions"},
    "onnx": {"limits", "graphs", "wrapping", "sharing", "precision", "quantising", "merging", "diagnosis"},
    "timm": {"conversion", "networks", "training"},
    "pytorch_lightning": {"training"},
    "safetensors": {"checkpoints"},
    "jinja2": {"reports"},
    "matplotlib": {"reports", "training"},
    "click": {"cli"},
    "rich": {"cli", "printing"},
    "sklearn": {"folds", "digits", "blending", "calibration"},
    "iterstrat": {"folds"},
    "tensorboard": {"training"},
    "wandb": {"training"},
    "optuna": {"training"},
}


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if "_recipes" not in path.parts)


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, typing: bool = False):
    """(module, name) of every import of a file, also inside functions; without those under TYPE_CHECKING unless asked for."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
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


def ours(path: Path):
    for module, name in imports(path, typing=True):
        parts = module.split(".")
        if parts[0] == "toolkit":
            target = parts[1] if len(parts) > 1 else name
            if target != "__version__":
                yield target


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_up(path):
    home = layer(path)
    if home in ("__init__", "__main__"):
        return
    assert home in ORDER, f"{path} has no place in the order of layers"
    for target in ours(path):
        assert target in ORDER, f"{path} imports {target}"
        assert ORDER.index(target) < ORDER.index(home) or target == home, f"{home} imports {target}, which comes after it"


def test_commands_do_not_import_each_other():
    shared = {"completion", "options", "progress", "summaries", "terminal", "recipes", "__init__"}
    for path in (PACKAGE / "cli").glob("*.py"):
        for module, name in imports(path, typing=True):
            if module.startswith("toolkit.cli"):
                target = module.split(".")[2] if module.count(".") >= 2 else name
                assert target in shared or module == "toolkit.cli", f"{path.name} imports {target}"


@pytest.mark.parametrize("package", OWNERS)
def test_heavy_packages_have_owners(package):
    users = {layer(path) for path in modules() for module, _ in imports(path) if module.split(".")[0] == package}
    assert users <= OWNERS[package]


def test_nothing_imports_recipes_and_recipes_do_not_import_each_other():
    names = {path.stem for path in (ROOT / "recipes").glob("*.py")}
    for path in [*modules(), *(ROOT / "recipes").glob("*.py")]:
        for module, _ in imports(path, typing=True):
            assert module.split(".")[0] not in names | {"recipes"}, f"{path} imports {module}"


def test_a_command_body_is_thin():
    for path in (PACKAGE / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
    run = [sys.executable, "-m", "toolkit", "ensemble", "folds/*.onnx", "--tta", "flip"]
    subprocess.run(run, check=True, cwd=workspace, capture_output=True)
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
