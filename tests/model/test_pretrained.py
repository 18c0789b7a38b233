"""A model as a module: its forward under DDP and torch.compile, and as a directory that is handed on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from python_model.config import FORMS
from python_model.io.errors import DataError
from python_model.model.argus import Argus
from python_model.model.pretrained import from_pretrained, save_pretrained
from tests.model.conftest import random_batch, small_model


@pytest.mark.parametrize("form", FORMS)
def test_forward_gives_what_the_parts_give(form: str) -> None:
    model, batch = small_model(form), random_batch([4, 3])
    found = model(batch, torch.arange(5))
    assert torch.equal(found.queries, model.next_item_queries(batch))
    assert torch.equal(found.feedback_logits, model.feedback_logits(batch))
    assert torch.equal(found.item_vectors, model.item_vectors(torch.arange(5)))
    assert torch.equal(model(batch).item_vectors, model.item_vectors(batch.items))


def test_forward_under_distributed_data_parallel(tmp_path: Path) -> None:
    model, batch = small_model(), random_batch([4, 3])
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        found = wrapped(batch)
        (found.queries.sum() + found.item_vectors.sum() + found.feedback_logits.sum()).backward()
    finally:
        dist.destroy_process_group()
    assert torch.equal(found.queries, model.next_item_queries(batch))
    assert model.tables["item"].grad is not None


@pytest.mark.slow
def test_forward_under_compile() -> None:
    model, batch = small_model(), random_batch([4, 3])
    expected = model(batch)
    found = torch.compile(model, backend="aot_eager")(batch)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("form", FORMS)
def test_a_saved_model_comes_back(form: str, tmp_path: Path) -> None:
    model, batch = small_model(form), random_batch([4, 3])
    model.stage = "pretrain"
    out = save_pretrained(model, tmp_path / "model")
    loaded = from_pretrained(out)
    assert isinstance(loaded, Argus) and loaded.stage == "pretrain" and not loaded.training
    for one, other in zip(loaded(batch), model(batch), strict=True):
        assert torch.equal(one, other)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "checksums.json", "config.json", "model.safetensors"
    ]  # fmt: skip
    assert "# argus: 40 items" in (out / "README.md").read_text()
    with pytest.raises(FileExistsError):
        save_pretrained(model, out)
    save_pretrained(model, out, overwrite=True)


def test_a_damaged_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not found: expected a directory of save_pretrained"):
        from_pretrained(tmp_path)
    out = save_pretrained(small_model(), tmp_path / "model")
    weights = out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"model\.safetensors"):
        from_pretrained(out)
    described = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**described, "stage": "best"}))
    with pytest.raises(DataError, match=r"config\.json"):
        from_pretrained(out)
