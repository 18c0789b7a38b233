"""decode_linear without the op boundary, for servers: arguments of one kind are validated once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core.problems import Problems
from argus_kernels.core.registry import capture, choose, default_backend
from argus_kernels.ops.decode_linear.arguments import Arguments


class DirectLinear:
    """Calls decode_linear's backend straight away: no dispatcher of torch's, no schema, no fake, no autograd.

    What stays the same from call to call is given once. The first call with arguments of a kind (their shapes, dtypes,
    devices, whether there is a residual) goes through all checks of `decode_linear` and picks the backend; later ones
    of the same kind only through the kernel's own. It holds the tensors themselves, so that weights changed in place
    count from the next call on; a weight that is not contiguous is copied, here and once. It cannot be traced by
    torch.compile or exported, and autocast does not reach it: give x and residual in the weight's dtype.

    The arguments are those of `decode_linear`.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        norm_weight: Tensor | None = None,
        norm_bias: Tensor | None = None,
        eps: float = 1e-5,
        activation: str = "none",
        backend: str | None = None,
    ) -> None:
        given = {"weight": weight, "bias": bias, "norm_weight": norm_weight, "norm_bias": norm_bias}
        problems = Problems("DirectLinear")
        for name, one in given.items():
            if one is not None or name == "weight":
                problems.tensor(name, one)
        problems.raise_if_any()
        self._tensors = tuple(None if one is None else one.detach().contiguous() for one in given.values())
        self._eps, self._activation, self._backend = eps, activation, backend
        self._known: dict[Any, Callable[..., Tensor]] = {}

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The same as `decode_linear`, without gradients; call it under torch.inference_mode() or torch.no_grad().

        Raises RuntimeError in grad mode, ValueError as `decode_linear` does.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("DirectLinear: grad mode is on, expected torch.inference_mode() or torch.no_grad()")
        try:
            added = None if residual is None else (residual.shape, residual.dtype, residual.device)
            kind = (self._backend or default_backend(), x.shape, x.dtype, x.device, added)
        except AttributeError:  # no tensor: `_validate` says which
            kind = None
        forward = self._known.get(kind)
        if forward is None:
            forward = self._known[kind] = self._validate(x, residual)
        return forward(Arguments._make((x, *self._tensors, residual, self._eps, self._activation)))

    def _validate(self, x: Tensor, residual: Tensor | None) -> Callable[..., Tensor]:
        from argus_kernels.ops.decode_linear import decode_linear

        weight, bias, norm_weight, norm_bias = self._tensors
        op, given = capture(
            decode_linear, x, weight, bias, norm_weight=norm_weight, norm_bias=norm_bias, eps=self._eps,
            activation=self._activation, residual=residual,
        )  # fmt: skip
        wanted = self._backend or default_backend()
        chosen = choose(op.name, op.backends, "reference" if wanted == "eager" else wanted, given)
        forward: Callable[..., Tensor] = chosen.forward
        return forward
