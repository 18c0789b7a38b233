"""What setup.py needs to build the native libraries: decide.py says which and why, compile.py compiles them."""
