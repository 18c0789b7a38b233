"""Random and mutated lines: each is answered, the state is that without the refused ones, memory does not grow."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from python_model.serving.answering import answer
from python_model.serving.bundle import Export
from python_model.serving.store import SessionStore
from tests.model.serving.hostile_lines import LineMaker

SCALE = int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))
LINES = 2000 * SCALE


def resident_mb() -> float:
    """What this process has in memory, as far as /proc says."""
    file = Path("/proc/self/statm")
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if file.exists() else 0.0


def content_of(folder: Path) -> dict[str, Any]:
    """Every file of a folder of sessions but the lock; of a session its header, whose order is not fixed, as values."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"):
        content = path.read_bytes()
        name = path.relative_to(folder).as_posix()
        end = 8 + int.from_bytes(content[:8], "little") if path.suffix == ".safetensors" else 0
        found[name] = json.loads(content[8:end]) if end else None, content[end:]
    return found


def state_of(store: SessionStore) -> Any:
    """Who is in memory with which events, what the journal says, and the best items of each."""
    assert store.memory.archive is not None
    resident = {user: {name: values.tolist() for name, values in one.log.columns().items()}
                for user, one in store.memory.residents.items()}  # fmt: skip
    best = {user: [(one.item_id, one.score) for one in store.session(user).top_k(5)] for user in store.resident}
    return list(resident.items()), best, store.memory.archive.journal.file.read_bytes()


@pytest.mark.timeout(300 * SCALE)
@pytest.mark.parametrize("on_full", [pytest.param("offload", marks=pytest.mark.slow), "replay"])
def test_state_is_that_without_the_refused_lines(exported: Export, tmp_path: Path, on_full: str) -> None:
    options: dict[str, Any] = {
        "resident": 12,
        "max_events": 48,
        "page_size": 8,
        "on_full": on_full,
        "save_every": 10_000,
    }
    with_all = SessionStore.open(exported, tmp_path / "all", **options)
    refused, memory, log = 0, [resident_mb()], tmp_path / "accepted.txt"
    maker = LineMaker(5, with_all.model.features)
    count = LINES if on_full == "offload" else LINES // 5
    with open(log, "wb") as accepted:  # not in memory, which is measured
        for number, line in enumerate(maker.lines(count)):
            found = answer(with_all, line)
            text = json.dumps(found, allow_nan=False)
            if "error" in found:
                assert list(found) == ["error"] and 10 < len(found["error"]) < 1100 and "\n" not in found["error"], line
                assert "internal error" not in found["error"], line
                refused += 1
            else:
                accepted.write(line + b"\n" + text.encode("ascii") + b"\n")
            if number % (count // 10) == count // 10 - 1:
                memory.append(resident_mb())
    with_accepted = SessionStore.open(exported, tmp_path / "accepted", **options)
    with open(log, "rb") as accepted:
        for line in accepted:
            assert json.dumps(answer(with_accepted, line)).encode("ascii") + b"\n" == accepted.readline()
    assert state_of(with_all) == state_of(with_accepted)
    with_all.close()
    with_accepted.close()
    assert content_of(tmp_path / "all") == content_of(tmp_path / "accepted")
    print(f"{count:,} lines, {refused:,} refused, MB {[round(one, 1) for one in memory]}")
    assert count // 4 < refused < 3 * count // 4
    assert memory[-1] - memory[2] < 4, "megabytes grown over the last eight tenths"
