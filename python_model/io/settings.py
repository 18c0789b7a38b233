"""Checks settings given by name against the annotations of their owner, with one clear error for an invalid value.

A function's keyword-only parameters and a dataclass's fields are settings; their annotations define the valid values.
The supported annotations are bool, int, float, str, Literal, Optional and unions, tuple, Mapping, Any, dataclasses
(their own objects, or a mapping of their fields), and Annotated with `Between` for a range or `OneOf` for a choice.
Values are not converted: "5", true and 1.5 are not whole numbers.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import reprlib
import types
from collections.abc import Callable, Mapping
from collections.abc import Mapping as AbstractMapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class Between:
    """The range of a number, inclusive; `below` excludes `high`; None: no bound on that side."""

    low: float | None = None
    high: float | None = None
    below: bool = False

    def __contains__(self, value: float) -> bool:
        if self.low is not None and value < self.low:
            return False
        return self.high is None or (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if self.high is None:
            return f"of at least {self.low}"
        low = "(-inf" if self.low is None else f"[{self.low}"
        return f"in {low}, {self.high}{')' if self.below else ']'}"


@dataclass(frozen=True)
class OneOf:
    """The texts that a setting accepts."""

    choices: tuple[str, ...]

    def __contains__(self, value: str) -> bool:
        return value in self.choices

    def __str__(self) -> str:
        return f"one of {', '.join(self.choices)}"


def checked(kind: Any, name: str, value: Any) -> Any:
    """`value` in the type of the annotation `kind` (resolved, not a string): float numbers as float, lists as tuples.

    int is a whole number of 64 bits, float a finite number. ValueError, one sentence with `name`, the expected and the
    actual value, for an invalid value; TypeError for an unsupported annotation.
    """
    try:
        return _fit(kind, value)
    except _Misfit:
        raise ValueError(f"{name} is {shown(value)}, expected {expected(kind)}") from None


def checked_settings(owner: Callable[..., Any], values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Every value in the type of the setting of its name in `owner` (a function or a dataclass).

    ValueError for an unknown setting, listing the known ones, or an invalid value; `what` names the owner in messages.
    """
    kinds = settings_of(owner)
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        known = ", ".join(sorted(kinds)) or "none"
        raise ValueError(f"{what}: unknown setting {', '.join(map(str, unknown))}; known: {known}")
    return {name: checked(kinds[name], name, value) for name, value in values.items()}


def settings_of(owner: Callable[..., Any]) -> dict[str, Any]:
    """Annotation of every setting by name: the fields of a dataclass, the keyword-only parameters of a function."""
    hints = get_type_hints(owner, include_extras=True)
    if dataclasses.is_dataclass(owner):
        return {field.name: hints[field.name] for field in dataclasses.fields(owner) if field.init}
    parameters = inspect.signature(owner).parameters.values()
    return {one.name: hints[one.name] for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}


def expected(kind: Any) -> str:
    """The values that an annotation accepts, in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    simple = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", type(None): "null",
              Any: "any value"}  # fmt: skip
    if kind in simple:
        return simple[kind]
    if origin is Annotated:
        bounds = " ".join(map(str, arguments[1:]))
        return bounds if isinstance(arguments[1], OneOf) else f"{expected(arguments[0])} {bounds}"
    if dataclasses.is_dataclass(kind):
        fields = (f"{name} ({expected(one)})" for name, one in settings_of(kind).items())  # type: ignore[arg-type]
        return f"an object of {', '.join(fields)}"
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(expected(one) for one in arguments)
    if origin is tuple and arguments[1:] == (...,):
        return f"a list, each {expected(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}: {', '.join(map(expected, arguments))}"
    if origin in (dict, AbstractMapping):
        return f"a mapping from {expected(arguments[0])} to {expected(arguments[1])}"
    raise TypeError(f"the annotation {kind} is of no kind that settings have")


def shown(value: Any) -> str:
    """A value as shown in a message, shortened where it is long."""
    return _short.repr(value)


class _Misfit(Exception):
    """A value does not fit its annotation; the caller that knows the setting's name makes the message."""


def _fit(kind: Any, value: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if kind in (bool, str, type(None)):
        return _require(isinstance(value, kind), value)
    if dataclasses.is_dataclass(kind):
        return _fit_dataclass(kind, value)
    if kind is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return _require(whole and INT64_MIN <= value <= INT64_MAX, value)
    if kind is float:
        return _finite(value)
    if origin is Annotated:
        found = _fit(arguments[0], value)
        return _require(all(found in bounds for bounds in arguments[1:]), found)
    if origin is Literal:
        return _require(any(type(value) is type(one) and value == one for one in arguments), value)
    if origin in (Union, types.UnionType):
        return _first_fit(arguments, value)
    if origin is tuple:
        return _fit_tuple(arguments, value)
    if origin in (dict, AbstractMapping):
        _require(isinstance(value, AbstractMapping), value)
        return {_fit(arguments[0], key): _fit(arguments[1], one) for key, one in value.items()}
    raise TypeError(f"the annotation {kind} is of no kind that settings have")


def _fit_dataclass(kind: Any, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    kinds = settings_of(kind)
    _require(isinstance(value, AbstractMapping) and set(value) == set(kinds), value)
    try:
        return kind(**{name: _fit(kinds[name], one) for name, one in value.items()})
    except ValueError:
        raise _Misfit from None


def _fit_tuple(arguments: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    _require(isinstance(value, (list, tuple)), value)
    if arguments[1:] == (...,):
        return tuple(_fit(arguments[0], one) for one in value)
    _require(len(value) == len(arguments), value)
    return tuple(_fit(kind, one) for kind, one in zip(arguments, value, strict=True))


def _first_fit(kinds: tuple[Any, ...], value: Any) -> Any:
    for kind in kinds:
        try:
            return _fit(kind, value)
        except _Misfit:
            continue
    raise _Misfit


def _finite(value: Any) -> float:
    _require(isinstance(value, (int, float)) and not isinstance(value, bool), value)
    try:
        found = float(value)
    except OverflowError:
        raise _Misfit from None
    return _require(math.isfinite(found), found)


def _require(holds: bool, value: Any) -> Any:
    if not holds:
        raise _Misfit
    return value


class _Short(reprlib.Repr):
    """repr of at most about 60 characters; a very long integer is described by its size."""

    def repr_int(self, value: int, level: int) -> str:
        if abs(value) >= 10**40:
            return f"a whole number of {value.bit_length()} bits"
        return repr(value)


_short = _Short()
_short.maxstring = _short.maxother = 60
