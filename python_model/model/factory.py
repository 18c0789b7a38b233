"""Makes the model that `ModelConfig.model` names."""

from __future__ import annotations

from torch import Tensor

from python_model.config import FeatureSpec, ModelConfig
from python_model.data.schema import Dataset
from python_model.model.argus import Argus, item_columns_of
from python_model.model.base import Recommender
from python_model.model.sequential import SequenceModel
from python_model.training.row_sharding import RowSharding


def make_model(config: ModelConfig, features: FeatureSpec, item_columns: Tensor) -> Recommender:
    """A new model of the kind that `config.model` names."""
    kind = Argus if config.model == "argus" else SequenceModel
    return kind(config, features, item_columns)


def model_for_dataset(config: ModelConfig, dataset: Dataset, sharding: RowSharding | None = None) -> Recommender:
    """A new model for the catalogue and the features of a prepared data set.

    sharding: on several ranks, which tables of ARGUS are sharded; each rank has a copy of a baseline's tables.
    """
    if config.model == "argus":
        return Argus.for_dataset(config, dataset, sharding)
    return make_model(config, FeatureSpec.of(dataset.info), item_columns_of(config, dataset))
