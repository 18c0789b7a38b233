"""Golden vectors of TMA: boxes over every edge of a tensor, as they lie in shared memory; stores; bulk copies."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_session.golden_vector import Problem, call, numbers

LOAD, STORE, USER = "TMA load", "TMA store", "TMA load of a user's rows"
BULK_STORE, BULK_ADD = "bulk store", "bulk add"
INSTRUCTIONS = (LOAD, STORE, USER, BULK_STORE, BULK_ADD)
TYPES = {"half": 2, "bfloat16": 2, "float": 4}
"""The types of a map and the bytes of an element, in the order of golden_tma.cu."""
SWIZZLES = (128, 64, 32, 0)
BOX_ROWS, USER_ROWS, HEADS = 10, 16, 2
"""A box has more rows than the pattern of a swizzle; USER_ROWS is golden_tma.cu's."""
LENGTHS = (21, 0, 5, 16, 34)
"""Of the users; rows of nobody follow the last one."""
BULK_ELEMENTS, BULK_PARTS = 256, 3
"""Of each side of a bulk copy; the parts that it brings one after the other."""
_BITS: dict[int, np.dtype[Any]] = {2: np.dtype(np.uint16), 4: np.dtype(np.uint32)}


class _Boxes(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("swizzle", ctypes.c_int32),
        ("offset", ctypes.c_int32),
        ("cases", ctypes.c_int32),
        ("elements", ctypes.c_int32),
        ("extents", ctypes.c_int64 * 5),
        ("strides", ctypes.c_int64 * 4),
        ("box", ctypes.c_int32 * 5),
    ]


class _UserBoxes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("type", "cases", "rows", "heads", "width", "row_stride")]


class _BulkCopies(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32) for name in ("adds", "parts", "elements", "shared_offset", "global_offset", "bytes")
    ]


def problems() -> Iterator[Problem]:
    """Random bits, NaNs among them: a copy keeps every one."""
    random = np.random.default_rng(200)
    for kind, swizzle in product(TYPES, SWIZZLES):
        # As wide as the swizzle, and narrower; at the beginning of a swizzle's pattern, and within one.
        for width, offset in ((swizzle or 48, 0), (swizzle or 48, 384), (max(swizzle // 2, 16), 0)):
            yield _load(_plane(kind, swizzle, width, offset), random, _plane_edges)
        yield _load(_volume(kind, swizzle), random, _volume_edges)
        yield _store(_plane(kind, swizzle, swizzle or 48, 0), random)
    for kind, width in (("half", 64), ("half", 96), ("bfloat16", 40), ("bfloat16", 128)):
        yield _user_rows(kind, width, random)
    for shared_offset, global_offset, count in ((0, 0, 1024), (16, 48, 16), (144, 528, 496)):
        settings = {"shared_offset": shared_offset, "global_offset": global_offset, "bytes": count}
        yield _bulk(BULK_STORE, "bits", settings, random)
        for draw in ("normal", "wide", "edges"):
            yield _bulk(BULK_ADD, draw, settings, random)


def _plane(kind: str, swizzle: int, width_bytes: int, offset: int) -> dict[str, Any]:
    """A matrix whose rows have bits of nobody behind them."""
    width = width_bytes // TYPES[kind]
    columns, rows = 2 * width + 5, 2 * BOX_ROWS + 1
    pitch = _aligned(columns * TYPES[kind]) + 16
    return {
        "type": kind, "swizzle": swizzle, "offset": offset, "extents": [columns, rows], "strides": [pitch],
        "box": [width, BOX_ROWS],
    }  # fmt: skip


def _volume(kind: str, swizzle: int) -> dict[str, Any]:
    width = (swizzle or 48) // TYPES[kind]
    extents, box = [width + 3, 4, 3, 3, 3], [width, 3, 2, 2, 2]
    strides = [_aligned(extents[0] * TYPES[kind]) + 16]
    for extent in extents[1:-1]:
        strides.append(strides[-1] * extent + 32)
    return {"type": kind, "swizzle": swizzle, "offset": 0, "extents": extents, "strides": strides, "box": box}


def _aligned(count: int) -> int:
    return (count + 15) // 16 * 16


def _plane_edges(settings: dict[str, Any], random: np.random.Generator) -> np.ndarray:
    (columns, rows), (width, height) = settings["extents"], settings["box"]
    along = (-width, -3, 0, 5, columns - width + 3, columns - 1)
    return np.array(list(product(along, (-height, -4, 0, rows - 3, rows))), np.int32)


def _volume_edges(settings: dict[str, Any], random: np.random.Generator) -> np.ndarray:
    """Over each edge alone, over all of them, outside, and at random."""
    extents, box = np.array(settings["extents"]), np.array(settings["box"])
    low, high = -(box // 2), extents - box // 2
    cases = [np.zeros(5), low, high, -box, extents]
    for dimension in range(5):
        alone = np.arange(5) == dimension
        cases += [np.where(alone, low, 0), np.where(alone, high, extents - box)]
    cases += [random.integers(-box, extents + 1) for _ in range(6)]
    return np.stack(cases).astype(np.int32)


def _bits(count: int, kind: str, random: np.random.Generator) -> np.ndarray:
    dtype = _BITS[TYPES[kind]]
    return random.integers(0, 1 << 8 * dtype.itemsize, count, dtype=dtype)


def _tensor_elements(settings: dict[str, Any]) -> int:
    """Of a whole tensor, with what lies between its rows and behind the last one."""
    count: int = settings["extents"][-1] * settings["strides"][-1] // TYPES[settings["type"]]
    return count


def _load(settings: dict[str, Any], random: np.random.Generator, edges: Any) -> Problem:
    tensor = _bits(_tensor_elements(settings), settings["type"], random)
    return Problem(LOAD, "bits", {"tensor": tensor, "at": edges(settings, random)}, settings)


def _store(settings: dict[str, Any], random: np.random.Generator) -> Problem:
    """One tile to several places, each in a tensor of its own."""
    (columns, rows), (width, height) = settings["extents"], settings["box"]
    places = product((-3, 5, columns - width + 3), (-4, 2, rows - 3))
    at = np.array([*places, (-width, 0), (0, rows)], np.int32)
    tensor = _bits(_tensor_elements(settings), settings["type"], random)
    tile = _bits(width * height, settings["type"], random)
    return Problem(STORE, "bits", {"tensor": tensor, "tile": tile, "at": at}, settings)


def _user_rows(kind: str, width: int, random: np.random.Generator) -> Problem:
    """Tiles of both heads: from the user's first row, over the last one, and behind it."""
    begins = np.cumsum([0, *LENGTHS])
    cases = [
        (begin, length, first % HEADS, first)
        for begin, length in zip(begins[:-1], LENGTHS, strict=True)
        for first in sorted({0, USER_ROWS, max(length - 3, 0), length, length + 20})
    ]
    row = HEADS * width + 16
    tensor = _bits((int(begins[-1]) + USER_ROWS) * row, kind, random)
    settings = {"type": kind, "heads": HEADS, "width": width, "row_stride": row}
    return Problem(USER, "bits", {"tensor": tensor, "at": np.array(cases, np.int32)}, settings)


def _bulk(instruction: str, draw: str, settings: dict[str, Any], random: np.random.Generator) -> Problem:
    shape = (BULK_PARTS + 1, BULK_ELEMENTS)
    if draw == "bits":
        drawn = _bits(shape[0] * shape[1], "float", random).reshape(shape)
    elif draw == "edges":
        # Sums that overflow, are subnormal or zeros of either sign. No infinity meets its opposite: NaNs have many
        # bits. So -∞ is not drawn, nor what could overflow to it.
        edges = [0.0, -0.0, 2.0**-149, -(2.0**-127), 2.0**-126, -(2.0**-126), 1.5 * 2.0**-126, 3e38, np.inf, 1.0]
        drawn = random.choice(np.array(edges, np.float32), shape)
    else:
        drawn = numbers(draw, shape, random).astype(np.float32)
    words = drawn.view(np.uint32)
    return Problem(instruction, draw, {"parts": words[1:], "to": words[0]}, settings)


def evaluate(problem: Problem, device: str, library: Path) -> np.ndarray:
    """Boxes as they lie in shared memory, [cases, elements of a box], or tensors after stores, [cases, elements]."""
    settings = problem.settings
    given = {name: _on(device, array) for name, array in problem.operands.items()}
    if problem.instruction in (BULK_STORE, BULK_ADD):
        return _evaluate_bulk(problem, given, library)
    cases, dtype = len(given["at"]), _BITS[TYPES[settings["type"]]]
    request: ctypes.Structure
    if problem.instruction == USER:
        function, request = "golden_load_users", _users_request(problem)
        elements = USER_ROWS * (64 if settings["width"] <= 64 else 128)
    else:
        function = "golden_load_boxes" if problem.instruction == LOAD else "golden_store_boxes"
        request, elements = _boxes_request(problem), int(np.prod(settings["box"]))
    if problem.instruction == STORE:
        source, out = given["tile"], given["tensor"].repeat(cases, 1)
    else:
        source, out = given["tensor"], _on(device, np.zeros((cases, elements), dtype))
    _call(library, function, request, source, given["at"], out)
    result: np.ndarray = out.cpu().numpy().view(dtype)
    return result


def _evaluate_bulk(problem: Problem, given: dict[str, Tensor], library: Path) -> np.ndarray:
    """The words of global memory, sums among them: their zeros have signs."""
    parts, to = given["parts"], given["to"]
    offsets = [problem.settings[name] for name in ("shared_offset", "global_offset", "bytes")]
    request = _BulkCopies(int(problem.instruction == BULK_ADD), *parts.shape, *offsets)
    _call(library, "golden_bulk_copies", request, parts, to)
    result: np.ndarray = to.cpu().numpy().view(np.uint32)
    return result


def _call(library: Path, function: str, request: ctypes.Structure, *tensors: Tensor) -> None:
    call(library, function, ctypes.byref(request), *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors))
    if tensors[0].is_cuda:
        torch.cuda.synchronize()


def _on(device: str, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.view(f"i{array.itemsize}").copy()).to(device)


def _boxes_request(problem: Problem) -> _Boxes:
    settings = problem.settings
    return _Boxes(
        list(TYPES).index(settings["type"]), len(settings["extents"]), settings["swizzle"], settings["offset"],
        len(problem.operands["at"]), len(problem.operands["tensor"]), (ctypes.c_int64 * 5)(*settings["extents"]),
        (ctypes.c_int64 * 4)(*settings["strides"]), (ctypes.c_int32 * 5)(*settings["box"]),
    )  # fmt: skip


def _users_request(problem: Problem) -> _UserBoxes:
    settings, row = problem.settings, problem.settings["row_stride"]
    return _UserBoxes(
        list(TYPES).index(settings["type"]), len(problem.operands["at"]), len(problem.operands["tensor"]) // row,
        settings["heads"], settings["width"], row,
    )  # fmt: skip
