"""A benchmark case: an op on one of its production samples, in one dtype, on one device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from argus_kernels import OPS
from argus_kernels.core import Op, Sample
from argus_kernels.testing.harness import public_function
from benchmarks.harness.ceilings import DTYPES

LONGEST = ("candidates_8192_anew", "single_8192", "single_8192_biases")


@dataclass(frozen=True)
class Spec:
    """A case whose arguments are not drawn yet."""

    op: Op
    sample: Sample
    dtype: str

    def draw(self, seed: int, device: str) -> Case:
        """Draws the arguments on `device`; those that get gradients are leaves that require them."""
        arguments = self.sample.draw(DTYPES[self.dtype], seed, device)
        case = Case(self, arguments, device)
        for leaf in case.leaves:
            leaf.requires_grad_()
        return case


@dataclass(frozen=True)
class Case:
    """A drawn case; `arguments` are the keyword arguments of the public function."""

    spec: Spec
    arguments: dict[str, Any]
    device: str

    @property
    def op(self) -> Op:
        """The op."""
        return self.spec.op

    @property
    def name(self) -> str:
        """The sample's name."""
        return self.spec.sample.name

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the floating-point arguments."""
        return DTYPES[self.spec.dtype]

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors that get gradients."""
        found: list[Tensor] = []
        for name in self.spec.sample.grad:
            value = self.arguments[name]
            found += value if isinstance(value, list) else [value]
        return [tensor for tensor in found if tensor is not None]

    @property
    def updates_in_place(self) -> bool:
        """True for an op without results: it is timed as a `step`."""
        return not self.op.torch_op._schema.returns

    def call(self, backend: str) -> Callable[[], Any]:
        """Calls the op's public function on these arguments."""
        function = public_function(self.op)
        return lambda: function(**self.arguments, backend=backend)

    def fresh(self) -> Case:
        """The same case on copies of what the op writes in place."""
        if not self.updates_in_place:
            return self
        copies = {name: self.arguments[name].detach().clone() for name in self.op.mutates}
        return dataclasses.replace(self, arguments={**self.arguments, **copies})

    def result(self, returned: Any) -> Tensor:
        """The tensor that a call is judged by: its first output, or the first tensor that it updated."""
        if self.updates_in_place:
            updated: Tensor = self.arguments[self.op.mutates[0]]
            return updated
        first: Tensor = returned[0] if isinstance(returned, (tuple, list)) else returned
        return first


def select(
    ops: Sequence[str] = (),
    cases: Sequence[str] = (),
    dtypes: Sequence[str] = ("fp32", "bf16"),
    device: str = "cpu",
) -> list[Spec]:
    """The production cases of the named ops (all if none is named), both dtypes of a case one after the other.

    On a GPU they are those that fill it, on a CPU the others; a named case is used on either. The longest cases come
    last, so that a time budget leaves out few cases.

    Raises:
        ValueError: an unknown name of an op, case or dtype; the message lists the known ones.
    """
    specs = [(op, sample) for op in OPS for sample in op.samples() if sample.production]
    specs.sort(key=lambda pair: pair[1].name in LONGEST)
    _require("op", ops, [op.name for op in OPS])
    _require("case", cases, [sample.name for _, sample in specs])
    _require("dtype", dtypes, list(DTYPES))
    return [
        Spec(op, sample, dtype)
        for op, sample in specs
        if (not ops or op.name in ops) and (sample.name in cases or (not cases and sample.gpu == (device == "cuda")))
        for dtype in dtypes
    ]


def _require(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{what} {', '.join(unknown)} is unknown, expected one of {', '.join(dict.fromkeys(known))}")
