"""The CUDA kernels of triple_embedding and their launchers as the backend "cuda_on_host", for tests only.

What torch does around the kernels on a GPU (sorts and running sums) torch does here on the CPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from argus_kernels.core import Backend
from argus_kernels.core.records import Given
from argus_kernels.ops.triple_embedding import native
from argus_kernels.ops.triple_embedding.arguments import Arguments
from tests.csrc.simt import host_executor

DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
LIBRARY = "triple_embedding"
SOURCES = (
    host_executor.REPOSITORY / "csrc/triple_embedding/triple_embedding_cuda.cu",
    host_executor.HERE / "triple_embedding.cpp",
)
WINDOW = 32
MAX_COUNTED_ROWS = 999
LOOP_BLOCKS = 0
"""Of the forward pass where it fits sm_90's product loop; 0: it runs on tiles."""


class Column(ctypes.Structure):
    """argus::triple_embedding::CudaColumn."""

    _fields_ = (
        ("table", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "row_stride", "column_stride")),
        *((name, ctypes.c_int) for name in ("width", "offset", "first_chunk")),
        ("aligned", ctypes.c_bool),
    )


class Problem(ctypes.Structure):
    """argus::triple_embedding::CudaProblem."""

    _fields_ = (
        ("columns", Column * native.MAX_CUDA_COLUMNS),
        *((name, ctypes.c_void_p) for name in ("ids", "weight")),
        ("events", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("count", "width", "chunks", "dtype", "table_dtype")),
    )


class Forward(ctypes.Structure):
    """argus::triple_embedding::CudaForward."""

    _fields_ = (
        ("problem", Problem),
        ("bias", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("loop_blocks", ctypes.c_int),
    )


class Backward(ctypes.Structure):
    """argus::triple_embedding::CudaBackward."""

    _fields_ = (
        ("problem", Problem),
        *(
            (name, ctypes.c_void_p)
            for name in ("gradient", "gathered_gradient", "weight_parts", "bias_parts", "d_weight", "d_bias")
        ),
    )


class Keys(ctypes.Structure):
    """argus::triple_embedding::CudaKeys."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("ids", "keys")),
        ("events", ctypes.c_int64),
        ("count", ctypes.c_int),
        ("columns", ctypes.c_int * native.MAX_CUDA_COLUMNS),
        ("first_keys", ctypes.c_int32 * native.MAX_CUDA_COLUMNS),
        ("table_rows", ctypes.c_int64 * native.MAX_CUDA_COLUMNS),
    )


class Counts(ctypes.Structure):
    """argus::triple_embedding::CudaCounts."""

    _fields_ = (
        ("keys", Keys),
        ("lines", ctypes.c_int64 * native.MAX_CUDA_COLUMNS),
        ("readers", ctypes.c_int * native.MAX_CUDA_COLUMNS),
        ("lines_in_all", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("counts", "sums", "positions")),
    )


class RowSums(ctypes.Structure):
    """argus::triple_embedding::CudaRowSums."""

    _fields_ = (
        ("gathered_gradient", ctypes.c_void_p),
        ("first_elements", ctypes.c_int * native.MAX_CUDA_COLUMNS),
        *(
            (name, ctypes.c_void_p)
            for name in ("keys", "positions", "slots", "unique_rows", "heads", "tails", "values")
        ),
        *((name, ctypes.c_int64) for name in ("events", "count", "first_position")),
        *((name, ctypes.c_int32) for name in ("first_key", "depth", "width", "dtype")),
    )


class Leaders(ctypes.Structure):
    """The arguments of argus::triple_embedding::launch_leaders."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("keys", "leaders")),
        ("count", ctypes.c_int64),
        ("first_key", ctypes.c_int32),
    )


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _run(function: str, *structures: ctypes.Structure | ctypes.c_int64) -> None:
    host_executor.run(LIBRARY, SOURCES, f"triple_embedding_{function}", *structures)


def _parts(function: str, events: int) -> int:
    library = host_executor.load(LIBRARY, SOURCES)
    return int(getattr(library, f"triple_embedding_{function}")(ctypes.c_int64(events)))


def problem_of(ids: Tensor, tables: Sequence[Tensor], columns: Sequence[int], weight: Tensor) -> Problem:
    """`ids` and `weight` contiguous, and kept by the caller."""
    problem = Problem(
        ids=_address(ids),
        weight=_address(weight),
        events=ids.shape[1],
        count=len(columns),
        width=weight.shape[1],
        dtype=DTYPES[weight.dtype],
        table_dtype=DTYPES[tables[0].dtype if tables else weight.dtype],
    )
    offset = 0
    for k, column in enumerate(columns):
        table = tables[column]
        rows, width = table.shape
        problem.columns[k] = Column(
            table=_address(table),
            rows=rows,
            row_stride=table.stride(0),
            column_stride=table.stride(1),
            width=width,
            offset=offset,
        )
        offset += width
    return problem


def forward(given: Arguments) -> Tensor:
    """What the CUDA library does with these arguments; RuntimeError with the executor's report."""
    ids, weight = given.ids.contiguous(), given.weight.contiguous()
    bias = None if given.bias is None else given.bias.contiguous()
    output = weight.new_empty(ids.shape[1], weight.shape[1])
    problem = problem_of(ids, given.tables, given.columns, weight)
    structure = Forward(problem=problem, bias=_address(bias), output=_address(output), loop_blocks=LOOP_BLOCKS)
    _run("forward", structure)
    return output


def backward(
    gradients: Sequence[Tensor],
    outputs: Sequence[Tensor],
    needs: dict[str, bool],
    given: Arguments,
) -> list[list[Tensor | None] | Tensor | None]:
    """The gradients, as the CUDA library computes them."""
    ids, weight, gradient = given.ids.contiguous(), given.weight.contiguous(), gradients[0].contiguous()
    problem = problem_of(ids, given.tables, given.columns, weight)
    events, width = gradient.shape
    depth = int(host_executor.load(LIBRARY, SOURCES).triple_embedding_depth(ctypes.byref(problem)))

    def room(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.float32)

    d_weight = torch.empty_like(weight) if needs["weight"] else None
    d_bias = weight.new_empty(width) if needs["bias"] and given.bias is not None else None
    gathered = room(events, depth) if needs["tables"] else None
    weight_parts = None if d_weight is None else room(_parts("weight_parts", events), depth, width)
    bias_parts = None if d_bias is None else room(_parts("bias_parts", events), width)
    _run(
        "backward",
        Backward(
            problem=problem,
            gradient=_address(gradient),
            gathered_gradient=_address(gathered),
            weight_parts=_address(weight_parts),
            bias_parts=_address(bias_parts),
            d_weight=_address(d_weight),
            d_bias=_address(d_bias),
        ),
    )
    d_tables: list[Tensor | None] = [None] * (2 * len(given.tables) if given.sparse else len(given.tables))
    if gathered is not None:
        d_tables = []
        for index, entries in enumerate(ordered_entries(ids, given.tables, given.columns)):
            readers = [k for k, column in enumerate(given.columns) if column == index]
            d_tables += _row_sums(gathered, ids, given.tables[index], readers, problem, given.sparse, entries)
    return [d_tables, d_weight, d_bias]


class Entries(NamedTuple):
    """The reads of one table in order, `first_position` and `first_key` what its positions and keys begin at."""

    keys: Tensor
    positions: Tensor
    first_position: int
    first_key: int


def ordered_entries(ids: Tensor, tables: Sequence[Tensor], columns: Sequence[int]) -> list[Entries]:
    """The reads of each table; large tables are sorted, as the library does."""
    found: dict[int, Entries] = {}
    for counted in (True, False):
        group = [index for index, table in enumerate(tables) if (table.shape[0] <= MAX_COUNTED_ROWS) == counted]
        order = [k for index in group for k, column in enumerate(columns) if column == index]
        heights = [tables[index].shape[0] + 1 for index in group]
        first_keys = {index: sum(heights[:place]) for place, index in enumerate(group)}
        keys, positions = (_counted if counted else _sorted)(ids, tables, columns, order, first_keys)
        before = 0
        for index in group:
            end = before + sum(column == index for column in columns) * ids.shape[1]
            found[index] = Entries(keys[before:end], positions[before:end], before, first_keys[index])
            before = end
    return [found[index] for index in range(len(tables))]


def _keys(
    ids: Tensor, tables: Sequence[Tensor], columns: Sequence[int], order: Sequence[int], first_keys: dict[int, int]
) -> tuple[Keys, Tensor]:
    """The rows of the group's tables in one numbering, and room for the keys."""
    keys = torch.empty(len(order) * ids.shape[1], dtype=torch.int32)
    given = Keys(ids=_address(ids), keys=_address(keys), events=ids.shape[1], count=len(order))
    for place, k in enumerate(order):
        given.columns[place] = k
        given.first_keys[place] = first_keys[columns[k]]
        given.table_rows[place] = tables[columns[k]].shape[0]
    return given, keys


def _sorted(
    ids: Tensor, tables: Sequence[Tensor], columns: Sequence[int], order: Sequence[int], first_keys: dict[int, int]
) -> tuple[Tensor, Tensor]:
    given, keys = _keys(ids, tables, columns, order, first_keys)
    if keys.numel():
        _run("keys", given, ctypes.c_int64(len(columns)))
    values, positions = keys.sort(stable=True)
    return values, positions


def _counted(
    ids: Tensor, tables: Sequence[Tensor], columns: Sequence[int], order: Sequence[int], first_keys: dict[int, int]
) -> tuple[Tensor, Tensor]:
    own, keys = _keys(ids, tables, columns, order, first_keys)
    given = Counts(keys=own)
    library = host_executor.load(LIBRARY, SOURCES)
    library.triple_embedding_count_elements.restype = ctypes.c_int64
    counts = torch.empty(library.triple_embedding_count_elements(ctypes.byref(given)), dtype=torch.int32)
    positions = torch.empty(keys.numel(), dtype=torch.int64)
    if keys.numel():
        given.counts = _address(counts)
        _run("counts", given, ctypes.c_int64(len(columns)))
        sums = counts.cumsum(0)
        given.sums, given.positions = _address(sums), _address(positions)
        _run("places", given, ctypes.c_int64(len(columns)))
    return keys, positions


def _row_sums(
    gathered: Tensor,
    ids: Tensor,
    table: Tensor,
    readers: list[int],
    problem: Problem,
    sparse: bool,
    entries: Entries,
) -> list[Tensor | None]:
    """The table's gradient, or the rows that were read and a row of gradients for each."""
    keys, positions, first_position, first_key = entries
    count, width = keys.shape[0], table.shape[1]
    slots = unique = None
    values = torch.zeros(table.shape, dtype=table.dtype)
    if sparse:
        leaders = torch.empty(count, dtype=torch.int64)
        _run("leaders", Leaders(_address(keys), _address(leaders), count, first_key))
        slots = leaders.cumsum(0)
        unique = ids.new_empty(int(slots[-1]) if count else 0)
        values = table.new_empty(unique.shape[0], width)
    windows = (count + WINDOW - 1) // WINDOW
    heads, tails = (torch.empty(windows, width, dtype=torch.float32) for _ in range(2))
    sums = RowSums(
        gathered_gradient=_address(gathered),
        keys=_address(keys),
        positions=_address(positions),
        slots=_address(slots),
        unique_rows=_address(unique),
        heads=_address(heads),
        tails=_address(tails),
        values=_address(values),
        events=ids.shape[1],
        count=count,
        first_position=first_position,
        first_key=first_key,
        depth=gathered.shape[1],
        width=width,
        dtype=DTYPES[table.dtype],
    )
    chunk = 128 // torch.finfo(torch.float32 if problem.dtype == 0 else torch.float16).bits
    for place, k in enumerate(readers):
        sums.first_elements[place] = problem.columns[k].first_chunk * chunk
    if count:
        _run("row_sums", sums, ctypes.c_int64(values.shape[0]))
    return [values] if unique is None else [unique, values]


def _why_not(given: Given) -> list[str]:
    # Everything the CUDA backend wants, but on the CPU.
    return [reason for reason in native.why_not_cuda(given) if "expected cuda" not in reason]


BACKEND = Backend(host_executor.BACKEND, forward, backward, why_not=_why_not, available=host_executor.why_not)
