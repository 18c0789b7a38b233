"""`fbgemm`: FBGEMM's table-batched embedding (one id per bag, so no pooling) and a linear layer.

Its backward pass applies an optimiser instead of returning gradients: plain SGD with learning rate 0 as a peer of
triple_embedding, row-wise Adagrad in `python -m benchmarks table-step`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.cases import Case
from benchmarks.peers.base import Peer, first_reason, no_missing_ids, not_installed

_MODULE = "fbgemm_gpu.split_table_batched_embeddings_ops_training"


def why_not(case: Case) -> str | None:
    """The reason: not installed, an unsupported table dtype, or ids that it would read outside its tables."""
    return first_reason(
        "the CPU form has no bfloat16 tables" if case.device == "cpu" and case.dtype == torch.bfloat16 else None,
        not_installed(_MODULE, "fbgemm-gpu" if case.device == "cuda" else "fbgemm-gpu-cpu"),
        no_missing_ids(case),
    )


class Lookup:
    """The lookup of all columns in one call, then the projection; `settings` choose the optimiser."""

    def __init__(self, case: Case, **settings: Any) -> None:
        self._given = case.arguments
        self.tables = _tables(case, settings)
        self._ids = self._given["ids"].flatten()
        self._offsets = torch.arange(self._ids.shape[0] + 1, dtype=torch.int64, device=self._ids.device)

    def __call__(self) -> Tensor:
        """The projected rows [T, D]."""
        return F.linear(self.tables(self._ids, self._offsets), self._given["weight"].T, self._given["bias"])

    def leaves(self) -> list[Tensor]:
        """Its own tables: without them autograd would skip its backward pass."""
        return [parameter for parameter in self.tables.parameters() if parameter.requires_grad and parameter.numel()]


def rowwise_adagrad() -> dict[str, Any]:
    """The settings of a lookup whose backward pass is row-wise Adagrad, as `RowwiseAdagrad` computes it."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType

    return {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.01, "eps": 1e-8}


def _tables(case: Case, settings: dict[str, Any]) -> Any:
    import fbgemm_gpu.split_table_batched_embeddings_ops_training as training
    from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode

    given = case.arguments
    on_gpu = case.device == "cuda"
    location = EmbeddingLocation.DEVICE if on_gpu else EmbeddingLocation.HOST
    compute = training.ComputeDevice.CUDA if on_gpu else training.ComputeDevice.CPU
    precision = {torch.float32: SparseType.FP32, torch.float16: SparseType.FP16, torch.bfloat16: SparseType.BF16}
    tables = training.SplitTableBatchedEmbeddingBagsCodegen(
        [(table.shape[0], table.shape[1], location, compute) for table in given["tables"]],
        feature_table_map=list(given["columns"]),
        pooling_mode=PoolingMode.SUM,
        **(settings or {"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": 0.0}),
        weights_precision=precision[case.dtype],
        output_dtype=precision[case.dtype],
        device=torch.device(case.device),
    )
    for own, table in zip(tables.split_embedding_weights(), given["tables"], strict=True):
        own.data.copy_(table.detach())
    return tables


PEER = Peer("fbgemm", ("triple_embedding",), Lookup, why_not, own_leaves=lambda call: call.leaves())
