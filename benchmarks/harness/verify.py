"""Judges a backend on a case against float64 truth, by the error rule of argus_kernels.testing.

Truth is the plain PyTorch definition in float64, which is too slow for most production shapes: a case is judged on
pieces cut out of the timed arguments. The pieces are pooled, so that a single scalar such as the gradient of a
temperature is judged on dozens of draws. Every record names the pieces. The op's room defines how a case is cut; a case
without a cut is judged on the small samples of the room.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from argus_kernels.testing import compare, run_op, small_samples
from argus_kernels.testing.harness import draw
from benchmarks.harness.cases import Case

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """Why a backend is refused for the forward pass and for passes with gradients; None if it is correct."""

    forward: str | None
    gradients: str | None


class Judge:
    """Holds the float64 results of one case, computed once, and judges backends by them."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        self._case = case
        cut = case.spec.sample.cut
        self.judged_on = cut.sentence if cut else "the small samples of the op's room"
        self._seed = seed
        self._pieces = list(cut.pieces(_detached(case.arguments))) if cut else list(self._small_pieces())
        exact = [in_float64(piece) for piece in self._pieces]
        # Float32 in the truth are the scales of codes alone, which are so beside any dtype.
        truth = self._collect("eager", exact).items()
        self._truth = {name: [_map(value, in_double) for value in values] for name, values in truth}
        self._torch = self._collect("eager", self._pieces)

    def verdict(self, backend: str) -> Verdict:
        """Judges a backend of the op by name."""
        try:
            found = self._collect(backend, self._pieces)
        except Exception as error:  # a kernel may fail in any way: the reason goes into the record
            sentence = f"fails on {self.judged_on}: {first_line(error)}"
            return Verdict(sentence, sentence)
        wrong: dict[bool, str] = {}
        for name, values in self._truth.items():
            ours, theirs = found.get(name, []), self._torch[name]
            comparison = compare(name, ours, values, theirs)
            if not comparison.passed:
                wrong.setdefault(name.startswith("d_"), comparison.sentence)
        forward = wrong.get(False)
        return Verdict(forward, forward or wrong.get(True))

    def _collect(self, backend: str, pieces: list[Arguments]) -> dict[str, list[Tensor]]:
        """Every result by name, one for each piece that has it."""
        found: dict[str, list[Tensor]] = {}
        for index, piece in enumerate(pieces):
            run = run_op(
                self._case.op,
                self._case.spec.sample,
                piece,
                backend,
                dtype=self._case.dtype,
                seed=self._seed + index,
            )
            for name, value in run.results.items():
                found.setdefault(name, []).append(value)
        return found

    def _small_pieces(self) -> Iterator[Arguments]:
        for sample in small_samples(self._case.op):
            if sample.grad == self._case.spec.sample.grad:
                yield draw(sample, self._case.dtype, self._seed, self._case.device)


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its text."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def _detached(arguments: Arguments) -> Arguments:
    return {name: _map(value, lambda tensor: tensor.detach()) for name, value in arguments.items()}


def in_float64(arguments: Arguments) -> Arguments:
    """The same values in float64."""
    return {name: _map(value, in_double) for name, value in arguments.items()}


def in_double(tensor: Tensor) -> Tensor:
    """A tensor of numbers in float64; integers as they are."""
    return tensor.double() if tensor.is_floating_point() else tensor


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [function(tensor) for tensor in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # The scales of codes are float32 beside any dtype.
        names = [field.name for field in dataclasses.fields(value) if not field.name.endswith("_scales")]
        fields = {name: _map(getattr(value, name), function) for name in names}
        return dataclasses.replace(value, **fields)
    return value
