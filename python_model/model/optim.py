"""Optimisers of a training run: AdamW for dense parameters, row-wise Adagrad for row-sparse embedding tables.

Also the learning-rate schedule, gradient clipping that supports row-sparse gradients, and the optimisers' state as
flat named tensors for checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from argus_kernels.optim import RowwiseAdagrad
from python_model.config import TrainConfig
from python_model.model.base import Recommender
from python_model.training import process_group


@dataclass(frozen=True)
class Leaf:
    """What an optimiser updates: a parameter, or this rank's part of one.

    rows: first and last (exclusive) row of the part and the rows of the whole; None for a whole parameter.
    """

    value: Tensor
    rows: tuple[int, int, int] | None = None


class Optimisers:
    """The optimisers of a model, stepped together under one schedule; leaves: what they update, by name."""

    def __init__(self, model: Recommender, config: TrainConfig, leaves: Mapping[str, Leaf] | None = None) -> None:
        self.config = config
        given = leaves or {name: Leaf(parameter) for name, parameter in model.named_parameters()}
        self.leaves = given
        self.names: dict[Tensor, str] = {leaf.value: name for name, leaf in given.items()}
        self._parts = [leaf.value for leaf in given.values() if leaf.rows is not None]
        tables = [leaf.value for name, leaf in given.items() if name.startswith("tables.")]
        held = set(tables)
        dense = [parameter for parameter in self.names if parameter not in held]
        groups = [
            {"params": [p for p in dense if p.dim() == 2], "weight_decay": config.weight_decay},
            {"params": [p for p in dense if p.dim() != 2], "weight_decay": 0.0},
        ]
        if not model.config.sparse:
            groups.append({"params": tables, "lr": config.table_learning_rate, "weight_decay": 0.0})
        # On a CPU torch's choice is a dozen passes over every parameter; on a GPU it updates them together.
        fused = True if model.device.type == "cpu" else None
        self.all: list[Optimizer] = [AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=fused)]
        if model.config.sparse:
            self.all.append(RowwiseAdagrad(tables, lr=config.table_learning_rate))
        self._rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in self.all]

    def step(self, step: int) -> tuple[float, Tensor]:
        """One update at step (0-based): clip, then update; returns (rate factor, gradient norm before it)."""
        norm = self.clip()
        return self.update(step), norm

    def clip(self) -> Tensor:
        """Clip the gradients; returns their norm before it."""
        return clip_gradients(self.names, self.config.clip, self._parts)

    def update(self, step: int) -> float:
        """Set the rates of step (0-based) and change parameters and states; returns the rate factor."""
        factor = rate_factor(step, self.config)
        for optimiser, rates in zip(self.all, self._rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimiser.step()
        return factor

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimiser in self.all:
            optimiser.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Every state tensor as `<parameter>::<state>`."""
        return {
            f"{self.names[parameter]}::{key}": value
            for optimiser in self.all
            for parameter, state in optimiser.state.items()
            for key, value in state.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the result of `state`."""
        by_name = {name: parameter for parameter, name in self.names.items()}
        owner = {
            parameter: optimiser
            for optimiser in self.all
            for group in optimiser.param_groups
            for parameter in group["params"]
        }
        for name, value in tensors.items():
            parameter = by_name[name.rsplit("::", 1)[0]]
            # AdamW keeps its step counters on the CPU; all other states are on the device of their parameter.
            value = value if value.dim() == 0 else value.to(parameter.device)
            owner[parameter].state[parameter][name.rsplit("::", 1)[1]] = value.clone()


def rate_factor(step: int, config: TrainConfig) -> float:
    """Factor on the learning rate at a 0-based step: linear warm-up to 1, then a cosine down to final_fraction."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.final_fraction + (1 - config.final_fraction) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def clip_gradients(parameters: Iterable[Tensor], most: float, parts: Sequence[Tensor] = ()) -> Tensor:
    """Scales all gradients so that their joint norm is at most `most`; returns the norm before. No host sync.

    parts: the parameters that are sharded, with their other parts on other ranks; a collective call where there are
    any.
    """
    divided = set(parts)
    norms: dict[bool, list[Tensor]] = {False: [], True: []}
    values = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
        values.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
        norms[parameter in divided].append(values[-1].float().norm())
    if parts and process_group.size() > 1:
        squares = torch.stack([*norms[True], torch.zeros((), device=parts[0].device)]).square().sum()
        norms[False].append(process_group.sum_over_ranks(squares).sqrt())
    if not norms[False]:
        return torch.zeros(())
    norm = torch.stack(norms[False]).norm()
    scale = (most / (norm + 1e-12)).clamp(max=1.0)
    for value in values:
        value.mul_(scale.to(value.dtype))
    return norm
