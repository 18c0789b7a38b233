"""`python -m python_model`: the argus command."""

from __future__ import annotations

import sys

from python_model import extras


def main() -> None:
    """Entry point of the `argus` script."""
    extras.require("argus", "model")
    try:
        from python_model.cli import main as run
    except KeyboardInterrupt:
        # The command's own handler is among what is imported here, which takes seconds on a cold disk.
        print("Stopped.", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
