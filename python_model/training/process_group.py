"""The processes that train together: the rank of this one, and the few collective operations of a step.

A process alone, or one without torch.distributed, is rank 0 of 1 and communicates nothing.
`python_model.training.distributed` builds on this; here stands only what losses, negatives and the training loop call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


def size() -> int:
    """Processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, 0 for the first or only one."""
    return dist.get_rank() if size() > 1 else 0


def launched() -> int:
    """Processes that torchrun has started for this run; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process speaks for all: rank 0 under torchrun, or a process alone."""
    return os.environ.get("RANK", "0") == "0" if launched() > 1 else True


def restarted() -> bool:
    """Whether torchrun's elastic agent has started these processes anew after a failure."""
    return launched() > 1 and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def process_group(device: str) -> Iterator[str]:
    """Within the block the processes that torchrun started can communicate; gives this process its device.

    gloo carries what lies on the CPU, nccl what lies on GPUs; "cuda" becomes the GPU of the local rank. Without
    torchrun, or with one process, nothing happens. ValueError where torchrun's environment is incomplete.
    """
    if launched() == 1:
        yield device
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(f"WORLD_SIZE is {launched()} but {', '.join(missing)} is not set: start with torchrun")
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=_store(), rank=int(os.environ["RANK"]), world_size=launched()
    )
    yield device
    # Not in a `finally`: after an error other ranks may be gone, and destroying the group would hang.
    dist.destroy_process_group()


def _store() -> Any:
    """Where the ranks find each other's addresses.

    torchrun keeps one store over its restarts, in which those of processes that are gone still stand (pytorch issue
    135712); so every attempt gets its own part of it. On several nodes the agents count attempts differently: there
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 must give every attempt a store of its own (docs/scale.md).
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    first = os.environ["RANK"] == "0" and not shared
    store = dist.TCPStore(address, port, launched(), is_master=first, multi_tenant=first)  # type: ignore[attr-defined]
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return store
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"attempt-{attempt}", store)  # type: ignore[attr-defined]


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over all ranks, on every rank, in place."""
    if size() > 1:
        dist.all_reduce(values)
    return values


def any_rank(here: bool) -> bool:
    """Whether `here` is true on any rank; the same result on every rank."""
    return bool(sum_over_ranks(torch.tensor([int(here)]))) if size() > 1 else here


def on_first(work: Callable[[], Value], group: dist.ProcessGroup | None = None) -> Value:
    """Run `work` on rank 0 and return its result on every rank, as ranks may read different states of the disk.

    An exception is also raised on every rank, so that none waits. group: None for the default group.
    """
    if size() == 1:
        return work()
    box: list[Any] = [None, None]
    if rank() == 0:
        try:
            box[0] = work()
        except Exception as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0, group=group)
    if box[1] is not None:
        raise box[1]
    return box[0]


def gathered(value: Any) -> list[Any]:
    """Every rank's value, in the order of ranks, on every rank."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def numbers_of(batches: int) -> list[int]:
    """Which of a step's batches this rank computes: dealt in turn, as many to every rank.

    Numbers of `batches` or more stand for an empty batch: where the ranks do not divide the batches, some of them have
    nothing to compute in the last turn but must take part in its communication.
    """
    turns = -(-batches // size())
    return [turn * size() + rank() for turn in range(turns)]
