"""What every test shares: one thread, a fixed seed, and where real data lies."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.drawn_examples import FULL, QUICK
from tests.sampling import COLLECTED

if not torch.cuda.is_available():
    # Triton reads it when it is imported, which no test has done yet: its kernels then run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None:
    from argus_kernels.testing.triton_interpreter import prepare_interpreter

    prepare_interpreter()

REPOSITORY = Path(__file__).resolve().parents[1]
COMPILING = REPOSITORY / "tests" / "csrc"

# What is imported and collected stays until the end, and each full collection of garbage would go through all of it.
gc.disable()

for profile, count in (("full", FULL), ("quick", QUICK)):
    settings.register_profile(
        profile, deadline=None, max_examples=count, suppress_health_check=[HealthCheck.too_slow], derandomize=True
    )
settings.load_profile("full")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps what was collected before -m leaves any out, and has the tests first that compile for longest."""
    config.stash[COLLECTED] = list(items)
    items.sort(key=lambda item: COMPILING not in item.path.parents)


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests run side by side in processes of one thread each; what a session's fixtures compute is computed so too."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _commands_are_built_once() -> Iterator[None]:
    """`CliRunner` builds the tree of all commands for each one it runs: 40 of the 60 ms that a refused one takes."""
    if find_spec("typer") is None:
        yield
        return
    from typer.main import get_command

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", cache(get_command))
        yield


@pytest.fixture(autouse=True)
def _one_thread_and_seed(_one_thread: None) -> None:
    """One thread whatever a test before this one set, and no test depends on another's draws."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of public interaction data: ARGUS_TEST_DATA, else `shared/data` beside the repository."""
    folder = Path(os.environ.get("ARGUS_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not there; set ARGUS_TEST_DATA to a folder that holds ml-100k")
    return folder
