"""Recipes that come with the package: which there are and where they lie."""

from __future__ import annotations

from pathlib import Path

from toolkit.base import files
from toolkit.errors import DataError


def recipe_names() -> tuple[str, ...]:
    """The names of the recipes, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.py") if not path.stem.startswith("_")))


def recipe_path(name: str) -> Path:
    """The file of a recipe.

    Raises:
        DataError: there is none of that name; the message lists them.
    """
    if name not in recipe_names():
        raise DataError(f"there is no recipe {name!r}", hint=f"There are: {', '.join(recipe_names()) or 'none'}.")
    return _folder() / f"{name}.py"


def copy_recipe(name: str, workspace: Path, *, force: bool = False) -> Path:
    """Copy a recipe into the workspace's own `recipes`, there to be changed.

    Raises:
        DataError: no such recipe, or the copy exists and `force` is not set.
    """
    source, path = recipe_path(name), workspace / "recipes" / f"{name}.py"
    if path.exists() and not force:
        raise DataError(f"{path} exists", hint="Copying it again loses your changes to it.", code="recipe-exists")
    return files.write(path, lambda file: file.write(source.read_bytes()))


def _folder() -> Path:
    """Inside the package where it was installed from a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "_recipes"
    return inside if inside.is_dir() else package.parent / "recipes"
