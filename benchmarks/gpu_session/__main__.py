"""`python -m benchmarks.gpu_session`."""

from benchmarks.gpu_session.cli import app

app()
