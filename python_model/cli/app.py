"""The `argus` command itself: its groups, the first lines of its help, and how errors in the input are reported.

Errors in what the user gave are one sentence on stderr and exit code 2; --debug shows the traceback.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from io import TextIOWrapper
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from python_model.io.settings import shown
from python_model.reporting import console
from python_model.training.progress import Terminated

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after Ctrl-C and after SIGTERM, as shells have them."""
MAX_SENTENCE = 2000
"""Longest message in characters."""


def exit_code(stop: KeyboardInterrupt) -> int:
    """The exit code of a command that was stopped."""
    return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED


def stop_on_sigterm() -> None:
    """Let SIGTERM end a command as Ctrl-C does: unfinished output is removed or saved."""

    def strike(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, strike)


def print_in_any_encoding() -> None:
    """Print characters that stdout or stderr cannot encode as escapes, so that ids and help texts raise no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


UsageError: type[Any] = typer.BadParameter.__mro__[1]
"""What typer raises for invalid options and arguments; the module that defines it differs between typer's versions."""


class ArgusGroup(TyperGroup):
    """Turns errors in the user's input into one sentence and exit code 2, Ctrl-C into 130 and SIGTERM into 143."""

    def make_context(self, *given: Any, **named: Any) -> Any:
        """Parse a command line; an invalid option becomes a message."""
        try:
            return super().make_context(*given, **named)
        except UsageError as error:
            raise _refusal(error) from None

    def invoke(self, ctx: Any) -> Any:
        """Run a command; ValueError (with DataError), OSError, divergence and lack of memory become a message."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except UsageError as error:
            raise _refusal(error) from None
        except KeyboardInterrupt as stop:
            console.say("Stopped.")
            raise typer.Exit(exit_code(stop)) from None
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            sentence = _sentence(error)
            if ctx.params.get("debug") or sentence is None:
                raise
            console.say(f"argus{_which_rank()}: {sentence}")
            raise typer.Exit(2) from None


def _sentence(error: Exception) -> str | None:
    """The message of an error in the user's input; None for an error that is a bug of this package."""
    text = str(error)
    if isinstance(error, MemoryError) or re.search("not enough memory|out of memory|can't allocate memory", text):
        return f"not enough memory: {_one_line(text)[:300] or 'the system gave none'}"
    if isinstance(error, RuntimeError) and type(error).__name__ != "TrainingDiverged":
        return None
    if isinstance(error, OSError) and error.strerror:
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        text = f"{place}{error.strerror[0].lower()}{error.strerror[1:]}"
    return _one_line(text)


def _one_line(text: str) -> str:
    """A message on one line, shortened: it may quote input of any length."""
    text = " ".join(text.split())
    return text if len(text) <= MAX_SENTENCE else f"{text[: MAX_SENTENCE // 2]} … {text[-MAX_SENTENCE // 4 :]}"


def _refusal(error: Any) -> Exception:
    """Prints in one sentence what is wrong with a command line; returns the exception that ends the command."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return error
    # Some versions of typer do not show the value in the message; the exception's cause does.
    causes: list[Any] = getattr(error.__cause__, "errors", list)()
    found = f", found {shown(causes[0]['input'])}" if causes else ""
    text = _one_line(error.format_message()).rstrip(".")
    where = f" (see `{error.ctx.command_path} --help`)" if error.ctx is not None else ""
    console.say(f"argus: {text}{found}{where}")
    return typer.Exit(2)


def _which_rank() -> str:
    """Under torchrun, the rank that reports: an error may concern one process only."""
    return f" (rank {os.environ['RANK']})" if "RANK" in os.environ and "WORLD_SIZE" in os.environ else ""


app = typer.Typer(
    cls=ArgusGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="ARGUS, the recommender transformer over long user histories: prepare data, train, evaluate, recommend, "
    "serve.\n\n"
    "Start with `argus demo`. Then, on your own data:\n\n"
    "- `argus prepare movielens ml-100k data/ml`\n"
    "- `argus pretrain data/ml runs/pretrain`\n"
    "- `argus finetune data/ml runs/finetune --from runs/pretrain`\n"
    "- `argus evaluate data/ml runs/pretrain runs/finetune`\n"
    "- `argus recommend data/ml runs/finetune --user 42`\n\n"
    "And at work, from one directory that needs no data:\n\n"
    "- `argus export data/ml runs/finetune exports/ml`\n"
    "- `argus index exports/ml`, then `argus candidates exports/ml --out candidates.parquet`\n"
    "- `argus score exports/ml rows.parquet scores`\n"
    "- `argus serve exports/ml --state sessions`",
)


study = typer.Typer(
    cls=ArgusGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Studies: one question each, with a table, a figure and the numbers behind them.",
)
app.add_typer(study, name="study")


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"argus-kernels {version('argus-kernels')}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass
