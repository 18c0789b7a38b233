"""What the documents promise holds: their links lead somewhere, and the README's example runs."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from argus_kernels import OPS
from python_model.cli import app

REPOSITORY = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)(?:#[^)]*)?\)")


def documents() -> list[Path]:
    skipped = {".venv", "build", "dist", "node_modules"}
    return [p for p in sorted(REPOSITORY.rglob("*.md")) if not skipped & set(p.relative_to(REPOSITORY).parts)]


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_relative_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text()):
        assert (path.parent / target).exists(), f"{path.relative_to(REPOSITORY)} links to {target}"


def command_lines(path: Path) -> list[list[str]]:
    """The `argus` commands of a document's shell blocks, also as torchrun starts them; … stands for more of them."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", path.read_text(), re.DOTALL)
    found = []
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if "argus" in line or "python_model" in line else []
        for at, word in enumerate(words):
            begins = word == "argus" and (at == 0 or words[at - 1] in ("&&", ";", "|"))
            if begins or words[at - 1 : at + 1] == ["-m", "python_model"]:
                rest = [*words[at + 1 :], "&&"]
                end = min(rest.index(sign) for sign in ("&&", ";", "|", ">", "&") if sign in rest)
                found.append([one for one in rest[:end] if one != "…"])
    return found


def options_named(path: Path) -> list[tuple[list[str], str]]:
    """(words, option) for every option of an `argus …` in inline code, whose arguments may be placeholders."""
    mentions = [one.split()[1:] for one in re.findall(r"`(argus [^`\n]+)`", path.read_text())]
    return [(words, word.strip("[]").split("=")[0]) for words in mentions for word in words if "--" in word[:3]]


def parse(arguments: list[str]) -> None:
    """Reads a command line as `argus` does, and runs nothing; raises where it does not fit."""
    command: Any = typer.main.get_command(app)
    context: Any = None
    name: str | None = "argus"
    while True:
        context = command.make_context(name, list(arguments), parent=context)
        if not hasattr(command, "resolve_command"):
            return
        name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])


def command_of(words: list[str]) -> Any:
    """The command that some words begin with."""
    command: Any = typer.main.get_command(app)
    for word in words:
        if not hasattr(command, "commands") or word not in command.commands:
            break
        command = command.commands[word]
    return command


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_command_line_is_one_of_argus(path: Path) -> None:
    for arguments in command_lines(path):
        try:
            parse(arguments)
        except typer.Exit as stop:
            assert stop.exit_code == 0, f"argus {shlex.join(arguments)}"
    for words, option in options_named(path):
        known = {name for parameter in command_of(words).params for name in parameter.opts} | {"--help"}
        assert option in known, f"argus {' '.join(words)}: {option} is none of {sorted(known)}"


def test_a_command_line_that_does_not_fit_is_noticed(tmp_path: Path) -> None:
    for line in (
        "argus pretrain data",
        "argus evaluate d r --kk 3 && true",
        "torchrun -m python_model study nothing out",
    ):
        (tmp_path / "page.md").write_text(f"```sh\n{line}  # why\n```\n")
        with pytest.raises((typer.Exit, typer.BadParameter.__mro__[1])):
            parse(*command_lines(tmp_path / "page.md"))


def test_the_readmes_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert found is not None
    names: dict[str, object] = {}
    exec(compile(found[1], "README.md", "exec"), names)
    assert "backend='reference'" in capsys.readouterr().out
    assert names["time_bias"].grad is not None  # type: ignore[attr-defined]


def test_the_readme_names_every_op_and_its_state() -> None:
    text = (REPOSITORY / "README.md").read_text().split("## Status")[1]
    for op in OPS:
        row = re.search(rf"^\| {re.escape(op.name)} \|(.*)\|$", text, re.MULTILINE)
        assert row is not None, f"{op.name} is missing in the status table"
        states = dict(zip(("reference", "cpp", "triton", "cuda"), row[1].split("|"), strict=True))
        for backend, state in states.items():
            exists = any(one.name == backend for one in op.backends)
            assert exists == (state.strip() != "–"), f"{op.name}: the table says {state.strip()!r} of {backend}"


def test_make_help_lists_its_targets() -> None:
    done = subprocess.run(["make", "-s", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for target in ("setup", "demo", "test", "lint", "bench", "doctor"):
        assert f"make {target}" in done.stdout, target
