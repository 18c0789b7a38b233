"""What nvcc and Triton make of every kernel for every target: no spills, registers and shared memory within the chip's,
the matrix instruction of its generation where a product is large enough. And the library of what nvcc made."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from argus_kernels.core.triton_support import SHARED_LIMIT
from build_support import compile as native
from build_support import decide, resources, triton_resources
from build_support.decide import DEFAULT_ARCHITECTURES
from build_support.resources import Figures
from tests import kept_objects

TOOLKIT = decide.find_toolkit(os.environ)
PLANTED = resources.ROOT / "tests" / "csrc" / "simt"
MATRIX_KERNELS = PLANTED / "matrix_kernels.cu"
ATTENTION = ("causal_attention", "hstu_attention")
WITHOUT_PRODUCTS = ("sum_tables", "backward_preparation", "backward_finish")
"""Kernels of theirs."""
SAMPLED = ("90a",)
SAMPLED_KERNELS, SAMPLED_ROOMS = ("rowwise_adagrad_cuda.cu",), ("rowwise_adagrad",)
"""What `make test` compiles beside the planted kernels; `make test-all` compiles all kernels for all architectures."""
OTHER_TARGETS = tuple(target for target in triton_resources.TARGETS if target != 90)
COMPILED = [
    pytest.param(
        source,
        architectures,
        marks=[pytest.mark.slow] * (architectures != SAMPLED),
        id=f"{'+'.join(architectures)}-{source.name}",
    )
    for architectures in (SAMPLED, DEFAULT_ARCHITECTURES)
    for source in (*resources.op_kernels(), MATRIX_KERNELS)
    # What all architectures are compiled for needs no sample.
    if architectures != SAMPLED or source.name in SAMPLED_KERNELS
]

needs_nvcc = pytest.mark.skipif(TOOLKIT is None, reason="no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@cache
def state_of(source: Path, flags: tuple[str, ...]) -> str:
    """A digest of all that nvcc reads of this tree for a source, and of how it is called."""
    assert TOOLKIT is not None
    called = (TOOLKIT.version, decide.find_compiler(os.environ), flags)
    read = kept_objects.read_by(source, (resources.ROOT / "csrc", PLANTED))
    return kept_objects.digest(repr(called), source.name, *(path.read_bytes() for path in read))


def compiled(source: Path, wait: bool = True, flags: tuple[str, ...] = resources.FLAGS) -> tuple[Path, Path] | None:
    """What nvcc made of a source, its object file and the figures in JSON, once for all test processes: the large ones
    take minutes. None where another process is at it and nothing is to wait."""
    assert TOOLKIT is not None
    name = source.stem if flags == resources.FLAGS else f"{source.stem}.sampled"
    figures_of = kept_objects.folder("gates") / f"{name}-{state_of(source, flags)}.json"
    made = figures_of.with_suffix(".o")

    def build(fresh: Path) -> None:
        include = [PLANTED] if source.parent == PLANTED else ()
        found = resources.measure(source, TOOLKIT, include, made, flags)
        fresh.write_text(json.dumps([dataclasses.asdict(one) for one in found]))

    return (made, figures_of) if kept_objects.make(figures_of, build, wait) else None


@cache
def figures(source: Path, flags: tuple[str, ...] = resources.FLAGS) -> list[Figures]:
    """What ptxas and the machine code of a source say."""
    found = compiled(source, flags=flags)
    assert found is not None
    return [Figures(**one) for one in json.loads(found[1].read_text())]


def objects(sources: Sequence[Path]) -> dict[str, Path]:
    """The object file of each source, by its name in a build."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # Those first that nobody is compiling yet.
        list(pool.map(lambda source: compiled(source, wait=False), sources))
        found = list(pool.map(compiled, sources))
    return {str(path.relative_to(resources.ROOT)): one[0] for path, one in zip(sources, found, strict=True) if one}


def attention_instructions(one: Figures) -> set[str]:
    """What an attention kernel must have become; those of sm_90a alone are empty elsewhere."""
    tables_alone = "query_gradient_kernel" in one.kernel and ", true>" in one.kernel
    if "_loop_kernel" in one.kernel:
        return {"HGMMA", "UTMALDG"} if one.architecture == "90a" else set()
    if any(name in one.kernel for name in WITHOUT_PRODUCTS) or (tables_alone and one.architecture != "90a"):
        return set()
    return {"HMMA", "LDGSTS"} if ", float, " in one.kernel else {"HMMA", "LDGSTS", "LDSM"}


@needs_nvcc
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("source", "architectures"), COMPILED)
def test_kernels_fit_every_target(source: Path, architectures: tuple[str, ...]) -> None:
    found = figures(source, native.nvcc_flags(architectures))
    assert {one.architecture for one in found} == {name.removesuffix("+PTX") for name in architectures}
    for one in found:
        assert one.spill_bytes == 0, one
        assert one.stack_bytes == 0, one
        assert 0 < one.registers <= 255, one
        assert one.shared_bytes <= resources.STATIC_SHARED_LIMIT, one
        if source.parent.name in ATTENTION and resources.cuobjdump() is not None:
            assert attention_instructions(one) <= set(one.instructions), one


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


STAND_IN = """#!{python}
import os, shutil, sys
objects, flags, asked = {objects!r}, {flags!r}, sys.argv[1:]
source, made = asked[asked.index("-c") + 1], asked[-1]
expected = ["-ccbin", {compiler!r}, "-MD", "-MF", made + ".d", *flags, "-c", source, "-o", made]
if asked != expected:
    sys.exit(f"asked for {{asked}}, and the gates compiled with {{expected}}")
with open(made + ".d", "w") as dependencies:
    dependencies.write(f"{{made}}: {{source}}\\n")
shutil.copy(objects[source], made)
"""
"""An nvcc that hands out what the gates have compiled, where it is asked for just that."""


@pytest.fixture(scope="module")
def cuda_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """_ops_cuda.so for the default architectures, built by the build's own rules."""
    assert TOOLKIT is not None
    folder, compiler = tmp_path_factory.mktemp("cuda"), decide.find_compiler(os.environ)
    made = {source: str(path) for source, path in objects(resources.op_kernels()).items()}
    nvcc = folder / "nvcc"
    nvcc.write_text(
        STAND_IN.format(python=sys.executable, objects=made, flags=list(resources.FLAGS), compiler=compiler.program)
    )
    nvcc.chmod(0o755)
    decision = decide.decide_cuda({"ARGUS_CUDA": "1"}, TOOLKIT, gpu=False)
    library = native.cuda_library(resources.ROOT, decision, TOOLKIT)
    toolkit = dataclasses.replace(TOOLKIT, nvcc=nvcc)
    return native.build([library], resources.ROOT, folder / "build", compiler, toolkit)["cuda"]


def found_in(binary: Path, option: str, pattern: str) -> set[str]:
    """What cuobjdump says of a library's machine code."""
    program = resources.cuobjdump()
    if program is None:
        pytest.skip("cuobjdump is neither on PATH nor in triton")
    listing = subprocess.check_output([program, option, str(binary)], text=True)
    return set(re.findall(pattern, listing, re.MULTILINE))


@pytest.mark.slow
@needs_nvcc
class TestCudaLibrary:
    def test_it_holds_code_for_the_architectures_asked_for_and_no_other(self, cuda_library: Path) -> None:
        # The list leaves the letter of sm_90a out; the gates have seen it in these objects.
        asked = {f"sm_{name.rstrip('a')}" for name in resources.ARCHITECTURES}
        assert found_in(cuda_library, "--list-elf", r"\.(sm_\w+)\.cubin$") == asked
        assert found_in(cuda_library, "--list-ptx", r"\.(sm_\w+)\.ptx$") == {"sm_100"}

    def test_one_architecture_alone(self, tmp_path: Path) -> None:
        assert TOOLKIT is not None
        (tmp_path / "csrc").mkdir()
        (tmp_path / "csrc" / "scale.cu").write_text("__global__ void scale(float* x) { *x *= 2.0f; }\n")
        decision = decide.decide_cuda({"ARGUS_CUDA_ARCHS": "90a"}, TOOLKIT, gpu=False)
        whole = native.cuda_library(resources.ROOT, decision, TOOLKIT)
        library = dataclasses.replace(whole, sources=("csrc/scale.cu",))
        compiler = decide.find_compiler(os.environ)
        built = native.build([library], tmp_path, tmp_path / "build", compiler, TOOLKIT)["cuda"]
        assert found_in(built, "-elf", r"^arch = (\w+)$") == {"sm_90a"}

    def test_it_carries_its_cuda_runtime_and_asks_for_torch(self, cuda_library: Path) -> None:
        needed = subprocess.check_output(["readelf", "-d", str(cuda_library)], text=True)
        assert "cudart" not in needed
        for name in ("libtorch.so", "libtorch_cpu.so", "libc10.so"):
            assert f"[{name}]" in needed
        assert "RPATH" not in needed and "RUNPATH" not in needed

    def test_it_holds_no_path_of_this_machine(self, cuda_library: Path) -> None:
        content = cuda_library.read_bytes()
        for place in (str(resources.ROOT), str(native.package_directory("torch")), str(Path.home())):
            assert place.encode() not in content


@needs_nvcc
def test_a_source_that_nvcc_refuses(tmp_path: Path) -> None:
    assert TOOLKIT is not None
    source = tmp_path / "wrong.cu"
    source.write_text("__global__ void wrong() { undeclared(); }\n")
    with pytest.raises(decide.BuildError, match=r"nvcc refuses .*wrong\.cu"):
        resources.measure(source, TOOLKIT)


def sampled(room: str) -> Any:
    """A room as a parameter of a test that compiles its Triton kernels: slow where `make test` leaves it out."""
    return pytest.param(room, marks=[pytest.mark.slow] * (room not in SAMPLED_ROOMS))


@cache
def triton_figures(room: str, *targets: int) -> list[triton_resources.Figures]:
    """What Triton makes of a room's defaults."""
    return triton_resources.of_room(room, *targets)


@needs_triton
@pytest.mark.parametrize("room", [sampled(room) for room in triton_resources.rooms()])
@pytest.mark.parametrize(
    "targets", [(90,), pytest.param(OTHER_TARGETS, marks=pytest.mark.slow)], ids=lambda targets: f"{targets}"
)
def test_triton_kernels_fit_every_target(room: str, targets: tuple[int, ...]) -> None:
    found = triton_figures(room, *targets)
    assert {one.target for one in found} == set(targets)
    for one in found:
        assert one.stack_bytes == 0, one
        assert 0 < one.registers <= 255, one
        assert one.shared_bytes <= SHARED_LIMIT[one.target], one
        assert not one.expected or one.instructions.get(one.expected, 0) > 0, one


WIDE_PRODUCTS = {
    ("causal_attention", "plain-bfloat16-64"): {
        "forward_kernel": 2,
        "query_gradient_kernel": 2,
        "key_gradient_kernel": 4,
    },
    ("causal_attention", "plain-bfloat16-128"): {
        "forward_kernel": 2,
        "query_gradient_kernel": 0,
        "key_gradient_kernel": 0,
    },
    ("hstu_attention", "plain-bfloat16-64"): {
        "forward_kernel": 2,
        "query_gradient_kernel": 2,
        "key_gradient_kernel": 2,
    },
    ("sampled_softmax_loss", "owners-bfloat16"): {"forward_kernel": 1, "score_gradient_kernel": 2, "product_kernel": 1},
}
"""Loads that each kernel of a room's 16-bit case leaves in flight on sm_90, in products of 32 columns and more."""


@needs_triton
@pytest.mark.parametrize("room", [sampled(room) for room in sorted({room for room, _ in WIDE_PRODUCTS})])
def test_products_on_sm_90_are_wide_and_their_loads_overlap_them(room: str) -> None:
    found = triton_figures(room, 90)
    for case, kernels in ((case, kernels) for (of, case), kernels in WIDE_PRODUCTS.items() if of == room):
        own = [one for one in found if one.case == case and one.kernel in kernels]
        assert {one.kernel for one in own} == set(kernels)
        for one in own:
            assert min(one.product_columns) >= 32, one
            assert one.loads_in_flight >= kernels[one.kernel], one


@needs_triton
@pytest.mark.slow
def test_two_programs_of_the_softmax_forward_pass_share_a_multiprocessor() -> None:
    """Up to width 256: one multiplies while the other works on its scores."""
    found = [one for one in triton_figures("sampled_softmax_loss", 90) if one.kernel == "forward_kernel"]
    half = [one for one in found if one.case in ("owners-bfloat16", "owners-bfloat16-64", "owners-bfloat16-128")]
    assert len(half) == 3
    for one in half:
        assert 2 * one.warps * 32 * one.registers <= 65_536, one
        assert 2 * (one.shared_bytes + 1024) <= SHARED_LIMIT[90] + 1024, one
    (wide,) = [one for one in found if one.case == "owners-bfloat16-512"]
    assert wide.product_columns == [128], wide


@needs_triton
@pytest.mark.slow
def test_no_tile_of_the_softmax_forward_pass_spills() -> None:
    found = triton_resources.of_room("tests.build_support.planted.softmax_tiles", 90)
    tiles = {one.case: one for one in found if one.kernel == "forward_kernel"}
    assert len(tiles) == 6
    assert {one.stack_bytes for one in tiles.values()} == {0}
    assert {tuple(one.product_columns) for one in tiles.values()} == {(32,), (64,), (128,)}


@needs_triton
@pytest.mark.slow
def test_the_softmax_loads_by_tma_where_it_can() -> None:
    """16-bit scores on sm_90 come of descriptors alone; wgmma waits with a product in flight where the depth is cut."""
    for one in triton_figures("sampled_softmax_loss", 80, 90, 100):
        described = one.target == 90 and "bfloat16" in one.case
        if one.kernel in ("forward_kernel", "score_gradient_kernel", "product_kernel"):
            assert (one.tma_loads > 0) == described, one
        assert not described or one.stack_bytes == 0


@needs_triton
@pytest.mark.parametrize("room", [sampled(room) for room in ATTENTION])
def test_attention_loads_by_tma_where_it_can(room: str) -> None:
    """The forward pass in 16 bits on sm_90; two programs of head width 64 without biases share a multiprocessor."""
    for one in (one for one in triton_figures(room, 90) if one.kernel == "forward_kernel"):
        described = "float32" not in one.case
        assert (one.tma_loads > 0) == described, one
        assert one.stack_bytes == 0, one
        if one.case == "plain-bfloat16-64":
            assert 2 * one.warps * 32 * one.registers <= 65_536, one
            assert 2 * (one.shared_bytes + 1024) <= SHARED_LIMIT[90] + 1024, one


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("room", ATTENTION)
def test_attention_on_other_gpus_has_no_tma(room: str) -> None:
    for one in triton_figures(room, *OTHER_TARGETS):
        assert one.tma_loads == 0, one


@needs_triton
def test_the_triton_gates_see_spills_and_matrix_instructions() -> None:
    found = {
        (one.case, one.target): one for one in triton_resources.of_room("tests.build_support.planted.triton_kernels")
    }
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
