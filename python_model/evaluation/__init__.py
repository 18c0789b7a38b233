"""Predictions of a model or a baseline, the metrics of both, and recommendations."""
