"""What nvcc and Triton make of every kernel for every target: no spills, registers and shared memory within the chip's,
the matrix instruction of its generation where a product is large enough."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from build_support import decide, resources, triton_resources
from build_support.resources import Figures

TOOLKIT = decide.find_toolkit(os.environ)
PLANTED = resources.ROOT / "tests" / "simt"
MATRIX_KERNELS = PLANTED / "matrix_kernels.cu"
ATTENTION = ("causal_attention", "hstu_attention")
KERNELS = [*resources.op_kernels(), MATRIX_KERNELS]

needs_nvcc = pytest.mark.skipif(TOOLKIT is None, reason="no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@cache
def state_of_the_code() -> str:
    """A digest of all that nvcc might read, and of how it is called."""
    assert TOOLKIT is not None
    digest = hashlib.sha256(repr((TOOLKIT.version, resources.FLAGS, resources.ARCHITECTURES)).encode())
    for path in sorted([*resources.ROOT.glob("csrc/**/*"), *PLANTED.glob("*.cu*")]):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def figures(source: Path) -> list[Figures]:
    """What nvcc made of a source, compiled once for all test processes: the large ones take a minute each."""
    assert TOOLKIT is not None
    folder = resources.ROOT / "build" / "gates"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{source.stem}-{state_of_the_code()}.json"
    with open(folder / f"{source.stem}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            found = resources.measure(source, TOOLKIT, [PLANTED])
            fresh = kept.with_suffix(".new")
            fresh.write_text(json.dumps([dataclasses.asdict(one) for one in found]))
            os.replace(fresh, kept)
    return [Figures(**one) for one in json.loads(kept.read_text())]


@needs_nvcc
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: str(path.name))
def test_kernels_fit_every_target(source: Path) -> None:
    found = figures(source)
    assert {one.architecture for one in found} == set(resources.ARCHITECTURES)
    for one in found:
        assert one.spill_bytes == 0, one
        assert one.stack_bytes == 0, one
        assert 0 < one.registers <= 255, one
        assert one.shared_bytes <= resources.STATIC_SHARED_LIMIT, one
        if source.parent.name in ATTENTION and resources.cuobjdump() is not None and "sum_tables" not in one.kernel:
            tensor_cores = {"HMMA", "LDGSTS"} if ", float, " in one.kernel else {"HMMA", "LDGSTS", "LDSM"}
            assert tensor_cores <= set(one.instructions), one


@needs_nvcc
def test_spills_are_seen() -> None:
    found = figures(PLANTED / "spilling.cu")
    assert [one.architecture for one in found] == list(resources.ARCHITECTURES)
    assert all(one.spill_bytes > 0 and one.registers <= 32 for one in found)


@needs_nvcc
def test_ptx_becomes_the_instructions_it_names() -> None:
    if resources.cuobjdump() is None:
        pytest.skip("cuobjdump is neither on PATH nor in triton")
    expected = {"tiled": {"HMMA", "LDSM", "LDGSTS"}, "multiply": {"HMMA"}, "load": {"LDSM"}}
    for one in figures(MATRIX_KERNELS):
        (kernel,) = [name for name in expected if f"::{name}" in one.kernel]
        assert set(one.instructions) & {"HMMA", "LDSM", "LDGSTS"} == expected[kernel], one


@needs_nvcc
def test_the_table_names_every_kernel() -> None:
    assert TOOLKIT is not None
    # A test for each source compiles it; another one that wanted them all would wait for those.
    found = figures(MATRIX_KERNELS)
    page = resources.table(found, TOOLKIT)
    assert page.count("\n| `") == len(found)
    for one in found:
        assert f"| {one.architecture} | {one.registers} | 0 | 0 |" in page


@needs_nvcc
def test_a_source_that_nvcc_refuses(tmp_path: Path) -> None:
    assert TOOLKIT is not None
    source = tmp_path / "wrong.cu"
    source.write_text("__global__ void wrong() { undeclared(); }\n")
    with pytest.raises(decide.BuildError, match=r"nvcc refuses .*wrong\.cu"):
        resources.measure(source, TOOLKIT)


@needs_triton
@pytest.mark.parametrize("room", triton_resources.rooms())
def test_triton_kernels_fit_every_target(room: str) -> None:
    found = triton_resources.of_room(room)
    assert {one.target for one in found} == set(triton_resources.TARGETS)
    for one in found:
        assert one.stack_bytes == 0, one
        assert 0 < one.registers <= 255, one
        assert one.shared_bytes <= triton_resources.SHARED_LIMIT[one.target], one
        assert not one.expected or one.instructions.get(one.expected, 0) > 0, one


@needs_triton
def test_the_triton_gates_see_spills_and_matrix_instructions() -> None:
    found = {(one.case, one.target): one for one in triton_resources.of_room("tests.planted.triton_kernels")}
    for target, instruction in triton_resources.MATRIX.items():
        large, small = found["large", target], found["small", target]
        assert large.expected == instruction and set(large.instructions) == {instruction}
        assert small.expected == "mma.sync" and set(small.instructions) == {"mma.sync"}
        assert large.stack_bytes == small.stack_bytes == 0
        assert found["spilling", target].stack_bytes > 0


@needs_triton
def test_the_interpreter_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="TRITON_INTERPRET is set"):
        triton_resources.main(["--room", "rowwise_adagrad"])
