"""`argus plan`: its figures against the model, against what autograd keeps, and the document that quotes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from python_model.cli import app
from python_model.config import PRESETS, ModelConfig
from python_model.model.layers import Block, Layout
from python_model.training.memory_plan import SAVED, SIZES, Parameters, Setting, communication, memory
from tests.conftest import REPOSITORY
from tests.model.conftest import encoder_parameters


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_document_quotes_what_the_command_prints() -> None:
    lines = (REPOSITORY / "docs" / "scale.md").read_text().splitlines()
    quoted = [line for line in lines if line.startswith(tuple(f"| {size} |" for size in SIZES))]
    known = {line for ranks in ("8", "64") for line in printed("--ranks", ranks).splitlines()}
    assert len(quoted) == 3 * len(SIZES), "memory on 8 and on 64 ranks, and what is sent on 8"
    assert not set(quoted) - known, "docs/scale.md: argus plan gives other figures now"


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_those_of_the_model(size: str) -> None:
    numbers = Parameters.of(PRESETS[size])
    assert numbers.blocks == encoder_parameters(PRESETS[size])
    assert numbers.block * PRESETS[size].layers == numbers.blocks
    assert 0 < numbers.copied < 20_000 and 0 < numbers.rest < numbers.blocks


def test_a_block_keeps_what_the_plan_says() -> None:
    """The numbers that autograd keeps of a block, weights and biases left out, in units of events × width."""
    config = ModelConfig(layers=1, width=64, heads=1)
    block, events = Block(config), 512
    weights = {parameter.data_ptr() for parameter in block.parameters()}
    kept: dict[int, int] = {}

    def note(saved: torch.Tensor) -> torch.Tensor:
        if saved.data_ptr() not in weights and saved.is_floating_point():
            storage = saved.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes() // saved.element_size()
        return saved

    x = torch.randn(events, config.width, requires_grad=True)
    layout = Layout(torch.tensor([0, events], dtype=torch.int32), torch.arange(events), events)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        block(x, layout, torch.zeros(1, 8), torch.zeros(1, 8))
    assert sum(kept.values()) / (events * config.width) == pytest.approx(SAVED, rel=0.05)


def test_what_is_cut_falls_with_the_ranks_and_what_is_copied_does_not() -> None:
    one, eight = (memory(Setting("126m", 10**8, ranks)) for ranks in (1, 8))
    for name, value in one.items():
        cut = name in ("dense", "table", "adagrad")
        assert eight[name] == pytest.approx(value / 8 if cut else value)
    alone = communication(Setting("126m", 10**8, 1))
    assert set(alone.values()) == {0.0}
    once, twice = (communication(Setting("3m", 10**6, 4, batches=batches)) for batches in (1, 2))
    for name in ("weights", "table rows", "batch items"):
        assert twice[name] == 2 * once[name]
    assert twice["gradients"] == once["gradients"]


def test_refusals(tmp_path: Path) -> None:
    for arguments, message in (
        (["--size", "7b"], "size is '7b', expected one of"),
        (["--rows", "1.5"], "--rows 1.5: expected a whole number"),
        (["--rows", "0"], "--rows 0.0: expected a whole number from 1 to 1e15"),
    ):
        result = CliRunner().invoke(app, ["plan", *arguments])
        assert result.exit_code == 2 and message in result.stderr
