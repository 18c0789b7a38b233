"""What training on a history of n events costs, in FLOP: the estimate behind balanced batches and `argus plan`."""

from __future__ import annotations

from python_model.config import ModelConfig, TrainConfig
from python_model.data.balance import HistoryCost
from python_model.model.base import Recommender


def history_cost(config: ModelConfig, blocks: int, rest: int, candidates: int, *, recomputed: bool) -> HistoryCost:
    """The cost for a model of these shapes.

    blocks, rest: parameters of the encoder's blocks, and of all that is dense beside them. candidates: negatives that
    each event is compared with. recomputed: whether blocks are computed again in the backward pass.
    """
    tokens = 3 if config.form == "full" else 1
    vector_width = config.vector_width if config.model == "argus" else config.width
    forward = 2 * tokens * blocks
    heads = 6 * (rest + candidates * vector_width)
    # Half of the n² pairs are visible. Forward: two products of 2 · width FLOP a pair; backward: five.
    attention = config.layers * config.width * tokens**2
    return HistoryCost(
        linear=(4 if recomputed else 3) * forward + heads, quadratic=(9 if recomputed else 7) * attention
    )


def cost_of_training(model: Recommender, config: TrainConfig) -> HistoryCost:
    """The cost for a model under these settings; before its parameters are cut over ranks."""
    tables = {id(one) for one in model.tables.parameters()}
    dense = sum(one.numel() for one in model.parameters() if id(one) not in tables)
    blocks = sum(one.numel() for one in model.encoder.blocks.parameters())
    in_batch = min(config.negatives_in_batch, config.batch_events * (config.batches_per_step or 1))
    candidates = in_batch + min(config.negatives_uniform, model.features.items)
    if config.stage == "finetune" and config.pretrain_weight == 0:
        candidates = 0
    # Whether blocks are computed again may change when a run is resumed, and the batches must not.
    return history_cost(model.config, blocks, dense - blocks, candidates, recomputed=False)
