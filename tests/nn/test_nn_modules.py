"""The modules give what the ops give, and live as torch modules do: copied, saved, moved, compiled, shared by ranks."""

from __future__ import annotations

import copy
import doctest
import importlib
import io
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from argus_kernels import Offsets, causal_attention, feedback_loss, hstu_attention, pairwise_loss, triple_embedding
from argus_kernels.nn import CausalAttention, FeedbackLoss, HstuAttention, PairwiseLoss, TripleEmbedding

OFFSETS = torch.tensor([0, 3, 8])
TIMES = torch.tensor([5, 9, 70, 1, 4, 90, 95, 400])
IDS = torch.tensor([[7, 900, -1, 2, 2, 5, 999, 0], [0, 3, 1, -1, 2, 2, 0, 1], [1, 2, 3, 4, 5, 6, 7, 8]])
TARGETS = torch.tensor([[1, 4], [0, -1], [-1, 2], [1, 0], [0, 1], [1, -1], [-1, -1], [0, 3]])
GRADES = torch.tensor([1, 0, -1, 2, 1, 0, 0, 3])


def qkv(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, 8, 2, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    return q, k, v


def hidden(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(2)).to(dtype)


def attention_inputs(dtype: torch.dtype) -> tuple[Any, ...]:
    return (*qkv(dtype), OFFSETS, 5)


# A module, and a call of it in some dtype.
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, torch.dtype], Tensor]]] = {
    "TripleEmbedding": (
        lambda: TripleEmbedding({"item": (1000, 32), "action": (9, 8)}, ["item", "action", "action"], 16),
        lambda module, dtype: module(IDS),
    ),
    "CausalAttention": (
        lambda: CausalAttention(2, position_buckets=4, time_buckets=16, window=3),
        lambda module, dtype: module(*attention_inputs(dtype), times=TIMES),
    ),
    "HstuAttention": (
        lambda: HstuAttention(2, 5, position_buckets=4, time_buckets=16),
        lambda module, dtype: module(*attention_inputs(dtype), times=TIMES),
    ),
    "FeedbackLoss": (
        lambda: FeedbackLoss(16, [1, 5], task_weight=[0.5, 2]),
        lambda module, dtype: module(hidden(dtype), TARGETS),
    ),
    "PairwiseLoss": (
        lambda: PairwiseLoss(60),
        lambda module, dtype: module(hidden(dtype)[:, 0], GRADES, OFFSETS, TIMES),
    ),
}
every_module = pytest.mark.parametrize("name", CASES)


def made(name: str) -> tuple[Any, Callable[[Any, torch.dtype], Tensor]]:
    make, call = CASES[name]
    module = make()
    for number, parameter in enumerate(module.parameters()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
    return module, call


@every_module
def test_copies_and_saved_states_give_the_same_bits(name: str) -> None:
    module, call = made(name)
    expected = call(module, torch.float32)
    fresh, _ = CASES[name][0](), None
    stored = io.BytesIO()
    torch.save(module.state_dict(), stored)
    stored.seek(0)
    fresh.load_state_dict(torch.load(stored, weights_only=True))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), fresh):
        assert torch.equal(call(other, torch.float32), expected)


@every_module
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_moves_to_another_dtype(name: str, dtype: torch.dtype) -> None:
    module, call = made(name)
    expected = call(module, torch.float32)
    found = call(module.to(dtype), dtype)
    assert torch.allclose(found.double(), expected.double(), rtol=0.05, atol=0.2 if dtype == torch.bfloat16 else 1e-5)


@every_module
def test_compiles_as_one_graph(name: str) -> None:
    module, call = made(name)
    expected = call(module, torch.float32)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(call(compiled, torch.float32), expected)


@every_module
def test_names_of_the_state_and_the_settings_shown(name: str) -> None:
    module, _ = made(name)
    names = {
        "TripleEmbedding": ["weight", "bias", "tables.action", "tables.item"],
        "CausalAttention": ["position_bias", "time_bias"],
        "HstuAttention": ["position_bias", "time_bias"],
        "FeedbackLoss": ["weight", "bias"],
        "PairwiseLoss": [],
    }
    assert list(module.state_dict()) == names[name]
    shown = {
        "TripleEmbedding": "width=16", "CausalAttention": "window=3", "HstuAttention": "divisor=5.0",
        "FeedbackLoss": "classes=[1, 5]", "PairwiseLoss": "window=60",
    }  # fmt: skip
    assert shown[name] in repr(module)


def test_each_is_its_op() -> None:
    embedding, _ = made("TripleEmbedding")
    tables = [embedding.tables["item"], embedding.tables["action"]]
    expected = triple_embedding(IDS, tables, [0, 1, 1], embedding.weight, embedding.bias)
    assert torch.equal(embedding(IDS), expected)
    causal, _ = made("CausalAttention")
    out, log_sum_exp = causal(*qkv(), OFFSETS, 5, times=TIMES, return_log_sum_exp=True)
    out_and_sum = causal_attention(
        *qkv(), OFFSETS, 5, window=3, position_bias=causal.position_bias, time_bias=causal.time_bias,
        query_time=TIMES, key_time=TIMES, return_log_sum_exp=True,
    )  # fmt: skip
    assert torch.equal(out, out_and_sum[0]) and torch.equal(log_sum_exp, out_and_sum[1])
    hstu, _ = made("HstuAttention")
    expected = hstu_attention(
        *qkv(), OFFSETS, 5, divisor=5.0, position_bias=hstu.position_bias.expand(2, -1),
        time_bias=hstu.time_bias.expand(2, -1), query_time=TIMES, key_time=TIMES,
    )  # fmt: skip
    assert torch.equal(hstu(*qkv(), OFFSETS, 5, times=TIMES), expected)
    feedback, _ = made("FeedbackLoss")
    expected = feedback_loss(
        hidden(), feedback.weight, feedback.bias, TARGETS, [1, 5], task_weight=torch.tensor([0.5, 2.0])
    )
    assert torch.equal(feedback(hidden(), TARGETS), expected)
    assert [part.shape[1] for part in feedback.logits(hidden())] == [1, 5]
    loss, pairs, _ = pairwise_loss(hidden()[:, 0], GRADES, OFFSETS, TIMES, 60)
    assert torch.equal(PairwiseLoss(60)(hidden()[:, 0], GRADES, OFFSETS, TIMES), loss / pairs)
    assert torch.equal(PairwiseLoss(60, reduction="sum")(hidden()[:, 0], GRADES, OFFSETS, TIMES), loss)


def test_initial_values_are_the_documented_ones() -> None:
    embedding = TripleEmbedding({"item": (4000, 64)}, ["item", "item"], 512)
    assert embedding.tables["item"].std().item() == pytest.approx(1 / 8, rel=0.02)
    assert embedding.weight.std().item() == pytest.approx(2**-0.5, rel=0.02)
    assert not embedding.state_dict()["bias"].any()
    causal, hstu = CausalAttention(2, position_buckets=9), HstuAttention(2, 4, position_buckets=4000)
    assert not causal.state_dict()["position_bias"].any()
    assert hstu.position_bias is not None and hstu.position_bias.std().item() == pytest.approx(0.02, rel=0.1)
    assert FeedbackLoss(400, [30]).weight.std().item() == pytest.approx(1 / 20, rel=0.05)


def test_jagged_queries_with_heads_in_either_place() -> None:
    attention = CausalAttention(2)
    packed = attention(*qkv(), OFFSETS, 5)
    for transposed in (False, True):
        jagged: list[Any] = [torch.nested.nested_tensor_from_jagged(one, OFFSETS) for one in qkv()]
        jagged = [jagged[0], *(torch.nested.nested_tensor_from_jagged(one, jagged[0].offsets()) for one in qkv()[1:])]
        given = [one.transpose(1, 2) for one in jagged] if transposed else jagged
        out = attention(*given)
        assert torch.equal((out.transpose(1, 2) if transposed else out).values(), packed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TripleEmbedding({"a": (4, 2)}, ["b"], 3), r"TripleEmbedding: columns\[0\] is 'b', expected one of a"),
        (lambda: TripleEmbedding({"a": (0, 2)}, ["a"], 3), r"tables\['a'\] is \(0, 2\), expected \(rows, width\)"),
        (lambda: TripleEmbedding({"a": (4, 2)}, [], 3), "columns is empty, expected at least one"),
        (lambda: CausalAttention(0), "CausalAttention: heads is 0, expected at least 1"),
        (lambda: CausalAttention(2, window=0), "window is 0, expected at least 1"),
        (lambda: HstuAttention(2, 0), "HstuAttention: divisor is 0, expected a finite number above 0"),
        (lambda: FeedbackLoss(4, [1, 2], task_weight=[1]), "task_weight has 1 values, expected 2 as classes"),
        (lambda: FeedbackLoss(4, []), "classes is empty, expected at least one task"),
        (lambda: PairwiseLoss(-1), "PairwiseLoss: window is -1, expected at least 0"),
        (lambda: PairwiseLoss(1, reduction="none"), "reduction is 'none', expected one of mean, sum"),
        (lambda: CausalAttention(3)(*qkv(), OFFSETS, 5), "CausalAttention: q has 2 heads, expected 3"),
        (
            lambda: CausalAttention(2, time_buckets=4)(*qkv(), OFFSETS, 5),
            "times is not given, expected int64 seconds with time_buckets",
        ),
    ],
)
def test_what_does_not_fit_is_said(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class Tied(nn.Module):
    """An item table that embeds and scores: by rows, or as a whole."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.embed = TripleEmbedding({"item": (50, 8)}, ["item"], 8, sparse=True)
        self.whole = whole

    def forward(self, ids: Tensor) -> Tensor:
        vectors = self.embed(ids[None])
        table = self.embed.tables["item"]
        scored = table if self.whole else self.embed.rows("item", torch.arange(5, 20))
        return (vectors @ scored.T).logsumexp(1).sum()


def test_a_tied_table_keeps_sparse_gradients_where_rows_are_read() -> None:
    model = Tied(whole=False)
    model(torch.tensor([1, 2, 2])).backward()
    gradient = model.embed.tables["item"].grad
    assert gradient is not None and gradient.is_sparse
    assert gradient.coalesce().indices()[0].tolist() == [1, 2, *range(5, 20)]
    dense = Tied(whole=False)
    dense.load_state_dict(model.state_dict())
    dense.embed.sparse = False
    dense(torch.tensor([1, 2, 2])).backward()
    expected = dense.embed.tables["item"].grad
    assert expected is not None and torch.allclose(gradient.to_dense(), expected, atol=1e-6)


@pytest.mark.parametrize("change", ["none", "copied", "pickled", "loaded"])
def test_a_tied_table_used_as_a_whole_is_refused(change: str) -> None:
    model: Tied = Tied(whole=True)
    with pytest.raises(ValueError, match="the gradient of table 'item' is dense, expected row-sparse"):
        model(torch.tensor([1, 2])).backward()
    if change == "copied":
        model = copy.deepcopy(model)
    elif change == "pickled":
        model = pickle.loads(pickle.dumps(model))
    elif change == "loaded":
        model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    model.zero_grad()
    with pytest.raises(ValueError, match="used as a whole; read its rows with rows"):
        model(torch.tensor([1, 2])).backward()


def test_a_table_given_is_shared_and_left_as_it_is() -> None:
    table = nn.Parameter(torch.randn(9, 4))
    before = table.detach().clone()
    embedding = TripleEmbedding({"item": table}, ["item"], 3)
    assert embedding.tables["item"] is table and torch.equal(table, before)


@pytest.mark.parametrize("module", ["embedding", "attention", "losses", "sampled_softmax"])
def test_examples_in_the_docstrings_run(module: str) -> None:
    found = doctest.testmod(importlib.import_module(f"argus_kernels.nn.{module}"))
    assert found.attempted > 0 and found.failed == 0


def test_importing_the_package_leaves_the_modules_out() -> None:
    program = (
        "import sys, argus_kernels\n"
        "assert 'argus_kernels.nn' not in sys.modules\n"
        "assert argus_kernels.nn.PairwiseLoss(1).window == 1\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_pages_examples_run() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/nn.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(compile(example, "docs/nn.md", "exec"), {})


@pytest.mark.parametrize(
    "module", [CausalAttention(2, dropout=0.5), HstuAttention(2, 20, dropout=0.5)], ids=["softmax", "silu"]
)
def test_dropout_in_training(module: CausalAttention | HstuAttention) -> None:
    q, k, v = torch.randn(3, 9, 2, 4)
    offsets = torch.tensor([0, 4, 9])
    seed = torch.tensor([3, 4])
    first = module(q, k, v, offsets, dropout_seed=seed)
    assert torch.equal(first, module(q, k, v, Offsets(offsets), dropout_seed=seed))
    assert not torch.equal(first, module(q, k, v, offsets))
    module.eval()
    plain = module(q, k, v, offsets)
    assert not torch.equal(first, plain)
    assert torch.equal(plain, module(q, k, v, offsets, dropout_seed=seed))
    with pytest.raises(ValueError, match="dropout is 1, expected a finite number of at least 0 and below 1"):
        type(module)(2, 20, dropout=1) if isinstance(module, HstuAttention) else CausalAttention(2, dropout=1)


def test_modules_take_the_numbers_of_the_mask_rule() -> None:
    module = CausalAttention(2, position_buckets=4, time_buckets=8)
    q, k, v = torch.randn(3, 9, 2, 4)
    offsets, times = torch.tensor([0, 4, 9]), torch.arange(9) * 1000
    whole = module(q, k, v, offsets, times=times)
    last = torch.tensor([3, 8])
    rows = module(
        q[last], k, v, torch.tensor([0, 1, 2]), key_offsets=offsets, times=times, query_times=times[last],
    )  # fmt: skip
    torch.testing.assert_close(rows, whole[last])
