"""The record of an op's arguments and the schema that follows from it."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from argus_kernels import OPS
from argus_kernels.core import Op
from argus_kernels.core.records import schema_arguments, tensors_among, tensors_by_name


class Everything(NamedTuple):
    """Every type that a schema has."""

    written: Tensor
    tables: list[Tensor]
    visible: Tensor | None
    rows: int
    window: int | None
    classes: list[int]
    scale: float
    divisor: float | None
    sparse: bool
    form: str


class Unknown(NamedTuple):
    """A type that no schema has."""

    table: dict[str, Tensor]


def test_the_schema_follows_from_the_annotations() -> None:
    assert schema_arguments(Everything, ["written"]) == (
        "Tensor(a!) written, Tensor[] tables, Tensor? visible, SymInt rows, SymInt? window, int[] classes, "
        "float scale, float? divisor, bool sparse, str form"
    )
    with pytest.raises(TypeError, match=r"Unknown\.table is annotated dict\[str, torch\.Tensor\], expected one of"):
        schema_arguments(Unknown)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_the_registered_op_takes_the_fields_in_their_order(op: Op) -> None:
    registered: list[Any] = op.torch_op._schema.arguments
    assert [argument.name for argument in registered] == [*op.record._fields, "backend", "numbers"]
    assert {argument.name for argument in registered if argument.is_write} == set(op.mutates)


def test_tensors_are_found_in_lists_too() -> None:
    one, two = torch.ones(1), torch.ones(2)
    given = Everything(one, [two, one], None, 1, None, [2], 0.5, None, True, "x")
    assert [id(tensor) for tensor in tensors_among(given)] == [id(one), id(two), id(one)]
    assert list(tensors_by_name(given)) == ["written", "tables[0]", "tables[1]"]
