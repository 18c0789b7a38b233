"""Golden vectors: a GPU's bit-exact results, on given numbers, of the instructions that have twins in the executor.

A vector is an instruction, how its operands were drawn, the operands and the result. `evaluate` computes results with
golden_kernels.cu, golden_wgmma.cu or golden_tma.cu, built by nvcc for a GPU or by the host compiler on the executor;
`disagreement` compares a GPU's results with the twins', each within the error that docs/simt.md states.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu_session import golden_tma, golden_wgmma
from benchmarks.gpu_session.golden_vector import DRAWS, INTEGERS, Problem, Vector, call, numbers, sums
from build_support import compile as native
from build_support import decide

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
FUNCTIONS = (
    "ex2.approx", "tanh.approx", "expf", "__expf", "logf", "__logf", "tanhf", "rsqrtf", "bfloat16 rounding",
    "half rounding",
)  # fmt: skip
"""In the order of golden_kernels.cu."""
PRODUCTS = {"mma half": torch.float16, "mma bfloat16": torch.bfloat16, "mma tf32": torch.float32}
LOADS = ("ldmatrix", "ldmatrix transposed")
CASES = 16
"""Products of a draw, and loads."""
PARTS = {
    "instructions": (*PRODUCTS, *LOADS, *FUNCTIONS),
    "wgmma": tuple(golden_wgmma.TYPES),
    "TMA": golden_tma.INSTRUCTIONS,
}
"""The instructions of each part; those after the first are sm_90's."""
SOURCES = {"instructions": "golden_kernels.cu", "wgmma": "golden_wgmma.cu", "TMA": "golden_tma.cu"}


def problems(parts: Sequence[str] = tuple(PARTS)) -> Iterator[Problem]:
    """All problems of these parts, drawn from fixed seeds."""
    if "instructions" in parts:
        for index, instruction in enumerate(PARTS["instructions"]):
            random = np.random.default_rng(index)
            for draw in _draws(instruction):
                yield Problem(instruction, draw, _operands(instruction, draw, random))
    if "wgmma" in parts:
        yield from golden_wgmma.problems()
    if "TMA" in parts:
        yield from golden_tma.problems()


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

    def fragment(count: int, drawn: np.ndarray) -> np.ndarray:
        stored = torch.from_numpy(drawn.astype(np.float32)).to(dtype)
        return stored.view(torch.int32).reshape(CASES, 32, count).numpy().view(np.uint32)

    halves = 1 if dtype == torch.float32 else 2
    left, right = (numbers(draw, (CASES, 32, halves * count), random) for count in words)
    return {"a": fragment(4, left), "b": fragment(2, right), "c": sums(draw, (CASES, 32, 4), random)}


def _arguments(function: str, random: np.random.Generator) -> np.ndarray:
    """The operands that kernels may pass: exponents in float32's range, positive numbers for logarithms and roots."""
    count, positive = 2048, function in ("logf", "__logf", "rsqrtf")
    spread = random.standard_normal(count) * 2.0 ** random.integers(-20, 6, count)
    if positive:
        spread = np.abs(spread) + 2.0**-30
    edges = [1.0] if positive else [0.0, -0.0, 1.0, -1.0, 126.0, -126.0, 88.0, -87.0]
    return np.concatenate([spread[: count - len(edges)], edges]).astype(np.float32)


def evaluate(problem: Problem, device: str, library: Path) -> np.ndarray:
    """The results of the library's device for a problem.

    Raises:
        RuntimeError: the launch failed, with its report.
    """
    try:
        if problem.instruction in PARTS["wgmma"]:
            return golden_wgmma.evaluate(problem, device, library)
        if problem.instruction in PARTS["TMA"]:
            return golden_tma.evaluate(problem, device, library)
        return _evaluate(problem.instruction, problem.operands, device, library)
    except RuntimeError as error:
        raise RuntimeError(f"{problem.name()}: {error}") from error


def _evaluate(instruction: str, operands: dict[str, np.ndarray], device: str, library: Path) -> np.ndarray:
    given = {name: torch.from_numpy(array.copy()).to(device) for name, array in operands.items()}
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in given.values()]
    if instruction in PRODUCTS:
        function, out = "golden_multiply", torch.empty_like(given["c"])
        index, count = list(PRODUCTS).index(instruction), len(out)
    elif instruction in LOADS:
        out = torch.empty((len(given["in"]), 32, 4), dtype=torch.int32, device=device)
        function, index, count = "golden_load", LOADS.index(instruction), len(out)
    else:
        function, out = "golden_map", torch.empty_like(given["x"])
        index, count = FUNCTIONS.index(instruction), out.numel()
    call(library, function, ctypes.c_int(index), *pointers, ctypes.c_void_p(out.data_ptr()), ctypes.c_int(count))
    if device == "cuda":
        torch.cuda.synchronize()
    result: np.ndarray = out.cpu().numpy()
    return result.view(np.uint32) if instruction in LOADS else result


UNSEEN = ("-DARGUS_WRITES_ARE_SEEN=false",)
"""Compiled without instrumentation: the executor does not know what device code has written."""


def build(device: str, folder: Path, parts: Sequence[str] = tuple(PARTS)) -> Path:
    """Compiles the kernels of these parts: by nvcc for the GPU here, or with the executor by the host compiler.

    Raises:
        BuildError: there is no compiler, or it refused, with its last line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"golden_{device}.so"
    sources = [str(HERE / SOURCES[part]) for part in parts]
    if device == "cuda":
        toolkit = decide.find_toolkit(os.environ)
        if toolkit is None:
            raise decide.BuildError("golden vectors need nvcc, which is neither in CUDA_HOME nor on PATH")
        major, minor = torch.cuda.get_device_capability()
        name = f"{major}{minor}" + ("a" if major >= 9 else "")
        # Host code only launches; optimising it would take a third of the time.
        command = [str(toolkit.nvcc), *native.nvcc_flags([name]), "-Xcompiler=-O0", "-shared", *sources]
    else:
        flags = ("-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off", "-Icsrc", *UNSEEN)
        executor = sorted(str(path) for path in (REPOSITORY / "csrc/simt").glob("*.cpp"))
        compiler = shlex.split(decide.find_compiler(os.environ).command)
        command = [*compiler, *flags, "-Wno-unknown-pragmas", "-Wno-psabi", *executor, "-x", "c++", *sources]
    done = subprocess.run([*command, "-o", str(made)], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        names = ", ".join(SOURCES[part] for part in parts)
        raise decide.BuildError(f"{Path(command[0]).name} refuses {names}: {last}")
    return made


def why_not(part: str, device: str) -> str | None:
    """Why a part cannot be run on this device, or None; the executor runs every one."""
    if device != "cuda" or part == "instructions":
        return None
    capability = torch.cuda.get_device_capability()
    if capability == (9, 0):
        return None
    return f"compute capability is {capability[0]}.{capability[1]}, expected 9.0"


def disagreement(vector: Vector, twin: np.ndarray) -> str | None:
    """How far the GPU's results differ from the twin's beyond the stated error; None if they agree."""
    claim, allowed = _claim(vector.problem, twin)
    ours, theirs = twin.astype(np.float64), vector.result.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.where(ours == theirs, 0.0, np.abs(ours - theirs))
    # An infinity, whose unit in the last place is NaN, agrees with itself.
    wrong = ~((error == 0) | (error <= allowed) | (np.isnan(ours) & np.isnan(theirs)))
    if not wrong.any():
        return None
    place = tuple(int(index) for index in np.argwhere(wrong)[0])
    return (
        f"{vector.problem.name()}: {int(wrong.sum())} of {wrong.size} results differ by more than {claim}; "
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


def _claim(problem: Problem, twin: np.ndarray) -> tuple[str, np.ndarray]:
    """The stated error in words, and the error that it allows for each result."""
    if problem.instruction in PARTS["wgmma"]:
        return golden_wgmma.claim(problem, twin)
    if problem.instruction in (*PARTS["TMA"], *LOADS):
        return "nothing", np.zeros(twin.shape)
    if problem.instruction in PRODUCTS:
        if problem.draw in INTEGERS:
            return "nothing, sums of integers being exact", np.zeros(twin.shape)
        # At worst the sum and its 16 products are each truncated at 2⁻²⁴ of the largest.
        return "2⁻²⁰ of the sum of its terms' sizes", 2.0**-20 * _sizes(problem)
    x = problem.operands["x"].astype(np.float64)
    if problem.instruction == "__expf":
        return "3 + ⌊|1.173 x|⌋ ulp", _ulp(1.0)(twin) * (3 + np.floor(np.abs(1.173 * x)))
    if problem.instruction == "__logf":
        near = (x >= 0.5) & (x <= 2)
        return "2⁻²¹·⁴¹ on [0.5, 2] and 4 ulp elsewhere", np.where(near, 2.0**-21.41, _ulp(4.0)(twin))
    words, allowed = _FUNCTION_CLAIMS[problem.instruction]
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


def _sizes(problem: Problem) -> np.ndarray:
    """|c| + Σ |a · b| of every element of the products, in the accumulator's layout."""
    dtype = PRODUCTS[problem.instruction]
    halves = 1 if dtype == torch.float32 else 2

    def magnitudes(name: str, count: int) -> np.ndarray:
        words = torch.from_numpy(problem.operands[name].view(np.int32).copy())
        return words.view(dtype).reshape(-1, 32, count, halves).abs().double().numpy()

    a, b = magnitudes("a", 4), magnitudes("b", 2)
    cases, group, pair = len(a), np.arange(32) // 4, np.arange(32) % 4
    left, right = np.zeros((cases, 16, 8 * halves)), np.zeros((cases, 8 * halves, 8))
    for half in range(halves):
        for word in range(4):
            left[:, group + word % 2 * 8, halves * pair + half + word // 2 * 4 * halves] = a[:, :, word, half]
        for word in range(2):
            right[:, halves * pair + half + word * 4 * halves, group] = b[:, :, word, half]
    whole = left @ right
    rows, columns = group[:, None] + np.array([0, 0, 8, 8]), 2 * pair[:, None] + np.array([0, 1, 0, 1])
    sizes: np.ndarray = np.abs(problem.operands["c"].astype(np.float64)) + whole[:, rows, columns]
    return sizes
