"""Reads a user's own log; a `TableMapping` names the columns of users, items, times and feedback."""
