"""The compiled Triton kernels for every target, without a GPU: registers, stack, shared memory, matrix instructions.

    python -m build_support.triton_resources [folder]            the default configurations, triton.json and triton.md
    python -m build_support.triton_resources --everything        also the twins, and what tuning may choose
    python -m build_support.triton_resources --room NAME         the default configurations of one room, as JSON lines

The cases are those of the rooms' `compile_cases()`, recorded from their own launchers. Run it in a process without
TRITON_INTERPRET; tests/build_support/test_compile_targets.py does and holds the limits. Triton caches what it compiles,
so a second run takes seconds.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from argus_kernels.core import tuning
from argus_kernels.core.triton_support import SHARED_LIMIT, CompileCase
from build_support.resources import ROOT, cuobjdump

if TYPE_CHECKING:
    from argus_kernels.testing.mock_driver import Launch

TARGETS = tuple(SHARED_LIMIT)
MATRIX = {80: "mma.sync", 90: "wgmma", 100: "tcgen05"}
"""The matrix instruction of the target's own generation."""
PARALLEL = 2


@dataclass(frozen=True)
class Figures:
    """One compiled launch; registers and stack are per thread, shared memory per block."""

    room: str
    case: str
    kernel: str
    target: int
    warps: int
    registers: int
    stack_bytes: int
    """Spilled registers lie on the stack: without one there are no spills."""
    shared_bytes: int
    instructions: dict[str, int]
    product_columns: list[int]
    """The columns of the wgmma instructions, ascending."""
    loads_in_flight: int
    """Groups of asynchronous copies that the kernel leaves under way where it waits for one, at most."""
    tma_loads: int
    """Loads by a tensor descriptor, cp.async.bulk.tensor."""
    expected: str
    """The matrix instruction that must be there; empty where no product is large enough or its operands are float32."""


def rooms() -> list[str]:
    """The rooms that have Triton kernels."""
    return sorted(path.parent.name for path in (ROOT / "argus_kernels" / "ops").glob("*/triton_kernels.py"))


@functools.cache
def launches(room: str, everything: bool, target: int) -> tuple[tuple[str, bool, Launch], ...]:
    """A room's cases as launches on a target (case, whether a matrix instruction is expected, launch), each once.

    room: its name, or that of any module that has `compile_cases()`, which has a dot in it.
    everything: also the twins, and the configurations that tuning chooses from.
    """
    module = importlib.import_module(room if "." in room else f"argus_kernels.ops.{room}.triton_kernels")
    found: dict[str, tuple[str, bool, Launch]] = {}
    cases: list[CompileCase] = module.compile_cases()
    for case in cases:
        if case.twin and not everything:
            continue
        for name, recorded in _recorded(case, target, getattr(module, "TUNABLES", ()) if everything else ()):
            for launch in recorded:
                found.setdefault(launch.key, (name, case.matrix, launch))
    return tuple(found.values())


def _recorded(case: CompileCase, target: int, tunables: Sequence[tuning.Tunable]) -> Iterator[tuple[str, list[Launch]]]:
    from argus_kernels.testing.mock_driver import mocked

    with mocked(architecture=target) as recorded:
        case.call()
    yield case.name, recorded
    for tunable in tunables:
        for config in tunable.configs[1:]:
            with tuning.forced(tunable.kernel, config), mocked(architecture=target) as recorded:
                case.call()
            settings = ", ".join(f"{name} {value}" for name, value in config.items())
            yield f"{case.name} ({settings})", recorded


def measure(room: str, index: int, target: int, everything: bool = False) -> Figures:
    """Compiles one launch for one target and reads the figures from the result."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    case, matrix, launch = launches(room, everything, target)[index]
    source = ASTSource(launch.kernel, dict(launch.signature), dict(launch.constants), dict(launch.attributes))
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=dict(launch.options))
    registers, stack = resource_usage(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    warps = int(launch.options["num_warps"])
    return Figures(
        room,
        case,
        launch.name,
        target,
        warps,
        registers,
        stack,
        int(compiled.metadata.shared),
        {name: count for name in MATRIX.values() if (count := _mentions(ptx, name))},
        sorted({int(columns) for columns in re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k", ptx)}),
        loads_in_flight(compiled.asm["ttgir"]),
        len(re.findall(r"cp\.async\.bulk\.tensor\.\S*\.global", ptx)),
        expected_instruction(compiled.asm["ttir"], target, warps) if matrix else "",
    )


def loads_in_flight(ttgir: str) -> int:
    """Groups of copies left under way where a kernel waits; of loads by TMA one less than they have buffers."""
    groups = [int(number) for number in re.findall(r"async_wait .*?num = (\d+)", ttgir)]
    if "async_tma_copy_global_to_local" in ttgir:
        groups += [int(count) - 1 for count in re.findall(r"local_alloc[^\n]*memdesc<(\d+)x\d+x\d+x", ttgir)]
    return max(groups, default=0)


def expected_instruction(ttir: str, target: int, warps: int) -> str:
    """The matrix instruction that a kernel's largest 16-bit product should become.

    wgmma and tcgen05 take at least 64 rows and groups of four warps; what is smaller falls back to mma.sync.
    """
    shapes = re.findall(r"tt\.dot [^\n]*: tensor<(\d+)x\d+xb?f16> \* tensor<\d+x(\d+)xb?f16>", ttir)
    if not shapes:
        return ""
    large = any(int(rows) >= 64 and int(columns) >= 16 for rows, columns in shapes)
    return MATRIX[target] if large and warps % 4 == 0 else MATRIX[80]


def _mentions(ptx: str, instruction: str) -> int:
    pattern = {"mma.sync": r"\bmma\.sync\.", "wgmma": r"\bwgmma\.mma_async\.", "tcgen05": r"\btcgen05\.mma\."}
    return len(re.findall(pattern[instruction], ptx))


def resource_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of the one kernel in a cubin."""
    program = cuobjdump()
    if program is None:
        raise FileNotFoundError("cuobjdump is neither on PATH nor in triton")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([program, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", done.stdout)
    if found is None:
        raise ValueError(f"cuobjdump says nothing of registers: {done.stdout}")
    return int(found[1]), int(found[2]) + int(found[3])


def measure_all(room_names: Sequence[str], everything: bool, targets: Sequence[int] = tuple(TARGETS)) -> list[Figures]:
    """The figures of these rooms, compiled two at a time."""
    import torch

    # The workers are forked, so they need not import torch and Triton; recording must not have started threads.
    torch.set_num_threads(1)
    tasks = [
        (room, index, target, everything)
        for room in room_names
        for target in targets
        for index in range(len(launches(room, everything, target)))
    ]
    with ProcessPoolExecutor(PARALLEL, mp_context=get_context("fork")) as pool:
        return list(pool.map(_measure_task, tasks))


def _measure_task(task: tuple[str, int, int, bool]) -> Figures:
    return measure(*task)


def table(figures: Sequence[Figures], version: str) -> str:
    """The figures as a Markdown page."""
    lines = [
        "# What Triton makes of the Triton kernels",
        "",
        f"Triton {version}, written by `python -m build_support.triton_resources`. Registers and bytes of stack are a",
        "thread's, of shared memory a block's. Settings in brackets are those that tuning may choose, the others the",
        "defaults.",
        "",
        "| op | case | kernel | sm | warps | registers | stack | shared | matrix instructions | TMA loads |",
        "|---|---|---|---|---:|---:|---:|---:|---|---:|",
    ]
    for one in figures:
        counted = ", ".join(f"{count} × {name}" for name, count in one.instructions.items()) or "–"
        lines.append(
            f"| {one.room} | {one.case} | `{one.kernel}` | {one.target} | {one.warps} | {one.registers} | "
            f"{one.stack_bytes} | {one.shared_bytes} | {counted} | {one.tma_loads or '–'} |"
        )
    return "\n".join(lines) + "\n"


def of_room(room: str, *targets: int) -> list[Figures]:
    """`measure_all` of one room's defaults for these targets, or for all if none is given; for tests.

    A separate process without the interpreter compiles them.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    asked = ("--room", room, "--target", *map(str, targets or TARGETS))
    words = [sys.executable, "-m", "build_support.triton_resources", *asked]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"compiling the Triton kernels of {room} failed:\n{done.stdout}{done.stderr}")
    return [Figures(**json.loads(line)) for line in done.stdout.splitlines()]


def main(arguments: Sequence[str]) -> None:
    """Writes triton.json and triton.md, or prints the figures of one room."""
    parser = argparse.ArgumentParser(prog="build_support.triton_resources", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "benchmarks" / "results" / "static")
    parser.add_argument("--room", help="a folder of argus_kernels/ops, or a module that has compile_cases()")
    parser.add_argument("--target", type=int, nargs="+", choices=TARGETS, default=TARGETS, help="with --room: which")
    parser.add_argument("--everything", action="store_true", help="also the twins, and what tuning may choose")
    given = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise SystemExit(
            "build_support.triton_resources: TRITON_INTERPRET is set, and the interpreter compiles nothing"
        )
    if importlib.util.find_spec("triton") is None:
        raise SystemExit("build_support.triton_resources: triton is not installed")
    if given.room:
        print(
            "\n".join(
                json.dumps(asdict(one)) for one in measure_all([given.room], everything=False, targets=given.target)
            )
        )
        return
    import triton

    figures = measure_all(rooms(), everything=given.everything)
    given.folder.mkdir(parents=True, exist_ok=True)
    record = {"triton": triton.__version__, "kernels": [asdict(one) for one in figures]}
    (given.folder / "triton.json").write_text(json.dumps(record, indent=1) + "\n")
    (given.folder / "triton.md").write_text(table(figures, triton.__version__))
    print(f"{len(figures)} compiled launches written to {given.folder}/triton.json and triton.md")


if __name__ == "__main__":
    main(sys.argv[1:])
