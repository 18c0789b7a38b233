"""Golden vectors: what GPUs gave is what the executor's twins give, within what is claimed of each; and it is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu_session import golden
from benchmarks.gpu_session.golden import Vector
from benchmarks.gpu_session.report import GOLDEN
from tests.simt import host_executor

pytestmark = pytest.mark.skipif(host_executor.why_not() is not None, reason=str(host_executor.why_not()))

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


def test_products_are_those_of_matrices(twins: list[Vector]) -> None:
    """The layouts of the fragments, as `_sizes` takes them apart: products of positive integers are their own sizes."""
    for name in golden.PRODUCTS:
        vector = next(one for one in twins if one.instruction == name and one.draw == "integers")
        assert (np.abs(vector.result) <= golden._sizes(vector)).all()
        assert (golden._sizes(vector) > np.abs(vector.operands["c"])).mean() > 0.99


def test_a_result_that_is_off_is_named(twins: list[Vector]) -> None:
    for vector in twins:
        wrong = vector.result.copy()
        if vector.instruction in golden.LOADS:
            wrong.reshape(-1)[5] ^= 1 << 16
        else:
            wrong.reshape(-1)[5] *= np.float32(1 + 2.0**-9)
        found = golden.disagreement(Vector(vector.instruction, vector.draw, vector.operands, wrong), vector.result)
        assert found is not None and "1 of 2048 results differ" in found and vector.instruction in found
