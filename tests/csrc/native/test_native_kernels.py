"""What only the compiled kernels promise: the same bits on any number of threads and on every instruction set."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from argus_kernels.core import native
from tests.instruction_sets import require_the_same_bits

STORED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

DIGEST = """
import zlib, torch
from argus_kernels.core import native
native.require("cpu")
print(torch.ops.argus_native.cpu_features().split()[0])
for threads in (1, 4):
    torch.set_num_threads(threads)
    digest = 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for width in (1, 15, 16, 130):
            generator = torch.Generator().manual_seed(width)
            table = torch.randn(500, width, generator=generator).to(dtype)
            state = torch.rand(500, generator=generator)
            rows = torch.randint(-1, 500, (3000,), generator=generator)
            gradients = torch.randn(3000, width, generator=generator).to(dtype)
            torch.ops.argus_native.rowwise_adagrad_(table, state, rows, gradients, 0.1, 1e-8, 0.01)
            digest = zlib.crc32(table.view(torch.uint8).numpy().tobytes() + state.numpy().tobytes(), digest)
    print(digest)
"""


@pytest.fixture(autouse=True)
def _library() -> None:
    reason = native.why_not("cpu")
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.slow
def test_rowwise_adagrad_has_the_same_bits_everywhere() -> None:
    require_the_same_bits(DIGEST)


def arguments(dtype: torch.dtype = torch.float32, gradient: torch.dtype | None = None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "table": torch.randn(40, 19, generator=generator).to(dtype),
        "state": torch.rand(40, generator=generator),
        "rows": torch.randint(-1, 40, (90,), generator=generator),
        "row_gradients": torch.randn(90, 19, generator=generator).to(gradient or dtype),
        "lr": 0.5,
        "eps": 1e-8,
        "weight_decay": 0.1,
    }


def update(given: dict[str, Any]) -> None:
    torch.ops.argus_native.rowwise_adagrad_(*given.values())


def truth(given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    table, state = given["table"].to(torch.float64, copy=True), given["state"].double()
    for row in given["rows"].unique().tolist():
        if row < 0:
            continue
        gradient = given["row_gradients"][given["rows"] == row].double().sum(0) + 0.1 * table[row]
        state[row] += gradient.square().mean()
        table[row] -= 0.5 * gradient / (state[row].sqrt() + 1e-8)
    return table, state


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("gradient", [None, torch.float32])
def test_rowwise_adagrad_of_every_dtype(dtype: torch.dtype, gradient: torch.dtype | None) -> None:
    given = arguments(dtype, gradient)
    table, state = truth(given)
    update(given)
    # One rounding to the stored type, of values below 8.
    tolerance = max(4 * torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(given["table"].double(), table, rtol=0, atol=tolerance)
    torch.testing.assert_close(given["state"].double(), state, rtol=1e-5, atol=0)


def test_rowwise_adagrad_in_a_wider_matrix_leaves_the_rest_alone() -> None:
    given = arguments()
    whole = torch.full((40, 25), float("nan"))
    whole[:, 3:22] = given["table"]
    dense = {**given, "table": given["table"].clone(), "state": given["state"].clone()}
    update(dense)
    update({**given, "table": whole[:, 3:22]})
    assert torch.equal(whole[:, 3:22], dense["table"])
    assert whole[:, :3].isnan().all() and whole[:, 22:].isnan().all()


def test_rowwise_adagrad_takes_gradients_and_rows_of_any_stride() -> None:
    given = arguments()
    expected = {**given, "table": given["table"].clone(), "state": given["state"].clone()}
    update(expected)
    strided = {
        **given,
        "rows": given["rows"].repeat_interleave(2)[::2],
        "row_gradients": given["row_gradients"].t().contiguous().t(),
    }
    update(strided)
    assert torch.equal(strided["table"], expected["table"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"rows": a["rows"].clamp(max=39) + 1}, r"rows\[\d+\] is 40, expected -1 \(skipped\) or 0 to 39"),
        (lambda a: {"rows": a["rows"] - 1}, r"rows\[\d+\] is -2, expected -1 \(skipped\) or 0 to 39"),
        (lambda a: {"rows": a["rows"].int()}, "rows is Int, expected Long"),
        (lambda a: {"state": a["state"][:-1]}, r"state has shape \[39\], expected \[V\] = \[40\]"),
        (lambda a: {"state": a["state"].double()}, "state is Double, expected Float"),
        (lambda a: {"row_gradients": a["row_gradients"][1:]}, r"row_gradients has shape \[89, 19\], expected \[R, d\]"),
        (lambda a: {"row_gradients": a["row_gradients"].half()}, "row_gradients is Half, expected Float"),
        (lambda a: {"table": a["table"].t().contiguous().t()}, "table has stride 40 within a row, expected 1"),
        (lambda a: {"table": a["table"].long()}, "table is Long, expected Float or BFloat16 or Half"),
    ],
)
def test_rowwise_adagrad_refuses_in_a_sentence(
    change: Callable[[dict[str, Any]], dict[str, Any]], message: str
) -> None:
    given = arguments()
    given = {**given, **change(given)}
    before = given["table"].clone(), given["state"].clone()
    with pytest.raises(ValueError, match="^argus_native::rowwise_adagrad_: " + message):
        update(given)
    assert torch.equal(given["table"], before[0])
    assert torch.equal(given["state"], before[1])


CHOOSE_THEMSELVES = ("argus::feedback_loss::project_tile<", "argus::feedback_loss::spread_tile<")
"""Called from a clone for an instruction set, these take the way to their own clone."""


def called_from_clones(listing: str) -> set[str]:
    """Functions of ours that a disassembly shows the AVX2 and AVX-512 clones of ForEachIsa to call."""
    found: set[str] = set()
    is_clone = False
    for line in listing.splitlines():
        if line.endswith(">:"):
            is_clone = ">::avx512<" in line or ">::avx2<" in line
        elif is_clone and re.search(r"\s(call|jmp)\s", line):
            target = re.search(r"<((?:void |auto |bool )?argus::[^+]*)>$", line)
            if target and "ForEachIsa<" not in target[1]:
                found.add(target[1])
    return found


def test_the_clones_of_a_kernel_call_nothing_compiled_for_the_portable_level() -> None:
    """A function or lambda that was not inlined runs at the lowest level, at a third of the speed and unnoticed."""
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    if (reason := native.why_not("cpu")) is not None:
        pytest.skip(reason)
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(Path(native.__file__).parents[1] / "_ops_cpu.so")]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if not re.search(r">::avx512<.*>:$", listing, re.MULTILINE):
        pytest.skip("the library has no clones for instruction sets, or its symbols were stripped")
    called = {name for name in called_from_clones(listing) if not any(own in name for own in CHOOSE_THEMSELVES)}
    assert not called


def test_a_call_out_of_a_clone_is_found() -> None:
    listing = """
0000000000001000 <void argus::ForEachIsa<&argus::attend>::avx512<long>(long)>:
    1000:	call   5080 <memset@plt>
    1005:	call   2000 <argus::attend(long)::{lambda(long)#1}::operator()(long) const>
0000000000002000 <void argus::ForEachIsa<&argus::attend>::portable<long>(long)>:
    2005:	call   3000 <argus::other(long)>
"""
    assert called_from_clones(listing) == {"argus::attend(long)::{lambda(long)#1}::operator()(long) const"}
