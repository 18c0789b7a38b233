"""Dockerfile and compose.yaml: their syntax, and that they start `argus serve` with options that it has."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from python_model.cli import app

REPOSITORY = Path(__file__).resolve().parents[2]
INSTRUCTIONS = {
    "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT",
}  # fmt: skip


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined."""
    text = "\n".join(line for line in (REPOSITORY / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def given(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out of the build: the last pattern that fits decides."""
    out = False
    for line in (REPOSITORY / ".dockerignore").read_text().split():
        pattern = line.lstrip("!").removeprefix("**/")
        whole = "**/" not in line
        names = [path, *map(str, Path(path).parents)] if whole else [Path(path).name]
        if any(fnmatch.fnmatchcase(name, pattern) for name in names if name != "."):
            out = not line.startswith("!")
    return out


def test_the_dockerfile_is_made_of_instructions() -> None:
    found = instructions()
    assert found[0][0] == "FROM" and {name for name, _ in found} == INSTRUCTIONS
    stages = [re.fullmatch(r"(\S+)(?: AS (\w+))?", rest) for rest in given("FROM")]
    assert len(stages) == 2 and all(stages)
    names = {stage[2] for stage in stages if stage is not None}
    for rest in given("COPY"):
        stage = re.match(r"--from=(\w+) ", rest)
        assert stage is None or stage[1] in names
        for source in rest.split()[:-1] if stage is None else ():
            assert (REPOSITORY / source).exists() and not ignored(source), source
    for rest in given("RUN"):
        shlex.split(rest)
    for rest in (*given("ENTRYPOINT"), given("HEALTHCHECK")[0].split("CMD", 1)[1]):
        assert all(isinstance(word, str) for word in json.loads(rest))


def test_the_container_is_nobodys_root_and_keeps_sessions() -> None:
    names = [name for name, _ in instructions()]
    assert given("USER") == ["argus"] and names.index("USER") < names.index("ENTRYPOINT")
    assert given("VOLUME") == ["/sessions"] and given("STOPSIGNAL") == ["SIGTERM"]


def test_what_the_wheel_is_built_from_is_sent() -> None:
    for path in ("setup.py", "pyproject.toml", "constraints.txt", "csrc/common/cpu", "python_model/cli/app.py",
                 "argus_kernels/py.typed", "build_support/decide.py", "README.md", "LICENSE"):  # fmt: skip
        assert (REPOSITORY / path).exists() and not ignored(path), path
    for path in (".git/config", "tests/conftest.py", "argus_kernels/_ops_cpu.so", "argus_kernels/_build_info.json"):
        assert ignored(path), path


def options_of(words: list[str]) -> dict[str, Any]:
    """The values that `argus` reads from a command line."""
    assert words[:2] == ["argus", "serve"]
    command: Any = typer.main.get_command(app)
    found: dict[str, Any] = command.commands["serve"].make_context("serve", words[2:]).params
    return found


def test_both_start_a_server_with_options_that_it_has() -> None:
    entry = json.loads(given("ENTRYPOINT")[0])
    [service] = (compose := yaml.safe_load((REPOSITORY / "compose.yaml").read_text()))["services"].values()
    found = options_of([*entry, *service["command"]])
    assert found["http"] and found["host"] == "0.0.0.0" and str(found["state"]) == "/sessions"
    assert given("EXPOSE") == [str(found["port"])]
    assert f":{found['port']}/health" in given("HEALTHCHECK")[0]
    assert service["ports"] == [f"127.0.0.1:{found['port']}:{found['port']}"]
    mounts = {one.rsplit(":", 2 if one.endswith(":ro") else 1)[1]: one for one in service["volumes"]}
    assert set(mounts) == {str(found["path"]), "/sessions"} and mounts[str(found["path"])].endswith(":ro")
    assert mounts["/sessions"].split(":")[0] in compose["volumes"] and service["build"] == "."


def test_an_option_that_is_not_there_is_noticed() -> None:
    with pytest.raises((typer.Exit, typer.BadParameter.__mro__[1])):
        options_of(["argus", "serve", "/export", "--no-such-option"])
