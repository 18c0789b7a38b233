"""`sparse_adagrad`: torch.optim.Adagrad on a row-sparse gradient.

Its state is one number per element instead of one per row, so its result differs; it is the optimiser that torch users
have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness.cases import Case
from benchmarks.peers.base import Peer, no_missing_ids


def build(case: Case) -> Callable[[], Any]:
    """One step of the optimiser on the gradient as autograd returns it: rows in the order of the events."""
    given = case.arguments
    table = given["table"].detach().clone().requires_grad_()
    optimiser = torch.optim.Adagrad([table], lr=given["lr"], eps=given["eps"])

    def step() -> None:
        values = given["row_gradients"].to(table.dtype)
        table.grad = torch.sparse_coo_tensor(given["rows"][None], values, table.shape, check_invariants=False)
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            optimiser.step()

    return step


PEER = Peer(
    "sparse_adagrad",
    ("rowwise_adagrad_",),
    build,
    no_missing_ids,
    same_result=False,
)
