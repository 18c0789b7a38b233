"""`python -m benchmarks overhead`: every op beside torch's attention, each pass that it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from argus_kernels import OPS
from argus_kernels.core import native
from benchmarks import cli
from benchmarks.scenarios.overhead import SDPA


def test_every_op_has_a_row_and_every_pass_a_figure(tmp_path: Path) -> None:
    if native.why_not("cpu") is not None:
        pytest.skip("the native library is not built")
    written = tmp_path / "overhead.json"
    done = CliRunner().invoke(cli.app, ["overhead", "--turns", "1", "--repeats", "2", "--json", str(written)])
    assert done.exit_code == 0, done.output
    rows = {row["op"]: row for row in json.loads(written.read_text())["microseconds"]}
    assert list(rows) == [SDPA, *(op.name for op in OPS)]
    for op in OPS:
        assert op.name in done.output and rows[op.name]["forward"] > 0
        assert (rows[op.name]["backward"] is None) == (not op.differentiable)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--backend", "nope", "--json", "o.json"],
            "causal_attention: backend is 'nope', expected one of auto, eager, cuda, cpp",
        ),
        (["--json", "missing/overhead.json"], "cannot write missing/overhead.json: its directory is missing"),
    ],
)
def test_what_cannot_be_measured_or_kept_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["overhead", "--turns", "1", "--repeats", "2", *options])
    assert done.exit_code == 2 and says in " ".join(done.output.replace("│", " ").split()), done.output
    assert list(tmp_path.iterdir()) == []
