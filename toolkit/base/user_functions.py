"""Functions of the user's own, named "file.py:function": found, run, and what goes wrong in them said with its line."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from toolkit.base import files
from toolkit.errors import ModelError, ToolkitError

_MODULE = "_user_"  # begins the names of modules made of users' files


def user_function(place: str) -> Callable[..., Any]:
    """The function that "file.py:function" names; what it raises becomes a sentence that names its line.

    Raises:
        ModelError: there is no such file or function, or the file cannot be run.
    """
    path, _, name = place.rpartition(":")
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise ModelError(f"{path} does not exist", hint="Name a Python file and a function in it: file.py:function.")
    module_name = f"{_MODULE}{files.sha256(file)[:16]}"  # one module per content, so that a changed file is read again
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise ModelError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    module = sys.modules[module_name]
    function = getattr(module, name, None)
    if not callable(function):
        there = [word for word, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
        raise ModelError(f"{path} has no function {name!r}", hint=f"It has: {', '.join(there)}." if there else "")
    return explained(function, place)


def explained(function: Callable[..., Any], place: str) -> Callable[..., Any]:
    """A user's function whose errors say where in their file they came from; `place` is "file.py:function".

    Raises:
        ModelError: when it is called and fails, but for want of memory, which others know how to answer.
    """

    @wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except (ToolkitError, MemoryError):
            raise
        except Exception as error:
            if "memory" in str(error).lower():
                raise
            raise ModelError(f"{place}{_line(error)} failed: {type(error).__name__}: {first_line(error)}") from error

    return called


def _line(error: BaseException) -> str:
    """`, line 7,` for the innermost line of a user's file that an error passed through."""
    import traceback

    own = {module.__file__ for name, module in list(sys.modules.items()) if name.startswith(_MODULE)}
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in own]
    return f", line {lines[-1]}," if lines else ""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
