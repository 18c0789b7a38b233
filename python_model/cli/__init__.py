"""The `argus` command: prepare data, train, evaluate, recommend, serve, and a demo of all of it.

This package only parses options, in one file per group of commands. Each command imports torch and the model when it
needs them, so that --help is quick.
"""

from __future__ import annotations

import os
import sys

from python_model.cli.app import app, print_in_any_encoding, stop_on_sigterm

# Importing a group registers its commands: --help lists them in this order.
from python_model.cli import demo, data, training, tune, plan, evaluation, compare, serving, studies, doctor  # isort: skip
from python_model.cli.options import parse_settings

__all__ = [
    "app", "compare", "data", "demo", "doctor", "evaluation", "main", "parse_settings", "plan", "serving", "studies",
    "training", "tune",
]  # fmt: skip


def main() -> None:
    """Entry point of the `argus` script."""
    stop_on_sigterm()
    print_in_any_encoding()
    try:
        try:
            app(prog_name="argus")
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output closed it (`| head`); otherwise Python would report the closed pipe again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
