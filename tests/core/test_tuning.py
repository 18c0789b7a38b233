"""Tuning tables: names, buckets, lookup, what is wrong with a file, and a configuration in force."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from argus_kernels.core import registry, tuning
from argus_kernels.ops.causal_attention import OP as CAUSAL

KERNEL = "causal_attention/forward"
DEFAULT = {"block_query": 64}


def entry(**changes: Any) -> dict[str, Any]:
    base = {"kernel": KERNEL, "width": 64, "dtype": "bfloat16", "size": 1024, "config": {"block_query": 128}}
    return base | changes


def write(path: Path, entries: list[Any], **changes: Any) -> Path:
    path.write_text(json.dumps({"format": 1, "gpu": "NVIDIA Toy 1", "entries": entries} | changes))
    return path


@pytest.fixture
def toy_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine whose one GPU is an "NVIDIA Toy 1", and the path of its table."""
    monkeypatch.setenv("ARGUS_TUNING", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: "NVIDIA Toy 1")
    for cached in (tuning.lookup, tuning.gpu_name):
        cached.cache_clear()
    yield tmp_path / "toy-1.json"
    for cached in (tuning.lookup, tuning.gpu_name):
        cached.cache_clear()


def ask(size: int, width: int = 64, dtype: torch.dtype = torch.bfloat16) -> Any:
    return tuning.configuration(KERNEL, width=width, dtype=dtype, size=size, default=DEFAULT)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb-hbm3"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"),
        ("NVIDIA GeForce RTX 4090", "geforce-rtx-4090"),
        ("NVIDIA H200 MIG 1g.18gb", "h200-mig-1g-18gb"),
        ("Tesla T4", "tesla-t4"),
    ],
)
def test_gpu_names(name: str, expected: str) -> None:
    assert tuning.normalised_gpu_name(name) == expected


def test_a_gpu_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="expected letters or digits"):
        tuning.normalised_gpu_name("???")


@pytest.mark.parametrize(("size", "top"), [(0, 1), (1, 1), (2, 4), (1024, 1024), (1025, 4096), (8192, 16384)])
def test_size_buckets(size: int, top: int) -> None:
    assert tuning.size_bucket(size) == top


def test_without_a_gpu_the_default_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ask(1024) == DEFAULT


def test_without_a_table_the_default_serves(toy_gpu: Path) -> None:
    assert ask(1024) == DEFAULT


def test_lookup_takes_the_bucket_then_the_nearest_then_the_default(toy_gpu: Path) -> None:
    small, large = {"block_query": 32}, {"block_query": 256}
    write(toy_gpu, [entry(size=256, config=small), entry(size=16384, config=large)])
    assert ask(200) == small
    assert ask(9000) == large
    assert ask(600) == small
    assert ask(10**6) == large
    assert ask(1024) == small
    assert ask(4096) == large
    assert ask(200, width=128) == DEFAULT
    assert ask(200, dtype=torch.float32) == DEFAULT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "format is 'list', expected 1"),
        ('{"format": 2}', "format is 2, expected 1"),
        ('{"format": 1}', "entries is NoneType, expected a list"),
        (json.dumps({"format": 1, "entries": [3]}), r"entries\[0\]: kernel is None, expected str"),
        (json.dumps({"format": 1, "entries": [entry(), entry(width="64")]}), r"entries\[1\]: width is '64'"),
        (json.dumps({"format": 1, "entries": [entry(size=1000)]}), r"size is 1000, expected a bucket's top \(1024\)"),
        (json.dumps({"format": 1, "entries": [entry(config={"warps": 0.5})]}), "warps = 0.5, expected a whole number"),
    ],
)
def test_a_malformed_table_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "toy.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        tuning.load_table(path)
    assert str(path) in str(caught.value)


def test_a_forced_configuration_answers_and_notes_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with tuning.forced(KERNEL, {"block_query": 16}) as force:
        assert ask(3000) == {"block_query": 16}
        other = tuning.configuration("hstu/forward", width=64, dtype=torch.float32, size=1, default=DEFAULT)
        assert other == DEFAULT
    assert force.asked == {tuning.Key(KERNEL, 64, "bfloat16", 4096)}
    assert ask(3000) == DEFAULT


def test_the_shipped_tables_are_readable() -> None:
    for path in sorted(set(tuning.FOLDER.glob("*.json")) - {tuning.FOLDER / tuning.ORDER}):
        assert tuning.load_table(path)


class TestOrder:
    @pytest.mark.parametrize(
        ("op", "part", "dtype", "generation", "biased", "first"),
        [
            ("causal_attention", "forward", torch.bfloat16, 9, False, "cuda"),
            ("hstu_attention", "forward", torch.float16, 9, False, "cuda"),
            ("causal_attention", "forward", torch.bfloat16, 9, True, "cuda"),
            ("causal_attention", "forward", torch.float32, 9, False, "cuda"),
            ("causal_attention", "forward", torch.bfloat16, 8, False, "cuda"),
            ("causal_attention", "backward", torch.bfloat16, 9, False, "cuda"),
            ("sampled_softmax_loss", "backward", torch.bfloat16, 9, False, "cuda"),
            ("sampled_softmax_loss", "forward", torch.float32, 9, False, "cuda"),
            ("triple_embedding", "forward", torch.bfloat16, 9, False, "cuda"),
            ("decode_attention", "forward", torch.bfloat16, 9, False, "cuda"),
            ("feedback_loss", "forward", torch.bfloat16, 10, False, "cuda"),
            ("causal_attention", "backward", torch.bfloat16, 10, False, "triton"),
            ("causal_attention", "forward", torch.bfloat16, 10, True, "cuda"),
            ("sampled_softmax_loss", "forward", torch.float16, 10, False, "triton"),
            ("triple_embedding", "forward", torch.float32, 10, False, "cuda"),
        ],
    )
    def test_which_backend_a_gpu_asks_first(
        self, op: str, part: str, dtype: torch.dtype, generation: int, biased: bool, first: str
    ) -> None:
        rule = tuning.backend_order(op, part, dtype, generation, biased)
        assert rule is not None and rule.order[0] == first and set(rule.order) == {"cuda", "triton"}
        assert not rule.measured and rule.reason in rule.sentence

    @pytest.fixture
    def triton_first_in_softmax(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """An order of one's own."""
        own = {"ops": ["sampled_softmax_loss"], "order": ["triton", "cuda"], "measured": True, "reason": "tuned here"}
        rules = [own, {"order": ["cuda", "triton"], "measured": False, "reason": "x"}]
        (tmp_path / tuning.ORDER).write_text(json.dumps({"format": 1, "rules": rules}))
        monkeypatch.setenv("ARGUS_TUNING", str(tmp_path))
        tuning.backend_order.cache_clear()
        yield
        tuning.backend_order.cache_clear()

    @pytest.mark.usefixtures("triton_first_in_softmax")
    def test_auto_and_explain_follow_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        with FakeTensorMode():
            q = torch.empty(4, 1, 64, dtype=torch.bfloat16, device="cuda")
        given = CAUSAL.record._make([q, *[None] * (len(CAUSAL.arguments) - 1)])
        backends = registry.in_order("sampled_softmax_loss", CAUSAL.backends, given)
        assert [backend.name for backend in backends] == ["triton", "cuda", "cpp", "reference"]
        backends = registry.in_order("causal_attention", CAUSAL.backends, given)
        assert [backend.name for backend in backends][:2] == ["cuda", "triton"]
        on_cpu = registry.in_order("causal_attention", CAUSAL.backends, given._replace(q=torch.empty(4)))
        assert tuple(on_cpu) == CAUSAL.backends

    @pytest.mark.parametrize(
        ("rule", "problem"),
        [
            ({"order": ["cuda"], "reason": "x"}, "measured is missing"),
            ({"order": "cuda", "reason": "x", "measured": False}, "order is no list"),
            ({"order": ["cuda"], "reason": "x", "measured": False, "op": []}, "op is unknown"),
        ],
    )
    def test_a_wrong_rule_is_named(self, tmp_path: Path, rule: dict[str, Any], problem: str) -> None:
        path = tmp_path / "order.json"
        path.write_text(json.dumps({"format": 1, "rules": [rule]}))
        with pytest.raises(ValueError, match=rf"order.json: rules\[0\]: {problem}"):
            tuning.load_rules(path)
