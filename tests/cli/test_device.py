"""`--device auto`, the default: a GPU where torch sees one, else the CPU; a device that is named is taken as it is."""

from __future__ import annotations

import pytest
import torch
import typer
from typer.testing import CliRunner

from python_model.cli.options import Device


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("given", [None, "auto", "cpu", "cuda:1"])
def test_auto_takes_the_gpu_that_is_there(gpu: bool, given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    app = typer.Typer()

    @app.command()
    def command(device: Device = "auto") -> None:
        typer.echo(device)

    printed = CliRunner().invoke(app, [] if given is None else ["--device", given]).output.strip()
    automatic = "cuda" if gpu else "cpu"
    assert printed == (given if given not in (None, "auto") else automatic)
