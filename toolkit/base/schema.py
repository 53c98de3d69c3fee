"""One schema layer for what is read from disk: annotations say what a document may hold, and nothing else gets through.

Bundles read cards, competition.toml and bundle.json with numpy, Pillow and onnxruntime alone, so this is plain Python; a test
compares it with msgspec's strict conversion.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from toolkit.errors import counted, few


@dataclass(frozen=True)
class Range:
    """In an annotation: numbers from `low` to `high`, both included, NaN and infinity excluded."""

    low: float
    high: float


@dataclass(frozen=True)
class Size:
    """In an annotation: at most so many characters, elements or keys."""

    high: int


def checked(raw: Any, kind: Any, place: str = "") -> Any:
    """The value as an annotation has it: dataclasses are made, lists become the tuples they are declared as.

    `kind` may be made of str, int, float, bool, None, Any, Literal, unions, Annotated with Range or Size, list, tuple,
    Sequence, dict and Mapping (of text), TypedDict and dataclasses. A whole number is taken for a float, and nothing else for
    another type.

    Raises:
        ValueError: names the place and what is expected there; dataclasses raise what their own checks do.
    """
    if kind is Any:
        return raw
    origin = get_origin(kind)
    rules = ((_PLAIN, _plain), (_UNIONS, _one_of), (_LISTS, _listed), (_TABLES, _table))
    rule = _SPECIAL.get(origin) or next((rule for kinds, rule in rules if (origin or kind) in kinds), None)
    if rule is None and (typing.is_typeddict(kind) or is_dataclass(kind)):
        rule = _record
    if rule is None:
        raise TypeError(f"no rule for {kind!r}")
    return rule(raw, kind, place)


def _plain(raw: Any, kind: Any, place: str) -> Any:
    if not isinstance(raw, _PLAIN[kind]) or (isinstance(raw, bool) and kind is not bool):
        raise _wrong(raw, kind, place)
    return raw


def _limited(raw: Any, kind: Any, place: str) -> Any:
    inner, *limits = get_args(kind)
    value = checked(raw, inner, place)
    for limit in limits:
        _check_limit(value, limit, place)
    return value


def _literal(raw: Any, kind: Any, place: str) -> Any:
    if not any(type(raw) is type(value) and raw == value for value in get_args(kind)):
        raise ValueError(f"{_at(place)}one of {few(get_args(kind), limit=12)} is needed, not {shown(raw)}")
    return raw


_PLAIN: dict[Any, Any] = {str: str, int: int, float: (int, float), bool: bool, type(None): type(None), None: type(None)}
_UNIONS: tuple[Any, ...] = (Union, types.UnionType)
_LISTS: tuple[Any, ...] = (list, tuple, Sequence)
_TABLES: tuple[Any, ...] = (dict, Mapping)
_NAMES: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false", None: "nothing"}
_NAMES[type(None)] = "nothing"


def _one_of(raw: Any, kind: Any, place: str) -> Any:
    problems = []
    for one in get_args(kind):
        try:
            return checked(raw, one, place)
        except ValueError as error:
            problems.append((one, error))
    own = [error for one, error in problems if one not in (None, type(None))]
    raise own[0] if len(own) == 1 else ValueError(f"{_at(place)}{shown(raw)} is of no type that is taken there")


def _listed(raw: Any, kind: Any, place: str) -> Any:
    if not isinstance(raw, list | tuple):
        raise _wrong(raw, "a list", place)
    origin, kinds = get_origin(kind) or kind, get_args(kind)
    if origin is tuple and kinds and kinds[-1] is not Ellipsis:
        if len(raw) != len(kinds):
            raise ValueError(f"{_at(place)}{counted(len(kinds), 'values are')} needed, not {len(raw):,}")
        return tuple(checked(value, one, f"{place}[{i}]") for i, (value, one) in enumerate(zip(raw, kinds, strict=True)))
    inner = kinds[0] if kinds else Any
    values = [checked(value, inner, f"{place}[{i}]") for i, value in enumerate(raw)]
    return values if origin is list else tuple(values)


def _table(raw: Any, kind: Any, place: str) -> Any:
    if not isinstance(raw, dict):
        raise _wrong(raw, "a table", place)
    name, inner = get_args(kind) or (str, Any)
    return {checked(key, name, place): checked(value, inner, _below(place, key)) for key, value in raw.items()}


def _record(raw: Any, kind: Any, place: str) -> Any:
    make: Any = kind
    if not isinstance(raw, dict):
        raise _wrong(raw, "a table", place)
    hints, needed = _shape(kind)
    if unknown := sorted(str(key) for key in set(raw) - set(hints)):
        raise ValueError(f"{_at(place)}unknown fields {few(unknown)}")
    if missing := sorted(needed - set(raw)):
        raise ValueError(f"{_at(place)}fields {few(missing)} are missing")
    values = {key: checked(value, hints[key], _below(place, key)) for key, value in raw.items()}
    return make(**values) if is_dataclass(kind) else values


@cache
def _shape(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """What each field may be, and which must be there."""
    hints = get_type_hints(kind, include_extras=True)
    if typing.is_typeddict(kind):
        return get_type_hints(kind, include_extras=True), kind.__required_keys__
    own = [field for field in fields(kind) if field.init]
    needed = frozenset(f.name for f in own if f.default is MISSING and f.default_factory is MISSING)
    return {field.name: hints[field.name] for field in own}, needed


def _check_limit(value: Any, limit: Any, place: str) -> None:
    if isinstance(limit, Range) and not (limit.low <= value <= limit.high):
        raise ValueError(f"{_at(place)}a number from {limit.low:g} to {limit.high:g} is needed, not {shown(value)}")
    if isinstance(limit, Size) and len(value) > limit.high:
        raise ValueError(f"{_at(place)}{len(value):,} where at most {limit.high:,} may be")


def _wrong(raw: Any, kind: Any, place: str) -> ValueError:
    return ValueError(f"{_at(place)}{_NAMES.get(kind, kind)} is needed, not {shown(raw)}")


def _below(place: str, key: object) -> str:
    name = str(key)[:40]
    return f"{place}.{name}" if place else name


def _at(place: str) -> str:
    return f"{place[:200]}: " if place else ""


def shown(raw: Any) -> str:
    """A value in a message: short, whatever it is."""
    if isinstance(raw, list | tuple | dict):
        return f"a {'table' if isinstance(raw, dict) else 'list'} of {len(raw):,}"
    text = repr(raw)
    return text if len(text) <= 60 else f"{text[:57]}…"


_SPECIAL: dict[Any, Callable[[Any, Any, str], Any]] = {Annotated: _limited, Literal: _literal}
