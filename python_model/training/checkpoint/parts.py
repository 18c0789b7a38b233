"""parts.json: which rows of which tensor lie where in the files that the ranks of a run wrote.

torch.distributed.checkpoint keeps this in `.metadata`, a pickle, and reading a pickle can run any code. parts.json
holds only numbers and names, which are checked against the files before anything is read or allocated.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from python_model.io.errors import DataError
from python_model.io.json_text import read_object

PARTS = "parts.json"
PICKLE = ".metadata"
"""The file where torch keeps the same; it is never read."""
FORMAT = 1
_NAME = re.compile(r"__\d+_\d+\.distcp")
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Rows first … first + rows − 1 of a tensor (its only row where it has no dimension): bytes of a file.

    `relative_path`, `offset`, `length` and `transform_descriptors` are what torch's reader asks for.
    """

    relative_path: str
    offset: int
    length: int
    first: int
    rows: int
    transform_descriptors: None = None


@dataclass(frozen=True)
class StoredTensor:
    """A tensor and the parts that it is made of, in the order of its rows."""

    dtype: torch.dtype
    size: tuple[int, ...]
    parts: Sequence[Part]

    def offsets(self, part: Part) -> tuple[int, ...]:
        """Where a part begins in the tensor."""
        return (part.first, *(0 for _ in self.size[1:])) if self.size else ()

    def shape(self, part: Part) -> tuple[int, ...]:
        """The shape of a part."""
        return (part.rows, *self.size[1:]) if self.size else ()


def write_parts(directory: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Write parts.json."""
    described = {
        name: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "size": list(tensor.size),
            "parts": [
                [part.relative_path, part.offset, part.length, part.first, part.rows]
                for part in sorted(tensor.parts, key=lambda part: (part.first, part.rows))
            ],
        }
        for name, tensor in tensors.items()
    }
    text = json.dumps({"format": FORMAT, "tensors": described}, indent=1) + "\n"
    (directory / PARTS).write_text(text, "utf-8")


def read_parts(directory: Path) -> dict[str, StoredTensor]:
    """parts.json of a checkpoint; DataError where it is missing, damaged, or says what the files cannot hold."""
    file = directory / PARTS
    if not file.is_file():
        raise DataError(file, "not found: the checkpoint is incomplete")
    raw = read_object(file)
    if raw.get("format") != FORMAT:
        raise DataError(file, f"expected format {FORMAT}, found {raw.get('format')!r}", column="format")
    tensors = raw.get("tensors")
    if not isinstance(tensors, dict):
        raise DataError(file, "expected an object of tensors by name", column="tensors")
    try:
        found = {name: _tensor(described) for name, described in tensors.items()}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(file, f"damaged: a tensor is described as no run describes it ({error})") from error
    _require_held(directory, file, found)
    return found


def files_of(tensors: Mapping[str, StoredTensor]) -> list[str]:
    """The names of the files that hold the parts."""
    return sorted({part.relative_path for tensor in tensors.values() for part in tensor.parts})


def _tensor(described: Any) -> StoredTensor:
    if sorted(described) != ["dtype", "parts", "size"]:
        raise ValueError(f"keys {sorted(described)}")
    size = tuple(_whole(value) for value in described["size"])
    tensor = StoredTensor(_DTYPES[described["dtype"]], size, [_part(*part) for part in described["parts"]])
    # Parts must cover the rows without overlap or gap: nothing is read twice, nothing stays uninitialised.
    following = 0
    for part in tensor.parts:
        if part.first != following:
            raise ValueError(f"row {part.first} where {following} follows")
        following += part.rows
        if math.prod(tensor.shape(part)) * tensor.dtype.itemsize > part.length:
            raise ValueError(f"a part of {part.length} bytes for the shape {list(tensor.shape(part))}")
    if following != (size[0] if size else 1):
        raise ValueError(f"{following} rows for the shape {list(size)}")
    return tensor


def _part(name: Any, *numbers: Any) -> Part:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"the file name {name!r}")
    offset, length, first, rows = map(_whole, numbers)
    return Part(name, offset, length, first, rows)


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 56:
        raise ValueError(f"{value!r} where a whole number is expected")
    return value


def _require_held(directory: Path, file: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """DataError where the files are missing or hold fewer bytes than all parts in them have."""
    needed: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for tensor in tensors.values():
        for part in tensor.parts:
            needed[part.relative_path] += part.length
            ends[part.relative_path] = max(ends[part.relative_path], part.offset + part.length)
    for name in needed:
        if not (directory / name).is_file():
            raise DataError(directory / name, "not found: the checkpoint is incomplete")
        held = (directory / name).stat().st_size
        if max(needed[name], ends[name]) > held:
            message = (
                f"damaged or incomplete: {file.name} names {max(needed[name], ends[name]):,} bytes, found {held:,}"
            )
            raise DataError(directory / name, message)
