"""Descriptors and swizzles of the wgmma and TMA twins, against the PTX manual's tables, a layout algebra and Triton."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.csrc.simt import host_executor

pytestmark = pytest.mark.skipif(host_executor.why_not() is not None, reason=str(host_executor.why_not()))

HERE = Path(__file__).parent
CHUNK = 16
CHUNKS = {
    32: ["01234567", "10325476"],
    64: ["01234567", "10325476", "23016745", "32107654"],
    128: [
        "01234567",
        "10325476",
        "23016745",
        "32107654",
        "45670123",
        "54761032",
        "67452301",
        "76543210",
    ],
}
"""The PTX manual's tables of swizzling modes: which 16 bytes of a 128-byte row lie where, a line a row, repeated."""

Nested = int | tuple["Nested", ...]


def size(shape: Nested) -> int:
    return shape if isinstance(shape, int) else int(np.prod([size(mode) for mode in shape]))


def layout(index: int, shape: Nested, stride: Nested) -> int:
    """The offset of an index in a layout of nested modes, the first mode fastest."""
    if isinstance(shape, int):
        assert isinstance(stride, int)
        return index * stride
    assert not isinstance(stride, int)
    offset = 0
    for mode, step in zip(shape, stride, strict=True):
        offset += layout(index % size(mode), mode, step)
        index //= size(mode)
    return offset


def swizzle(swizzle_bytes: int, address: np.ndarray) -> np.ndarray:
    """The chunk within 128 bytes by the tables; 0 changes nothing."""
    if swizzle_bytes == 0:
        return address
    table = np.array([[int(chunk) for chunk in line] for line in CHUNKS[swizzle_bytes]])
    row, chunk = address // 128 % len(table), address // CHUNK % 8
    return address - chunk * CHUNK + table[row, chunk] * CHUNK


def expected_operand(
    swizzle_bytes: int, mn_major: bool, element_bytes: int, rows: int, depth: int, leading: int, stride: int
) -> np.ndarray:
    """Offsets in bytes of an operand [rows, depth], from the canonical layouts of the two majors."""
    chunk = CHUNK // element_bytes
    width = max(swizzle_bytes, CHUNK) // element_bytes
    lead, step = leading // element_bytes, stride // element_bytes
    shape: tuple[Nested, Nested]
    strides: tuple[Nested, Nested]
    if mn_major:
        blocks = rows // width
        shape = ((chunk, width // chunk, blocks), (8, depth // 8))
        between = (lead, step) if swizzle_bytes else (step, lead)
        strides = ((1, chunk, between[0]), (width, between[1]))
    else:
        shape = ((8, rows // 8), (chunk, depth // chunk))
        strides = ((width, step), (1, chunk if swizzle_bytes else lead))
    offsets = [
        [layout(row, shape[0], strides[0]) + layout(k, shape[1], strides[1]) for k in range(depth)]
        for row in range(rows)
    ]
    return swizzle(swizzle_bytes, np.array(offsets) * element_bytes)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return host_executor.load("sm90_layouts", (HERE / "sm90_layouts.cpp",))


def fields(library: ctypes.CDLL, bits: int) -> list[int]:
    found = (ctypes.c_uint32 * 5)()
    library.sm90_descriptor(ctypes.c_uint64(bits), found)
    return list(found)


def operand(library: ctypes.CDLL, bits: int, mn_major: bool, element_bytes: int, rows: int, depth: int) -> np.ndarray:
    offsets = np.empty((rows, depth), np.uint32)
    pointer = offsets.ctypes.data_as(ctypes.c_void_p)
    library.sm90_operand(ctypes.c_uint64(bits), int(mn_major), element_bytes, rows, depth, pointer)
    return offsets.astype(np.int64)


def descriptor(start: int, leading: int, stride: int, swizzle_bytes: int, base_offset: int = 0) -> int:
    """The 64 bits by the PTX manual's table of the matrix descriptor."""
    mode = {0: 0, 128: 1, 64: 2, 32: 3}[swizzle_bytes]
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | base_offset << 49 | mode << 62


def test_the_fields_of_a_descriptor(library: ctypes.CDLL) -> None:
    for swizzle_bytes in (0, 32, 64, 128):
        bits = descriptor(0x2C40, 0x3F0, 0x800, swizzle_bytes, 5)
        assert fields(library, bits) == [0x2C40, 0x3F0, 0x800, 5, swizzle_bytes]


@pytest.mark.parametrize("swizzle_bytes", [0, 32, 64, 128])
@pytest.mark.parametrize("mn_major", [False, True], ids=["k", "mn"])
@pytest.mark.parametrize("element_bytes", [2, 4])
def test_operands_lie_where_the_layout_algebra_has_them(
    library: ctypes.CDLL, swizzle_bytes: int, mn_major: bool, element_bytes: int
) -> None:
    rows, depth = 128, 32 // element_bytes
    for leading, stride in ((2048, 1024), (4096, 2048), (1024, 8192)):
        bits = descriptor(8192, leading, stride, swizzle_bytes)
        expected = 8192 + expected_operand(swizzle_bytes, mn_major, element_bytes, rows, depth, leading, stride)
        assert np.array_equal(operand(library, bits, mn_major, element_bytes, rows, depth), expected)


@pytest.mark.parametrize("swizzle_bytes", [32, 64, 128])
def test_a_base_offset_names_the_row_where_the_pattern_begins(library: ctypes.CDLL, swizzle_bytes: int) -> None:
    aligned = operand(library, descriptor(8192, 0, 1024, swizzle_bytes), False, 2, 64, 16)
    for row in range(1, swizzle_bytes // CHUNK):
        start = 8192 + 128 * row
        moved = operand(library, descriptor(start, 0, 1024, swizzle_bytes, row), False, 2, 64, 16)
        assert np.array_equal(moved - start, aligned - 8192)


class Map(ctypes.Structure):
    _fields_ = [
        ("base", ctypes.c_uint64),
        ("element_bytes", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("swizzle_bytes", ctypes.c_int32),
        ("extents", ctypes.c_uint64 * 5),
        ("strides", ctypes.c_uint64 * 4),
        ("box", ctypes.c_uint32 * 5),
        ("element_strides", ctypes.c_uint32 * 5),
    ]


BASE = 1 << 20


def asked(**changes: Any) -> Map:
    """A map of a [24, 40] tensor of two-byte elements and a box of [8, 16], with changes."""
    given = {"base": BASE, "element_bytes": 2, "rank": 2, "swizzle_bytes": 0, "extents": (40, 24), "strides": (96,)}
    given |= {"box": (16, 8), "element_strides": (1,) * 5} | changes
    made = Map()
    for name, value in given.items():
        if isinstance(value, tuple):
            for index, one in enumerate(value):
                getattr(made, name)[index] = one
        else:
            setattr(made, name, value)
    return made


def box_sources(library: ctypes.CDLL, map_: Map, coordinates: Sequence[int], shared: int, count: int) -> np.ndarray:
    sources = np.full(count, 2**63, np.uint64)
    report = ctypes.create_string_buffer(500)
    library.sm90_box(
        ctypes.byref(map_),
        (ctypes.c_int32 * 5)(*coordinates),
        ctypes.c_uint32(shared),
        sources.ctypes.data_as(ctypes.c_void_p),
        report,
        ctypes.c_size_t(len(report)),
    )
    assert report.value == b"", report.value
    return sources.astype(np.int64)


@pytest.mark.parametrize("swizzle_bytes", [0, 32, 64, 128])
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_boxes_bring_what_indexing_brings(library: ctypes.CDLL, swizzle_bytes: int, rank: int) -> None:
    draw = np.random.default_rng(100 * rank + swizzle_bytes)
    for element_bytes in (1, 2, 4, 8):
        columns = (swizzle_bytes or 48) // element_bytes
        extents = [columns + 5, *(int(draw.integers(2, 7)) for _ in range(rank - 1))]
        steps = [1, *(int(draw.integers(1, 3)) for _ in range(rank - 1))]
        count = [columns, *(int(draw.integers(1, 5)) for _ in range(rank - 1))]
        box = [n * step for n, step in zip(count, steps, strict=True)]
        strides, row = [], (extents[0] * element_bytes + 31) // 16 * 16
        for extent in extents[1:]:
            strides.append(row)
            row *= extent
        coordinates = [int(draw.integers(-4, extent)) for extent in extents]
        map_ = asked(
            element_bytes=element_bytes,
            rank=rank,
            swizzle_bytes=swizzle_bytes,
            extents=tuple(extents),
            strides=tuple(strides),
            box=tuple(box),
            element_strides=tuple(steps),
        )
        # The box's elements in order, the first dimension fastest, each by the bytes that it has in the tensor.
        index = np.stack(np.unravel_index(np.arange(np.prod(count)), count[::-1]))[::-1]
        at = np.array(coordinates)[:, None] + index * np.array(steps)[:, None]
        inside = np.all((at >= 0) & (at < np.array(extents)[:, None]), axis=0)
        address = BASE + at[0] * element_bytes + sum(at[d] * strides[d - 1] for d in range(1, rank))
        source = np.where(inside, address, 0)[:, None] + np.where(inside, 1, 0)[:, None] * np.arange(element_bytes)
        shared = 4096
        place = swizzle(swizzle_bytes, shared + np.arange(source.size)) - shared
        expected = np.empty(source.size, np.int64)
        expected[place] = source.reshape(-1)
        assert np.array_equal(box_sources(library, map_, coordinates, shared, source.size), expected)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"base": BASE + 8}, "an address that is not a multiple of 16"),
        ({"strides": (88,)}, "a stride that is not a multiple of 16 of dimension 1"),
        ({"box": (12, 8)}, "a box whose rows are 24 bytes, not a multiple of 16"),
        ({"box": (16, 257)}, "a box of more than 256 elements, or none, of dimension 1"),
        ({"swizzle_bytes": 32, "box": (24, 8)}, "a box whose rows are 48 bytes, more than its swizzle of 32"),
        ({"element_strides": (1, 9, 1, 1, 1)}, "the element stride of dimension 1"),
        ({"extents": (40, 0)}, "the extent of dimension 1"),
        ({"rank": 6}, "a rank of 6"),
        ({"element_bytes": 3}, "elements of 3 bytes"),
    ],
)
def test_maps_that_the_driver_refuses(library: ctypes.CDLL, changes: dict[str, Any], sentence: str) -> None:
    report = ctypes.create_string_buffer(500)
    library.sm90_box(ctypes.byref(asked(**changes)), (ctypes.c_int32 * 5)(), 0, None, report, ctypes.c_size_t(500))
    assert report.value.decode() == f"cuTensorMapEncodeTiled: {sentence}"


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_descriptors_of_triton_read_the_tiles_that_tma_brought(library: ctypes.CDLL) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [sys.executable, "-m", "tests.csrc.simt.triton_descriptors"]
    done = subprocess.run(words, cwd=host_executor.REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The tile's depth, and whether A and B are K-major.
    cases = [(64, 1, 1), (64, 1, 0), (64, 0, 1), (64, 0, 0), (32, 1, 1), (16, 1, 1)]
    for (depth, left_k, right_k), line in zip(cases, done.stdout.splitlines(), strict=True):
        products = json.loads(line)
        assert len(products) == depth // 16
        for step, (left, right, left_mn, right_mn) in enumerate(products):
            assert (left_mn, right_mn) == (1 - left_k, 1 - right_k)
            for bits, rows, mn_major in ((left, 64, left_mn), (right, 128, right_mn)):
                width = 128 if mn_major else 2 * depth
                row, k = np.meshgrid(np.arange(rows), np.arange(16 * step, 16 * step + 16), indexing="ij")
                # Boxes of TMA are 128 bytes wide at most, and follow one another.
                plain = row // 64 * 128 * depth + 128 * k + row % 64 * 2 if mn_major else width * row + 2 * k
                assert np.array_equal(operand(library, bits, bool(mn_major), 2, rows, 16), swizzle(width, plain))
