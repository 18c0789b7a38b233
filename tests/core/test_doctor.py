"""The doctor tells the truth about this machine, about one without a GPU, and about one without native libraries."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from argus_kernels import OPS, doctor
from argus_kernels.core import native


def test_every_op_and_backend_has_its_row() -> None:
    diagnosis = doctor.diagnose()
    on_cpu = [(row.op, row.backend) for row in diagnosis.rows if row.device == "cpu"]
    assert on_cpu == [(op.name, backend.name) for op in OPS for backend in op.backends]
    assert not diagnosis.unserved
    for op in OPS:
        assert sum(row.automatic for row in diagnosis.rows if row.op == op.name and row.device == "cpu") == 1


def test_a_backend_that_does_not_serve_has_a_reason() -> None:
    for row in doctor.diagnose().rows:
        assert row.serves == (not row.reasons), row


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_is_explained() -> None:
    diagnosis = doctor.diagnose()
    assert diagnosis.gpu == []
    expected = "is a CPU build" if torch.version.cuda is None else "sees no GPU"
    assert expected in diagnosis.no_gpu_reason
    text = doctor.render(diagnosis)
    assert f"none: {diagnosis.no_gpu_reason}" in text
    cuda = [row for row in diagnosis.rows if row.backend == "cuda"]
    assert cuda and all(not row.serves and row.reasons for row in cuda)


def test_versions_are_those_installed() -> None:
    versions = doctor.diagnose().versions
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions["python"] == ".".join(str(part) for part in sys.version_info[:3])


def test_an_installation_without_native_libraries_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "diagnosis.json"
    command = [sys.executable, "-m", "argus_kernels.doctor", "--json", str(file)]
    environment = {**os.environ, "ARGUS_NATIVE_DISABLE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    written = json.loads(file.read_text())
    assert done.returncode == 0, done.stderr
    for library in native.LIBRARIES:
        assert "switched off by ARGUS_NATIVE_DISABLE" in written["libraries"][library]
    native_rows = [row for row in written["rows"] if row["backend"] in ("cpp", "cuda")]
    assert native_rows and not any(row["serves"] for row in native_rows)
    assert "_ops_cpu.so is switched off by ARGUS_NATIVE_DISABLE" in done.stdout
    assert all(row["serves"] for row in written["rows"] if row["backend"] == "reference")


def test_a_library_that_was_never_built_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = {"libraries": {"cuda": {"built": False, "reason": "nvcc was not found"}}}
    (tmp_path / "_build_info.json").write_text(json.dumps(record))
    monkeypatch.setattr(native, "_PACKAGE", tmp_path)
    monkeypatch.setattr(native, "_outcome", {})
    native.build_info.cache_clear()
    try:
        diagnosis = doctor.diagnose()
    finally:
        native.build_info.cache_clear()
    assert diagnosis.libraries["cuda"] == "_ops_cuda.so was not built: nvcc was not found"
    assert "there is no record of a build" in diagnosis.libraries["cpu"]
    assert not diagnosis.unserved


def test_the_file_holds_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json", str(tmp_path / "diagnosis.json")]) == 0
    printed, written = capsys.readouterr().out, json.loads((tmp_path / "diagnosis.json").read_text())
    for row in written["rows"]:
        assert row["backend"] in printed
        for reason in row["reasons"]:
            assert reason in printed
    assert all(value in printed for value in written["versions"].values())


def test_cpu_features_name_the_level_and_the_threads() -> None:
    reason = native.why_not("cpu")
    if reason is not None:
        pytest.skip(reason)
    text = torch.ops.argus_native.cpu_features()
    levels = r"isa=(portable|avx2|avx512) bfloat16=(none|avx512_bf16|amx)"
    assert re.fullmatch(levels + r" instructions=[\w,]+ threads=\d+", text)
