"""`python -m python_model`: the argus command."""

from __future__ import annotations

from python_model import extras


def main() -> None:
    """Entry point of the `argus` script."""
    extras.require("argus", "model")
    from python_model.cli import main as run

    run()


if __name__ == "__main__":
    main()
