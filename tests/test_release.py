"""What a release says of itself agrees with itself: version, extras, citation, the matrix of its tests."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import argus_kernels
from build_support.pythons import VERSIONS
from python_model import extras

REPOSITORY = Path(__file__).resolve().parents[1]


def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")
    return dict(tomllib.loads((REPOSITORY / "pyproject.toml").read_text()))


def test_the_version_is_written_once() -> None:
    version = argus_kernels.__version__
    assert "version" not in project()["project"] and project()["project"]["dynamic"] == ["version"]
    assert re.search(rf"^version: {re.escape(version)}$", (REPOSITORY / "CITATION.cff").read_text(), re.MULTILINE)
    assert re.search(rf"^## {re.escape(version)}\b", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == version


@pytest.mark.parametrize("label", ["cu130", "Cu 13"])
def test_a_label_goes_behind_the_version(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARGUS_VERSION_LABEL", label)
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if label == "cu130":
        assert done.stdout.split()[-1] == f"{argus_kernels.__version__}+cu130"
    else:
        assert done.returncode != 0 and "ARGUS_VERSION_LABEL is 'Cu 13', expected letters, digits and" in done.stderr


@pytest.mark.parametrize("extra", list(extras.EXTRAS))
def test_an_extra_is_what_pyproject_installs(extra: str) -> None:
    optional = project()["project"]["optional-dependencies"]
    listed = optional[extra]
    if listed == ["argus-kernels[model]"]:
        listed = optional["model"]
    names = {re.split(r"[<>=;\[ ]", one)[0] for one in listed if "python_version <" not in one}
    assert set(extras.EXTRAS[extra]) == names


@pytest.mark.parametrize(
    ("module", "program", "extra"), [("python_model", "argus", "model"), ("benchmarks", "benchmarks", "bench")]
)
def test_a_command_without_its_extra_says_which(module: str, program: str, extra: str) -> None:
    hidden = (
        "import importlib.util, runpy, sys\n"
        "found = importlib.util.find_spec\n"
        "hidden = lambda name, *rest: None if name in ('typer', 'polars') else found(name, *rest)\n"
        "importlib.util.find_spec = hidden\n"
        f"runpy.run_module('{module}', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", hidden], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"{program}: polars, typer not installed: pip install 'argus-kernels[{extra}]'\n"


def test_the_script_checks_before_it_imports() -> None:
    assert project()["project"]["scripts"] == {"argus": "python_model.__main__:main"}
    assert find_spec("python_model.__main__") is not None


WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))


def jobs(path: Path) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return dict(yaml.safe_load(path.read_text())["jobs"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_what_is_there(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)) | {"docs"}
    text = path.read_text()
    assert jobs(path)
    assert set(re.findall(r"run: make ([a-z-]+)", text)) <= targets
    for tool in re.findall(r"\btools/[a-z_]+\.(?:sh|py)", text):
        assert (REPOSITORY / tool).exists()


def test_the_matrix_has_every_python_and_the_floor_of_torch() -> None:
    matrix = jobs(REPOSITORY / ".github" / "workflows" / "test.yml")["matrix"]["strategy"]["matrix"]
    found = {*matrix["python"], *(one["python"] for one in matrix["include"])}
    named = [
        one for one in project()["project"]["classifiers"] if one.startswith("Programming Language :: Python :: 3.")
    ]
    assert found == {one.split()[-1] for one in named} == set(VERSIONS)
    assert project()["project"]["dependencies"][0] == f"torch>={min(matrix['torch'], key=version_of)[:-2]}"


def version_of(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def test_the_wheels_of_a_release_have_a_host_for_every_python() -> None:
    listed = project()["tool"]["cibuildwheel"]["environment"]["ARGUS_PYTHONS"]
    assert re.findall(r"/cp3(\d+)-cp3\1/", listed) == [version.split(".")[1] for version in VERSIONS]
    assert listed in (REPOSITORY / ".github" / "workflows" / "wheels.yml").read_text()


def test_workflows_fit_their_schema() -> None:
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed: pip install check-jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*command, *map(str, WORKFLOWS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
