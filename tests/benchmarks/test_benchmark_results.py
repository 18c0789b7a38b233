"""The JSON lines: their fields, and what is refused as one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.harness.results import (
    PeerResult,
    Quantiles,
    Record,
    machine,
    read_records,
    source_commit,
    versions,
    write_records,
)

MakeRecord = Callable[..., Record]

FIELDS = {
    "op", "case", "dtype", "pass", "backend", "verified", "ms", "peak_bytes", "flops", "bytes", "share_of_ceiling",
    "peers", "machine", "versions", "commit",
}  # fmt: skip


def test_fields_of_a_line(make_record: MakeRecord) -> None:
    line = json.loads(make_record(2.0, peers={"eager": 6.0}).to_json())
    assert line.keys() >= FIELDS
    assert line["pass"] == "forward" and "pass_" not in line
    assert line["ms"].keys() == {"p10", "p50", "p90"}
    assert line["peers"] == {"eager": {"ms": 6.0, "peak_bytes": 0, "ratio": 3.0, "skipped": None}}


def test_round_trip(tmp_path: Path, make_record: MakeRecord) -> None:
    path = tmp_path / "folder" / "run.jsonl"
    skipped = make_record(1.0, peers={}, backend="triton")
    skipped.peers["flash_attn"] = PeerResult(skipped="runs on CUDA only")
    refused = make_record(1.0, backend="wrong", ms=None, verified=False, refused="output 0 fails")
    timed = make_record(3.0, times=(2.9, 3.0, 3.1), peers={"eager": 6.0})
    write_records(path, [make_record(3.0)])
    write_records(path, [timed, skipped, refused])
    assert read_records(path) == [timed, skipped, refused]
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert list(path.parent.iterdir()) == [path]


def test_lines_of_earlier_versions_are_read(tmp_path: Path, make_record: MakeRecord) -> None:
    """They have the p50 of every visit to a case, and no times."""
    line = json.loads(make_record(3.0, peers={"eager": 6.0}).to_json())
    del line["times"]
    line["visits"] = line["peers"]["eager"]["visits"] = [2.9, 3.1]
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps(line))
    assert read_records(path) == [make_record(3.0, peers={"eager": 6.0})]


def test_an_interrupted_write_leaves_the_file_as_it_was(tmp_path: Path, make_record: MakeRecord) -> None:
    path = tmp_path / "run.jsonl"
    write_records(path, [make_record(3.0)])

    def interrupted() -> Iterator[Record]:
        yield make_record(4.0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(path, interrupted())
    assert read_records(path) == [make_record(3.0)] and list(tmp_path.iterdir()) == [path]


def test_only_a_file_is_replaced(tmp_path: Path, make_record: MakeRecord) -> None:
    with pytest.raises(ValueError, match="expected a file to write the records to"):
        write_records(tmp_path, [make_record(3.0)])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[1]", "expected a JSON object"),
        ('{"op": "x"}', "missing"),
        ("{", "Expecting"),
        ('{"surprise": 1}', "surprise"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, make_record: MakeRecord, line: str, problem: str) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(make_record(1.0).to_json() + "\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"run\.jsonl:2: not a benchmark record: .*{problem}"):
        read_records(path)


def test_quantiles() -> None:
    assert Quantiles.of([float(value) for value in range(11)]) == Quantiles(1.0, 5.0, 9.0)
    with pytest.raises(ValueError, match="no measurement"):
        Quantiles.of([])


def test_where_it_was_measured() -> None:
    facts = machine("cpu")
    assert facts["threads"] == 1 and facts["cores"] >= 1 and facts["memory_gib"] > 0
    assert facts["name"] == facts["name"].lower().replace(" ", "-")
    assert {"python", "torch", "argus_kernels"} <= versions().keys()
    assert isinstance(source_commit(), str)
