"""An export and saved sessions of a service of real size, and `argus serve --http` over them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.scenarios.serving import FEATURES
from python_model.config import FeatureSpec, TrainConfig, preset
from python_model.data.schema import DatasetWriter, load_dataset
from python_model.model.argus import Argus
from python_model.serving.bundle import Export
from python_model.serving.events import EventLog
from python_model.serving.export import export
from python_model.serving.session_files import SavedSession
from python_model.serving.store import SessionStore
from python_model.training import checkpoint
from python_model.training.checkpoint import Description, TrainerState

PAGE, LEAST = 64, 16
USERS_OF_EXPORT = 64
START = 1_690_000_000


@dataclass(frozen=True)
class Service:
    """A folder with `export` and `sessions`; lengths: events of each session, whose users are 0, 1, 2, …"""

    folder: Path
    lengths: np.ndarray
    half: bool
    seed: int

    @property
    def export(self) -> Path:
        """Made by `make_export`."""
        return self.folder / "export"

    @property
    def sessions(self) -> Path:
        """The state folder."""
        return self.folder / "sessions"

    @property
    def cached_events(self) -> int:
        """Room for all sessions and what a measurement adds to them."""
        return int((-(-self.lengths // PAGE) + 2).sum() + 2 * (-(-int(self.lengths.max()) // PAGE) + 3)) * PAGE

    @property
    def dtype(self) -> torch.dtype | None:
        """Of keys and values."""
        return torch.bfloat16 if self.half else None


def lengths_of(users: int, longest: int, median: int, seed: int) -> np.ndarray:
    """Lognormal lengths, sorted, of which the last is the longest."""
    found = np.random.default_rng(seed).lognormal(np.log(median), 1.0, users)
    lengths = np.sort(np.clip(found, LEAST, longest).astype(np.int64))
    lengths[-1] = longest
    return lengths


def _events(count: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "items": random.integers(0, FEATURES.items, count).astype(np.int32),
        "time": START + np.cumsum(random.integers(1, 900, count)),
        "organic": random.random(count) < 0.5,
        "context": np.stack([random.integers(0, n, count) for n in FEATURES.context.values()], 1).astype(np.int32),
        "feedback": np.stack(
            [random.integers(0, one.classes, count) for one in FEATURES.feedback.values()], 1
        ).astype(np.int16),
    }  # fmt: skip


def make_export(service: Service, size: str, longest: int) -> None:
    """The export of a fine-tuned model with random weights, whose catalogue has FEATURES.items items."""
    rows = 4 * USERS_OF_EXPORT
    events = _events(rows, service.seed)
    data, run = service.folder / "data", service.folder / "run"
    with DatasetWriter(
        data, name="load", source="benchmark", context=FEATURES.context, feedback=FEATURES.feedback,
        item_features=FEATURES.item_features, grades="none", pair_window=60,
    ) as writer:  # fmt: skip
        columns = {
            "user": np.arange(rows) // 4, "item": events["items"], "time": events["time"],
            "organic": events["organic"], "grade": np.full(rows, -1),
        }  # fmt: skip
        columns |= {f"context_{name}": events["context"][:, at] for at, name in enumerate(FEATURES.context)}
        columns |= {f"feedback_{name}": events["feedback"][:, at] for at, name in enumerate(FEATURES.feedback)}
        writer.write_events(columns)
        # Ids that no user of the sessions has.
        writer.write_users(np.arange(USERS_OF_EXPORT) + 10**9)
        item = np.arange(FEATURES.items)
        artists = FEATURES.item_features["artist"]
        writer.write_items(item, {"artist": item % artists})
    dataset = load_dataset(data)
    torch.manual_seed(service.seed)
    model = Argus.for_dataset(preset(size, max_events=longest), dataset).eval()
    model.stage = "finetune"
    train = TrainConfig(stage="finetune", window=16, batch_events=16)
    described = Description("finetune", 1, model.config, train, FeatureSpec.of(dataset.info), {"name": "load"})
    checkpoint.save(run, model, described, TrainerState({}, {}), keep=1)
    export(dataset, run, service.export, best=0)


def save_sessions(service: Service) -> None:
    """Saved sessions whose histories are the beginnings of one history, with their keys, values and states."""
    longest = int(service.lengths.max())
    history = _events(longest, service.seed + 1)
    options = {"page_size": PAGE, "max_events": longest, "dtype": service.dtype}
    with SessionStore.open(service.export, service.sessions, resident=1, **options) as store:
        archive, encoder = store.memory.archive, store.memory.encoder
        assert archive is not None
        with torch.inference_mode():
            batch = EventLog(history).batch(encoder.model.device)
            encoder.prefill(0, batch)
            states, parts = encoder.model.encode(batch), encoder.copy_out(0)
            encoder.evict([0])
        for user, length in enumerate(service.lengths.tolist()):
            log = EventLog({name: values[:length] for name, values in history.items()})
            kept = [part[:length].clone() for part in parts]
            archive.files.save(user, SavedSession(log, store.fingerprint, states[length - 1].clone(), kept))


@dataclass(frozen=True)
class Process:
    """A server process; port: on the loopback."""

    pid: int
    port: int

    def cpu_seconds(self) -> float:
        """Seconds of processor time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def batches(self) -> tuple[float, float]:
        """Requests and batches that it has answered, as its metrics say."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=60) as found:
            lines = dict(line.rsplit(" ", 1) for line in found.read().decode().splitlines() if line[:1] != "#")
        return float(lines["argus_batch_requests_sum"]), float(lines["argus_batch_requests_count"])


@contextmanager
def served(service: Service, threads: int) -> Iterator[Process]:
    """`argus serve --http` over the service, with room for every session in memory."""
    command = [
        sys.executable, "-m", "python_model", "serve", str(service.export), "--state", str(service.sessions), "--http",
        "--port", "0", "--threads", str(threads), "--resident", str(len(service.lengths)),
        "--cached-events", str(service.cached_events), "--max-events", str(int(service.lengths.max())), "--timeout",
        "600", *(["--cache", "bfloat16"] if service.half else []),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("Ready on "):
                raise SystemExit(f"the server did not start: {line}")
            yield Process(process.pid, int(line.rsplit(":", 1)[1]))
        finally:
            # The sessions of a measurement are not kept.
            process.kill()


def open_store(service: Service) -> SessionStore:
    """The same sessions without a server, to measure what it is built on."""
    return SessionStore.open(
        Export.open(service.export), service.sessions, resident=len(service.lengths), page_size=PAGE,
        pages=service.cached_events // PAGE, max_events=int(service.lengths.max()), dtype=service.dtype,
    )  # fmt: skip


def seconds_of(call: Callable[[], object], times: int) -> tuple[float, float]:
    """Median seconds of a call, and seconds of processor time of an average one."""
    found, cpu = [], time.process_time()
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return float(np.median(found)), (time.process_time() - cpu) / times
