"""Training: processes, checkpoints, progress, and resumption."""
