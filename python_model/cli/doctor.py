"""`argus doctor`: what the kernels can do on this machine."""

from __future__ import annotations

import typer

from python_model.cli.app import app


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def doctor(context: typer.Context) -> None:
    """Say what is installed, which backend serves which op on this machine, and why others do not."""
    from argus_kernels import doctor as kernels_doctor

    raise typer.Exit(kernels_doctor.main(context.args))
