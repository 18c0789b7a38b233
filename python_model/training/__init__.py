"""Training: processes, checkpoints, progress, and runs that go on."""
