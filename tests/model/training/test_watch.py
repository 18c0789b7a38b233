"""What a run's validations say: the best, when to stop, and warnings in words."""

from __future__ import annotations

import json

import pytest

from python_model.config import TrainConfig
from python_model.training.watch import NO_BETTER, Validation, Watch


def values(watch: Watch, *found: float | None, name: str = "next_item_ne") -> list[tuple[bool, list[str]]]:
    return [
        watch.take(Validation(10 * number, {} if value is None else {name: value}, {}))
        for number, value in enumerate(found)
    ]


def test_the_best_and_how_long_ago_it_was() -> None:
    watch = Watch.of(TrainConfig())
    taken = values(watch, 1.2, 0.9, 0.8, 0.81, None, 0.8, 0.79)
    assert [best for best, _ in taken] == [True, True, True, False, False, True, True]
    assert (watch.best, watch.best_step, watch.since) == (0.79, 60, 0)
    assert not any(notes for _, notes in taken)


def test_higher_is_better_where_it_is() -> None:
    assert Watch.of(TrainConfig(stage="finetune")).metric == "pair_loss"
    watch = Watch.of(TrainConfig(stage="finetune", best_metric="pairwise_accuracy"))
    taken = values(watch, 0.5, 0.6, 0.55, name="pairwise_accuracy")
    assert [best for best, _ in taken] == [True, True, False] and watch.best == 0.6
    assert Watch.of(TrainConfig(best_metric="ndcg@10")).metric == "ndcg@10"


def test_of_values_within_noise_the_latest_is_kept() -> None:
    """A slow drift is measured from the best value, not from the one kept."""
    watch = Watch.of(TrainConfig())
    taken = values(watch, 0.9, 0.9005, 0.9008, 0.9011, 0.9005)
    assert [best for best, _ in taken] == [True, True, True, False, True]
    assert (watch.best, watch.best_step, watch.kept, watch.since) == (0.9, 40, 0.9005, 4)


def test_patience_counts_validations_in_a_row() -> None:
    watch = Watch.of(TrainConfig())
    values(watch, 0.9, 0.91, 0.92)
    assert watch.stops(2) and watch.stops(1) and not watch.stops(3) and not watch.stops(0)


def test_overfitting_is_said_once_in_words() -> None:
    notes = [text for _, texts in values(Watch.of(TrainConfig()), 0.9, 0.95, 0.96, 0.97) for text in texts]
    assert len(notes) == 1
    assert notes[0].startswith("Validation has turned: next-item NE 0.9600 at step 20, 0.9000 at step 0: since then")
    assert not any(texts for _, texts in values(Watch.of(TrainConfig()), 0.9, 0.9001, 0.9002, 0.9003))


def test_an_entropy_that_passes_one_is_said() -> None:
    notes = [text for _, texts in values(Watch.of(TrainConfig()), 1.3, 0.99, 1.01, 1.02) for text in texts]
    assert notes[0] == f"{NO_BETTER}: next-item NE 1.0100 at step 20" and "turned" in notes[1] and len(notes) == 2


@pytest.mark.parametrize(("best", "said"), [(0.98, False), (0.995, True), (1.2, True)])
def test_a_run_that_found_nothing_says_so(best: float, said: bool) -> None:
    watch = Watch.of(TrainConfig())
    values(watch, best)
    lines = watch.verdict(10, 10, 5)
    assert lines[0] == f"Best checkpoint: step 0, validation next-item NE {best:.4f}"
    assert [line.startswith("Nothing was found: the model predicts the next item no better") for line in lines[1:]] == [
        True
    ] * said
    assert Watch().verdict(10, 10, 5) == []


def test_its_state_survives_json() -> None:
    watch = Watch.of(TrainConfig())
    values(watch, 0.9, 0.95)
    assert Watch.from_state(json.loads(json.dumps(watch.state()))) == watch
    for wrong in ({**watch.state(), "since": -1}, {**watch.state(), "metric": "loss"}, {**watch.state(), "best": "x"}):
        with pytest.raises(ValueError, match="expected"):
            Watch.from_state(wrong)
