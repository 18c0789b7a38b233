"""Triton without a GPU: the real JIT binder specialises every launch, and compiles it if asked; nothing runs.

Inside `mocked()` the triton backends serve tensors on the CPU and on the meta device. Each launch is noted with the key
under which Triton caches the compiled kernel: two launches with different keys are two compiles. Results are whatever
memory held, so only what does not depend on them can be asked.

    with mocked(compiles=True) as launches:
        causal_attention(q, k, v, offsets, backend="triton")

    python -m argus_kernels.testing.mock_driver [--op NAME] [--compile]     one JSON line for every sample and dtype
    python -m argus_kernels.testing.mock_driver [--op NAME] --batches 72    what another batch would compile again

It needs a process without TRITON_INTERPRET, which is read when triton is imported.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from argus_kernels.core import triton_support
from argus_kernels.core.sample import Sample
from argus_kernels.core.torch_op import Op
from argus_kernels.testing.harness import captured_arguments

ARCHITECTURE = 90


@dataclass(frozen=True)
class Launch:
    """One launch as the binder took it.

    kernel: the JIT function. key: its name, and the key under which Triton keeps what it compiled. signature: the type
    of every argument by name. constants: what is compiled in, by position: (2,) is the third argument, (2, 0) the first
    of its tuple. attributes: what is known of an argument, such as that 16 divides it, by position. options: num_warps,
    num_stages, and maxnreg where the launch sets it.
    """

    kernel: Any
    key: str
    signature: Mapping[str, Any]
    constants: Mapping[tuple[int, ...], Any]
    attributes: Mapping[tuple[int, ...], Any]
    options: Mapping[str, int]

    @property
    def name(self) -> str:
        """The kernel's name."""
        return str(self.kernel.__name__)


class _Driver(DriverBase):
    """A CUDA device of one architecture that loads and launches nothing."""

    def __init__(self, architecture: int) -> None:
        super().__init__()
        self.architecture = architecture
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": triton_support.SHARED_LIMIT[architecture]},
            load_binary=lambda name, binary, shared, device: (binary, name, 0, 0, 1024),
        )

    @classmethod
    def is_active(cls) -> bool:
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("nothing runs, so nothing can be timed")

    def get_current_device(self) -> int:
        """JIT functions keep what they compiled by device: an architecture has its own."""
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *arguments: None


@contextmanager
def mocked(compiles: bool = False, architecture: int = ARCHITECTURE) -> Iterator[list[Launch]]:
    """Inside the block launches are bound and noted, for the whole process; RuntimeError under the interpreter.

    compiles: also compiles each new one for the architecture, and raises what the compiler raises; a launch that needs
    more shared memory than the architecture has raises triton's OutOfResources.
    """
    if triton_support.interpreted():
        raise RuntimeError("TRITON_INTERPRET is set, and the interpreter neither binds nor compiles")
    launches: list[Launch] = []

    def note(*, key: str, fn: Any, compile: Mapping[str, Any], **_: Any) -> bool:
        options = {name: compile[name] for name in ("num_warps", "num_stages")}
        registers = json.loads(compile["specialization_data"])["options"]["maxnreg"]
        options |= {"maxnreg": registers} if registers else {}
        launches.append(
            Launch(
                fn.jit_function,
                f"{fn.module}.{fn.name} {key}",
                compile["signature"],
                compile["constants"],
                compile["configs"][0],
                options,
            )
        )
        return not compiles

    runtime, active = knobs.runtime, triton.runtime.driver._active
    before = runtime.jit_cache_hook
    triton.runtime.driver.set_active(_Driver(architecture))
    runtime.jit_cache_hook = note
    try:
        with triton_support.served_without_gpu(architecture):
            yield launches
    finally:
        triton.runtime.driver._active = active
        runtime.jit_cache_hook = before


class TorchLaunches(TorchDispatchMode):
    """Counts the ops of torch that launch a kernel on a GPU: all but views and allocations."""

    _ALLOCATIONS = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach"})

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and not func.is_view and name not in self._ALLOCATIONS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Bound:
    """What one call of an op, with its backward pass where it has one, launched."""

    triton: list[Launch]
    torch: list[str]


def bind(op: Op, sample: Sample, dtype: torch.dtype, *, compiles: bool = False, seed: int = 0) -> Bound:
    """Calls an op's triton backend on a sample, forward and, where the sample has gradients, backward; nothing runs."""
    backend = op.backend("triton")
    with mocked(compiles) as launches:
        given = captured_arguments(op, sample.draw(dtype, seed))
        with TorchLaunches() as counted:
            returned = backend.forward(given)
            if backend.backward is not None and sample.grad:
                outputs = list(returned) if isinstance(returned, tuple) else [returned]
                needs = {name: name in sample.grad for name in op.differentiable}
                backend.backward(outputs, outputs, needs, given)
    return Bound(launches, counted.names)


def second_compiles(calls: Mapping[str, Sequence[Launch]]) -> list[str]:
    """One sentence for each kernel that another batch would compile again, with the arguments that made it so.

    calls: what calls launched that differ in nothing but their batch, by the batch's name. The call with the most
    kernels is what the others are compared with: an empty batch launches fewer.
    """
    known = {launch.key: launch for launch in max(calls.values(), key=lambda one: len({each.key for each in one}))}
    found = []
    for batch, launches in calls.items():
        for key, launch in {each.key: each for each in launches}.items():
            if key not in known:
                like = [one for one in known.values() if one.kernel is launch.kernel]
                differing = min(
                    (_differing(launch, one) for one in like), key=len, default=["it is launched by it alone"]
                )
                found.append(f"{launch.name} compiles again for {batch}: {', '.join(differing)}")
    return found


def _differing(left: Launch, right: Launch) -> list[str]:
    """The arguments, and the options, for which two launches of a kernel are two compiles."""

    def specialisation(launch: Launch, index: int, name: str) -> str:
        known = (
            {at: value for at, value in of.items() if at[0] == index} for of in (launch.constants, launch.attributes)
        )
        return repr((launch.signature[name], *known))

    names = [parameter.name for parameter in left.kernel.params]
    found = [name for i, name in enumerate(names) if specialisation(left, i, name) != specialisation(right, i, name)]
    return found + [name for name in left.options if left.options[name] != right.options[name]]


BATCHES = (((3,), 0), ((16,), 0), ((5, 11), 3), ((1,), 1), ((0, 7, 26, 4), 1), ((32, 32), 16), ((130, 0, 70), 2))
"""Lengths of users, and rows of padding: sizes of 1, odd ones, multiples of 16, and more than one tile."""


def second_compiles_of(op: Op, variant: int) -> list[str]:
    """`second_compiles` of an op's drawn sample of this variant in `BATCHES`, in float32."""
    assert op.drawn is not None
    return second_compiles(
        {
            f"lengths {list(lengths)} and {padding} rows of padding": bind(
                op, op.drawn(lengths, padding, variant), torch.float32
            ).triton
            for lengths, padding in BATCHES
        }
    )


def main(arguments: Sequence[str]) -> None:
    """Binds every small sample of every op that has a triton backend; prints what was launched."""
    from argus_kernels import OPS
    from argus_kernels.testing.harness import small_samples

    parser = argparse.ArgumentParser(prog="argus_kernels.testing.mock_driver", description=__doc__)
    parser.add_argument("--compile", action="store_true", help="compile every launch for sm_90, not only bind it")
    parser.add_argument("--op", help="one op's name; all of them if it is not given")
    parser.add_argument("--batches", type=int, default=0, metavar="N", help="instead: N variants in several batches")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for op in OPS:
        if given.op not in (None, op.name) or all(backend.name != "triton" for backend in op.backends):
            continue
        # 7 variants apart: every choice that a variant makes comes in turn.
        for variant in range(0, 7 * given.batches, 7):
            line = {"op": op.name, "variant": variant, "second_compiles": second_compiles_of(op, variant)}
            print(json.dumps(line), flush=True)
        for sample in () if given.batches else small_samples(op):
            for dtype in triton_support.DTYPES:
                bound = bind(op, sample, dtype, compiles=given.compile)
                names = [launch.name for launch in bound.triton]
                line = {
                    "op": op.name,
                    "sample": sample.name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "triton": names,
                }
                print(json.dumps(line | {"torch": bound.torch}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
