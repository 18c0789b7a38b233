"""`argus plan`: its figures against the model, against what autograd keeps, and the document that quotes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from python_model.cli import app
from python_model.config import PRESETS, ModelConfig
from python_model.data.synthetic import generate, preset
from python_model.model.layers import Block, Layout
from python_model.training import work_plan
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


def test_work_of_ranks_follows_the_lengths() -> None:
    lengths = work_plan.lengths_of("lognormal")
    assert lengths.mean() == pytest.approx(700, rel=0.03) and (lengths > 4096).mean() == pytest.approx(0.019, abs=0.003)
    found = work_plan.work(lengths[:4000], Setting("tiny", 10**6, 4, batch_events=8192), window=4096)
    assert found["by count"] > found["by events"] > found["by cost"] and found["by cost"] < 1.03
    even = work_plan.work(np.full(200, 64), Setting("tiny", 10**6, 2, batch_events=640), window=64)
    assert even == {"windows": 10.0, "by count": 1.0, "by events": 1.0, "by cost": 1.0}
    with pytest.raises(ValueError, match="the histories fill 2 batches of 640 events, expected at least 8"):
        work_plan.work(np.full(20, 64), Setting("tiny", 10**6, 8, batch_events=640), window=64)


def test_the_share_that_stochastic_length_leaves() -> None:
    setting = Setting("tiny", 10**6, 1, batch_events=8192)
    left = work_plan.shortened(np.full(100, 1024), setting, 1024, 1.0)
    # Windows are cut in two at random, so that most have more than 32 events and become 32.
    assert left["length"] == 32 and left["replaced"] > 0.9 and left["arithmetic"] < left["events"] < 0.15
    nothing = work_plan.shortened(np.full(100, 1024), setting, 1024, 2.0)
    assert (nothing["replaced"], nothing["events"], nothing["arithmetic"]) == (0.0, 1.0, 1.0)


def test_windows_are_no_longer_than_what_a_size_reads() -> None:
    """Training refuses longer ones: hstu-dlrm-v4 reads 4,086 events, 775 of which α = 1.6 leaves."""
    lengths = np.full(400, 8192)
    settings = [Setting(size, 10**6, 16, batch_events=8192) for size in ("hstu-dlrm-v4", "3m")]
    text = work_plan.tables(lengths, settings, 8192)
    assert "| hstu-dlrm-v4 | 1.6 | 775 |" in text and "| 3m | 1.6 | 1,351 |" in text


def test_the_document_quotes_the_balance_of_sixteen_ranks() -> None:
    found = work_plan.work(work_plan.lengths_of("lognormal"), Setting("126m", 10**7, 16), window=8192)
    names = ("by count", "by events", "by cost")
    row = f"| 16 | {' | '.join(f'{found[name]:.3f}' for name in names)} |"
    assert row in (REPOSITORY / "docs" / "scale.md").read_text()


def test_the_command_takes_a_data_set(tmp_path: Path) -> None:
    generate(
        tmp_path / "data", preset("demo", users=60, events_per_user=40.0, days=20, clusters=4, artists=4, tracks=4)
    )
    size = ["--size", "tiny", "--rows", "1e6", "--batch-events", "64", "--window", "32"]
    text = printed(*size, "--lengths", str(tmp_path / "data"))
    assert "| tiny | 16 |" in text and "| tiny | 1.6 | 16 |" in text


def test_refusals(tmp_path: Path) -> None:
    for arguments, message in (
        (["--lengths", "lognormal", "--batch-events", "4096"], "--window is 8192, expected at most --batch-events"),
        (["--lengths", str(tmp_path / "none")], "none"),
        (["--size", "7b"], "size is '7b', expected one of"),
        (["--rows", "1.5"], "--rows 1.5: expected a whole number"),
        (["--rows", "0"], "--rows 0.0: expected a whole number from 1 to 1e15"),
    ):
        result = CliRunner().invoke(app, ["plan", *arguments])
        assert result.exit_code == 2 and message in result.stderr
