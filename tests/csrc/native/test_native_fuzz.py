"""Every native function is called with mutated arguments: computed or refused in a sentence, and nothing else touched.

In `make test` without sanitizers; `make test-all` runs more of the same under the address and undefined-behaviour
sanitizers. ARGUS_FUZZ_SCALE multiplies the number of calls.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from argus_kernels.core import native
from tests.csrc.native import sanitized
from tests.csrc.native.fuzz_calls import native_calls, registered
from tests.drawn_examples import examples

SCALE = int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))
CALLS, SANITIZED_CALLS = examples(3000), 14_000
HOST_FUNCTIONS = {"hash_ids", "sketch_update", "sketch_estimate", "plan_batches", "gather_rows"}
PACKAGE = Path(native.__file__).parents[1]


def fuzz(log: Path, cpu: Path, host: Path, seed: int, calls: int, environment: dict[str, str]) -> dict[str, Any]:
    """Runs the calls in a process of its own; where it ends otherwise than it should, fails with the call under way."""
    command = [sys.executable, "-m", "tests.csrc.native.fuzz_run", "--library", str(cpu), "--host", str(host.parent)]
    command += ["--seed", str(seed), "--calls", str(calls), "--log", str(log)]
    done = subprocess.run(command, cwd=sanitized.REPOSITORY, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        under_way = log.read_text().strip() if log.exists() else "not begun"
        pytest.fail(f"{' '.join(command)} ended with {done.returncode} at call {under_way}\n{done.stderr[-6000:]}")
    found: dict[str, Any] = json.loads(log.read_text())
    return found


def require_all_functions(found: dict[str, Any], calls: int) -> None:
    assert sum(found["outcomes"].values()) == calls
    # Neither refuses everything nor takes everything.
    assert min(found["outcomes"]["computed"], found["outcomes"]["ValueError"]) > calls / 5
    assert set(found["functions"]) > HOST_FUNCTIONS


def test_no_registered_function_is_forgotten() -> None:
    if (reason := native.why_not("cpu")) is not None:
        pytest.skip(reason)
    assert {call.name for call in native_calls()} == registered()


def test_mutated_calls_are_computed_or_refused(tmp_path: Path) -> None:
    for library in ("cpu", "host"):
        if (reason := native.why_not(library)) is not None:
            pytest.skip(reason)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    calls = CALLS * SCALE
    found = fuzz(tmp_path / "log", PACKAGE / "_ops_cpu.so", PACKAGE / "_host", 0, calls, environment)
    require_all_functions(found, calls)


@pytest.mark.sanitizer
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("isa", ["", "avx2", "portable"])
def test_mutated_calls_under_the_sanitizers(tmp_path: Path, isa: str) -> None:
    """The first build takes minutes; what a sanitizer finds ends the process, with its report."""
    if (reason := sanitized.why_not()) is not None:
        pytest.skip(reason)
    libraries = sanitized.build()
    environment = sanitized.environment() | ({"ARGUS_CPU_ISA": isa} if isa else {})
    # The other instruction sets have loops of their own and the same checks.
    calls = SANITIZED_CALLS * SCALE // (4 if isa else 1)
    found = fuzz(tmp_path / "log", libraries["cpu"], libraries["host"], 1, calls, environment)
    require_all_functions(found, calls)
