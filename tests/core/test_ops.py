"""Every op × backend × sample, held to the contract. A backend that is added to a room is tested here as it stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from argus_kernels import OPS
from argus_kernels.core import Op, Sample
from argus_kernels.testing import captured_arguments, judged, poisoned_memory, run_op, small_samples
from argus_kernels.testing.harness import draw, public_function
from tests.drawn_examples import examples

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
POOLED = 64
"""Elements that a result is judged on at least: draws of a small one are pooled, so that no lucky scalar decides."""
POOLED_INTERPRETED = 24
"""The same where Triton's interpreter, in which a draw takes up to a second, computes. `make test` takes half."""

Case = tuple[Op, str, Sample, str]


NAMED: list[tuple[str, Case]] = [
    (f"{op.name}-{backend.name}-{sample.name}-{device}", (op, backend.name, sample, device))
    for op in OPS
    for backend in op.backends
    for sample in small_samples(op)
    for device in DEVICES
]
CASES = [pytest.param(case, id=name) for name, case in NAMED]


def differentiable(sample: Sample) -> bool:
    """Whether gradcheck can take the sample."""
    return bool(sample.grad) and sample.gradcheck


def within(case: Case, among: Callable[[Sample], bool] = lambda sample: True) -> bool:
    """Whether the case's sample is neither the first nor the last one of its op, `among` some of them."""
    op, _, sample, _ = case
    names = [one.name for one in small_samples(op) if among(one)]
    return sample.name not in (names[0], names[-1])


def marks(case: Case, among: Callable[[Sample], bool] = lambda sample: True) -> list[pytest.MarkDecorator]:
    """`make test` gives `cpp` every sample, and on a CPU the other backends the first and the last one of an op.

    Of what remains, `.ci/run` leaves out what Triton's interpreter computes.
    """
    if case[1] == "cpp" or case[3] != "cpu" or not within(case, among):
        return []
    return [pytest.mark.slow, *[pytest.mark.interpreted] * (case[1] == "triton")]


SAMPLED_CASES = [pytest.param(case, id=name, marks=marks(case)) for name, case in NAMED]
TRACED_CASES = [
    pytest.param(case, id=name, marks=[pytest.mark.slow] * within(case))
    for name, case in NAMED
    if case[1] == "cpp" or case[3] != "cpu" or case[2].name == small_samples(case[0])[0].name
]
"""Tracing sees the op, not the backend: on a CPU `cpp` takes every sample, other backends the first one of an op."""


def is_interpreted(case: Any) -> bool:
    """Whether Triton's interpreter computes the case."""
    return bool(case[1] == "triton" and case[3] == "cpu")


def is_native(case: Any) -> bool:
    """Whether this package's C++ or CUDA computes the case."""
    return case[1] in ("cpp", "cuda")


def rule_marks(case: Case, dtype: torch.dtype) -> list[pytest.MarkDecorator]:
    """Beyond `marks`, Triton's interpreter takes an op's first sample in every dtype, the last in float32."""
    op, _, sample, _ = case
    interpreted = is_interpreted(case)
    is_first = sample.name == small_samples(op)[0].name
    left_out = interpreted and not is_first and dtype != torch.float32
    return marks(case) or [pytest.mark.slow] * left_out


RULED_CASES = [
    pytest.param(case, dtype, id=f"{name}-{str(dtype).removeprefix('torch.')}", marks=rule_marks(case, dtype))
    for name, case in NAMED
    for dtype in DTYPES
]
FIRST_CASES = [
    pytest.param((op, backend.name, small_samples(op)[0], device), id=f"{op.name}-{backend.name}-{device}")
    for op in OPS
    for backend in op.backends
    for device in DEVICES
]


def arguments_for(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Any]:
    """The case's arguments; skips, with the reasons, where its backend cannot serve them on this machine."""
    op, backend, sample, device = case
    arguments = draw(sample, dtype, seed, device)
    reasons = op.backend(backend).reasons(captured_arguments(op, arguments))
    if reasons:
        pytest.skip("; ".join(reasons))
    return arguments


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Bitwise equality, NaN equal to NaN."""
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(torch.nan_to_num(left[name]), torch.nan_to_num(right[name])), name
        assert torch.equal(left[name].isnan(), right[name].isnan()), name


@pytest.mark.parametrize(("case", "dtype"), RULED_CASES)
def test_error_rule(case: Case, dtype: torch.dtype) -> None:
    """Outputs, in-place results and every gradient are as close to float64 truth as plain PyTorch is."""
    op, backend, sample, device = case
    arguments_for(case, dtype)
    pooled = POOLED_INTERPRETED if is_interpreted(case) else POOLED
    enough = max(pooled // 2, examples(pooled))
    for verdict in judged(op, sample, backend, dtype, device=device, enough=enough, most=enough).values():
        assert verdict.passed, verdict.sentence


DIFFERENTIABLE = [
    pytest.param(case, id=name, marks=marks(case, differentiable)) for name, case in NAMED if differentiable(case[2])
]


@pytest.mark.parametrize("case", DIFFERENTIABLE)
def test_gradcheck(case: Case) -> None:
    """The backward pass is the derivative of the forward pass, in float64."""
    op, backend, sample, _ = case
    arguments = arguments_for(case, torch.float64)
    leaves, call = _as_function_of_leaves(op, sample, arguments, backend)
    small = sum(leaf.numel() for leaf in leaves) <= 300
    assert torch.autograd.gradcheck(call, leaves, fast_mode=not small, nondet_tol=0.0)


def _as_function_of_leaves(
    op: Op, sample: Sample, arguments: dict[str, Any], backend: str
) -> tuple[tuple[Tensor, ...], Callable[..., Any]]:
    leaves: list[Tensor] = []
    places: list[tuple[str, int | None]] = []
    for name in sample.grad:
        value = arguments[name]
        for index, tensor in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if tensor is not None and tensor.numel():
                leaves.append(tensor.detach().clone().requires_grad_())
                places.append((name, index))

    def call(*tensors: Tensor) -> Any:
        given = {name: list(value) if isinstance(value, list) else value for name, value in arguments.items()}
        for (name, index), tensor in zip(places, tensors, strict=True):
            if index is None:
                given[name] = tensor
            else:
                given[name][index] = tensor
        returned = public_function(op)(**given, backend=backend)
        outputs = returned if isinstance(returned, (tuple, list)) else (returned,)
        # −∞, the log-sum-exp of a query that sees nothing, is the same for all leaves: its difference would be NaN.
        return tuple(output.masked_fill(output.isinf(), 0) for output in outputs if output.is_floating_point())

    if not leaves:
        pytest.skip("this sample has nothing to differentiate: all its differentiable inputs are empty")
    return tuple(leaves), call


@pytest.mark.parametrize("case", TRACED_CASES)
def test_opcheck(case: Case) -> None:
    """torch's own checks of a custom op: schema, autograd registration, fake shapes, tracing."""
    op, backend, sample, _ = case
    arguments = arguments_for(case)
    for name in sample.grad:
        value = arguments[name]
        for tensor in value if isinstance(value, list) else [value]:
            if tensor is not None:
                tensor.requires_grad_()
    report = torch.library.opcheck(op.torch_op, (*captured_arguments(op, arguments), backend))
    assert set(report.values()) == {"SUCCESS"}


@pytest.mark.parametrize("case", TRACED_CASES)
def test_eager_equals_compiled(case: Case) -> None:
    """torch.compile(fullgraph=True) takes the op whole and changes nothing."""
    op, backend, sample, _ = case
    arguments = arguments_for(case)
    torch._dynamo.reset()
    compiled = torch.compile(public_function(op), fullgraph=True, backend="aot_eager")
    eager = run_op(op, sample, arguments, backend)
    traced = run_op(op, sample, arguments, backend, call=compiled)
    assert_same(eager.results, traced.results)


@pytest.mark.parametrize("case", [one for one in FIRST_CASES if is_native(one.values[0])])
def test_eager_equals_inductor(case: Case) -> None:
    """The same through the whole of torch's compiler, with sizes left free."""
    op, backend, sample, _ = case
    arguments = arguments_for(case)
    torch._dynamo.reset()
    compiled = torch.compile(public_function(op), fullgraph=True, dynamic=True)
    eager = run_op(op, sample, arguments, backend)
    traced = run_op(op, sample, arguments, backend, call=compiled)
    assert_same(eager.results, traced.results)


@pytest.mark.parametrize("case", SAMPLED_CASES)
def test_fresh_memory_is_not_read(case: Case) -> None:
    """With every fresh allocation full of NaN the results are the same, bit for bit; and so are two runs."""
    op, backend, sample, _ = case
    arguments = arguments_for(case)
    plain = run_op(op, sample, arguments, backend)
    with poisoned_memory():
        poisoned = run_op(op, sample, arguments, backend)
    assert_same(plain.results, poisoned.results)


@pytest.mark.parametrize("case", SAMPLED_CASES)
def test_non_contiguous_inputs(case: Case) -> None:
    """Every other element of a wider tensor, and a transposed one, give what their contiguous copies give."""
    op, backend, sample, _ = case
    arguments = arguments_for(case)

    def every_other(name: str, tensor: Tensor) -> Tensor:
        return tensor if name in op.mutates else torch.stack([tensor, torch.zeros_like(tensor)], dim=-1)[..., 0]

    def transposed(name: str, tensor: Tensor) -> Tensor:
        if name in op.mutates or tensor.dim() < 2:
            return tensor
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)

    plain = run_op(op, sample, arguments, backend)
    for transform in (every_other, transposed):
        strided = run_op(op, sample, arguments, backend, transform=transform)
        for name, value in plain.results.items():
            torch.testing.assert_close({name: strided.results[name]}, {name: value}, equal_nan=True)


PADDED = [c for c in CASES if "offsets" in c.values[0][0].arguments]  # type: ignore[index]


@pytest.mark.parametrize("case", PADDED)
def test_padding_rows(case: Case) -> None:
    """NaN in the rows past the last offset reaches nothing; outputs and gradients there are exactly zero."""
    op, backend, sample, _ = case
    arguments = arguments_for(case)
    if arguments.get("offsets") is None:
        pytest.skip("this sample has no offsets")
    ends = {name: _end_of(arguments, name) for name, value in arguments.items() if isinstance(value, Tensor)}
    if all(end is None or end == arguments[name].shape[0] for name, end in ends.items()):
        pytest.skip("this sample has no padding rows")
    garbage = {
        name: value if ends.get(name) is None else _with_garbage(value, ends[name]) for name, value in arguments.items()
    }
    clean = run_op(op, sample, arguments, backend)
    dirty = run_op(op, sample, garbage, backend)
    assert_same(clean.results, dirty.results)
    total, used = _rows(arguments), int(arguments["offsets"][-1])
    for name, value in dirty.results.items():
        if name.startswith("d_"):
            end = ends.get(name[2:])
            assert end is None or not value[end:].count_nonzero(), name
        elif value.dim():
            rows = value[used:] if value.shape[0] == total else value[..., used:] if value.shape[-1] == total else None
            assert rows is None or not rows.count_nonzero(), name


def _rows(arguments: dict[str, Any]) -> int:
    """How many packed rows a sample has."""
    found: int = arguments["q" if "q" in arguments else "scores"].shape[0]
    return found


def _end_of(arguments: dict[str, Any], name: str) -> int | None:
    """The first row of padding of an argument with a row an event, the number of its rows without; else None."""
    value: Tensor = arguments[name]
    of_keys = name in ("k", "v", "key_time") and "key_offsets" in arguments
    total = arguments["k"].shape[0] if of_keys else _rows(arguments)
    per_row = value.dim() > 0 and value.shape[0] == total and not name.endswith(("offsets", "_seed", "prefix"))
    return int(arguments["key_offsets" if of_keys else "offsets"][-1]) if per_row else None


def _with_garbage(value: Tensor, used: int | None) -> Tensor:
    value = value.clone()
    value[used:] = float("nan") if value.is_floating_point() else torch.iinfo(value.dtype).max
    return value


@pytest.mark.parametrize("case", FIRST_CASES)
def test_autocast(case: Case) -> None:
    """Under autocast float32 inputs are served, gradients come back in float32, all of it near the float32 result."""
    op, backend, sample, device = case
    arguments = arguments_for(case)
    half = captured_arguments(op, draw(sample, torch.bfloat16, 0, device))
    plain = run_op(op, sample, arguments, backend)
    # Triton's interpreter has no bfloat16.
    with torch.autocast(device, torch.float16 if op.backend(backend).reasons(half) else torch.bfloat16):
        cast = run_op(op, sample, arguments, backend)
    for name, value in plain.results.items():
        found = cast.results[name]
        if name.startswith("d_"):
            assert found.dtype == value.dtype, name
        if value.is_floating_point():
            error = (found.double() - value.double()).norm() / value.double().norm().clamp_min(1e-12)
            assert float(error) < 0.05, f"{name}: relative error {float(error):.3f}"


@pytest.mark.parametrize("case", FIRST_CASES)
def test_export(case: Case) -> None:
    """torch.export keeps the op as one node of the graph."""
    op, backend, *_ = case
    arguments = arguments_for(case)

    class Module(torch.nn.Module):
        def forward(self, **given: Any) -> Any:
            return public_function(op)(**given, backend=backend)

    tensors = {name: value for name, value in arguments.items() if _exports(value)}
    fixed = {name: value for name, value in arguments.items() if not _exports(value)}

    class Bound(Module):
        def forward(self, **given: Any) -> Any:
            return super().forward(**given, **fixed)

    program = torch.export.export(Bound(), (), tensors)
    assert any(op.name in str(node.target) for node in program.graph.nodes)


def _exports(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, list) and bool(value) and isinstance(value[0], Tensor))


DRAWN = {
    "lengths": st.lists(st.one_of(st.just(0), st.integers(0, 9), st.integers(0, 40)), max_size=5),
    "padding": st.integers(0, 3),
    "variant": st.integers(0, 71),
    "seed": st.integers(0, 2**31),
}


@settings(max_examples=examples(12))
@given(**DRAWN)
@pytest.mark.parametrize("case", [one for one in FIRST_CASES if not is_interpreted(one.values[0])])
def test_drawn_shapes(case: Case, lengths: list[int], padding: int, variant: int, seed: int) -> None:
    """Any users, any optional arguments: outputs and gradients are those of the definition in float64."""
    assert_defined(case, lengths, padding, variant, seed)


@settings(max_examples=examples(5))
@given(**DRAWN)
@pytest.mark.parametrize("case", [one for one in FIRST_CASES if is_interpreted(one.values[0])])
def test_drawn_shapes_interpreted(case: Case, lengths: list[int], padding: int, variant: int, seed: int) -> None:
    """Fewer of them: Triton's interpreter takes up to a second for each."""
    assert_defined(case, lengths, padding, variant, seed)


def assert_defined(case: Case, lengths: list[int], padding: int, variant: int, seed: int) -> None:
    op, backend, _, device = case
    assert op.drawn is not None, f"{op.name} cannot draw samples"
    sample = op.drawn(lengths, padding, variant)
    arguments = arguments_for((op, backend, sample, device), torch.float32, seed)
    exact = draw(sample, torch.float32, seed, device, exact=True)
    ours = run_op(op, sample, arguments, backend, seed=seed).results
    truth = run_op(op, sample, exact, "eager", seed=seed).results
    assert ours.keys() == truth.keys()
    for name, value in truth.items():
        # A drawn shape has no pool of draws, so the bound is one that float32 keeps with room and no bug does.
        finite = value[value.isfinite()].double().abs()
        bound = 2e-5 * max(float(finite.max()) if finite.numel() else 0.0, 1.0)
        torch.testing.assert_close({name: ours[name].double()}, {name: value.double()}, atol=bound, rtol=0.0)


@pytest.mark.parametrize("cases", [RULED_CASES, SAMPLED_CASES, DIFFERENTIABLE, TRACED_CASES, FIRST_CASES])
def test_make_test_leaves_out_no_backend_of_an_op(cases: list[Any]) -> None:
    kept = [(*one.values[0][:2], *one.values[1:]) for one in cases if not one.marks]
    every = [(*one.values[0][:2], *one.values[1:]) for one in cases]
    assert len(kept) < len(every) or cases is FIRST_CASES
    assert all(any(left == one for left in kept) for one in every)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_unknown_backend_is_refused(op: Op) -> None:
    """A backend that does not exist is named, with those that do."""
    arguments = draw(small_samples(op)[0], torch.float32, 0)
    with pytest.raises(ValueError, match="backend is 'cudnn', expected one of auto, eager"):
        public_function(op)(**arguments, backend="cudnn")


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_op_has_a_production_sample_of_each_processor(op: Op) -> None:
    for gpu in (False, True):
        found = [sample for sample in op.samples() if sample.production and sample.gpu == gpu]
        assert found, f"{op.name} has no production sample for a {'GPU' if gpu else 'CPU'}"


PRODUCTION = [
    pytest.param(op, sample, id=f"{op.name}-{sample.name}", marks=[pytest.mark.slow] * (place > 0))
    for op in OPS
    for place, sample in enumerate(one for one in op.samples() if one.production and not one.gpu)
]


@pytest.mark.parametrize(("op", "sample"), PRODUCTION)
def test_production_samples_count_their_work(op: Op, sample: Sample) -> None:
    """The production shapes of a CPU, drawn, count operations and bytes; `make test` draws the first of an op."""
    arguments = sample.draw(torch.float32)
    backward = (sample.backward_flops, sample.backward_bytes) if sample.grad else ()
    for count in (sample.flops, sample.bytes, *backward):
        assert count(arguments) > 0, f"{sample.name}: {count}"
