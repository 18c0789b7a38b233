"""Samples of decode_linear: small layers for tests, those of the 3m preset for benchmarks, and their costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core import Sample
from argus_kernels.core.sample import Cut, tensor_bytes


@dataclass(frozen=True)
class _Case:
    """`rows` rows through a layer of `inputs` × `outputs`, outputs of unit size."""

    name: str
    rows: int
    inputs: int
    outputs: int
    norm: bool = False
    bias: bool = True
    gelu: bool = False
    residual: bool = False
    production: bool = False
    gpu: bool = False

    def make(self, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        arguments: dict[str, Any] = {
            "x": drawn(self.rows, self.inputs).to(dtype),
            "weight": (drawn(self.outputs, self.inputs) * self.inputs**-0.5).to(dtype),
        }
        if self.bias:
            arguments["bias"] = drawn(self.outputs).to(dtype)
        if self.norm:
            arguments["norm_weight"] = (1 + 0.1 * drawn(self.inputs)).to(dtype)
            arguments["norm_bias"] = (0.1 * drawn(self.inputs)).to(dtype)
        if self.gelu:
            arguments["activation"] = "gelu"
        if self.residual:
            arguments["residual"] = drawn(self.rows, self.outputs).to(dtype)
        return arguments

    def flops(self, arguments: dict[str, Any]) -> int:
        """A multiplication and an addition for each weight and row."""
        return 2 * self.rows * self.inputs * self.outputs

    def bytes(self, arguments: dict[str, Any]) -> int:
        """Everything given once, the output once."""
        given = tensor_bytes(*(value for value in arguments.values() if isinstance(value, Tensor)))
        return given + self.rows * self.outputs * int(arguments["x"].element_size())


_CASES = (
    _Case("everything", 3, 20, 18, norm=True, gelu=True, residual=True),
    _Case("no_rows", 0, 5, 7, norm=True),
    _Case("one_row", 1, 64, 33, gelu=True),
    _Case("sixteen_rows", 16, 33, 7, bias=False, residual=True),
    _Case("one_wide", 2, 1, 1, norm=True, residual=True),
    _Case("whole_blocks", 4, 96, 32, norm=True, bias=False),
    _Case("seven_rows_odd_sizes", 7, 31, 17, norm=True, gelu=True, bias=False),
    *(
        _Case(f"{name}_rows_{rows}", rows, inputs, outputs, norm, True, gelu, residual, production=True)
        for rows in (1, 8)
        for name, inputs, outputs, norm, gelu, residual in (
            ("query_key_value_256_768", 256, 768, True, False, False),
            ("up_256_1024", 256, 1024, True, True, False),
            ("down_1024_256", 1024, 256, False, False, True),
        )
    ),
    _Case("up_2048_8192_rows_16", 16, 2048, 8192, norm=True, gelu=True, production=True, gpu=True),
)


_CUT = Cut("the case itself", lambda arguments: iter([arguments]))


def samples() -> list[Sample]:
    """All samples of the op."""
    return [_sample(case) for case in _CASES]


def tiles(scale: int = 1) -> list[Sample]:
    """Several blocks of outputs at each width; rows are few by contract, so `scale` multiplies the outputs."""
    return [
        _sample(_Case(f"tiles_{width}", 5, width, 70 * scale, norm=True, gelu=True, residual=True))
        for width in (64, 128, 256)
    ]


def drawn(lengths: Sequence[int], padding: int, variant: int) -> Sample:
    """A case of a row for each of `lengths`; their sum gives the columns, `variant` the optional arguments."""
    case = _Case(
        "drawn",
        rows=len(lengths),
        inputs=1 + sum(lengths),
        outputs=1 + sum(lengths[:2]) + padding,
        norm=variant % 2 == 1,
        bias=variant // 2 % 2 == 1,
        gelu=variant // 4 % 2 == 1,
        residual=variant // 8 % 2 == 1,
    )
    return _sample(case)


def _sample(case: _Case) -> Sample:
    return Sample(case.name, case.make, (), case.production, gpu=case.gpu, flops=case.flops, bytes=case.bytes, cut=_CUT)
