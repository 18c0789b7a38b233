"""Golden vectors of wgmma: products of matrices that TMA brings in every layout of the kernels' operands."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_session.golden_vector import DRAWS, INTEGERS, Problem, call, numbers, sums

TYPES = {"wgmma half": torch.float16, "wgmma bfloat16": torch.bfloat16, "wgmma tf32": torch.float32}
"""In the order of golden_wgmma.cu."""
SOURCES = ("k", "mn", "registers")
"""Where A is: in shared memory, K-major or MN-major, or in registers. In the order of golden_wgmma.cu."""
ROWS = 64
SWIZZLES = (128, 64, 32, 0)
_FIELDS = ("type", "columns", "depth", "swizzle", "sign", "a", "b", "adds")


class _Product(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in _FIELDS]


def problems() -> Iterator[Problem]:
    """Small integers, which take few bytes, in every layout; the other draws in one, because no sum depends on it."""
    random = np.random.default_rng(100)
    for instruction, dtype in TYPES.items():
        for settings in _layouts(dtype):
            yield _problem(instruction, "small integers", settings, random, adds=settings["sign"] < 0)
        for a in ("k",) if dtype == torch.float32 else ("k", "registers"):
            settings = {"columns": 64, "swizzle": 64, "sign": 1, "a": a, "b": "k"}
            for draw in DRAWS:
                yield _problem(instruction, draw, settings, random, adds=draw in ("integers", "large sums"))


def _layouts(dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    if dtype == torch.float32:
        shapes = [(64, swizzle, 1, "k", "k") for swizzle in SWIZZLES]
        shapes += [(128, 128, 1, "k", "k"), (64, 128, -1, "k", "k")]
    else:
        shapes = list(product((64,), SWIZZLES, (1,), SOURCES, ("k", "mn")))
        shapes += product((128, 256), (128,), (1,), ("k", "registers"), ("k", "mn"))
        shapes += product((64,), (128,), (-1,), ("k", "registers"), ("k", "mn"))
    for columns, swizzle, sign, a, b in shapes:
        yield {"columns": columns, "swizzle": swizzle, "sign": sign, "a": a, "b": b}


def depth_of(dtype: torch.dtype, columns: int, swizzle: int) -> int:
    """The depth of the matrices, that of golden_wgmma.cu."""
    return (256 if swizzle == 128 and columns == 64 else 128) // dtype.itemsize


def _problem(instruction: str, draw: str, settings: dict[str, Any], random: np.random.Generator, adds: bool) -> Problem:
    dtype, columns = TYPES[instruction], settings["columns"]
    depth = depth_of(dtype, columns, settings["swizzle"])
    operands = {
        name: stored(numbers(draw, (rows, depth), random), dtype) for name, rows in (("a", ROWS), ("b", columns))
    }
    if adds:
        operands["sums"] = sums(draw, (ROWS, columns), random)
    return Problem(instruction, draw, operands, settings)


def stored(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The numbers as a vector keeps them: 16-bit types as their bits, which numpy has no bfloat16 for."""
    rounded = torch.from_numpy(values.astype(np.float32)).to(dtype)
    return rounded.numpy() if dtype == torch.float32 else rounded.view(torch.int16).numpy().view(np.uint16)


def matrix(problem: Problem, name: str) -> Tensor:
    """An operand as stored, [rows, depth], in its type."""
    dtype, held = TYPES[problem.instruction], problem.operands[name].copy()
    return torch.from_numpy(held) if dtype == torch.float32 else torch.from_numpy(held.view(np.int16)).view(dtype)


def evaluate(problem: Problem, device: str, library: Path) -> np.ndarray:
    """D [64, columns]."""
    asked = problem.settings
    # In memory as the layout has it: MN-major matrices lie transposed.
    a, b = (
        (whole.t().contiguous() if asked[name] == "mn" else whole).to(device)
        for name, whole in ((name, matrix(problem, name)) for name in "ab")
    )
    d = torch.full((ROWS, asked["columns"]), torch.nan, device=device)
    adds = "sums" in problem.operands
    before = torch.from_numpy(problem.operands["sums"].copy()).to(device) if adds else torch.zeros_like(d)
    request = _Product(
        list(TYPES).index(problem.instruction), asked["columns"], matrix(problem, "a").shape[1], asked["swizzle"],
        asked["sign"], SOURCES.index(asked["a"]), SOURCES.index(asked["b"]), int(adds),
    )  # fmt: skip
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (a, b, before, d)]
    call(library, "golden_wgmma", ctypes.byref(request), *pointers)
    if device == "cuda":
        torch.cuda.synchronize()
    result: np.ndarray = d.cpu().numpy()
    return result


def exact(problem: Problem) -> np.ndarray:
    """The sums of a problem of integers, which float64 has all."""
    a, b = (matrix(problem, name).double().numpy() for name in "ab")
    return problem.settings["sign"] * (a @ b.T) + problem.operands.get("sums", 0.0)


def claim(problem: Problem, twin: np.ndarray) -> tuple[str, np.ndarray]:
    """The stated error in words, and the error that it allows for each result."""
    if problem.draw in INTEGERS:
        return "nothing, sums of integers being exact", np.zeros(twin.shape)
    a, b = (matrix(problem, name).double().abs().numpy() for name in "ab")
    sizes = a @ b.T + np.abs(problem.operands.get("sums", np.zeros(twin.shape)).astype(np.float64))
    return "2⁻²⁰ of the sum of its terms' sizes", 2.0**-20 * sizes
