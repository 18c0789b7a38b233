"""Readers that convert public data sets to the prepared format, and their shared code."""
