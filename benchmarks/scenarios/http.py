"""`python -m benchmarks http`: `argus serve --http` under load, beside what its decode alone would reach.

A server with many users in memory, and a client on the loopback that shares the machine with it: connections ask again
as soon as they are answered. `floor` is what the server is built on, in one process without a client: `decode` the
model's decode alone, which bounds the events of a second, and `events` and `recommend` whole batches without HTTP.
Processor time a request is comparable on a machine that others use too.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from benchmarks.scenarios import http_load
from benchmarks.scenarios.http_load import MakeRequest
from benchmarks.scenarios.http_service import (
    START,
    Service,
    lengths_of,
    make_export,
    open_store,
    save_sessions,
    seconds_of,
    served,
)
from benchmarks.scenarios.serving import FEATURES
from python_model.serving.answering import answer_all
from python_model.serving.events import EventRow, batch_of
from python_model.serving.requests import Request

MIXES = {"events": 1.0, "recommend": 0.0, "mixed": 0.5}
"""Share of events; the others ask for the best items."""
BATCHES = (1, 16, 64)
LOADED_TOGETHER = 16


def _requests(users: int, connections: int, share: float, k: int, seed: int) -> list[MakeRequest]:
    """The requests of every connection: of random users, no two connections having one in common."""

    def of(connection: int) -> MakeRequest:
        random = np.random.default_rng([seed, connection])
        own = np.arange(connection, users, connections)

        def next_request() -> tuple[str, dict[str, object]]:
            user = int(own[random.integers(0, len(own))])
            if random.random() < share:
                return "/events", _event(user, random)
            return _best_of(user, k)

        return next_request

    return [of(connection) for connection in range(connections)]


def _best_of(user: int, k: int) -> tuple[str, dict[str, object]]:
    return "/recommend", {"user": user, "k": k, "exclude_seen": True}


def _event(user: int, random: np.random.Generator) -> dict[str, object]:
    item = int(random.integers(0, FEATURES.items))
    # Later than any history; a user's time does not run backwards.
    return {"user": user, "item": item, "time": START + 10**7, "context": {"hour": 7}, "feedback": {"like": 1}}


def measure_load(
    service: Service, threads: int, connections: list[int], seconds: float, k: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Figures of every mix and number of connections, after every user was loaded."""
    users, found = len(service.lengths), []
    with served(service, threads) as server:
        for start in range(0, users, LOADED_TOGETHER):
            chosen = range(start, min(start + LOADED_TOGETHER, users))
            first = [partial(_best_of, user, k) for user in chosen]
            if refused := http_load.measure(server.port, first, 0.0).refused:
                raise SystemExit(f"http: users could not be loaded: {refused}")
        for mix, share in MIXES.items():
            for count in connections:
                cpu, before = server.cpu_seconds(), server.batches()
                load = http_load.measure(server.port, _requests(users, count, share, k, service.seed), seconds)
                if load.refused:
                    raise SystemExit(f"http: {mix}, {count} connections: refused {load.refused}")
                cpu = (server.cpu_seconds() - cpu) / len(load.latencies)
                requests, batches = np.subtract(server.batches(), before)
                figures = {
                    "mix": mix, "connections": count, **load.figures(), "server_cpu_ms": 1e3 * cpu,
                    "requests_per_batch": requests / batches,
                }  # fmt: skip
                say(
                    f"{mix}, {count} connections: {figures['requests_per_second']:,.0f} requests/s, "
                    f"p50 {figures['p50_ms']:.1f} ms, p99 {figures['p99_ms']:.1f} ms, "
                    f"{figures['server_cpu_ms']:.2f} ms of processor time each, in batches of "
                    f"{figures['requests_per_batch']:.1f}"
                )
                found.append(figures)
    return found


def measure_floor(service: Service, threads: int, k: int, times: int) -> list[dict[str, Any]]:
    """Events a second of the decode alone, and of batches of requests without HTTP, by users of a batch."""
    torch.set_num_threads(threads)
    random, found = np.random.default_rng(service.seed), []
    users = len(service.lengths)
    store = open_store(service)
    store.totals(range(users))
    memory = store.memory
    for size in BATCHES:

        def decode(size: int = size) -> None:
            slots = [memory.residents[int(user)].slot for user in random.permutation(users)[:size]]
            lengths = [memory.encoder.caches[0].lengths[slot] for slot in slots]
            rows = [EventRow(1, START + 10**7, False, (7, -1), (1, -1, -1, -1)) for _ in slots]
            with torch.inference_mode():
                memory.encoder.append(slots, batch_of(rows, memory.encoder.model.device))
                for slot, length in zip(slots, lengths, strict=True):
                    memory.encoder.truncate(slot, length)

        def events(size: int = size) -> None:
            chosen = random.permutation(users)[:size].tolist()
            answer_all(store, [Request.of(_event(user, random)) for user in chosen])

        def best(size: int = size) -> None:
            chosen = random.permutation(users)[:size].tolist()
            answer_all(store, [Request.of({"user": user, "k": k, "exclude_seen": True}) for user in chosen])

        names = {"decode": decode, "events": events, "recommend": best}
        one: dict[str, Any] = {"users": size}
        for name, call in names.items():
            call()
            wall, cpu = seconds_of(call, max(times // size, 5))
            one |= {f"{name}_per_second": size / wall, f"{name}_cpu_ms": 1e3 * cpu / size}
        found.append(one)
    # The events of the measurement are not saved.
    assert memory.archive is not None
    memory.archive.close()
    return found


def main(
    size: Annotated[str, typer.Option(help="Preset of the model.")] = "3m",
    users: Annotated[int, typer.Option(min=128, help="Users in memory.")] = 1000,
    longest: Annotated[int, typer.Option(help="Events of the longest history.")] = 8192,
    median: Annotated[int, typer.Option(help="Median of the lognormal lengths.")] = 512,
    connections: Annotated[list[int] | None, typer.Option(help="Repeat it for several; 1, 16 and 128.")] = None,
    seconds: Annotated[float, typer.Option(help="Of every measurement.")] = 10.0,
    threads: Annotated[int, typer.Option(help="Of torch in the server.")] = 1,
    k: Annotated[int, typer.Option(help="Items that a recommendation asks for.")] = 10,
    full: Annotated[bool, typer.Option("--full", help="Keys and values in float32 instead of bfloat16.")] = False,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    folder: Annotated[Path | None, typer.Option(help="Where the sessions are made; removed at the end.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")] = None,
) -> None:
    """Loads `argus serve --http` over the loopback: requests a second, p50, p99, processor time."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    console = Console(width=None if Console().is_terminal else 160)

    def say(text: str) -> None:
        console.print(text, highlight=False)

    with tempfile.TemporaryDirectory(dir=folder) as made:
        service = Service(Path(made), lengths_of(users, longest, median, seed), not full, seed)
        make_export(service, size, longest)
        save_sessions(service)
        say(f"{users:,} users, {int(service.lengths.sum()):,} events in memory, {service.lengths.max():,} at most")
        floor = measure_floor(service, threads, k, 128)
        for one in floor:
            say(", ".join(f"{name} {value:,.4g}" for name, value in one.items()))
        load = measure_load(service, threads, connections or [1, 16, 128], seconds, k, say)
    figures = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}", "seed": seed,
        "preset": size, "users": users, "events": int(service.lengths.sum()), "longest": longest, "median": median,
        "catalogue": FEATURES.items, "k": k, "threads": threads, "dtype": "float32" if full else "bfloat16",
        "client": "one process on the same cores", "seconds": seconds, "floor": floor, "load": load,
    }  # fmt: skip
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


def register(app: typer.Typer) -> None:
    """Adds `http` to the commands of `python -m benchmarks`."""
    app.command("http")(main)
