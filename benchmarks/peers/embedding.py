"""`embedding_dense`, `embedding_sparse`: torch's embedding, concatenation and linear, compiled.

torch.compile does not trace row-sparse gradients: with them the lookups stay eager and only the rest is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.cases import Case
from benchmarks.peers.base import Peer, no_missing_ids


def _why_not(sparse: bool) -> Callable[[Case], str | None]:
    def why_not(case: Case) -> str | None:
        if bool(case.arguments.get("sparse")) != sparse:
            return f"the case has {'dense' if sparse else 'row-sparse'} gradients"
        return no_missing_ids(case)

    return why_not


def _look_up(ids: Tensor, tables: list[Tensor], columns: list[int], sparse: bool) -> list[Tensor]:
    return [F.embedding(ids[k], tables[column], sparse=sparse) for k, column in enumerate(columns)]


def _project(rows: list[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(torch.cat(rows, 1), weight.T, bias)


def _build_dense(case: Case) -> Callable[[], Any]:
    given = case.arguments

    def embed(ids: Tensor, tables: list[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
        return _project(_look_up(ids, tables, given["columns"], False), weight, bias)

    compiled = torch.compile(embed, dynamic=False)
    return lambda: compiled(given["ids"], given["tables"], given["weight"], given["bias"])


def _build_sparse(case: Case) -> Callable[[], Any]:
    given = case.arguments
    project = torch.compile(_project, dynamic=False)

    def embed() -> Tensor:
        rows = _look_up(given["ids"], given["tables"], given["columns"], True)
        projected: Tensor = project(rows, given["weight"], given["bias"])
        return projected

    return embed


DENSE = Peer("embedding_dense", ("triple_embedding",), _build_dense, _why_not(False), compiles=True)
SPARSE = Peer("embedding_sparse", ("triple_embedding",), _build_sparse, _why_not(True), compiles=True)
