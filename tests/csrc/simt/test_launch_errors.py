"""A launch that fails leaves nothing behind for the next one: nvcc's host code on a runtime of stubs."""

import subprocess
from pathlib import Path

import pytest

from build_support import decide
from tests.build_support.test_compile_targets import TOOLKIT

HERE = Path(__file__).parent


@pytest.mark.skipif(TOOLKIT is None, reason="no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda")
def test_the_error_of_a_launch_is_not_that_of_the_next(tmp_path: Path) -> None:
    assert isinstance(TOOLKIT, decide.Toolkit)
    program = tmp_path / "launch"
    sources = [str(HERE / "launch_errors.cu"), str(HERE / "stub_runtime.cpp")]
    command = [str(TOOLKIT.nvcc), "-std=c++20", "-arch=sm_80", "-cudart", "none", f"-I{HERE.parents[2] / 'csrc'}"]
    subprocess.run([*command, "-o", str(program), *sources], check=True)
    said = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.splitlines()
    assert said == ["nothing: kernel launch failed: invalid argument", "launched"] * 2
