"""decode_attention without the op boundary, for servers: arguments of one kind are validated once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from argus_kernels.core.offsets import Offsets, opened
from argus_kernels.core.registry import capture, choose, default_backend
from argus_kernels.core.varlen import as_int32
from argus_kernels.ops.decode_attention.arguments import Arguments
from argus_kernels.ops.decode_attention.cache import PagedCache

CHECKS_VALUES = ("cpp", "cuda", "triton")
"""Backends whose kernels themselves refuse, or leave alone, lengths and pages that are out of bounds."""


class DirectDecoder:
    """Calls decode_attention's backend straight away: no dispatcher, no schema, no fake, no autograd.

    What stays the same from call to call is given once. The first call with arguments of a kind (which are given, their
    shapes, dtypes, devices) goes through all checks of `decode_attention` and picks the backend; later ones of the same
    kind only through the kernel's own. It cannot be traced by torch.compile or exported, and autocast does not reach
    it: give q, k and v in the cache's dtype.

    `position_bias`, `time_bias`, `rule`, `scale`, `divisor`, `window` and `backend` are those of `decode_attention`.
    """

    def __init__(
        self,
        *,
        position_bias: Tensor | None = None,
        time_bias: Tensor | None = None,
        rule: str = "softmax",
        scale: float | None = None,
        divisor: float | None = None,
        window: int | None = None,
        backend: str | None = None,
    ) -> None:
        self._biases = (position_bias, time_bias)
        self._numbers = {"rule": rule, "scale": scale, "divisor": divisor, "window": window}
        self._backend = backend
        self._known: dict[Any, tuple[Callable[..., Tensor], float, int | None, float | None]] = {}

    def __call__(
        self,
        q: Tensor,
        cache: PagedCache,
        lengths: Tensor,
        *,
        k: Tensor | None = None,
        v: Tensor | None = None,
        offsets: Tensor | Offsets | None = None,
        query_time: Tensor | None = None,
        key_time: Tensor | None = None,
    ) -> Tensor:
        """The same as `decode_attention`, without gradients; call it under torch.inference_mode() or torch.no_grad().

        Raises RuntimeError in grad mode, ValueError as `decode_attention` does.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("DirectDecoder: grad mode is on, expected torch.inference_mode() or torch.no_grad()")
        try:
            if lengths.dtype is torch.int64:
                lengths = as_int32(lengths)
            ends: Tensor | None = None if offsets is None else opened("decode_attention", offsets, None, q)[0]
            pages = (cache.key_pages, cache.value_pages, cache.time_pages, cache.block_table)
            scales = (cache.key_scales, cache.value_scales)
            tensors = (q, *pages, lengths, k, v, query_time, key_time, ends, *scales)
            kind = (
                self._backend or default_backend(),
                *[None if one is None else (one.shape, one.dtype, one.device) for one in tensors],
            )
        except AttributeError:  # no PagedCache or no tensor: `_validate` says which
            kind = None
        found = self._known.get(kind)
        if found is None:
            found = self._known[kind] = self._validate(
                q, cache, lengths, k=k, v=v, offsets=offsets, query_time=query_time, key_time=key_time
            )
        forward, scale, window, divisor = found
        return forward(
            Arguments(*tensors[:8], *self._biases, query_time, key_time, scale, window, ends, divisor, *scales)
        )

    def _validate(
        self, q: Tensor, cache: PagedCache, lengths: Tensor, **given: Any
    ) -> tuple[Callable[..., Tensor], float, int | None, float | None]:
        """The backend's forward function, with the checks of values where its kernel has none, and the numbers."""
        from argus_kernels.ops.decode_attention import OP, check_values, decode_attention

        position_bias, time_bias = self._biases
        _, captured = capture(
            decode_attention, q, cache, lengths, **given, position_bias=position_bias, time_bias=time_bias,
            **self._numbers,
        )  # fmt: skip
        wanted = self._backend or default_backend()
        backend = choose(OP.name, OP.backends, "reference" if wanted == "eager" else wanted, captured)
        forward = backend.forward
        numbers = captured.scale, captured.window, captured.divisor
        if backend.name in CHECKS_VALUES:
            return forward, *numbers

        def checked(given: Arguments) -> Tensor:
            check_values(given)
            out: Tensor = backend.forward(given)
            return out

        return checked, *numbers
