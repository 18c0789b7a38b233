"""Builds the native libraries for setup.py: decide.py decides which and why, compile.py compiles them."""
