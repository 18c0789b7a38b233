"""`compile`: torch.compile of the `eager` call, graph breaks allowed.

Definitions that loop over users in Python are left out: every tile or user becomes a separate graph, recompiled for
every length, which takes minutes and measures the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from argus_kernels import OPS
from benchmarks.harness.cases import Case
from benchmarks.peers import eager
from benchmarks.peers.base import Peer

LOOPS_OVER_USERS = ("causal_attention", "hstu_attention", "decode_attention", "pairwise_loss")


def why_not(case: Case) -> str | None:
    """Loops over users in Python."""
    if case.op.name in LOOPS_OVER_USERS:
        return "the definition loops over users in Python, one graph for each length"
    return None


def build(case: Case) -> Callable[[], Any]:
    """The compiled call; compilation happens at its first run, which is not timed."""
    return torch.compile(eager.build(case), dynamic=False)


PEER = Peer("compile", tuple(op.name for op in OPS), build, why_not, compiles=True)
