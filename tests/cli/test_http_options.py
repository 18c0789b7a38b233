"""Options of `argus serve --http` that cannot be had are refused in one sentence, before an export is read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from python_model.cli import app
from python_model.serving.http.app import Limits


def refusal(path: Path, *options: str) -> str:
    """What is said of a command that is refused."""
    found = CliRunner().invoke(app, ["serve", str(path / "no export"), "--http", *options])
    assert found.exit_code == 2 and found.stdout == ""
    return " ".join(found.stderr.split())


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in list(sys.modules):
        if name.startswith("python_model.serving.http"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    sentence = refusal(tmp_path)
    assert sentence == f'argus: --http: {package} is not installed: pip install "argus-kernels[serve]"'


def test_an_address_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    assert "--host is 'no such host': no address of this machine" in refusal(tmp_path, "--host", "no such host")
    assert "cannot listen on 192.0.2.1, port 0" in refusal(tmp_path, "--host", "192.0.2.1", "--port", "0")
    assert "port" in refusal(tmp_path, "--port", "70000")


def test_an_export_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "no export/export.json: not found" in refusal(tmp_path, "--port", "0")


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [({"timeout": float("nan")}, "timeout is nan, expected a positive number of seconds"),
     ({"timeout": float("inf")}, "timeout is inf"), ({"timeout": 0.0}, "timeout is 0.0"),
     ({"queue": 0}, "queue is 0, expected a whole number of at least 1"), ({"batch": True}, "batch is True")],
)  # fmt: skip
def test_limits_are_numbers_that_limit(limits: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Limits(**limits)
