"""Golden vectors: a GPU's bit-exact results, on given numbers, of the instructions that have twins in the executor.

A vector is an instruction, how its operands were drawn, the operands and the result. `evaluate` computes results with
golden_kernels.cu, built by nvcc for a GPU or by the host compiler on the executor; `disagreement` compares a GPU's
results with the twins', each within the error that docs/simt.md states.
"""

from __future__ import annotations

import base64
import ctypes
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from build_support import compile as native
from build_support import decide

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
SOURCE = HERE / "golden_kernels.cu"
FUNCTIONS = (
    "ex2.approx", "tanh.approx", "expf", "__expf", "logf", "__logf", "tanhf", "rsqrtf", "bfloat16 rounding",
    "half rounding",
)  # fmt: skip
"""In the order of golden_kernels.cu."""
PRODUCTS = {"mma half": torch.float16, "mma bfloat16": torch.bfloat16, "mma tf32": torch.float32}
LOADS = ("ldmatrix", "ldmatrix transposed")
DRAWS = ("integers", "normal", "wide", "large sums")
CASES = 16
"""Products of a draw, and loads."""
_REPORT_BYTES = 4096


@dataclass(frozen=True)
class Vector:
    """An instruction's operands and its results, as arrays by name; `operands` of a product are fragments."""

    instruction: str
    draw: str
    operands: dict[str, np.ndarray]
    result: np.ndarray

    def as_values(self) -> dict[str, Any]:
        """The vector in the form of a line of results."""
        operands = {name: _packed(array) for name, array in self.operands.items()}
        return {
            "instruction": self.instruction, "draw": self.draw, "operands": operands, "result": _packed(self.result),
        }  # fmt: skip

    @classmethod
    def of(cls, line: dict[str, Any]) -> Vector:
        """The vector of a line."""
        operands = {name: _unpacked(packed) for name, packed in line["operands"].items()}
        return cls(line["instruction"], line["draw"], operands, _unpacked(line["result"]))


def _packed(array: np.ndarray) -> dict[str, Any]:
    content = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "base64": content}


def _unpacked(packed: dict[str, Any]) -> np.ndarray:
    content = np.frombuffer(base64.b64decode(packed["base64"]), dtype=packed["dtype"])
    return content.reshape(packed["shape"])


def vectors(device: str, library: Path) -> Iterator[Vector]:
    """All vectors of a device, drawn from fixed seeds."""
    for index, instruction in enumerate((*PRODUCTS, *LOADS, *FUNCTIONS)):
        random = np.random.default_rng(index)
        for draw in _draws(instruction):
            operands = _operands(instruction, draw, random)
            yield Vector(instruction, draw, operands, evaluate(instruction, operands, device, library))


def _draws(instruction: str) -> Sequence[str]:
    if instruction in PRODUCTS:
        return DRAWS
    return ("numbers",)


def _operands(instruction: str, draw: str, random: np.random.Generator) -> dict[str, np.ndarray]:
    if instruction in LOADS:
        return {"in": random.integers(0, 1 << 16, (CASES, 4, 8, 8), dtype=np.uint16)}
    if instruction in FUNCTIONS:
        return {"x": _arguments(instruction, random)}
    dtype = PRODUCTS[instruction]
    words = (4, 2)

    def fragment(count: int, numbers: np.ndarray) -> np.ndarray:
        stored = torch.from_numpy(numbers.astype(np.float32)).to(dtype)
        return stored.view(torch.int32).reshape(CASES, 32, count).numpy().view(np.uint32)

    halves = 1 if dtype == torch.float32 else 2
    left, right = (_numbers(draw, (CASES, 32, halves * count), random) for count in words)
    scale = 1e4 if draw == "large sums" else 1.0
    sums = (scale * _numbers(draw, (CASES, 32, 4), random)).astype(np.float32)
    return {"a": fragment(4, left), "b": fragment(2, right), "c": sums}


def _numbers(draw: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if draw == "integers":
        return random.integers(-8, 9, shape).astype(np.float64)
    numbers = random.standard_normal(shape)
    # Terms of very different sizes show how much of the small ones partial sums keep.
    return numbers * 2.0 ** random.integers(-7, 7, shape) if draw == "wide" else numbers


def _arguments(function: str, random: np.random.Generator) -> np.ndarray:
    """The operands that kernels may pass: exponents in float32's range, positive numbers for logarithms and roots."""
    count, positive = 2048, function in ("logf", "__logf", "rsqrtf")
    spread = random.standard_normal(count) * 2.0 ** random.integers(-20, 6, count)
    if positive:
        spread = np.abs(spread) + 2.0**-30
    edges = [1.0] if positive else [0.0, -0.0, 1.0, -1.0, 126.0, -126.0, 88.0, -87.0]
    return np.concatenate([spread[: count - len(edges)], edges]).astype(np.float32)


def evaluate(instruction: str, operands: dict[str, np.ndarray], device: str, library: Path) -> np.ndarray:
    """The results of the library's device for the operands.

    Raises:
        RuntimeError: the launch failed, with its report.
    """
    given = {name: torch.from_numpy(array.copy()).to(device) for name, array in operands.items()}
    loaded = _loaded(str(library))
    report = ctypes.create_string_buffer(_REPORT_BYTES)
    tail = (report, ctypes.c_size_t(_REPORT_BYTES))
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in given.values()]
    if instruction in PRODUCTS:
        out = torch.empty_like(given["c"])
        kind = ctypes.c_int(list(PRODUCTS).index(instruction))
        loaded.golden_multiply(kind, *pointers, ctypes.c_void_p(out.data_ptr()), ctypes.c_int(len(out)), *tail)
    elif instruction in LOADS:
        cases = len(given["in"])
        out = torch.empty((cases, 32, 4), dtype=torch.int32, device=device)
        kind = ctypes.c_int(LOADS.index(instruction))
        loaded.golden_load(kind, *pointers, ctypes.c_void_p(out.data_ptr()), ctypes.c_int(cases), *tail)
    else:
        out = torch.empty_like(given["x"])
        kind = ctypes.c_int(FUNCTIONS.index(instruction))
        loaded.golden_map(kind, *pointers, ctypes.c_void_p(out.data_ptr()), ctypes.c_int(out.numel()), *tail)
    if report.value:
        raise RuntimeError(f"{instruction}: {report.value.decode()}")
    if device == "cuda":
        torch.cuda.synchronize()
    result: np.ndarray = out.cpu().numpy()
    return result.view(np.uint32) if instruction in LOADS else result


@cache
def _loaded(library: str) -> ctypes.CDLL:
    return ctypes.CDLL(library)


UNSEEN = ("-DARGUS_WRITES_ARE_SEEN=false",)
"""Compiled without instrumentation: the executor does not know what device code has written."""


def build(device: str, folder: Path) -> Path:
    """Compiles golden_kernels.cu: by nvcc for the GPU here, or with the executor by the host compiler.

    Raises:
        BuildError: there is no compiler, or it refused, with its last line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"golden_{device}.so"
    if device == "cuda":
        toolkit = decide.find_toolkit(os.environ)
        if toolkit is None:
            raise decide.BuildError("golden vectors need nvcc, which is neither in CUDA_HOME nor on PATH")
        major, minor = torch.cuda.get_device_capability()
        name = f"{major}{minor}" + ("a" if major >= 9 else "")
        command = [str(toolkit.nvcc), *native.nvcc_flags([name]), "-shared", str(SOURCE)]
    else:
        flags = ("-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off", "-Icsrc", *UNSEEN)
        executor = sorted(str(path) for path in (REPOSITORY / "csrc/simt").glob("*.cpp"))
        compiler = shlex.split(decide.find_compiler(os.environ).command)
        command = [*compiler, *flags, "-Wno-unknown-pragmas", *executor, "-x", "c++", str(SOURCE)]
    done = subprocess.run([*command, "-o", str(made)], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise decide.BuildError(f"{Path(command[0]).name} refuses {SOURCE.name}: {last}")
    return made


def disagreement(vector: Vector, twin: np.ndarray) -> str | None:
    """How far the GPU's results differ from the twin's beyond the stated error; None if they agree."""
    claim, allowed = _claim(vector, twin)
    ours, theirs = twin.astype(np.float64), vector.result.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.where(ours == theirs, 0.0, np.abs(ours - theirs))
    # An infinity, whose unit in the last place is NaN, agrees with itself.
    wrong = ~((error == 0) | (error <= allowed) | (np.isnan(ours) & np.isnan(theirs)))
    if not wrong.any():
        return None
    place = tuple(int(index) for index in np.argwhere(wrong)[0])
    return (
        f"{vector.instruction}, {vector.draw}: {int(wrong.sum())} of {wrong.size} results differ by more than {claim}; "
        f"the first at {list(place)}: the GPU gave {vector.result[place]!r}, the twin {twin[place]!r}, "
        f"apart by {error[place]:.3e}"
    )


def _ulp(number: float) -> Callable[[np.ndarray], np.ndarray]:
    def allowed(values: np.ndarray) -> np.ndarray:
        normal = np.maximum(np.abs(values), 2.0**-126).astype(np.float32)
        return number * np.spacing(normal).astype(np.float64)

    return allowed


def _relative(part: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: part * np.abs(values).astype(np.float64) + 2.0**-126


def _claim(vector: Vector, twin: np.ndarray) -> tuple[str, np.ndarray]:
    """The stated error in words, and the error that it allows for each result."""
    if vector.instruction in LOADS:
        return "nothing", np.zeros(twin.shape)
    if vector.instruction in PRODUCTS:
        if vector.draw == "integers":
            return "nothing, sums of integers being exact", np.zeros(twin.shape)
        # At worst the sum and its 16 products are each truncated at 2⁻²⁴ of the largest.
        return "2⁻²⁰ of the sum of its terms' sizes", 2.0**-20 * _sizes(vector)
    x = vector.operands["x"].astype(np.float64)
    if vector.instruction == "__expf":
        return "3 + ⌊|1.173 x|⌋ ulp", _ulp(1.0)(twin) * (3 + np.floor(np.abs(1.173 * x)))
    if vector.instruction == "__logf":
        near = (x >= 0.5) & (x <= 2)
        return "2⁻²¹·⁴¹ on [0.5, 2] and 4 ulp elsewhere", np.where(near, 2.0**-21.41, _ulp(4.0)(twin))
    words, allowed = _FUNCTION_CLAIMS[vector.instruction]
    return words, allowed(twin)


_FUNCTION_CLAIMS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "ex2.approx": ("2⁻²² of the result", _relative(2.0**-22)),
    "tanh.approx": ("2⁻¹¹ of the result", _relative(2.0**-11)),
    "expf": ("3 ulp", _ulp(3.0)),
    "logf": ("3 ulp", _ulp(3.0)),
    "tanhf": ("3 ulp", _ulp(3.0)),
    "rsqrtf": ("2 ulp", _ulp(2.0)),
    "bfloat16 rounding": ("nothing", _relative(0.0)),
    "half rounding": ("nothing", _relative(0.0)),
}


def _sizes(vector: Vector) -> np.ndarray:
    """|c| + Σ |a · b| of every element of the products, in the accumulator's layout."""
    dtype = PRODUCTS[vector.instruction]
    halves = 1 if dtype == torch.float32 else 2

    def numbers(name: str, count: int) -> np.ndarray:
        words = torch.from_numpy(vector.operands[name].view(np.int32).copy())
        return words.view(dtype).reshape(-1, 32, count, halves).abs().double().numpy()

    a, b = numbers("a", 4), numbers("b", 2)
    cases, group, pair = len(a), np.arange(32) // 4, np.arange(32) % 4
    left, right = np.zeros((cases, 16, 8 * halves)), np.zeros((cases, 8 * halves, 8))
    for half in range(halves):
        for word in range(4):
            left[:, group + word % 2 * 8, halves * pair + half + word // 2 * 4 * halves] = a[:, :, word, half]
        for word in range(2):
            right[:, halves * pair + half + word * 4 * halves, group] = b[:, :, word, half]
    whole = left @ right
    rows, columns = group[:, None] + np.array([0, 0, 8, 8]), 2 * pair[:, None] + np.array([0, 1, 0, 1])
    sizes: np.ndarray = np.abs(vector.operands["c"].astype(np.float64)) + whole[:, rows, columns]
    return sizes
