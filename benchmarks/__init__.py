"""Microbenchmarks: every kernel beside its peers and beside the hardware. `python -m benchmarks --help`."""
