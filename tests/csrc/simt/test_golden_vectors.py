"""Golden vectors: what GPUs gave is what the executor's twins give, within what is claimed of each."""

from __future__ import annotations

import ctypes
import json
import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu_session import golden, golden_tma, golden_wgmma
from benchmarks.gpu_session.golden_vector import INTEGERS, Problem, Vector
from benchmarks.gpu_session.report import GOLDEN
from build_support import decide
from tests.csrc.simt import host_executor
from tests.csrc.simt.test_sm90_layouts import swizzle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(host_executor.why_not() is not None, reason=str(host_executor.why_not())),
]

FILES = sorted(GOLDEN.glob("*.jsonl"))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden.build("cpu", tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def twins(library: Path) -> list[Vector]:
    return [Vector(problem, golden.evaluate(problem, "cpu", library)) for problem in golden.problems()]


@pytest.mark.skipif(not FILES, reason="no GPU has given golden vectors yet")
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_the_twins_give_what_the_gpu_gave(file: Path, library: Path) -> None:
    given = [Vector.of(json.loads(line)) for line in file.read_text().splitlines()]
    assert given
    for vector in given:
        twin = golden.evaluate(vector.problem, "cpu", library)
        assert golden.disagreement(vector, twin) is None


def test_every_twin_has_vectors_that_survive_their_line(twins: list[Vector], library: Path) -> None:
    named = {instruction for instructions in golden.PARTS.values() for instruction in instructions}
    assert {vector.problem.instruction for vector in twins} == named
    size = 0
    for vector in twins:
        line = json.dumps(vector.as_values())
        size += len(line)
        again = Vector.of(json.loads(line))
        assert again.problem.settings == vector.problem.settings
        assert np.array_equal(again.result, vector.result, equal_nan=True)
        twin = golden.evaluate(again.problem, "cpu", library)
        assert golden.disagreement(again, twin) is None
    assert size < 4 << 20


def test_products_of_positive_integers_are_those_of_matrices(twins: list[Vector], library: Path) -> None:
    for name, sign in (("mma half", 0x7FFF7FFF), ("mma bfloat16", 0x7FFF7FFF), ("mma tf32", 0x7FFFFFFF)):
        given = next(one.problem for one in twins if one.problem.instruction == name and one.problem.draw == "integers")
        a, b = (given.operands[part] & np.uint32(sign) for part in "ab")
        problem = Problem(name, "integers", {"a": a, "b": b, "c": np.abs(given.operands["c"])})
        result = golden.evaluate(problem, "cpu", library)
        # The sizes of the terms are taken from the fragments to whole matrices, multiplied there, and put back.
        assert np.array_equal(result, golden._sizes(problem))


@pytest.mark.parametrize("instruction", golden_wgmma.TYPES)
def test_products_of_integers_in_every_layout_are_numpys(twins: list[Vector], instruction: str) -> None:
    found = [
        vector for vector in twins if vector.problem.instruction == instruction and vector.problem.draw in INTEGERS
    ]
    narrow = {(one["swizzle"], one["a"], one["b"]) for one in (vector.problem.settings for vector in found)}
    tf32 = instruction == "wgmma tf32"
    sources, majors = (("k",), ("k",)) if tf32 else (golden_wgmma.SOURCES, ("k", "mn"))
    assert narrow == set(product(golden_wgmma.SWIZZLES, sources, majors))
    columns = {vector.problem.settings["columns"] for vector in found}
    assert columns == ({64, 128} if tf32 else {64, 128, 256})
    assert {vector.problem.settings["sign"] for vector in found if "sums" in vector.problem.operands} == {1, -1}
    for vector in found:
        exact = golden_wgmma.exact(vector.problem)
        assert np.abs(exact).max() > 8 and np.array_equal(vector.result, exact), vector.problem.name()


def test_sums_cut_off_two_bits_early_are_within_four_times_the_claim(twins: list[Vector], library: Path) -> None:
    """The pessimistic mode cuts two bits before those where tensor cores were found to."""
    found = [vector for vector in twins if vector.problem.instruction in golden_wgmma.TYPES]
    changed = 0
    with host_executor.pessimistic(ctypes.CDLL(str(library))):
        for vector in found:
            cut = golden.evaluate(vector.problem, "cpu", library)
            changed += not np.array_equal(cut, vector.result)
            _, allowed = golden_wgmma.claim(vector.problem, vector.result)
            error = np.abs(cut.astype(np.float64) - vector.result)
            assert np.all(error <= 4 * allowed), vector.problem.name()
    inexact = [vector for vector in found if vector.problem.draw not in INTEGERS]
    assert changed == len(inexact) > 0


def expected_load(problem: Problem, at: np.ndarray) -> np.ndarray:
    """The elements of one box as they lie in shared memory, by numpy's indexing and the PTX manual's tables."""
    values, element, inside = indexed(problem, at)
    placed = np.empty(len(values), values.dtype)
    placed[place_in_shared(problem, len(values))] = np.where(inside, problem.operands["tensor"][element], 0)
    return placed


def indexed(problem: Problem, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each element of the box in order: zeros, its index in the tensor (0 outside), whether it is inside."""
    settings, tensor = problem.settings, problem.operands["tensor"]
    box, extents = settings["box"], np.array(settings["extents"])
    index = np.stack(np.unravel_index(np.arange(np.prod(box)), box[::-1]))[::-1] + at[:, None]
    inside = np.all((index >= 0) & (index < extents[:, None]), axis=0)
    strides = np.array([1, *(stride // tensor.itemsize for stride in settings["strides"])])
    return np.zeros(len(inside), tensor.dtype), np.where(inside, strides @ index, 0), inside


def place_in_shared(problem: Problem, count: int) -> np.ndarray:
    size, offset = problem.operands["tensor"].itemsize, problem.settings["offset"]
    return (swizzle(problem.settings["swizzle"], offset + size * np.arange(count)) - offset) // size


def expected_store(problem: Problem, at: np.ndarray) -> np.ndarray:
    """The tensor after the store of a box."""
    stored, tile = problem.operands["tensor"].copy(), problem.operands["tile"]
    _, element, inside = indexed(problem, at)
    stored[element[inside]] = tile[place_in_shared(problem, len(tile))][inside]
    return stored


def expected_user_rows(problem: Problem, case: np.ndarray) -> np.ndarray:
    """A user's rows of one head, zeros behind the last one and behind the head's width, in boxes of 64 columns."""
    settings, tensor = problem.settings, problem.operands["tensor"]
    begin, length, head, first = map(int, case)
    depth = 64 if settings["width"] <= 64 else 128
    rows = np.zeros((golden_tma.USER_ROWS, depth), tensor.dtype)
    packed = tensor.reshape(-1, settings["row_stride"])[begin : begin + length]
    own = packed[first : first + golden_tma.USER_ROWS, head * settings["width"] :][:, : settings["width"]]
    rows[: len(own), : own.shape[1]] = own
    in_boxes = rows.reshape(-1, depth // 64, 64).swapaxes(0, 1).reshape(-1)
    placed = np.empty_like(in_boxes)
    placed[swizzle(128, 2 * np.arange(len(in_boxes))) // 2] = in_boxes
    return placed


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        (golden_tma.LOAD, expected_load),
        (golden_tma.STORE, expected_store),
        (golden_tma.USER, expected_user_rows),
    ],
)
def test_boxes_are_those_of_numpy(twins: list[Vector], instruction: str, expected: object) -> None:
    assert callable(expected)
    found = [vector for vector in twins if vector.problem.instruction == instruction]
    assert found
    for vector in found:
        for case, result in zip(vector.problem.operands["at"], vector.result, strict=True):
            assert np.array_equal(result, expected(vector.problem, case)), f"{vector.problem.name()} at {case}"


def without_subnormals(numbers: np.ndarray) -> np.ndarray:
    return np.where(np.abs(numbers) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), numbers), numbers)


def test_bulk_copies_are_those_of_numpy(twins: list[Vector]) -> None:
    found = [vector for vector in twins if vector.problem.instruction in (golden_tma.BULK_STORE, golden_tma.BULK_ADD)]
    assert {vector.problem.draw for vector in found} == {"bits", "normal", "wide", "edges"}
    for vector in found:
        settings, after = vector.problem.settings, vector.problem.operands["to"].copy()
        shared, first, count = (settings[name] // 4 for name in ("shared_offset", "global_offset", "bytes"))
        assert first > 0 or count == len(after)
        for part in vector.problem.operands["parts"]:
            own = part[shared : shared + count]
            if vector.problem.instruction == golden_tma.BULK_ADD:
                before, added = (
                    without_subnormals(one.view(np.float32)) for one in (after[first : first + count], own)
                )
                with np.errstate(over="ignore"):
                    own = without_subnormals(before + added).view(np.uint32)
            after[first : first + count] = own
        assert np.array_equal(vector.result, after), vector.problem.name()


def test_boxes_hang_over_every_edge(twins: list[Vector]) -> None:
    loads = [vector.problem for vector in twins if vector.problem.instruction == golden_tma.LOAD]
    kinds = {(one.settings["type"], one.settings["swizzle"], len(one.settings["extents"])) for one in loads}
    assert kinds == set(product(golden_tma.TYPES, golden_tma.SWIZZLES, (2, 5)))
    for problem in loads:
        at = problem.operands["at"]
        box, extents = (np.array(problem.settings[name]) for name in ("box", "extents"))
        below, above = at < 0, at + box > extents
        partly = ~np.any((at + box <= 0) | (at >= extents), axis=1)
        assert np.all(below[partly].any(axis=0) & above[partly].any(axis=0))
        assert np.any(~below.any(axis=1) & ~above.any(axis=1)) and not partly.all()


def test_a_result_that_is_off_is_named(twins: list[Vector]) -> None:
    for vector in twins:
        wrong = vector.result.copy()
        if np.issubdtype(wrong.dtype, np.integer):
            wrong.reshape(-1)[5] ^= 1 << 8 * wrong.itemsize - 1
        else:
            largest = np.nanargmax(np.where(np.isinf(wrong), 0, np.abs(wrong)))
            wrong.reshape(-1)[largest] *= np.float32(1 + 2.0**-9)
        found = golden.disagreement(Vector(vector.problem, wrong), vector.result)
        assert found is not None and f"1 of {wrong.size} results differ" in found
        assert found.startswith(vector.problem.name())


@pytest.mark.skipif(
    decide.find_toolkit(os.environ) is None, reason="no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda"
)
@pytest.mark.parametrize(("capability", "architecture"), [((9, 0), b"sm_90a"), ((8, 0), b"sm_80")])
def test_the_same_source_compiles_for_a_gpu(
    capability: tuple[int, int], architecture: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    made = golden.build("cuda", tmp_path)
    assert architecture in made.read_bytes()
    monkeypatch.setitem(golden.SOURCES, "wgmma", "nowhere.cu")
    with pytest.raises(decide.BuildError, match=r"nvcc refuses nowhere\.cu"):
        golden.build("cuda", tmp_path, ["wgmma"])
