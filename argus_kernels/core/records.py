"""An op's arguments as one record: a NamedTuple of its room, from which the schema of the torch op follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import NoneType, UnionType
from typing import Any, TypeAlias, Union, get_args, get_origin, get_type_hints

from torch import Tensor

Given: TypeAlias = Any
"""The arguments of one call, an instance of the op's record: `given.q`, `given.offsets` …"""


Record: TypeAlias = Any
"""The class of such a NamedTuple: its fields are an op's arguments in schema order, their annotations the types."""

_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    list[Tensor]: "Tensor[]",
    int: "SymInt",
    list[int]: "int[]",
    float: "float",
    bool: "bool",
    str: "str",
}


def schema_types(record: Record) -> dict[str, str]:
    """The type of every field as torch's schemas write it: "Tensor?" for `Tensor | None`, "SymInt" for `int` …

    Raises TypeError, naming the field, for an annotation that no schema has.
    """
    hints = get_type_hints(record)
    return {name: _schema_type(f"{record.__name__}.{name}", hints[name]) for name in record._fields}


def schema_arguments(record: Record, mutates: Sequence[str] = ()) -> str:
    """The record as the arguments of a schema: "Tensor(a!) table, Tensor? visible, float scale".

    mutates: the fields that are written in place, in the order of their alias names.
    """
    aliases = {name: chr(ord("a") + place) for place, name in enumerate(mutates)}
    return ", ".join(
        f"{kind} {name}" if name not in aliases else f"Tensor({aliases[name]}!){kind.removeprefix('Tensor')} {name}"
        for name, kind in schema_types(record).items()
    )


def tensors_among(values: Iterable[Any]) -> list[Tensor]:
    """All tensors among the values of a record, those in lists too."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [one for one in value if isinstance(one, Tensor)]
    return found


def tensors_by_name(given: Given) -> dict[str, Tensor]:
    """All tensors of a record by the names that sentences call them: "q", "tables[1]"."""
    found: dict[str, Tensor] = {}
    for name, value in zip(given._fields, given, strict=True):
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, (list, tuple)):
            found |= {f"{name}[{index}]": one for index, one in enumerate(value) if isinstance(one, Tensor)}
    return found


def _schema_type(field: str, annotation: Any) -> str:
    options = [one for one in get_args(annotation) if one is not NoneType]
    if get_origin(annotation) in (Union, UnionType) and len(options) == 1:
        return f"{_schema_type(field, options[0])}?"
    if annotation not in _TYPES:
        raise TypeError(f"{field} is annotated {annotation}, expected one of {', '.join(map(str, _TYPES))} (or None)")
    return _TYPES[annotation]
