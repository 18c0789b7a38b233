"""The README's install lines, and after them its example and the quickstart, in an environment that has nothing."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from build_support import compile as native
from build_support import decide
from tests import quickstart_lines as quickstart
from tests.build_support.trees import REPOSITORY, compiled_here, copy_of_tree

pytestmark = pytest.mark.slow


def readme_block(title: str, language: str) -> str:
    """The first block in a language under a heading of the README."""
    section = (REPOSITORY / "README.md").read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


def requirements(extra: str) -> list[str]:
    """What an extra of the installed package asks for, those extras included that it names."""
    name = "argus-kernels"
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found: list[str] = []
    for one in extras[extra]:
        inner = re.fullmatch(rf"{name}\[(\w+)\]", one)
        found += requirements(inner[1]) if inner else [one]
    return found


def run(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


STAND_IN = """#!{python}
import os, shutil, sys
objects, flags, compiler, asked = {objects!r}, {flags!r}, {compiler!r}, sys.argv[1:]
source = asked[asked.index("-c") + 1] if "-c" in asked else ""
# Headers lie in another place in each environment.
given = [one for one in asked[3:-4] if not one.startswith(("-isystem", "-fmacro-prefix-map"))]
if source in objects and given == flags:
    with open(asked[2], "w") as dependencies:
        dependencies.write(f"{{asked[-1]}}: {{source}}\\n")
    shutil.copy(objects[source], asked[-1])
else:
    os.execvp(compiler[0], [*compiler, *asked, *["-O0"] * ("-c" in asked)])
"""
"""A compiler that hands out what this tree's build has compiled of the ops, and compiles the rest without optimisation:
what is tested is the way there."""


def stand_in(folder: Path) -> Path:
    """The compiler's stand-in, made in a new folder; it hands out nothing where some of the objects are out of date."""
    folder.mkdir()
    library, compiler = native.cpu_library(REPOSITORY), decide.find_compiler(os.environ)
    objects: dict[str, str] = {}
    with compiled_here() as built:
        for source in library.sources:
            if built is None:
                break
            kept = folder / f"{len(objects)}.o"
            shutil.copy(built / library.key / f"{source}.o", kept)
            objects[source] = str(kept)
    flags = [one for one in library.compile_flags if not one.startswith(("-isystem", "-fmacro-prefix-map"))]
    program = folder / "c++"
    program.write_text(
        STAND_IN.format(python=sys.executable, objects=objects, flags=flags, compiler=shlex.split(compiler.command))
    )
    program.chmod(0o755)
    return program


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The variables of a shell in a new virtual environment, whose torch is pinned to the CPU build in use here."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    pin = tmp_path / "pin.txt"
    pin.write_text(f"torch=={torch.__version__}\n")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("ARGUS", "PYTHON", "VIRTUAL_ENV"))}
    made = kept | {"PATH": f"{tmp_path / 'venv' / 'bin'}:/usr/bin:/bin", "ARGUS_CUDA": "0"}
    made["CXX"] = str(stand_in(tmp_path / "compiler"))
    made |= {"PIP_CONSTRAINT": str(pin), "PIP_BUILD_CONSTRAINT": str(pin), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    looked = run(["pip", "install", "--dry-run", "--no-deps", f"torch=={torch.__version__}"], tmp_path, made)
    if looked.returncode != 0 or torch.version.cuda is not None:
        pytest.skip(f"pip finds no CPU build of torch {torch.__version__} here, and others are gigabytes")
    return made


@pytest.mark.timeout(1800)
def test_the_readme_installs_from_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    tree = copy_of_tree(tmp_path / "tree")
    shutil.copytree(REPOSITORY / "tools", tree / "tools")
    done = run(["bash", "-ec", readme_block("Install", "bash")], tree, environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert re.search(r"causal_attention.*\n?.*cpp", done.stdout)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    example = run(["python", "-c", readme_block("One op", "python")], elsewhere, environment)
    assert example.returncode == 0, example.stderr
    assert "cpp" in example.stdout
    bare = run(["argus"], elsewhere, environment)
    assert bare.returncode == 2
    assert re.fullmatch(r"argus: [\w, ]+ not installed: pip install 'argus-kernels\[model\]'\n", bare.stderr)
    # Then the quickstart, with what its extra brings; the package itself is not compiled a second time.
    assert shutil.which("curl") is not None
    brought = run(["pip", "install", "-q", *requirements("serve")], elsewhere, environment)
    assert brought.returncode == 0, brought.stderr[-2000:]
    printed = quickstart.run(tmp_path / "shop", environment | {"OMP_NUM_THREADS": "1"})
    quickstart.require_results(tmp_path / "shop", printed)


def test_a_bare_environment_is_told_everything_at_once(tmp_path: Path) -> None:
    tree = copy_of_tree(tmp_path / "tree")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [str(tmp_path / "venv" / "bin" / "python"), "-m", "pip"]
    subprocess.run([*pip, "uninstall", "-q", "-y", "setuptools"], check=True)
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("ARGUS", "PYTHON", "CXX"))}
    bare = kept | {"PATH": "/nonexistent"}
    done = run([*pip, "install", "--no-build-isolation", "--no-deps", str(tree)], tmp_path, bare)
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert "error: building argus-kernels without build isolation needs Python packages (pip install " in said
    for wanted in ("'setuptools>=77'", "'torch>=2.10'", "'pybind11>=2.13'", "ninja", "a C++20 compiler"):
        assert wanted in said
    assert "Traceback" not in said
