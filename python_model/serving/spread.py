"""Batch scoring on the workers of an engine: each part of the input is scored and written by one of them.

A worker makes its scorer once, from a recipe, and writes parts like this process: under a hidden name, flushed and
renamed. So a job may be stopped at any time and continued by either engine with the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from python_model.data.engines import LOCAL, Engine
from python_model.data.schema import load_dataset
from python_model.serving.bundle import Export
from python_model.serving.joint import JointScorer
from python_model.serving.rows import Part
from python_model.serving.score import Workers, score_part
from python_model.serving.scorers import ExportScorer, HistoryScorer, RowScorer
from python_model.serving.states import StateFiles
from python_model.training import checkpoint


@dataclass(frozen=True)
class Recipe:
    """How a scorer is made: from an export, or from a run with the data set behind it.

    states: folder of the states that a run's scorer reads (see `prepare_states`); None before there are any. joint: the
    rows of a request are scored together (`python_model.serving.joint`).
    """

    source: Path
    data: Path | None = None
    score: str | None = None
    lag: int | None = None
    window: int | None = None
    vectors: bool = False
    device: str = "cpu"
    states: Path | None = None
    joint: bool = False

    def make(self) -> RowScorer:
        """The scorer; ValueError or DataError where it cannot be made."""
        if self.data is None:
            return ExportScorer(Export.open(self.source), vectors=self.vectors)
        return self.make_from_history(self.data)

    def make_from_history(self, data: Path) -> RowScorer:
        """The scorer of a run over the histories of a data set."""
        source = checkpoint.chosen(self.source)
        model, dataset = checkpoint.load_model(source, self.device), load_dataset(data)
        window = self.window or checkpoint.read_description(source).train_config.window
        if self.joint:
            return JointScorer(model, dataset, score=self.score, lag=self.lag, window=window)
        states = None if self.states is None else StateFiles(self.states)
        return HistoryScorer(
            model, dataset, states, score=self.score, lag=self.lag, window=window, vectors=self.vectors
        )


@lru_cache(maxsize=1)
def scorer_of(recipe: Recipe) -> RowScorer:
    """The scorer of a recipe, kept between the parts that one worker scores."""
    return recipe.make()


def workers(engine: Engine, recipe: Recipe) -> Workers | None:
    """The function that scores parts on an engine, for `score_parquet`; None for this process."""
    return None if engine is LOCAL else partial(engine.map, partial(_score, recipe))


def _score(recipe: Recipe, task: tuple[Part, Path]) -> None:
    part, file = task
    if not file.is_file():  # Ray runs a task again where a worker was lost
        score_part(scorer_of(recipe), part, file)
