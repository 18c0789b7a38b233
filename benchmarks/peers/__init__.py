"""The peers, one small file each: the implementations that people use today instead of these ops."""

from __future__ import annotations

from benchmarks.peers import (
    cce,
    compile,
    eager,
    embedding,
    fbgemm,
    flash_attn,
    flex,
    liger,
    linear_cross_entropy,
    sdpa,
    sparse_adagrad,
    varlen,
)
from benchmarks.peers.base import Peer

PEERS: tuple[Peer, ...] = (
    eager.PEER,
    compile.PEER,
    embedding.DENSE,
    embedding.SPARSE,
    fbgemm.PEER,
    sparse_adagrad.PEER,
    sdpa.PADDED,
    sdpa.PER_USER,
    sdpa.CUDNN,
    varlen.PEER,
    flex.PEER,
    flash_attn.PEER,
    linear_cross_entropy.PEER,
    liger.PEER,
    cce.PEER,
)


def peers_of(op: str) -> list[Peer]:
    """The peers of an op."""
    return [peer for peer in PEERS if op in peer.ops]


__all__ = ["PEERS", "Peer", "peers_of"]
