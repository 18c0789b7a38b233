"""Golden vectors: what GPUs gave is what the executor's twins give, within what is claimed of each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu_session import golden
from benchmarks.gpu_session.golden import Vector
from benchmarks.gpu_session.report import GOLDEN
from build_support import decide
from tests.csrc.simt import host_executor

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
    return list(golden.vectors("cpu", library))


@pytest.mark.skipif(not FILES, reason="no GPU has given golden vectors yet")
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_the_twins_give_what_the_gpu_gave(file: Path, library: Path) -> None:
    given = [Vector.of(json.loads(line)) for line in file.read_text().splitlines()]
    assert given
    for vector in given:
        twin = golden.evaluate(vector.instruction, vector.operands, "cpu", library)
        assert golden.disagreement(vector, twin) is None


def test_every_twin_has_vectors_that_survive_their_line(twins: list[Vector], library: Path) -> None:
    assert {vector.instruction for vector in twins} == {*golden.PRODUCTS, *golden.LOADS, *golden.FUNCTIONS}
    for vector in twins:
        again = Vector.of(json.loads(json.dumps(vector.as_values())))
        assert np.array_equal(again.result, vector.result, equal_nan=True)
        twin = golden.evaluate(again.instruction, again.operands, "cpu", library)
        assert golden.disagreement(again, twin) is None


def test_products_of_positive_integers_are_those_of_matrices(twins: list[Vector], library: Path) -> None:
    for name, sign in (("mma half", 0x7FFF7FFF), ("mma bfloat16", 0x7FFF7FFF), ("mma tf32", 0x7FFFFFFF)):
        vector = next(one for one in twins if one.instruction == name and one.draw == "integers")
        a, b = (vector.operands[part] & np.uint32(sign) for part in "ab")
        operands = {"a": a, "b": b, "c": np.abs(vector.operands["c"])}
        result = golden.evaluate(name, operands, "cpu", library)
        # The sizes of the terms are taken from the fragments to whole matrices, multiplied there, and put back.
        assert np.array_equal(result, golden._sizes(Vector(name, "integers", operands, result)))


def test_a_result_that_is_off_is_named(twins: list[Vector]) -> None:
    for vector in twins:
        wrong = vector.result.copy()
        if vector.instruction in golden.LOADS:
            wrong.reshape(-1)[5] ^= 1 << 16
        else:
            wrong.reshape(-1)[5] *= np.float32(1 + 2.0**-9)
        found = golden.disagreement(Vector(vector.instruction, vector.draw, vector.operands, wrong), vector.result)
        assert found is not None and "1 of 2048 results differ" in found and vector.instruction in found


@pytest.mark.skipif(
    decide.find_toolkit(os.environ) is None, reason="no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda"
)
def test_the_same_source_compiles_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    made = golden.build("cuda", tmp_path)
    assert b"sm_90a" in made.read_bytes()
    monkeypatch.setattr(golden, "SOURCE", tmp_path / "nowhere.cu")
    with pytest.raises(decide.BuildError, match=r"nvcc refuses nowhere\.cu"):
        golden.build("cuda", tmp_path)
