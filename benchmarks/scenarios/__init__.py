"""Benchmarks beyond one op: growth with size, whole training steps, serving, data preparation and host code."""
