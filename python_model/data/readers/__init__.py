"""Readers: public data sets and what they share, into the prepared format."""
