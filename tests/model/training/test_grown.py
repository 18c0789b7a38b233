"""The recipe that grows: larger logs get larger models, within the machine, and what is given wins."""

from __future__ import annotations

from itertools import pairwise

import pytest

from python_model.data.schema import Dataset
from python_model.training.grown import CORE_HOURS, LADDER, Size, core_hours, grown, machine_memory, table_bytes
from python_model.training.runs import settings_of

GB = 1 << 30
ML_100K, ML_1M = Size(100_000, 943, 1682), Size(1_000_209, 6040, 3706)


def test_a_small_log_gets_a_small_model_and_all_of_its_items() -> None:
    found = grown(ML_100K, memory=8 * GB)
    assert (found.model.layers, found.model.width, found.model.dropout) == (2, 64, 0.2)
    assert (found.train.window, found.train.negatives_in_batch, found.train.negatives_uniform) == (128, 0, 1682)
    assert found.reasons[0] == (
        "Recipe for 100,000 events of 943 users on 1,682 items: 2 layers of width 64, dropout 0.2, windows of 128 "
        "events, all 1,682 items as candidates"
    )
    assert "of one core (of 6 hours allowed)" in found.reasons[1]


def test_a_million_events_get_a_larger_one_within_the_budget() -> None:
    found = grown(ML_1M, memory=8 * GB)
    assert (found.model.layers, found.model.width, found.model.dropout, found.train.window) == (3, 128, 0.3, 256)
    assert found.train.negatives_uniform == 3706 and found.train.learning_rate < grown(ML_100K).train.learning_rate
    assert 1 < core_hours(found.model, found.train, ML_1M) < CORE_HOURS


def test_a_large_catalogue_is_sampled() -> None:
    found = grown(Size(200_000, 20_000, 50_000), memory=8 * GB)
    assert (found.train.negatives_in_batch, found.train.negatives_uniform) == (1024, 2048)
    assert "1,024 in-batch and 2,048 uniform negatives" in found.reasons[0] and not found.model.sparse
    assert grown(Size(200_000, 20_000, 100_000), memory=8 * GB).model.sparse


@pytest.mark.parametrize("on_cpu", [True, False])
def test_more_events_never_mean_a_smaller_model(on_cpu: bool) -> None:
    widths = []
    for events in (10, 10**3, 10**5, 10**6, 10**7, 10**8):
        found = grown(Size(events, max(1, events // 50), 5_000), on_cpu=on_cpu, memory=64 * GB)
        widths.append(found.model.width)
    assert all(few <= many for few, many in pairwise(widths[:5]))
    assert on_cpu or widths[-1] == LADDER[-1].width


def test_a_cpu_bounds_the_size_and_says_so() -> None:
    size = Size(40_000_000, 200_000, 30_000)
    bound, free = grown(size, memory=64 * GB), grown(size, on_cpu=False, memory=64 * GB)
    assert bound.model.width < free.model.width == 256
    assert "because 4 layers of width 256 would take too long" in bound.reasons[0]
    assert core_hours(bound.model, bound.train, size) <= CORE_HOURS
    assert len(free.reasons) == 1, "no budget of a core is spoken of where a GPU trains"


def test_the_memory_bounds_the_item_table() -> None:
    size = Size(1_000_000, 50_000, 50_000_000)
    found = grown(size, memory=16 * GB)
    assert table_bytes(found.model, size.items) <= 8 * GB
    assert found.model.item_width < found.model.width == 64
    assert "to fit the memory" in found.reasons[0] and "too much memory" in found.reasons[0]
    assert machine_memory() > GB // 4


def test_what_is_given_wins(tiny_service: Dataset) -> None:
    info = tiny_service.info
    found = settings_of("pretrain", tiny_service, {}, recipe="grown")
    assert found.train.negatives_uniform == info.items and found.train.steps == 200
    assert found.notes[0].startswith(f"Recipe for {info.events:,} events of {info.users} users on {info.items} items")
    given = {"dropout": 0.5, "layers": 1, "negatives_uniform": 7, "steps": 3}
    changed = settings_of("pretrain", tiny_service, given, recipe="grown")
    assert (changed.model.dropout, changed.model.layers) == (0.5, 1)
    assert (changed.train.negatives_uniform, changed.train.steps) == (7, 3)
    sized = settings_of("pretrain", tiny_service, {}, recipe="grown", size="3m")
    assert sized.model.width == 256 and not any("Recipe for" in note for note in sized.notes)


def test_the_synthetic_service_keeps_the_recipe_of_the_demo(tiny_service: Dataset) -> None:
    assert settings_of("pretrain", tiny_service, {}).train.steps == 420
    with pytest.raises(ValueError, match="recipe: expected one of default, grown, demo, ml-100k, kuairand-pure"):
        settings_of("pretrain", tiny_service, {}, recipe="big")
