"""The program of a bundle: run.py and the modules of this package behind it, found by following their imports."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

START = "toolkit.submissions.bundle.run"  # what a bundle runs; a contract in pyproject.toml says what it may not lead to
PACKAGE = Path(__file__).parents[2]


def copy(folder: Path) -> None:
    """Put run.py and the modules behind it into a folder, as they are here; packages keep nothing but their sentence."""
    for name in modules():
        target = folder / source(name).relative_to(PACKAGE.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source(name), target)
    for name in packages():
        sentence = ast.get_docstring(ast.parse(source(name).read_text(encoding="utf-8"))) or ""
        init = folder / source(name).relative_to(PACKAGE.parent)
        init.write_text(f'"""{sentence}"""\n', encoding="utf-8")
    (folder / "run.py").write_text(RUN, encoding="utf-8")


def modules() -> list[str]:
    """The modules of this package that a bundle needs, dotted, without the packages that they stand in."""
    needed: set[str] = set()
    waiting = [START]
    while waiting:
        name = waiting.pop()
        if name not in needed and not source(name).match("__init__.py"):
            needed.add(name)
            waiting += _imported(source(name))
    return sorted(needed)


def packages() -> list[str]:
    """The packages that `modules` stand in, dotted."""
    words = [name.split(".") for name in modules()]
    return sorted({".".join(name[:depth]) for name in words for depth in range(1, len(name))})


def source(name: str) -> Path:
    """The file of a module or package of ours by its dotted name."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imported(path: Path) -> list[str]:
    """Our modules that a file imports, also inside functions; names that only type checkers see do not count."""
    names = []
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "toolkit":
            home = node.module or ""
            names += [home, *(f"{home}.{alias.name}" for alias in node.names if source(f"{home}.{alias.name}").exists())]
        waiting += ast.iter_child_nodes(node)
    return names


RUN = '''"""Predict a hidden test set without network: python run.py --test DIR --sample FILE --out submission.csv."""

import functools
import json
import os
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path

STARTED = time.monotonic()
FOLDER = Path(__file__).resolve().parent


def unpack(where: Path) -> None:
    """Wheels are zip files: unpacked aside they serve this run and leave the environment as it is."""
    for wheel in sorted((FOLDER / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(where)
    for folder in map(Path, sys.path):  # onnxruntime looks for the CUDA libraries of other packages beside itself
        if (folder / "nvidia").is_dir() and not (where / "nvidia").exists():
            (where / "nvidia").symlink_to(folder / "nvidia")
    sys.path.insert(0, str(where))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(where), os.environ.get("PYTHONPATH", "")]))


def fits() -> bool:
    """Whether there are wheels, and this is the Python that they are for."""
    wanted = json.loads((FOLDER / "bundle.json").read_text(encoding="utf-8"))["python"]
    ours = "{}.{}".format(*sys.version_info)
    if any((FOLDER / "wheels").glob("*.whl")) and ours != wanted:
        print(f"Warning: the wheels are for Python {wanted}, this is {ours}: using what is installed", flush=True)
        return False
    return True


def main() -> int:
    arguments = sys.argv[1:]
    aside = Path(tempfile.mkdtemp(prefix="wheels-"))
    try:
        if arguments[:1] != ["--worker"] and fits():
            unpack(aside)
        try:
            from toolkit.submissions.bundle.run import main as run
        except ModuleNotFoundError as error:
            print(f"Error: {error.name} is missing\\nHint: pip install onnxruntime numpy pillow, or bundle with wheels.")
            return 1
        return run(FOLDER, arguments, functools.partial(print, flush=True), STARTED)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


sys.exit(main())
'''
