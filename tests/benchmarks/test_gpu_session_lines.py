"""The results of a GPU session: whole lines whatever cuts them, and what the report makes of them."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from argus_kernels.core import tuning
from argus_kernels.core.tuning import Key
from benchmarks.gpu_session import lines, report
from benchmarks.gpu_session.cli import app
from benchmarks.harness.results import Record

REPOSITORY = Path(__file__).resolve().parents[2]
SCALE = int(os.environ.get("ARGUS_FUZZ_SCALE", "1"))


def test_lines_come_back_with_numbers_that_are_not_finite_by_name(tmp_path: Path) -> None:
    lines.append(tmp_path, "a", value=1.5, worst=math.inf, errors=[math.nan, {"x": -math.inf}])
    (line,) = lines.read(tmp_path).whole
    assert line["value"] == 1.5 and line["worst"] == "inf" and line["errors"] == ["nan", {"x": "-inf"}]


def test_a_file_cut_anywhere_loses_the_line_that_was_cut_and_no_other(tmp_path: Path) -> None:
    for number in range(20):
        lines.append(tmp_path, "a", number=number, text="é|\n" * 5)
    content = (tmp_path / lines.FILE).read_bytes()
    draw = random.Random(0)
    for _ in range(200 * SCALE):
        cut = draw.randrange(len(content))
        (tmp_path / lines.FILE).write_bytes(content[:cut])
        lines.append(tmp_path, "b")
        found = lines.read(tmp_path)
        numbers = [line["number"] for line in found.of("a")]
        assert numbers == list(range(len(numbers))) and len(list(found.of("b"))) == 1
        before = content[:cut].count(b"}\n") + content[:cut].endswith(b"}")
        assert len(numbers) == before and found.damaged <= 1


@pytest.mark.parametrize("damage", [b"[]\n", b"null\n", b'{"kind": 1}\n', b"\xff\xfe\n", b"[" * 200_000 + b"\n"])
def test_what_is_no_line_is_counted(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / lines.FILE).write_bytes(damage)
    lines.append(tmp_path, "a")
    found = lines.read(tmp_path)
    assert found.damaged == 1 and [line["kind"] for line in found.whole] == ["a"]


def test_processes_append_at_once_without_tearing_each_other(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from benchmarks.gpu_session import lines\n"
        "for i in range(50): lines.append(Path(sys.argv[1]), sys.argv[2], text=sys.argv[2] * 20000)"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name], cwd=REPOSITORY) for name in "abc"
    ]
    assert [child.wait() for child in children] == [0, 0, 0]
    found = lines.read(tmp_path)
    assert found.damaged == 0 and len(found.whole) == 150
    assert all(line["text"] == line["kind"] * 20000 for line in found.whole)


def trial(index: int, ms: float | None, dropped: str | None = None) -> dict[str, Any]:
    key = {"kernel": "toy/forward", "width": 64, "dtype": "bfloat16", "size": 256}
    return {
        "step": "tuning", "op": "toy", "kernel": "toy/forward", "case": "large", "index": index,
        "config": {"warps": 4 + index}, "keys": [key] if ms else [], "ms": ms, "dropped": dropped,
    }  # fmt: skip


@pytest.fixture
def session(tmp_path: Path, make_record: Any) -> Path:
    """The lines of a session on a GPU, the last one cut short."""
    folder = tmp_path / "session"
    folder.mkdir()
    lines.append(folder, "session", seconds=540, device="cuda", rehearse=False)
    lines.append(
        folder, "machine", machine={"name": "nvidia-toy-1", "gpu": "NVIDIA Toy 1", "cpu": "c"},
        versions={"torch": "2.11"}, commit="abc", copy_bytes_per_second=4e12, flops_per_second={"bf16": 7.9e14},
    )  # fmt: skip
    lines.append(folder, "step_started", step="error_rule", budget=110.0)
    wrong = {"outcome": "wrong", "sentences": ["d_q fails: max error 1 | allowed 2"]}
    lines.append(folder, "verdict", op="toy", backend="cuda", case="tiles", dtype="bf16", seconds=1.0, **wrong)
    lines.append(folder, "fault", op="toy", backend="cuda", case="tiles", dtype="bf16", reason="illegal access")
    record: Record = make_record(2.0, dtype="bf16", machine={"name": "nvidia-toy-1"}, peers={"eager": 4.0})
    lines.append(folder, "record", step="timing", record=json.loads(record.to_json()))
    slower: Record = make_record(3.5, dtype="bf16", machine={"name": "nvidia-toy-1"})
    lines.append(folder, "record_of_kernels", kernels="mma.sync", record=json.loads(slower.to_json()))
    for index, ms in ((0, 3.0), (1, 1.0)):
        lines.append(folder, "trial", **trial(index, ms))
    lines.append(folder, "trial", **trial(2, None, "output 0 fails"))
    lines.append(folder, "sanitizer", op="toy", check="memcheck", exit_status=9, summary="2 errors", errors=["Invalid"])
    lines.append(
        folder, "profiled", op="toy", backend="cuda", case="large", part="forward", kernel="k<1>",
        metrics={"Duration": ["12.3", "us"]},
    )  # fmt: skip
    lines.append(folder, "golden", instruction="expf", draw="numbers", settings={}, operands={}, result={})
    lines.append(folder, "left_out", step="golden", what="wgmma")
    with open(folder / lines.FILE, "a") as file:
        file.write('\n{"kind": "record", "record": {"op"')
    return folder


def test_the_report_of_a_session_that_was_cut_off(session: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(session), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.md", "records.jsonl", "toy-1.json", "golden_toy-1.jsonl",
    }  # fmt: skip
    page = (tmp_path / "out" / "report.md").read_text()
    for part in (
        "2 lines were cut short", "| toy | cuda | 0 | 1 | 0 | 0 |", "d_q fails: max error 1 \\| allowed 2",
        "illegal access", "warps 5 | 1 ms |", "output 0 fails", "| toy | memcheck | 9 | 2 errors | Invalid |",
        "| mma.sync | 3.5 | 2 |",
        "12.3 us", "| error_rule | cut off with the session |", "copy 4,000 GB/s", "eager 2.00×",
    ):  # fmt: skip
        assert part in page, part
    table = tuning.load_table(tmp_path / "out" / "toy-1.json")
    assert table == {Key("toy/forward", 64, "bfloat16", 256): {"warps": 5}}
    facts = json.loads((tmp_path / "out" / "toy-1.json").read_text())
    assert facts["gpu"] == "NVIDIA Toy 1" and facts["commit"] == "abc" and facts["versions"] == {"torch": "2.11"}


def changed(value: Any, draw: random.Random) -> Any:
    """The value with something of another type, or nothing, at one place in it."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        name = draw.choice(sorted(value))
        if draw.random() < 0.2:
            return {key: one for key, one in value.items() if key != name}
        return {**value, name: changed(value[name], draw)}
    if isinstance(value, list) and value and draw.random() < 0.7:
        return [changed(value[0], draw), *value[1:]]
    return draw.choice([None, -1, 1e300, "x", [], {}, [1], {"kind": 3}, True])


def test_lines_of_strangers_are_counted_or_refused(session: Path, tmp_path: Path) -> None:
    whole, draw = lines.read(session).whole, random.Random(0)
    for _ in range(60 * SCALE):
        place = draw.randrange(len(whole))
        given = [json.dumps(changed(line, draw) if number == place else line) for number, line in enumerate(whole)]
        (session / lines.FILE).write_text("\n".join(given))
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        try:
            report.write(session, out)
        except ValueError as error:
            assert "\n" not in str(error) and not out.exists()


def test_install_puts_table_and_vectors_where_they_are_read(
    session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "FOLDER", tmp_path / "tuning")
    monkeypatch.setattr(report, "GOLDEN", tmp_path / "golden")
    report.write(session, tmp_path / "out", install=True)
    assert (tmp_path / "tuning" / "toy-1.json").exists() and (tmp_path / "golden" / "toy-1.jsonl").exists()


def test_a_rehearsal_is_not_installed_and_no_session_is_no_report(tmp_path: Path) -> None:
    lines.append(tmp_path, "session", seconds=5, device="cpu", rehearse=True)
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--install"])
    assert done.exit_code == 2 and "holds a rehearsal, and only what a GPU gave goes into the tree" in done.output
    assert not (tmp_path / "report").exists()
    done = CliRunner().invoke(app, ["report", str(tmp_path / "nowhere")])
    assert done.exit_code == 2 and "holds no results of a session, expected results.jsonl in it" in done.output
