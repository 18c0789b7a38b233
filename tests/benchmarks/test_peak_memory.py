"""Peak memory of a call, measured in a process of its own: what other tests left in this one's heap would be reused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

PROGRAM = """
import gc
import torch
from benchmarks.harness.memory import PeakMemory, peak_extra_bytes

ELEMENTS = 8 << 20  # 32 MiB in float32

def came_and_went():
    large = torch.ones(ELEMENTS)
    return (large + 1)[:10].clone()

class Cycle:
    def __init__(self):
        self.itself, self.tensor = self, torch.ones(ELEMENTS)

def made_many_objects():
    many = [[] for _ in range(10_000)]
    return many, came_and_went()

came_and_went()  # what torch loads with its first call is not the call's
"""

CASES = {
    "what came and went": ("print(peak_extra_bytes('cpu', came_and_went)[0])", [64]),
    "a chain keeps its base line": (
        """
memory = PeakMemory("cpu")
kept, first = memory.peak_of(lambda: torch.ones(ELEMENTS))
_, second = memory.peak_of(lambda: None)
print(first, second)
""",
        [32, 32],
    ),
    "garbage that the call would collect": (
        """
gc.freeze()
gc.set_threshold(20, 1, 1)
cycle = Cycle()
gc.collect()  # into the oldest generation
del cycle
print(peak_extra_bytes("cpu", made_many_objects)[0])
assert gc.isenabled()
""",
        [64],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_peak_memory(case: str) -> None:
    lines, expected = CASES[case]
    done = subprocess.run([sys.executable, "-c", PROGRAM + lines], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "None" in done.stdout:
        pytest.skip("this system does not tell a process's peak memory")
    measured = [int(word) / (1 << 20) for word in done.stdout.split()]
    assert measured == pytest.approx(expected, abs=6)
