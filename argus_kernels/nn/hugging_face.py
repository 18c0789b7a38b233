"""causal_attention for the models of Hugging Face transformers, through their attention interface.

    from argus_kernels.nn import hugging_face
    hugging_face.register()
    model = AutoModelForCausalLM.from_config(config, attn_implementation="argus")

Batches may be padded on either side (attention_mask [B, L]) or packed (batch 1, with cu_seq_lens_q or position_ids that
start anew, as transformers' DataCollatorWithFlattening gives them). Steps of generation, with fewer queries than cached
keys, go to torch's scaled_dot_product_attention; the cache must be a dynamic one, whose newest keys are the queries'.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from argus_kernels.core import Problems
from argus_kernels.ops.causal_attention import causal_attention

NOT_COMPUTED = ("softcap", "s_aux", "position_bias", "head_mask")


def register(name: str = "argus") -> None:
    """Makes `attn_implementation=name` known to transformers.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        ImportError: a transformers without its attention and mask interfaces (before 4.53).
    """
    try:
        transformers = importlib.import_module("transformers")
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("transformers is not installed: pip install transformers") from missing
    try:
        masks = importlib.import_module("transformers.masking_utils")
        interfaces = transformers.AttentionInterface, masks.AttentionMaskInterface
        mask_of_padding = masks.flash_attention_mask
    except (ModuleNotFoundError, AttributeError) as missing:
        raise ImportError(
            f"transformers {transformers.__version__} has no attention and mask interfaces, expected 4.53 or later"
        ) from missing
    interfaces[0].register(name, attention_forward)
    # The mask that flash-attention takes: [B, L] of padding, or None without any; no [L, L] is ever made.
    interfaces[1].register(name, mask_of_padding)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer.

    query [B, H, L, Dh], key and value [B, G, L', Dh'] with H a multiple of G; attention_mask [B, L'] (1: a token) or
    None. Returns ([B, L, H, Dh'], None): no attention weights; rows of padding are 0.

    Raises:
        ValueError: a layer that is not causal, dropout in training, a mask that is not of padding, or a setting that
            changes the scores (softcap, sinks, position_bias, head_mask).
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    _require_computable(query, key, attention_mask, dropout, causal, settings)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if query.shape[2] != key.shape[2]:
        return _step(query, key, value, attention_mask, scaling, sliding_window), None
    batch, heads, length, width = query.shape
    value_width = value.shape[3]
    if value_width != width:
        # The op has one head width: the narrower side gets zeros, which change neither scores nor outputs.
        scaling = width**-0.5 if scaling is None else scaling
        widest = max(width, value_width)
        query, key = pad(query, (0, widest - width)), pad(key, (0, widest - width))
        value = pad(value, (0, widest - value_width))
    q, k, v = (one.transpose(1, 2).reshape(batch * length, heads, -1) for one in (query, key, value))
    offsets, kept = _packing(attention_mask, settings, batch, length, query.device)
    if kept is not None:
        q, k, v = q[kept], k[kept], v[kept]
    out = causal_attention(q, k, v, offsets, length, scale=scaling, window=sliding_window)[..., :value_width]
    if kept is not None:
        out = out.new_zeros(batch * length, heads, value_width).index_copy(0, kept, out)
    return out.reshape(batch, length, heads, value_width), None


def _require_computable(
    query: Tensor, key: Tensor, mask: Tensor | None, dropout: float, causal: bool, settings: dict[str, Any]
) -> None:
    problems = Problems("attention_forward")
    problems.require(
        causal, "the layer is not causal, expected a causal one: choose another attn_implementation for it"
    )
    problems.require(dropout == 0, lambda: f"dropout is {dropout}, expected 0: set the model's attention_dropout to 0")
    for name in NOT_COMPUTED:
        problems.require(settings.get(name) is None, f"{name} is given, expected None: the op does not compute it")
    heads, groups = query.shape[1], key.shape[1]
    problems.require(heads % groups == 0, lambda: f"query has {heads} heads, expected a multiple of key's {groups}")
    problems.require(
        query.shape[2] <= key.shape[2],
        lambda: f"query has {query.shape[2]} tokens, expected at most key's {key.shape[2]}",
    )
    if mask is not None:
        wanted = [key.shape[0], key.shape[2]]
        problems.require(
            list(mask.shape) == wanted, lambda: f"attention_mask has shape {list(mask.shape)}, expected {wanted}"
        )
    problems.raise_if_any()


def _packing(
    mask: Tensor | None, settings: dict[str, Any], batch: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Offsets of the sequences in the packed rows, and which of the B · L rows are kept (None: all)."""
    if mask is not None:
        real = mask.bool()
        return pad(real.sum(1).cumsum(0), (1, 0)), real.flatten().nonzero()[:, 0]
    whole = torch.arange(0, (batch + 1) * length, max(length, 1), device=device)[: batch + 1]
    if batch != 1:
        return whole, None
    given = settings.get("cu_seq_lens_q")
    if given is not None:
        return given, None
    positions = settings.get("position_ids")
    if positions is None or positions.shape[-1] != length:
        return whole, None
    breaks = (positions.reshape(-1).diff() != 1).nonzero()[:, 0] + 1
    return torch.cat([whole[:1], breaks, whole[1:]]), None


def _step(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, window: int | None
) -> Tensor:
    """The last L tokens over all keys."""
    keys = torch.arange(key.shape[2], device=query.device)
    ages = keys[-query.shape[2] :, None] - keys
    seen = (ages >= 0) if window is None else (ages >= 0) & (ages < window)
    if mask is not None:
        # A row of padding sees itself, as nothing to see would be NaN.
        seen = seen & mask.bool()[:, None, None, :] | (ages == 0)
    out = scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
    return out.transpose(1, 2).contiguous()
