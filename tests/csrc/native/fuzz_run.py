"""Mutated native calls in a process of their own: `python -m tests.csrc.native.fuzz_run --seed 0 --calls 3000 --log F`.

Each call is either computed or refused by an exception, which for our own refusals is one sentence and leaves the
arguments as they were. The number of the call under way stands in the log, so that after a crash `--only NUMBER` makes
the same call again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from argus_kernels.core import native
from tests.csrc.native.fuzz_calls import NAMESPACE, Call, copied, host_calls, native_calls
from tests.csrc.native.fuzz_mutations import mutated

TORCH_REFUSALS = {
    TypeError: "incompatible function arguments",
    RuntimeError: "Expected a value of type",
    NotImplementedError: "attempted to run this operator",
    MemoryError: "",
}
"""What the layers before a native function say of arguments that do not fit its signature, or of no kernel for them."""


class Fault(AssertionError):
    """A call that was neither computed nor refused in a sentence."""


def plan(library: str | None, host: str | None) -> list[Call]:
    """All valid calls, in a fixed order."""
    calls: list[Call] = []
    if library is not None:
        torch.ops.load_library(library)
        # The package would load its own beside it.
        native._outcome["cpu"] = None
        calls += native_calls()
    if host is not None:
        sys.path.insert(0, host)
        import _host  # type: ignore[import-not-found]

        # As often as the calls of an op.
        calls += list(host_calls(_host)) * 3
    return calls


def flat(values: Any) -> list[Any]:
    """Every tensor and array among the arguments."""
    found = []
    for value in values:
        if isinstance(value, (Tensor, np.ndarray)):
            found.append(value)
        elif isinstance(value, list):
            found += flat(value)
    return found


def readable(value: Any) -> bool:
    """Whether a copy for comparison can be made: not of a tensor without memory or of one that is expanded too far."""
    if not isinstance(value, Tensor):
        return value.dtype != object
    reached = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    held = value.device.type == "cpu" and value.untyped_storage().nbytes() >= reached * value.element_size()
    return held and value.numel() < 10**7


def bits(value: Any) -> bytes:
    """What a tensor or an array holds."""
    if isinstance(value, Tensor):
        value = value.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy()
    return value.tobytes()


def check_call(call: Call, arguments: dict[str, Any]) -> str:
    """Makes the call; "computed", or the name of the exception. Fault where a refusal is not as it should be."""
    compared = [value for value in flat(arguments.values()) if readable(value)]
    before = [bits(value) for value in compared]
    try:
        if isinstance(call.function, torch._ops.OpOverload):
            call.function(*arguments.values())
        else:
            call.function(**arguments)
    except ValueError as refusal:
        sentence = str(refusal)
        prefix = NAMESPACE if isinstance(call.function, torch._ops.OpOverload) else call.name
        if not sentence.startswith(prefix) or "\n" in sentence:
            raise Fault(f"refused in other words: {sentence}") from None
        if [bits(value) for value in compared] != before:
            raise Fault(f"refused, but changed an argument: {sentence}") from None
        return "ValueError"
    except Exception as error:
        expected = TORCH_REFUSALS.get(type(error))
        if expected is None or expected not in str(error):
            raise Fault(f"raised {type(error).__name__}: {error}") from None
        return type(error).__name__
    return "computed"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", help="path of _ops_cpu.so")
    parser.add_argument("--host", help="folder of _host")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--only", type=int, help="make this call alone")
    parser.add_argument("--log", type=Path, required=True, help="number of the call under way, then the outcomes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    calls = plan(options.library, options.host)
    names = sorted({call.name for call in calls})
    outcomes: Counter[str] = Counter()
    log = os.open(options.log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for number in [options.only] if options.only is not None else range(options.calls):
        rng = random.Random(f"{options.seed}/{number}")
        # Every function as often as any other, however many samples its op has.
        name = names[number % len(names)]
        call = rng.choice([call for call in calls if call.name == name])
        arguments, changes = mutated(call, rng)
        os.pwrite(log, f"{number} {name} ({changes})".ljust(400).encode()[:400], 0)
        if options.only is not None:
            print(name, changes, {key: copied_text(value) for key, value in arguments.items()}, flush=True)
        try:
            outcomes[check_call(call, arguments)] += 1
        except Fault as fault:
            sys.exit(f"seed {options.seed}, call {number}, {name} ({changes}): {fault}")
    os.close(log)
    options.log.write_text(json.dumps({"functions": names, "outcomes": dict(outcomes.most_common())}, indent=1))


def copied_text(value: Any) -> str:
    """An argument in a few words, for `--only`."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)} {list(value.stride())}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return str(copied(value))[:80]


if __name__ == "__main__":
    main()
