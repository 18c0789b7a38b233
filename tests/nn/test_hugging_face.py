"""The attention function of transformers' interface: packed, padded, grouped heads, windows, generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from argus_kernels.nn.hugging_face import attention_forward, register


def inputs(batch: int, length: int, groups: int = 4, value_width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    q = torch.randn(batch, 4, length, 8, generator=generator)
    k = torch.randn(batch, groups, length, 8, generator=generator)
    return q, k, torch.randn(batch, groups, length, value_width, generator=generator)


def truth(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    return scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("value_width", [6, 8, 10])
@pytest.mark.parametrize("window", [None, 2])
def test_padded_on_either_side(groups: int, value_width: int, window: int | None) -> None:
    q, k, v = inputs(3, 6, groups, value_width)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    seen = torch.ones(6, 6, dtype=torch.bool).tril()
    seen = (seen if window is None else seen.triu(1 - window)) & mask.bool()[:, None, None, :]
    out, weights = attention_forward(nn.Identity(), q, k, v, mask, sliding_window=window)
    expected = truth(q, k, v, seen)
    assert weights is None and torch.allclose(out[mask.bool()], expected[mask.bool()], atol=1e-6)
    assert not out[~mask.bool()].any()


@pytest.mark.parametrize(
    "settings",
    [
        {"cu_seq_lens_q": torch.tensor([0, 4, 5, 9], dtype=torch.int32)},
        {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 0, 1, 2, 3]])},
    ],
)
def test_packed(settings: dict[str, Any]) -> None:
    q, k, v = inputs(1, 9)
    sequence = torch.tensor([0] * 4 + [1] + [2] * 4)
    seen = (sequence[:, None] == sequence).tril()
    out, _ = attention_forward(nn.Identity(), q, k, v, None, **settings)
    assert torch.allclose(out, truth(q, k, v, seen), atol=1e-6)


def test_a_whole_batch_without_a_mask() -> None:
    q, k, v = inputs(2, 5)
    out, _ = attention_forward(nn.Identity(), q, k, v, None, position_ids=torch.arange(5)[None])
    assert torch.allclose(out, truth(q, k, v, torch.ones(5, 5, dtype=torch.bool).tril()), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_causal": False}, "the layer is not causal"),
        ({"dropout": 0.1}, "dropout is 0.1, expected 0"),
        ({"softcap": 30.0}, "softcap is given, expected None"),
        ({"attention_mask": torch.ones(2, 1, 5, 5)}, r"attention_mask has shape \[2, 1, 5, 5\], expected \[2, 5\]"),
    ],
)
def test_what_is_not_computed_is_refused(change: dict[str, Any], message: str) -> None:
    q, k, v = inputs(2, 5)
    with pytest.raises(ValueError, match=f"attention_forward: {message}"):
        attention_forward(nn.Identity(), q, k, v, **({"attention_mask": None} | change))


@pytest.fixture(scope="module")
def models() -> Callable[[str], Any]:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    register()

    def made(attention: str) -> Any:
        config = transformers.LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, attn_implementation=attention,
        )  # fmt: skip
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config)

    return made


def test_a_model_of_the_library_padded(models: Callable[[str], Any]) -> None:
    ids = torch.randint(1, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    # The first token is predicted from padding, which each implementation fills differently.
    labels = ids.masked_fill(mask == 0, -100)
    labels[1, 5] = -100
    losses = []
    for attention in ("eager", "argus"):
        model = models(attention)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        losses.append((loss.detach(), model.model.layers[0].self_attn.q_proj.weight.grad))
    assert torch.allclose(losses[0][0], losses[1][0], atol=1e-5)
    assert torch.allclose(losses[0][1], losses[1][1], atol=1e-5)


def test_a_model_of_the_library_packed(models: Callable[[str], Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    one, two = torch.randint(1, 64, (1, 7), generator=generator), torch.randint(1, 64, (1, 4), generator=generator)
    model = models("argus").eval()
    positions = torch.cat([torch.arange(7), torch.arange(4)])[None]
    with torch.no_grad():
        packed = model(input_ids=torch.cat([one, two], 1), position_ids=positions).logits
        alone = torch.cat([model(input_ids=one).logits, model(input_ids=two).logits], 1)
    assert torch.allclose(packed, alone, atol=1e-5)


def test_a_model_of_the_library_generates(models: Callable[[str], Any]) -> None:
    ids = torch.randint(1, 64, (2, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    written = [models(one).eval().generate(ids, **settings) for one in ("eager", "argus")]
    assert torch.equal(*written)
