"""Anybody's own log: which columns are users, items, times and feedback is said by a `TableMapping`."""
