"""decode_linear: what its kernel promises besides the contract, its refusals, and the direct path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from argus_kernels import DirectLinear, decode_linear, explain, use_backend
from argus_kernels.core import native
from argus_kernels.ops.decode_linear import OP
from argus_kernels.ops.decode_linear.arguments import Arguments
from argus_kernels.ops.decode_linear.native import MAX_ROWS, forward
from tests.instruction_sets import require_the_same_bits

DIGEST = """
import zlib, torch
from argus_kernels.core import native
from argus_kernels.ops.decode_linear.arguments import Arguments
from argus_kernels.ops.decode_linear.native import forward
native.require("cpu")
print(torch.ops.argus_native.cpu_features().split()[0])
for threads in (1, 4):
    torch.set_num_threads(threads)
    digest = 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for rows, inputs, outputs in ((1, 7, 3), (3, 40, 33), (5, 257, 530), (16, 512, 300)):
            draw = torch.Generator().manual_seed(inputs)
            shapes = ((rows, inputs), (outputs, inputs), (outputs,), (inputs,), (inputs,), (rows, outputs))
            x, weight, bias, scale, shift, added = (torch.randn(s, generator=draw).to(dtype) for s in shapes)
            for norm in ((None, None), (scale, shift)):
                out = forward(Arguments(x, weight, bias, *norm, added, 1e-5, "gelu"))
                digest = zlib.crc32(out.view(torch.uint8).numpy().tobytes(), digest)
    print(digest)
"""


def layer(rows: int, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """All arguments of the public function, of unit size."""
    draw = torch.Generator().manual_seed(inputs + outputs)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    return {
        "x": drawn(rows, inputs), "weight": drawn(outputs, inputs) / inputs**0.5, "bias": drawn(outputs),
        "norm_weight": drawn(inputs), "norm_bias": drawn(inputs), "activation": "gelu",
        "residual": drawn(rows, outputs),
    }  # fmt: skip


def in_float64(given: dict[str, Any]) -> dict[str, Any]:
    """The same values held in float64."""
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in given.items()}


@pytest.fixture
def _library() -> None:
    reason = native.why_not("cpu")
    if reason is not None:
        pytest.skip(reason)


needs_library = pytest.mark.usefixtures("_library")


@needs_library
def test_the_same_bits_on_every_instruction_set_and_number_of_threads() -> None:
    require_the_same_bits(DIGEST)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_rows_bits_do_not_depend_on_who_shares_the_call(dtype: torch.dtype) -> None:
    given = layer(MAX_ROWS, 70, 37, dtype)
    together = decode_linear(**given, backend="cpp")
    for first, last in ((0, 1), (15, 16), (3, 8), (5, 16)):
        some = {**given, "x": given["x"][first:last], "residual": given["residual"][first:last]}
        assert torch.equal(decode_linear(**some, backend="cpp"), together[first:last])


@pytest.mark.parametrize("backend", [backend.name for backend in OP.backends])
def test_it_is_what_the_modules_compute(backend: str) -> None:
    """A pre-LN feed-forward layer of torch's own modules, in two calls."""
    if reasons := OP.backend(backend).available():
        pytest.skip(reasons)
    norm, up, down = nn.LayerNorm(64).double(), nn.Linear(64, 200).double(), nn.Linear(200, 64).double()
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
        x = torch.randn(5, 64, dtype=torch.float64)
        hidden = decode_linear(
            x, up.weight, up.bias, norm_weight=norm.weight, norm_bias=norm.bias, eps=norm.eps, activation="gelu",
            backend=backend,
        )  # fmt: skip
        out = decode_linear(hidden, down.weight, down.bias, residual=x, backend=backend)
        torch.testing.assert_close(out, x + down(F.gelu(up(norm(x)))), rtol=1e-12, atol=1e-12)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_of_real_size_agree_with_float64(dtype: torch.dtype) -> None:
    """Several threads' worth of weights: what the small samples do not reach."""
    given = layer(9, 1000, 700, dtype)
    exact = in_float64(given)
    truth = decode_linear(**exact, backend="reference")
    theirs = decode_linear(**given, backend="reference")
    allowed = 2 * float((theirs.double() - truth).abs().max()) + torch.finfo(dtype).eps * float(truth.abs().max())
    assert float((decode_linear(**given, backend="cpp").double() - truth).abs().max()) <= allowed


@needs_library
def test_rows_far_from_zero_are_normalised_as_well() -> None:
    """A mean of a thousand deviations: the variance in one pass would have no digit left."""
    given = layer(2, 256, 8)
    given["x"] += 1000
    exact = in_float64(given)
    found = decode_linear(**given, backend="cpp").double()
    torch.testing.assert_close(found, decode_linear(**exact, backend="reference"), rtol=1e-3, atol=1e-3)


@needs_library
def test_rows_do_not_touch_each_other() -> None:
    given = layer(6, 33, 18)
    clean = decode_linear(**given, backend="cpp")
    given["x"][4] = torch.nan
    given["x"][2, 5] = torch.inf
    dirty = decode_linear(**given, backend="cpp")
    assert torch.equal(dirty[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])
    assert dirty[[2, 4]].isnan().all()


@needs_library
def test_many_rows_are_a_matrix_product() -> None:
    given = layer(MAX_ROWS + 1, 8, 4)
    with pytest.raises(
        ValueError, match=r"decode_linear\[cpp\]: x has 17 rows, expected at most 16: more are a matrix"
    ):
        decode_linear(**given, backend="cpp")
    assert [one.backend for one in explain(decode_linear, **given) if one.serves] == ["reference"]
    assert torch.equal(decode_linear(**given), decode_linear(**given, backend="reference"))
    few = {**given, "x": given["x"][:MAX_ROWS], "residual": given["residual"][:MAX_ROWS]}
    assert next(one.backend for one in explain(decode_linear, **few) if one.serves) == "cpp"


def test_the_backends_are_two_and_a_gpu_takes_the_reference() -> None:
    """There is no kernel for a GPU, and nothing pretends that there is one."""
    assert [backend.name for backend in OP.backends] == ["cpp", "reference"]
    given: dict[str, Any]
    given = {name: value.to("meta") if isinstance(value, Tensor) else value for name, value in layer(2, 8, 4).items()}
    cpp, reference = explain(decode_linear, **given)
    assert not cpp.serves and reference.serves
    if native.why_not("cpu") is None:
        assert "x is on meta, expected cpu" in cpp.reasons


def test_every_disagreement_is_named_at_once() -> None:
    given = layer(3, 8, 4)
    with pytest.raises(ValueError) as raised:
        decode_linear(
            given["x"],
            given["weight"],
            torch.zeros(5),
            norm_weight=torch.zeros(8, dtype=torch.float64),
            residual=torch.zeros(3, 8),
            eps=0.0,
            activation="relu",
        )
    message = str(raised.value)
    for part in (
        "decode_linear: bias has shape [5], expected [4] like x",
        "residual has shape [3, 8], expected [3, 4] like x",
        "norm_weight is torch.float64, expected torch.float32 like x",
        "one of norm_weight and norm_bias is given",
        "eps is 0.0, expected a finite number above 0",
        "activation is 'relu', expected one of none, gelu",
    ):
        assert part in message, message
    with pytest.raises(ValueError, match=r"weight has shape \[4, 9\], expected \[any, 8\] like x"):
        decode_linear(given["x"], torch.zeros(4, 9))
    with pytest.raises(ValueError, match=r"weight has shape \[0, 8\], expected no size of 0"):
        decode_linear(given["x"], torch.zeros(0, 8))
    with pytest.raises(ValueError, match=r"x is torch\.int64"):
        decode_linear(torch.zeros(1, 8, dtype=torch.int64), torch.zeros(4, 8))
    with pytest.raises(ValueError, match="weight is list, expected a tensor"):
        decode_linear(given["x"], [1.0])  # type: ignore[arg-type]


@needs_library
def test_the_kernel_refuses_by_itself() -> None:
    """In the words of the op's own checks, which the direct path leaves out."""
    x, weight, vector = torch.zeros(2, 8), torch.zeros(4, 8), torch.zeros(8)
    right: list[Any] = [x, weight, None, None, None, None, 1e-5, "none"]
    for place, value, message in (
        (0, torch.zeros(2, 3, 8), r"x has shape \[2, 3, 8\], expected \[n, I\]"),
        (0, torch.zeros(17, 8), "x has 17 rows, expected at most 16"),
        (1, torch.zeros(4, 7), r"weight has shape \[4, 7\], expected"),
        (1, torch.zeros(0, 8), r"weight has shape \[0, 8\], expected no size of 0"),
        (1, weight.half(), "weight is Half, expected Float"),
        (2, vector, r"bias has shape \[8\]"),
        (3, vector, "one of norm_weight and norm_bias is given"),
        (5, torch.zeros(2, 5), r"residual has shape \[2, 5\]"),
    ):
        changed = list(right)
        changed[place] = value
        with pytest.raises(ValueError, match="^argus_native::decode_linear: " + message):
            forward(Arguments._make(changed))


def test_it_has_no_gradients() -> None:
    given = layer(2, 8, 4)
    given["weight"].requires_grad_()
    with pytest.raises(RuntimeError, match="decode_linear"):
        decode_linear(**given).sum().backward()


def test_under_autocast_the_weight_decides_the_dtype() -> None:
    given = layer(2, 8, 4, torch.bfloat16)
    mixed = {**given, "x": given["x"].float(), "residual": given["residual"].float()}
    with pytest.raises(ValueError, match=r"weight is torch.bfloat16, expected torch.float32 like x"):
        decode_linear(**mixed)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(decode_linear(**mixed), decode_linear(**given))


def direct_of(given: dict[str, Any], **changes: Any) -> DirectLinear:
    """The prepared layer of these arguments."""
    fixed = {name: value for name, value in given.items() if name not in ("x", "residual")}
    return DirectLinear(**{**fixed, **changes})


@pytest.mark.parametrize("backend", ["reference", None])
def test_direct_linear_gives_the_ops_bits(backend: str | None) -> None:
    given = layer(3, 40, 21)
    prepared = direct_of(given, backend=backend)
    with torch.inference_mode():
        for rows in (3, 1, 3):
            x, residual = given["x"][:rows], given["residual"][:rows]
            expected = {**given, "x": x, "residual": residual, "backend": backend}
            assert torch.equal(prepared(x, residual), decode_linear(**expected))
            assert torch.equal(prepared(x), decode_linear(**{**expected, "residual": None}))


def test_direct_linear_sees_weights_changed_in_place() -> None:
    linear = nn.Linear(6, 5)
    prepared = DirectLinear(linear.weight, linear.bias)
    with torch.no_grad():
        x = torch.randn(2, 6)
        prepared(x)
        linear.weight.mul_(2)
        linear.bias.add_(1)
        torch.testing.assert_close(prepared(x), linear(x))


def test_direct_linear_validates_every_kind_of_arguments() -> None:
    given = layer(3, 8, 4)
    prepared = direct_of(given)
    with torch.no_grad():
        prepared(given["x"], given["residual"])
        with pytest.raises(ValueError, match=r"weight has shape \[4, 8\], expected \[any, 9\] like x"):
            prepared(torch.zeros(3, 9))
        with pytest.raises(ValueError, match=r"residual has shape \[2, 4\], expected \[3, 4\] like x"):
            prepared(given["x"], given["residual"][:2])
        with pytest.raises(ValueError, match=r"weight is torch.float32, expected torch.float64 like x"):
            prepared(given["x"].double())
        with pytest.raises(ValueError, match="activation is 'tanh'"):
            direct_of(given, activation="tanh")(given["x"])


def test_direct_linear_refuses_grad_mode_and_asks_for_the_default_backend() -> None:
    given = layer(3, 8, 4)
    prepared = direct_of(given)
    with pytest.raises(RuntimeError, match=r"grad mode is on, expected torch.inference_mode\(\) or torch.no_grad\(\)"):
        prepared(given["x"])
    with torch.no_grad():
        prepared(given["x"])
        with use_backend("nonsense"), pytest.raises(ValueError, match="backend is 'nonsense'"):
            prepared(given["x"])
        with use_backend("eager"):
            expected = decode_linear(**{**given, "residual": None, "backend": "reference"})
            assert torch.equal(prepared(given["x"]), expected)


@pytest.mark.parametrize("backend", ["cpp", "reference", "eager"])
def test_gelu_of_infinities_is_what_float64_gives(backend: str) -> None:
    """torch's vectorised gelu makes NaN of +∞ in float32, from the second element on."""
    for value in (torch.inf, -torch.inf, torch.nan):
        x, weight = torch.full((3, 8), value), torch.ones(4, 8)
        found = decode_linear(x, weight, activation="gelu", backend=backend)
        torch.testing.assert_close(found.double(), F.gelu(x.double() @ weight.double().T), equal_nan=True)
