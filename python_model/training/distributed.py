"""Training of one model on several ranks; python_model/train.py has the only training loop.

There are three kinds of parameters, by size and access:

    dense        the encoder's blocks, the heads and the projections: FSDP2 (`fully_shard`), a unit a block and one for
                 the rest. Each rank holds a part of every weight, float32, and the optimiser's state of that part; a
                 block's weights are gathered while it computes, in bfloat16 where the run computes in it, and its
                 gradients are summed in float32 to where the parts lie.
    large tables row-sharded (`python_model.training.row_sharding`): only the rows of a batch travel.
    small        tables of few rows and single numbers: a copy on each rank, gradients summed. Cutting them would cost
                 a message of its own for a few kilobytes.

Losses are divided by the counts of the whole step (`losses.StepShare`), so gradients are summed and not averaged. N
ranks compute the same step as one rank that takes the same batches in sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from python_model.config import TrainConfig
from python_model.model.losses import Objective
from python_model.model.optim import Leaf
from python_model.training import process_group
from python_model.training.checkpoint.directory import MODEL, TRAINER
from python_model.training.checkpoint.sharded import part_of_rows
from python_model.training.row_sharding import RowExchange, row_sharding, span


class DistributedModel:
    """A model whose parameters lie over the ranks, ready to compute losses and gradients.

    Made after the weights are loaded and on their device. `leaves`: what the optimisers update, by the names that the
    model has for its parameters.
    """

    def __init__(self, objective: Objective, config: TrainConfig) -> None:
        model, device = objective.model, objective.model.device
        self.objective = objective
        self.mesh = init_device_mesh(device.type, (process_group.size(),), mesh_dim_names=("ranks",))
        self._copied = {name: p for name, p in model.named_parameters() if _is_copied(name, p, model.tables.spans)}
        cut = {f"tables.weights.{name}": model.tables.weights[name] for name in model.tables.spans}
        sharding = row_sharding(config)
        assert sharding is not None
        # A separate group: row exchanges and FSDP's collectives interleave in no fixed common order.
        model.exchange = RowExchange(sharding, dist.new_group(), sparse=model.config.sparse)
        self._root = _shard(objective, self.mesh, config.precision, {*self._copied.values(), *cut.values()})
        self._dense = {name: p for name, p in model.named_parameters() if name not in self._copied and name not in cut}
        self.leaves: dict[str, Leaf] = {name: Leaf(p) for name, p in self._copied.items()}
        for name, parameter in cut.items():
            table = name.removeprefix("tables.weights.")
            self.leaves[name] = Leaf(parameter, (*model.tables.spans[table], model.tables.rows[table]))
        for name, parameter in self._dense.items():
            rows = parameter.shape[0]
            local = _local(parameter.detach()).requires_grad_()
            self.leaves[name] = Leaf(local, (*span(process_group.rank(), process_group.size(), rows), rows))

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Gradients of a batch of the step; with the last one they are summed over the ranks and lie in `leaves`."""
        self._root.set_requires_gradient_sync(last)
        loss.backward()
        if last:
            for name, parameter in self._dense.items():
                leaf = self.leaves[name].value
                leaf.grad = None if parameter.grad is None else _local(parameter.grad)
                parameter.grad = None
            _sum_gradients(self._copied)

    def evaluating(self, work: Callable[[], Any]) -> Any:
        """Runs `work`, which computes with the model, without gradients; a collective call."""
        try:
            return self.objective(work=work)
        finally:
            # FSDP2 leaves the root gathered for a backward pass, which does not follow: the next step would read it.
            self._root.reshard()

    def as_global(self, name: str, value: Tensor) -> Tensor:
        """A tensor that lies beside a leaf (its weights, its optimiser's state) as the part of a whole that it is.

        A DTensor, Shard(0), where the leaf is a part and the tensor has rows; other tensors as they are.
        """
        rows = self.leaves[name].rows if name in self.leaves else None
        if rows is None or value.dim() == 0:
            return value
        return part_of_rows(value.detach(), rows[2], self.mesh)

    def stored(self, trainer: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights and what a trainer keeps beside them, as `checkpoint.sharded.read` finds them."""
        weights = self.objective.model.state_dict() | {name: leaf.value for name, leaf in self.leaves.items()}
        out = {f"{MODEL}/{name}": self.as_global(name, value) for name, value in weights.items()}
        return out | {
            f"{TRAINER}/{name}": self.as_global(name.rsplit("::", 1)[0], value) for name, value in trainer.items()
        }


def _is_copied(name: str, parameter: Tensor, spans: Mapping[str, tuple[int, int]]) -> bool:
    table = name.removeprefix("tables.weights.")
    return parameter.dim() == 0 or (table != name and table not in spans)


def _shard(objective: Objective, mesh: DeviceMesh, precision: str, ignored: set[nn.Parameter]) -> FSDPModule:
    """Wraps the blocks, the heads and the rest; returns what holds them all."""
    low = torch.bfloat16 if precision == "bfloat16" else None
    # FSDP does not cast inputs: casting would round the tensors that autocast keeps in float32.
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in objective.model.encoder.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # The rest is gathered in float32, and autocast rounds the operands of products. It is one unit: FSDP2 expects every
    # unit of an accumulating step to have run, so a head that a stage does not use cannot be a unit of its own.
    root = fully_shard(objective, mesh=mesh, ignored_params=ignored)
    for unit in objective.modules():
        # Summed, not averaged: the losses are divided by the counts of all ranks already.
        if isinstance(unit, FSDPModule):
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
    return root


def _sum_gradients(parameters: Mapping[str, Tensor]) -> None:
    """One all_reduce for the gradients of all copied parameters; a parameter without gradient has none on any rank."""
    for parameter in parameters.values():
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    if not gradients:
        return
    flat = process_group.sum_over_ranks(torch.cat([gradient.float().flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _local(value: Tensor) -> Tensor:
    assert isinstance(value, DTensor)
    return value.to_local()
