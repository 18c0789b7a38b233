"""RowSGD, RowAdagrad and RowAdam: torch's own rules on the rows that a gradient names, and on nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from argus_kernels import use_backend
from argus_kernels.core import native
from argus_kernels.optim import RowAdagrad, RowAdam, RowSGD, RowwiseAdagrad
from argus_kernels.optim.row_optimiser import RowOptimiser

needs_cpp = pytest.mark.skipif(native.why_not("cpu") is not None, reason="the native library is not built")
BACKENDS = ["reference", pytest.param("cpp", marks=needs_cpp)]
KINDS: list[type[RowOptimiser]] = [RowSGD, RowAdagrad, RowAdam]
# What torch has on row-sparse gradients, with the same settings.
PAIRS: list[tuple[Any, Any, dict[str, Any]]] = [
    (RowSGD, torch.optim.SGD, {"lr": 0.3}),
    (RowAdagrad, torch.optim.Adagrad, {"lr": 0.3, "eps": 1e-3}),
    (RowAdam, torch.optim.SparseAdam, {"lr": 0.3, "betas": (0.8, 0.95), "eps": 1e-3}),
]


def table(size: int = 9, width: int = 5, dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
    values = torch.randn(size, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.nn.Parameter(values.to(dtype))


def sparse(rows: list[int], values: Tensor, size: int) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, (size, values.shape[1]), check_invariants=True)


def gradient(step: int, like: Tensor, rows: tuple[int, ...] = (4, 1, 4, 8, 1, 1)) -> Tensor:
    """A row that is named three times, one twice, one once."""
    generator = torch.Generator().manual_seed(step)
    values = torch.randn(len(rows), like.shape[1], generator=generator, dtype=torch.float64)
    return sparse([(row + step) % like.shape[0] for row in rows], values.to(like.dtype), like.shape[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("ours", "theirs", "settings"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_as_torch_on_sparse_gradients(
    backend: str, ours: Any, theirs: Any, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    one, other = table(dtype=dtype), table(dtype=dtype)
    pair = ours([one], **settings), theirs([other], **settings)
    with use_backend(backend), torch.sparse.check_sparse_tensor_invariants(enable=True):
        for step in range(4):
            one.grad, other.grad = gradient(step, one), gradient(step, other)
            for optimizer in pair:
                optimizer.step()
    torch.testing.assert_close(one, other)
    for name in pair[0].STATES[-2:]:
        torch.testing.assert_close(pair[0].state[one][name], pair[1].state[other][name], check_dtype=False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_gradient_are_left_alone(backend: str, kind: Any) -> None:
    """Whatever they and their states hold: NaN in them reaches nothing, and stays."""
    parameter = table()
    optimizer = kind([parameter], lr=0.1)
    others = [0, 2, 3, 5, 6, 7]
    for tensor in (parameter.data, *(state for state in optimizer.state[parameter].values() if state.dim())):
        tensor[others] = float("nan")
    before = parameter.detach().clone()
    parameter.grad = gradient(0, parameter)
    with use_backend(backend):
        optimizer.step()
    assert parameter[others].isnan().all()
    assert not parameter[[1, 4, 8]].isnan().any()
    assert (parameter[[1, 4, 8]] != before[[1, 4, 8]]).all()


@needs_cpp
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 5, 64, 130])
def test_cpp_is_the_reference(kind: Any, width: int) -> None:
    """Close in float32; on any number of threads the same bits."""
    found, before = [], torch.get_num_threads()
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 400, (6_000,), generator=generator)
    values = torch.randn(6_000, width, generator=generator)
    try:
        for backend, threads in (("reference", 1), ("cpp", 1), ("cpp", 3)):
            torch.set_num_threads(threads)
            parameter = table(500, width)
            optimizer = kind([parameter], lr=0.1)
            parameter.grad = sparse(rows.tolist(), values, 500)
            with use_backend(backend):
                optimizer.step()
            found.append([parameter.detach(), *optimizer.state[parameter].values()])
    finally:
        torch.set_num_threads(before)
    for one, two, three in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
        assert torch.equal(two, three)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [RowSGD, RowAdagrad])
def test_weight_decay_is_part_of_the_gradient(backend: str, kind: Any) -> None:
    one, other = table(), table()
    decayed, plain = kind([one], lr=0.1, weight_decay=0.25), kind([other], lr=0.1)
    one.grad = gradient(0, one)
    rows = one.grad.coalesce().indices()[0]
    other.grad = sparse(rows.tolist(), one.grad.coalesce().values() + 0.25 * other.detach()[rows], 9)
    with use_backend(backend):
        decayed.step()
        plain.step()
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dense_gradients_are_gradients_of_every_row(backend: str) -> None:
    """As torch's dense optimisers take them, but for where Adam adds eps: here eps is 0."""
    settings: list[tuple[Any, Any, dict[str, Any]]] = [
        (RowSGD, torch.optim.SGD, {"lr": 0.2, "weight_decay": 0.1}),
        (RowAdagrad, torch.optim.Adagrad, {"lr": 0.2, "weight_decay": 0.1}),
        (RowAdam, torch.optim.Adam, {"lr": 0.2, "eps": 0.0}),
    ]
    for ours, theirs, options in settings:
        one, other = table(), table()
        pair = ours([one], **options), theirs([other], **options)
        with use_backend(backend):
            for step in range(3):
                one.grad = torch.randn(9, 5, generator=torch.Generator().manual_seed(step))
                other.grad = one.grad.clone()
                for optimizer in pair:
                    optimizer.step()
        torch.testing.assert_close(one, other)


def test_a_row_of_zeros_in_a_dense_gradient() -> None:
    """It changes nothing in SGD and Adagrad, without eps too (0 / 0); Adam's mean goes on moving the row."""
    cases: list[tuple[Any, dict[str, float]]] = [(RowSGD, {}), (RowAdagrad, {"eps": 0.0}), (RowAdam, {})]
    for kind, options in cases:
        parameter = table()
        optimizer: Any = kind([parameter], lr=0.1, **options)
        before = parameter.detach().clone()
        parameter.grad = torch.zeros(9, 5).index_fill_(0, torch.tensor([3]), 1.0)
        optimizer.step()
        others = [row for row in range(9) if row != 3]
        assert torch.equal(parameter[others], before[others])
        assert (parameter[3] < before[3]).all()
        parameter.grad = torch.zeros(9, 5)
        after = parameter.detach().clone()
        optimizer.step()
        assert torch.equal(parameter, after) == (kind is not RowAdam)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_states_of_narrow_tables_are_float32_and_survive(kind: Any, dtype: torch.dtype) -> None:
    """Going on from a loaded state gives the same bits."""
    parameter = table(dtype=dtype)
    optimizer = kind([parameter], lr=0.1)
    for step in range(2):
        parameter.grad = gradient(step, parameter)
        optimizer.step()
    resumed = torch.nn.Parameter(parameter.detach().clone())
    other = kind([resumed], lr=9.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["lr"] == 0.1
    assert all(state.dtype == torch.float32 for state in other.state[resumed].values())
    for one, pair in ((parameter, optimizer), (resumed, other)):
        one.grad = gradient(2, one)
        pair.step()
    assert torch.equal(parameter, resumed)
    states = zip(optimizer.state[parameter].values(), other.state[resumed].values(), strict=True)
    assert all(torch.equal(one, two) for one, two in states)


@needs_cpp
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_tables_are_rounded_once(kind: Any, dtype: torch.dtype) -> None:
    """The float32 step on the same numbers, rounded."""
    narrow, exact = table(dtype=dtype), table(dtype=dtype)
    exact = torch.nn.Parameter(exact.detach().float())
    pair = kind([narrow], lr=0.1), kind([exact], lr=0.1)
    given = gradient(0, narrow)
    narrow.grad, exact.grad = given, sparse(given._indices()[0].tolist(), given._values().float(), 9)
    for optimizer in pair:
        optimizer.step()
    assert torch.equal(narrow, exact.to(dtype))


def test_groups_have_their_own_settings() -> None:
    slow, fast, still = table(), table(), table()
    groups: list[dict[str, Any]] = [{"params": [slow]}, {"params": [fast, still], "lr": 1.0}]
    optimizer = RowSGD(groups, lr=0.01)
    slow.grad, fast.grad = torch.ones(9, 5), torch.ones(9, 5)
    optimizer.step()
    torch.testing.assert_close(slow, table() - 0.01)
    torch.testing.assert_close(fast, table() - 1.0)
    assert torch.equal(still, table())


def test_tables_of_any_layout() -> None:
    for kind in KINDS:
        one, other = table(), torch.nn.Parameter(table().detach().T.contiguous().T)
        for parameter in (one, other):
            parameter.grad = gradient(0, parameter)
            kind([parameter], lr=0.1).step()
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: RowSGD([torch.nn.Parameter(torch.zeros(3))]),
            r"RowSGD: params\[0\] has shape \[3\], expected a table",
        ),
        (
            lambda: RowSGD([torch.zeros(3, 2, dtype=torch.int64)]),
            r"RowSGD: params\[0\] is torch\.int64, expected float",
        ),
        (lambda: RowSGD([table()], lr=-1.0), r"RowSGD: lr is -1\.0, expected a finite number of at least 0"),
        (lambda: RowAdagrad([table()], eps=float("nan")), "RowAdagrad: eps is nan"),
        (lambda: RowAdagrad([table()], weight_decay="0"), "RowAdagrad: weight_decay is '0'"),  # type: ignore[arg-type]
        (lambda: RowAdam([table()], betas=(0.9, 1.0)), r"RowAdam: betas\[1\] is 1\.0, expected a number below 1"),
        (
            lambda: RowAdam([table()], betas=(-0.1, 0.5)),
            r"RowAdam: betas\[0\] is -0\.1, expected a finite number of at",
        ),
        (lambda: RowAdam([table()], betas=0.9), r"RowAdam: betas is 0\.9, expected two numbers"),  # type: ignore[arg-type]
        (lambda: RowAdam([{"params": [table()], "lr": None}]), "RowAdam: lr is None, expected a finite number"),
    ],
)
def test_bad_settings(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


def stepped(kind: Any) -> Any:
    parameter = table()
    optimizer = kind([parameter], lr=0.1)
    parameter.grad = gradient(0, parameter)
    optimizer.step()
    return optimizer


def changed(kind: Any, **values: Any) -> dict[str, Any]:
    """The state of an optimiser that has made a step, with some of a table's entry replaced."""
    state: dict[str, Any] = copy.deepcopy(stepped(kind).state_dict())
    state["state"][0].update(values)
    return state


REFUSED: list[tuple[Any, Callable[[], Any], str]] = [
    (RowSGD, lambda: stepped(torch.optim.SGD).state_dict(), "has momentum: it is another optimiser's"),
    (RowSGD, lambda: stepped(RowAdagrad).state_dict(), r"has eps: .*state\[0\] has sum, expected nothing"),
    (
        RowSGD,
        lambda: stepped(RowAdam).state_dict(),
        r"has betas, eps: .*has no weight_decay, expected lr and weight_dec",
    ),
    (
        RowAdagrad,
        lambda: stepped(torch.optim.Adagrad).state_dict(),
        "has lr_decay: .*has step, sum, expected sum alone",
    ),
    (RowAdagrad, lambda: stepped(RowwiseAdagrad).state_dict(), r"state\[0\] sum has shape \[9\], expected \[9, 5\]"),
    (RowwiseAdagrad, lambda: stepped(RowAdagrad).state_dict(), r"state\[0\] sum has shape \[9, 5\], expected \[9\]"),
    (RowAdagrad, lambda: changed(RowAdagrad, sum=-torch.ones(9, 5)), "sum holds a negative number or NaN"),
    (RowAdagrad, lambda: changed(RowAdagrad, sum=np.zeros((9, 5))), "sum is ndarray, expected a tensor"),
    (RowAdam, lambda: stepped(torch.optim.SparseAdam).state_dict(), "has maximize: .*step is 1, expected a tensor"),
    (RowAdam, lambda: torch.optim.Adam([table()]).state_dict(), "has weight_decay: it is another optimiser's"),
    (RowAdam, lambda: changed(RowAdam, step=torch.tensor(0.5)), r"step is 0\.5, expected a number of steps"),
    (RowAdam, lambda: changed(RowAdam, step=torch.tensor(float("inf"))), "step is inf, expected a number of steps"),
    (
        RowAdam,
        lambda: changed(RowAdam, exp_avg=torch.zeros(9, 5).half()),
        "exp_avg is torch.float16, expected torch.fl",
    ),
    (RowAdam, lambda: changed(RowAdam, exp_avg_sq=torch.full((9, 5), float("nan"))), "exp_avg_sq holds a negative"),
    (RowAdam, lambda: {"state": {}}, "state_dict is dict, expected"),
]


@pytest.mark.parametrize(("kind", "make", "sentence"), REFUSED)
def test_a_state_that_does_not_fit_changes_nothing(kind: Any, make: Callable[[], Any], sentence: str) -> None:
    optimizer = stepped(kind)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=f"{kind.__name__}.load_state_dict: .*{sentence}"):
        optimizer.load_state_dict(make())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, entry in before["state"].items():
        assert all(torch.equal(after["state"][key][name], value) for name, value in entry.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_without_an_entry_starts_afresh(kind: Any) -> None:
    optimizer = stepped(kind)
    state = copy.deepcopy(optimizer.state_dict())
    state["state"].pop(0, None)
    optimizer.load_state_dict(state)
    parameter = optimizer.param_groups[0]["params"][0]
    assert all(not value.any() for value in optimizer.state[parameter].values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_sparse_in_its_elements_is_refused(kind: Any) -> None:
    parameter = table()
    parameter.grad = torch.ones(9, 5).to_sparse()
    with pytest.raises(ValueError, match=f"{kind.__name__}: .*one sparse dimension, the rows"):
        kind([parameter]).step()
    assert torch.equal(parameter, table())


STEPS = {"row_sgd_": (0, 2), "row_adagrad_": (1, 3), "row_adam_": (2, 4)}
"""Of each native step: how many states, and how many numbers it takes."""
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rows": torch.tensor([0, 4])}, r"rows\[1\] is 4, expected -1 \(skipped\) or 0 to 3"),
    ({"row_gradients": torch.ones(2, 3)}, r"row_gradients has shape \[2, 3\]"),
    ({"row_gradients": torch.ones(2, 2).double()}, "row_gradients"),
    ({"table": torch.zeros(1, 2).expand(4, 2)}, "table has overlapping elements"),
    ({"state": torch.zeros(3, 2)}, r"has shape \[3, 2\]"),
    ({"state": torch.zeros(2, 4).T}, "contiguous"),
]


@needs_cpp
@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [(name, *wrong) for name in STEPS for wrong in WRONG if STEPS[name][0] or "state" not in wrong[0]],
)
def test_the_native_steps_refuse_in_a_sentence(name: str, change: dict[str, Any], sentence: str) -> None:
    states, numbers = STEPS[name]
    given = {"table": torch.zeros(4, 2), "state": torch.zeros(4, 2), "rows": torch.tensor([0, 1]),
             "row_gradients": torch.ones(2, 2), **change}  # fmt: skip
    call = getattr(torch.ops.argus_native, name)
    with pytest.raises(ValueError, match=f"^argus_native::{name}: .*{sentence}"):
        call(given["table"], *[given["state"]] * states, given["rows"], given["row_gradients"], *[0.1] * numbers)
