"""`compile=true`: the numbers of a model that is not compiled, few graphs, the same names, and a refusal in time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from argus_kernels.testing import require_close
from python_model.config import TrainConfig
from python_model.data.schema import Dataset
from python_model.model import compiled
from python_model.model.argus import Argus
from python_model.train import train
from python_model.training import checkpoint
from python_model.training.progress import read_metrics
from tests.model.conftest import SMALL, random_batch, small_model

LENGTHS: list[list[int]] = [[5, 0, 1, 9], [3, 4], [1], [], [17, 2, 6], [2, 1]]
PRETRAIN = TrainConfig(
    steps=4, batch_events=96, window=32, negatives_in_batch=32, negatives_uniform=16, warmup_steps=1, sketch_width=512,
    checkpoint_every=2, validate_every=4, compile=True,
)  # fmt: skip


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Graphs are captured, differentiated and counted as ever, and run op by op instead of being built in C++."""
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compiled, "COMPILER", {"backend": counter})
    yield counter
    torch.compiler.reset()


def compile_model(model: Argus) -> None:
    compiled.compile_encoder(model.encoder, model.device, nullcontext)


def step(model: Argus, lengths: list[int], every: bool) -> dict[str, Tensor]:
    """States and the gradients of the parameters, by name; `every`: of all states, else of every third."""
    batch = random_batch(lengths)
    read = None if every else torch.arange(len(batch)) % 3 == 0
    torch.manual_seed(1)
    model.zero_grad()
    states = model.encode(batch, read=read)
    states.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"states": states.detach()} | {n: one.to_dense() if one.is_sparse else one for n, one in gradients.items()}


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout": 0.3, "attention_dropout": 0.2, "sparse": True},
    "hstu": {"encoder": "hstu", "dropout": 0.2, "max_events": 32},
    "full": {"form": "full"},
}


@pytest.mark.parametrize(
    "name", ["dropout", "hstu", *(pytest.param(one, marks=pytest.mark.slow) for one in ("plain", "full"))]
)
def test_the_same_numbers_with_few_graphs(counted: CompileCounterWithBackend, name: str) -> None:
    """All lengths and layers share two graphs of each half: one where the last layer computes some rows only."""
    model = small_model(**SETTINGS[name]).train()
    model.encoder.recompute = name in ("dropout", "hstu")
    names = list(model.state_dict())
    cases = [(lengths, every) for lengths in LENGTHS for every in (True, False)]
    expected = [step(model, *case) for case in cases]
    compile_model(model)
    for case, one in zip(cases, expected, strict=True):
        torch.testing.assert_close(step(model, *case), one, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == names
    assert counted.frame_count == 4


def test_evaluation_is_compiled_too(counted: CompileCounterWithBackend) -> None:
    model = small_model(dropout=0.3)
    batches = [random_batch(lengths) for lengths in LENGTHS]
    with torch.no_grad():
        expected = [model.encode(batch) for batch in batches]
        compile_model(model)
        before = counted.frame_count
        for batch, one in zip(batches, expected, strict=True):
            torch.testing.assert_close(model.encode(batch), one)
    assert counted.frame_count == before + 2


def test_a_second_model_of_another_width_has_graphs_of_its_own(counted: CompileCounterWithBackend) -> None:
    """However many there were before it in this process."""
    with torch._dynamo.config.patch(recompile_limit=2):
        for width in (16, 32, 48):
            compile_model(small_model(width=width))
    assert counted.frame_count == 2 * 3


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_training_run_is_the_same(
    counted: CompileCounterWithBackend, tiny_service: Dataset, tmp_path: Path, precision: str
) -> None:
    """Losses, validation, weights and their names; op by op, the graphs round as the modules do."""
    model = replace(SMALL, dropout=0.1, sparse=True)
    config = replace(PRETRAIN, precision=precision)
    for run in (True, False):
        train("pretrain", tiny_service, tmp_path / f"{run}", model, replace(config, compile=run))
    found, expected = (
        [one["loss"] for one in read_metrics(tmp_path / f"{run}") if "loss" in one] for run in (True, False)
    )
    assert found == pytest.approx(expected, rel=1e-5 if precision == "float32" else 1e-2) and len(found) == config.steps
    one, other = (checkpoint.load_model(tmp_path / f"{run}").state_dict() for run in (True, False))
    assert one.keys() == other.keys()
    assert 4 <= counted.frame_count <= 8, "in training and in evaluation"
    resumed = replace(config, steps=6)
    train("pretrain", tiny_service, tmp_path / "True", model, resumed, resume=True)
    with pytest.raises(ValueError, match="compile"):
        train("pretrain", tiny_service, tmp_path / "True", model, replace(resumed, compile=False), resume=True)


@pytest.mark.slow
def test_what_inductor_makes_satisfies_the_error_rule() -> None:
    """States and gradients of a layer, against float64."""
    found: dict[str, list[Tensor]] = {}
    for kind in ("compiled", "float64", "float32"):
        model = small_model(layers=1, width=32).train()
        if kind == "float64":
            model.double()
        if kind == "compiled":
            compile_model(model)
        for name, value in step(model, [40, 3, 21], True).items():
            found.setdefault(name, []).append(value)
    for name, (ours, exact, theirs) in found.items():
        require_close(name, ours, exact, theirs)


def test_what_cannot_be_compiled_is_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, tiny_service: Dataset, tmp_path: Path
) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    message = r"^compile is true, expected false where torch.compile .* on cpu: .*c\+\+"
    # monkeypatch would delete the setting afterwards, and with it inductor's compiler in every later test.
    with config.patch({"cpp.cxx": (str(tmp_path / "c++"),)}), pytest.raises(ValueError, match=message):
        train("pretrain", tiny_service, tmp_path / "run", SMALL, PRETRAIN)
    assert read_metrics(tmp_path / "run") == []
