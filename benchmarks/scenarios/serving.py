"""`python -m benchmarks serving`: the three ways of serving at their real sizes, each verified before it is timed.

- index: an HNSW index over a million item vectors, recall@100 against exact search and milliseconds a query;
- score: millions of rows from Parquet to Parquet once user vectors exist, rows a second;
- session: one more event of a user with 8,192 cached ones, milliseconds from the event to its vectors.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from rich.console import Console

from python_model.config import FeatureSpec, preset
from python_model.data.feedback import BINARY, categorical
from python_model.model.argus import Argus
from python_model.serving.bundle import Export
from python_model.serving.events import Event, EventLog
from python_model.serving.index import CandidateIndex, IndexSettings, check_index, require_faiss, sample_users
from python_model.serving.score import score_parquet
from python_model.serving.scorers import VectorScorer
from python_model.serving.store import SessionStore

PARTS = ("index", "score", "session")
CONTENT_DIMENSIONS, ARTISTS, TOPICS = 48, 20_000, 256
FEATURES = FeatureSpec(
    items=100_000,
    context={"hour": 24, "day": 7},
    feedback={"like": BINARY, "dislike": BINARY, "skip": BINARY, "share": categorical(8)},
    item_features={"artist": 10_000},
)


def clustered_vectors(rows: int, width: int, seed: int, users: bool = False) -> np.ndarray:
    """Unit vectors float32 [rows, width] in clusters, because trained vectors are not independent.

    Items lie around artists, artists around topics, users between three artists, in CONTENT_DIMENSIONS directions of
    falling variance and a little of every direction on top. With 6,361 items of width 64 the spread matches that of a
    run on KuaiRand-Pure: 22 effective dimensions, and 17 within the 100 nearest neighbours of an item. A function of
    (rows, width, seed, users).
    """
    shared = np.random.default_rng(0)
    scale = (1 + np.arange(min(CONTENT_DIMENSIONS, width))) ** -0.4
    basis = np.linalg.qr(shared.standard_normal((width, len(scale))))[0].T
    topics = shared.standard_normal((TOPICS, len(scale))) * scale
    artists = topics[shared.integers(0, TOPICS, ARTISTS)]
    artists = artists + 0.7 * shared.standard_normal(artists.shape) * scale
    random = np.random.default_rng([seed, int(users)])
    out = np.empty((rows, width), np.float32)
    for start in range(0, rows, 1 << 16):
        part = out[start : start + (1 << 16)]
        content = artists[random.integers(0, ARTISTS, (len(part), 3 if users else 1))].mean(1)
        content += 0.8 * random.standard_normal(content.shape) * scale
        vectors = content @ basis + 0.05 * random.standard_normal(part.shape)
        part[:] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return out


def measure_index(
    items: int, width: int, settings: IndexSettings, queries: int, seed: int, vectors: Path | None
) -> dict[str, Any]:
    """Build and check over synthetic vectors, or over those of an export."""
    faiss = require_faiss()
    if vectors is not None:
        export = Export.open(vectors)
        catalogue, asked = np.ascontiguousarray(export.item_vectors()), sample_users(export, queries)
    else:
        catalogue = clustered_vectors(items, width, seed)
        asked = clustered_vectors(queries, width, seed, users=True)
    began, cpu = time.perf_counter(), time.process_time()
    index = CandidateIndex.build(catalogue, settings)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    found = check_index(index, asked, 100)
    return {
        "items": len(catalogue), "width": catalogue.shape[1], "vectors": "export" if vectors else "synthetic",
        **asdict(settings), "build_threads": faiss.omp_get_max_threads(), "build_seconds": seconds,
        "build_cpu_seconds": cpu_seconds, **asdict(found),
    }  # fmt: skip


def measure_score(rows: int, users: int, items: int, width: int, seed: int, folder: Path) -> dict[str, Any]:
    """Rows of random users and items scored from Parquet to Parquet; a sample is checked in float64."""
    random = np.random.default_rng(seed)
    user_vectors, item_vectors = (
        clustered_vectors(users, width, seed, users=True),
        clustered_vectors(items, width, seed),
    )
    # Ids with gaps, so that each has to be looked up.
    table = pa.table({
        "user_id": 3 * np.sort(random.integers(0, users, rows)), "item_id": random.integers(0, items, rows),
        "time": np.full(rows, 1_700_000_000),
    })  # fmt: skip
    scorer = VectorScorer(
        np.arange(users) * 3, user_vectors, np.zeros(users, np.int64), np.arange(items), item_vectors, lag=1
    )
    pq.write_table(table, folder / "rows.parquet", row_group_size=1 << 20)
    began = time.perf_counter()
    report = score_parquet(scorer, folder / "rows.parquet", folder / "scores")
    seconds = time.perf_counter() - began
    if report.scored != rows:
        raise SystemExit(f"score: {report.scored:,} of {rows:,} rows were scored")
    found = pq.read_table(folder / "scores")
    sample = random.integers(0, rows, 10_000)
    one, other = (found.column(name).to_numpy()[sample] for name in ("user_id", "item_id"))
    truth = (user_vectors[one // 3].astype(np.float64) * item_vectors[other]).sum(1)
    error = float(np.abs(found.column("score").to_numpy()[sample] - truth).max())
    if error > 1e-5:
        raise SystemExit(f"score: off by {error:.2g} from float64")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "rows": rows, "users": users, "items": items, "width": width, "threads": torch.get_num_threads(),
        "seconds": seconds, "rows_per_second": rows / seconds, "largest_error": error, "peak_mb": peak,
    }  # fmt: skip


def measure_session(
    size: str, cached: int, events: int, dtype: torch.dtype | None, top_k: int, seed: int
) -> dict[str, Any]:
    """Milliseconds from an event to its user vector and query, and of a top-k after it, for one user on one thread."""
    torch.manual_seed(seed)
    columns = torch.stack([torch.arange(FEATURES.items), torch.arange(FEATURES.items) % 10_000]).int()
    model = Argus(preset(size, max_events=cached + 2 * events), FEATURES, columns)
    model.stage = "finetune"
    random = np.random.default_rng(seed)
    history = {
        "items": random.integers(0, FEATURES.items, cached),
        "time": 1_690_000_000 + np.cumsum(random.integers(1, 900, cached)),
        "organic": random.random(cached) < 0.5,
        "context": np.stack([random.integers(0, count, cached) for count in FEATURES.context.values()], 1),
        "feedback": np.stack([random.integers(0, one.classes, cached) for one in FEATURES.feedback.values()], 1),
    }  # fmt: skip
    store = SessionStore(
        model, resident=2, dtype=dtype, max_events=cached + 2 * events, histories=lambda user: EventLog(history)
    )
    began = time.perf_counter()
    session = store.session("one")
    session.reading()
    prefill = time.perf_counter() - began
    now = int(history["time"][-1])

    def event(place: int) -> Event:
        return Event(int(random.integers(0, FEATURES.items)), now + 60 * place, feedback={"like": 1, "share": 3})

    for place in range(5):
        session.add(event(place))
    add = _milliseconds(lambda place: session.add(event(5 + place)), events)
    best = _milliseconds(lambda place: session.top_k(top_k), max(events // 10, 3))
    return {
        "size": size, "cached_events": cached, "events": events, "threads": torch.get_num_threads(),
        "dtype": str(dtype or torch.float32).removeprefix("torch."), "prefill_seconds": prefill,
        "p50_ms": add[0], "p99_ms": add[1], "top_k": top_k, "catalogue": FEATURES.items, "top_k_p50_ms": best[0],
    }  # fmt: skip


def _milliseconds(call: Callable[[int], object], times: int) -> tuple[float, float]:
    found = []
    for place in range(times):
        began = time.perf_counter()
        call(place)
        found.append((time.perf_counter() - began) * 1e3)
    p50, p99 = np.quantile(found, [0.5, 0.99])
    return float(p50), float(p99)


def main(
    part: Annotated[list[str] | None, typer.Option(help="index, score or session; repeat it for several.")] = None,
    items: Annotated[int, typer.Option(help="Items of the index.")] = 1_000_000,
    width: Annotated[int, typer.Option(help="Width of the vectors of index and score.")] = 64,
    links: Annotated[int, typer.Option(help="M of HNSW.")] = IndexSettings.links,
    build_breadth: Annotated[int, typer.Option(help="efConstruction of HNSW.")] = IndexSettings.build_breadth,
    search_breadth: Annotated[int, typer.Option(help="efSearch of HNSW.")] = IndexSettings.search_breadth,
    queries: Annotated[int, typer.Option(help="Queries of the index.")] = 500,
    export: Annotated[Path | None, typer.Option(help="Index the item vectors of an export instead.")] = None,
    rows: Annotated[int, typer.Option(help="Rows to score.")] = 4_000_000,
    users: Annotated[int, typer.Option(help="Users of the rows to score.")] = 500_000,
    size: Annotated[str, typer.Option(help="Preset of the session's model.")] = "3m",
    cached: Annotated[int, typer.Option(help="Events cached of the session's user.")] = 8192,
    events: Annotated[int, typer.Option(help="Events the session absorbs.")] = 300,
    threads: Annotated[int, typer.Option(help="Threads that build the index and score rows; sessions have one.")] = 2,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")] = None,
) -> None:
    """Times candidates, ranking feature and sessions at their real sizes; about three minutes on two idle cores."""
    # As in `argus serve`; torch reads it at its first allocation.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    parts = part or list(PARTS)
    if unknown := sorted(set(parts) - set(PARTS)):
        raise typer.BadParameter(f"part {', '.join(unknown)} is unknown, expected some of {', '.join(PARTS)}")
    console = Console(width=None if Console().is_terminal else 160)
    figures: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}", "seed": seed,
        "huge_pages": os.environ["THP_MEM_ALLOC_ENABLE"] == "1",
    }  # fmt: skip
    if "index" in parts:
        require_faiss().omp_set_num_threads(threads)
        torch.set_num_threads(threads)
        settings = IndexSettings(links, build_breadth, search_breadth)
        figures["index"] = measure_index(items, width, settings, queries, seed, export)
        _show(console, "index", figures["index"])
    if "score" in parts:
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as folder:
            figures["score"] = measure_score(rows, users, 100_000, width, seed, Path(folder))
        _show(console, "score", figures["score"])
    if "session" in parts:
        torch.set_num_threads(1)
        figures["session"] = [
            measure_session(size, cached, events, dtype, 100, seed) for dtype in (None, torch.bfloat16)
        ]
        for one in figures["session"]:
            _show(console, "session", one)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


def _show(console: Console, title: str, figures: dict[str, Any]) -> None:
    shown = {name: f"{value:,.4g}" if isinstance(value, float) else value for name, value in figures.items()}
    console.print(f"[bold]{title}[/]", ", ".join(f"{name} {value}" for name, value in shown.items()), highlight=False)


def register(app: typer.Typer) -> None:
    """Adds `serving` to the commands of `python -m benchmarks`."""
    app.command("serving")(main)
